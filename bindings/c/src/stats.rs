//! What a session counted.

use crate::{
    error::{Code, Failure, call},
    memory::{Growing, end_of, write},
    session::{Session, lock},
};

/// What a session is and what it counted since it was opened. An expert counts once for a layer and batch, however many tokens want it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Stats {
    /// sizeof(hotset_stats).
    pub size: usize,
    /// The budget now, in bytes.
    pub memory_bytes: u64,
    /// The smallest budget that `hotset_set_memory` takes.
    pub least_bytes: u64,
    /// The largest: the one that the session was opened with.
    pub most_bytes: u64,
    /// Tokens that the context holds.
    pub n_ctx: u64,
    /// Tokens in it now.
    pub n_past: u64,
    /// Tokens of the vocabulary.
    pub n_vocab: u64,
    /// Prompt tokens that ran.
    pub prompt_tokens: u64,
    /// Nanoseconds that they took.
    pub prompt_ns: u64,
    /// Tokens that ran one at a time.
    pub decode_tokens: u64,
    /// Nanoseconds that they took.
    pub decode_ns: u64,
    /// While prompts ran: experts that were in memory.
    pub prompt_hits: u64,
    /// Experts whose read was in flight already.
    pub prompt_late: u64,
    /// Experts that had to be read.
    pub prompt_misses: u64,
    /// While tokens were decoded: experts that were in memory.
    pub decode_hits: u64,
    /// Experts whose read was in flight already.
    pub decode_late: u64,
    /// Experts that had to be read.
    pub decode_misses: u64,
    /// Nanoseconds of waiting for reads with nothing to compute.
    pub stall_ns: u64,
    /// Bytes of expert reads, all kinds together.
    pub bytes_read: u64,
    /// Experts read ahead.
    pub prefetches: u64,
    /// Those of them that were then used.
    pub prefetches_used: u64,
    /// Those of them that were evicted unused.
    pub prefetches_wasted: u64,
    /// Experts that lost their slot to another.
    pub evictions: u64,
}

// SAFETY: repr(C), the size first, then integers.
unsafe impl Growing for Stats {
    const NAME: &'static str = "hotset_stats";
    const LEAST: usize = end_of!(Stats, evictions: u64);
}

impl Stats {
    fn of(session: &hotset::Session) -> Self {
        let (plan, timing, cache) = (session.plan(), session.timing(), session.stats());
        let (prompt, decode) = (&cache.prompt, &cache.decode);
        Self {
            size: size_of::<Self>(),
            memory_bytes: session.memory_bytes(),
            least_bytes: plan.least_bytes(),
            most_bytes: plan.budget_bytes,
            n_ctx: plan.n_ctx as u64,
            n_past: session.n_past() as u64,
            n_vocab: session.blueprint().n_vocab as u64,
            prompt_tokens: timing.prompt_tokens,
            prompt_ns: timing.prompt_ns,
            decode_tokens: timing.decode_tokens,
            decode_ns: timing.decode_ns,
            prompt_hits: prompt.hit,
            prompt_late: prompt.late,
            prompt_misses: prompt.miss,
            decode_hits: decode.hit,
            decode_late: decode.late,
            decode_misses: decode.miss,
            stall_ns: prompt.stall_ns + decode.stall_ns,
            bytes_read: cache.bytes_read(),
            prefetches: cache.prefetches,
            prefetches_used: cache.prefetch_useful,
            prefetches_wasted: cache.prefetch_wasted,
            evictions: cache.evictions,
        }
    }
}

/// Fills in `stats`, whose `size` the caller has set.
///
/// # Safety
/// `session` is NULL or open, `stats` is NULL or has the size that it says, and `error` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_get_stats(
    session: *const Session,
    stats: *mut Stats,
    error: *mut *mut Failure,
) -> Code {
    let told = || {
        // SAFETY: the caller's promise, as in the next one.
        let now = Stats::of(&unsafe { lock(session) }?.session);
        // SAFETY: see above.
        unsafe { write(stats, &now) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(error, told) }
}
