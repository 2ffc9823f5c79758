//! Which experts a device holds: slots of its memory for each layer, and the policy that chooses who gets them.
//!
//! An event's experts that have a slot are computed on the device. Of the others, those that are worth more than the least of the
//! layer's residents are copied up once they are in memory, a few an event; they count as residents from the layer's next event
//! on. All of it depends on the requests alone, not on time.
//!
//! Must not know: bytes, devices, arithmetic.

use super::ExpertCache;
use crate::{
    id::ExpertId,
    policy::{CachePolicy, CacheShape, PolicyKind},
    trace::LayerEvent,
};

/// Experts that one event copies up at most: a copy is paid for by the token that makes it.
const PROMOTIONS: usize = 2;

const NONE: u32 = u32::MAX;

/// Counters since the start. An expert counts once an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VramStats {
    /// Experts that were computed on the device.
    pub hit: u64,
    /// Experts that were not, in events that the device takes part in.
    pub miss: u64,
    /// Experts that were copied up.
    pub uploads: u64,
    /// Experts that lost their slot to another.
    pub evictions: u64,
}

impl VramStats {
    /// What was counted after `before`.
    pub fn since(&self, before: &VramStats) -> VramStats {
        VramStats {
            hit: self.hit - before.hit,
            miss: self.miss - before.miss,
            uploads: self.uploads - before.uploads,
            evictions: self.evictions - before.evictions,
        }
    }

    /// hit / (hit + miss); `None` where nothing was wanted.
    pub fn hit_rate(&self) -> Option<f64> {
        let all = self.hit + self.miss;
        (all > 0).then(|| self.hit as f64 / all as f64)
    }
}

/// See the module.
pub struct DeviceSlots {
    shape: CacheShape,
    policy: Box<dyn CachePolicy>,
    /// Rows of an event that the device takes part in, at most.
    max_rows: usize,
    /// (n_moe_layer, n_expert)
    slots: Vec<u32>,
    /// Of each layer. (n_moe_layer, any)
    free: Vec<Vec<u32>>,
    /// Distinct experts of the event that are on the device.
    hits: Vec<ExpertId>,
    /// To be copied up.
    promotions: Vec<ExpertId>,
    stats: VramStats,
}

impl DeviceSlots {
    /// `slots[i]` slots for MoE layer `i`, of experts by `n_expert`; events of more than `max_rows` rows are none of theirs.
    pub fn new(slots: &[usize], n_expert: usize, policy: PolicyKind, max_rows: usize) -> Self {
        let shape = CacheShape { n_expert, pool_of: (0..slots.len()).collect(), slots: slots.to_vec() };
        Self {
            policy: policy.build(&shape),
            max_rows,
            slots: vec![NONE; shape.experts()],
            // Popped from the end: slot 0 first.
            free: slots.iter().map(|&n| (0..n as u32).rev().collect()).collect(),
            hits: Vec::with_capacity(n_expert),
            promotions: Vec::with_capacity(PROMOTIONS),
            stats: VramStats::default(),
            shape,
        }
    }

    /// Slots of each MoE layer.
    pub fn by_layer(&self) -> &[usize] {
        &self.shape.slots
    }

    /// Slots of all layers.
    pub fn n_slot(&self) -> usize {
        self.shape.slots.iter().sum()
    }

    /// What was counted.
    pub fn stats(&self) -> &VramStats {
        &self.stats
    }

    /// The expert's slot in its layer, if it has one.
    pub fn slot(&self, id: ExpertId) -> Option<u32> {
        Some(self.slots[self.shape.key(id)]).filter(|&slot| slot != NONE)
    }

    /// The distinct experts of the last event that are computed on the device.
    pub fn hits(&self) -> &[ExpertId] {
        &self.hits
    }

    fn takes_part(&self, event: LayerEvent<'_>) -> bool {
        event.n_tokens as usize <= self.max_rows
    }

    /// Finds what the event wants that is on the device.
    pub(super) fn find(&mut self, event: LayerEvent<'_>) {
        self.hits.clear();
        // What the last event chose and did not copy, because it failed.
        while let Some(id) = self.promotions.pop() {
            self.policy.remove(id);
            self.release(id);
        }
        if self.takes_part(event) {
            for r in event.routed {
                if self.slot(r.id).is_some() && !self.hits.contains(&r.id) {
                    self.hits.push(r.id);
                }
            }
        }
        self.stats.hit += self.hits.len() as u64;
    }

    /// Tells the policy of the event, and chooses who is copied up.
    pub(super) fn choose(&mut self, event: LayerEvent<'_>, cache: &mut ExpertCache) {
        self.policy.observe(event, cache.retrieval());
        if !self.takes_part(event) {
            return;
        }
        for (i, r) in event.routed.iter().enumerate() {
            if event.routed[..i].iter().any(|before| before.id == r.id) {
                continue;
            }
            if self.hits.contains(&r.id) {
                self.policy.touch(*r);
                continue;
            }
            self.stats.miss += 1;
            if self.promotions.len() < PROMOTIONS
                && let Some(slot) = self.room_for(r.id, cache)
            {
                let key = self.shape.key(r.id);
                self.slots[key] = slot;
                self.policy.insert(r.id);
                self.policy.touch(*r);
                self.promotions.push(r.id);
            }
        }
    }

    /// A slot for an expert: a free one, or that of a resident which is worth less.
    fn room_for(&mut self, id: ExpertId, cache: &mut ExpertCache) -> Option<u32> {
        if let Some(slot) = self.free[usize::from(id.layer)].pop() {
            return Some(slot);
        }
        let (hits, promotions) = (&self.hits, &self.promotions);
        let victim = self.policy.evict(&[id.layer], &|id| hits.contains(&id) || promotions.contains(&id))?;
        let (new, old) = (self.policy.value(id), self.policy.value(victim));
        // A policy that knows of residents alone values all others alike: at nothing.
        if new <= old && new != 0.0 {
            self.policy.insert(victim);
            return None;
        }
        self.stats.evictions += 1;
        cache.set_elsewhere(victim, false);
        self.release(victim);
        self.free[usize::from(id.layer)].pop()
    }

    fn release(&mut self, id: ExpertId) {
        let key = self.shape.key(id);
        let slot = std::mem::replace(&mut self.slots[key], NONE);
        self.free[usize::from(id.layer)].push(slot);
    }

    /// The slot of an expert that is to be copied up, once.
    pub(super) fn take_promotion(&mut self, id: ExpertId) -> Option<u32> {
        let at = self.promotions.iter().position(|p| *p == id)?;
        self.promotions.swap_remove(at);
        self.stats.uploads += 1;
        self.slot(id)
    }
}
