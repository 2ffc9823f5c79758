//! Many tokens: rows sixteen by sixteen, each in a lane of its own.
//!
//! With a row in each lane, eight dot products leave whole spans of sixteen rows, which nothing has to fold; an activation
//! is a broadcast, which costs no more than the load; and two groups of rows by six tokens keep every sum in a register.
//! On Zen 5 that is 385 G multiplications/s a core of the 480 that `vpdpbusd` alone does (Q4_K, from the caches); pairs of
//! rows, as [`driver`](super::super::driver) has them, reach 290. What it costs is to turn sixteen rows by sixteen words,
//! which takes as long as some eight tokens: hence not for few ([`MANY_TOKENS`]).
//!
//! The bits are the driver's: each span is summed over chunks in order, and spans as [`sum_lanes`] adds them.
//!
//! Must not know: how a type's bytes are read.
//!
//! [`sum_lanes`]: crate::quant::dot::sum_lanes

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::driver::{Form, NextRows, Registers, Unpack, offset};
use super::{Avx512, Simd, Wide};
use crate::quant::act::{ActChunk, ActRow, LANES, SPAN, SPANS, span_of};
use crate::quant::block::CHUNK;
use crate::quant::QMat;

/// From this many tokens on, turning rows pays.
pub(super) const MANY_TOKENS: usize = 12;

/// Tokens that share an unpacked panel: their activations, 295 KiB at 2048 columns, and the panel stay in the L2 cache.
pub(super) const BATCH: usize = 96;

/// Groups of sixteen rows that share each activation.
const GROUPS: usize = 2;

/// Tokens that share each weight, so that two groups' sums and integers take 24 of 32 registers.
const TOKENS: usize = 6;

/// The same where halves of spans have integers of their own.
const FINE_TOKENS: usize = 4;

/// Chunks of columns that are unpacked at once: 80 KiB of a panel, and 32 more where scales are fine.
const CHUNKS: usize = 8;

/// Words of four weights in a span.
const WORDS: usize = SPAN / 4;

/// A span of sixteen rows, each in its lane.
#[repr(C, align(64))]
struct Cell {
    w: [__m512i; WORDS],
    scale: __m512,
    /// Of no meaning unless the form is [`Form::Min`].
    min: __m512,
}

/// The scales of a span's halves in sixteen rows, and their minima.
type FineCell = [[__m512i; 2]; 2];

/// Some rows by up to [`CHUNKS`] chunks: (SPANS, chunks, groups).
struct Panel {
    cells: [MaybeUninit<Cell>; SPANS * CHUNKS * GROUPS],
    /// Written where [`Unpack::FINE`].
    fine: [MaybeUninit<FineCell>; SPANS * CHUNKS * GROUPS],
}

/// What the dot products start from: minus the offset of a type's integers times the sum of the activations, for each
/// lane of [`ActChunk`]; spans' sums are in their first lane.
type Starts<const T: usize> = [[[i32; LANES]; CHUNKS]; T];

/// Sums of a batch, (BATCH, SPANS, GROUPS): kept between blocks of columns.
type Sums = [MaybeUninit<__m512>; BATCH * SPANS * GROUPS];

/// The first lane of [`ActChunk`] that has a half of span `s`: see [`crate::quant::act::LANE_GROUP`].
const fn lane(s: usize) -> usize {
    s + (s & 4)
}

