//! Reading experts from files, in the background. An engine takes reads with their buffers and gives both back.
//!
//! Must not know: experts, slots, policies. It is told which bytes of which file go into which buffer.

use std::{fs::File, path::PathBuf, sync::Arc};

pub mod buf;
#[cfg(unix)]
mod bus_error;
mod direct;
mod engine;
mod mapped;
mod pread;
pub mod probe;
mod sim;
mod touch;
#[cfg(target_os = "linux")]
mod uring;

pub use buf::{IoBuf, Layout};
pub use direct::{Direct, DirectFiles};
pub use engine::{MAX_DEPTH, ReadPath, ThreadEngine};
pub use mapped::Mapped;
pub use pread::Pread;
pub use probe::{Limits, Rate, Rates, probe};
pub use sim::{SimClock, SimIo};
pub use touch::Toucher;
#[cfg(target_os = "linux")]
pub use uring::Uring;

/// The files that extents point into, by index, with their paths for messages.
pub type Files = Arc<[(PathBuf, Arc<File>)]>;

/// A range of bytes in one of the [`Files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Index into [`Files`].
    pub file: u16,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: usize,
}

/// The most extents that one read gathers: gate, up and down of an expert in a plain GGUF.
pub const MAX_EXTENTS: usize = 3;

/// What one read gathers, in the order of the buffer's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    list: [Extent; MAX_EXTENTS],
    n: u8,
}

impl Extents {
    /// From one to [`MAX_EXTENTS`] extents.
    pub fn new(extents: &[Extent]) -> Self {
        assert!((1..=MAX_EXTENTS).contains(&extents.len()), "an expert lies in 1 to {MAX_EXTENTS} places");
        let mut list = [extents[0]; MAX_EXTENTS];
        list[..extents.len()].copy_from_slice(extents);
        Self { list, n: extents.len() as u8 }
    }
    /// The sum of the lengths.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|e| e.len as u64).sum()
    }
}

impl std::ops::Deref for Extents {
    type Target = [Extent];
    fn deref(&self) -> &[Extent] {
        &self.list[..self.n as usize]
    }
}

/// Demand reads go before all prefetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for it.
    Demand,
    /// Somebody may want it.
    Prefetch,
    /// Nobody waits for it yet, but it is as good as sure that somebody will, and the control thread may not come by for
    /// a while: after [`Priority::Demand`], as many at once as the engine can take.
    Ahead,
}

/// A read moves its buffer in; the completion moves it back. While it is in flight nobody else can hold the buffer.
pub struct Read {
    /// Comes back in [`Done::tag`]. Unique among the reads in flight.
    pub tag: usize,
    /// What to read.
    pub extents: Extents,
    /// Where to.
    pub buf: IoBuf,
    /// How urgently.
    pub priority: Priority,
}

/// A finished read.
pub struct Done {
    /// The read's tag.
    pub tag: usize,
    /// The read's buffer, filled if `result` is `Ok`.
    pub buf: IoBuf,
    /// Whether every byte of every extent arrived.
    pub result: Result<(), ReadError>,
}

/// Why a read failed, without the words that only its owner has (path, tensor, expert).
#[derive(Debug)]
pub struct ReadError {
    /// The extent that failed.
    pub extent: Extent,
    /// What the system said; `UnexpectedEof` where the file ended first.
    pub source: std::io::Error,
}

/// An engine reads in the background. One control thread owns it.
pub trait IoEngine: Send {
    /// The name that `--io` takes and statistics print.
    fn name(&self) -> &'static str;
    /// Reads in flight at most.
    fn depth(&self) -> usize;
    /// How the buffers that this engine fills are laid out.
    fn layout(&self) -> Layout;
    /// Starts a read. Never blocks for the disk.
    fn submit(&mut self, read: Read);
    /// A prefetch in flight became demand.
    fn promote(&mut self, tag: usize);
    /// Blocks until some read is done. `None`: nothing is in flight.
    fn wait(&mut self) -> Option<Done>;
    /// Waits so many nanoseconds at most: `Some(None)` says that reads are in flight and none is done. An engine that cannot
    /// say so waits until one is.
    fn wait_at_most(&mut self, _ns: u64) -> Option<Option<Done>> {
        self.wait().map(Some)
    }
    /// Takes a finished read if there is one.
    fn poll(&mut self) -> Option<Done>;
    /// Nanoseconds since the engine was made; virtual in a simulated one.
    fn now_ns(&self) -> u64;
}

/// The read paths that `--io` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    /// Positional reads into slots, on a few threads.
    Pread,
    /// The same past the page cache.
    Direct,
    /// Past the page cache through an `io_uring`.
    Uring,
    /// The file's own pages, mapped and populated on a few threads.
    Mapped,
    /// As [`IoKind::Pread`], for a cache that keeps nothing: each use of an expert is a read, and what stays in memory is the
    /// system's affair. The baseline.
    PageCache,
}

impl IoKind {
    /// Every kind.
    pub const ALL: &[IoKind] = &[IoKind::Pread, IoKind::Direct, IoKind::Uring, IoKind::Mapped, IoKind::PageCache];
    /// The name that [`IoEngine::name`] gives.
    pub fn name(self) -> &'static str {
        match self {
            IoKind::Pread => "pread",
            IoKind::Direct => "direct",
            IoKind::Uring => "uring",
            IoKind::Mapped => "mapped",
            IoKind::PageCache => "page-cache",
        }
    }
    /// Reads in flight where nobody says how many.
    pub fn default_depth(self) -> usize {
        if self == IoKind::Uring { 6 } else { 4 }
    }
    /// An engine on `files` with `depth` reads in flight, from one to [`MAX_DEPTH`].
    ///
    /// # Errors
    /// If the system does not let us read the files this way, or refuses threads.
    pub fn build(self, files: Files, depth: usize) -> std::io::Result<Box<dyn IoEngine>> {
        Ok(match self {
            IoKind::Pread | IoKind::PageCache => Box::new(ThreadEngine::new(Pread::new(files, self.name()), depth)?),
            IoKind::Direct => Box::new(ThreadEngine::new(Direct::new(DirectFiles::open(&files)?), depth)?),
            #[cfg(target_os = "linux")]
            IoKind::Uring => Box::new(Uring::new(DirectFiles::open(&files)?, depth)?),
            #[cfg(not(target_os = "linux"))]
            IoKind::Uring => {
                return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "io_uring: known on Linux only"));
            }
            IoKind::Mapped => Box::new(ThreadEngine::new(Mapped::new(files)?, depth)?),
        })
    }
}
