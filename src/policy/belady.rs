//! The resident whose next use lies furthest ahead leaves: the optimum, for simulation, since it needs the future.
//!
//! Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966. It is the
//! optimum of the live cache, in which every wanted expert takes a slot (no bypass) and an event's experts are wanted
//! together; it needs at least as many slots as an event wants experts, and no prefetching. With bypass fewer misses are
//! possible: `simulate` has that bound.

use super::{CachePolicy, CacheShape, residents::Residents};
use crate::{id::ExpertId, retrieval::Retrieval, trace::LayerEvent};

/// Behind all events.
pub const NEVER: u32 = u32::MAX;

/// When each expert is used: numbers of events, in ascending order.
#[derive(Debug)]
pub struct Future {
    n_expert: usize,
    /// (n_moe_layer · n_expert, its uses)
    uses: Vec<Vec<u32>>,
    events: u32,
}

impl Future {
    /// Of a model of `n_layer` MoE layers of `n_expert` experts, nothing yet.
    pub fn new(n_layer: usize, n_expert: usize) -> Self {
        Self { n_expert, uses: vec![Vec::new(); n_layer * n_expert], events: 0 }
    }
    /// Adds the next event.
    pub fn push(&mut self, event: LayerEvent<'_>) {
        for r in event.routed {
            let uses = &mut self.uses[usize::from(r.id.layer) * self.n_expert + usize::from(r.id.expert)];
            if uses.last() != Some(&self.events) {
                uses.push(self.events);
            }
        }
        self.events += 1;
    }
    /// The uses of each expert. (n_moe_layer · n_expert, its uses)
    pub fn uses(&self) -> &[Vec<u32>] {
        &self.uses
    }
}

/// See the module. `F` is the future, shared as its owner likes.
pub struct Belady<F> {
    residents: Residents,
    future: F,
    /// Uses of each expert that have passed. (n_moe_layer, n_expert)
    past: Vec<u32>,
    events: u32,
}

impl<F: AsRef<Future>> Belady<F> {
    /// For a cache with that future.
    pub fn new(shape: &CacheShape, future: F) -> Self {
        Self { residents: Residents::new(shape), past: vec![0; shape.experts()], future, events: 0 }
    }
    /// Who is in the cache.
    pub(super) fn residents(&self) -> &Residents {
        &self.residents
    }
    /// Events that have been observed: the number of the next one.
    pub(super) fn now(&self) -> u32 {
        self.events
    }
    /// The next event that uses an expert, or [`NEVER`].
    pub(super) fn next(&self, key: usize) -> u32 {
        self.future.as_ref().uses[key].get(self.past[key] as usize).copied().unwrap_or(NEVER)
    }
}

impl<F: AsRef<Future> + Send> CachePolicy for Belady<F> {
    fn name(&self) -> &'static str {
        "belady"
    }
    fn observe(&mut self, event: LayerEvent<'_>, _: &Retrieval) {
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
    fn evict(&mut self, layers: &[u16], keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let (key, _) = self.residents.least(layers, keep, |key| std::cmp::Reverse(self.next(key)))?;
        self.residents.remove(key);
        Some(self.residents.shape().id(key))
    }
    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(self.residents.shape().key(id));
    }
}
