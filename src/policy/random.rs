//! Any resident leaves, by a seeded die: the floor under every policy. For simulation.
//!
//! The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
//! Do not use it to run models: it remembers nothing.

use super::{CachePolicy, CacheShape, residents::Residents};
use crate::id::ExpertId;

/// See the module.
pub struct Random {
    residents: Residents,
    state: u64,
}

impl Random {
    /// For such a cache. The same seed gives the same victims.
    pub fn new(shape: &CacheShape, seed: u64) -> Self {
        Self { residents: Residents::new(shape), state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl CachePolicy for Random {
    fn name(&self) -> &'static str {
        "random"
    }
    fn insert(&mut self, id: ExpertId) {
        self.residents.insert(id);
    }
    fn evict(&mut self, layers: &[u16], keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        // A random place, then the next one that may leave: no resident is asked twice.
        let start = self.next();
        let (keys, shape) = (|| self.residents.keys(layers), self.residents.shape());
        let n = keys().count();
        let from = (start % n.max(1) as u64) as usize;
        let victim = keys().chain(keys()).skip(from).take(n).find(|&key| !keep(shape.id(key)))?;
        let id = shape.id(victim);
        self.residents.remove(victim);
        Some(id)
    }
    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(self.residents.shape().key(id));
    }
}
