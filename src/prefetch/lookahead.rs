//! The next layer's router, applied to this layer's hidden state, names most of the experts that the next layer will
//! use (recall of 60–98 % on public models, .76 on our M model): the residual stream changes little from layer to
//! layer. The idea is that of Eliseev and Mazur, "Fast inference of MoE language models with offloading"
//! (arXiv 2312.17238).
//!
//! Only while decoding: a prompt's layer asks for most experts anyway. Only the top two thirds of `n_expert_used` ranks
//! are read, because precision falls with rank and a wrong read delays the right ones. The top twice `n_expert_used`
//! ranks are not evicted for such a read: knowledge of the near future that costs nothing.
//!
//! Simulated on our M model's trace (6 of 48 experts, 25 % of the slots, `docs/policies.md`), tokens per second without
//! prefetching, with all 6 ranks read, with 4 read, and with 4 read and 12 kept: on a drive that keeps up with computing
//! 107.1, 132.2, 129.3, 130.9; on one that does not 92.6, 85.6, 95.9, 98.2. So all 6 can lose and 4 did not.

use super::{Prefetcher, Reads};
use crate::{
    id::ExpertId,
    retrieval::Retrieval,
    trace::{LayerEvent, Phase},
};

/// See the module.
pub struct Lookahead {
    /// Ranks that are read.
    reads: usize,
    /// Ranks that are kept.
    ranks: usize,
    order: Vec<u16>,
}

impl Lookahead {
    /// For a model that uses `n_expert_used` experts of `n_expert` a layer.
    pub fn new(n_expert: usize, n_expert_used: usize) -> Self {
        let (reads, ranks) = ((2 * n_expert_used).div_ceil(3), 2 * n_expert_used);
        Self { reads, ranks: ranks.min(n_expert), order: Vec::with_capacity(n_expert) }
    }
}

impl Prefetcher for Lookahead {
    fn name(&self) -> &'static str {
        "lookahead"
    }
    fn wants_scores(&self) -> bool {
        true
    }
    fn observe(&mut self, event: LayerEvent<'_>, _: &Retrieval, guesses: &mut Vec<ExpertId>) -> Reads {
        if event.phase != Phase::Decode || event.lookahead.is_empty() {
            return Reads::default();
        }
        rank(event.lookahead, &mut self.order);
        let layer = event.layer + 1;
        guesses.extend(self.order.iter().take(self.ranks).map(|&expert| ExpertId { layer, expert }));
        Reads::now(self.reads)
    }
}

/// The experts that have a score, best first, of equal ones the lower number: a trace keeps the best ranks only.
pub(super) fn rank(scores: &[f32], order: &mut Vec<u16>) {
    order.clear();
    order.extend((0..scores.len() as u16).filter(|&e| scores[usize::from(e)] > f32::NEG_INFINITY));
    order.sort_unstable_by(|&a, &b| scores[usize::from(b)].total_cmp(&scores[usize::from(a)]).then(a.cmp(&b)));
}
