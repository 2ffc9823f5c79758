//! Many tokens: rows eight by eight, each in a lane of its own.
//!
//! AVX-512's way ([`panel`](super::super::avx512)) with registers half as wide and half as many: eight products leave a span of
//! eight rows, which nothing has to fold; an activation is a broadcast, which costs no more than the load; two groups of rows
//! by four tokens keep their integers in registers, so a weight is loaded once for four tokens. By pairs of rows, as
//! [`driver`](super::super::driver) has them, it is loaded once for each, and loads bound it. On a Zen 5 core, from the caches,
//! 16 and 64 tokens of Q4_K became 1.46 and 1.30 times as fast with AVX2, 1.44 and 1.20 with AVX-VNNI; prompts of 512 tokens of
//! a whole model 1.29 and 1.2. Now two ports bound it, which products share with floats: 24 to 26 of their operations for two
//! groups and a token, of which 16 are products.
//!
//! The bits are the driver's: each span is summed over chunks in order, and spans as [`sum_lanes`] adds them. What is added
//! in another order are whole numbers below 2^24, which floats hold exactly.
//!
//! Must not know: how a type's bytes are read.
//!
//! [`sum_lanes`]: crate::quant::dot::sum_lanes

use std::arch::{asm, x86_64::*};
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::ahead::NextRows;
use super::super::driver::{Form, Row, Simd, Unpack, offset};
use super::{Avx2, AvxVnni, Narrow, fit, product, transpose_floats};
use crate::quant::QMat;
use crate::quant::act::{ActChunk, ActRow, SPANS, WORDS, lane, word};
use crate::quant::block::CHUNK;

/// From this many tokens on, turning rows pays: with four, 0.82 to 1.05 times the rate of pairs of rows.
pub(super) const MANY_TOKENS: usize = 8;

/// Rows of a group.
const ROWS: usize = 8;

/// Groups of rows that share each activation.
const GROUPS: usize = 2;

/// Tokens that share each weight.
const TOKENS: usize = 4;

/// Tokens whose sums are kept between blocks of columns.
const BATCH: usize = 144;

/// Chunks of columns that are unpacked at once: a panel of 16 to 28 KiB stays in the L1 cache while tokens pass.
const CHUNKS: usize = 4;

// Registers of a cell, which is a span of eight rows: words, the scale, then what the type has of the others.
const SCALE: usize = WORDS;
const MIN: usize = SCALE + 1;
const HALF_SCALES: usize = MIN + 1;
const HALF_MINIMA: usize = HALF_SCALES + 2;
const CELL: usize = HALF_MINIMA + 2;

/// Some rows by up to [`CHUNKS`] chunks: (SPANS, chunks, groups), cells of as many registers as [`cell`] says.
type Panel = [MaybeUninit<__m256i>; SPANS * CHUNKS * GROUPS * CELL];

/// Sums of a batch, (BATCH, SPANS, GROUPS): kept between blocks of columns.
type Sums = [MaybeUninit<__m256>; BATCH * SPANS * GROUPS];

/// Registers of a cell of `B`.
const fn cell<B: Unpack<Narrow>>() -> usize {
    match (B::FINE, B::FORM) {
        _ if B::HALVES => HALF_SCALES,
        (false, Form::Min) => HALF_SCALES,
        (false, _) => MIN,
        (true, Form::Min) => CELL,
        (true, _) => HALF_MINIMA,
    }
}

/// An instruction set's products.
///
/// # Safety
/// Every method: the CPU has the instruction set.
pub(super) trait Products: Simd<R = Narrow> {
    /// For each token, from whose first word the pointer is, and group, whose first word `w` has and the next one's is `cell`
    /// registers on: `words` of a span, multiplied and added.
    ///
    /// # Safety
    /// The words are there.
    unsafe fn sums<B: Unpack<Narrow>, const R: usize, const T: usize>(
        w: *const __m256i,
        cell: usize,
        x: [*const i8; T],
        words: Range<usize>,
    ) -> [[__m256i; R]; T];
}

/// Word `k` of a span in all lanes, from the first one of its lane.
// SAFETY: needs the CPU's features, and that the word is there.
#[inline(always)]
unsafe fn broadcast(x: *const i8, k: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_set1_epi32(x.add(word(k)).cast::<i32>().read_unaligned()) }
}

