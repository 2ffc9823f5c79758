//! Slots for experts that are used once and not kept.
//!
//! A missing expert of little value needs a slot while it computes, but none afterwards. Where a pool has hardly more slots
//! than a token uses experts, giving it one costs a resident that is worth more. So a few transient slots, which belong to
//! no pool and fit every layer, take such experts while tokens are decoded; at the next event they are free again. Who is
//! worth so little is the policy's to say ([`crate::policy::CachePolicy::admits`]).

use super::{ExpertCache, IoBuf, Slot};
use crate::{Error, Result, id::ExpertId, trace::Phase};

/// See the module.
#[derive(Default)]
pub(super) struct Transient {
    /// The first of them among all slots; they are the last ones.
    first: usize,
    free: Vec<u32>,
    /// Those that hold an expert.
    used: Vec<u32>,
}

impl ExpertCache {
    /// Adds `n` slots for experts that the policy does not find worth keeping.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn add_transient(&mut self, n: usize) -> Result<()> {
        let refused = |e| Error::invalid(format!("cannot allocate memory for expert slots: {e}"));
        let parts = self.store.slot_parts(0..self.shape.n_layer());
        let bufs = IoBuf::many(self.io.layout(), &parts, n).map_err(refused)?;
        if self.transient.used.is_empty() && self.transient.free.is_empty() {
            self.transient.first = self.slots.len();
        }
        self.transient.free.extend((self.slots.len()..self.slots.len() + n).rev().map(|slot| slot as u32));
        self.transient.used.reserve(n);
        self.slots.extend(bufs.into_iter().map(Slot::Free));
        self.tenants.resize(self.slots.len(), None);
        Ok(())
    }

    /// True of a slot that keeps nothing.
    pub(super) fn is_transient(&self, slot: usize) -> bool {
        self.n_transient() > 0 && slot >= self.transient.first
    }

    /// Slots that keep nothing.
    pub fn n_transient(&self) -> usize {
        self.transient.free.len() + self.transient.used.len()
    }

    /// A slot for a wanted expert that is not worth another's.
    pub(super) fn transient_slot(&mut self, id: ExpertId) -> Option<usize> {
        let pool = self.pool_of(id);
        if self.phase != Phase::Decode || !self.pools[pool].free.is_empty() || self.transient.free.is_empty() {
            return None;
        }
        let keep = super::keep(&self.slots, &self.index, &self.wanted, &self.kept.pinned, self.shape.n_expert, &[]);
        if self.kept.pinned[self.at(id)] || self.policy.admits(id, &self.pools[pool].layers, &keep) {
            return None;
        }
        let slot = self.transient.free.pop()?;
        self.transient.used.push(slot);
        self.stats.bypassed += 1;
        Some(slot as usize)
    }

    /// Frees the transient slots whose experts have been computed.
    pub(super) fn free_transient(&mut self) {
        for i in (0..self.transient.used.len()).rev() {
            let slot = self.transient.used[i];
            match (&self.slots[slot as usize], self.tenants[slot as usize]) {
                // After an error: the read is still in flight.
                (Slot::Loading, _) => continue,
                (_, Some(tenant)) => {
                    self.vacate(tenant.id);
                }
                (_, None) => {}
            }
            self.transient.used.swap_remove(i);
            self.transient.free.push(slot);
        }
    }
}
