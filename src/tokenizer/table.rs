//! A hash table of ids whose keys lie elsewhere: four bytes a slot instead of a copy of every token.

/// Marks a free slot, and "no token" in the merging loops. No vocabulary is this long.
pub(super) const NONE: u32 = u32::MAX;

/// Open addressing over `u32` ids; the caller hashes and compares.
pub(super) struct IdTable {
    slots: Vec<u32>, // a power of two, at least a quarter of it free
}

impl IdTable {
    /// A table that holds up to `n` ids.
    pub fn with_capacity(n: usize) -> Self {
        Self { slots: vec![NONE; (n * 4 / 3 + 2).next_power_of_two()] }
    }

    /// The id whose key has this hash and satisfies `same`.
    pub fn find(&self, hash: u64, same: impl Fn(u32) -> bool) -> Option<u32> {
        match self.slots[self.slot(hash, same)] {
            NONE => None,
            id => Some(id),
        }
    }

    /// Files `id`, unless an id with the same key is there: then that one is returned.
    pub fn insert(&mut self, hash: u64, id: u32, same: impl Fn(u32) -> bool) -> Option<u32> {
        let slot = self.slot(hash, same);
        match self.slots[slot] {
            NONE => {
                self.slots[slot] = id;
                None
            }
            there => Some(there),
        }
    }

    /// Heap bytes.
    pub fn heap_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u32>()
    }

    /// The slot of the key, or the free slot where it would go.
    fn slot(&self, hash: u64, same: impl Fn(u32) -> bool) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        while self.slots[slot] != NONE && !same(self.slots[slot]) {
            slot = (slot + 1) & mask;
        }
        slot
    }
}
