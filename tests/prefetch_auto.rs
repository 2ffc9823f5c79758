//! `--prefetch auto` and `auto-votes` on the simulated drive: scores where they win, votes where those do and may be chosen,
//! nothing where all guesses cost, and none of them for longer than it has to be.

mod common;

use common::dice::Dice;
use hotset::{
    expert::{ExpertCache, ExpertStore, Experts, Scope},
    id::ExpertId,
    io::{SimClock, SimIo},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    trace::{LayerEvent, Phase, Routed},
};

const N_LAYER: usize = 6;
const N_EXPERT: usize = 32;
const N_USED: usize = 4;
const SLOTS: usize = 12;
const EXPERT_BYTES: u64 = 1000;

/// Token patterns that return in [`Knows::Past`].
const PATTERNS: usize = 24;

/// Who can tell what the next layer will use.
#[derive(Clone, Copy, PartialEq)]
enum Knows {
    /// Its scores.
    Scores,
    /// Past tokens: there are [`PATTERNS`] of them. Scores are at random.
    Past,
    /// Nobody.
    Nobody,
}

struct World {
    experts: Experts,
    clock: SimClock,
    dice: Dice,
    token: u32,
    /// Choices of the token before, which half of the new ones repeat.
    last: Vec<Vec<usize>>,
    /// (patterns, layers, N_USED)
    patterns: Vec<Vec<Vec<usize>>>,
}

fn world(prefetch: PrefetchKind) -> World {
    let sim = SimIo::new(50_000, 10);
    let clock = sim.clock();
    let store = ExpertStore::unfiled(&[EXPERT_BYTES; N_LAYER], N_EXPERT);
    let cache = ExpertCache::new(store, Scope::Layer, &[SLOTS; N_LAYER], PolicyKind::default(), Box::new(sim)).unwrap();
    let experts = Experts::new(cache, prefetch.build(N_EXPERT, N_USED), Box::new(()));
    let mut dice = Dice(3);
    let mut layers = |_| (0..N_LAYER).map(|_| dice.choose(N_USED, N_EXPERT)).collect();
    let patterns = (0..PATTERNS).map(&mut layers).collect();
    World { experts, clock, dice: Dice(3), token: 0, last: vec![vec![0; N_USED]; N_LAYER], patterns }
}

impl World {
    /// What the next token uses.
    fn choose(&mut self, knows: Knows) {
        if knows == Knows::Past {
            let pattern = self.dice.next() as usize % PATTERNS;
            self.last.clone_from(&self.patterns[pattern]);
            return;
        }
        for layer in 0..N_LAYER {
            let mut fresh = self.dice.choose(N_USED, N_EXPERT);
            for (i, &old) in self.last[layer].iter().enumerate().take(N_USED / 2) {
                if !fresh.contains(&old) {
                    fresh[i] = old;
                }
            }
            self.last[layer] = fresh;
        }
    }

    /// Decodes. Returns virtual time.
    fn decode(&mut self, tokens: usize, knows: Knows) -> u64 {
        let start = self.clock.now_ns();
        for _ in 0..tokens {
            self.choose(knows);
            for layer in 0..N_LAYER {
                // Attention, which no demand read can hide behind.
                self.clock.advance(150_000);
                let routed: Vec<Routed> = self.last[layer]
                    .iter()
                    .map(|&e| Routed { id: ExpertId { layer: layer as u16, expert: e as u16 }, weight: 0.25 })
                    .collect();
                let mut scores = vec![0.0; N_EXPERT];
                if self.experts.wants_scores(layer as u16) && layer + 1 < N_LAYER {
                    let named = if knows == Knows::Scores {
                        self.last[layer + 1].clone()
                    } else {
                        self.dice.choose(N_USED, N_EXPERT)
                    };
                    named.into_iter().for_each(|e| scores[e] = 1.0);
                } else {
                    scores.clear();
                }
                self.experts.request(LayerEvent {
                    phase: Phase::Decode,
                    first_token: self.token,
                    n_tokens: 1,
                    layer: layer as u16,
                    routed: &routed,
                    lookahead: &scores,
                });
                let mut ready = Vec::new();
                loop {
                    self.experts.next_ready(&mut ready).unwrap();
                    if ready.is_empty() {
                        break;
                    }
                    self.clock.advance(10_000 * ready.len() as u64);
                }
            }
            self.token += 1;
        }
        self.clock.now_ns() - start
    }
}

