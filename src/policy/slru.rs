//! Segmented LRU: an expert that is used a second time while resident is protected; the least recently used of the
//! unprotected leaves first. Four fifths of the slots can be protected; beyond, the least recently used of the protected
//! goes back among the others, as the youngest.
//!
//! Karedla, Love and Wherry, "Caching strategies to improve disk system performance", Computer 27(3), 1994. Better than
//! LRU nearly everywhere, since one-off experts pass through, and behind decayed counts everywhere, since it remembers
//! one bit. Do not use it where [`super::LfuDecay`] can be had; it is here to compare.

use super::{CachePolicy, PoolShape, lfu_decay::Recency, residents::Residents};
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
    /// Only residents' count. (experts of the pool)
    stages: Vec<Stage>,
    protected: usize,
    recency: Recency,
}

impl Slru {
    /// For such a pool.
    pub fn new(shape: &PoolShape) -> Self {
        let n = shape.experts();
        Self {
            residents: Residents::new(shape),
            stages: vec![Stage::Unused; n],
            protected: 0,
            recency: Recency::new(n),
        }
    }

    fn set(&mut self, key: usize, stage: Stage) {
        let before = std::mem::replace(&mut self.stages[key], stage);
        self.protected += usize::from(stage == Stage::Protected);
        self.protected -= usize::from(before == Stage::Protected);
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
        if self.protected > self.residents.shape().slots * 4 / 5 {
            let protected = self.residents.keys().iter().map(|&k| k as usize);
            let oldest = protected.filter(|&k| self.stages[k] == Stage::Protected).min_by_key(|&k| self.recency.of(k));
            let oldest = oldest.expect("there are protected ones");
            self.set(oldest, Stage::Probation);
            self.recency.touch(oldest);
        }
    }
    fn evict(&mut self, keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let (stages, recency) = (&self.stages, &self.recency);
        let rank = |key: usize| (stages[key] == Stage::Protected, recency.of(key));
        let key = self.residents.evict(keep, rank)?;
        self.set(key, Stage::Unused);
        Some(self.residents.shape().id(key))
    }
    fn remove(&mut self, id: ExpertId) {
        let key = self.residents.shape().key(id);
        self.residents.remove(key);
        self.set(key, Stage::Unused);
    }
}
