//! Reads past the page cache through an `io_uring`: many in flight without threads.
//!
//! The control thread drives the ring itself: the ring holds some 14 MB of an expert's usual parts, more than a drive reads
//! while one layer is computed, so a thread of its own would win nothing and take a core from the kernels at every
//! wake-up. Processor time a GB is about that of threads (`benches/RESULTS.tsv`). What does not fit the ring waits in two
//! queues here, demand before prefetch. Only what is read ahead of a prompt ([`Priority::Ahead`]) may go to the kernel beyond the
//! depth asked for.
//!
//! Files are registered; buffers are not. Registered buffers are pinned: all slots would be resident and zeroed before
//! the first token, and the limit on locked memory of an ordinary user (8 MiB) forbids it anyway.
//!
//! Must not know: experts.

use std::{
    collections::VecDeque,
    io,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use io_uring::{IoUring, Probe, opcode, types};

use super::{DirectFiles, Done, Extents, IoEngine, Layout, MAX_DEPTH, Priority, Read, ReadError, buf::Run};
use crate::input::Retries;

/// Larger reads go in pieces of this size, so that a demand read need not wait for all of a prefetch.
const PIECE_BYTES: usize = 1 << 20;

/// How long one call waits: who waits for a drive has to look at other things now and then.
const LONGEST_WAIT: Duration = Duration::from_millis(10);

/// Failures of the system call in a row before the engine gives up, after some five seconds. They are transient by its manual,
/// short of memory for instance.
const MAX_FAILURES: u32 = 5000;

/// The pause after each of them.
const PAUSE: Duration = Duration::from_millis(1);

/// What the engine needs of a ring. A trait so that the tests can put faults between.
trait Ring: Send {
    /// Queues a read of `len` bytes at `offset` of file `file`, which comes back as `id`.
    ///
    /// # Safety
    /// `to` must have `len` bytes that nobody else uses until [`Ring::pop`] has given `id`.
    unsafe fn push(&mut self, id: u64, file: u16, offset: u64, to: *mut u8, len: usize);
    /// Hands what is queued to the kernel; if `wait`, waits until one is done, for [`LONGEST_WAIT`] at most where the kernel
    /// can (since Linux 5.11).
    fn enter(&mut self, wait: bool) -> io::Result<()>;
    /// A read that is done: its id, and the bytes that came or the error's number below zero.
    fn pop(&mut self) -> Option<(u64, i32)>;
}

struct Kernel {
    ring: IoUring,
    /// Kept open.
    _files: DirectFiles,
}

impl Ring for Kernel {
    // SAFETY: as the trait says.
    unsafe fn push(&mut self, id: u64, file: u16, offset: u64, to: *mut u8, len: usize) {
        let entry = opcode::Read::new(types::Fixed(u32::from(file)), to, len as u32).offset(offset);
        let entry = entry.build().user_data(id);
        // SAFETY: the caller vouches for the memory; the file is registered with the ring.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the ring has an entry for each read in flight");
    }
    fn enter(&mut self, wait: bool) -> io::Result<()> {
        if !wait || !self.ring.params().is_feature_ext_arg() {
            return self.ring.submit_and_wait(usize::from(wait)).map(drop);
        }
        let time = types::Timespec::from(LONGEST_WAIT);
        match self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time)) {
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::TIME.raw_os_error()) => Ok(()),
            result => result.map(drop),
        }
    }
    fn pop(&mut self) -> Option<(u64, i32)> {
        self.ring.completion().next().map(|entry| (entry.user_data(), entry.result()))
    }
}

/// Contiguous bytes of a run that are asked for together.
#[derive(Clone, Copy)]
struct Piece {
    /// Index into [`Uring::reads`].
    read: usize,
    run: Run,
    /// First byte in the run.
    start: usize,
    /// Whole blocks.
    len: usize,
    /// Bytes that must come.
    needed: usize,
    got: usize,
    retries: Retries,
}

/// A read with pieces that are not done.
struct Active {
    read: Read,
    left: usize,
    error: Option<ReadError>,
    /// Its memory has been left to the kernel.
    abandoned: bool,
}

