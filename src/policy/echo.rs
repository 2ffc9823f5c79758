//! Keeps what followed the tokens of the past that resemble the present one.
//!
//! **Method.** Each expert's value estimates how soon and how surely its layer will want it again, from three sources. (1)
//! *Retrieval*: the [`Retrieval`] finds the past tokens whose experts resemble the present token's; what their successors
//! used within [`AHEAD`] tokens is weighed by similarity and by distance. (2) *Counts*: the share of tokens that used the
//! expert, at half-lives of 16, 64 and 512 tokens. (3) The present use. Two blends of them are kept: one for text, and one
//! for routing that knows no context (random weights), where popularity is all there is. The blend rules whose values have
//! ranked the experts of the latest tokens better; that of `lfu-adaptive` is the same device. The victim is the resident of
//! least value; a value is discounted by the time until its layer comes again, which makes values of different layers
//! comparable and one pool of slots for all layers worth having. Of equal ones the least recently used leaves.
//!
//! **Why.** Counting sees one expert at a time, and which expert comes next depends on what the text is about. On our
//! traces an expert's own history is exhausted by decaying counts: nine half-lives with learned weights win 1 to 3 points
//! of the gap between LRU and Belady more. Retrieval at 25 % of the slots wins 35 % of the gap on DeepSeek-V2-Lite where
//! `lfu-adaptive` wins 17, 48 instead of 32 on our M model, 43 instead of 31 at 50 % on OLMoE (`docs/policies.md`). A forest
//! of boosted trees trained on each trace was no better. It is k-nearest-neighbour prediction of the near future; we know of
//! no other eviction policy by retrieval.
//!
//! **Cost.** See `benches/simulate.rs`. Memory: the ring's ([`Retrieval::bytes`]) and 40 bytes per expert.
//!
//! **When not to use it.** Where a microsecond for each layer counts, as with few tiny experts on a fast drive; in runs of a
//! few dozen tokens, which have no past; where the gap between LRU and Belady is below a point, which nothing can win.

use std::ops::Range;

use super::{
    CachePolicy, CacheShape,
    counts::{Counts, rows},
    lfu_decay::Recency,
    residents::Residents,
};
use crate::{
    id::ExpertId,
    retrieval::Retrieval,
    trace::{LayerEvent, Routed},
};

/// Tokens after a match that count.
pub const AHEAD: usize = 8;

/// What a use one to eight tokens after a match is worth: .3 for the next token's, and .6 · .2 · .8^(h-1). Only the next
/// token: 30.0 % of the gap instead of 34.9.
const KERNEL: [f32; AHEAD] = [0.42, 0.096, 0.0768, 0.06144, 0.049_152, 0.039_321_6, 0.031_457_28, 0.025_165_824];

/// 2^(1/16), 2^(1/64), 2^(1/512).
const GROWTHS: [f64; 3] = [1.044_273_782_427_413_8, 1.010_889_286_051_700_5, 1.001_354_719_892_108];

/// What is left of an expert's value a token later: it is wanted no sooner than its layer comes again.
const PHASE: f32 = 0.7;

/// What is left of the sum of a blend's errors after a layer; with a single MoE layer.
const FADE: f64 = 0.995;
const FADE_OF_ONE_LAYER: f64 = 0.98;

/// What an expert's value is made of.
struct Blend {
    /// The share of tokens that use it, by half-life.
    counts: [f32; 3],
    /// What followed the matches.
    followed: f32,
    /// The present token uses it.
    now: f32,
}

/// For text, and for routing without context, which without the latter loses 1 to 5 points of the gap to `lfu-adaptive`.
const BLENDS: [Blend; 2] = [
    Blend { counts: [0.2, 0.1, 0.1], followed: 1.0, now: 0.06 },
    Blend { counts: [0.0, 0.2, 0.8], followed: 0.1, now: 0.006 },
];

/// A layer's resident of least value: (value, last use, key).
type Least = (f32, u64, usize);

/// See the module.
pub struct Echo {
    residents: Residents,
    recency: Recency,
    counts: [Counts; 3],
    /// (blends, n_moe_layer · n_expert)
    values: [Vec<f32>; 2],
    /// By blend.
    errors: [f64; 2],
    fade: f64,
    /// The blend that rules.
    ruling: usize,
    /// The layer that was observed last.
    layer: usize,
    /// What is left of a value so many layers ahead. (n_moe_layer + 1)
    phase: Vec<f32>,
    /// `None` where it is to be found anew. (n_moe_layer)
    least: Vec<Option<Least>>,
    /// (n_expert)
    followed: Vec<f32>,
}

impl Echo {
    /// For such a cache.
    pub fn new(shape: &CacheShape) -> Self {
        let (layers, experts) = (shape.n_layer(), shape.experts());
        Self {
            residents: Residents::new(shape),
            recency: Recency::new(experts),
            counts: GROWTHS.map(|growth| Counts::new(shape, growth)),
            values: [(); 2].map(|()| vec![0.0; experts]),
            errors: [0.0; 2],
            fade: if layers == 1 { FADE_OF_ONE_LAYER } else { FADE },
            ruling: 0,
            layer: 0,
            phase: (0..=layers).map(|i| PHASE.powf(i as f32 / layers.max(1) as f32)).collect(),
            least: vec![None; layers],
            followed: vec![0.0; shape.n_expert],
        }
    }

