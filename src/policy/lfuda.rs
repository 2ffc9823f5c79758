//! Least frequently used with dynamic ageing: an expert's value is its count plus its pool's age when it was last used,
//! and the age is the value of the last one that left.
//!
//! Arlitt et al., "Evaluating content management techniques for Web proxy caches", Performance Evaluation Review 27(4),
//! 2000. Unlike there, counts are kept after an eviction (the textbook form is 2 to 8 points of hit rate worse on long
//! mixed text). Good on short runs on one topic. Do not use it for long mixed ones: counts never fade, and it falls
//! behind LRU.

use super::{CachePolicy, CacheShape, lfu_decay::Recency, residents::Residents};
use crate::{id::ExpertId, trace::Routed};

/// See the module. Events count once, however many rows of a batch want an expert.
pub struct Lfuda {
    residents: Residents,
    /// Uses. (n_moe_layer, n_expert)
    counts: Vec<u64>,
    /// Count plus age at the last use. (n_moe_layer, n_expert)
    values: Vec<u64>,
    /// (pools)
    ages: Vec<u64>,
    recency: Recency,
}

impl Lfuda {
    /// For such a cache.
    pub fn new(shape: &CacheShape) -> Self {
        let n = shape.experts();
        Self {
            residents: Residents::new(shape),
            counts: vec![0; n],
            values: vec![0; n],
            ages: vec![0; shape.slots.len()],
            recency: Recency::new(n),
        }
    }

    fn age(&self, id: ExpertId) -> u64 {
        self.ages[self.residents.shape().pool(id.layer)]
    }
}

impl CachePolicy for Lfuda {
    fn name(&self) -> &'static str {
        "lfuda"
    }
    fn insert(&mut self, id: ExpertId) {
        let key = self.residents.insert(id);
        self.values[key] = self.counts[key] + self.age(id);
    }
    fn warm(&mut self, id: ExpertId) {
        self.insert(id);
        self.recency.put_behind(self.residents.shape().key(id));
    }
    fn touch(&mut self, routed: Routed) {
        let key = self.residents.shape().key(routed.id);
        self.counts[key] += 1;
        self.values[key] = self.counts[key] + self.age(routed.id);
        self.recency.touch(key);
    }
    fn evict(&mut self, layers: &[u16], keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let (values, recency) = (&self.values, &self.recency);
        let id = self.residents.evict(layers, keep, |key| (values[key], recency.of(key)))?;
        let shape = self.residents.shape();
        let age = &mut self.ages[shape.pool(id.layer)];
        *age = self.values[shape.key(id)].max(*age);
        Some(id)
    }
    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(self.residents.shape().key(id));
    }
}