/// See the module.
pub struct Uring {
    ring: Box<dyn Ring>,
    layout: Layout,
    block: usize,
    /// Pieces with the kernel at most, but for those that are read ahead.
    depth: usize,
    /// Pieces with the kernel, by id. (MAX_DEPTH)
    in_kernel: Vec<Option<Piece>>,
    free_ids: Vec<usize>,
    demand: VecDeque<Piece>,
    prefetch: VecDeque<Piece>,
    ahead: VecDeque<Piece>,
    /// Pieces to be tried again, and when.
    put_off: Vec<(Instant, Piece)>,
    reads: Vec<Option<Active>>,
    free_reads: Vec<usize>,
    finished: VecDeque<Done>,
    /// Failures of the system call in a row, over however many calls of this engine.
    failures: u32,
    /// [`MAX_FAILURES`], unless a test is in a hurry.
    max_failures: u32,
    /// Why nothing is read any more.
    broken: Option<(io::ErrorKind, String)>,
    start: Instant,
}

impl Uring {
    /// A ring for `depth` reads in flight, from one to [`MAX_DEPTH`].
    ///
    /// # Errors
    /// Where the system has no `io_uring` or forbids it, as containers often do.
    pub fn new(files: DirectFiles, depth: usize) -> io::Result<Self> {
        let depth = depth.clamp(1, MAX_DEPTH);
        let failed = |e: io::Error| io::Error::new(e.kind(), format!("io_uring: {e}"));
        let ring = IoUring::new(MAX_DEPTH as u32).map_err(failed)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(failed)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(failed(io::ErrorKind::Unsupported.into()));
        }
        let fds: Vec<_> = files.files.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&fds).map_err(failed)?;
        let (layout, block) = (files.layout(), files.block);
        Ok(Self::on(Box::new(Kernel { ring, _files: files }), layout, block, depth))
    }

    fn on(ring: Box<dyn Ring>, layout: Layout, block: usize, depth: usize) -> Self {
        Self {
            ring,
            layout,
            block,
            depth,
            in_kernel: vec![None; MAX_DEPTH],
            free_ids: (0..MAX_DEPTH).rev().collect(),
            demand: VecDeque::with_capacity(MAX_DEPTH),
            prefetch: VecDeque::with_capacity(MAX_DEPTH),
            ahead: VecDeque::with_capacity(MAX_DEPTH),
            put_off: Vec::with_capacity(MAX_DEPTH),
            reads: Vec::with_capacity(MAX_DEPTH),
            free_reads: Vec::with_capacity(MAX_DEPTH),
            finished: VecDeque::with_capacity(MAX_DEPTH),
            failures: 0,
            max_failures: MAX_FAILURES,
            broken: None,
            start: Instant::now(),
        }
    }

    fn active(&mut self, read: usize) -> &mut Active {
        self.reads[read].as_mut().expect("a read is there until its last piece is done")
    }

    fn is_idle(&self) -> bool {
        self.free_reads.len() == self.reads.len()
    }

    fn nothing_in_kernel(&self) -> bool {
        self.free_ids.len() == self.in_kernel.len()
    }

    fn enqueue(&mut self, piece: Piece) {
        match self.active(piece.read).read.priority {
            Priority::Demand => self.demand.push_back(piece),
            Priority::Prefetch => self.prefetch.push_back(piece),
            Priority::Ahead => self.ahead.push_back(piece),
        }
    }

    /// The piece that the kernel should have next. What is read ahead may fill the ring: nobody looks after it while the
    /// control thread computes.
    fn next_piece(&mut self) -> Option<Piece> {
        if self.in_kernel.len() - self.free_ids.len() >= self.depth {
            return self.ahead.pop_front();
        }
        self.demand.pop_front().or_else(|| self.ahead.pop_front()).or_else(|| self.prefetch.pop_front())
    }

    /// Hands waiting pieces to the kernel, as far as the ring goes.
    fn pump(&mut self) {
        if !self.put_off.is_empty() {
            let now = Instant::now();
            while let Some(i) = self.put_off.iter().position(|(until, _)| *until <= now) {
                let (_, piece) = self.put_off.swap_remove(i);
                self.enqueue(piece);
            }
        }
        let mut pushed = false;
        while let Some(&id) = self.free_ids.last() {
            let Some(piece) = self.next_piece() else { break };
            self.free_ids.pop();
            self.in_kernel[id] = Some(piece);
            let Piece { run, start, got, len, .. } = piece;
            let len = len - got;
            let to = self.active(piece.read).read.buf.place_of(run.at + start + got, len);
            // SAFETY: the buffer stays in `reads`, where nobody makes a reference to its bytes, until `file` has seen all its
            // pieces come back; where they do not come back, `give_up` and `drop` leak its memory. Pieces of a buffer do not
            // overlap, and this one is not with the kernel.
            unsafe { self.ring.push(id as u64, run.file, run.offset + (start + got) as u64, to, len) };
            pushed = true;
        }
        if pushed {
            // What the kernel does not take now, for want of memory, it takes at the next call.
            let _ = self.ring.enter(false);
        }
    }

    /// Takes what the kernel has done.
    fn reap(&mut self) {
        while let Some((id, result)) = self.ring.pop() {
            let piece = self.in_kernel[id as usize].take().expect("an id comes back once");
            self.free_ids.push(id as usize);
            self.failures = 0;
            self.file(piece, result);
        }
    }

    /// Files a piece that came back: done, failed, or to be continued.
    fn file(&mut self, mut piece: Piece, result: i32) {
        let error = match usize::try_from(result) {
            Ok(n) => {
                piece.got += n;
                let short = piece.got < piece.needed;
                if short && n > 0 && piece.got.is_multiple_of(self.block) {
                    return self.enqueue(piece);
                }
                // A read that stops within a block has met the end of the file.
                short.then(|| (piece.start + piece.got, io::ErrorKind::UnexpectedEof.into()))
            }
            Err(_) => {
                let source = io::Error::from_raw_os_error(-result);
                match piece.retries.pause_after(&source) {
                    Some(Duration::ZERO) => return self.enqueue(piece),
                    Some(pause) => return self.put_off.push((Instant::now() + pause, piece)),
                    None => Some((piece.start + piece.got, source)),
                }
            }
        };
        let active = self.active(piece.read);
        active.left -= 1;
        if let Some((got, source)) = error {
            let extent = piece.run.cut(&active.read.extents, got);
            active.error.get_or_insert(ReadError { extent, source });
            self.forget_waiting(piece.read);
        }
        self.finish(piece.read);
    }

    /// The rest of a read that failed is not worth reading.
    fn forget_waiting(&mut self, read: usize) {
        let waiting = |u: &Self| u.demand.len() + u.prefetch.len() + u.ahead.len() + u.put_off.len();
        let before = waiting(self);
        for queue in [&mut self.demand, &mut self.prefetch, &mut self.ahead] {
            queue.retain(|p| p.read != read);
        }
        self.put_off.retain(|(_, p)| p.read != read);
        let forgotten = before - waiting(self);
        self.active(read).left -= forgotten;
    }

    /// Hands the read back if no piece of it is left.
    fn finish(&mut self, index: usize) {
        let Some(Active { read, error, .. }) = self.reads[index].take_if(|a| a.left == 0) else { return };
        self.free_reads.push(index);
        self.finished.push_back(Done { tag: read.tag, buf: read.buf, result: error.map_or(Ok(()), Err) });
    }

    /// Every read fails from now on, those under way among them. Their memory is the kernel's for ever if it may still have a piece
    /// of it.
    fn give_up(&mut self, error: &io::Error) {
        self.broken = Some((error.kind(), format!("io_uring keeps failing: {error}")));
        for piece in self.in_kernel.iter_mut().filter_map(Option::take) {
            let active = self.reads[piece.read].as_mut().expect("a read is there until its last piece is done");
            if !std::mem::replace(&mut active.abandoned, true) {
                active.read.buf.abandon();
            }
        }
        for queue in [&mut self.demand, &mut self.prefetch, &mut self.ahead] {
            queue.clear();
        }
        self.put_off.clear();
        for index in 0..self.reads.len() {
            let Some(Active { read, error, .. }) = self.reads[index].take() else { continue };
            self.free_reads.push(index);
            let result = Err(error.unwrap_or_else(|| self.refusal(&read.extents)));
            self.finished.push_back(Done { tag: read.tag, buf: read.buf, result });
        }
    }

    /// Why a read fails where the ring is broken.
    fn refusal(&self, extents: &Extents) -> ReadError {
        let (kind, text) = self.broken.clone().expect("only a broken ring refuses");
        ReadError { extent: extents[0], source: io::Error::new(kind, text) }
    }
}

