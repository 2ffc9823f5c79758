//! Where the gap between LRU and Belady lies: how far ahead one has to see to win it, by how long ago the experts were used
//! before, and in which layers. From runs of [`policies`] at one cache size.

use serde::Serialize;

use super::{
    Detail, Row, SimPolicy,
    reuse::{self, Hits},
};
use crate::policy::PolicyKind;

/// Tokens that oracles with a limited view know.
pub const WINDOWS: [u32; 6] = [1, 2, 4, 8, 16, 32];

/// What has to run: LRU, decayed counts (the oracles' own ranking of what they do not know), the oracles, the engine's default,
/// Belady.
pub fn policies() -> Vec<SimPolicy> {
    let live = [PolicyKind::Lru, PolicyKind::LfuDecay, PolicyKind::default()].map(SimPolicy::Live);
    live.into_iter().chain(WINDOWS.map(SimPolicy::Window)).chain([SimPolicy::Belady]).collect()
}

/// See the module. The fields are the JSON's keys; hit rates are of decoding, 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decomposition {
    /// Whose slots: `layer` or `global`.
    pub scope: &'static str,
    /// Slots of a layer; with one pool for all, its slots divided by the layers.
    pub slots_per_layer: usize,
    /// The same as a share of the experts.
    pub share: f64,
    /// The engine's default policy.
    pub policy: &'static str,
    /// Hit rates of LRU, of that policy, of Belady.
    pub hit_rates: [f64; 3],
    /// Of the way from LRU to Belady, how much that policy goes; `None` where there is no gap.
    pub gap_won: Option<f64>,
    /// The same of an oracle that knows the next tokens and counts beyond.
    pub windows: Vec<Window>,
    /// By distance from the use before.
    pub distances: Vec<Part>,
    /// By layer.
    pub layers: Vec<Part>,
}

/// What knowing some tokens without error wins.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Window {
    /// So many; 0: decayed counts alone.
    pub tokens: u32,
    /// Of the way from LRU to Belady; `None` where there is no gap.
    pub gap_won: Option<f64>,
}

/// A part of what decoding wanted. Shares of all that it wanted, so that parts add up to the hit rates.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Which.
    pub name: String,
    /// Wanted.
    pub wanted: f64,
    /// Hit by LRU, by the policy, by Belady.
    pub hit: [f64; 3],
}

/// From the runs of [`policies`] at one size, in their order; `None` where decoding wanted nothing.
///
/// # Panics
/// If runs are missing.
pub fn decompose(runs: &[(Row, Detail)]) -> Option<Decomposition> {
    let [lru, counts, policy, windows @ .., belady] = runs else { panic!("a run for each policy") };
    assert_eq!(windows.len(), WINDOWS.len(), "a run for each window");
    let three = [lru, policy, belady];
    let [Some(low), Some(rate), Some(high)] = three.map(|(row, _)| row.hit_rate) else { return None };
    let won = |run: &(Row, Detail)| run.0.hit_rate.filter(|_| high > low).map(|rate| (rate - low) / (high - low));
    let known = std::iter::once((0, counts)).chain(WINDOWS.into_iter().zip(windows));
    let all = (lru.0.hit + lru.0.late + lru.0.miss) as f64;
    let part = |name: String, hits: [Hits; 3]| Part {
        name,
        wanted: hits[0].wanted as f64 / all,
        hit: hits.map(|h| h.hit as f64 / all),
    };
    let distance = |bin| part(reuse::name(bin), three.map(|(_, detail)| detail.reuse[bin]));
    let layer = |i: usize| {
        let hits = three.map(|(_, detail)| {
            let l = &detail.layers[i];
            Hits { wanted: l.hit + l.late + l.miss, hit: l.hit }
        });
        part(i.to_string(), hits)
    };
    Some(Decomposition {
        scope: lru.0.scope,
        slots_per_layer: lru.0.slots_per_layer,
        share: lru.0.share,
        policy: policy.0.policy,
        hit_rates: [low, rate, high],
        gap_won: won(policy),
        windows: known.map(|(tokens, run)| Window { tokens, gap_won: won(run) }).collect(),
        distances: (0..reuse::BINS).map(distance).collect(),
        layers: (0..lru.1.layers.len()).map(layer).collect(),
    })
}
