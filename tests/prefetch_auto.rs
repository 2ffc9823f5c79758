//! `--prefetch auto` on the simulated drive: on where lookahead wins, off where it costs, and neither for longer than it has
//! to be.

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

struct World {
    experts: Experts,
    clock: SimClock,
    dice: Dice,
    token: u32,
    /// Choices of the token before, which half of the new ones repeat.
    last: Vec<Vec<usize>>,
}

fn world(prefetch: PrefetchKind) -> World {
    let sim = SimIo::new(50_000, 10);
    let clock = sim.clock();
    let store = ExpertStore::unfiled(&[EXPERT_BYTES; N_LAYER], N_EXPERT);
    let cache = ExpertCache::new(store, Scope::Layer, &[SLOTS; N_LAYER], PolicyKind::default(), Box::new(sim)).unwrap();
    let experts = Experts::new(cache, prefetch.build(N_EXPERT, N_USED), Box::new(()));
    World { experts, clock, dice: Dice(3), token: 0, last: vec![vec![0; N_USED]; N_LAYER] }
}

impl World {
    /// Decodes. `knows`: the lookahead scores name the experts of the next layer; otherwise any. Returns virtual time.
    fn decode(&mut self, tokens: usize, knows: bool) -> u64 {
        let start = self.clock.now_ns();
        for _ in 0..tokens {
            for layer in 0..N_LAYER {
                let mut fresh = self.dice.choose(N_USED, N_EXPERT);
                for (i, &old) in self.last[layer].iter().enumerate().take(N_USED / 2) {
                    if !fresh.contains(&old) {
                        fresh[i] = old;
                    }
                }
                self.last[layer] = fresh;
            }
            for layer in 0..N_LAYER {
                // Attention, which no demand read can hide behind.
                self.clock.advance(150_000);
                let routed: Vec<Routed> = self.last[layer]
                    .iter()
                    .map(|&e| Routed { id: ExpertId { layer: layer as u16, expert: e as u16 }, weight: 0.25 })
                    .collect();
                let mut scores = vec![0.0; N_EXPERT];
                if self.experts.horizon(layer as u16) > 0 && layer + 1 < N_LAYER {
                    let named = if knows { self.last[layer + 1].clone() } else { self.dice.choose(N_USED, N_EXPERT) };
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
                    lookahead2: &[],
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

/// Time of `auto`, and of lookahead and nothing all along, over the same run of (tokens, whether scores are right).
fn times(run: &[(usize, bool)]) -> ([u64; 3], f64) {
    let mut share = 0.0;
    let times = [PrefetchKind::Auto, PrefetchKind::Lookahead, PrefetchKind::Off].map(|kind| {
        let mut world = world(kind);
        let time = run.iter().map(|&(tokens, knows)| world.decode(tokens, knows)).sum();
        share = world.experts.prefetch_share().unwrap_or(share);
        time
    });
    (times, share)
}

#[test]
fn it_stays_on_where_lookahead_wins() {
    let ([auto, lookahead, off], share) = times(&[(2000, true)]);
    assert!(lookahead * 10 < off * 9, "the world is such that lookahead wins: {lookahead} {off}");
    assert!(share > 0.9, "on for {share}");
    assert!(auto * 100 < lookahead * 104, "{auto} is far from {lookahead}");
}

#[test]
fn it_goes_off_where_lookahead_costs() {
    let ([auto, lookahead, off], share) = times(&[(2000, false)]);
    assert!(off * 100 < lookahead * 97, "the world is such that lookahead costs: {lookahead} {off}");
    assert!(share < 0.15, "on for {share}");
    assert!(auto * 100 < off * 103, "{auto} is far from {off}");
}

#[test]
fn it_changes_its_mind() {
    let ([auto, lookahead, off], share) = times(&[(3000, true), (3000, false), (3000, true)]);
    assert!(auto < lookahead && auto < off, "{auto} beats both {lookahead} and {off}");
    assert!(share > 0.5 && share < 0.85, "on for {share}");
}

#[test]
fn with_everything_in_memory_or_before_the_first_token_nothing_is_claimed() {
    assert_eq!(world(PrefetchKind::Auto).experts.prefetch_share(), None);
    let mut fixed = world(PrefetchKind::Lookahead);
    fixed.decode(20, true);
    assert_eq!(fixed.experts.prefetch_share(), None, "it has no choice");
}
