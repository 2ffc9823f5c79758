//! What the past tokens that resemble this one used in the layers to come ([`Retrieval::votes`]). Needs no scores, so it costs
//! no arithmetic of the model, works on traces without them, and sees as far ahead as one likes: beyond the next layer, where
//! the routers' scores fall off, and beyond the last layer, into the next token.
//!
//! The next layer's experts are read at once, best first, if at least [`LIKELY`] of the votes are for them: a share of votes
//! is nearly the probability that the guess is right (over the traces of `docs/policies.md`, of absent experts with .2 to .4,
//! .4 to .6, .6 to .8 and more of the votes .18, .35, .55 and .83 were used). Where the drive has little else to do, so are
//! those of the layers up to [`AHEAD`] that have [`LIKELY_FAR`], the nearer layer first. As in [`super::Lookahead`], twice as
//! many of the next layer's experts as a token uses are not evicted for that. Only while decoding; prompts teach too.
//!
//! When not to use it: in the first dozens of tokens, which have no past; and where the next layer's scores are at hand and the
//! drive is busy, since [`super::Lookahead`] names more of the next layer's experts.

use super::{Prefetcher, Reads};
use crate::{
    id::ExpertId,
    retrieval::Retrieval,
    trace::{LayerEvent, Phase},
};

/// Share of the votes from which on an expert of the next layer is read.
const LIKELY: f32 = 0.5;

/// The same for the layers after it: there is time to be told better.
const LIKELY_FAR: f32 = 0.6;

/// Layers ahead, at most.
const AHEAD: usize = 4;

/// See the module.
pub struct Votes {
    n_expert_used: usize,
    /// (n_expert)
    votes: Vec<f32>,
    order: Vec<u16>,
    /// What is kept of the next layer beside what is read. (up to 2 · n_expert_used)
    kept: Vec<ExpertId>,
}

impl Votes {
    /// For a model that uses `n_expert_used` experts of `n_expert` a layer.
    pub fn new(n_expert: usize, n_expert_used: usize) -> Self {
        Self {
            n_expert_used,
            votes: vec![0.0; n_expert],
            order: Vec::with_capacity(n_expert),
            kept: Vec::with_capacity(2 * n_expert_used),
        }
    }

    /// The matches' votes for the layer that comes next: the layer, and for each of its experts its share. (n_expert)
    pub(super) fn next(&mut self, past: &Retrieval) -> Option<(u16, &mut [f32])> {
        let layer = ahead(past, 1)?;
        past.votes(layer, &mut self.votes);
        Some((layer, &mut self.votes))
    }

    /// Guesses in the order of what [`Votes::next`] returned: of layer `next` the best `reads` experts that have at least
    /// `least` are read, those of the layers behind by their votes while the drive is idle, and twice as many as a token uses
    /// are kept.
    pub(super) fn guess(
        &mut self,
        past: &Retrieval,
        (next, least, reads): (u16, f32, usize),
        guesses: &mut Vec<ExpertId>,
    ) -> Reads {
        self.rank(f32::MIN_POSITIVE);
        let likely = self.order.iter().take(reads).take_while(|&&e| self.votes[usize::from(e)] >= least).count();
        let (read, others) = self.order.split_at(likely);
        let id = |layer| move |&expert: &u16| ExpertId { layer, expert };
        guesses.extend(read.iter().map(id(next)));
        self.kept.clear();
        self.kept.extend(others.iter().take(2 * self.n_expert_used - likely).map(id(next)));
        let begin = guesses.len();
        for layer in (2..=AHEAD.min(past.n_layer())).filter_map(|layers| ahead(past, layers)) {
            past.votes(layer, &mut self.votes);
            self.rank(LIKELY_FAR);
            guesses.extend(self.order.iter().take(self.n_expert_used).map(id(layer)));
        }
        let idle = guesses.len() - begin;
        guesses.extend_from_slice(&self.kept);
        Reads { now: likely, idle }
    }

    /// Sorts the experts that have at least so many votes, the best first, of equal ones the lower number.
    fn rank(&mut self, least: f32) {
        let votes = &self.votes;
        self.order.clear();
        self.order.extend((0..votes.len() as u16).filter(|&e| votes[usize::from(e)] >= least));
        self.order.sort_unstable_by(|&a, &b| votes[usize::from(b)].total_cmp(&votes[usize::from(a)]).then(a.cmp(&b)));
    }
}

/// The layer that comes so many layers after the one observed last; behind the last layer come the next token's.
fn ahead(past: &Retrieval, layers: usize) -> Option<u16> {
    past.layer().map(|now| ((usize::from(now) + layers) % past.n_layer()) as u16)
}

impl Prefetcher for Votes {
    fn name(&self) -> &'static str {
        "votes"
    }
    fn wants_scores(&self) -> bool {
        false
    }
    fn wants_retrieval(&self) -> bool {
        true
    }
    fn observe(&mut self, event: LayerEvent<'_>, past: &Retrieval, guesses: &mut Vec<ExpertId>) -> Reads {
        if event.phase != Phase::Decode {
            return Reads::default();
        }
        let Some((next, _)) = self.next(past) else { return Reads::default() };
        self.guess(past, (next, LIKELY, self.n_expert_used), guesses)
    }
}
