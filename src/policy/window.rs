//! Knows the next few tokens without error and counts beyond: experts that are used within the window leave last, those that
//! are used latest among them first; the others leave by [`super::LfuDecay`]'s counts. For simulation, since it needs the
//! future.
//!
//! It tells how far ahead a predictor has to see: what a window of `w` tokens wins of the way from LRU to Belady bounds every
//! predictor that foretells no further and counts like this one (`docs/policies.md`, `hotset simulate --decompose`). With a
//! window over the whole trace it is [`super::Belady`]. Do not use it as a bound on policies that look further by other means.

use super::{
    Belady, CachePolicy, CacheShape, Future,
    counts::{Counts, rows},
    lfu_decay::{GROWTH, Recency},
};
use crate::{
    id::ExpertId,
    retrieval::Retrieval,
    trace::{LayerEvent, Routed},
};

/// See the module. `F` is the future, shared as its owner likes.
pub struct Window<F> {
    oracle: Belady<F>,
    /// Events that the window spans: so many tokens' of all layers.
    events: u32,
    counts: Counts,
    recency: Recency,
}

impl<F: AsRef<Future>> Window<F> {
    /// For a cache with that future, of which it sees `tokens` tokens; a prompt's batch counts as one.
    pub fn new(shape: &CacheShape, future: F, tokens: u32) -> Self {
        Self {
            oracle: Belady::new(shape, future),
            events: tokens.saturating_mul(shape.n_layer() as u32),
            counts: Counts::new(shape, GROWTH),
            recency: Recency::new(shape.experts()),
        }
    }
}

impl<F: AsRef<Future> + Send> CachePolicy for Window<F> {
    fn name(&self) -> &'static str {
        "window"
    }
    fn observe(&mut self, event: LayerEvent<'_>, past: &Retrieval) {
        self.oracle.observe(event, past);
        self.counts.begin(event);
        for row in rows(event) {
            self.counts.row(row.iter().map(|r| self.oracle.residents().shape().key(r.id)));
        }
    }
    fn insert(&mut self, id: ExpertId) {
        self.oracle.insert(id);
    }
    fn touch(&mut self, routed: Routed) {
        self.recency.touch(self.oracle.residents().shape().key(routed.id));
    }
    fn evict(&mut self, layers: &[u16], keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let (oracle, counts, recency) = (&self.oracle, self.counts.all(), &self.recency);
        let last = oracle.now().saturating_add(self.events);
        let value = |key: usize| match oracle.next(key) {
            next if next < last => (true, -f64::from(next), 0),
            _ => (false, counts[key], recency.of(key)),
        };
        let (key, _) = oracle.residents().least(layers, keep, value)?;
        let id = oracle.residents().shape().id(key);
        self.remove(id);
        Some(id)
    }
    fn remove(&mut self, id: ExpertId) {
        self.oracle.remove(id);
    }
}
