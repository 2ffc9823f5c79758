//! Positional reads into our own slots, through the page cache.
//!
//! A read of a whole expert reaches the drive as a few large requests, where faults on a mapping reach it as many small
//! ones, each of them waited for (PEER figures: 5–40× apart).

use super::{Extents, Files, IoBuf, ReadError, ReadPath, buf::Layout};

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
            read_exact_at(&self.files[extent.file as usize].1, part, extent.offset)
                .map_err(|source| ReadError { extent, source })?;
        }
        Ok(())
    }
}

/// Fills `buf` from `offset`; `UnexpectedEof` if the file ends first. Interrupted and short reads are continued.
#[cfg(unix)]
fn read_exact_at(file: &std::fs::File, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &std::fs::File, mut buf: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buf.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buf, offset) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
