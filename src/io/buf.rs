//! The memory that a read fills: either our own pages, or the file's.
//!
//! Where the parts of our own pages begin is fixed for reads through the page cache. Reads past it move whole blocks of
//! the drive, so there a part begins where its first byte lies in its block: the buffer is laid out anew by each read,
//! and nothing is copied.
//!
//! Must not know: what the bytes mean.

use std::sync::Arc;

use memmap2::MmapMut;

use super::{Extent, Extents, MAX_EXTENTS, ReadError, mapped::Mapping};
use crate::machine::{Filled, anonymous};

/// Parts start at multiples of this, so that no part's first cache line is shared.
const PART_ALIGN: usize = 64;

/// How the parts of a buffer lie in memory, which decides what a slot takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One after another, each from a cache line on.
    Lines,
    /// In whole blocks of this many bytes, a power of two no larger than a page: wherever a part starts in the file, the
    /// blocks that it touches have room.
    Blocks(usize),
    /// The file's own pages.
    Pages,
    /// No bytes at all, for a drive that is only simulated.
    Nothing,
}

impl Layout {
    /// Bytes of memory that a slot with parts of these lengths takes, page rounding included.
    pub fn slot_bytes(self, parts: &[usize]) -> u64 {
        let page = page_bytes();
        let bytes = match self {
            // Mapped parts start and end within pages.
            Layout::Nothing => 0,
            Layout::Pages => parts.iter().map(|len| (len.saturating_sub(2) / page + 2) * page).sum(),
            _ => self.places(parts).1,
        };
        bytes as u64
    }

    /// Bytes that a part of `len` needs at most.
    fn room(self, len: usize) -> usize {
        match self {
            Layout::Blocks(block) => widened(block - 1, len, block),
            _ => len.next_multiple_of(PART_ALIGN),
        }
    }

    /// Where parts lie before a read says otherwise, as (start, length), and the bytes of all.
    fn places(self, parts: &[usize]) -> (Vec<(usize, usize)>, usize) {
        let mut at = 0;
        let places = parts.iter().map(|&len| {
            let start = at;
            at += self.room(len);
            (start, len)
        });
        let places = places.collect();
        (places, at.max(1).next_multiple_of(page_bytes()))
    }
}

/// The length of the blocks that hold `len` bytes from `skip` on.
fn widened(skip: usize, len: usize, block: usize) -> usize {
    (skip + len).next_multiple_of(block)
}

fn too_large(read: usize, buffer: usize) -> std::io::Error {
    let text = format!("a read of {read} bytes into a buffer of {buffer}");
    std::io::Error::new(std::io::ErrorKind::InvalidInput, text)
}

/// One piece of a file that a read past the page cache moves: whole blocks, with one extent or several adjacent ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Index of the file.
    pub file: u16,
    /// First byte in the file, a multiple of the block.
    pub offset: u64,
    /// First byte in the buffer's memory, a multiple of the block.
    pub at: usize,
    /// Bytes to ask for, whole blocks.
    pub len: usize,
    /// Bytes that must come; the file may end between these and `len`.
    pub needed: usize,
}

/// The runs of one read.
#[derive(Debug)]
pub(super) struct Runs {
    list: [Run; MAX_EXTENTS],
    n: usize,
}

impl std::ops::Deref for Runs {
    type Target = [Run];
    fn deref(&self) -> &[Run] {
        &self.list[..self.n]
    }
}

impl Run {
    /// The extent of the read that misses bytes when only `got` of this run came.
    pub fn cut(&self, extents: &Extents, got: usize) -> Extent {
        let end = self.offset + got as u64;
        let inside = |e: &&Extent| e.file == self.file && e.offset >= self.offset && e.offset + e.len as u64 > end;
        // The extents of a run follow each other in the read.
        let in_run = |e: &&Extent| e.offset + e.len as u64 <= self.offset + self.needed as u64;
        *extents.iter().filter(in_run).find(inside).unwrap_or(&extents[0])
    }
}

/// One expert's bytes, in up to [`super::MAX_EXTENTS`] parts.
pub struct IoBuf {
    memory: Memory,
    /// Where each part starts in memory of our own, and how long it is.
    parts: Vec<(usize, usize)>,
}

enum Memory {
    /// Anonymous pages, allocated once and filled again and again.
    Owned(Slice),
    /// Mappings of the file, one a part.
    Mapped(Vec<Mapping>),
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

/// The place of a buffer that is memory of our own, which it keeps. Nobody reads or writes by it.
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux can be asked for pages"))]
pub(super) struct Region {
    base: *mut u8,
    len: usize,
    _arena: Arc<MmapMut>,
}

// SAFETY: it only names a place; see `populate`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Gets pages for all of it. What it holds stays.
    ///
    /// # Errors
    /// If the system has no memory left, or no such call.
    #[cfg(target_os = "linux")]
    pub fn populate(&self) -> std::io::Result<()> {
        // SAFETY: the memory is kept, and the call changes no byte that was written, whoever writes meanwhile.
        Ok(unsafe { rustix::mm::madvise(self.base.cast(), self.len, rustix::mm::Advice::LinuxPopulateWrite) }?)
    }