/// `$body` for each word of a range, a half of a span or all of it, without a loop.
macro_rules! for_words {
    ($k:ident in $words:ident => $body:block) => { for_words!(@ $k $words $body 0 1 2 3 4 5 6 7) };
    (@ $k:ident $words:ident $body:block $($n:literal)*) => { $(
        if $words.contains(&$n) {
            let $k: usize = $n;
            $body
        }
    )* };
}

/// `x`, in a register, and computed before what is pinned later. The compiler would go token by token otherwise, with all weights of
/// a span on their way through memory: as many loads as products.
#[inline]
#[target_feature(enable = "avx2")]
fn pin(mut x: __m256i) -> __m256i {
    // SAFETY: nothing is done.
    unsafe { asm!("/* {} */", inout(ymm_reg) x, options(nomem, nostack, preserves_flags)) };
    x
}

impl Products for Avx2 {
    // SAFETY: needs the CPU's features, as [`Products`] says.
    #[inline(always)]
    unsafe fn sums<B: Unpack<Narrow>, const R: usize, const T: usize>(
        w: *const __m256i,
        cell: usize,
        x: [*const i8; T],
        words: Range<usize>,
    ) -> [[__m256i; R]; T] {
        let fit = const { fit::<B>() };
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[_mm256_setzero_si256(); R]; T];
            let mut short = sums;
            for_words!(k in words => {
                for (short, x) in short.iter_mut().zip(x) {
                    let x = broadcast(x, k);
                    for (r, short) in short.iter_mut().enumerate() {
                        let w = w.add(r * cell + k).read();
                        let product = product::<B>(w, x);
                        *short = pin(if k.is_multiple_of(fit) { product } else { _mm256_add_epi16(*short, product) });
                    }
                }
                if (k + 1).is_multiple_of(fit) || k + 1 == words.end {
                    for t in 0..T {
                        for r in 0..R {
                            let wide = _mm256_madd_epi16(short[t][r], _mm256_set1_epi16(1));
                            sums[t][r] = if k < words.start + fit { wide } else { _mm256_add_epi32(sums[t][r], wide) };
                        }
                    }
                }
            });
            sums
        }
    }
}

impl Products for AvxVnni {
    // SAFETY: needs the CPU's features, as [`Products`] says.
    #[inline(always)]
    unsafe fn sums<B: Unpack<Narrow>, const R: usize, const T: usize>(
        w: *const __m256i,
        cell: usize,
        x: [*const i8; T],
        words: Range<usize>,
    ) -> [[__m256i; R]; T] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[_mm256_setzero_si256(); R]; T];
            for_words!(k in words => {
                for (sums, x) in sums.iter_mut().zip(x) {
                    let x = broadcast(x, k);
                    for (r, sum) in sums.iter_mut().enumerate() {
                        *sum = pin(_mm256_dpbusd_avx_epi32(*sum, w.add(r * cell + k).read(), x));
                    }
                }
            });
            sums
        }
    }
}

