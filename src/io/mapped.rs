//! The file's own pages: each slot is a mapping of just its expert, populated by an I/O thread before anybody touches
//! it, and unmapped when the expert is evicted.
//!
//! One mapping an expert, not one of the whole file: the kernel maps neighbouring cached pages around every fault, and
//! only the end of a mapping stops it. So resident bytes stay what the slots say.
//!
//! A file can shrink, or its drive fail, while its pages are mapped. Then the mapping reads as zeros and says so afterwards
//! ([`Mapping::fault`]); see `bus_error.rs`.

use std::{fs::File, io, sync::Arc};

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::{Mmap, MmapOptions};

#[cfg(unix)]
use super::bus_error::{self, Watched};
use super::{
    Extent, Extents, Files, IoBuf, ReadError, ReadPath,
    buf::{Layout, page_bytes},
};

/// See the module.
pub struct Mapped {
    files: Files,
}

/// The pages of one extent.
pub(super) struct Mapping {
    /// Before `map`: it must not outlive the mapping.
    #[cfg(unix)]
    watched: Watched,
    map: Mmap,
    /// First byte of the extent in `map`.
    skip: usize,
    extent: Extent,
    file: Arc<File>,
}

impl Mapped {
    /// Maps parts of `files`. From then on the process has a handler for bus errors in them; all others go where they went before.
    ///
    /// # Errors
    /// If the system refuses a handler.
    pub fn new(files: Files) -> io::Result<Self> {
        #[cfg(unix)]
        bus_error::install()?;
        Ok(Self { files })
    }
}

impl Mapping {
    fn new(file: Arc<File>, extent: Extent) -> io::Result<Self> {
        let end = extent.offset.saturating_add(extent.len as u64);
        // A mapping past the end of the file would succeed, and then fault.
        if file.metadata()?.len() < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let skip = (extent.offset % page_bytes() as u64) as usize;
        let mut options = MmapOptions::new();
        options.offset(extent.offset - skip as u64).len(skip + extent.len);
        // SAFETY: the mapping is read-only and private to us. The file's owner may still write to it: weights are plain bytes
        // for which every value is valid. Or truncate it: the mapping is watched.
        let map = unsafe { options.map(&*file)? };
        // SAFETY: the mapping starts at a page since its offset does, nobody writes through it, it is unmapped after `watched`
        // is dropped, and any bytes are valid weights.
        #[cfg(unix)]
        let watched = unsafe { Watched::new(map.as_ptr(), map.len()) };
        let mapping = Self {
            #[cfg(unix)]
            watched,
            map,
            skip,
            extent,
            file,
        };
        mapping.populate()?;
        mapping.fault().map_or(Ok(mapping), |e| Err(e.source))
    }

    /// The extent's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.skip..][..self.extent.len]
    }

    /// Why bytes of it were not the file's, if it is so.
    pub fn fault(&self) -> Option<ReadError> {
        #[cfg(unix)]
        if self.watched.is_lost() {
            return Some(ReadError { extent: self.extent, source: self.reason() });
        }
        // Behind a new end of the file its last page has zeros, which are no bus error.
        let cut = self.file.metadata().is_ok_and(|m| m.len() < self.end());
        cut.then(|| ReadError { extent: self.extent, source: io::ErrorKind::UnexpectedEof.into() })
    }

    /// One past its last byte in the file.
    fn end(&self) -> u64 {
        self.extent.offset.saturating_add(self.extent.len as u64)
    }

    /// Brings every page in now. Where the kernel has no `MADV_POPULATE_READ` (Linux before 5.14, other systems), reads one
    /// byte of each page instead.
    fn populate(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        match self.map.advise(Advice::PopulateRead) {
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {}
            // "Bad address" is all that it says of a page that cannot be had.
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::FAULT.raw_os_error()) => return Err(self.reason()),
            result => return result,
        }
        let touched = self.map.iter().step_by(page_bytes()).fold(0u8, |acc, b| acc ^ b);
        std::hint::black_box(touched);
        Ok(())
    }

    /// What the system says to somebody who reads the bytes, for those who only map them are not told.
    #[cfg(unix)]
    fn reason(&self) -> io::Error {
        let mut piece = vec![0; self.extent.len.min(64 << 10)];
        for start in (0..self.extent.len).step_by(piece.len().max(1)) {
            let n = piece.len().min(self.extent.len - start);
            if let Err((_, e)) =
                crate::input::read_full_at(&*self.file, &mut piece[..n], self.extent.offset + start as u64)
            {
                return e;
            }
        }
        io::Error::other("the mapped file shrank, or its drive failed, while it was in use")
    }
}

impl ReadPath for Mapped {
    fn name(&self) -> &'static str {
        "mapped"
    }
    fn layout(&self) -> Layout {
        Layout::Pages
    }
    fn read(&self, extents: &Extents, buf: &mut IoBuf) -> Result<(), ReadError> {
        buf.unmap();
        let mut maps = Vec::with_capacity(extents.len());
        for &extent in extents.iter() {
            let file = self.files[extent.file as usize].1.clone();
            maps.push(Mapping::new(file, extent).map_err(|source| ReadError { extent, source })?);
        }
        buf.remap(maps);
        Ok(())
    }
}
