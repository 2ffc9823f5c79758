//! The compute pool (src/backend/cpu/pool.rs), compiled a second and a third time: with real threads, and with loom's.
//!
//! Loom runs each model below in every interleaving of its threads that has at most so many preemptions (`check`), and
//! with every value that a relaxed or acquire load may see under the C11 memory model. Loom rather than shuttle, since
//! what can go wrong here is orderings around an `UnsafeCell`, and shuttle knows sequential consistency only.
//!
//! Not checked: more preemptions, threads, regions and pieces than the models have; time (a spin of any length is one look,
//! and loom runs a thread that yields only after others); closures that break the contract of `Pool::run`. Raw memory
//! behind `transmute` is Miri's: `cargo +nightly miri test --test pool threads::`.
//!
//! Planted one at a time into pool.rs, to see the check fail. Lost wake-ups (`every_helper_is_woken`): no fence in `open`;
//! none in `next_region`; a helper that looks for a region before it says that it sleeps. Data races: `done` or `left`
//! counted up or read relaxed; `state` opened by a relaxed store; a region that ends while a helper is in it. A region that
//! can be joined when closed, a piece that two threads take, a wait that does not look for a panic, phases that go on after
//! one (`a_panic_ends_the_region_…`). A half of a range that begins a piece late, a range that is read and then written
//! (`a_piece_is_done_once_…`). A helper that does not ask where it is, or is not told where the caller is; one that
//! rests for ever, or whose rest nobody counts (`a_helper_…`). A pool's end that wakes nobody or does not say so: deadlock,
//! all models.

#![expect(clippy::duplicate_mod, reason = "the same pool over two sets of threads is the point")]

/// The pool as it ships.
#[path = "../src/backend/cpu"]
mod real {
    pub mod pool;
    mod sync;
}

/// The pool with loom's threads, atomics and cells.
#[path = "../src/backend/cpu"]
mod model {
    pub mod pool;

    mod sync {
        pub use loom::{
            cell::UnsafeCell,
            hint::spin_loop,
            sync::{
                Arc,
                atomic::{AtomicBool, AtomicUsize, Ordering, fence},
            },
            thread::{Builder, JoinHandle, Thread, park, yield_now},
        };

        /// A look at the condition, and to sleep.
        pub const SPINS: u32 = 1;

        /// One for each thread of the largest model.
        pub const RANGES: usize = 3;

        /// Regions that a helper on the caller's core sleeps through.
        pub const RESTS: [usize; 2] = [1, 2];

        std::thread_local! {
            /// Whether all threads of a model are on one core. (Loom runs them as coroutines of one thread.)
            pub static ONE_CORE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
        }

        pub fn core() -> Option<usize> {
            ONE_CORE.get().then_some(0)
        }

        /// There is no other.
        pub fn leave_core(_core: usize, _helper: usize) {}
    }

    pub use sync::{ONE_CORE, RESTS};
}

use std::panic::{AssertUnwindSafe, catch_unwind};

mod threads {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{
        AssertUnwindSafe, catch_unwind,
        real::pool::{Phase, Pool, Worker},
    };

    /// Regions of a test: Miri is thousands of times slower.
    const ROUNDS: usize = if cfg!(miri) { 20 } else { 2_000 };

