//! The residents of a cache as a dense list for each layer, and the search for the least valuable: what all policies
//! share.
//!
//! A search looks at every resident: 20 ns for the 32 slots of a layer, some microseconds for thousands in one global
//! pool, before a read that takes a hundred. A heap would have to be repaired at each of the far more frequent uses.
//!
//! Must not know: values; those are the policies'.

use super::CacheShape;
use crate::id::ExpertId;

const ABSENT: u32 = u32::MAX;

/// See the module. Experts go by their [`CacheShape::key`].
pub struct Residents {
    shape: CacheShape,
    /// (n_moe_layer, residents of the layer)
    lists: Vec<Vec<u32>>,
    /// Place of each expert in its layer's list, or [`ABSENT`]. (n_moe_layer, n_expert)
    at: Vec<u32>,
}

impl Residents {
    /// None yet, with room for all.
    pub fn new(shape: &CacheShape) -> Self {
        let lists = (0..shape.n_layer()).map(|_| Vec::with_capacity(shape.n_expert)).collect();
        Self { shape: shape.clone(), lists, at: vec![ABSENT; shape.experts()] }
    }
    /// The cache.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }
    /// The residents of some layers, in no order.
    pub fn keys(&self, layers: &[u16]) -> impl Iterator<Item = usize> {
        layers.iter().flat_map(|&layer| &self.lists[usize::from(layer)]).map(|&key| key as usize)
    }
    /// Adds one, if absent.
    pub fn insert(&mut self, id: ExpertId) -> usize {
        let key = self.shape.key(id);
        let list = &mut self.lists[usize::from(id.layer)];
        if self.at[key] == ABSENT {
            self.at[key] = list.len() as u32;
            list.push(key as u32);
        }
        key
    }
    /// Takes one out, if there.
    pub fn remove(&mut self, key: usize) {
        let at = std::mem::replace(&mut self.at[key], ABSENT);
        let list = &mut self.lists[key / self.shape.n_expert];
        if at != ABSENT {
            list.swap_remove(at as usize);
            if let Some(&moved) = list.get(at as usize) {
                self.at[moved as usize] = at;
            }
        }
    }
    /// The one of the layers with the smallest value that need not be kept. Of equal ones the first in the lists.
    pub fn least<V: PartialOrd>(
        &self,
        layers: &[u16],
        keep: &dyn Fn(ExpertId) -> bool,
        value: impl Fn(usize) -> V,
    ) -> Option<(usize, V)> {
        let mut least: Option<(usize, V)> = None;
        for key in self.keys(layers) {
            let v = value(key);
            // `keep` costs more than a comparison, so it is asked last.
            if least.as_ref().is_none_or(|(_, l)| v < *l) && !keep(self.shape.id(key)) {
                least = Some((key, v));
            }
        }
        least
    }
    /// Takes that one out.
    pub fn evict<V: PartialOrd>(
        &mut self,
        layers: &[u16],
        keep: &dyn Fn(ExpertId) -> bool,
        value: impl Fn(usize) -> V,
    ) -> Option<ExpertId> {
        let (key, _) = self.least(layers, keep, value)?;
        self.remove(key);
        Some(self.shape.id(key))
    }
}
