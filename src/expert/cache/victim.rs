//! Whose slot a newcomer gets.
//!
//! While tokens are decoded, the policy's victim may be any resident of the pool. A prompt's chunk wants nearly all experts of
//! one layer after another, as a loop does, and the layers that it is through with would always look the least valuable: one
//! pool for all layers would then hold the last layers' experts at the end of each chunk and hit little in the next. So in a
//! prompt a layer that holds its share of the pool makes room among its own residents, and one that holds less takes from
//! those that hold more. One pool hits in prompts as slots for each layer do.

use super::{ExpertCache, Phase};
use crate::id::ExpertId;

/// Slots that a prompt's layer may take from others whatever its share: so many reads keep a drive busy.
const READS: usize = 8;

impl ExpertCache {
    /// A slot for a wanted expert. `None` if all are in use.
    pub(super) fn slot_for(&mut self, id: ExpertId) -> Option<usize> {
        if self.phase == Phase::Decode || self.pools[self.pool_of(id)].layers.len() == 1 {
            return self.free_slot(self.pool_of(id), &[]);
        }
        self.free_slot_in_prompt(id.layer)
    }

    /// A slot of the pool: a free one, or that of the policy's victim. `None` if all are in use.
    pub(super) fn free_slot(&mut self, pool: usize, also_keep: &[ExpertId]) -> Option<usize> {
        let free = self.pools[pool].free.pop().map(|slot| slot as usize);
        free.or_else(|| {
            let layers = std::mem::take(&mut self.pools[pool].layers);
            let slot = self.evict(&layers, also_keep);
            self.pools[pool].layers = layers;
            slot
        })
    }

    /// The same for a prompt's expert, in a pool of several layers.
    fn free_slot_in_prompt(&mut self, layer: u16) -> Option<usize> {
        let pool = self.shape.pool(layer);
        if let Some(free) = self.pools[pool].free.pop() {
            return Some(free as usize);
        }
        let held = self.held[usize::from(layer)];
        if held >= self.share(layer).max(READS) {
            return self.evict(&[layer], &[]);
        }
        let slot = self.slot_of_the_rich(layer).or_else(|| self.evict(&[layer], &[]));
        // With fewer slots than layers nobody need be rich.
        slot.or_else(|| if held == 0 { self.free_slot(self.shape.pool(layer), &[]) } else { None })
    }

    /// Slots of a layer where its pool is shared out evenly, 1 at least.
    pub(super) fn share(&self, layer: u16) -> usize {
        let pool = &self.pools[self.shape.pool(layer)];
        ((pool.n_slot - pool.parked.len()) / pool.layers.len()).max(1)
    }

    /// The slot of the policy's victim among the layers of the same pool that hold more than their share.
    pub(super) fn slot_of_the_rich(&mut self, poor: u16) -> Option<usize> {
        let share = self.share(poor);
        let mut rich = std::mem::take(&mut self.rich);
        rich.clear();
        let layers = self.pools[self.shape.pool(poor)].layers.iter();
        rich.extend(layers.filter(|&&layer| layer != poor && self.held[usize::from(layer)] > share));
        let slot = self.evict(&rich, &[]);
        self.rich = rich;
        slot
    }

    /// The slot of the policy's victim among the layers: one that another memory holds too, if there is one.
    pub(super) fn evict(&mut self, layers: &[u16], also_keep: &[ExpertId]) -> Option<usize> {
        let pinned = &self.kept.pinned;
        let keep = super::keep(&self.slots, &self.index, &self.wanted, pinned, self.shape.n_expert, also_keep);
        let elsewhere = &self.elsewhere;
        let (policy, shape) = (&mut self.policy, &self.shape);
        let double = |id: ExpertId| elsewhere.is(shape.key(id)) && !keep(id);
        let twice_held = if elsewhere.any() { policy.evict(layers, &|id| !double(id)) } else { None };
        let victim = twice_held.or_else(|| policy.evict(layers, &keep));
        drop(keep);
        let victim = victim?;
        self.stats.evictions += 1;
        Some(self.vacate(victim))
    }
}
