//! What prefetchers guess: which layers, in which order, how many are read.

mod common;

use common::dice::Dice;
use hotset::{
    id::ExpertId,
    prefetch::{PrefetchKind, Prefetcher, Reads},
    retrieval::Retrieval,
    trace::{LayerEvent, Phase, Routed},
};

const N_EXPERT: usize = 32;
const USED: usize = 6;

fn choice(layer: u16, experts: impl IntoIterator<Item = u16>) -> Vec<Routed> {
    experts.into_iter().map(|expert| Routed { id: ExpertId { layer, expert }, weight: 0.0 }).collect()
}

/// An event of token `token`.
fn event<'a>(phase: Phase, token: u32, routed: &'a [Routed], lookahead: &'a [f32]) -> LayerEvent<'a> {
    let n_tokens = (routed.len() / USED) as u32;
    LayerEvent { phase, first_token: token, n_tokens, layer: routed[0].id.layer, routed, lookahead }
}

/// Scores that rank `first`, `first + 1`, ….
fn ranking(first: usize) -> Vec<f32> {
    (0..N_EXPERT).map(|e| if e >= first { -(e as f32) } else { f32::NEG_INFINITY }).collect()
}

fn ids(layer: u16, experts: std::ops::Range<u16>) -> Vec<ExpertId> {
    experts.map(|expert| ExpertId { layer, expert }).collect()
}

/// Reads and guesses of a prefetcher that is told of no past tokens.
fn observe(prefetcher: &mut dyn Prefetcher, event: LayerEvent<'_>) -> (usize, Vec<ExpertId>) {
    let mut guesses = Vec::new();
    let reads = prefetcher.observe(event, &Retrieval::off(), &mut guesses);
    assert_eq!(reads, Reads::now(reads.now), "it knows no layers that are far");
    (reads.now, guesses)
}

#[test]
fn history_reads_what_followed_and_forgets() {
    let mut prefetcher = PrefetchKind::History.build(N_EXPERT, USED);
    assert_eq!((prefetcher.name(), prefetcher.wants_scores()), ("history", false));
    let (first, routed) = (choice(0, 0..6), [choice(1, 8..14), choice(1, 20..26)]);
    let mut token = |token: u32, then: usize| {
        let guessed = observe(&mut *prefetcher, event(Phase::Decode, token, &first, &[]));
        let (_, last) = observe(&mut *prefetcher, event(Phase::Decode, token, &routed[then], &[]));
        assert!(last.is_empty(), "nothing has followed the last layer");
        guessed
    };
    assert_eq!(token(0, 0), (0, Vec::new()));
    assert_eq!(token(1, 0), (4, ids(1, 8..14)), "six followed always, four are read");
    (2..100).for_each(|n| drop(token(n, 0)));
    // One in a hundred is worth being kept, not being read; those that always followed still are.
    token(100, 1);
    assert_eq!(token(101, 0), (4, [ids(1, 8..14), ids(1, 20..26)].concat()));
    // The newer hundred weighs more than the older.
    (102..202).for_each(|n| drop(token(n, 1)));
    assert_eq!(token(202, 1).1[..6], ids(1, 20..26));
}

#[test]
fn history_learns_from_prompts_and_not_across_tokens() {
    let mut prefetcher = PrefetchKind::History.build(N_EXPERT, USED);
    let mut observe = |phase, token, routed: &[Routed]| observe(&mut *prefetcher, event(phase, token, routed, &[]));
    // Two tokens: 0..6 is followed by 6..12, 12..18 by 18..24.
    let both =
        |layer, second: u16| [choice(layer, second - 12..second - 6), choice(layer, second..second + 6)].concat();
    assert_eq!(observe(Phase::Prompt, 0, &both(0, 12)).0, 0);
    assert_eq!(observe(Phase::Prompt, 0, &both(1, 18)).0, 0);
    assert_eq!(observe(Phase::Decode, 2, &choice(0, 0..6)), (4, ids(1, 6..12)));
    assert_eq!(observe(Phase::Decode, 3, &choice(0, 12..18)), (4, ids(1, 18..24)));
    // Token 4's first layer is missing: nothing precedes its second.
    observe(Phase::Decode, 4, &choice(1, 26..32));
    assert_eq!(observe(Phase::Decode, 5, &choice(0, 12..18)), (4, ids(1, 18..24)));
}

/// A model of six layers whose tokens are of two kinds, which share no experts.
struct Kinds {
    prefetcher: Box<dyn Prefetcher>,
    past: Retrieval,
    token: u32,
}

impl Kinds {
    fn new(kind: PrefetchKind) -> Self {
        Self { prefetcher: kind.build(N_EXPERT, USED), past: Retrieval::new(6, N_EXPERT), token: 0 }
    }

    /// The first expert of a kind's six in a layer.
    fn first(kind: u16, layer: u16) -> u16 {
        12 * kind + layer
    }

    /// Decodes a token of a kind up to and with layer `last`; what was guessed there.
    fn decode(&mut self, kind: u16, last: u16, scores: &[f32]) -> (Reads, Vec<ExpertId>) {
        self.run(Phase::Decode, kind, last, scores)
    }