/// [`super::super::MatMul`]. Takes some 130 KiB of stack: a panel and a batch's sums.
///
/// # Safety
/// As [`super::super::MatMul`].
#[inline(always)]
pub(super) unsafe fn matmul<S: Products, B: Unpack<Narrow>>(
    w: QMat<'_>,
    x: &[ActRow<'_>],
    y: &[*mut f32],
    then: &[u8],
) {
    let mut panel: Panel = [const { MaybeUninit::uninit() }; _];
    let mut sums: Sums = [const { MaybeUninit::uninit() }; _];
    let (row_bytes, n_chunk) = (B::row_bytes(&w), w.cols.div_ceil(CHUNK));
    for (x, y) in x.chunks(BATCH).zip(y.chunks(BATCH)) {
        let n_step = n_chunk.div_ceil(CHUNKS) * SPANS * x.len().div_ceil(TOKENS);
        for (i, bytes) in w.data.chunks(GROUPS * ROWS * row_bytes).enumerate() {
            let first = i * GROUPS * ROWS;
            let rest = &w.data[first * row_bytes + bytes.len()..];
            let mut next = NextRows::of(if rest.is_empty() { then } else { rest }, bytes.len(), n_step);
            let rows = (bytes, bytes.len() / row_bytes, first);
            // SAFETY: the caller's promise is the same.
            unsafe {
                if rows.1 > ROWS {
                    strip_times::<S, B, 2>(rows, x, y, &mut panel, &mut sums, &mut next);
                } else {
                    strip_times::<S, B, 1>(rows, x, y, &mut panel, &mut sums, &mut next);
                }
            }
        }
    }
}

/// `R` groups of rows, the bytes of `n` of which the first has number `row`, times all tokens.
///
/// # Safety
/// The CPU has the instruction set; each token has as many chunks as a row, and each `y` room for the rows.
#[inline(always)]
unsafe fn strip_times<S: Products, B: Unpack<Narrow>, const R: usize>(
    (bytes, n, row): (&[u8], usize, usize),
    x: &[ActRow<'_>],
    y: &[*mut f32],
    panel: &mut Panel,
    sums: &mut Sums,
    next: &mut NextRows,
) {
    let row_bytes = bytes.len() / n;
    let n_chunk = row_bytes.div_ceil(B::BYTES);
    for first in (0..n_chunk).step_by(CHUNKS) {
        let block = first..n_chunk.min(first + CHUNKS);
        // SAFETY: the caller's promise is the same; [`fill`] writes the cells that are then read.
        unsafe {
            fill::<S, B, R>(bytes, row_bytes, &block, panel);
            let mut t = 0;
            while t < x.len() {
                let left = x.len() - t;
                let count = left.div_ceil(left.div_ceil(TOKENS));
                let (x, y) = (&x[t..t + count], &y[t..t + count]);
                let sums = &mut sums[t * SPANS * R..(t + count) * SPANS * R];
                match count {
                    4 => tile::<S, B, R, 4>(panel, &block, x, sums, next),
                    3 => tile::<S, B, R, 3>(panel, &block, x, sums, next),
                    2 => tile::<S, B, R, 2>(panel, &block, x, sums, next),
                    1 => tile::<S, B, R, 1>(panel, &block, x, sums, next),
                    _ => unreachable!("groups of at most TOKENS"),
                }
                if block.end == n_chunk {
                    store::<R>(sums, y, row, n);
                }
                t += count;
            }
        }
    }
}

/// Unpacks chunks `block` of `R` groups of rows.
// SAFETY: needs the CPU's features.
#[inline(always)]
unsafe fn fill<S: Products, B: Unpack<Narrow>, const R: usize>(
    bytes: &[u8],
    row_bytes: usize,
    block: &Range<usize>,
    panel: &mut Panel,
) {
    for r in 0..R {
        let group = &bytes[r * ROWS * row_bytes..bytes.len().min((r + 1) * ROWS * row_bytes)];
        for c in 0..block.len() {
            let at = (block.start + c) * B::BYTES;
            let cells = &mut panel[(c * R + r) * cell::<B>()..];
            let step = block.len() * R * cell::<B>();
            // SAFETY: the caller checked the CPU.
            unsafe {
                if at + B::BYTES <= row_bytes && group.len() == ROWS * row_bytes {
                    unpack_group::<S, B>(&group[at..], row_bytes, cells, step);
                } else {
                    // Zero bytes are zero weights with zero scales in every type of 32-element blocks.
                    let mut padded = [[0; 2 * CHUNK]; ROWS];
                    for (padded, row) in padded.iter_mut().zip(group.chunks_exact(row_bytes)) {
                        let rest = &row[at..row_bytes.min(at + B::BYTES)];
                        padded[..rest.len()].copy_from_slice(rest);
                    }
                    unpack_group::<S, B>(padded.as_flattened(), 2 * CHUNK, cells, step);
                }
            }
        }
    }
}

/// Unpacks a chunk of a group of rows, which begin every `stride` bytes, for which there are cells every `step` registers, one for
/// each span.
// SAFETY: needs the CPU's features.
#[inline(always)]
unsafe fn unpack_group<S: Products, B: Unpack<Narrow>>(
    bytes: &[u8],
    stride: usize,
    cells: &mut [MaybeUninit<__m256i>],
    step: usize,
) {
    assert!(cells.len() >= (SPANS - 1) * step + cell::<B>(), "a cell for each span");
    let cells = cells.as_mut_ptr();
    // SAFETY: the caller checked the CPU; a fine type sets `fine`; spans and registers of a cell are in range, by the assertion.
    unsafe {
        let put =
            |span: usize, i: usize, register: __m256i| cells.add(span * step + i).cast::<__m256i>().write(register);
        let mut read = [const { MaybeUninit::<Row<Narrow>>::uninit() }; ROWS];
        for (i, row) in read.iter_mut().enumerate() {
            let mut unpacked = B::unpack(&bytes[i * stride..][..B::BYTES]);
            if matches!(B::FORM, Form::Signed) {
                unpacked.w = S::from_signed(unpacked.w);
            }
            row.write(unpacked);
        }
        let rows = read.assume_init_ref();
        let zero = _mm256_setzero_ps();
        let (mut scale, mut min) = ([zero; ROWS], [zero; ROWS]);
        for (i, row) in rows.iter().enumerate() {
            (scale[i], min[i]) = (row.scale, row.min);
        }
        let (scale, min) = (transpose_floats(scale), transpose_floats(min));
        for s in 0..SPANS {
            let mut words = [zero; WORDS];
            for (word, row) in words.iter_mut().zip(rows) {
                *word = _mm256_castsi256_ps(row.w[s]);
            }
            for (k, word) in transpose_floats(words).into_iter().enumerate() {
                put(s, k, _mm256_castps_si256(word));
            }
            put(s, SCALE, _mm256_castps_si256(scale[s]));
            if const { cell::<B>() > MIN } {
                put(s, MIN, _mm256_castps_si256(min[s]));
            }
        }
        if B::FINE {
            for which in 0..if matches!(B::FORM, Form::Min) { 2 } else { 1 } {
                for eight in 0..2 {
                    let mut lanes = [zero; ROWS];
                    for (lane, row) in lanes.iter_mut().zip(rows) {
                        *lane = _mm256_cvtepi32_ps(row.fine.assume_init_ref()[which][eight]);
                    }
                    for (p, register) in transpose_floats(lanes).into_iter().enumerate() {
                        put(4 * eight + p % 4, HALF_SCALES + 2 * which + p / 4, _mm256_castps_si256(register));
                    }
                }
            }
        }
    }
}

/// `R` groups of rows times `T` tokens, over the chunks of a row that the panel has: onto `sums`, (T, SPANS, R), or afresh
/// for a row's first ones.
///
/// # Safety
/// The CPU has the instruction set; the cells of these chunks and `R` groups are written, `sums` of all chunks before them.
#[inline(always)]
unsafe fn tile<S: Products, B: Unpack<Narrow>, const R: usize, const T: usize>(
    panel: &Panel,
    block: &Range<usize>,
    x: &[ActRow<'_>],
    sums: &mut [MaybeUninit<__m256>],
    next: &mut NextRows,
) {
    let mut chunks: [&[ActChunk]; T] = [&[]; T];
    for (chunks, x) in chunks.iter_mut().zip(x) {
        *chunks = &x.chunks[block.clone()];
    }
    assert!(block.len() <= CHUNKS && sums.len() == T * SPANS * R, "a tile of a panel");
    for s in 0..SPANS {
        next.ask();
        // SAFETY: the caller answers for cells and sums; each token has as many chunks.
        unsafe {
            let mut acc = [[_mm256_setzero_ps(); R]; T];
            if block.start > 0 {
                for (t, acc) in acc.iter_mut().enumerate() {
                    for (r, acc) in acc.iter_mut().enumerate() {
                        *acc = sums[(t * SPANS + s) * R + r].assume_init();
                    }
                }
            }
            for c in 0..block.len() {
                let mut x = [&ActChunk::ZERO; T];
                for (x, chunks) in x.iter_mut().zip(&chunks) {
                    *x = chunks.get_unchecked(c);
                }
                let cells = panel.as_ptr().add((s * block.len() + c) * R * cell::<B>());
                step::<S, B, R, T>(cells.cast(), x, s, &mut acc);
            }
            for (t, acc) in acc.iter().enumerate() {
                for (r, acc) in acc.iter().enumerate() {
                    sums[(t * SPANS + s) * R + r].write(*acc);
                }
            }
        }
    }
}

/// Span `s` of a chunk of `R` groups of rows times that of `T` tokens, onto their sums.
///
/// # Safety
/// The CPU has the instruction set; `cells` are `R` of `B`'s.
#[inline(always)]
unsafe fn step<S: Products, B: Unpack<Narrow>, const R: usize, const T: usize>(
    cells: *const __m256i,
    x: [&ActChunk; T],
    s: usize,
    acc: &mut [[__m256; R]; T],
) {
    let cell = const { cell::<B>() };
    let offset = const { offset::<S, B>() };
    // SAFETY: the caller's promise.
    unsafe {
        let of = |r: usize, i: usize| _mm256_castsi256_ps(cells.add(r * cell + i).read());
        let mut q = [std::ptr::null(); T];
        for (q, x) in q.iter_mut().zip(x) {
            *q = x.q.as_ptr().add(4 * lane(s));
        }
        if B::FINE || B::HALVES {
            let halves = [S::sums::<B, R, T>(cells, cell, q, 0..4), S::sums::<B, R, T>(cells, cell, q, 4..8)];
            for t in 0..T {
                // No `map` here: it is not inlined.
                let h = [_mm256_set1_ps(x[t].h[lane(s)] as f32), _mm256_set1_ps(x[t].h[lane(s) + 4] as f32)];
                for r in 0..R {
                    let mut sum = _mm256_setzero_ps();
                    for half in 0..2 {
                        let mut dot = _mm256_cvtepi32_ps(halves[half][t][r]);
                        if offset != 0 {
                            dot = _mm256_fnmadd_ps(_mm256_set1_ps(f32::from(offset)), h[half], dot);
                        }
                        // Of a fine type below 2^24: exact. Otherwise zero is added to the first one, and the second one fused.
                        let scale = if B::HALVES { [SCALE, MIN][half] } else { HALF_SCALES + half };
                        sum = _mm256_fmadd_ps(dot, of(r, scale), sum);
                    }
                    if B::FINE {
                        sum = _mm256_mul_ps(sum, of(r, SCALE));
                    }
                    if matches!(B::FORM, Form::Min) {
                        let second = _mm256_mul_ps(h[1], of(r, HALF_MINIMA + 1));
                        let least = _mm256_fmadd_ps(h[0], of(r, HALF_MINIMA), second);
                        sum = _mm256_fnmadd_ps(of(r, MIN), least, sum);
                    }
                    acc[t][r] = _mm256_fmadd_ps(sum, _mm256_broadcast_ss(&x[t].d[s]), acc[t][r]);
                }
            }
        } else {
            let sums = S::sums::<B, R, T>(cells, cell, q, 0..8);
            for t in 0..T {
                let total = _mm256_broadcast_ss(&x[t].s[s]);
                for r in 0..R {
                    let mut sum = _mm256_cvtepi32_ps(sums[t][r]);
                    if offset != 0 {
                        sum = _mm256_fnmadd_ps(_mm256_set1_ps(f32::from(offset)), total, sum); // below 2^24: exact
                    }
                    sum = _mm256_mul_ps(sum, of(r, SCALE));
                    if matches!(B::FORM, Form::Min) {
                        sum = _mm256_fnmadd_ps(of(r, MIN), total, sum);
                    }
                    acc[t][r] = _mm256_fmadd_ps(sum, _mm256_broadcast_ss(&x[t].d[s]), acc[t][r]);
                }
            }
        }
    }
}

/// Adds the spans of each token and row, and writes `n` rows from `row` on.
///
/// # Safety
/// The CPU has the instruction set; each `y` has room for the rows; the sums of as many tokens are written.
#[inline(always)]
unsafe fn store<const R: usize>(sums: &[MaybeUninit<__m256>], y: &[*mut f32], row: usize, n: usize) {
    for (y, spans) in y.iter().zip(sums.chunks_exact(SPANS * R)) {
        for r in 0..R {
            let n = ROWS.min(n - r * ROWS);
            // SAFETY: the caller's promise.
            unsafe {
                let two =
                    |s: usize| _mm256_add_ps(spans[s * R + r].assume_init(), spans[(s + 4) * R + r].assume_init());
                let sum = _mm256_add_ps(_mm256_add_ps(two(0), two(2)), _mm256_add_ps(two(1), two(3)));
                let mut rows = [0.0; ROWS];
                _mm256_storeu_ps(rows.as_mut_ptr(), sum);
                y.add(row + r * ROWS).copy_from_nonoverlapping(rows.as_ptr(), n);
            }
        }
    }
}
