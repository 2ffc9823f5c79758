//! Least recently used: evicts the expert whose last use lies furthest back.
//!
//! The classic baseline (Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2),
//! 1970). Good where routing has short-range locality, which MoE decoding has. Do not use it with one global pool
//! smaller than a token's working set: cyclic access then hits exactly nothing; per-layer pools have no such cliff.

use std::num::NonZeroUsize;

use super::{CachePolicy, CacheShape};
use crate::{id::ExpertId, trace::Routed};

/// The orders are the `lru` crate's; the values are empty because slots belong to the cache.
pub struct Lru {
    shape: CacheShape,
    /// (pools)
    orders: Vec<lru::LruCache<ExpertId, ()>>,
}

impl Lru {
    /// For such a cache, so that no order ever grows while tokens run.
    pub fn new(shape: &CacheShape) -> Self {
        let order = |pool| {
            let experts = shape.layers(pool).len() * shape.n_expert;
            lru::LruCache::new(NonZeroUsize::new(experts.max(1)).expect("max(1)"))
        };
        Self { orders: (0..shape.slots.len()).map(order).collect(), shape: shape.clone() }
    }

    fn order(&mut self, layer: u16) -> &mut lru::LruCache<ExpertId, ()> {
        &mut self.orders[self.shape.pool(layer)]
    }
}

impl CachePolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }
    fn insert(&mut self, id: ExpertId) {
        self.order(id.layer).put(id, ());
    }
    /// Behind all others: nobody has used it yet.
    fn warm(&mut self, id: ExpertId) {
        let order = self.order(id.layer);
        order.put(id, ());
        order.demote(&id);
    }
    fn touch(&mut self, routed: Routed) {
        self.order(routed.id.layer).promote(&routed.id);
    }
    fn evict(&mut self, layers: &[u16], keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let order = self.order(*layers.first()?);
        let may_leave = |id: &ExpertId| layers.contains(&id.layer) && !keep(*id);
        let victim = *order.iter().rev().map(|(id, ())| id).find(|id| may_leave(id))?;
        order.pop(&victim);
        Some(victim)
    }
    fn remove(&mut self, id: ExpertId) {
        self.order(id.layer).pop(&id);
    }
}
