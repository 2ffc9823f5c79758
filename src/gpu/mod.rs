//! A graphics card that computes experts whose weights it holds, with the bits of the CPU.
//!
//! [`Device`] is what is needed of one: memory, kernels, a queue that computes and one that copies. [`Ffns`] runs gated
//! feed-forward networks on it. Before a device takes part, `check` compares its arithmetic with the CPU's; one whose own
//! operations differ does them in whole numbers, and one that still differs is refused.
//!
//! Must not know: files, expert ids, caches, models.

mod check;
mod ffn;
mod kernels;
mod rates;
#[cfg(feature = "vulkan")]
mod vulkan;

pub use check::{check, differences};
pub use ffn::{Ffns, Job, Limits, MAX_ROWS, Shape};
pub use kernels::{Kernels, computes};
pub use rates::{Rate, rates};

use crate::{Error, Result};

/// A piece of memory that a device can read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its number among the device's.
    index: usize,
    /// Where kernels find it.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
}

/// What a buffer is for, which decides where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the device's own memory: weights, and what kernels leave to each other.
    Device,
    /// Written by the host, read by kernels: in the device's memory where the host reaches that.
    Input,
    /// Written by the host, and copied to the device.
    Staging,
    /// Written by kernels, read by the host.
    Output,
}

/// A kernel of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(usize);

/// Words that a kernel is given beside its buffers.
pub const PUSH_WORDS: usize = 20;

/// How kernels do arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// By the device's operations, told to keep subnormal numbers, NaN and signs and to round to nearest, as far as it can be told.
    /// Where small numbers come up, in whole numbers.
    Strict,
    /// The same by the device's operations as they are.
    Plain,
    /// In whole numbers, which is slow and right on any device.
    Whole,
}

impl Arithmetic {
    /// All, the fastest first.
    pub const ALL: [Arithmetic; 3] = [Arithmetic::Strict, Arithmetic::Plain, Arithmetic::Whole];
}

/// One step of a submission.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Runs a kernel in so many workgroups.
    Run {
        /// The kernel.
        kernel: Kernel,
        /// Workgroups.
        groups: [u32; 3],
        /// What it is given.
        push: [u32; PUSH_WORDS],
    },
    /// Waits until all steps before have written what they write.
    Barrier,
}

/// Copies in flight at most: each has a number below this.
pub const LANES: usize = 4;

/// A device. Nothing is undone by an error: whoever gets one must not use the device's results any more.
pub trait Device: Send {
    /// Its name, for people.
    fn name(&self) -> &str;
    /// Why a tier in its memory gains nothing, if so: it shares the machine's.
    fn shares_memory(&self) -> bool;
    /// Bytes of its own memory that this process may still take.
    fn free_bytes(&self) -> u64;
    /// Bytes of its own memory that this process has taken, all in all, where the driver tells.
    fn used_bytes(&self) -> Option<u64>;
    /// Builds a kernel from SPIR-V. Its first constant says whether it computes in whole numbers, its second, where it has one,
    /// whether the device multiplies four bytes at once.
    ///
    /// # Errors
    /// If the driver refuses it.
    fn kernel(&mut self, code: &[u8], arithmetic: Arithmetic) -> Result<Kernel>;
    /// Allocates memory. What it holds is unspecified.
    ///
    /// # Errors
    /// If there is not enough.
    fn allocate(&mut self, bytes: u64, place: Place) -> Result<Buffer>;
    /// Gives memory back, which nothing uses any more.
    fn free(&mut self, buffer: Buffer);
    /// Writes to an [`Place::Input`] or [`Place::Staging`] buffer, which no kernel or copy uses now.
    ///
    /// # Panics
    /// If the bytes lie outside.
    fn write(&mut self, to: Buffer, at: u64, bytes: &[u8]);
    /// Reads from an [`Place::Output`] buffer, which no kernel uses now.
    ///
    /// # Panics
    /// If the bytes lie outside.
    fn read(&self, from: Buffer, at: u64, bytes: &mut [u8]);
    /// Starts the steps. What was started before must have been waited for.
    ///
    /// # Errors
    /// If the driver refuses.
    fn submit(&mut self, steps: &[Step]) -> Result<()>;
    /// Waits for the submitted steps.
    ///
    /// # Errors
    /// If the device is lost.
    fn wait(&mut self) -> Result<()>;
    /// Starts to copy the first `bytes` of one buffer to `at` in another, beside what is computed. What `lane` copied before
    /// must have been waited for.
    ///
    /// # Errors
    /// If the driver refuses.
    fn copy(&mut self, lane: usize, from: Buffer, to: Buffer, at: u64, bytes: u64) -> Result<()>;
    /// Waits for what `lane` copies, if anything.
    ///
    /// # Errors
    /// If the device is lost.
    fn wait_copy(&mut self, lane: usize) -> Result<()>;
}

/// Which device to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Choice {
    /// The one with most memory of its own.
    #[default]
    Best,
    /// The same, even if it shares the machine's memory.
    Any,
    /// The one of this number, as the driver lists them, whatever it is.
    Number(usize),
}

/// Opens a device.
///
/// # Errors
/// One sentence: there is no driver, no such device, or it lacks what is needed.
pub fn open(choice: Choice) -> Result<Box<dyn Device>> {
    #[cfg(feature = "vulkan")]
    return Ok(Box::new(vulkan::Vulkan::open(choice)?));
    #[cfg(not(feature = "vulkan"))]
    {
        let _ = choice;
        Err(Error::invalid("this program was built without support for GPUs"))
    }
}

/// A device's sentence.
fn fault(name: &str, what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("{name}: {what}"))
}
