//! Least recently used: evicts the expert whose last use lies furthest back.
//!
//! The classic baseline (Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2),
//! 1970). Good where routing has short-range locality, which MoE decoding has. Do not use it with one global pool
//! smaller than a token's working set: cyclic access then hits exactly nothing; per-layer pools have no such cliff.

use std::num::NonZeroUsize;

use super::{CachePolicy, PoolShape};
use crate::{id::ExpertId, trace::Routed};

/// The order is the `lru` crate's; the values are empty because slots belong to the cache.
pub struct Lru {
    order: lru::LruCache<ExpertId, ()>,
}

impl Lru {
    /// For such a pool, so that the order never grows while tokens run.
    pub fn new(shape: &PoolShape) -> Self {
        Self { order: lru::LruCache::new(NonZeroUsize::new(shape.experts().max(1)).expect("max(1)")) }
    }
}

impl CachePolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }
    fn insert(&mut self, id: ExpertId) {
        self.order.put(id, ());
    }
    /// Behind all others: nobody has used it yet.
    fn warm(&mut self, id: ExpertId) {
        self.order.put(id, ());
        self.order.demote(&id);
    }
    fn touch(&mut self, routed: Routed) {
        self.order.promote(&routed.id);
    }
    fn evict(&mut self, keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let victim = *self.order.iter().rev().map(|(id, ())| id).find(|id| !keep(**id))?;
        self.order.pop(&victim);
        Some(victim)
    }
    fn remove(&mut self, id: ExpertId) {
        self.order.pop(&id);
    }
}