/// Time of each prefetcher over the same run of (tokens, who knows), and the shares of what `auto` chose.
struct Times {
    auto: u64,
    lookahead: u64,
    votes: u64,
    off: u64,
    modes: Vec<(&'static str, f64)>,
    /// Share with any guesses.
    on: f64,
}

impl Times {
    fn share(&self, names: &[&str]) -> f64 {
        self.modes.iter().filter(|(name, _)| names.contains(name)).map(|(_, share)| share).sum()
    }
}

fn times(chooser: PrefetchKind, run: &[(usize, Knows)]) -> Times {
    let decode = |world: &mut World| run.iter().map(|&(tokens, knows)| world.decode(tokens, knows)).sum();
    let [lookahead, votes, off] =
        [PrefetchKind::Lookahead, PrefetchKind::Votes, PrefetchKind::Off].map(|kind| decode(&mut world(kind)));
    let mut world = world(chooser);
    let auto = decode(&mut world);
    let (modes, on) = (world.experts.prefetch_modes(), world.experts.prefetch_share().unwrap());
    let times = Times { auto, lookahead, votes, off, modes, on };
    let all: &[&str] = match chooser {
        PrefetchKind::AutoVotes => &["lookahead", "off", "votes", "both"],
        _ => &["lookahead", "off"],
    };
    assert_eq!(times.modes.iter().map(|(name, _)| *name).collect::<Vec<_>>(), all);
    assert!((times.share(all) - 1.0).abs() < 1e-9, "{:?}", times.modes);
    assert!((times.share(&["off"]) + on - 1.0).abs() < 1e-9);
    times
}

const CHOOSERS: [PrefetchKind; 2] = [PrefetchKind::Auto, PrefetchKind::AutoVotes];

/// Modes that read what scores name.
const BY_SCORES: &[&str] = &["lookahead", "both"];

#[test]
fn it_stays_on_where_lookahead_wins() {
    for chooser in CHOOSERS {
        let t = times(chooser, &[(2000, Knows::Scores)]);
        assert!(t.lookahead * 10 < t.off * 9, "the world is such that lookahead wins: {} {}", t.lookahead, t.off);
        assert!(t.on > 0.9 && t.share(BY_SCORES) > 0.85, "{:?}", t.modes);
        assert!(t.auto * 100 < t.lookahead * 104, "{} is far from {}", t.auto, t.lookahead);
    }
}

#[test]
fn it_goes_off_where_guesses_cost() {
    for chooser in CHOOSERS {
        let t = times(chooser, &[(2000, Knows::Nobody)]);
        assert!(t.off * 100 < t.lookahead * 97, "the world is such that lookahead costs: {} {}", t.lookahead, t.off);
        assert!(t.share(BY_SCORES) < 0.15, "{:?}", t.modes);
        assert!(t.auto * 100 < t.off * 103, "{} is far from {}", t.auto, t.off);
    }
}

#[test]
fn it_goes_by_votes_where_the_past_returns() {
    let t = times(PrefetchKind::AutoVotes, &[(3000, Knows::Past)]);
    assert!(t.votes * 100 < t.off.min(t.lookahead) * 95, "votes win: {} {} {}", t.votes, t.off, t.lookahead);
    assert!(t.share(&["votes"]) > 0.8, "{:?}", t.modes);
    assert!(t.auto * 100 < t.votes * 104, "{} is far from {}", t.auto, t.votes);
}

#[test]
fn it_changes_its_mind() {
    for chooser in CHOOSERS {
        let t = times(chooser, &[(3000, Knows::Scores), (3000, Knows::Nobody), (3000, Knows::Scores)]);
        assert!(t.auto < t.lookahead && t.auto < t.off, "{} beats both {} and {}", t.auto, t.lookahead, t.off);
        assert!(t.share(BY_SCORES) > 0.5 && t.share(BY_SCORES) < 0.85, "{:?}", t.modes);
    }
}

#[test]
fn with_everything_in_memory_or_before_the_first_token_nothing_is_claimed() {
    for chooser in CHOOSERS {
        let fresh = world(chooser);
        assert_eq!((fresh.experts.prefetch_share(), fresh.experts.prefetch_modes()), (None, Vec::new()));
    }
    let mut fixed = world(PrefetchKind::Lookahead);
    fixed.decode(20, Knows::Scores);
    assert_eq!(fixed.experts.prefetch_share(), None, "it has no choice");
    assert!(fixed.experts.prefetch_modes().is_empty());
}

/// Who does not ask for votes pays for no past.
#[test]
fn only_votes_keep_past_tokens() {
    for &kind in PrefetchKind::ALL {
        let asks = matches!(kind, PrefetchKind::Votes | PrefetchKind::Both | PrefetchKind::AutoVotes);
        assert_eq!(world(kind).experts.cache().retrieval().is_off(), !asks, "{}", kind.name());
        assert_eq!(kind.wants_retrieval(), asks);
    }
}
