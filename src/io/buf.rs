//! The memory that a read fills: either our own pages, or the file's.
//!
//! Must not know: what the bytes mean.

use memmap2::{Mmap, MmapMut};

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
    Owned(MmapMut),
    /// Mappings of the file, one a part. A mapping starts at a page, so its part may start a little later.
    Mapped(Vec<Mmap>),
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
    pub fn owned(parts: &[usize]) -> std::io::Result<Self> {
        let (parts, bytes) = layout(parts);
        Ok(Self { memory: Memory::Owned(MmapMut::map_anon(bytes)?), parts })
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

    /// Gives mapped pages back to the system. Owned memory stays.
    pub(super) fn unmap(&mut self) {
        if let Memory::Mapped(list) = &mut self.memory {
            list.clear();
            self.parts.clear();
        }
    }
}
