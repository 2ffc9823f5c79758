//! The next layer's likely experts first ([`Lookahead`]), then the best ones of the layer after it: its router too is
//! applied to this layer's hidden state, two layers early (the idea of Eliseev and Mazur, arXiv 2312.17238, who guess one
//! or more layers ahead).
//!
//! Two layers give a slow read twice the time, and cost precision: .91 of the best guesses two ahead are right on our M
//! model, .82 of the second best, .71 of the third; the next layer's have .95, .91, .84. So a sixth of `n_expert_used`
//! ranks is read of the layer after the next, behind those of the next; as many as a token uses are kept there.
//!
//! When not to use it: in the simulator it hardly ever beats [`Lookahead`] (`docs/prefetch.md`). Where the drive is the
//! bottleneck any further read delays a surer one, the more the more ranks are read; where computing is, the next layer's
//! guesses arrive in time anyway. It can pay only where single reads are slow and many at once are not.

use super::{Lookahead, Prefetcher, Reads, lookahead::rank};
use crate::{
    id::ExpertId,
    retrieval::Retrieval,
    trace::{LayerEvent, Phase},
};

/// See the module.
pub struct Lookahead2 {
    next: Lookahead,
    /// Ranks of the layer after the next that are read.
    reads: usize,
    /// Those that are kept.
    ranks: usize,
    order: Vec<u16>,
    far: Vec<ExpertId>,
}

impl Lookahead2 {
    /// For a model that uses `n_expert_used` experts of `n_expert` a layer.
    pub fn new(n_expert: usize, n_expert_used: usize) -> Self {
        let (reads, ranks) = (n_expert_used.div_ceil(6), n_expert_used.min(n_expert));
        let (order, far) = (Vec::with_capacity(n_expert), Vec::with_capacity(ranks));
        Self { next: Lookahead::new(n_expert, n_expert_used), reads, ranks, order, far }
    }
}

impl Prefetcher for Lookahead2 {
    fn name(&self) -> &'static str {
        "lookahead-2"
    }
    fn horizon(&self) -> u16 {
        2
    }
    fn observe(&mut self, event: LayerEvent<'_>, past: &Retrieval, guesses: &mut Vec<ExpertId>) -> Reads {
        let begin = guesses.len();
        let near = self.next.observe(event, past, guesses).now.min(guesses.len() - begin);
        if event.phase != Phase::Decode || event.lookahead2.is_empty() {
            return Reads::now(near);
        }
        self.far.clear();
        rank(event.lookahead2, &mut self.order);
        self.far.extend(self.order.iter().take(self.ranks).map(|&expert| ExpertId { layer: event.layer + 2, expert }));
        // Read behind what is read of the next layer, kept behind what is kept of it.
        let (read, kept) = self.far.split_at(self.reads.min(self.far.len()));
        guesses.splice(begin + near..begin + near, read.iter().copied());
        guesses.extend_from_slice(kept);
        Reads::now(near + read.len())
    }
}
