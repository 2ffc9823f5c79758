//! Which resident expert leaves when a slot is needed. One policy a file. Measured in `docs/policies.md`.
//!
//! Must not know: bytes, files, clocks, threads. The same calls in give the same answers out. After it is built a
//! policy allocates nothing.

use std::ops::Range;

use crate::{
    id::ExpertId,
    trace::{LayerEvent, Routed},
};

mod belady;
mod counts;
mod lfu_adaptive;
mod lfu_decay;
mod lfuda;
mod lru;
mod random;
mod residents;
mod slru;

pub use belady::{Belady, Future};
pub use lfu_adaptive::LfuAdaptive;
pub use lfu_decay::LfuDecay;
pub use lfuda::Lfuda;
pub use lru::Lru;
pub use random::Random;
pub use slru::Slru;

/// The pool of slots that a policy rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// The MoE layers whose experts it holds.
    pub layers: Range<u16>,
    /// Experts a layer.
    pub n_expert: usize,
    /// Slots. While a prompt runs, others may be lent to the pool, and it holds more residents.
    pub slots: usize,
}

impl PoolShape {
    /// Experts that may come into the pool.
    pub fn experts(&self) -> usize {
        self.layers.len() * self.n_expert
    }
    /// The expert's number within the pool, below [`PoolShape::experts`].
    pub fn key(&self, id: ExpertId) -> usize {
        usize::from(id.layer - self.layers.start) * self.n_expert + usize::from(id.expert)
    }
    /// The expert with the number `key`.
    pub fn id(&self, key: usize) -> ExpertId {
        ExpertId { layer: self.layers.start + (key / self.n_expert) as u16, expert: (key % self.n_expert) as u16 }
    }
}

/// Orders the residents of one pool of slots by how much they are worth keeping.
///
/// For each event of one of the pool's layers the cache calls `observe`, then `touch` for each resident expert that the
/// event wants, then, for each absent one, `evict` if there is no free slot, `insert` and `touch`. `insert` without
/// `touch` is a prefetch.
pub trait CachePolicy: Send {
    /// The name that `--policy` takes and statistics print.
    fn name(&self) -> &'static str;
    /// A layer of this pool has routed a batch of tokens, to residents and others.
    fn observe(&mut self, _event: LayerEvent<'_>) {}
    /// `id` became a resident.
    fn insert(&mut self, id: ExpertId);
    /// `id` became a resident by a warm start, after experts that the last run used more often: of what nobody here has used
    /// it is worth least.
    fn warm(&mut self, id: ExpertId) {
        self.insert(id);
    }
    /// A layer routed to the resident `routed.id`.
    fn touch(&mut self, _routed: Routed) {}
    /// Removes and returns the least valuable resident for which `keep` is false; `None` if there is none.
    fn evict(&mut self, keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId>;
    /// `id` lost its slot for a reason of the cache's own (its read failed).
    fn remove(&mut self, id: ExpertId);
}

/// The policies that `--policy` knows, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// Least frequently used, counts decaying with the half-life that has served best lately.
    LfuAdaptive,
    /// Least frequently used, counts decaying with a fixed half-life.
    LfuDecay,
    /// Least frequently used with dynamic ageing, counts kept after eviction.
    Lfuda,
    /// Least recently used.
    Lru,
    /// Segmented LRU.
    Slru,
}

impl PolicyKind {
    /// Every kind, the default first.
    pub const ALL: &[PolicyKind] =
        &[PolicyKind::LfuAdaptive, PolicyKind::LfuDecay, PolicyKind::Lfuda, PolicyKind::Lru, PolicyKind::Slru];
    /// The name that [`CachePolicy::name`] gives.
    pub fn name(self) -> &'static str {
        match self {
            PolicyKind::LfuAdaptive => "lfu-adaptive",
            PolicyKind::LfuDecay => "lfu-decay",
            PolicyKind::Lfuda => "lfuda",
            PolicyKind::Lru => "lru",
            PolicyKind::Slru => "slru",
        }
    }
    /// A fresh policy for such a pool.
    pub fn build(self, shape: &PoolShape) -> Box<dyn CachePolicy> {
        match self {
            PolicyKind::LfuAdaptive => Box::new(LfuAdaptive::new(shape)),
            PolicyKind::LfuDecay => Box::new(LfuDecay::new(shape)),
            PolicyKind::Lfuda => Box::new(Lfuda::new(shape)),
            PolicyKind::Lru => Box::new(Lru::new(shape)),
            PolicyKind::Slru => Box::new(Slru::new(shape)),
        }
    }
}

/// The best there is by `docs/policies.md`; its file has the reason.
impl Default for PolicyKind {
    fn default() -> Self {
        PolicyKind::ALL[0]
    }
}
