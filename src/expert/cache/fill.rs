//! Free slots fill while the drive is idle.
//!
//! An empty slot is worth nothing. Left to misses, the slots of a large budget take hundreds of tokens to fill after a short
//! prompt, and each of these misses is waited for. So, where asked for, when a token's layer is through and hardly anything is on
//! its way, absent experts are read into free slots: a few at a time, below all demand reads, the layers in turn so that all fill
//! alike. Which of a layer's comes first is the policy's to say; what it knows nothing of goes by the uses counted here,
//! and then by number: any expert beats none. Nobody loses a slot to them, and of all residents that nobody has used they
//! leave first ([`crate::policy::CachePolicy::warm`]).
//!
//! Nothing is filled while a machine that is short of memory has made the cache give slots back, nor after such a read has failed.

use super::{Cause, ExpertCache, NONE};
use crate::{id::ExpertId, trace::Phase};

/// Reads in flight that nobody has asked for, below which one more is begun. A demand read waits for those at the drive.
const MOST: usize = 2;

/// See the module.
#[derive(Default)]
pub(super) struct Fill {
    on: bool,
    /// The layer whose turn it is.
    layer: usize,
}

impl ExpertCache {
    /// From now on, fills free slots while tokens are decoded; or no longer does.
    pub fn fill_free_slots(&mut self, on: bool) {
        self.fill.on = on;
    }

    /// Begins the next reads, as far as slots and [`MOST`] go. Never blocks.
    pub(super) fn fill(&mut self) {
        if !self.fill.on || self.phase != Phase::Decode || self.is_short_of_memory() {
            return;
        }
        let n_layer = self.shape.n_layer();
        let mut left = n_layer;
        while left > 0 && self.prefetches_in_flight + self.kept.in_flight < MOST {
            let layer = self.fill.layer;
            self.fill.layer = (layer + 1) % n_layer;
            left -= 1;
            let pool = self.shape.pool(layer as u16);
            if self.pools[pool].free.is_empty() {
                continue;
            }
            if let Some(id) = self.best_absent(layer as u16)
                && let Some(slot) = self.pools[pool].free.pop()
            {
                self.stats.fill_reads += 1;
                self.kept.in_flight += 1;
                self.load(slot as usize, id, Cause::Fill);
            }
        }
    }

    /// True while slots have been given back for the machine's sake.
    fn is_short_of_memory(&self) -> bool {
        self.allowance.is_some() && self.pools.iter().any(|pool| pool.park > 0)
    }

    /// The absent expert of a layer that is worth most; of equal ones the most used, then the first.
    fn best_absent(&self, layer: u16) -> Option<ExpertId> {
        let mut best: Option<(f64, u64, ExpertId)> = None;
        for expert in 0..self.shape.n_expert as u16 {
            let id = ExpertId { layer, expert };
            let at = self.at(id);
            if self.index[at] != NONE || self.elsewhere.is(at) {
                continue;
            }
            let (value, uses) = (self.policy.value(id), self.uses[at]);
            if best.is_none_or(|(v, u, _)| (value, uses) > (v, u)) {
                best = Some((value, uses, id));
            }
        }
        best.map(|(.., id)| id)
    }
}