    #[test]
    fn every_piece_is_done_once_and_phases_follow_each_other() {
        for threads in 1..5 {
            let mut pool = Pool::new(threads).unwrap();
            for round in 0..ROUNDS {
                let n = round % 17;
                let first: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                let (a, b, sum) = (Phase::new(n, threads), Phase::new(n, threads), AtomicUsize::new(0));
                let body = |worker: Worker<'_>| {
                    assert!(worker.index < threads);
                    a.work(worker, |i| {
                        first[i].fetch_add(i + 1, Ordering::Relaxed);
                        assert!(a.next(worker).is_none_or(|next| next < n));
                    });
                    // All of the first phase is visible here.
                    b.work(worker, |i| {
                        let other = first[n - 1 - i].load(Ordering::Relaxed);
                        sum.fetch_add(other, Ordering::Relaxed);
                    });
                };
                if round % 5 == 4 {
                    body(Worker::alone())
                } else {
                    pool.run(&body)
                }
                assert_eq!(sum.load(Ordering::Relaxed), n * (n + 1) / 2);
            }
            assert_eq!(pool.threads(), threads);
        }
    }

    /// All threads have one core: the caller does everything, and every region ends.
    #[test]
    #[cfg(all(target_os = "linux", not(miri)))]
    fn a_helper_on_the_callers_core_stays_out() {
        use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

        let on_one_core = || {
            let mut one = CpuSet::new();
            one.set(sched_getcpu());
            sched_setaffinity(None, &one).unwrap();
            // Its threads inherit that.
            let mut pool = Pool::new(3).unwrap();
            for _ in 0..ROUNDS {
                let (phase, done) = (Phase::new(5, 3), AtomicUsize::new(0));
                pool.run(&|worker| {
                    phase.work(worker, |_| {
                        // Here another thread would have the core.
                        std::thread::yield_now();
                        assert_eq!(worker.index, 0);
                        done.fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert_eq!(done.into_inner(), 5);
            }
        };
        std::thread::spawn(on_one_core).join().unwrap();
    }

    #[test]
    fn a_panic_in_a_piece_ends_the_region() {
        for threads in 1..4 {
            let mut pool = Pool::new(threads).unwrap();
            let phase = Phase::new(64, threads);
            let region = AssertUnwindSafe(|| {
                pool.run(&|worker| phase.work(worker, |i| assert_ne!(i, 40)));
            });
            assert!(catch_unwind(region).is_err());
        }
    }
}

mod loom_models {
    use loom::{
        cell::UnsafeCell,
        sync::atomic::{AtomicUsize, Ordering},
        thread::yield_now,
    };

    use super::{
        AssertUnwindSafe, catch_unwind,
        model::{
            ONE_CORE, RESTS,
            pool::{Phase, Pool, Worker},
        },
    };

    /// Memory that the pieces of a region write without any lock: loom fails where two threads reach one cell unordered.
    struct Cells(Vec<UnsafeCell<usize>>);

    // SAFETY: loom runs one thread at a time and checks each access.
    unsafe impl Sync for Cells {}

    impl Cells {
        fn new(n: usize) -> Self {
            Self((0..n).map(|_| UnsafeCell::new(0)).collect())
        }

        fn add(&self, i: usize, value: usize) {
            // SAFETY: as for `Sync`.
            self.0[i].with_mut(|at| unsafe { *at += value });
        }

        fn get(&self, i: usize) -> usize {
            // SAFETY: as for `Sync`.
            self.0[i].with(|at| unsafe { *at })
        }
    }

    /// Runs `f` in every interleaving with at most `preemptions` switches that no thread asked for.
    fn check(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(preemptions);
        model.max_branches = 20_000;
        model.check(f);
    }

    /// `regions` of two phases on `threads` threads, then the pool's end: loom fails if a thread is left at the end, if a
    /// piece is done twice or seen half done, if a helper reads a job that is being replaced.
    fn regions(threads: usize, regions: usize, pieces: usize) {
        let mut pool = Pool::new(threads).unwrap();
        let (first, second) = (Cells::new(pieces), Cells::new(pieces));
        for round in 1..=regions {
            // The last helper has no range of its own in the second.
            let (a, b) = (Phase::new(pieces, threads), Phase::new(pieces, threads - 1));
            pool.run(&|worker: Worker<'_>| {
                assert!(worker.index < threads);
                a.work(worker, |i| first.add(i, 1));
                b.work(worker, |i| second.add(i, first.get(pieces - 1 - i)));
            });
            for i in 0..pieces {
                assert_eq!((first.get(i), second.get(i)), (round, round * (round + 1) / 2));
            }
        }
        assert_eq!(pool.threads(), threads);
    }

    #[test]
    fn two_threads_in_two_regions() {
        check(2, || regions(2, 2, 1));
    }

    #[test]
    fn two_threads_in_a_region_of_two_pieces() {
        check(1, || regions(2, 1, 2));
    }

    #[test]
    fn three_threads_in_two_regions() {
        check(0, || regions(3, 2, 1));
    }

    #[test]
    fn three_threads_in_a_region_of_two_pieces() {
        check(0, || regions(3, 1, 2));
    }

    /// One phase: pieces move from range to range.
    fn shared_out(threads: usize, pieces: usize) {
        let mut pool = Pool::new(threads).unwrap();
        let (cells, phase) = (Cells::new(pieces), Phase::new(pieces, threads));
        pool.run(&|worker: Worker<'_>| {
            phase.work(worker, |i| {
                cells.add(i, 1);
                assert!(phase.next(worker).is_none_or(|next| next < pieces));
            });
        });
        (0..pieces).for_each(|i| assert_eq!(cells.get(i), 1));
    }

    #[test]
    fn a_piece_is_done_once_whoever_takes_it() {
        check(2, || shared_out(2, 3));
        check(1, || shared_out(2, 5));
        check(0, || shared_out(3, 2));
    }

    /// A region ends without its helpers, so a lost wake-up would go unnoticed above. Here a piece waits for the others.
    fn all_needed(threads: usize, regions: usize) {
        let mut pool = Pool::new(threads).unwrap();
        (0..regions).for_each(|_| needed(&mut pool, threads));
    }

    /// A region of as many pieces as there are threads, each of which waits for the others.
    fn needed(pool: &mut Pool, threads: usize) {
        let (phase, came) = (Phase::new(threads, threads), AtomicUsize::new(0));
        pool.run(&|worker: Worker<'_>| {
            phase.work(worker, |_| {
                came.fetch_add(1, Ordering::Relaxed);
                while came.load(Ordering::Relaxed) < threads {
                    yield_now();
                }
            });
        });
    }

    #[test]
    fn every_helper_is_woken() {
        check(3, || all_needed(2, 2));
        check(0, || all_needed(3, 1));
    }

    /// `regions` for threads that share a core: only the caller comes.
    fn crowded(pool: &mut Pool, regions: usize) {
        ONE_CORE.set(true);
        for _ in 0..regions {
            let phase = Phase::new(1, pool.threads());
            pool.run(&|worker: Worker<'_>| phase.work(worker, |_| assert_eq!(worker.index, 0)));
            yield_now();
        }
        ONE_CORE.set(false);
    }

    #[test]
    fn a_helper_on_the_callers_core_stays_out() {
        check(2, || crowded(&mut Pool::new(2).unwrap(), 2));
        check(0, || crowded(&mut Pool::new(3).unwrap(), 2));
    }

    /// Without preemptions a helper rests when the caller yields, and so by the end of the first loop.
    #[test]
    fn a_helper_that_rested_comes_back() {
        check(0, || {
            let mut pool = Pool::new(2).unwrap();
            crowded(&mut pool, 3);
            for _ in 0..RESTS[1] {
                pool.run(&|_| ());
                yield_now();
            }
            needed(&mut pool, 2);
        });
    }

    /// Whoever does piece 0 panics.
    fn panicking(threads: usize) {
        let mut pool = Pool::new(threads).unwrap();
        let (cells, a, b) = (Cells::new(threads), Phase::new(threads, threads), Phase::new(1, threads));
        // Not loom's: only what happened counts.
        let went_on = std::sync::atomic::AtomicBool::new(false);
        let region = AssertUnwindSafe(|| {
            pool.run(&|worker: Worker<'_>| {
                a.work(worker, |i| {
                    if i == 0 {
                        std::panic::resume_unwind(Box::new("piece 0"));
                    }
                    cells.add(i, 1);
                });
                b.work(worker, |_| went_on.store(true, Ordering::Relaxed));
            });
        });
        assert!(catch_unwind(region).is_err());
        assert!(!went_on.into_inner(), "a phase began although a piece before it was not done");
        // No helper is in the region any more.
        cells.0.iter().enumerate().for_each(|(i, _)| assert!(cells.get(i) <= 1));
    }

    #[test]
    fn a_panic_ends_the_region_and_every_thread_leaves_it() {
        check(2, || panicking(2));
        check(0, || panicking(3));
    }

    #[test]
    fn a_pool_without_work_ends() {
        check(4, || drop(Pool::new(3).unwrap()));
    }
}