impl IoEngine for Uring {
    fn name(&self) -> &'static str {
        "uring"
    }
    fn depth(&self) -> usize {
        self.depth
    }
    fn layout(&self) -> Layout {
        self.layout
    }
    fn submit(&mut self, mut read: Read) {
        if self.broken.is_some() {
            let result = Err(self.refusal(&read.extents));
            return self.finished.push_back(Done { tag: read.tag, buf: read.buf, result });
        }
        let runs = match read.buf.place(&read.extents, self.block) {
            Ok(runs) => runs,
            Err(e) => return self.finished.push_back(Done { tag: read.tag, buf: read.buf, result: Err(e) }),
        };
        let index = self.free_reads.pop().unwrap_or_else(|| {
            self.reads.push(None);
            self.reads.len() - 1
        });
        self.reads[index] = Some(Active { read, left: 0, error: None, abandoned: false });
        for &run in runs.iter() {
            for start in (0..run.needed).step_by(PIECE_BYTES) {
                let [len, needed] = [run.len, run.needed].map(|end| (end - start).min(PIECE_BYTES));
                self.active(index).left += 1;
                self.enqueue(Piece { read: index, run, start, len, needed, got: 0, retries: Retries::default() });
            }
        }
        self.finish(index);
        self.pump();
    }
    fn promote(&mut self, tag: usize) {
        let Some(index) = self.reads.iter().position(|a| a.as_ref().is_some_and(|a| a.read.tag == tag)) else { return };
        self.active(index).read.priority = Priority::Demand;
        for queue in [&mut self.prefetch, &mut self.ahead] {
            self.demand.extend(queue.iter().filter(|p| p.read == index));
            queue.retain(|p| p.read != index);
        }
    }
    fn wait(&mut self) -> Option<Done> {
        loop {
            if let Some(done) = self.wait_at_most(u64::MAX)? {
                return Some(done);
            }
        }
    }
    fn wait_at_most(&mut self, ns: u64) -> Option<Option<Done>> {
        let start = Instant::now();
        loop {
            let done = self.poll();
            if done.is_some() || self.is_idle() {
                return done.map(Some);
            }
            if start.elapsed() >= Duration::from_nanos(ns) {
                return Some(None);
            }
            if self.nothing_in_kernel() {
                let until = self.put_off.iter().map(|(until, _)| *until).min();
                let pause = until.map_or(Duration::ZERO, |u| u.saturating_duration_since(Instant::now()));
                std::thread::sleep(pause.min(LONGEST_WAIT));
                continue;
            }
            match self.ring.enter(true) {
                Ok(()) => self.failures = 0,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.failures += 1;
                    if self.failures >= self.max_failures {
                        self.give_up(&e);
                    }
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }
    fn poll(&mut self) -> Option<Done> {
        // No read waits for what a broken ring still returns.
        if self.broken.is_none() {
            self.reap();
            self.pump();
        }
        self.finished.pop_front()
    }
    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.broken.is_some() {
            return;
        }
        let mut failures = 0;
        loop {
            while let Some((id, _)) = self.ring.pop() {
                self.free_ids.push(id as usize);
            }
            if self.nothing_in_kernel() {
                return;
            }
            let failed = self.ring.enter(true).is_err_and(|e| e.kind() != io::ErrorKind::Interrupted);
            if failed {
                failures += 1;
                std::thread::sleep(PAUSE);
            }
            if failures == self.max_failures {
                // The kernel may still write there.
                return std::mem::forget(std::mem::take(&mut self.reads));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Arc};

    use super::*;
    use crate::io::{Extent, Extents, Files, IoBuf};

    /// What a ring does to the n-th result.
    type Fault = fn(u32, i32) -> i32;

    /// A ring that works, whose results are changed on the way.
    struct Faulty {
        inner: Kernel,
        fault: Fault,
        popped: u32,
        /// Failures of the system call that are still to come.
        refusals: u32,
    }

    impl Ring for Faulty {
        // SAFETY: as the trait says.
        unsafe fn push(&mut self, id: u64, file: u16, offset: u64, to: *mut u8, len: usize) {
            // SAFETY: the caller's promise is passed on.
            unsafe { self.inner.push(id, file, offset, to, len) };
        }
        fn enter(&mut self, wait: bool) -> io::Result<()> {
            if self.refusals > 0 {
                self.refusals -= 1;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.inner.enter(wait)
        }
        fn pop(&mut self) -> Option<(u64, i32)> {
            let (id, result) = self.inner.pop()?;
            self.popped += 1;
            Some((id, (self.fault)(self.popped - 1, result)))
        }
    }

    const FILE_BYTES: usize = 5 << 20;

    /// The engine with a fault, and the content of its only file; `None` where the system has no ring for us.
    fn faulty(fault: Fault, refusals: u32, depth: usize) -> Option<(Uring, Vec<u8>, tempfile::NamedTempFile)> {
        let bytes: Vec<u8> = (0..FILE_BYTES as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        // In the build folder: a temporary folder may lie in memory.
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let files: Files = [(file.path().to_owned(), Arc::new(File::open(file.path()).unwrap()))].into_iter().collect();
        let files = DirectFiles::open(&files).ok()?;
        let (layout, block) = (files.layout(), files.block);
        let ring = IoUring::new(64).ok()?;
        let fds: Vec<_> = files.files.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&fds).unwrap();
        let ring = Faulty { inner: Kernel { ring, _files: files }, fault, popped: 0, refusals };
        Some((Uring::on(Box::new(ring), layout, block, depth), bytes, file))
    }

    fn extents(i: usize) -> Extents {
        let at = |offset: usize, len: usize| Extent { file: 0, offset: offset as u64, len };
        Extents::new(&[at(i * 1000 + 7, 900_001), at(2_000_000 - i, 50_000), at(2_050_000 - i, 2_400_000)])
    }

    fn submit(engine: &mut Uring, tag: usize, priority: Priority) {
        let parts: Vec<_> = extents(tag).iter().map(|e| e.len).collect();
        let buf = IoBuf::new(engine.layout(), &parts).unwrap();
        engine.submit(Read { tag, extents: extents(tag), buf, priority });
    }

    fn all_right(fault: Fault, refusals: u32) {
        for depth in [1, 3, 16] {
            let Some((mut engine, bytes, _file)) = faulty(fault, refusals, depth) else { return };
            for tag in 0..6 {
                submit(&mut engine, tag, if tag % 2 == 0 { Priority::Demand } else { Priority::Prefetch });
            }
            let mut tags: Vec<_> = std::iter::from_fn(|| {
                let done = engine.wait()?;
                done.result.unwrap();
                for (i, e) in extents(done.tag).iter().enumerate() {
                    assert!(*done.buf.part(i) == bytes[e.offset as usize..][..e.len], "{depth} {} part {i}", done.tag);
                }
                Some(done.tag)
            })
            .collect();
            tags.sort_unstable();
            assert_eq!(tags, [0, 1, 2, 3, 4, 5]);
        }
    }

    #[test]
    fn short_reads_are_continued() {
        all_right(|_, n| if n >= 8192 { n / 2 / 4096 * 4096 } else { n }, 0);
        all_right(|_, n| n.min(65536), 0);
    }

    #[test]
    fn reads_that_are_put_off_or_interrupted_are_done_later() {
        all_right(|i, n| if i % 3 == 0 { -11 } else { n }, 0);
        all_right(|i, n| if i % 2 == 0 { -4 } else { n }, 0);
        all_right(|i, n| if i < 3 { -5 } else { n }, 0);
        all_right(|_, n| n, 20);
    }

    #[test]
    fn a_read_that_is_put_off_for_ever_fails() {
        let Some((mut engine, ..)) = faulty(|_, _| -11, 0, 8) else { return };
        submit(&mut engine, 3, Priority::Demand);
        let done = engine.wait().unwrap();
        assert_eq!((done.tag, done.result.unwrap_err().source.kind()), (3, io::ErrorKind::WouldBlock));
        assert!(engine.wait().is_none());
    }

    #[test]
    fn of_a_read_that_fails_nothing_stays_behind() {
        for depth in [1, 2, 16] {
            // EACCES, which does not pass.
            let Some((mut engine, ..)) = faulty(|i, n| if i == 0 { -13 } else { n }, 0, depth) else { return };
            submit(&mut engine, 0, Priority::Demand);
            submit(&mut engine, 1, Priority::Prefetch);
            let mut failed = 0;
            while let Some(done) = engine.wait() {
                failed += usize::from(done.result.is_err_and(|e| e.source.raw_os_error() == Some(13)));
            }
            assert_eq!(failed, 1);
            assert!(engine.demand.is_empty() && engine.prefetch.is_empty() && engine.nothing_in_kernel());
        }
    }

    #[test]
    fn demand_and_promoted_reads_go_before_prefetches() {
        // One at a time: the order of the pieces is the order of the queue.
        let Some((mut engine, ..)) = faulty(|_, n| n, 0, 1) else { return };
        for tag in [0, 1, 2, 3] {
            submit(&mut engine, tag, Priority::Prefetch);
        }
        submit(&mut engine, 4, Priority::Demand);
        engine.promote(3);
        engine.promote(99);
        let tags: Vec<_> = std::iter::from_fn(|| engine.wait()).map(|done| done.tag).collect();
        // The first piece of read 0 was under way; the rest of it waits with the other prefetches.
        assert_eq!(tags, [4, 3, 0, 1, 2]);
    }

    #[test]
    fn a_ring_that_keeps_failing_is_an_error_of_each_read_and_takes_their_memory() {
        for depth in [1, 16] {
            let Some((mut engine, ..)) = faulty(|_, n| n, u32::MAX, depth) else { return };
            engine.max_failures = 20;
            (0..4).for_each(|tag| submit(&mut engine, tag, Priority::Demand));
            for at in [1, 2] {
                let (mut tags, mut bufs) = (Vec::new(), Vec::new());
                // Waiting in pieces does not start the count anew.
                while let Some(done) = engine.wait_at_most(1_000_000) {
                    let Some(done) = done else { continue };
                    let error = done.result.unwrap_err();
                    assert_eq!(error.extent, extents(done.tag)[0]);
                    assert!(error.source.to_string().starts_with("io_uring keeps failing: "), "{}", error.source);
                    tags.push(done.tag);
                    bufs.push(done.buf);
                }
                tags.sort_unstable();
                assert_eq!(tags, [0, 1, 2, 3]);
                for (tag, mut buf) in bufs.into_iter().enumerate() {
                    // It is memory that can be used, and not what the kernel may still write to.
                    buf.memory_mut().fill(at);
                    engine.submit(Read { tag, extents: extents(tag), buf, priority: Priority::Demand });
                }
            }
        }
    }

    #[test]
    fn dropping_waits_for_the_kernel() {
        for refusals in [0, 5] {
            let Some((mut engine, ..)) = faulty(|_, n| n, 0, 16) else { return };
            (0..8).for_each(|tag| submit(&mut engine, tag, Priority::Prefetch));
            drop(engine);
            let Some((mut engine, ..)) = faulty(|_, n| n, refusals, 16) else { return };
            submit(&mut engine, 0, Priority::Demand);
        }
    }
}
