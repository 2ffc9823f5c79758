//! The memory that a read fills: either our own pages, or the file's.
//!
//! Must not know: what the bytes mean.

use std::sync::Arc;

use memmap2::{Mmap, MmapMut};

use crate::machine::anonymous;

/// Parts start at multiples of this, so that no part's first cache line is shared.
const PART_ALIGN: usize = 64;

/// One expert's bytes, in up to [`super::MAX_EXTENTS`] parts.
pub struct IoBuf {
    memory: Memory,
    /// Where each part starts in its memory, and how long it is.
    parts: Vec<(usize, usize)>,
}

enum Memory {
    /// Anonymous pages, allocated once and filled again and again.
    Owned(Slice),
    /// Mappings of the file, one a part. A mapping starts at a page, so its part may start a little later.
    Mapped(Vec<Mmap>),
}

/// A part of an arena that nobody else has.
struct Slice {
    base: *mut u8,
    len: usize,
    /// Keeps the memory.
    _arena: Arc<MmapMut>,
}

// SAFETY: a slice is the only way to its bytes, as a `Vec` is to its own; the arena is only kept, never used.
unsafe impl Send for Slice {}
// SAFETY: as above; through a shared reference bytes are only read.
unsafe impl Sync for Slice {}

impl std::ops::Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `base` has `len` bytes, initialised by the system, for as long as the arena is kept.
        unsafe { std::slice::from_raw_parts(self.base, self.len) }
    }
}

impl std::ops::DerefMut for Slice {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; slices of an arena are disjoint, and this one is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.len) }
    }
}

/// The bytes that [`IoBuf::owned`] takes for parts of these lengths, page rounding included.
pub fn owned_bytes(parts: &[usize]) -> usize {
    layout(parts).1
}

fn layout(parts: &[usize]) -> (Vec<(usize, usize)>, usize) {
    let mut at = 0;
    let places = parts.iter().map(|&len| {
        let start = at;
        at += len.next_multiple_of(PART_ALIGN);
        (start, len)
    });
    let places = places.collect();
    (places, at.max(1).next_multiple_of(page_bytes()))
}

/// The system's page size in bytes.
pub fn page_bytes() -> usize {
    rustix::param::page_size()
}

impl IoBuf {
    /// Anonymous memory for parts of these lengths. Costs address space only, until it is filled.
    ///
    /// # Errors
    /// If the system refuses it.
    pub fn owned(parts: &[usize]) -> std::io::Result<Self> {
        Ok(Self::owned_many(parts, 1)?.remove(0))
    }

    /// `n` buffers like [`IoBuf::owned`], side by side in one arena.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn owned_many(parts: &[usize], n: usize) -> std::io::Result<Vec<Self>> {
        let (parts, len) = layout(parts);
        let bytes = len.checked_mul(n).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let mut arena = anonymous(bytes)?;
        let base = arena.as_mut_ptr();
        let arena = Arc::new(arena);
        let slice = |i: usize| Slice { base: base.wrapping_add(i * len), len, _arena: arena.clone() };
        Ok((0..n).map(|i| Self { memory: Memory::Owned(slice(i)), parts: parts.clone() }).collect())
    }

    /// A buffer that holds mappings, none yet.
    pub fn unmapped() -> Self {
        Self { memory: Memory::Mapped(Vec::new()), parts: Vec::new() }
    }

    /// Part `i`.
    pub fn part(&self, i: usize) -> &[u8] {
        let (start, len) = self.parts[i];
        match &self.memory {
            Memory::Owned(bytes) => &bytes[start..start + len],
            Memory::Mapped(maps) => &maps[i][start..start + len],
        }
    }

    /// Part `i`, to be filled.
    ///
    /// # Panics
    /// If the buffer holds mappings: those are read-only, and only the mapped engine makes them.
    pub fn part_mut(&mut self, i: usize) -> &mut [u8] {
        let (start, len) = self.parts[i];
        match &mut self.memory {
            Memory::Owned(bytes) => &mut bytes[start..start + len],
            Memory::Mapped(_) => panic!("a mapped buffer is filled by mapping"),
        }
    }

    /// Drops what was mapped and takes `maps`: (mapping, offset of the part in it, length of the part).
    pub(super) fn remap(&mut self, maps: impl IntoIterator<Item = (Mmap, usize, usize)>) {
        let Memory::Mapped(list) = &mut self.memory else { panic!("an owned buffer is not remapped") };
        list.clear();
        self.parts.clear();
        for (map, start, len) in maps {
            self.parts.push((start, len));
            list.push(map);
        }
    }

    /// Gives the pages back to the system. The content is void; the buffer itself can be filled again.
    pub fn give_back(&mut self) {
        match &mut self.memory {
            Memory::Mapped(_) => self.unmap(),
            #[cfg(target_os = "linux")]
            Memory::Owned(bytes) => {
                let (at, len) = (bytes.base.cast(), bytes.len);
                // SAFETY: slices start and end at pages, and this one is borrowed mutably: nobody reads what turns to
                // zeros. Where the system refuses, the pages stay as they are.
                let _ = unsafe { rustix::mm::madvise(at, len, rustix::mm::Advice::LinuxDontNeed) };
            }
            // Elsewhere owned pages stay.
            #[cfg(not(target_os = "linux"))]
            Memory::Owned(_) => {}
        }
    }

    /// Gives mapped pages back to the system. Owned memory stays.
    pub(super) fn unmap(&mut self) {
        if let Memory::Mapped(list) = &mut self.memory {
            list.clear();
            self.parts.clear();
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn memory_given_back_leaves_the_resident_set_and_can_be_filled_again() {
        let len = 256 << 20;
        let mut buf = IoBuf::owned(&[len]).unwrap();
        let held = |buf: &mut IoBuf| {
            buf.part_mut(0).fill(7);
            crate::machine::anonymous_bytes().unwrap()
        };
        let full = held(&mut buf);
        buf.give_back();
        let empty = crate::machine::anonymous_bytes().unwrap();
        // Half: other tests of this process take and free memory meanwhile.
        assert!(empty + (len as u64 / 2) < full, "{full} bytes before, {empty} after");
        assert!(held(&mut buf) > empty + (len as u64 / 2));
        assert_eq!(buf.part(0)[len - 1], 7);
    }
}
