//! Least recently used: evicts the expert whose last use lies furthest back.
//!
//! The classic baseline (Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2),
//! 1970). Good where routing has short-range locality, which MoE decoding has. Do not use it with one global pool
//! smaller than a token's working set: cyclic access then hits exactly nothing; per-layer pools have no such cliff.

use super::{CachePolicy, CacheShape, lfu_decay::Recency, residents::Residents};
use crate::{id::ExpertId, trace::Routed};

/// See the module. A prefetched expert counts as just used.
pub struct Lru {
    residents: Residents,
    recency: Recency,
}

impl Lru {
    /// For such a cache.
    pub fn new(shape: &CacheShape) -> Self {
        Self { residents: Residents::new(shape), recency: Recency::new(shape.experts()) }
    }
}

impl CachePolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }
    fn insert(&mut self, id: ExpertId) {
        let key = self.residents.insert(id);
        self.recency.touch(key);
    }
    /// Behind all others: nobody has used it yet.
    fn warm(&mut self, id: ExpertId) {
        let key = self.residents.insert(id);
        self.recency.put_behind(key);
    }
    fn touch(&mut self, routed: Routed) {
        self.recency.touch(self.residents.shape().key(routed.id));
    }
    fn evict(&mut self, layers: &[u16], keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        self.residents.evict(layers, keep, |key| self.recency.of(key))
    }
    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(self.residents.shape().key(id));
    }
}
