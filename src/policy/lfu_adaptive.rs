//! Least frequently used with decaying counts, like [`super::LfuDecay`], and a half-life that adapts: counts are kept at
//! half-lives of 16, 32 and 128 tokens, and the one rules whose counts have foretold the latest tokens best.
//!
//! The default, because it has the best or nearly the best hit rate on every trace that we have (`docs/policies.md`). At
//! 25 % of the slots it wins these shares of the way from LRU to Belady: OLMoE 20 %, Kimi-Linear 9 %, Qwen3-30B 23 %,
//! Gemma-4 20 %, DeepSeek-V2-Lite 17 %, our M model 31 %, random weights 46 to 57 %. A fixed half-life of 16 tokens is at
//! most 0.2 points better (Kimi-Linear) and up to 2.6 points worse (random weights at 50 %).
//!
//! "Best" is the smallest sum, over the experts that tokens then used, of how many of the layer's experts had a larger
//! count just before; the sum fades with a half-life of 34 tokens. The idea of running several forgetting rates beside
//! each other and following the leader is that of "tracking the best expert" (Herbster and Warmuth, Machine Learning 32,
//! 1998), and of ghost caches in adaptive replacement.
//!
//! Do not use it where a microsecond a layer counts: it looks at all of a layer's counts for each expert used.

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

/// 2^(1/16), 2^(1/32), 2^(1/128).
const GROWTHS: [f64; 3] = [1.044_273_782_427_413_8, 1.021_897_148_654_116_7, 1.005_429_900_111_486_3];

/// What is left of the sum of errors after a token.
const FADE: f64 = 0.98;

/// See the module.
pub struct LfuAdaptive {
    residents: Residents,
    counts: [Counts; 3],
    /// (pools)
    errors: Vec<[f64; 3]>,
    recency: Recency,
}

impl LfuAdaptive {
    /// For such a cache.
    pub fn new(shape: &CacheShape) -> Self {
        Self {
            residents: Residents::new(shape),
            counts: GROWTHS.map(|g| Counts::new(shape, g)),
            errors: vec![[0.0; 3]; shape.slots.len()],
            recency: Recency::new(shape.experts()),
        }
    }

    /// Which half-life has foretold best for a pool; of equal ones the shortest.
    fn leader(&self, pool: usize) -> usize {
        let (mut best, errors) = (0, &self.errors[pool]);
        for i in 1..GROWTHS.len() {
            if errors[i] < errors[best] {
                best = i;
            }
        }
        best
    }
}

impl CachePolicy for LfuAdaptive {
    fn name(&self) -> &'static str {
        "lfu-adaptive"
    }
    fn observe(&mut self, event: LayerEvent<'_>, _: &Retrieval) {
        let shape = self.residents.shape();
        let first = shape.key(ExpertId { layer: event.layer, expert: 0 });
        let layer = first..first + shape.n_expert;
        let errors = &mut self.errors[shape.pool(event.layer)];
        for (counts, error) in self.counts.iter_mut().zip(errors) {
            counts.begin(event);
            for row in rows(event) {
                let all = &counts.all()[layer.clone()];
                let larger = |count: f64| all.iter().map(|c| u32::from(*c > count)).sum::<u32>();
                let wrong: u32 = row.iter().map(|r| larger(all[usize::from(r.id.expert)])).sum();
                *error = *error * FADE + f64::from(wrong);
                counts.row(row.iter().map(|r| first + usize::from(r.id.expert)));
            }
        }
    }
    fn insert(&mut self, id: ExpertId) {
        self.residents.insert(id);
    }
    fn warm(&mut self, id: ExpertId) {
        self.insert(id);
        self.recency.put_behind(self.residents.shape().key(id));
    }
    fn touch(&mut self, routed: Routed) {
        self.recency.touch(self.residents.shape().key(routed.id));
    }
    fn evict(&mut self, layers: &[u16], keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let &layer = layers.first()?;
        let leader = self.leader(self.residents.shape().pool(layer));
        let (counts, recency) = (self.counts[leader].all(), &self.recency);
        self.residents.evict(layers, keep, |key| (counts[key], recency.of(key)))
    }
    fn value(&self, id: ExpertId) -> f64 {
        let shape = self.residents.shape();
        self.counts[self.leader(shape.pool(id.layer))].all()[shape.key(id)]
    }
    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(self.residents.shape().key(id));
    }
}
