//! What prefetchers guess: which layers, in which order, how many are read.

use hotset::{
    id::ExpertId,
    prefetch::PrefetchKind,
    trace::{LayerEvent, Phase, Routed},
};

const N_EXPERT: usize = 32;
const USED: usize = 6;

fn choice(layer: u16, experts: impl IntoIterator<Item = u16>) -> Vec<Routed> {
    experts.into_iter().map(|expert| Routed { id: ExpertId { layer, expert }, weight: 0.0 }).collect()
}

/// An event of token `token`.
fn event<'a>(phase: Phase, token: u32, routed: &'a [Routed], scores: [&'a [f32]; 2]) -> LayerEvent<'a> {
    let n_tokens = (routed.len() / USED) as u32;
    let [lookahead, lookahead2] = scores;
    LayerEvent { phase, first_token: token, n_tokens, layer: routed[0].id.layer, routed, lookahead, lookahead2 }
}

/// Scores that rank `first`, `first + 1`, ….
fn ranking(first: usize) -> Vec<f32> {
    (0..N_EXPERT).map(|e| if e >= first { -(e as f32) } else { f32::NEG_INFINITY }).collect()
}

fn ids(layer: u16, experts: std::ops::Range<u16>) -> Vec<ExpertId> {
    experts.map(|expert| ExpertId { layer, expert }).collect()
}

#[test]
fn lookahead_2_reads_the_next_layer_first() {
    let mut prefetcher = PrefetchKind::Lookahead2.build(N_EXPERT, USED);
    assert_eq!((prefetcher.name(), prefetcher.horizon()), ("lookahead-2", 2));
    let (near, far, routed) = (ranking(3), ranking(10), choice(4, 0..6));
    let mut guess = |phase, scores: [&[f32]; 2]| {
        let mut guesses = Vec::new();
        let reads = prefetcher.observe(event(phase, 7, &routed, scores), &mut guesses);
        (reads, guesses)
    };
    let (reads, guesses) = guess(Phase::Decode, [&near, &far]);
    assert_eq!(reads, 5);
    assert_eq!(guesses[..5], [ids(5, 3..7), ids(6, 10..11)].concat());
    assert_eq!(guesses[5..], [ids(5, 7..15), ids(6, 11..16)].concat());
    // Each horizon alone, and neither.
    assert_eq!(guess(Phase::Decode, [&near, &[]]), (4, ids(5, 3..15)));
    assert_eq!(guess(Phase::Decode, [&[], &far]), (1, ids(6, 10..16)));
    assert_eq!(guess(Phase::Prompt, [&near, &far]), (0, Vec::new()));
    // Fewer scores than are read: all of them.
    assert_eq!(guess(Phase::Decode, [&ranking(30), &far]).1[..3], [ids(5, 30..32), ids(6, 10..11)].concat());
}

#[test]
fn history_reads_what_followed_and_forgets() {
    let mut prefetcher = PrefetchKind::History.build(N_EXPERT, USED);
    assert_eq!((prefetcher.name(), prefetcher.horizon()), ("history", 0));
    let (first, routed) = (choice(0, 0..6), [choice(1, 8..14), choice(1, 20..26)]);
    let mut guesses = Vec::new();
    let mut token = |token: u32, then: usize| {
        guesses.clear();
        let reads = prefetcher.observe(event(Phase::Decode, token, &first, [&[], &[]]), &mut guesses);
        let guessed = (reads, guesses.clone());
        guesses.clear();
        prefetcher.observe(event(Phase::Decode, token, &routed[then], [&[], &[]]), &mut guesses);
        assert!(guesses.is_empty(), "nothing has followed the last layer");
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
    let mut observe = |phase, token, routed: &[Routed]| {
        let mut guesses = Vec::new();
        (prefetcher.observe(event(phase, token, routed, [&[], &[]]), &mut guesses), guesses)
    };
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
