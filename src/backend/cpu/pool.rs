//! Persistent compute threads: `run` gives one closure to all of them and returns when all are through.
//!
//! A token is hundreds of short parallel regions, so a thread that finds no work spins for a while before it sleeps:
//! waking a sleeping thread costs more than most regions. The spin is bounded, since on a machine with neighbours a
//! spinning thread takes the core that the working one needs.
//!
//! Must not know: what is computed.

use std::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{JoinHandle, Thread},
};

/// Spins before sleeping; a spin is some 10–40 ns, so this is about 50 µs, the length of the pauses within a token.
const SPINS: u32 = 2_000;

type Job = *const (dyn Fn(Worker<'_>) + Sync);

struct Shared {
    /// Counts regions. A worker that sees a new value runs `job`.
    epoch: AtomicUsize,
    /// Valid from the store of `epoch` until `pending` is 0.
    job: UnsafeCell<Option<Job>>,
    /// Workers still in the region.
    pending: AtomicUsize,
    /// (threads - 1)
    asleep: Vec<AtomicBool>,
    stop: AtomicBool,
    panicked: AtomicBool,
    barrier: Barrier,
}

// SAFETY: `job` is written only by the thread in `run`, while no worker is in a region (`pending` is 0), and read only
// by workers that have seen the later store of `epoch` (Release/Acquire).
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is never used outside the region that put it there.
unsafe impl Send for Shared {}

/// See the module.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    wake: Vec<Thread>,
}

/// One thread's place in a region.
#[derive(Clone, Copy)]
pub struct Worker<'a> {
    /// 0 for the thread that called [`Pool::run`].
    pub index: usize,
    /// Threads in the region.
    pub count: usize,
    barrier: &'a Barrier,
}

/// The barrier of regions of one thread: never waits.
static NO_BARRIER: Barrier = Barrier { arrived: AtomicUsize::new(0), round: AtomicUsize::new(0) };

impl Worker<'_> {
    /// The only thread of a region, for work that does not pay for more.
    pub fn alone() -> Worker<'static> {
        Worker { index: 0, count: 1, barrier: &NO_BARRIER }
    }

    /// Waits until every thread of the region has come here. All threads must call it equally often.
    pub fn barrier(&self) {
        self.barrier.wait(self.count);
    }
}

/// A reusable barrier: the last thread to arrive starts the next round.
#[derive(Default)]
struct Barrier {
    arrived: AtomicUsize,
    round: AtomicUsize,
}

impl Barrier {
    fn wait(&self, count: usize) {
        if count == 1 {
            return;
        }
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == count {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
            return;
        }
        spin_until(|| self.round.load(Ordering::Acquire) != round);
    }
}

/// Spins, and lets others have the core if it takes long.
fn spin_until(done: impl Fn() -> bool) {
    let mut spins = 0u32;
    while !done() {
        spins = spins.saturating_add(1);
        if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
}

impl Pool {
    /// `threads` (at least one) in all: the caller of [`Pool::run`] is one of them.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let helpers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            pending: AtomicUsize::new(0),
            asleep: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            barrier: Barrier::default(),
        });
        let mut pool = Self { shared, threads: Vec::with_capacity(helpers), wake: Vec::with_capacity(helpers) };
        for i in 0..helpers {
            let shared = pool.shared.clone();
            let name = format!("hotset-cpu-{}", i + 1);
            let thread = std::thread::Builder::new().name(name).spawn(move || help(&shared, i))?;
            pool.wake.push(thread.thread().clone());
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Threads in a region, the caller included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `f` once on every thread and returns when all are through.
    ///
    /// # Panics
    /// If `f` panicked on any thread. `f` must not panic between barriers: the others would wait for ever, so bodies of
    /// regions check their shapes before they enter.
    pub fn run(&mut self, f: &(dyn Fn(Worker<'_>) + Sync)) {
        let count = self.threads();
        let shared = &*self.shared;
        if count > 1 {
            // SAFETY: only the lifetime changes. Workers use the pointer within this region only, and this function
            // does not return, by a panic of `f` neither, before `pending` says that all have left it.
            let job = unsafe { std::mem::transmute::<*const (dyn Fn(Worker<'_>) + Sync + '_), Job>(f) };
            // SAFETY: `&mut self` and `pending == 0` at the end of each region: no worker is reading `job`.
            unsafe { *shared.job.get() = Some(job) };
            shared.pending.store(count - 1, Ordering::Relaxed);
            // SeqCst with the worker's store to `asleep`: one of both sees the other, so no wake-up is lost.
            shared.epoch.fetch_add(1, Ordering::SeqCst);
            for (asleep, thread) in shared.asleep.iter().zip(&self.wake) {
                if asleep.load(Ordering::SeqCst) {
                    thread.unpark();
                }
            }
        }
        let leave = Leave(shared);
        f(Worker { index: 0, count, barrier: &shared.barrier });
        drop(leave);
        assert!(!shared.panicked.load(Ordering::Relaxed), "a compute thread panicked");
    }
}

/// Waits for the workers of a region, also when the caller's own part panics.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        spin_until(|| self.0.pending.load(Ordering::Acquire) == 0);
    }
}

/// A worker's life.
fn help(shared: &Shared, i: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.epoch.load(Ordering::SeqCst) == seen {
            if shared.stop.load(Ordering::Relaxed) {
                return;
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            shared.asleep[i].store(true, Ordering::SeqCst);
            if shared.epoch.load(Ordering::SeqCst) == seen && !shared.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            shared.asleep[i].store(false, Ordering::SeqCst);
        }
        seen = seen.wrapping_add(1);
        // SAFETY: the new epoch was stored after `job`, and `run` waits for this thread before it changes either.
        let job = unsafe { (*shared.job.get()).expect("a region has a job") };
        let worker = Worker { index: i + 1, count: shared.asleep.len() + 1, barrier: &shared.barrier };
        // SAFETY: the closure outlives the region (see `run`).
        let body = std::panic::AssertUnwindSafe(|| unsafe { (*job)(worker) });
        if std::panic::catch_unwind(body).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.pending.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (thread, wake) in self.threads.drain(..).zip(&self.wake) {
            wake.unpark();
            // A worker's panic was reported by `run`.
            let _ = thread.join();
        }
    }
}

/// Hands out the numbers `0..n` in chunks to whoever asks: keeps a slow core from holding up the others.
pub struct Chunks {
    next: AtomicUsize,
    n: usize,
    chunk: usize,
}

impl Chunks {
    /// `0..n` in pieces of `chunk` (at least 1).
    pub fn new(n: usize, chunk: usize) -> Self {
        Self { next: AtomicUsize::new(0), n, chunk: chunk.max(1) }
    }
    /// The next piece, or `None` when all are handed out.
    pub fn next(&self) -> Option<std::ops::Range<usize>> {
        let start = self.next.fetch_add(self.chunk, Ordering::Relaxed);
        (start < self.n).then(|| start..(start + self.chunk).min(self.n))
    }
}
