//! Persistent compute threads: `run` offers one closure to all of them and returns when the work in it is done.
//!
//! A token is hundreds of short parallel regions, so a thread that finds no work spins for a while before it sleeps:
//! waking a sleeping thread costs more than most regions. The spin is bounded, since on a machine with neighbours a
//! spinning thread takes the core that a working one needs.
//!
//! Helpers *may* join a region; nobody waits for one that the system is not running. A region's work is handed out in
//! pieces ([`Phase`]), so the caller alone can finish it, and closes the region then. Waiting for every thread at every
//! region, as barriers do, made decoding 7 times slower on two cores as soon as a neighbour used one of them.
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

/// Spins before sleeping or yielding; a spin is some 10–40 ns, so this is about 50 µs, the length of the pauses within a
/// token.
const SPINS: u32 = 2_000;

/// In [`Shared::state`]: the region takes helpers.
const OPEN: usize = 1 << 15;
/// In [`Shared::state`]: helpers that joined; the rest counts regions.
const JOINED: usize = OPEN - 1;

type Job = *const (dyn Fn(Worker<'_>) + Sync);

struct Shared {
    /// (number of the region, [`OPEN`], helpers that joined it)
    state: AtomicUsize,
    /// Written before a region opens, read by helpers that joined it.
    job: UnsafeCell<Option<Job>>,
    /// Helpers that joined the region and have left it.
    left: AtomicUsize,
    /// (threads - 1)
    asleep: Vec<AtomicBool>,
    stop: AtomicBool,
    /// A closure panicked: work may be missing for ever, so nobody waits for it.
    panicked: AtomicBool,
}

// SAFETY: `job` is written only by the thread in `run`, before it opens a region and after all who joined the one before
// have left, and read only by helpers that joined (AcqRel on `state` orders both).
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
    /// 0 for the thread that called [`Pool::run`]; below [`Pool::threads`].
    pub index: usize,
    panicked: &'a AtomicBool,
}

/// No region of one thread outlives a panic of its own.
static NEVER: AtomicBool = AtomicBool::new(false);

impl Worker<'_> {
    /// The only thread of a region, for work that does not pay for more.
    pub fn alone() -> Worker<'static> {
        Worker { index: 0, panicked: &NEVER }
    }
}

/// A part of a region: `n` pieces of work, each done by whoever takes it first. What follows [`Phase::work`] sees all of
/// it done.
pub struct Phase {
    next: AtomicUsize,
    done: AtomicUsize,
    n: usize,
}

impl Phase {
    /// Pieces `0..n`.
    pub fn new(n: usize) -> Self {
        Self { next: AtomicUsize::new(0), done: AtomicUsize::new(0), n }
    }