    /// As on Linux, but never there.
    #[cfg(not(target_os = "linux"))]
    pub fn populate(&self) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// Bytes that have pages.
    #[cfg(all(test, target_os = "linux"))]
    pub fn held(&self) -> usize {
        use std::os::unix::fs::FileExt;
        let page = page_bytes();
        let mut entries = vec![0; self.len / page * 8];
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        pagemap.read_exact_at(&mut entries, (self.base as usize / page * 8) as u64).unwrap();
        // Bit 63 of an entry: the page is present.
        entries.as_chunks::<8>().0.iter().filter(|e| u64::from_le_bytes(**e) >> 63 == 1).count() * page
    }
}

/// The system's page size in bytes.
#[cfg(unix)]
pub fn page_bytes() -> usize {
    rustix::param::page_size()
}

/// The system's page size in bytes: Windows has this one on every machine that Rust compiles for.
#[cfg(not(unix))]
pub fn page_bytes() -> usize {
    4096
}

impl IoBuf {
    /// A buffer for parts of these lengths. Costs address space only, until it is filled.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn new(layout: Layout, parts: &[usize]) -> std::io::Result<Self> {
        Ok(Self::many(layout, parts, 1)?.remove(0))
    }

    /// `n` buffers like [`IoBuf::new`], side by side in one arena where they are memory of our own.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn many(layout: Layout, parts: &[usize], n: usize) -> std::io::Result<Vec<Self>> {
        if matches!(layout, Layout::Pages | Layout::Nothing) {
            return Ok((0..n).map(|_| Self::unmapped()).collect());
        }
        let (parts, len) = layout.places(parts);
        let bytes = len.checked_mul(n).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let mut arena = anonymous(bytes, Filled::InParts)?;
        let base = arena.as_mut_ptr();
        let arena = Arc::new(arena);
        let slice = |i: usize| Slice { base: base.wrapping_add(i * len), len, _arena: arena.clone() };
        Ok((0..n).map(|i| Self { memory: Memory::Owned(slice(i)), parts: parts.clone() }).collect())
    }

    /// A buffer that holds mappings, none yet.
    fn unmapped() -> Self {
        Self { memory: Memory::Mapped(Vec::new()), parts: Vec::new() }
    }

    /// Part `i`.
    pub fn part(&self, i: usize) -> &[u8] {
        match &self.memory {
            Memory::Owned(bytes) => {
                let (start, len) = self.parts[i];
                &bytes[start..start + len]
            }
            Memory::Mapped(maps) => maps[i].bytes(),
        }
    }

    /// Why bytes that were read from it may not have been the file's: of a mapping, pages can be lost at any time after it was
    /// made. To be asked by whoever has used them.
    pub fn fault(&self) -> Option<ReadError> {
        match &self.memory {
            Memory::Owned(_) => None,
            Memory::Mapped(maps) => maps.iter().find_map(Mapping::fault),
        }
    }

    /// Whether it is memory of our own, not the file's.
    pub fn is_owned(&self) -> bool {
        matches!(self.memory, Memory::Owned(_))
    }

    /// Part `i`, to be filled.
    ///
    /// # Panics
    /// If the buffer holds mappings: those are read-only, and only the mapped engine makes them.
    pub fn part_mut(&mut self, i: usize) -> &mut [u8] {
        match &mut self.memory {
            Memory::Owned(bytes) => {
                let (start, len) = self.parts[i];
                &mut bytes[start..start + len]
            }
            Memory::Mapped(_) => panic!("a mapped buffer is filled by mapping"),
        }
    }

    /// Lays the parts out for a read of `extents` in whole blocks, adjacent extents together, and says what to read.
    ///
    /// # Errors
    /// Where the extents are larger than the parts that the buffer was made for, or no file is that long.
    pub(super) fn place(&mut self, extents: &Extents, block: usize) -> Result<Runs, ReadError> {
        let Memory::Owned(memory) = &self.memory else { panic!("a mapped buffer is filled by mapping") };
        let mask = block as u64 - 1;
        let mut runs = Runs { list: [Run { file: 0, offset: 0, at: 0, len: 0, needed: 0 }; MAX_EXTENTS], n: 0 };
        let (mut end, mut next) = (None, 0);
        self.parts.clear();
        for &e in extents.iter() {
            let failed = |source| ReadError { extent: e, source };
            // The end of the last block must still be a position in a file.
            let past = e.offset.checked_add(e.len as u64).filter(|&end| end <= i64::MAX as u64 - mask);
            let past = past.ok_or_else(|| failed(std::io::ErrorKind::UnexpectedEof.into()))?;
            if e.len > memory.len {
                return Err(failed(too_large(e.len, memory.len)));
            }
            if end != Some((e.file, e.offset)) {
                let offset = e.offset & !mask;
                runs.list[runs.n] =
                    Run { file: e.file, offset, at: next, len: 0, needed: (e.offset - offset) as usize };
                runs.n += 1;
            }
            let run = &mut runs.list[runs.n - 1];
            self.parts.push((run.at + run.needed, e.len));
            run.needed += e.len;
            run.len = widened(0, run.needed, block);
            next = run.at + run.len;
            if next > memory.len {
                return Err(failed(too_large(next, memory.len)));
            }
            end = Some((e.file, past));
        }
        Ok(runs)
    }

    /// Where it lies, if it is memory of our own.
    pub(super) fn region(&self) -> Option<Region> {
        match &self.memory {
            Memory::Owned(Slice { base, len, _arena }) => {
                Some(Region { base: *base, len: *len, _arena: _arena.clone() })
            }
            Memory::Mapped(_) => None,
        }
    }

    /// Where `len` bytes from `at` on lie in memory of our own, for [`Run::at`]. A pointer, not a reference: other bytes of the
    /// buffer may be with the kernel, which writes to them at any time.
    ///
    /// # Panics
    /// If the buffer does not have them.
    #[cfg(target_os = "linux")]
    pub(super) fn place_of(&self, at: usize, len: usize) -> *mut u8 {
        let Memory::Owned(memory) = &self.memory else { panic!("a mapped buffer is filled by mapping") };
        assert!(at.checked_add(len).is_some_and(|end| end <= memory.len), "{len} bytes at {at} of {}", memory.len);
        memory.base.wrapping_add(at)
    }

    /// Leaves the memory to a kernel that may still write to it, and takes other memory; none where the system has none, so that
    /// the next read into it fails.
    #[cfg(target_os = "linux")]
    pub(super) fn abandon(&mut self) {
        let Memory::Owned(memory) = &mut self.memory else { return };
        std::mem::forget(memory._arena.clone());
        // SAFETY: the arena is never unmapped now, and nobody reads these bytes again; pages that the kernel is writing to are
        // its own until it is done. Where the system refuses, they stay as they are.
        let _ = unsafe { rustix::mm::madvise(memory.base.cast(), memory.len, rustix::mm::Advice::LinuxDontNeed) };
        match anonymous(memory.len, Filled::InParts) {
            Ok(mut arena) => {
                *memory = Slice { base: arena.as_mut_ptr(), len: memory.len, _arena: Arc::new(arena) };
            }
            Err(_) => memory.len = 0,
        }
    }

    /// All memory of our own, for [`Run::at`], while no part of it is with the kernel.
    pub(super) fn memory_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Owned(bytes) => bytes,
            Memory::Mapped(_) => panic!("a mapped buffer is filled by mapping"),
        }
    }

    /// Drops what was mapped and takes `maps`, one a part.
    pub(super) fn remap(&mut self, maps: Vec<Mapping>) {
        let Memory::Mapped(list) = &mut self.memory else { panic!("an owned buffer is not remapped") };
        *list = maps;
    }

    /// Gives the pages back to the system. The content is void; the buffer itself can be filled again.
    pub fn give_back(&mut self) {
        match &mut self.memory {
            Memory::Mapped(_) => self.unmap(),
            #[cfg(target_os = "linux")]
            Memory::Owned(bytes) => {
                let (at, len) = (bytes.base.cast(), bytes.len);
                // A huge page that also has bytes of a neighbour is not freed in part: what was given back of it would stay
                // charged until the kernel, short of memory, comes to split it. This advice makes it do so at once: 300 MiB
                // in slots of 1.2 MiB left their cgroup in 70 ms, and without it not at all.
                // SAFETY: slices start and end at pages, and the call changes no byte.
                let _ = unsafe { rustix::mm::madvise(at, len, rustix::mm::Advice::LinuxCold) };
                // SAFETY: as above, and this slice is borrowed mutably: nobody reads what turns to zeros. Where the system
                // refuses, the pages stay as they are.
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
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn memory_given_back_leaves_the_resident_set_and_can_be_filled_again() {
        let len = 256 << 20;
        let mut buf = IoBuf::new(Layout::Lines, &[len]).unwrap();
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
