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
//! A helper that the system has put on the caller's core goes to another one, or stays out and sleeps: it could only take turns
//! with the caller. On 16 cores Linux put 2 to 4 of 15 helpers there, prompt after prompt.
//! With a neighbour on the other one of two cores that is where Linux puts it 95 times in 100, and turns, 4000 a second,
//! cost a quarter of what the caller does alone.
//!
//! Checked by loom in `tests/pool.rs`. Hence fences where others would write `SeqCst` on an access: loom takes such an
//! access for acquire and release only.
//!
//! Must not know: what is computed.

use std::{
    any::Any,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use super::sync::{
    Arc, AtomicBool, AtomicUsize, Builder, JoinHandle, Ordering, RANGES, RESTS, SPINS, Thread, UnsafeCell, core, fence,
    leave_core, park, spin_loop, yield_now,
};

/// In [`Shared::state`]: the region takes helpers.
const OPEN: usize = 1 << 15;
/// In [`Shared::state`]: helpers that joined; the rest counts regions.
const JOINED: usize = OPEN - 1;

/// In [`Shared::core`]: the system does not tell.
const UNKNOWN: usize = usize::MAX;

type Job = *const (dyn Fn(Worker<'_>) + Sync);

struct Shared {
    /// (number of the region, [`OPEN`], helpers that joined it)
    state: AtomicUsize,
    /// Written before a region opens, read by helpers that joined it.
    job: UnsafeCell<Option<Job>>,
    /// Helpers that joined the region and have left it.
    left: AtomicUsize,
    /// Where the caller ran when it opened the region; as good as a guess.
    core: AtomicUsize,
    /// 0: awake. Else how many regions from now wake it. (threads - 1)
    asleep: Vec<AtomicUsize>,
    stop: AtomicBool,
    /// A closure panicked: work may be missing for ever, so nobody waits for it.
    panicked: AtomicBool,
}

// SAFETY: `job` is written only by the thread in `run`, before it opens a region and after all who joined the one before
// have left, and read only by helpers that joined (Release and Acquire on `state` and `left` order both).
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
    /// `None`: nobody else is in the region.
    shared: Option<&'a Shared>,
}

impl Worker<'_> {
    /// The only thread of a region, for work that does not pay for more.
    pub fn alone() -> Worker<'static> {
        Worker { index: 0, shared: None }
    }
}

/// A part of a region: `n` pieces of work. What follows [`Phase::work`] sees all of it done.
///
/// Each thread has a range of pieces, which it does in order; when that is done, it takes the last half of the longest range
/// that is left, until all are empty. So a thread reads memory in long runs, and knows what it reads next, while a slow
/// or absent one holds nobody up for longer than a piece takes. With one counter for all, from which two threads took pieces in
/// turn, decoding was 1 to 9 % slower where each has a link to memory of its own. (Ranges that others take halves of are lazy
/// binary splitting: Tzannes et al., PPoPP 2010.)
pub struct Phase {
    ranges: [Pieces; RANGES],
    n_range: usize,
    done: AtomicUsize,
    n: usize,
}

impl Phase {
    /// Pieces `0..n` for a pool of so many threads.
    pub fn new(n: usize, threads: usize) -> Self {
        assert!(n <= Pieces::MAX, "at most {} pieces", Pieces::MAX);
        let n_range = threads.min(RANGES);
        let at = |i: usize| i.min(n_range) * n / n_range;
        Self { ranges: std::array::from_fn(|i| Pieces::new(at(i)..at(i + 1))), n_range, done: AtomicUsize::new(0), n }
    }

    /// Does pieces while there are any, then waits for those that others have taken.
    ///
    /// # Panics
    /// If another thread of the region panicked: what follows must not run beside pieces that are still being done.
    pub fn work(&self, worker: Worker<'_>, mut piece: impl FnMut(usize)) {
        let own = self.own(worker);
        loop {
            let mut done = 0;
            while let Some(i) = own.take_first() {
                piece(i);
                done += 1;
            }
            if done > 0 {
                self.done.fetch_add(done, Ordering::Release);
            }
            // Others of its range do without: they might both fill it.
            let half = if worker.index < self.n_range { self.half_of_longest(worker.index) } else { None };
            let Some(half) = half else { break };
            own.fill(half);
        }
        let panicked = || worker.shared.is_some_and(|s| s.panicked.load(Ordering::Relaxed));
        let done = || self.done.load(Ordering::Acquire) >= self.n;
        spin_until(|| done() || panicked());
        if !done() {
            resume_unwind(another());
        }
    }