    /// Does pieces while there are any, then waits for those that others have taken.
    pub fn work(&self, worker: Worker<'_>, mut piece: impl FnMut(usize)) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.n {
                break;
            }
            piece(i);
            self.done.fetch_add(1, Ordering::Release);
        }
        spin_until(|| self.done.load(Ordering::Acquire) >= self.n || worker.panicked.load(Ordering::Relaxed));
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
        let helpers = threads.clamp(1, JOINED) - 1;
        let shared = Arc::new(Shared {
            state: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            left: AtomicUsize::new(0),
            asleep: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
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

    /// Threads that may be in a region, the caller included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `f` on this thread and on every helper that comes while it runs. All of `f`'s work must be in [`Phase`]s,
    /// the same ones in the same order on every thread.
    ///
    /// # Panics
    /// If `f` panicked on any thread.
    pub fn run(&mut self, f: &(dyn Fn(Worker<'_>) + Sync)) {
        let shared = &*self.shared;
        if self.threads.is_empty() {
            return f(Worker::alone());
        }
        // SAFETY: only the lifetime changes. Helpers use the pointer only between joining and leaving, and `Region`'s
        // drop does not return, after a panic of `f` neither, before all who joined have left.
        let job = unsafe { std::mem::transmute::<*const (dyn Fn(Worker<'_>) + Sync + '_), Job>(f) };
        // SAFETY: `&mut self`, and the region before is closed and left by all: no helper reads `job`.
        unsafe { *shared.job.get() = Some(job) };
        shared.left.store(0, Ordering::Relaxed);
        let region = (shared.state.load(Ordering::Relaxed) & !(OPEN | JOINED)).wrapping_add(OPEN << 1);
        // SeqCst with the helper's store to `asleep`: one of both sees the other, so no wake-up is lost.
        shared.state.store(region | OPEN, Ordering::SeqCst);
        for (asleep, thread) in shared.asleep.iter().zip(&self.wake) {
            if asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        let region = Region(shared);
        f(Worker { index: 0, panicked: &shared.panicked });
        drop(region);
        assert!(!shared.panicked.load(Ordering::Relaxed), "a compute thread panicked");
    }
}

/// An open region. Dropping closes it and waits for those who joined.
struct Region<'a>(&'a Shared);

impl Drop for Region<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.store(true, Ordering::Relaxed);
        }
        let joined = self.0.state.fetch_and(!OPEN, Ordering::AcqRel) & JOINED;
        spin_until(|| self.0.left.load(Ordering::Acquire) == joined);
    }
}

/// A helper's life.
fn help(shared: &Shared, i: usize) {
    let mut seen = 0;
    loop {
        let Some(state) = next_region(shared, i, seen) else { return };
        seen = state & !(OPEN | JOINED);
        // Join if the region is still open; another helper may join at the same time.
        let join = |state: usize| (state & OPEN != 0 && state & !(OPEN | JOINED) == seen).then(|| state + 1);
        if shared.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, join).is_err() {
            continue;
        }
        // SAFETY: `job` was written before the region opened, and stays until this thread has left.
        let job = unsafe { (*shared.job.get()).expect("an open region has a job") };
        let worker = Worker { index: i + 1, panicked: &shared.panicked };
        // SAFETY: the closure outlives the region (see `run`).
        let body = std::panic::AssertUnwindSafe(|| unsafe { (*job)(worker) });
        if std::panic::catch_unwind(body).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.left.fetch_add(1, Ordering::Release);
    }
}

/// Waits for a region other than `seen`, spinning first, then asleep. `None`: the pool is going.
fn next_region(shared: &Shared, i: usize, seen: usize) -> Option<usize> {
    let fresh = || {
        let state = shared.state.load(Ordering::SeqCst);
        (state & !(OPEN | JOINED) != seen).then_some(state)
    };
    let mut spins = 0;
    loop {
        if shared.stop.load(Ordering::SeqCst) {
            return None;
        }
        if let Some(state) = fresh() {
            return Some(state);
        }
        spins += 1;
        if spins < SPINS {
            std::hint::spin_loop();
            continue;
        }
        shared.asleep[i].store(true, Ordering::SeqCst);
        if fresh().is_none() && !shared.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        shared.asleep[i].store(false, Ordering::SeqCst);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (thread, wake) in self.threads.drain(..).zip(&self.wake) {
            wake.unpark();
            // A helper's panic was reported by `run`.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_and_phases_follow_each_other() {
        for threads in 1..5 {
            let mut pool = Pool::new(threads).unwrap();
            for round in 0..2_000usize {
                let n = round % 17;
                let first: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                let (a, b, sum) = (Phase::new(n), Phase::new(n), AtomicUsize::new(0));
                pool.run(&|worker| {
                    a.work(worker, |i| {
                        first[i].fetch_add(i + 1, Ordering::Relaxed);
                    });
                    // All of the first phase is visible here.
                    b.work(worker, |i| {
                        let other = first[n - 1 - i].load(Ordering::Relaxed);
                        sum.fetch_add(other, Ordering::Relaxed);
                    });
                });
                assert_eq!(sum.load(Ordering::Relaxed), n * (n + 1) / 2);
            }
        }
    }

    #[test]
    fn a_panic_in_a_piece_ends_the_region() {
        for threads in 1..4 {
            let mut pool = Pool::new(threads).unwrap();
            let phase = Phase::new(64);
            let region = std::panic::AssertUnwindSafe(|| {
                pool.run(&|worker| phase.work(worker, |i| assert_ne!(i, 40)));
            });
            assert!(std::panic::catch_unwind(region).is_err());
        }
    }
}
