//! The residents of a pool as a dense list, and the search for the least valuable: what all policies but LRU share.
//!
//! A search looks at every resident: 20 ns for the 32 slots of a layer, some microseconds for thousands in one global
//! pool, before a read that takes a hundred. A heap would have to be repaired at each of the far more frequent uses.
//!
//! Must not know: values; those are the policies'.

use super::PoolShape;
use crate::id::ExpertId;

const ABSENT: u32 = u32::MAX;

/// See the module. Experts go by their [`PoolShape::key`].
pub struct Residents {
    shape: PoolShape,
    list: Vec<u32>,
    /// Place of each expert in `list`, or [`ABSENT`]. (experts of the pool)
    at: Vec<u32>,
}

impl Residents {
    /// None yet, with room for all.
    pub fn new(shape: &PoolShape) -> Self {
        let n = shape.experts();
        Self { shape: shape.clone(), list: Vec::with_capacity(n), at: vec![ABSENT; n] }
    }
    /// The pool.
    pub fn shape(&self) -> &PoolShape {
        &self.shape
    }
    /// The residents, in no order.
    pub fn keys(&self) -> &[u32] {
        &self.list
    }
    /// Adds one, if absent.
    pub fn insert(&mut self, id: ExpertId) -> usize {
        let key = self.shape.key(id);
        if self.at[key] == ABSENT {
            self.at[key] = self.list.len() as u32;
            self.list.push(key as u32);
        }
        key
    }
    /// Takes one out, if there.
    pub fn remove(&mut self, key: usize) {
        let at = std::mem::replace(&mut self.at[key], ABSENT);
        if at != ABSENT {
            self.list.swap_remove(at as usize);
            if let Some(&moved) = self.list.get(at as usize) {
                self.at[moved as usize] = at;
            }
        }
    }
    /// Takes out the one with the smallest value that need not be kept. Of equal ones the first in the list.
    pub fn evict<V: PartialOrd>(
        &mut self,
        keep: &dyn Fn(ExpertId) -> bool,
        value: impl Fn(usize) -> V,
    ) -> Option<usize> {
        let mut least: Option<(usize, V)> = None;
        for &key in &self.list {
            let v = value(key as usize);
            // `keep` costs more than a comparison, so it is asked last.
            if least.as_ref().is_none_or(|(_, l)| v < *l) && !keep(self.shape.id(key as usize)) {
                least = Some((key as usize, v));
            }
        }
        let (key, _) = least?;
        self.remove(key);
        Some(key)
    }
}
