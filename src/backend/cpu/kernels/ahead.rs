//! Asking memory for weights before they are used.
//!
//! Hints only: nothing here changes a result.
//!
//! Must not know: types, tokens, registers.

use super::maker::is_amd;

/// How memory is asked for bytes ahead of those in use. The first group of tokens to visit rows asks; nothing else hides
/// DRAM's latency from it. It asks in the order in which bytes lie (asking for each row of a pair in turn, two streams, halved
/// the rate of decoding), and counts from the second row's start, since that row's bytes are used while half as many have been
/// asked for.
#[derive(Clone, Copy)]
enum Hint {
    /// Into L1: other groups of tokens come for the same bytes.
    Near,
    /// Used once, past the L3 cache (`prefetchnta`), which would take each line when the L2 cache gives it up, and keep for
    /// nothing. On a Zen 5 core decoding a model of Q4_0 with a head of Q6_K became 15 % faster, on two cores 6 % where they
    /// share a link to memory and 13 % where each has its own; 4096 bytes ahead, 4 %. A model that fits in the L3 cache loses
    /// nothing. 6144 bytes ahead are as good as 8192 for Q4_0 and Q4_K, 1 % better for MXFP4, 3 to 4 % for Q6_K and Q8_0.
    Past,
    /// Used once, into L2. Intel's CPUs bring what `prefetchnta` asks for to L1, not to L2, and L1 is small. On Emerald Rapids
    /// two threads read Q4_K at 16.1 GB/s with this and at 7.5 with `Past` (15.4 with that 4096 bytes ahead, where a plain read
    /// gave 15.5), one thread at 11.9 and 6.9 (9.9; 9.2); Q4_0 at 21.1 and 10.8 (16.8; 16.8), Q6_K at 21.2 and 9.1 (12.6; 17.1).
    Second,
}

impl Hint {
    /// For bytes that are used `once`, or again.
    fn new(once: bool) -> Hint {
        match once {
            false => Hint::Near,
            true if is_amd() => Hint::Past,
            true => Hint::Second,
        }
    }

    /// How far ahead, in bytes: some rows, across the pages at which the hardware's own prefetcher stops.
    #[inline(always)]
    const fn distance(self) -> usize {
        match self {
            Hint::Near => 8192,
            Hint::Past => 6144,
            Hint::Second => 4096,
        }
    }

    /// Asks for the line at `at`: any address will do. Nothing but on x86-64: elsewhere Rust has no stable way.
    #[inline(always)]
    fn ask(self, at: *const u8) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_NTA, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
            // SAFETY: a prefetch never faults, and every x86-64 CPU has it.
            unsafe {
                match self {
                    Hint::Near => _mm_prefetch::<_MM_HINT_T0>(at.cast()),
                    Hint::Past => _mm_prefetch::<_MM_HINT_NTA>(at.cast()),
                    Hint::Second => _mm_prefetch::<_MM_HINT_T1>(at.cast()),
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }
}

/// Where to ask for bytes: some way behind those in use, and behind a matrix's end in what the thread reads then. Each piece
/// of a matrix would begin by waiting for DRAM otherwise, and decoding has a thousand of them a token.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    end: *const u8,
    then: *const u8,
    hint: Hint,
}

impl Ahead {
    /// `once`: no other group of tokens comes for the same bytes.
    pub(super) fn new(now: &[u8], then: &[u8], once: bool) -> Self {
        let end = now.as_ptr_range().end;
        Ahead { end, then: if then.is_empty() { end } else { then.as_ptr() }, hint: Hint::new(once) }
    }

    /// Goes on behind the bytes in use for ever.
    pub(super) fn endless() -> Self {
        Ahead { end: usize::MAX as *const u8, then: std::ptr::null(), hint: Hint::new(true) }
    }

    /// Asks for as much as the `len` bytes at `at`, some way behind them.
    #[inline(always)]
    pub(super) fn ask(self, at: *const u8, len: usize) {
        let ahead = self.behind(at);
        for line in (0..len).step_by(64) {
            self.hint.ask(ahead.wrapping_add(line));
        }
    }

    /// What is to be asked for when the bytes at `at` are used.
    #[inline(always)]
    fn behind(self, at: *const u8) -> *const u8 {
        let ahead = at.wrapping_add(self.hint.distance());
        if ahead < self.end { ahead } else { self.then.wrapping_add(ahead.addr() - self.end.addr()) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Ahead {
    /// Asks for the first lines of the page that begins a page behind the `len` bytes at `at`, if one does. Where bytes are
    /// used in the order in which they lie, the hardware asks for what follows, but only to a page's end. For rows that are
    /// interleaved: all lines at once gave half to four fifths of the rate on Zen 4.
    #[inline(always)]
    pub(super) fn ask_page(self, at: *const u8, len: usize) {
        const PAGE: usize = 4096;
        let mut ahead = at.wrapping_add(PAGE);
        let mut skip = ahead.addr().wrapping_neg() % PAGE;
        if ahead >= self.end {
            let past = ahead.addr() - self.end.addr();
            ahead = self.then.wrapping_add(past);
            // What comes then begins anywhere in its page.
            skip = if past < len { 0 } else { ahead.addr().wrapping_neg() % PAGE };
        }
        if skip < len {
            ask_for(ahead.wrapping_add(skip), 512);
        }
    }
}

/// Asks for `len` bytes, into the L2 cache.
#[inline(always)]
pub(super) fn ask_for(at: *const u8, len: usize) {
    for line in (0..len).step_by(64) {
        Hint::Second.ask(at.wrapping_add(line));
    }
}

/// The rows that are unpacked next, of which each multiplication of a pair asks memory for its share: unpacking alone
/// would wait for DRAM, while nothing is asked of it during the multiplications, which take ten times as long. Asking for all
/// that comes after a matrix, and not only the first rows, since few tokens may come for it: prompts 1 to 4 % slower (Intel).
pub(super) struct NextRows {
    at: *const u8,
    /// Lines that nobody has asked for yet.
    left: usize,
    /// Lines that are asked for at once.
    share: usize,
}

impl NextRows {
    /// The first `len` of `bytes`, in `n` shares.
    pub(super) fn of(bytes: &[u8], len: usize, n: usize) -> Self {
        let left = len.min(bytes.len()).div_ceil(64);
        NextRows { at: bytes.as_ptr(), left, share: len.div_ceil(64).div_ceil(n) }
    }

    #[inline(always)]
    pub(super) fn ask(&mut self) {
        let n = self.share.min(self.left);
        ask_for(self.at, 64 * n);
        (self.at, self.left) = (self.at.wrapping_add(64 * n), self.left - n);
    }
}
