//! Experts that are in memory for another reason than that a token has just used them: pinned ones, which never leave,
//! and those that the last run used most, which a warm start reads before they are asked for.
//!
//! Both are read while the drive would be idle: when a layer is through and the next one has not asked yet, a few at a
//! time, below all demand reads. A warm start fills free slots only; it takes none from anybody. Its uses are also told
//! to the policies as a short history, since to a policy that counts uses an expert without any is the next to leave.

use std::collections::VecDeque;

use super::{Cause, ExpertCache, Pool};
use crate::{
    Error, Result,
    expert::HotList,
    id::ExpertId,
    trace::{LayerEvent, Phase, Routed},
};

/// Reads in flight at most. A demand read waits for those that are at the drive.
const MOST: usize = 4;

/// Tokens of the history that policies are told: the shortest half-life of the default one. The expert that its layer used
/// most is in each, the others in proportion.
const HISTORY: u64 = 16;

/// See the module.
pub(super) struct Kept {
    /// The first ones stay longest when slots are given back.
    pins: Vec<ExpertId>,
    /// Slots of a pool that pins leave to others, unless all experts have one.
    spare: usize,
    /// (n_moe_layer, n_expert)
    pub(super) pinned: Vec<bool>,
    /// To be read.
    queue: VecDeque<ExpertId>,
    pub(super) in_flight: usize,
}

impl Kept {
    pub(super) fn new(n_expert: usize) -> Self {
        Self { pins: Vec::new(), spare: 0, pinned: vec![false; n_expert], queue: VecDeque::new(), in_flight: 0 }
    }
}

impl ExpertCache {
    /// Keeps these experts in memory, the first ones if slots are given back later, and reads those that are absent.
    /// Each pool keeps at least `spare` slots for others, unless all of its experts have one. Replaces earlier pins.
    ///
    /// # Errors
    /// More pins than a pool has slots for; then nothing has changed.
    ///
    /// # Panics
    /// If an expert is none of the model's.
    pub fn pin(&mut self, list: &HotList, spare: usize) -> Result<()> {
        let mut counts = vec![0; self.pools.len()];
        list.iter().for_each(|hot| counts[self.pool_of(hot.id)] += 1);
        for (pool, &n) in counts.iter().enumerate() {
            let room = self.room_for_pins(pool, spare);
            if n > room {
                let slots = self.pools[pool].n_slot - self.pools[pool].park;
                let what = match self.pools[pool].layers.as_slice() {
                    [layer] => format!("pinned experts of MoE layer {layer}"),
                    layers if layers.len() == self.shape.n_layer() => "pinned experts".to_owned(),
                    layers => format!("pinned experts of {} MoE layers", layers.len()),
                };
                let expected = format!("at most {room} ({slots} slots, of which a token needs {spare} for others)");
                return Err(Error::request(what, expected, n));
            }
        }
        self.kept.spare = spare;
        self.kept.pins = list.iter().map(|hot| hot.id).collect();
        self.mark_pins();
        self.kept.queue.retain(|id| self.kept.pins.iter().all(|pin| pin != id));
        self.kept.pins.iter().rev().for_each(|&id| self.kept.queue.push_front(id));
        self.read_kept();
        Ok(())
    }

    /// Reads the listed experts into free slots, in the list's order, and tells the policies of their uses; nothing where none
    /// is kept.
    ///
    /// # Panics
    /// If an expert is none of the model's.
    pub fn warm(&mut self, list: &HotList) {
        if !self.keeps {
            return;
        }
        self.tell_history(list);
        self.kept.queue.extend(list.iter().map(|hot| hot.id));
        self.read_kept();
    }

    /// How often each expert was used since the start.
    pub fn hot(&self) -> HotList {
        HotList::from_uses(&self.uses, self.shape.n_expert)
    }

    /// Experts that are pinned now.
    pub fn n_pinned(&self) -> usize {
        self.kept.pinned.iter().filter(|pinned| **pinned).count()
    }

    /// Slots of a pool that pins may take where others need `spare`.
    fn room_for_pins(&self, pool: usize, spare: usize) -> usize {
        let Pool { n_slot, park, ref layers, .. } = self.pools[pool];
        let (n_slot, n_expert) = (n_slot - park, layers.len() * self.shape.n_expert);
        if n_slot >= n_expert { n_slot } else { n_slot.saturating_sub(spare) }
    }

    /// Marks as many pins as there is room for.
    pub(super) fn mark_pins(&mut self) {
        self.kept.pinned.fill(false);
        let mut room: Vec<_> = (0..self.pools.len()).map(|pool| self.room_for_pins(pool, self.kept.spare)).collect();
        for i in 0..self.kept.pins.len() {
            let id = self.kept.pins[i];
            let (pool, at) = (self.pool_of(id), self.at(id));
            self.kept.pinned[at] = room[pool] > 0;
            room[pool] = room[pool].saturating_sub(1);
        }
    }

    /// Starts the next reads, as far as slots and [`MOST`] go. Never blocks.
    pub(super) fn read_kept(&mut self) {
        while self.kept.in_flight < MOST {
            let Some(id) = self.kept.queue.pop_front() else { return };
            if self.slot_of(id).is_some() {
                continue;
            }
            let pool = self.pool_of(id);
            let slot = if self.kept.pinned[self.at(id)] {
                self.free_slot(pool, &[])
            } else {
                self.pools[pool].free.pop().map(|slot| slot as usize)
            };
            // A pin without a slot stays one: it is read when a token asks for it.
            let Some(slot) = slot else { continue };
            self.stats.warm_reads += 1;
            self.kept.in_flight += 1;
            self.load(slot, id, Cause::Kept);
        }
    }

    fn tell_history(&mut self, list: &HotList) {
        let mut by_layer = vec![Vec::new(); self.shape.n_layer()];
        list.iter().for_each(|hot| by_layer[usize::from(hot.id.layer)].push(hot));
        let mut routed = Vec::new();
        for token in 0..HISTORY {
            for (layer, list) in by_layer.iter().enumerate() {
                let most = u64::from(list.iter().map(|hot| hot.uses).max().unwrap_or(0).max(1));
                let so_far = |uses: u32, tokens: u64| u64::from(uses) * tokens / most;
                let used = list.iter().filter(|hot| so_far(hot.uses, token + 1) > so_far(hot.uses, token));
                routed.clear();
                routed.extend(used.map(|hot| Routed { id: hot.id, weight: 1.0 }));
                let (phase, layer) = (Phase::Decode, layer as u16);
                let event = LayerEvent {
                    phase,
                    first_token: token as u32,
                    n_tokens: 1,
                    layer,
                    routed: &routed,
                    lookahead: &[],
                };
                if !routed.is_empty() {
                    self.policy.observe(event, &self.retrieval);
                }
            }
        }
    }
}