    /// Adds up how many experts of the layer had a larger value than each that was used, by blend.
    fn judge(&mut self, layer: &Range<usize>, row: &[Routed]) {
        for (values, error) in self.values.iter().zip(&mut self.errors) {
            let all = &values[layer.clone()];
            let larger = |value: f32| all.iter().map(|v| u32::from(*v > value)).sum::<u32>();
            let wrong: u32 = row.iter().map(|r| larger(all[usize::from(r.id.expert)])).sum();
            *error = *error * self.fade + f64::from(wrong);
        }
        let ruling = usize::from(self.errors[1] < self.errors[0]);
        if ruling != self.ruling {
            self.ruling = ruling;
            self.least.fill(None);
        }
    }

    /// The values of a layer's experts, of whom `row` are used now and the matches' successors used `self.followed`.
    fn value(&mut self, layer: &Range<usize>, row: &[Routed]) {
        let shares = [0, 1, 2].map(|i| self.counts[i].share());
        let [a, b, c] = [0, 1, 2].map(|i| &self.counts[i].all()[layer.clone()]);
        for (values, blend) in self.values.iter_mut().zip(&BLENDS) {
            let values = &mut values[layer.clone()];
            let [x, y, z] = [0, 1, 2].map(|i| shares[i] * f64::from(blend.counts[i]));
            for (e, value) in values.iter_mut().enumerate() {
                *value = (x * a[e] + y * b[e] + z * c[e]) as f32 + blend.followed * self.followed[e];
            }
            row.iter().for_each(|r| values[usize::from(r.id.expert)] += blend.now);
        }
    }

    /// Layers until that one comes again.
    fn until(&self, layer: u16) -> usize {
        let (at, n_layer) = (usize::from(layer), self.least.len());
        if at > self.layer { at - self.layer } else { n_layer + at - self.layer }
    }

    /// The layer's resident of least value among those that need not be kept, with that value as it is now.
    fn least_of(&self, layer: u16, keep: &dyn Fn(ExpertId) -> bool) -> Option<Least> {
        let values = &self.values[self.ruling];
        let value = |key: usize| (values[key], self.recency.of(key));
        self.residents.least(&[layer], keep, value).map(|(key, (value, used))| (value, used, key))
    }

    /// The same of some layers, discounted by the time until each comes again.
    fn least(&mut self, layers: &[u16], keep: &dyn Fn(ExpertId) -> bool) -> Option<Least> {
        let mut least: Option<Least> = None;
        for &layer in layers {
            let at = usize::from(layer);
            let phase = self.phase[self.until(layer)];
            let better = |(value, used, _): Least| least.is_none_or(|(v, u, _)| (value * phase, used) < (v, u));
            if self.least[at].is_none() {
                self.least[at] = self.least_of(layer, &|_| false);
            }
            let Some(mut found) = self.least[at].filter(|found| better(*found)) else { continue };
            if keep(self.residents.shape().id(found.2)) {
                // The next best is worth no less, so that other layers need not look again.
                match self.least_of(layer, keep).filter(|found| better(*found)) {
                    Some(other) => found = other,
                    None => continue,
                }
            }
            least = Some((found.0 * phase, found.1, found.2));
        }
        least
    }
}

impl CachePolicy for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }
    fn wants_retrieval(&self) -> bool {
        true
    }
    fn observe(&mut self, event: LayerEvent<'_>, past: &Retrieval) {
        let shape = self.residents.shape();
        let first = shape.key(ExpertId { layer: event.layer, expert: 0 });
        let layer = first..first + shape.n_expert;
        let rows = rows(event);
        let Some(last) = rows.clone().next_back() else { return };
        self.layer = usize::from(event.layer);
        self.judge(&layer, last);
        for counts in &mut self.counts {
            counts.begin(event);
            rows.clone().for_each(|row| counts.row(row.iter().map(|r| first + usize::from(r.id.expert))));
        }
        past.followed(&KERNEL, &mut self.followed);
        self.value(&layer, last);
        self.least[usize::from(event.layer)] = None;
    }
    fn insert(&mut self, id: ExpertId) {
        self.residents.insert(id);
        self.least[usize::from(id.layer)] = None;
    }
    fn warm(&mut self, id: ExpertId) {
        self.insert(id);
        self.recency.put_behind(self.residents.shape().key(id));
    }
    fn touch(&mut self, routed: Routed) {
        self.recency.touch(self.residents.shape().key(routed.id));
        self.least[usize::from(routed.id.layer)] = None;
    }
    fn evict(&mut self, layers: &[u16], keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let (_, _, key) = self.least(layers, keep)?;
        let id = self.residents.shape().id(key);
        self.remove(id);
        Some(id)
    }
    fn value(&self, id: ExpertId) -> f64 {
        self.values[self.ruling][self.residents.shape().key(id)].into()
    }
    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(self.residents.shape().key(id));
        self.least[usize::from(id.layer)] = None;
    }
}