    /// The piece that the thread does next, as far as that is known: another thread may take it.
    pub fn next(&self, worker: Worker<'_>) -> Option<usize> {
        let left = self.own(worker).left();
        (!left.is_empty()).then_some(left.start)
    }

    /// A range for each thread; threads share them if there are too many.
    fn own(&self, worker: Worker<'_>) -> &Pieces {
        &self.ranges[worker.index % self.n_range]
    }

    /// Takes the last half of what another range than `own` has left.
    fn half_of_longest(&self, own: usize) -> Option<Range<usize>> {
        let others = || self.ranges[..self.n_range].iter().enumerate().filter(|(i, _)| *i != own);
        loop {
            let lengths = others().map(|(_, range)| (range.left().len(), range));
            let (_, longest) = lengths.filter(|(len, _)| *len > 0).max_by_key(|(len, _)| *len)?;
            // Unless somebody has emptied it meanwhile.
            if let Some(half) = longest.take_half() {
                return Some(half);
            }
        }
    }
}

/// Pieces that are left in a range: the first one in the upper half of a word, the end in the lower. So one exchange takes some,
/// and words that are alike have the same pieces, whoever had them in between. Relaxed, since whoever takes a piece has seen
/// what it needs already: the region's opening, or the end of an earlier phase.
///
/// Alone on its cache line.
#[repr(align(64))]
struct Pieces(AtomicUsize);

impl Pieces {
    /// The largest number of a piece's end.
    const MAX: usize = (1 << (usize::BITS / 2)) - 1;

    fn new(pieces: Range<usize>) -> Self {
        Self(AtomicUsize::new(Self::word(pieces)))
    }

    fn word(pieces: Range<usize>) -> usize {
        pieces.start << (usize::BITS / 2) | pieces.end
    }

    fn pieces(word: usize) -> Range<usize> {
        word >> (usize::BITS / 2)..word & Self::MAX
    }

    fn left(&self) -> Range<usize> {
        Self::pieces(self.0.load(Ordering::Relaxed))
    }

    /// Leaves `rest` of what is left, unless that is nothing; returns what was left before.
    fn leave(&self, rest: impl Fn(usize, usize) -> Range<usize>) -> Option<Range<usize>> {
        let leave = |word| {
            let left = Self::pieces(word);
            (!left.is_empty()).then(|| Self::word(rest(left.start, left.end)))
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, leave).ok().map(Self::pieces)
    }

    fn take_first(&self) -> Option<usize> {
        self.leave(|start, end| start + 1..end).map(|left| left.start)
    }

    fn take_half(&self) -> Option<Range<usize>> {
        let middle = |start, end| start + (end - start) / 2;
        let left = self.leave(|start, end| start..middle(start, end))?;
        Some(middle(left.start, left.end)..left.end)
    }

    /// Only for an empty one, and one thread: others leave those alone.
    fn fill(&self, pieces: Range<usize>) {
        self.0.store(Self::word(pieces), Ordering::Relaxed);
    }
}

/// What a thread unwinds with that did not panic itself; nothing is printed for it.
fn another() -> Box<dyn Any + Send> {
    Box::new("a compute thread panicked")
}

