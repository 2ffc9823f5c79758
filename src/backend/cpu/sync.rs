//! All that the pool takes from the standard library to keep threads apart, and how long it spins.
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
