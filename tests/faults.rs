//! Reads that fail, end early, come late or in another order: the logits are the exact ones or there is one clear error,
//! never a wrong token, never a hang; and after an error the session goes on as if nothing had been.

mod common;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{
    dice::{Dice, no_hang},
    tiny::{N_LAYER, N_USED, Tiny},
};
use hotset::{
    Error,
    expert::Scope,
    gguf::Gguf,
    io::{
        Direct, DirectFiles, Done, Extent, Extents, Files, IoBuf, IoEngine, IoKind, Layout, Mapped, Pread, Priority,
        Read, ReadError, ReadPath, ThreadEngine,
    },
    prefetch::PrefetchKind,
    session::{Options, Session},
};

const PROMPT: [u32; 7] = [3, 14, 15, 9, 26, 5, 35];
const DECODED: [u32; 8] = [8, 9, 7, 9, 3, 21, 30, 2];

/// What goes wrong with the reads, counted from 0 in the order in which they start.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Never,
    /// The n-th fails.
    At(usize),
    /// The n-th finds the end of the file in its last extent.
    Short(usize),
    /// From the n-th on none comes through, until the session is told that it failed.
    Burst(usize, usize),
    /// Each takes a random time, up to three milliseconds.
    Late(u64),
    /// The n-th takes two seconds.
    Stall(usize),
    /// Every second one is put off by the system (`EAGAIN`).
    PutOff,
    /// All are, for ever.
    PutOffForEver,
}

/// A read path that breaks, around one that works.
struct Faulty {
    inner: Box<dyn ReadPath>,
    fault: Fault,
    count: Arc<AtomicUsize>,
}

impl ReadPath for Faulty {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn layout(&self) -> Layout {
        self.inner.layout()
    }
    fn read(&self, extents: &Extents, buf: &mut IoBuf) -> Result<(), ReadError> {
        let n = self.count.fetch_add(1, Ordering::SeqCst);
        let last = extents[extents.len() - 1];
        let fails = |kind: std::io::ErrorKind| Err(ReadError { extent: last, source: kind.into() });
        match self.fault {
            Fault::At(at) if at == n => fails(std::io::ErrorKind::PermissionDenied),
            Fault::Burst(at, len) if (at..at + len).contains(&n) => fails(std::io::ErrorKind::PermissionDenied),
            Fault::Short(at) if at == n => {
                // What a short read leaves behind: some parts filled, the last one not.
                self.inner.read(extents, buf)?;
                fails(std::io::ErrorKind::UnexpectedEof)
            }
            Fault::PutOff if n.is_multiple_of(2) => fails(std::io::ErrorKind::WouldBlock),
            Fault::PutOffForEver => fails(std::io::ErrorKind::WouldBlock),
            Fault::Stall(at) if at == n => {
                std::thread::sleep(Duration::from_secs(2));
                self.inner.read(extents, buf)
            }
            Fault::Late(seed) => {
                std::thread::sleep(Duration::from_micros(Dice(seed + n as u64).next() % 3000));
                self.inner.read(extents, buf)
            }
            _ => self.inner.read(extents, buf),
        }
    }
}

/// An engine that breaks, around one without a [`ReadPath`]. Reads fail as in [`Faulty`]; late ones come in another order.
/// What the system puts off is the engine's own business: `src/io/uring.rs` tests it on its ring.
struct FaultyEngine {
    inner: Box<dyn IoEngine>,
    fault: Fault,
    count: Arc<AtomicUsize>,
    /// (tag, number, last extent) of the reads in flight.
    reads: Vec<(usize, usize, Extent)>,
    /// Finished, and not handed out.
    held: Vec<Done>,
    dice: Dice,
}

impl FaultyEngine {
    fn new(inner: Box<dyn IoEngine>, fault: Fault, count: Arc<AtomicUsize>) -> Self {
        let dice = Dice(if let Fault::Late(seed) = fault { seed } else { 0 });
        Self { inner, fault, count, reads: Vec::new(), held: Vec::new(), dice }
    }

