//! Positional reads into our own slots, through the page cache.
//!
//! A read of a whole expert reaches the drive as a few large requests, where faults on a mapping reach it as many small
//! ones, each of them waited for (PEER figures: 5–40× apart).

use super::{Extents, Files, IoBuf, ReadError, ReadPath, buf::Layout};
use crate::input::read_full_at;

/// See the module.
pub struct Pread {
    files: Files,
    name: &'static str,
}

impl Pread {
    /// Reads from `files` under the name of an [`super::IoKind`].
    pub fn new(files: Files, name: &'static str) -> Self {
        Self { files, name }
    }
}

impl ReadPath for Pread {
    fn name(&self) -> &'static str {
        self.name
    }
    fn layout(&self) -> Layout {
        Layout::Lines
    }
    fn read(&self, extents: &Extents, buf: &mut IoBuf) -> Result<(), ReadError> {
        for (i, &extent) in extents.iter().enumerate() {
            let part = &mut buf.part_mut(i)[..extent.len];
            read_full_at(&*self.files[extent.file as usize].1, part, extent.offset)
                .map_err(|(_, source)| ReadError { extent, source })?;
        }
        Ok(())
    }
}