avx512! {
    /// [`super::super::MatMul`].
    #[doc(hidden)]
    pub(super) unsafe fn matmul<B: Unpack<Wide>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32]) {
        let mut panel = Panel { cells: [const { MaybeUninit::uninit() }; _], fine: [const { MaybeUninit::uninit() }; _] };
        let mut sums: Sums = [const { MaybeUninit::uninit() }; _];
        let (row_bytes, n_chunk) = (w.row_bytes(), w.cols.div_ceil(CHUNK));
        for (x, y) in x.chunks(BATCH).zip(y.chunks(BATCH)) {
            let n_tile = n_chunk.div_ceil(CHUNKS) * x.len().div_ceil(tokens::<B>());
            for (i, rows) in w.data.chunks(GROUPS * LANES * row_bytes).enumerate() {
                let mut next = NextRows::of(&w.data[i * GROUPS * LANES * row_bytes + rows.len()..], rows.len(), n_tile);
                let n_row = rows.len() / row_bytes;
                // SAFETY: the caller's promise is the same.
                unsafe {
                    if n_row > LANES {
                        panel_times::<B, 2>(&mut panel, rows, n_row, x, &mut sums, &mut next);
                        store::<2>(&sums, y, i * GROUPS * LANES, n_row);
                    } else {
                        panel_times::<B, 1>(&mut panel, rows, n_row, x, &mut sums, &mut next);
                        store::<1>(&sums, y, i * GROUPS * LANES, n_row);
                    }
                }
            }
        }
    }

    /// `R` groups of rows times all tokens, to `sums`.
    ///
    /// # Safety
    /// Each token has as many chunks as a row.
    unsafe fn panel_times<B: Unpack<Wide>, const R: usize>(
        panel: &mut Panel,
        rows: &[u8],
        n_row: usize,
        x: &[ActRow<'_>],
        sums: &mut Sums,
        next: &mut NextRows<'_>,
    ) {
        let row_bytes = rows.len() / n_row;
        let n_chunk = row_bytes.div_ceil(B::BYTES);
        for first in (0..n_chunk).step_by(CHUNKS) {
            let n = CHUNKS.min(n_chunk - first);
            for r in 0..R {
                for c in 0..n {
                    let bytes = (first + c) * B::BYTES..row_bytes.min((first + c + 1) * B::BYTES);
                    // The last row stands for those that are missing.
                    let row = |i: usize| &rows[(r * LANES + i).min(n_row - 1) * row_bytes..][bytes.clone()];
                    if bytes.len() == B::BYTES {
                        unpack::<B>(panel, c * R + r, n * R, row);
                    } else {
                        let mut padded = [[0; 2 * CHUNK]; LANES];
                        // Zero bytes are zero weights with zero scales in every type of 32-element blocks.
                        padded.iter_mut().enumerate().for_each(|(i, p)| p[..bytes.len()].copy_from_slice(row(i)));
                        unpack::<B>(panel, c * R + r, n * R, |i| &padded[i][..B::BYTES]);
                    }
                }
            }
            let mut t = 0;
            while t < x.len() {
                let left = x.len() - t;
                let count = left.div_ceil(left.div_ceil(tokens::<B>()));
                let (x, sums) = (&x[t..t + count], &mut sums[t * SPANS * R..(t + count) * SPANS * R]);
                next.ask();
                // SAFETY: `unpack` wrote every cell of `n` chunks and `R` groups; the caller answers for the chunks.
                unsafe {
                    match count {
                        6 if !B::FINE => tile::<B, R, 6>(panel, n, x, first, sums),
                        5 if !B::FINE => tile::<B, R, 5>(panel, n, x, first, sums),
                        4 => tile::<B, R, 4>(panel, n, x, first, sums),
                        3 => tile::<B, R, 3>(panel, n, x, first, sums),
                        2 => tile::<B, R, 2>(panel, n, x, first, sums),
                        1 => tile::<B, R, 1>(panel, n, x, first, sums),
                        _ => unreachable!("groups of at most `tokens`"),
                    }
                }
                t += count;
            }
        }
    }

    /// Writes a chunk of sixteen rows to cell `at` and every `step`th after it.
    fn unpack<'a, B: Unpack<Wide>>(panel: &mut Panel, at: usize, step: usize, row: impl Fn(usize) -> &'a [u8]) {
        let mut w = [[const { MaybeUninit::uninit() }; LANES]; 4];
        let mut floats = [const { MaybeUninit::uninit() }; LANES]; // scales of eight spans, then minima
        let mut fine = [[const { MaybeUninit::uninit() }; LANES]; 2];
        for i in 0..LANES {
            // SAFETY: the CPU has the features, or this would not run; types with fine scales set them.
            unsafe {
                let row = B::unpack(row(i));
                let runs = if matches!(B::FORM, Form::Signed) { Avx512::from_signed(row.w) } else { row.w };
                for v in 0..4 {
                    w[v][i].write(runs[v]);
                }
                floats[i].write(_mm512_castps_si512(Wide::join([row.scale, row.min]).0));
                if B::FINE {
                    let [scale, min] = row.fine.assume_init();
                    fine[0][i].write(scale);
                    fine[1][i].write(min);
                }
            }
        }
        let cells = &mut panel.cells;
        for (v, w) in w.iter().enumerate() {
            turn(w, |i, words| {
                let cell = cells[at + (v + i / WORDS * 4) * step].as_mut_ptr();
                // SAFETY: a place in the panel, in bounds.
                unsafe { (&raw mut (*cell).w[i % WORDS]).write(words) }
            });
        }
        turn(&floats, |i, floats| {
            let cell = cells[at + i % SPANS * step].as_mut_ptr();
            let floats = _mm512_castsi512_ps(floats);
            // SAFETY: a place in the panel, in bounds.
            unsafe { if i < SPANS { (&raw mut (*cell).scale).write(floats) } else { (&raw mut (*cell).min).write(floats) } }
        });
        if B::FINE {
            for (i, fine) in fine.iter().enumerate().take(if matches!(B::FORM, Form::Min) { 2 } else { 1 }) {
                turn(fine, |p, scales| {
                    let cell = panel.fine[at + span_of(p) * step].as_mut_ptr();
                    // SAFETY: a place in the panel, in bounds.
                    unsafe { (&raw mut (*cell)[i][p / 4 % 2]).write(scales) }
                });
            }
        }
    }

    /// Sixteen rows by sixteen words; `out` gets words `i` of all rows.
    fn turn(rows: &[MaybeUninit<__m512i>; LANES], mut out: impl FnMut(usize, __m512i)) {
        // Pairs of words, then of pairs, inside 128-bit parts; then the parts themselves, twice.
        let quads: [[__m512i; 4]; 4] = std::array::from_fn(|i| {
            // SAFETY: `unpack` wrote all rows.
            let [a, b, c, d] = std::array::from_fn(|j| unsafe { rows[4 * i + j].assume_init() });
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ef, gh) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ef, gh),
                _mm512_unpackhi_epi64(ef, gh),
            ]
        });
        for k in 0..4 {
            let even = |i: usize| _mm512_shuffle_i32x4::<0b10_00_10_00>(quads[i][k], quads[i + 1][k]);
            let odd = |i: usize| _mm512_shuffle_i32x4::<0b11_01_11_01>(quads[i][k], quads[i + 1][k]);
            let [a, b, c, d] = [even(0), even(2), odd(0), odd(2)];
            out(k, _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b));
            out(4 + k, _mm512_shuffle_i32x4::<0b10_00_10_00>(c, d));
            out(8 + k, _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b));
            out(12 + k, _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d));
        }
    }

    /// `R` groups of rows times `T` tokens, over the `n` chunks of a panel that are chunk `first` and its successors of a
    /// row: onto `sums`, (T, SPANS, R), or afresh where `first` is 0.
    ///
    /// # Safety
    /// The panel's cells for `n` chunks and `R` groups are written, and `sums` for all chunks before `first`.
    unsafe fn tile<B: Unpack<Wide>, const R: usize, const T: usize>(
        panel: &Panel,
        n: usize,
        x: &[ActRow<'_>],
        first: usize,
        sums: &mut [MaybeUninit<__m512>],
    ) {
        let x: [&[ActChunk]; T] = std::array::from_fn(|t| &x[t].chunks[first..first + n]);
        assert!(n <= CHUNKS && sums.len() == T * SPANS * R, "a tile of a panel");
        let mut starts: Starts<T> = [[[0; LANES]; CHUNKS]; T];
        set_starts::<B, T>(&mut starts, x);
        for s in 0..SPANS {
            let mut acc = [[_mm512_setzero_ps(); R]; T];
            if first > 0 {
                for (i, acc) in acc.as_flattened_mut().iter_mut().enumerate() {
                    // SAFETY: the tile of the chunks before these wrote it.
                    *acc = unsafe { sums[(i / R * SPANS + s) * R + i % R].assume_init() };
                }
            }
            for c in 0..n {
                // SAFETY: the caller answers for cells and chunks; the starts are of `n` chunks.
                unsafe {
                    let at = (s * n + c) * R;
                    let cells: [&Cell; R] = std::array::from_fn(|r| panel.cells.get_unchecked(at + r).assume_init_ref());
                    let x: [&ActChunk; T] = std::array::from_fn(|t| x[t].get_unchecked(c));
                    let starts: [&[i32; LANES]; T] = std::array::from_fn(|t| starts[t].get_unchecked(c));
                    if B::FINE {
                        let fine = std::array::from_fn(|r| panel.fine.get_unchecked(at + r).assume_init_ref());
                        step_fine::<B, R, T>(cells, fine, x, starts, s, &mut acc);
                    } else {
                        step::<B, R, T>(cells, x, starts, s, &mut acc);
                    }
                }
            }
            for (i, acc) in acc.as_flattened().iter().enumerate() {
                sums[(i / R * SPANS + s) * R + i % R].write(*acc);
            }
        }
    }

    fn set_starts<B: Unpack<Wide>, const T: usize>(starts: &mut Starts<T>, x: [&[ActChunk]; T]) {
        let offset = i32::from(const { offset::<Avx512, B>() });
        if offset == 0 {
            return;
        }
        for (starts, x) in starts.iter_mut().zip(x) {
            for (start, x) in starts.iter_mut().zip(x) {
                for p in 0..LANES {
                    start[p] = -offset * if B::FINE { x.h[p] } else { x.h[p] + x.h[p ^ 4] };
                }
            }
        }
    }

    /// Words `words` of span `s`, added to `dots`.
    ///
    /// # Safety
    /// `s` is below [`SPANS`].
    unsafe fn dot<const R: usize, const T: usize>(
        cells: [&Cell; R],
        x: [&ActChunk; T],
        s: usize,
        words: std::ops::Range<usize>,
        dots: &mut [[__m512i; R]; T],
    ) {
        for k in words {
            for t in 0..T {
                // Word `k` of a span is word `k % 4` of its half `k / 4`, which is four lanes further on.
                let at = 64 * (k % 4) + 4 * (lane(s) + 4 * (k / 4));
                // SAFETY: four of the chunk's 256 bytes, at a multiple of four.
                let word = _mm512_set1_epi32(unsafe { x[t].q.as_ptr().add(at).cast::<i32>().read() });
                for r in 0..R {
                    dots[t][r] = _mm512_dpbusd_epi32(dots[t][r], cells[r].w[k], word);
                }
            }
        }
    }

    /// Span `s` of a chunk, as [`crate::quant::dot`] has it.
    ///
    /// # Safety
    /// `s` is below [`SPANS`].
    unsafe fn step<B: Unpack<Wide>, const R: usize, const T: usize>(
        cells: [&Cell; R],
        x: [&ActChunk; T],
        starts: [&[i32; LANES]; T],
        s: usize,
        acc: &mut [[__m512; R]; T],
    ) {
        // SAFETY: the caller answers for `s`, so its lane is one of sixteen.
        unsafe {
            let mut dots: [[__m512i; R]; T] = [[_mm512_setzero_si512(); R]; T];
            if const { offset::<Avx512, B>() } != 0 {
                for t in 0..T {
                    dots[t] = [_mm512_set1_epi32(*starts[t].get_unchecked(lane(s))); R];
                }
            }
            dot::<R, T>(cells, x, s, 0..WORDS, &mut dots);
            for t in 0..T {
                let (d, total) = (x[t].d.get_unchecked(s), x[t].s.get_unchecked(s));
                for r in 0..R {
                    let mut sum = _mm512_mul_ps(cells[r].scale, _mm512_cvtepi32_ps(dots[t][r]));
                    if matches!(B::FORM, Form::Min) {
                        sum = _mm512_fnmadd_ps(cells[r].min, _mm512_set1_ps(*total), sum);
                    }
                    acc[t][r] = _mm512_fmadd_ps(sum, _mm512_set1_ps(*d), acc[t][r]);
                }
            }
        }
    }

    /// [`step`] for spans whose halves have scales of their own.
    ///
    /// # Safety
    /// `s` is below [`SPANS`].
    unsafe fn step_fine<B: Unpack<Wide>, const R: usize, const T: usize>(
        cells: [&Cell; R],
        fine: [&FineCell; R],
        x: [&ActChunk; T],
        starts: [&[i32; LANES]; T],
        s: usize,
        acc: &mut [[__m512; R]; T],
    ) {
        // SAFETY: the caller answers for `s`, so its lanes are two of sixteen.
        unsafe {
            let mut scaled = [[_mm512_setzero_si512(); R]; T];
            for half in 0..2 {
                let start = |t: usize| _mm512_set1_epi32(*starts[t].get_unchecked(lane(s) + 4 * half));
                let mut dots: [[__m512i; R]; T] = std::array::from_fn(|t| [start(t); R]);
                dot::<R, T>(cells, x, s, WORDS / 2 * half..WORDS / 2 * (half + 1), &mut dots);
                for t in 0..T {
                    for r in 0..R {
                        let product = _mm512_mullo_epi32(dots[t][r], fine[r][0][half]);
                        scaled[t][r] = if half == 0 { product } else { _mm512_add_epi32(scaled[t][r], product) };
                    }
                }
            }
            for t in 0..T {
                let h = [0, 4].map(|half| _mm512_set1_epi32(*x[t].h.get_unchecked(lane(s) + half)));
                for r in 0..R {
                    let mut sum = _mm512_mul_ps(cells[r].scale, _mm512_cvtepi32_ps(scaled[t][r]));
                    if matches!(B::FORM, Form::Min) {
                        let [a, b] = [0, 1].map(|half| _mm512_mullo_epi32(h[half], fine[r][1][half]));
                        sum = _mm512_fnmadd_ps(cells[r].min, _mm512_cvtepi32_ps(_mm512_add_epi32(a, b)), sum);
                    }
                    let d = _mm512_set1_ps(*x[t].d.get_unchecked(s));
                    acc[t][r] = _mm512_fmadd_ps(sum, d, acc[t][r]);
                }
            }
        }
    }

    /// Adds the spans of each token and row, and writes `n_row` rows from `row` on.
    ///
    /// # Safety
    /// Each `y` has room for the rows; the sums of as many tokens are written.
    unsafe fn store<const R: usize>(sums: &Sums, y: &[*mut f32], row: usize, n_row: usize) {
        for (y, spans) in y.iter().zip(sums.chunks_exact(SPANS * R)) {
            for r in 0..R {
                // SAFETY: the caller answers for the sums.
                let span = |s: usize| unsafe { spans[s * R + r].assume_init() };
                let [a, b, c, d]: [__m512; 4] = std::array::from_fn(|s| _mm512_add_ps(span(s), span(s + 4)));
                let sum = _mm512_add_ps(_mm512_add_ps(a, c), _mm512_add_ps(b, d));
                let n = LANES.min(n_row - r * LANES);
                // SAFETY: the caller answers for `y`; the mask leaves out what is no row.
                unsafe { _mm512_mask_storeu_ps(y.add(row + r * LANES), (u16::MAX) >> (LANES - n), sum) }
            }
        }
    }
}

/// Tokens of a tile.
const fn tokens<B: Unpack<Wide>>() -> usize {
    if B::FINE { FINE_TOKENS } else { TOKENS }
}