    fn hold(&mut self, mut done: Done) {
        let i = self.reads.iter().position(|r| r.0 == done.tag).expect("a tag comes back once");
        let (_, n, extent) = self.reads.swap_remove(i);
        let fails = |kind: std::io::ErrorKind| Err(ReadError { extent, source: kind.into() });
        match self.fault {
            Fault::At(at) if at == n => done.result = fails(std::io::ErrorKind::PermissionDenied),
            Fault::Short(at) if at == n => done.result = fails(std::io::ErrorKind::UnexpectedEof),
            Fault::Burst(at, len) if (at..at.saturating_add(len)).contains(&n) => {
                done.result = fails(std::io::ErrorKind::PermissionDenied);
            }
            Fault::Stall(at) if at == n => std::thread::sleep(Duration::from_secs(2)),
            _ => {}
        }
        self.held.push(done);
    }

    fn release(&mut self) -> Option<Done> {
        let n = self.held.len();
        let i = if matches!(self.fault, Fault::Late(_)) { self.dice.below(n.max(1)) } else { 0 };
        (n > 0).then(|| self.held.remove(i))
    }
}

impl IoEngine for FaultyEngine {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn depth(&self) -> usize {
        self.inner.depth()
    }
    fn layout(&self) -> Layout {
        self.inner.layout()
    }
    fn submit(&mut self, read: Read) {
        let n = self.count.fetch_add(1, Ordering::SeqCst);
        self.reads.push((read.tag, n, read.extents[read.extents.len() - 1]));
        self.inner.submit(read);
    }
    fn promote(&mut self, tag: usize) {
        self.inner.promote(tag);
    }
    fn wait(&mut self) -> Option<Done> {
        while let Some(done) = self.inner.poll() {
            self.hold(done);
        }
        if self.held.is_empty() {
            let done = self.inner.wait()?;
            self.hold(done);
        }
        self.release()
    }
    fn poll(&mut self) -> Option<Done> {
        while let Some(done) = self.inner.poll() {
            self.hold(done);
        }
        // A late one is there, and not seen yet.
        let unseen = matches!(self.fault, Fault::Late(_)) && self.dice.below(2) == 0;
        if unseen { None } else { self.release() }
    }
    fn now_ns(&self) -> u64 {
        self.inner.now_ns()
    }
}

/// An engine in which every prefetch fails unless it became demand.
struct NoPrefetchArrives {
    inner: Box<dyn IoEngine>,
    doomed: Vec<usize>,
    failed: Arc<AtomicUsize>,
}

impl NoPrefetchArrives {
    fn done(&mut self, mut done: Done) -> Done {
        if let Some(i) = self.doomed.iter().position(|&tag| tag == done.tag) {
            self.doomed.swap_remove(i);
            self.failed.fetch_add(1, Ordering::SeqCst);
            let extent = hotset::io::Extent { file: 0, offset: 0, len: 0 };
            done.result = Err(ReadError { extent, source: std::io::Error::other("no prefetch today") });
        }
        done
    }
}

impl IoEngine for NoPrefetchArrives {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn depth(&self) -> usize {
        self.inner.depth()
    }
    fn layout(&self) -> Layout {
        self.inner.layout()
    }
    fn submit(&mut self, read: Read) {
        if read.priority == Priority::Prefetch {
            self.doomed.push(read.tag);
        }
        self.inner.submit(read);
    }
    fn promote(&mut self, tag: usize) {
        self.doomed.retain(|&t| t != tag);
        self.inner.promote(tag);
    }
    fn wait(&mut self) -> Option<Done> {
        let done = self.inner.wait()?;
        Some(self.done(done))
    }
    fn poll(&mut self) -> Option<Done> {
        let done = self.inner.poll()?;
        Some(self.done(done))
    }
    fn now_ns(&self) -> u64 {
        self.inner.now_ns()
    }
}

/// How a run is set up.
#[derive(Clone, Copy, Debug)]
struct Mode {
    io: IoKind,
    io_depth: usize,
    prefetch: PrefetchKind,
    scope: Scope,
}

