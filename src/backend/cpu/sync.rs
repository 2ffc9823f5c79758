//! All that the pool takes from the system to keep threads apart, and how long it spins and rests.
//!
//! Apart from the pool for `tests/pool.rs`, which compiles the same pool.rs beside another `sync` module, made of loom's
//! types, and so checks what ships. Nothing of loom is in a program.
//!
//! Must not know: the pool.

pub use std::{
    hint::spin_loop,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
    thread::{Builder, JoinHandle, Thread, park, yield_now},
};

/// Looks at a condition before a thread sleeps or gives way; one takes some 10–50 ns, so this is about 50 µs, the length of
/// the pauses within a token.
pub const SPINS: u32 = 2_000;

/// Ranges of pieces that a phase has at most, a cache line each.
pub const RANGES: usize = 32;

/// Regions that a helper sleeps through which finds itself on the caller's core, at first and at most: twice as many each
/// time. Waking it for nothing costs the caller some 5 µs.
pub const RESTS: [usize; 2] = [16, 1024];

/// The core that this thread is on, if the system tells at little cost. It may have left it when the answer comes.
pub fn core() -> Option<usize> {
    #[cfg(all(target_os = "linux", not(miri)))]
    return Some(rustix::thread::sched_getcpu());
    #[cfg(not(all(target_os = "linux", not(miri))))]
    None
}

/// Moves this thread to another core than `core`, if it may run on at least [`CORES`]: a helper's own, so that no two of them
/// meet. The system is free to move it on.
pub fn leave_core(core: usize, helper: usize) {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let Ok(allowed) = sched_getaffinity(None) else { return };
        let n_other = allowed.count() as usize - usize::from(allowed.is_set(core));
        if n_other + 1 < CORES {
            return;
        }
        let mut others = (0..CpuSet::MAX_CPU).filter(|&other| other != core && allowed.is_set(other));
        let mut one = CpuSet::new();
        one.set(others.nth(helper % n_other).expect("there are so many"));
        // Where either is refused, the thread stays where the system has it.
        let _ = sched_setaffinity(None, &one);
        let _ = sched_setaffinity(None, &allowed);
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = (core, helper);
}

/// Cores from which on a helper leaves the caller's: of fewer, another one is likely to have a neighbour.
#[cfg(all(target_os = "linux", not(miri)))]
const CORES: usize = 4;

/// An `UnsafeCell` that is reached through closures, as loom wants it to see how long an access lasts.
pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    /// A cell with `value` in it.
    pub fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Calls `f` with the address of the value, to read it.
    pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    /// Calls `f` with the address of the value, to write it.
    pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}
