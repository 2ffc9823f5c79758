//! Experts that a faster memory holds too: their slots here are the first to be taken, and an event's experts that are computed
//! there are not wanted here.

use super::{ExpertCache, NONE, Want};
use crate::{
    id::ExpertId,
    trace::{LayerEvent, Phase, Routed},
};

/// See the module.
pub(super) struct Elsewhere {
    /// (n_moe_layer, n_expert)
    held: Vec<bool>,
    /// What the present event does not want here.
    pub(super) taken: Vec<ExpertId>,
}

impl Elsewhere {
    pub(super) fn new(n_expert: usize) -> Self {
        Self { held: vec![false; n_expert], taken: Vec::new() }
    }
    pub(super) fn is(&self, at: usize) -> bool {
        self.held[at]
    }
    pub(super) fn any(&self) -> bool {
        self.held.contains(&true)
    }
}

impl ExpertCache {
    /// [`ExpertCache::request`] without those of the event's experts that are computed elsewhere; policies see it whole.
    pub fn request_but_for(&mut self, event: LayerEvent<'_>, taken: &[ExpertId]) {
        self.elsewhere.taken.clear();
        self.elsewhere.taken.extend(taken);
        self.request(event);
        self.elsewhere.taken.clear();
    }

    /// Says whether another memory holds an expert from now on.
    pub fn set_elsewhere(&mut self, id: ExpertId, held: bool) {
        let at = self.at(id);
        self.elsewhere.held[at] = held;
    }

    /// No other memory holds any from now on.
    pub fn nowhere_else(&mut self) {
        self.elsewhere.held.fill(false);
    }

    /// Fills `wanted` with the distinct experts of the event: in routing order when decoding; for a prompt those at hand
    /// first, then the others by the number of rows, fewest first, so that the ones that the prompt used most are the
    /// youngest residents when decoding starts.
    pub(super) fn collect(&mut self, event: LayerEvent<'_>) {
        self.wanted.clear();
        self.rows.fill(0);
        for r in event.routed {
            self.uses[r.id.layer as usize * self.shape.n_expert + r.id.expert as usize] += 1;
            if self.elsewhere.taken.contains(&r.id) {
                continue;
            }
            let n = &mut self.rows[r.id.expert as usize];
            if *n == 0 {
                self.wanted.push((*r, Want::Queued));
            }
            *n += 1;
        }
        if event.phase == Phase::Prompt {
            let (rows, index, n_expert) = (&self.rows, &self.index, self.shape.n_expert);
            self.wanted.sort_unstable_by_key(|(Routed { id, .. }, _)| {
                let absent = index[id.layer as usize * n_expert + id.expert as usize] == NONE;
                (absent, rows[id.expert as usize], id.expert)
            });
        }
    }
}
