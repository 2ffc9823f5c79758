//! [`Lookahead`](super::Lookahead) and [`Votes`] together. The next layer's experts are ranked by the sum of what the two say
//! of each: the votes' share, and how often a guess of its rank among the scores is right, taken as falling in a straight
//! line from 1 to 0 over twice as many ranks as a token uses (ranks, since the scale of scores differs from architecture to
//! architecture). As many are read as with scores alone, two thirds of what a token uses. The layers after the next one, of
//! which scores say little, are the votes' alone.
//!
//! Why the sum: of the experts that the next layer chose, the best k of the scores named 75.6 % on our M model and 71.0 % on
//! our S model, the best k of scores and votes with equal weight 78.6 and 77.0 %, in a study of traces. What ranks in place
//! of scores win or lose has not been measured.
//!
//! When not to use it: where either alone is at a loss, so is this; it costs what both cost.

use super::{Prefetcher, Reads, Votes, lookahead::rank};
use crate::{
    id::ExpertId,
    retrieval::Retrieval,
    trace::{LayerEvent, Phase},
};

/// See the module.
pub struct Both {
    votes: Votes,
    /// Ranks of the sum that are read.
    reads: usize,
    /// Ranks of the scores that count.
    ranks: usize,
    order: Vec<u16>,
}

impl Both {
    /// For a model that uses `n_expert_used` experts of `n_expert` a layer.
    pub fn new(n_expert: usize, n_expert_used: usize) -> Self {
        Self {
            votes: Votes::new(n_expert, n_expert_used),
            reads: (2 * n_expert_used).div_ceil(3),
            ranks: 2 * n_expert_used,
            order: Vec::with_capacity(n_expert),
        }
    }
}

impl Prefetcher for Both {
    fn name(&self) -> &'static str {
        "both"
    }
    fn wants_scores(&self) -> bool {
        true
    }
    fn wants_retrieval(&self) -> bool {
        true
    }
    fn observe(&mut self, event: LayerEvent<'_>, past: &Retrieval, guesses: &mut Vec<ExpertId>) -> Reads {
        if event.phase != Phase::Decode || event.lookahead.is_empty() {
            return self.votes.observe(event, past, guesses);
        }
        let Some((next, shares)) = self.votes.next(past) else { return Reads::default() };
        rank(event.lookahead, &mut self.order);
        for (i, &expert) in self.order.iter().take(self.ranks).enumerate() {
            shares[usize::from(expert)] += 1.0 - (i as f32 + 0.5) / self.ranks as f32;
        }
        self.votes.guess(past, (next, 0.0, self.reads), guesses)
    }
}
