//! Who says how many slots may be in use, and when that is asked.
//!
//! A machine that runs out of memory does not wait for the end of a layer. So the question is put wherever the control
//! thread comes by: at requests and hand-outs, in the middle of attention, and while it waits for a drive.

use super::{ExpertCache, Slot};

/// Says how many slots may be in use. It is asked some hundred times per token, so most answers must be cheap; and it owns
/// clock and machine, of which nobody here knows.
pub trait Allowance: Send {
    /// The slots that each pool may use from now on, where that is to change. See [`ExpertCache::resize`].
    fn check(&mut self) -> Option<Vec<usize>>;
}

impl ExpertCache {
    /// From now on uses as many slots as `allowance` says, within those that the cache was made with; `None`: as many as it
    /// uses now.
    pub fn follow(&mut self, allowance: Option<Box<dyn Allowance>>) {
        self.allowance = allowance;
    }

    /// Gives slots back, or takes them into use again, where the allowance says so.
    pub(in crate::expert) fn obey(&mut self) {
        if let Some(slots) = self.allowance.as_mut().and_then(|allowance| allowance.check()) {
            self.resize(&slots);
        }
    }

    /// Uses at most `slots[i]` of pool i's slots from now on: the memory of the others goes back to the system, the least
    /// valuable residents first, or comes back into use. May be called between the hand-outs of an event; what is in use this
    /// moment follows at the next ones.
    /// Numbers above those that the cache was made with mean these, and none means one.
    ///
    /// # Panics
    /// If there is not one number for each pool.
    pub fn resize(&mut self, slots: &[usize]) {
        assert_eq!(slots.len(), self.pools.len(), "one number of slots for each pool");
        for (pool, &n) in self.pools.iter_mut().zip(slots) {
            pool.park = pool.n_slot.saturating_sub(n.max(1));
            while pool.parked.len() > pool.park {
                pool.free.extend(pool.parked.pop());
            }
        }
        if self.pools.iter().any(|pool| pool.park > 0) {
            // Before memory goes back, or it would get pages again.
            self.toucher = None;
        }
        self.mark_pins();
        self.park();
    }

    /// Slots in use or free to be used, of all pools.
    pub fn n_slot(&self) -> usize {
        self.pools.iter().map(|p| p.n_slot - p.parked.len()).sum()
    }

    /// Parks slots where [`ExpertCache::resize`] asked for it, as far as nobody needs them now.
    pub(super) fn park(&mut self) {
        if self.pools.iter().all(|pool| pool.parked.len() >= pool.park) {
            return;
        }
        // Slots of all pools are to leave, and those that were lent count where they came from.
        self.settle();
        for pool in 0..self.pools.len() {
            while self.pools[pool].parked.len() < self.pools[pool].park && self.may_park(pool) {
                let Some(slot) = self.free_slot(pool, &[]) else { break };
                if let Slot::Free(buf) = &mut self.slots[slot] {
                    buf.give_back();
                }
                self.pools[pool].parked.push(slot as u32);
            }
        }
    }

    /// False for a pool that has lent so many slots that without another one its next event might have none.
    fn may_park(&self, pool: usize) -> bool {
        let Some(lent) = self.lent(pool) else { return true };
        let n_expert = self.shape.n_expert;
        let pinned = self.kept.pinned[pool * n_expert..][..n_expert].iter().filter(|pinned| **pinned).count();
        self.pools[pool].n_slot > self.pools[pool].parked.len() + lent + pinned + 1
    }
}
