//! Segmented LRU: an expert that is used a second time while resident is protected; the least recently used of the
//! unprotected leaves first. Four fifths of the slots can be protected; beyond, the least recently used of the protected
//! goes back among the others, as the youngest.
//!
//! Karedla, Love and Wherry, "Caching strategies to improve disk system performance", Computer 27(3), 1994. Better than
//! LRU nearly everywhere, since one-off experts pass through, and behind decayed counts everywhere, since it remembers
//! one bit. Do not use it where [`super::LfuDecay`] can be had; it is here to compare.

use super::{CachePolicy, CacheShape, lfu_decay::Recency, residents::Residents};
use crate::{id::ExpertId, trace::Routed};

/// How far a resident has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Prefetched, not used.
    Unused,
    Probation,
    Protected,
}

/// See the module.
pub struct Slru {
    residents: Residents,
    /// Only residents' count. (n_moe_layer, n_expert)
    stages: Vec<Stage>,
    /// Residents that are. (pools)
    protected: Vec<usize>,
    /// (pools, layers of the pool)
    layers: Vec<Vec<u16>>,
    recency: Recency,
}

impl Slru {
    /// For such a cache.
    pub fn new(shape: &CacheShape) -> Self {
        let n = shape.experts();
        Self {
            residents: Residents::new(shape),
            stages: vec![Stage::Unused; n],
            protected: vec![0; shape.slots.len()],
            layers: (0..shape.slots.len()).map(|pool| shape.layers(pool)).collect(),
            recency: Recency::new(n),
        }
    }

    fn set(&mut self, key: usize, stage: Stage) {
        let before = std::mem::replace(&mut self.stages[key], stage);
        let shape = self.residents.shape();
        let protected = &mut self.protected[shape.pool(shape.id(key).layer)];
        *protected += usize::from(stage == Stage::Protected);
        *protected -= usize::from(before == Stage::Protected);
    }
}

impl CachePolicy for Slru {
    fn name(&self) -> &'static str {
        "slru"
    }
    fn insert(&mut self, id: ExpertId) {
        let key = self.residents.insert(id);
        self.set(key, Stage::Unused);
    }
    /// Behind those that came before: the experts of a warm start are residents without a use.
    fn warm(&mut self, id: ExpertId) {
        self.insert(id);
        self.recency.put_behind(self.residents.shape().key(id));
    }
    fn touch(&mut self, routed: Routed) {
        let key = self.residents.shape().key(routed.id);
        self.recency.touch(key);
        match self.stages[key] {
            Stage::Unused => self.set(key, Stage::Probation),
            Stage::Probation => self.set(key, Stage::Protected),
            Stage::Protected => {}
        }
        let pool = self.residents.shape().pool(routed.id.layer);
        if self.protected[pool] > self.residents.shape().slots[pool] * 4 / 5 {
            let residents = self.residents.keys(&self.layers[pool]);
            let oldest = residents.filter(|&k| self.stages[k] == Stage::Protected).min_by_key(|&k| self.recency.of(k));
            let oldest = oldest.expect("there are protected ones");
            self.set(oldest, Stage::Probation);
            self.recency.touch(oldest);
        }
    }
    fn evict(&mut self, layers: &[u16], keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let (stages, recency) = (&self.stages, &self.recency);
        let rank = |key: usize| (stages[key] == Stage::Protected, recency.of(key));
        let id = self.residents.evict(layers, keep, rank)?;
        self.set(self.residents.shape().key(id), Stage::Unused);
        Some(id)
    }
    fn remove(&mut self, id: ExpertId) {
        let key = self.residents.shape().key(id);
        self.residents.remove(key);
        self.set(key, Stage::Unused);
    }
}
