//! What followed this layer's experts before will follow them again: a table of successors, learned while running. It
//! needs no scores, so it costs no arithmetic of the model and works on traces without them.
//!
//! Markov prefetching (Joseph and Grunwald, "Prefetching using Markov predictors", ISCA 1997), whose states are here the
//! experts of a layer. Each remembers the 16 experts of the next layer that followed it most, with counts that are halved
//! every 128 uses from then on; the rarest makes room. An expert's votes for its successors are its counts over its uses,
//! and all experts of a choice vote. Read are at most two thirds of `n_expert_used` ranks, and of these only experts that
//! followed three in ten of the voters' uses; twice `n_expert_used` ranks are not evicted for that. Prompts teach too.
//!
//! Memory: 66 bytes for each expert of each layer that has run (48 layers of 128: 0.4 MB), and a batch's choices.
//! Arithmetic in whole numbers: a replay guesses what the live run did.
//!
//! When not to use it: where [`super::Lookahead`] can be used and reading ahead pays at all, since scores know this token
//! and counts only know others; in the first dozens of tokens; and where routing is even, as on our M model, where it
//! wins 1 % at best and loses 2 % on a slow drive (`docs/prefetch.md`).

use super::{Prefetcher, Reads};
use crate::{
    id::ExpertId,
    retrieval::Retrieval,
    trace::{LayerEvent, Phase},
};

/// Successors that an expert remembers.
const SUCCESSORS: usize = 16;

/// Uses after which an expert's counts are halved: what followed long ago weighs less.
const USES: u16 = 128;

/// An expert is read if it followed so many tenths of the voters' uses, on average.
const LIKELY_TENTHS: u32 = 3;

/// A vote of 1: an expert that always followed.
const ONE: u32 = 1 << 16;

/// What followed an expert in the next layer.
#[derive(Clone, Copy, Default)]
struct Row {
    /// How often the expert was used, faded as the counts are.
    uses: u16,
    /// (expert, how often it followed); a count of 0 is a free place.
    successors: [(u16, u16); SUCCESSORS],
}

impl Row {
    fn learn(&mut self, followed: impl Iterator<Item = u16>) {
        self.uses += 1;
        for expert in followed {
            let known = self.successors.iter().position(|(e, n)| *n > 0 && *e == expert);
            if let Some(at) = known {
                self.successors[at].1 = self.successors[at].1.saturating_add(1);
            } else {
                // The rarest makes room.
                let rarest = self.successors.iter_mut().min_by_key(|(_, n)| *n);
                *rarest.expect("there are some") = (expert, 1);
            }
        }
        if self.uses == USES {
            self.uses /= 2;
            self.successors.iter_mut().for_each(|(_, n)| *n /= 2);
        }
    }
}

/// See the module.
pub struct History {
    n_expert: usize,
    /// Ranks that are read at most.
    reads: usize,
    /// Ranks that are kept.
    ranks: usize,
    /// Sum of votes from which on an expert is read.
    likely: u32,
    /// As layers first run. (n_moe_layer, n_expert)
    rows: Vec<Vec<Row>>,
    /// Whose the last choices were: first token and layer.
    of: Option<(u32, u16)>,
    /// (n_tokens, n_expert_used)
    last: Vec<u16>,
    /// (n_expert)
    votes: Vec<u32>,
    order: Vec<u16>,
}

impl History {
    /// For a model that uses `n_expert_used` experts of `n_expert` a layer.
    pub fn new(n_expert: usize, n_expert_used: usize) -> Self {
        Self {
            n_expert,
            reads: (2 * n_expert_used).div_ceil(3),
            ranks: (2 * n_expert_used).min(n_expert),
            likely: LIKELY_TENTHS * ONE / 10 * n_expert_used as u32,
            rows: Vec::new(),
            of: None,
            last: Vec::new(),
            votes: vec![0; n_expert],
            order: Vec::with_capacity(n_expert),
        }
    }