/// Spins, and lets others have the core if it takes long.
fn spin_until(done: impl Fn() -> bool) {
    let mut spins = 0u32;
    while !done() {
        spins = spins.saturating_add(1);
        if spins < SPINS { spin_loop() } else { yield_now() }
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
            core: AtomicUsize::new(UNKNOWN),
            asleep: (0..helpers).map(|_| AtomicUsize::new(0)).collect(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        });
        let mut pool = Self { shared, threads: Vec::with_capacity(helpers), wake: Vec::with_capacity(helpers) };
        for i in 0..helpers {
            let shared = pool.shared.clone();
            let name = format!("hotset-cpu-{}", i + 1);
            let thread = Builder::new().name(name).spawn(move || help(&shared, i))?;
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
        if self.threads.is_empty() {
            return f(Worker::alone());
        }
        let shared = &*self.shared;
        self.open(f);
        // Caught, since helpers may be in `f`: nothing of it may go before they have left.
        let result = catch_unwind(AssertUnwindSafe(|| f(Worker { index: 0, shared: Some(shared) })));
        if result.is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        let joined = shared.state.fetch_and(!OPEN, Ordering::AcqRel) & JOINED;
        spin_until(|| shared.left.load(Ordering::Acquire) == joined);
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        if shared.panicked.load(Ordering::Relaxed) {
            resume_unwind(another());
        }
    }

    /// Opens a region of `f` to the helpers, and wakes those that sleep.
    fn open(&self, f: &(dyn Fn(Worker<'_>) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Helpers use the pointer only between joining and leaving, and `run` does not
        // return, after a panic of `f` neither, before all who joined have left.
        let job = unsafe { std::mem::transmute::<*const (dyn Fn(Worker<'_>) + Sync + '_), Job>(f) };
        // SAFETY: only `run` comes here, by `&mut self`, and the region before is closed and left by all: no helper reads
        // `job`.
        shared.job.with_mut(|at| unsafe { *at = Some(job) });
        shared.left.store(0, Ordering::Relaxed);
        shared.core.store(core().unwrap_or(UNKNOWN), Ordering::Relaxed);
        let region = (shared.state.load(Ordering::Relaxed) & !(OPEN | JOINED)).wrapping_add(OPEN << 1);
        shared.state.store(region | OPEN, Ordering::Release);
        // With the fence in `next_region`: this thread sees that a helper sleeps, or that helper sees the region, so no
        // wake-up is lost.
        fence(Ordering::SeqCst);
        for (asleep, thread) in shared.asleep.iter().zip(&self.wake) {
            match asleep.load(Ordering::Relaxed) {
                0 => (),
                1 => thread.unpark(),
                // Lost if the helper has just woken by itself.
                n => _ = asleep.compare_exchange(n, n - 1, Ordering::Relaxed, Ordering::Relaxed),
            }
        }
    }
}

/// A helper's life.
fn help(shared: &Shared, i: usize) {
    let (mut seen, mut rest) = (0, 0);
    loop {
        let Some(state) = next_region(shared, i, seen, rest) else { return };
        seen = state & !(OPEN | JOINED);
        let shares_core = || core().is_some_and(|core| core == shared.core.load(Ordering::Relaxed));
        if shares_core() {
            leave_core(shared.core.load(Ordering::Relaxed), i);
        }
        if shares_core() {
            rest = (2 * rest).clamp(RESTS[0], RESTS[1]);
            continue;
        }
        rest = 0;
        // Join if the region is still open; another helper may join at the same time.
        let join = |state: usize| (state & OPEN != 0 && state & !(OPEN | JOINED) == seen).then(|| state + 1);
        if shared.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, join).is_err() {
            continue;
        }
        // SAFETY: `job` was written before the region opened, and stays until this thread has left.
        let job = shared.job.with(|at| unsafe { (*at).expect("an open region has a job") });
        let worker = Worker { index: i + 1, shared: Some(shared) };
        // SAFETY: the closure outlives the region (see `open`).
        let body = AssertUnwindSafe(|| unsafe { (*job)(worker) });
        if catch_unwind(body).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.left.fetch_add(1, Ordering::Release);
    }
}

/// Waits for a region other than `seen`, spinning first, then asleep; asleep from the start through `rest` regions, if
/// any. `None`: the pool is going.
fn next_region(shared: &Shared, i: usize, seen: usize, rest: usize) -> Option<usize> {
    let fresh = || {
        let state = shared.state.load(Ordering::Acquire);
        (state & !(OPEN | JOINED) != seen).then_some(state)
    };
    let stopped = || shared.stop.load(Ordering::Acquire);
    let sleep_until = |region: usize| {
        shared.asleep[i].store(region, Ordering::Relaxed);
        // See `Pool::open`.
        fence(Ordering::SeqCst);
        // Of what comes while it rests, only the pool's end matters.
        if (region > 1 || fresh().is_none()) && !stopped() {
            park();
        }
        shared.asleep[i].store(0, Ordering::Relaxed);
    };
    if rest > 0 {
        sleep_until(rest + 1);
    }
    let mut spins = 0;
    loop {
        if stopped() {
            return None;
        }
        if let Some(state) = fresh() {
            return Some(state);
        }
        spins += 1;
        if spins < SPINS { spin_loop() } else { sleep_until(1) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for (thread, wake) in self.threads.drain(..).zip(&self.wake) {
            // Whether it sleeps or not: what is unparked does not park before it has looked at `stop` again.
            wake.unpark();
            // A helper's panic was reported by `run`.
            let _ = thread.join();
        }
    }
}
