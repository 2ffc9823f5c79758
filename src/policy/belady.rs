//! The resident whose next use lies furthest ahead leaves: the optimum, for simulation, since it needs the future.
//!
//! Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966. It is the
//! optimum of the live cache, in which every wanted expert takes a slot (no bypass) and an event's experts are wanted
//! together; it needs at least as many slots as an event wants experts, and no prefetching. With bypass fewer misses are
//! possible: `simulate` has that bound.

use super::{CachePolicy, PoolShape, residents::Residents};
use crate::{id::ExpertId, trace::LayerEvent};

const NEVER: u32 = u32::MAX;

/// When each expert of a pool is used: numbers of the pool's events, in ascending order.
#[derive(Debug)]
pub struct Future {
    shape: PoolShape,
    /// (experts of the pool, its uses)
    uses: Vec<Vec<u32>>,
    events: u32,
}

impl Future {
    /// Of a pool, nothing yet.
    pub fn new(shape: PoolShape) -> Self {
        Self { uses: vec![Vec::new(); shape.experts()], shape, events: 0 }
    }
    /// Adds the pool's next event.
    pub fn push(&mut self, event: LayerEvent<'_>) {
        for r in event.routed {
            let uses = &mut self.uses[self.shape.key(r.id)];
            if uses.last() != Some(&self.events) {
                uses.push(self.events);
            }
        }
        self.events += 1;
    }
    /// The pool.
    pub fn shape(&self) -> &PoolShape {
        &self.shape
    }
    /// The uses of each expert, by [`PoolShape::key`].
    pub fn uses(&self) -> &[Vec<u32>] {
        &self.uses
    }
}

/// See the module. `F` is the future, shared as its owner likes.
pub struct Belady<F> {
    residents: Residents,
    future: F,
    /// Uses of each expert that have passed. (experts of the pool)
    past: Vec<u32>,
    events: u32,
}

impl<F: AsRef<Future>> Belady<F> {
    /// For a pool of `slots` slots with that future.
    pub fn new(future: F, slots: usize) -> Self {
        let shape = PoolShape { slots, ..future.as_ref().shape.clone() };
        Self { residents: Residents::new(&shape), past: vec![0; shape.experts()], future, events: 0 }
    }
}

impl<F: AsRef<Future> + Send> CachePolicy for Belady<F> {
    fn name(&self) -> &'static str {
        "belady"
    }
    fn observe(&mut self, event: LayerEvent<'_>) {
        for r in event.routed {
            let key = self.residents.shape().key(r.id);
            let past = &mut self.past[key];
            while self.future.as_ref().uses[key].get(*past as usize).is_some_and(|&at| at <= self.events) {
                *past += 1;
            }
        }
        self.events += 1;
    }
    fn insert(&mut self, id: ExpertId) {
        self.residents.insert(id);
    }
    fn evict(&mut self, keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let (uses, past) = (&self.future.as_ref().uses, &self.past);
        let next = |key: usize| uses[key].get(past[key] as usize).copied().unwrap_or(NEVER);
        let key = self.residents.evict(keep, |key| std::cmp::Reverse(next(key)))?;
        Some(self.residents.shape().id(key))
    }
    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(self.residents.shape().key(id));
    }
}