    /// See [`super::PrefetchKind::bytes`].
    pub fn bytes(n_layer: usize, n_expert: usize, n_expert_used: usize, n_batch: usize) -> u64 {
        let (rows, last) = (n_layer * n_expert * size_of::<Row>(), n_batch * n_expert_used * size_of::<u16>());
        (rows + last) as u64
    }

    /// What this event chose behind what the layer before did, token by token.
    fn learn(&mut self, event: LayerEvent<'_>) {
        let follows = event.layer.checked_sub(1).filter(|before| self.of == Some((event.first_token, *before)));
        let rows = follows.and_then(|before| self.rows.get_mut(usize::from(before)));
        let n_used = event.n_used();
        if let Some(rows) = rows
            && n_used > 0
            && self.last.len() == event.routed.len()
        {
            for (last, now) in self.last.chunks_exact(n_used).zip(event.routed.chunks_exact(n_used)) {
                for &expert in last {
                    rows[usize::from(expert)].learn(now.iter().map(|r| r.id.expert));
                }
            }
        }
        self.last.clear();
        self.last.extend(event.routed.iter().map(|r| r.id.expert));
        self.of = Some((event.first_token, event.layer));
        let layer = usize::from(event.layer);
        if self.rows.len() <= layer {
            self.rows.resize(layer + 1, vec![Row::default(); self.n_expert]);
        }
    }

    /// Sums up, for each expert of the next layer, how often it followed each of the event's.
    fn vote(&mut self, event: LayerEvent<'_>) {
        self.votes.fill(0);
        for r in event.routed {
            let row = &self.rows[usize::from(event.layer)][usize::from(r.id.expert)];
            for &(expert, n) in row.successors.iter().filter(|(_, n)| *n > 0) {
                let votes = &mut self.votes[usize::from(expert)];
                *votes = votes.saturating_add(u32::from(n) * ONE / u32::from(row.uses));
            }
        }
    }
}

impl Prefetcher for History {
    fn name(&self) -> &'static str {
        "history"
    }
    fn wants_scores(&self) -> bool {
        false
    }
    fn observe(&mut self, event: LayerEvent<'_>, _: &Retrieval, guesses: &mut Vec<ExpertId>) -> Reads {
        self.learn(event);
        if event.phase != Phase::Decode {
            return Reads::default();
        }
        self.vote(event);
        let votes = &self.votes;
        self.order.clear();
        self.order.extend((0..self.n_expert as u16).filter(|&e| votes[usize::from(e)] > 0));
        self.order.sort_unstable_by_key(|&e| (std::cmp::Reverse(votes[usize::from(e)]), e));
        let layer = event.layer + 1;
        guesses.extend(self.order.iter().take(self.ranks).map(|&expert| ExpertId { layer, expert }));
        let likely = self.order.iter().take(self.reads).take_while(|&&e| votes[usize::from(e)] >= self.likely);
        Reads::now(likely.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::ExpertId, trace::Routed};

    #[test]
    fn it_holds_what_the_plan_leaves_for_it() {
        let (n_layer, n_expert, n_tokens) = (5u16, 12, 6);
        let mut history = History::new(n_expert, 2);
        for first_token in [0, n_tokens] {
            for layer in 0..n_layer {
                let chosen = (0..2 * n_tokens as u16).map(|i| ExpertId { layer, expert: i % 12 });
                let routed: Vec<_> = chosen.map(|id| Routed { id, weight: 0.5 }).collect();
                history.learn(LayerEvent {
                    phase: Phase::Prompt,
                    first_token,
                    n_tokens,
                    layer,
                    routed: &routed,
                    lookahead: &[],
                });
            }
        }
        let rows: usize = history.rows.iter().map(|rows| rows.capacity() * size_of::<Row>()).sum();
        let held = rows + history.last.capacity() * size_of::<u16>();
        assert_eq!(held as u64, History::bytes(n_layer.into(), n_expert, 2, n_tokens as usize));
    }
}
