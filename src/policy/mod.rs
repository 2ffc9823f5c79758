//! Which resident expert leaves when a slot is needed. One policy a file.
//!
//! Must not know: bytes, files, clocks, threads. The same calls in give the same answers out.

use crate::{id::ExpertId, trace::Routed};

mod lru;
pub use lru::Lru;

/// Orders the residents of one pool of slots by how much they are worth keeping.
///
/// The cache calls `insert` when an expert gets a slot, `touch` each time a layer routes to a resident expert
/// (the one just inserted included), and `evict` when it needs a slot.
pub trait CachePolicy: Send {
    /// The name that `--policy` takes and statistics print.
    fn name(&self) -> &'static str;
    /// `id` became a resident.
    fn insert(&mut self, id: ExpertId);
    /// A layer routed to the resident `routed.id`.
    fn touch(&mut self, routed: Routed);
    /// Removes and returns the least valuable resident for which `keep` is false; `None` if there is none.
    fn evict(&mut self, keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId>;
    /// `id` lost its slot for a reason of the cache's own (its read failed).
    fn remove(&mut self, id: ExpertId);
}

/// The policies that `--policy` knows, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// Least recently used.
    Lru,
}

impl PolicyKind {
    /// Every kind, the default first.
    pub const ALL: &[PolicyKind] = &[PolicyKind::Lru];
    /// The name that [`CachePolicy::name`] gives.
    pub fn name(self) -> &'static str {
        match self {
            PolicyKind::Lru => "lru",
        }
    }
    /// A fresh policy for a pool of `slots` slots.
    pub fn build(self, slots: usize) -> Box<dyn CachePolicy> {
        match self {
            PolicyKind::Lru => Box::new(Lru::new(slots)),
        }
    }
}