    fn run(&mut self, phase: Phase, kind: u16, last: u16, scores: &[f32]) -> (Reads, Vec<ExpertId>) {
        let (mut reads, mut guesses) = (Reads::default(), Vec::new());
        for layer in 0..=last {
            guesses.clear();
            let first = Kinds::first(kind, layer);
            let routed = choice(layer, first..first + USED as u16);
            let event = event(phase, self.token, &routed, scores);
            self.past.observe(event);
            reads = self.prefetcher.observe(event, &self.past, &mut guesses);
        }
        self.token += 1;
        (reads, guesses)
    }

    /// What a kind uses in a layer.
    fn uses(kind: u16, layer: u16) -> Vec<ExpertId> {
        ids(layer, Kinds::first(kind, layer)..Kinds::first(kind, layer) + USED as u16)
    }
}

#[test]
fn votes_name_what_tokens_of_the_kind_used_layers_ahead() {
    let mut world = Kinds::new(PrefetchKind::Votes);
    assert_eq!((world.prefetcher.name(), world.prefetcher.wants_scores()), ("votes", false));
    assert_eq!(world.decode(0, 5, &[]), (Reads::default(), Vec::new()), "there is no past");
    assert!(world.run(Phase::Prompt, 1, 5, &[]).1.is_empty(), "a prompt teaches and is not guessed for");
    (0..10).for_each(|i| drop(world.decode(i % 2, 5, &[])));
    for kind in [0, 1] {
        let (reads, guesses) = world.decode(kind, 0, &[]);
        // Six of the next layer, as many of each of the three after it.
        assert_eq!(reads, Reads { now: 6, idle: 18 }, "kind {kind}");
        let expected: Vec<_> = (1..=4).flat_map(|layer| Kinds::uses(kind, layer)).collect();
        assert_eq!(guesses[..24], expected);
        assert!(guesses[24..].iter().all(|id| id.layer == 1), "kept, of the next layer: {guesses:?}");
        world.decode(kind, 5, &[]);
    }
}

#[test]
fn votes_go_on_into_the_next_token() {
    let mut world = Kinds::new(PrefetchKind::Votes);
    (0..20).for_each(|_| drop(world.decode(0, 5, &[])));
    let (reads, guesses) = world.decode(0, 4, &[]);
    assert_eq!(reads, Reads { now: 6, idle: 18 });
    let expected: Vec<_> = [5, 0, 1, 2].into_iter().flat_map(|layer| Kinds::uses(0, layer)).collect();
    assert_eq!(guesses, expected);
}

#[test]
fn few_votes_are_worth_no_read() {
    let (mut past, mut prefetcher) = (Retrieval::new(6, N_EXPERT), PrefetchKind::Votes.build(N_EXPERT, USED));
    let (mut dice, mut unlikely) = (Dice(5), 0);
    // Tokens are the same up to layer 2 and go on in one of three ways, nobody knows which.
    for token in 0..120 {
        let way = 8 * (dice.next() % 3) as u16;
        for layer in 0..6 {
            let first = if layer < 3 { 0 } else { way };
            let routed = choice(layer, first..first + USED as u16);
            let event = event(Phase::Decode, token, &routed, &[]);
            past.observe(event);
            let (mut shares, mut guesses) = (vec![0.0; N_EXPERT], Vec::new());
            let reads = prefetcher.observe(event, &past, &mut guesses);
            if layer != 2 {
                continue;
            }
            past.votes(3, &mut shares);
            let least = |least: f32| shares.iter().filter(|share| **share >= least).count();
            assert_eq!(reads.now, least(0.5), "token {token}");
            assert!(guesses[..reads.now].iter().all(|id| id.layer == 3 && shares[usize::from(id.expert)] >= 0.5));
            let of_next = guesses.iter().filter(|id| id.layer == 3).count();
            assert_eq!(of_next, least(f32::MIN_POSITIVE).min(2 * USED), "token {token}: what may come is kept");
            unlikely += of_next - reads.now;
        }
    }
    assert!(unlikely > 120, "{unlikely}");
}

#[test]
fn both_ranks_by_scores_and_votes() {
    let mut world = Kinds::new(PrefetchKind::Both);
    assert_eq!((world.prefetcher.name(), world.prefetcher.wants_scores()), ("both", true));
    // Without a past, it is what scores alone would read and keep.
    let scores = ranking(3);
    let (reads, guesses) = world.decode(0, 0, &scores);
    assert_eq!((reads, guesses), (Reads::now(4), ids(1, 3..15)));
    (0..20).for_each(|_| drop(world.decode(0, 5, &scores)));
    // Votes: 1 to 6, each 1. Scores: 3 first, then 4, 5, ….
    let (reads, guesses) = world.decode(0, 0, &scores);
    assert_eq!(reads, Reads { now: 4, idle: 18 });
    assert_eq!(guesses[..4], ids(1, 3..7), "those that both name");
    assert_eq!(guesses[4..10], Kinds::uses(0, 2));
    assert_eq!(guesses[22..24], ids(1, 1..3), "those that only votes name, before those that only scores name");
    assert_eq!(guesses[24..], ids(1, 7..13));
    // Without scores, votes alone.
    assert_eq!(world.decode(0, 0, &[]).0, Reads { now: 6, idle: 18 });
}
