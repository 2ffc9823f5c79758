//! Reads past the page cache: the drive writes into the slot itself. Linux's `O_DIRECT`, macOS's `F_NOCACHE`, Windows'
//! `FILE_FLAG_NO_BUFFERING`; only the first is tested, the others are known to compile.
//!
//! Through the page cache every byte is copied once, and under a memory limit the kernel has to reclaim a page for each
//! page read. Past it neither happens: 2 to 2.5 times the rate on a cloud disk (`benches/RESULTS.tsv`).
//!
//! The drive moves whole blocks, while GGUF aligns to 32 bytes. Both ends of a read are widened to blocks and the slot is
//! laid out so that the blocks have room ([`IoBuf::place`]); adjacent extents become one read.
//!
//! Must not know: experts.

use std::{fs::File, io, path::Path, sync::Arc};

use super::{
    Extents, Files, IoBuf, ReadError, ReadPath,
    buf::{Layout, Run, page_bytes},
};
use crate::input::ReadAt;

/// Files opened past the page cache, and the block that all of them take.
#[derive(Clone)]
pub struct DirectFiles {
    pub(super) files: Arc<[File]>,
    pub(super) block: usize,
}

impl DirectFiles {
    /// Opens `files` once more. The trial read tells what no flag does: some file systems let the file be opened and then
    /// refuse to read.
    ///
    /// # Errors
    /// Names the file that cannot be read this way.
    pub fn open(files: &Files) -> io::Result<Self> {
        let (mut list, mut largest) = (Vec::with_capacity(files.len()), 1);
        for (path, file) in files.iter() {
            let failed =
                |e: io::Error| io::Error::new(e.kind(), format!("past the page cache on {}: {e}", path.display()));
            let direct = reopen(path, file).map_err(failed)?;
            largest = block_of(&direct).map_err(failed)?.max(largest);
            list.push(direct);
        }
        Ok(Self { files: list.into(), block: largest })
    }

    /// How buffers are laid out.
    pub fn layout(&self) -> Layout {
        Layout::Blocks(self.block)
    }
}

/// The same file, past the page cache. By descriptor, since the path may lead to another file by now.
#[cfg(target_os = "linux")]
fn reopen(_: &Path, file: &File) -> io::Result<File> {
    use std::os::{fd::AsRawFd, unix::fs::OpenOptionsExt};
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// The same file, past the page cache. Opened anew, since a copy of a descriptor shares its flags.
#[cfg(target_vendor = "apple")]
fn reopen(path: &Path, file: &File) -> io::Result<File> {
    use std::os::unix::fs::MetadataExt;
    let direct = File::open(path)?;
    is_same(&direct, file, |m| (m.dev(), m.ino()))?;
    rustix::fs::fcntl_nocache(&direct, true)?;
    Ok(direct)
}

/// The same file, past the page cache.
#[cfg(windows)]
fn reopen(path: &Path, file: &File) -> io::Result<File> {
    use std::os::windows::fs::{MetadataExt, OpenOptionsExt};
    const FILE_FLAG_NO_BUFFERING: u32 = 0x2000_0000;
    let direct = std::fs::OpenOptions::new().read(true).custom_flags(FILE_FLAG_NO_BUFFERING).open(path)?;
    is_same(&direct, file, |m| (m.creation_time(), m.last_write_time(), m.file_size()))?;
    Ok(direct)
}

/// The path may lead to another file by now.
#[cfg(any(target_vendor = "apple", windows))]
fn is_same<T: PartialEq>(a: &File, b: &File, place: fn(&std::fs::Metadata) -> T) -> io::Result<()> {
    if place(&a.metadata()?) == place(&b.metadata()?) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "another file is at its path by now"))
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple", windows)))]
fn reopen(_: &Path, _: &File) -> io::Result<File> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "not known on this system"))
}

/// The smallest block in which the file can be read: what the system says (Linux 6.1), or what a trial shows.
fn block_of(file: &File) -> io::Result<usize> {
    let told = told_block(file);
    let mut error = io::ErrorKind::Unsupported.into();
    for block in told.map_or(vec![512, 4096], |b| vec![b]).into_iter().filter(|&b| b <= page_bytes()) {
        // At an address and an offset that are multiples of no more than the block. An empty file shows nothing and has nothing.
        let extent = super::Extent { file: 0, offset: block as u64, len: 1 };
        let mut buf = IoBuf::new(Layout::Blocks(block), &[1, 1])?;
        let runs = buf.place(&Extents::new(&[extent]), block).map_err(|e| e.source)?;
        let run = Run { at: block, ..runs[0] };
        match read_run(file, &run, block, buf.memory_mut()) {
            Ok(()) => return Ok(block),
            Err((_, e)) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(block),
            Err((_, e)) => error = e,
        }
    }
    Err(error)
}

#[cfg(target_os = "linux")]
fn told_block(file: &File) -> Option<usize> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    /// Not in rustix yet.
    const DIOALIGN: StatxFlags = StatxFlags::from_bits_retain(0x2000);
    let stat = statx(file, "", AtFlags::EMPTY_PATH, DIOALIGN).ok()?;
    let told = stat.stx_mask & DIOALIGN.bits() != 0 && stat.stx_dio_offset_align > 0;
    let block = stat.stx_dio_offset_align.max(stat.stx_dio_mem_align) as usize;
    (told && block.is_power_of_two()).then_some(block)
}

#[cfg(not(target_os = "linux"))]
fn told_block(_: &File) -> Option<usize> {
    None
}

/// Fills the run's place in `memory`. On an error, also says how many bytes came.
fn read_run(file: &File, run: &Run, block: usize, memory: &mut [u8]) -> Result<(), (usize, io::Error)> {
    let to = &mut memory[run.at..run.at + run.len];
    let mut got = 0;
    while got < run.needed {
        let end = || io::ErrorKind::UnexpectedEof.into();
        match file.read_at(&mut to[got..], run.offset + got as u64) {
            Ok(0) => return Err((got, end())),
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err((got, e)),
        }
        // A read that stops within a block has met the end of the file.
        if got < run.needed && got % block != 0 {
            return Err((got, end()));
        }
    }
    Ok(())
}

/// See the module.
pub struct Direct {
    files: DirectFiles,
}

impl Direct {
    /// Reads from `files`.
    pub fn new(files: DirectFiles) -> Self {
        Self { files }
    }
}

impl ReadPath for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }
    fn layout(&self) -> Layout {
        self.files.layout()
    }
    fn read(&self, extents: &Extents, buf: &mut IoBuf) -> Result<(), ReadError> {
        let block = self.files.block;
        let runs = buf.place(extents, block)?;
        for run in runs.iter() {
            let file = &self.files.files[run.file as usize];
            read_run(file, run, block, buf.memory_mut())
                .map_err(|(got, source)| ReadError { extent: run.cut(extents, got), source })?;
        }
        Ok(())
    }
}
