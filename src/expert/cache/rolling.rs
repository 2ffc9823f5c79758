//! Reading ahead of a long prompt, into slots that roll with it from layer to layer.
//!
//! A chunk of hundreds of tokens wants nearly every expert of every layer, but while attention runs no layer has a free
//! slot: its residents are all wanted too. The residents of the layer *behind* are not, until the next chunk. So a layer
//! that is through lends its least valuable slots to the next one, whose absent experts are read into them meanwhile, and
//! that one hands them on. After the last layer they are back at the first: only that one has lost residents, and gets
//! its most wanted ones again, for decoding as for the next chunk. Where the model's last layer runs over few tokens, the one
//! before it counts as the last here.
//!
//! In one pool for all layers nothing has to be lent: the layers that hold more than their share make room.
//!
//! Layers whose experts differ in size cannot lend to each other, so such a model reads nothing ahead.

use std::cmp::Reverse;

use super::{Cause, ExpertCache, ExpertStore, NONE};
use crate::{
    id::ExpertId,
    trace::{LayerEvent, Phase},
};

/// Share of the slots of the layer that lends first: half of them.
const SHARE: usize = 2;

/// Slots that roll, at most: 42 MB of Qwen3-30B's experts, what a drive of 2 GB/s reads in the 20 ms that attention over 512
/// tokens takes on two cores; and 48 reads, which fit a ring.
const MOST: usize = 16;

/// A chunk wants nearly all experts if it makes so many choices for each: chance then leaves out e⁻³, a twentieth.
const CHOICES: usize = 3;

/// What rolls, and what is known of the layers ahead.
pub(super) struct Rolling {
    /// Whether slots fit every layer.
    fits: bool,
    /// Whether all layers have one pool.
    one_pool: bool,
    /// Layers that chunks go through, from the first on: all, or all but the last.
    n_layer: usize,
    /// Slots that each layer has borrowed; below zero: lent. (n_moe_layer)
    borrowed: Vec<isize>,
    /// The layer that is computing, if it does so for a chunk that wants nearly all experts.
    layer: Option<u16>,
    /// Rows that wanted each expert in the last such chunk. (n_moe_layer, n_expert)
    rows: Vec<u32>,
    /// Absent experts of the next layer, the most wanted first. (n_expert)
    absent: Vec<u16>,
}

impl Rolling {
    /// For layers with such pools. (n_moe_layer)
    pub(super) fn new(store: &ExpertStore, pool_of: &[usize]) -> Self {
        let n_layer = store.layers().len();
        let parts = |layer| store.slot_parts(layer..layer + 1);
        let one_pool = pool_of.iter().all(|&pool| pool == 0);
        let alone = pool_of.iter().enumerate().all(|(layer, &pool)| pool == layer);
        let fits = one_pool || alone && (1..n_layer).all(|l| parts(l) == parts(0));
        Self {
            fits: fits && n_layer > 1,
            one_pool,
            n_layer,
            borrowed: vec![0; n_layer],
            layer: None,
            rows: vec![0; n_layer * store.n_expert()],
            absent: Vec::with_capacity(store.n_expert()),
        }
    }
}

/// True of a chunk that wants nearly all of `n_expert` experts of every layer.
pub(super) fn wants_all(event: LayerEvent<'_>, n_expert: usize) -> bool {
    event.phase == Phase::Prompt && event.routed.len() >= CHOICES * n_expert
}

impl ExpertCache {
    /// Takes note of a long prompt's event; at any other, what rolls goes home.
    pub(super) fn before_rolling(&mut self, event: LayerEvent<'_>) {
        let n_expert = self.shape.n_expert;
        let long = wants_all(event, n_expert);
        let rolls = long && self.rolling.fits && usize::from(event.layer) < self.rolling.n_layer;
        self.rolling.layer = rolls.then_some(event.layer);
        if !long {
            return self.settle();
        }
        let first = usize::from(event.layer) * n_expert;
        let rows = &mut self.rolling.rows[first..first + n_expert];
        rows.fill(0);
        event.routed.iter().for_each(|r| rows[usize::from(r.id.expert)] += 1);
    }

    /// From now on, the last layer runs over few tokens of a prompt: nothing is read ahead for it.
    pub fn read_ahead_but_for_last(&mut self) {
        self.rolling.n_layer = self.shape.n_layer().saturating_sub(1);
        self.rolling.fits &= self.rolling.n_layer > 1;
    }

