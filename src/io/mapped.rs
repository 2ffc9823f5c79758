//! The file's own pages: each slot is a mapping of just its expert, populated by an I/O thread before anybody touches
//! it, and unmapped when the expert is evicted.
//!
//! One mapping an expert, not one of the whole file: the kernel maps neighbouring cached pages around every fault, and
//! only the end of a mapping stops it. So resident bytes stay what the slots say.
//!
//! A file that shrinks while its pages are mapped ends in SIGBUS, which no error value can catch. A population that
//! fails is an ordinary error; for the short rest, [`Mapped::new`] installs a handler that prints one sentence and ends
//! the process with status 1.

use std::path::PathBuf;
#[cfg(unix)]
use std::sync::OnceLock;

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::{Mmap, MmapOptions};

use super::{
    Extent, Extents, Files, IoBuf, ReadError, ReadPath,
    buf::{Layout, page_bytes},
};

/// See the module.
pub struct Mapped {
    files: Files,
}

impl Mapped {
    /// Maps parts of `files`.
    pub fn new(files: Files) -> std::io::Result<Self> {
        explain_sigbus(files.iter().map(|(path, _)| path))?;
        Ok(Self { files })
    }

    fn map(&self, extent: Extent) -> std::io::Result<(Mmap, usize, usize)> {
        let file = &self.files[extent.file as usize].1;
        let end = extent.offset.saturating_add(extent.len as u64);
        // A mapping past the end of the file would succeed, and then fault.
        if file.metadata()?.len() < end {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let skip = (extent.offset % page_bytes() as u64) as usize;
        let mut options = MmapOptions::new();
        options.offset(extent.offset - skip as u64).len(skip + extent.len);
        // SAFETY: the mapping is read-only and private to us. The file's owner may still write to it, or truncate it:
        // weights are plain bytes for which every value is valid, and a truncation ends in `explain_sigbus`.
        let map = unsafe { options.map(&**file)? };
        populate(&map)?;
        Ok((map, skip, extent.len))
    }
}

/// Brings every page in now. Where the kernel has no `MADV_POPULATE_READ` (Linux before 5.14, other systems), reads one
/// byte of each page instead.
fn populate(map: &Mmap) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    match map.advise(Advice::PopulateRead) {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {}
        result => return result,
    }
    let touched = map.iter().step_by(page_bytes()).fold(0u8, |acc, b| acc ^ b);
    std::hint::black_box(touched);
    Ok(())
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
            maps.push(self.map(extent).map_err(|source| ReadError { extent, source })?);
        }
        buf.remap(maps);
        Ok(())
    }
}

/// Prepared before any mapping exists, since a signal handler must not allocate.
#[cfg(unix)]
static SIGBUS_MESSAGE: OnceLock<Vec<u8>> = OnceLock::new();

#[cfg(unix)]
fn explain_sigbus<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> std::io::Result<()> {
    let mut installed = Ok(());
    SIGBUS_MESSAGE.get_or_init(|| {
        let names = paths.map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        let text = format!("\nhotset: {names}: a mapped file changed while running: expected its bytes to stay, got a bus error (shrunk, or the drive failed)\n");
        // SAFETY: the handler calls write(2) and _exit(2) only, on memory that was made before it was installed.
        let handler = unsafe {
            signal_hook::low_level::register(signal_hook::consts::SIGBUS, || {
                let text = SIGBUS_MESSAGE.get().map_or(&b"hotset: bus error\n"[..], Vec::as_slice);
                let _ = rustix::io::write(rustix::stdio::stderr(), text);
                signal_hook::low_level::exit(1);
            })
        };
        installed = handler.map(|_| ());
        text.into_bytes()
    });
    installed
}

#[cfg(not(unix))]
fn explain_sigbus<'a>(_: impl Iterator<Item = &'a PathBuf>) -> std::io::Result<()> {
    Ok(())
}
