//! Which resident expert leaves when a slot is needed. One policy a file. Measured in `docs/policies.md`.
//!
//! Must not know: bytes, files, clocks, threads. The same calls in give the same answers out. After it is built a
//! policy allocates nothing, but for [`Lru`], whose crate boxes an entry per insertion.

use crate::{
    id::ExpertId,
    retrieval::Retrieval,
    trace::{LayerEvent, Routed},
};

mod belady;
mod counts;
mod echo;
mod lfu_adaptive;
mod lfu_decay;
mod lfuda;
mod lru;
mod random;
mod residents;
mod slru;
mod window;

pub use belady::{Belady, Future, NEVER};
pub use echo::Echo;
pub use lfu_adaptive::LfuAdaptive;
pub use lfu_decay::LfuDecay;
pub use lfuda::Lfuda;
pub use lru::Lru;
pub use random::Random;
pub use slru::Slru;
pub use window::Window;

/// The pools of slots that a policy rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Experts a layer.
    pub n_expert: usize,
    /// The pool that holds each layer's experts. (n_moe_layer)
    pub pool_of: Vec<usize>,
    /// Slots of each pool. While a prompt runs, pools lend slots to each other, and some hold more residents. (pools)
    pub slots: Vec<usize>,
}

impl CacheShape {
    /// MoE layers.
    pub fn n_layer(&self) -> usize {
        self.pool_of.len()
    }
    /// Experts of all layers.
    pub fn experts(&self) -> usize {
        self.n_layer() * self.n_expert
    }
    /// The pool that holds a layer's experts.
    pub fn pool(&self, layer: u16) -> usize {
        self.pool_of[usize::from(layer)]
    }
    /// The layers whose experts a pool holds, ascending.
    pub fn layers(&self, pool: usize) -> Vec<u16> {
        (0..self.n_layer() as u16).filter(|&layer| self.pool(layer) == pool).collect()
    }
    /// The expert's number, below [`CacheShape::experts`].
    pub fn key(&self, id: ExpertId) -> usize {
        usize::from(id.layer) * self.n_expert + usize::from(id.expert)
    }
    /// The expert with the number `key`.
    pub fn id(&self, key: usize) -> ExpertId {
        ExpertId { layer: (key / self.n_expert) as u16, expert: (key % self.n_expert) as u16 }
    }
}

/// Orders the residents of a cache by how much they are worth keeping. One policy sees all layers, whether they share a
/// pool of slots or not.
///
/// For each layer event the cache calls `observe`, then `touch` for each resident expert that the event wants, then, for
/// each absent one, `evict` if there is no free slot, `insert` and `touch`. `insert` without `touch` is a prefetch.
pub trait CachePolicy: Send {
    /// The name that `--policy` takes and statistics print.
    fn name(&self) -> &'static str;
    /// Whether [`CachePolicy::observe`] should be told of the tokens that resemble the present one.
    fn wants_retrieval(&self) -> bool {
        false
    }
    /// A layer has routed a batch of tokens, to residents and others. `past` has observed it already; it is off unless
    /// somebody wants it.
    fn observe(&mut self, _event: LayerEvent<'_>, _past: &Retrieval) {}
    /// `id` became a resident.
    fn insert(&mut self, id: ExpertId);
    /// `id` became a resident by a warm start, after experts that the last run used more often: of what nobody here has used
    /// it is worth least.
    fn warm(&mut self, id: ExpertId) {
        self.insert(id);
    }
    /// A layer routed to the resident `routed.id`.
    fn touch(&mut self, _routed: Routed) {}
    /// Removes and returns the least valuable resident of `layers`, which are of one pool, for which `keep` is false; `None`
    /// if there is none.
    fn evict(&mut self, layers: &[u16], keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId>;
    /// What an expert is worth, resident or not, compared with others of its layer; the same for all where the policy knows of
    /// residents alone.
    fn value(&self, _id: ExpertId) -> f64 {
        0.0
    }
    /// `id` lost its slot for a reason of the cache's own (its read failed).
    fn remove(&mut self, id: ExpertId);
}

/// The policies that `--policy` knows, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// What followed the past tokens that resemble the present one.
    Echo,
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
    pub const ALL: &[PolicyKind] = &[
        PolicyKind::LfuAdaptive,
        PolicyKind::Echo,
        PolicyKind::LfuDecay,
        PolicyKind::Lfuda,
        PolicyKind::Lru,
        PolicyKind::Slru,
    ];
    /// The name that [`CachePolicy::name`] gives.
    pub fn name(self) -> &'static str {
        match self {
            PolicyKind::Echo => "echo",
            PolicyKind::LfuAdaptive => "lfu-adaptive",
            PolicyKind::LfuDecay => "lfu-decay",
            PolicyKind::Lfuda => "lfuda",
            PolicyKind::Lru => "lru",
            PolicyKind::Slru => "slru",
        }
    }
    /// Whether it wants to know the tokens that resemble the present one.
    pub fn wants_retrieval(self) -> bool {
        self == PolicyKind::Echo
    }
    /// A fresh policy for such a cache.
    pub fn build(self, shape: &CacheShape) -> Box<dyn CachePolicy> {
        match self {
            PolicyKind::Echo => Box::new(Echo::new(shape)),
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