    /// To be called when a layer's experts have all been computed: in a long prompt, lends slots to the next layer and
    /// starts to fill them. Never blocks.
    pub fn read_ahead(&mut self) {
        let Some(layer) = self.rolling.layer.take() else { return };
        let n_layer = self.shape.n_layer();
        let next = (usize::from(layer) + 1) % self.rolling.n_layer;
        if self.rolling.one_pool {
            return self.read_ahead_in_one_pool(layer, next as u16);
        }
        if self.rolling.borrowed.iter().all(|&n| n == 0) {
            let (pool, n_expert) = (&self.pools[usize::from(layer)], self.shape.n_expert);
            let pinned = self.kept.pinned[usize::from(layer) * n_expert..][..n_expert].iter().filter(|p| **p).count();
            let movable = (pool.n_slot - pool.parked.len().max(pool.park)).saturating_sub(pinned);
            self.lend(layer.into(), next, (movable / SHARE).min(MOST));
        }
        for from in (0..n_layer).filter(|&l| l != next) {
            self.lend(from, next, usize::try_from(self.rolling.borrowed[from]).unwrap_or(0));
        }
        self.load_ahead(next as u16, usize::MAX, |cache| cache.pools[next].free.pop().map(|slot| slot as usize));
    }

    /// The same where all layers have one pool.
    fn read_ahead_in_one_pool(&mut self, layer: u16, next: u16) {
        let (n_expert, share) = (self.shape.n_expert, self.share(next));
        let pinned = self.kept.pinned[usize::from(layer) * n_expert..][..n_expert].iter().filter(|p| **p).count();
        let movable = self.held[usize::from(layer)].min(share).saturating_sub(pinned);
        self.load_ahead(next, (movable / SHARE).min(MOST), |cache| {
            let free = cache.pools[0].free.pop().map(|slot| slot as usize);
            free.or_else(|| cache.slot_of_the_rich(next)).or_else(|| cache.evict(&[layer], &[]))
        });
    }

    /// Reads up to `most` absent experts of the next layer, the most wanted first, as far as there is room.
    fn load_ahead(&mut self, next: u16, most: usize, room: impl Fn(&mut Self) -> Option<usize>) {
        let n_expert = self.shape.n_expert;
        let first = usize::from(next) * n_expert;
        let (index, rows) = (&self.index[first..], &self.rolling.rows[first..first + n_expert]);
        let known = rows.iter().any(|&n| n > 0);
        let mut absent = std::mem::take(&mut self.rolling.absent);
        absent.clear();
        absent.extend(
            (0..n_expert as u16).filter(|&e| index[usize::from(e)] == NONE && (!known || rows[usize::from(e)] > 0)),
        );
        absent.sort_unstable_by_key(|&e| (Reverse(rows[usize::from(e)]), e));
        for &expert in absent.iter().take(most) {
            let Some(slot) = room(self) else { break };
            self.stats.prefetches += 1;
            self.load(slot, ExpertId { layer: next, expert }, Cause::Ahead);
        }
        self.rolling.absent = absent;
    }

    /// Moves up to `n` slots from layer to layer, those of the least valuable residents. Fewer, if reads are in flight into
    /// most of them: after an error, and only until the next call.
    fn lend(&mut self, from: usize, to: usize, n: usize) {
        for _ in 0..n {
            let Some(slot) = self.free_slot(from, &[]) else { return };
            self.pools[to].free.push(slot as u32);
            self.rolling.borrowed[from] -= 1;
            self.rolling.borrowed[to] += 1;
        }
    }

    /// Slots that a layer has lent, if it has.
    pub(super) fn lent(&self, layer: usize) -> Option<usize> {
        usize::try_from(-self.rolling.borrowed[layer]).ok().filter(|&n| n > 0)
    }

    /// Gives every layer its own number of slots back, as far as they are not in use.
    pub(super) fn settle(&mut self) {
        let n_layer = self.rolling.borrowed.len();
        while let Some(to) = (0..n_layer).find(|&l| self.rolling.borrowed[l] < 0) {
            let before = self.rolling.borrowed[to];
            for from in 0..n_layer {
                let n = self.rolling.borrowed[from].min(-self.rolling.borrowed[to]);
                self.lend(from, to, usize::try_from(n).unwrap_or(0));
            }
            if self.rolling.borrowed[to] == before {
                return;
            }
        }
    }
}