/// One a read path, and more of the default one.
const MODES: [Mode; 6] = [
    Mode { io: IoKind::Pread, io_depth: 1, prefetch: PrefetchKind::Off, scope: Scope::Layer },
    Mode { io: IoKind::Pread, io_depth: 4, prefetch: PrefetchKind::Lookahead, scope: Scope::Layer },
    Mode { io: IoKind::Direct, io_depth: 2, prefetch: PrefetchKind::Lookahead, scope: Scope::Layer },
    Mode { io: IoKind::Uring, io_depth: 3, prefetch: PrefetchKind::Lookahead, scope: Scope::Layer },
    Mode { io: IoKind::Mapped, io_depth: 2, prefetch: PrefetchKind::Lookahead, scope: Scope::Layer },
    Mode { io: IoKind::Pread, io_depth: 2, prefetch: PrefetchKind::Lookahead, scope: Scope::Global },
];

/// Those of [`MODES`] that this system allows.
fn modes() -> impl Iterator<Item = Mode> {
    MODES.into_iter().filter(|mode| common::read_paths().contains(&mode.io))
}

/// A model file that lives as long as the test.
struct Model {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn model() -> Model {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    Tiny::new("qwen3moe").write(&path);
    Model { path, _folder: folder }
}

/// A session with one slot per layer more than experts used, so that most reads happen.
fn session(path: &Path, mode: Mode, engine: impl FnOnce(Files) -> hotset::Result<Box<dyn IoEngine>>) -> Session {
    let Mode { io, prefetch, scope, .. } = mode;
    let mut options = Options {
        io: Some(io),
        prefetch,
        scope: Some(scope),
        n_ctx: Some(32),
        n_batch: Some(4),
        threads: Some(1),
        // What the test's own process holds changes from one session to the next.
        process_bytes: Some(0),
        ..Options::default()
    };
    let open = || Gguf::open(path).unwrap();
    let plan = Session::open(open(), &options, &mut |_, _| {}).unwrap().plan().clone();
    let slot = plan.slots_bytes / plan.slots.iter().sum::<usize>() as u64;
    // Mostly room for a batch of one: prompts go through in small pieces, which are more events.
    options.memory_bytes = Some(plan.smallest_bytes + slot * N_LAYER as u64);
    let cpu = common::isa::cpu(1);
    let session = Session::with_engine(open(), &options, cpu, Box::new(()), engine, &mut |_, _| {}).unwrap();
    assert!(session.plan().slots.iter().sum::<usize>() <= (N_USED + 2) * N_LAYER, "{:?}", session.plan());
    session
}

fn faulty(path: &Path, mode: Mode, fault: Fault) -> (Session, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let session = session(path, mode, move |files| {
        let inner: Box<dyn ReadPath> = match mode.io {
            IoKind::Pread | IoKind::PageCache => Box::new(Pread::new(files, mode.io.name())),
            IoKind::Direct => Box::new(Direct::new(DirectFiles::open(&files).unwrap())),
            IoKind::Mapped => Box::new(Mapped::new(files).unwrap()),
            IoKind::Uring => {
                let inner = mode.io.build(files, mode.io_depth).unwrap();
                return Ok(Box::new(FaultyEngine::new(inner, fault, counter)));
            }
        };
        Ok(Box::new(ThreadEngine::new(Faulty { inner, fault, count: counter }, mode.io_depth).unwrap()))
    });
    (session, count)
}

/// The logits of the prompt and of every decoded token, and the errors on the way. A call that fails is repeated.
fn run(session: &mut Session) -> (Vec<u32>, Vec<Error>) {
    let (mut bits, mut errors) = (Vec::new(), Vec::new());
    let mut again = |session: &mut Session, call: &dyn Fn(&mut Session) -> hotset::Result<Vec<u32>>| {
        for _ in 0..100 {
            let n_past = session.n_past();
            match call(session) {
                Ok(logits) => return bits.extend(logits),
                Err(e) => errors.push(e),
            }
            assert_eq!(session.n_past(), n_past, "a failed call changed the sequence");
        }
        panic!("fails for ever: {}", errors[0]);
    };
    let to_bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    again(session, &|s| Ok(to_bits(s.feed(&PROMPT, &mut |_| {})?)));
    for token in DECODED {
        again(session, &|s| Ok(to_bits(s.decode(token)?)));
    }
    assert_eq!(session.n_past(), PROMPT.len() + DECODED.len());
    (bits, errors)
}

/// The logits of a run without a fault, and the reads that it took.
fn unfailed(path: &Path, mode: Mode) -> (Vec<u32>, usize) {
    let (mut session, count) = faulty(path, mode, Fault::Never);
    let (bits, errors) = run(&mut session);
    assert!(errors.is_empty());
    drop(session);
    (bits, count.load(Ordering::SeqCst))
}

/// One sentence that names path, expert and offset.
fn is_clear(error: &Error, path: &Path) {
    let text = error.to_string();
    assert!(text.starts_with(&format!("{}: ", path.display())), "{text}");
    for word in ["expert ", " of blk.", " at offset ", " bytes"] {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    assert!(!text.contains('\n'), "{text}");
}

/// A run with every fault of a kind: the exact logits in the end, at most one error each time. Returns the errors.
fn each(mode: Mode, fault: fn(usize) -> Fault, most_errors: usize) -> usize {
    let model = model();
    let (expected, reads) = unfailed(&model.path, mode);
    assert!(reads > 20, "{mode:?}: {reads} reads are few to fail");
    let mut all = 0;
    for n in 0..reads {
        let (mut session, _) = faulty(&model.path, mode, fault(n));
        let (bits, errors) = run(&mut session);
        assert!(bits == expected, "{mode:?} {:?}: other logits", fault(n));
        assert!(errors.len() <= most_errors, "{mode:?} {:?}: {} errors", fault(n), errors.len());
        errors.iter().for_each(|e| is_clear(e, &model.path));
        assert!(!errors.is_empty() || session.stats().failed_reads > 0 || mode.prefetch != PrefetchKind::Off);
        all += errors.len();
    }
    // Without prefetching every read is waited for, so every failure is told.
    assert!(if mode.prefetch == PrefetchKind::Off { all >= reads } else { all > 0 }, "{mode:?}: {all} of {reads}");
    all
}

#[test]
fn a_failed_read_is_one_error_and_the_retry_is_exact() {
    no_hang(|| modes().map(|mode| each(mode, Fault::At, 1)).collect::<Vec<_>>());
}

#[test]
fn a_short_read_is_one_error_and_the_retry_is_exact() {
    no_hang(|| modes().map(|mode| each(mode, Fault::Short, 1)).collect::<Vec<_>>());
}

#[test]
fn several_failed_reads_are_told_one_by_one() {
    no_hang(|| modes().map(|mode| each(mode, |n| Fault::Burst(n, 3), 3)).collect::<Vec<_>>());
}

#[test]
fn the_two_kinds_of_error_say_what_happened() {
    let model = model();
    for (fault, expected) in [(Fault::At(0), "permission denied"), (Fault::Short(0), "got the end of the file")] {
        let (mut session, _) = faulty(&model.path, MODES[0], fault);
        let error = session.feed(&PROMPT, &mut |_| {}).unwrap_err().to_string();
        assert!(error.to_lowercase().contains(expected), "{error}");
    }
}

#[test]
fn late_reads_change_nothing() {
    no_hang(|| {
        let model = model();
        for mode in modes() {
            let (expected, _) = unfailed(&model.path, mode);
            for seed in 0..5 {
                let (mut session, _) = faulty(&model.path, mode, Fault::Late(seed * 1000));
                let (bits, errors) = run(&mut session);
                assert!(errors.is_empty() && bits == expected, "{mode:?} {seed}");
            }
        }
    });
}

#[test]
fn failed_prefetches_are_nobodys_business() {
    no_hang(|| {
        let model = model();
        for mode in modes().filter(|m| m.prefetch != PrefetchKind::Off) {
            let (expected, _) = unfailed(&model.path, mode);
            let failed = Arc::new(AtomicUsize::new(0));
            let counter = failed.clone();
            let mut session = session(&model.path, mode, move |files| {
                let inner = mode.io.build(files, mode.io_depth).unwrap();
                Ok(Box::new(NoPrefetchArrives { inner, doomed: Vec::new(), failed: counter }))
            });
            let (bits, errors) = run(&mut session);
            assert!(errors.is_empty() && bits == expected, "{mode:?}");
            assert_eq!(session.stats().failed_reads, failed.load(Ordering::SeqCst) as u64);
            assert!(session.stats().prefetches > 0, "{mode:?}: there was nothing to fail");
        }
    });
}

#[test]
fn a_drive_that_stalls_for_seconds_changes_nothing() {
    no_hang(|| {
        let model = model();
        let stalled = |mode: &Mode| {
            let (expected, reads) = unfailed(&model.path, *mode);
            let (mut session, _) = faulty(&model.path, *mode, Fault::Stall(reads / 2));
            let (bits, errors) = run(&mut session);
            assert!(errors.is_empty() && bits == expected, "{mode:?}");
            let t = session.timing();
            // With prefetching, the read that stalls may be one that nobody waits for.
            let waits = mode.prefetch == PrefetchKind::Off;
            assert!(!waits || t.prompt_ns + t.decode_ns > 1_500_000_000, "{mode:?}: nothing stalled");
        };
        let stalled = &stalled;
        std::thread::scope(|s| modes().for_each(|mode| drop(s.spawn(move || stalled(&mode)))));
    });
}

#[test]
fn reads_that_the_system_puts_off_are_tried_again_and_in_the_end_fail() {
    no_hang(|| {
        let model = model();
        for mode in modes().filter(|m| m.io != IoKind::Uring) {
            let (expected, reads) = unfailed(&model.path, mode);
            let (mut session, count) = faulty(&model.path, mode, Fault::PutOff);
            let (bits, errors) = run(&mut session);
            assert!(errors.is_empty() && bits == expected, "{mode:?}: {errors:?}");
            assert!(count.load(Ordering::SeqCst) > reads, "{mode:?}: nothing was tried again");
        }
        let (mut session, _) = faulty(&model.path, MODES[0], Fault::PutOffForEver);
        is_clear(&session.feed(&PROMPT, &mut |_| {}).unwrap_err(), &model.path);
    });
}

/// A session whose every read fails says so each time, and can be dropped with reads in flight.
#[test]
fn a_dead_drive_is_told_each_time() {
    no_hang(|| {
        let model = model();
        for mode in modes() {
            let (mut session, _) = faulty(&model.path, mode, Fault::Burst(0, usize::MAX));
            for _ in 0..20 {
                is_clear(&session.feed(&PROMPT, &mut |_| {}).unwrap_err(), &model.path);
                is_clear(&session.decode(1).unwrap_err(), &model.path);
                assert_eq!(session.n_past(), 0);
            }
        }
    });
}

/// The model's file loses its end, and gets it back: an error that names the file each time, whatever the read path, and then
/// the exact logits.
#[test]
fn a_file_cut_short_in_use_is_an_error_and_once_it_is_whole_all_is_well() {
    no_hang(|| {
        for mode in modes().chain([Mode { io: IoKind::PageCache, ..MODES[0] }]) {
            let model = model();
            let open = || session(&model.path, mode, |files| Ok(mode.io.build(files, mode.io_depth).unwrap()));
            let (expected, _) = run(&mut open());
            let whole = std::fs::read(&model.path).unwrap();
            // In the middle of a page of the last layer's experts, at the first, and at nothing at all.
            for len in [whole.len() - 1234, whole.len() / 2, 0] {
                let mut session = open();
                let n_prompt = PROMPT.len() / 2;
                session.feed(&PROMPT[..n_prompt], &mut |_| {}).unwrap();
                let file = std::fs::OpenOptions::new().write(true).open(&model.path).unwrap();
                file.set_len(len as u64).unwrap();
                let failed = (0..100).find_map(|i| session.decode(i % 40).err()).expect("all is in memory");
                let (text, named) = (failed.to_string(), format!("{}: ", model.path.display()));
                assert!(text.starts_with(&named), "{mode:?} {len}: {text}");
                assert!(text.contains("the file ends there") || text.contains("the end of the file"), "{text}");
                std::fs::write(&model.path, &whole).unwrap();
                session.reset();
                let (bits, errors) = run(&mut session);
                // A mapping loses the pages of residents with the file's end: each is told once, when it is wanted again.
                let lost = if mode.io == IoKind::Mapped { session.plan().slots.iter().sum() } else { 0 };
                assert!(errors.len() <= lost, "{mode:?} {len}: {} errors: {errors:?}", errors.len());
                errors.iter().for_each(|e| assert!(e.to_string().starts_with(&named), "{mode:?} {len}: {e}"));
                assert!(bits == expected, "{mode:?} {len}: other logits after {errors:?}");
            }
        }
    });
}
