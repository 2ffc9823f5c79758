//! Many tokens by `smmla`, which multiplies two rows of eight bytes with two others: twice `sdot`'s products.
//!
//! Rows and tokens go in pairs; what belongs to one span of a pair of rows and a pair of tokens is one register. Eight
//! bytes must be of one group, so weights and activations are interleaved to memory first, weights once for all tokens,
//! activations once for each block of rows. Each sum takes the steps that the driver's take, in their order.
//!
//! Time was not measured: no such CPU was at hand.
//!
//! Must not know: what bytes mean.

use std::arch::aarch64::*;
use std::arch::asm;
use std::mem::MaybeUninit;

use super::super::driver::{self, AHEAD, Form, ROWS, Unpack, Weights, unpack_rows};
use super::{I8mm, L128, Quad, W128, load16, zip32, zip64};
use crate::quant::QMat;
use crate::quant::act::{ActChunk, ActRow, LANES, SPANS};
use crate::quant::block::CHUNK;

/// Chunks that a row may have: two pairs of tokens take 96 KiB then.
const MAX_CHUNKS: usize = 64;

/// Pairs of rows, and pairs of tokens, that a tile has at most.
const TILE: usize = 2;

/// A chunk of two rows. Registers `2 * p` and `2 * p + 1` of `w` hold eight bytes of lane `p` of each row.
#[derive(Clone, Copy)]
struct RowPair {
    w: [uint8x16_t; 2 * LANES],
    /// Each row's twice, side by side.
    scale: [float32x4_t; SPANS],
    min: [float32x4_t; SPANS],
    /// Scale and minimum of each lane, likewise; of no meaning unless the type's scales are finer.
    fine: [[int32x4_t; LANES]; 2],
}

/// A chunk of two tokens, with `q` like [`RowPair`]'s weights.
#[derive(Clone, Copy)]
struct TokenPair {
    q: [uint8x16_t; 2 * LANES],
    /// Span by span or lane by lane, both tokens' side by side.
    d: [[f32; 2]; SPANS],
    s: [[f32; 2]; SPANS],
    h: [[i32; 2]; LANES],
}

/// Adds to (00, 01, 10, 11) the sums of products of both halves of `a` with both halves of `b`.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn smmla(mut sum: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    // SAFETY: the instruction is enabled here and touches these registers only.
    unsafe {
        asm!(
            "smmla {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

neon! {
    /// Two chunks in [`W128`]'s order, eight bytes of each side by side.
    fn pair_bytes(a: &W128, b: &W128) -> [uint8x16_t; 2 * LANES] {
        let mut out = [vdupq_n_u8(0); 2 * LANES];
        for j in 0..4 {
            for half in 0..2 {
                let (a, b) = (zip32(a[j][2 * half], a[j][2 * half + 1]), zip32(b[j][2 * half], b[j][2 * half + 1]));
                let ([p0, p1], [p2, p3]) = (zip64(a[0], b[0]), zip64(a[1], b[1]));
                for (i, p) in [p0, p1, p2, p3].into_iter().enumerate() {
                    out[2 * (4 * j + i) + half] = p;
                }
            }
        }
        out
    }

    /// Both rows' spans, each twice.
    fn pair_scales(L128([a0, a1, b0, b1]): L128) -> [float32x4_t; SPANS] {
        let mut out = [vdupq_n_f32(0.0); SPANS];
        for (j, (a, b)) in [(a0, b0), (a1, b1)].into_iter().enumerate() {
            for (i, ab) in [vzip1q_f32(a, b), vzip2q_f32(a, b)].into_iter().enumerate() {
                out[4 * j + 2 * i] = vzip1q_f32(ab, ab);
                out[4 * j + 2 * i + 1] = vzip2q_f32(ab, ab);
            }
        }
        out
    }

    /// Both rows' lanes, each twice.
    fn pair_lanes(a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; LANES] {
        let mut out = [vdupq_n_s32(0); LANES];
        for j in 0..4 {
            for (i, ab) in [vzip1q_s32(a[j], b[j]), vzip2q_s32(a[j], b[j])].into_iter().enumerate() {
                out[4 * j + 2 * i] = vzip1q_s32(ab, ab);
                out[4 * j + 2 * i + 1] = vzip2q_s32(ab, ab);
            }
        }
        out
    }

    /// Two rows' chunk. Offsets are taken off here, which gives the same whole numbers as taking them off sums.
    fn pair_rows<B: Unpack<Quad>>(two: &Weights<Quad>) -> RowPair {
        let mut w = pair_bytes(&two.w[0], &two.w[1]);
        if let Form::Offset(offset) = B::FORM {
            w = w.map(|w| vsubq_u8(w, vdupq_n_u8(offset)));
        }
        let min = if matches!(B::FORM, Form::Min) || B::HALVES { pair_scales(two.min) } else { [vdupq_n_f32(0.0); SPANS] };
        let fine = if B::FINE {
            // SAFETY: such a type sets them.
            let [[scale_a, min_a], [scale_b, min_b]] = two.fine.map(|fine| unsafe { fine.assume_init() });
            [pair_lanes(scale_a, scale_b), pair_lanes(min_a, min_b)]
        } else {
            [[vdupq_n_s32(0); LANES]; 2]
        };
        RowPair { w, scale: pair_scales(two.scale), min, fine }
    }

    fn pair_tokens(a: &ActChunk, b: &ActChunk) -> TokenPair {
        let words = |x: &ActChunk| std::array::from_fn(|j| std::array::from_fn(|k| load16(&x.q, 64 * k + 16 * j)));
        TokenPair {
            q: pair_bytes(&words(a), &words(b)),
            d: std::array::from_fn(|p| [a.d[p], b.d[p]]),
            s: std::array::from_fn(|p| [a.s[p], b.s[p]]),
            h: std::array::from_fn(|p| [a.h[p], b.h[p]]),
        }
    }

    /// A pair, twice.
    fn twice(x: &[f32; 2]) -> float32x4_t {
        // SAFETY: a pair of floats has as many bytes as a double, and any bits are one.
        vreinterpretq_f32_f64(unsafe { vld1q_dup_f64(x.as_ptr().cast()) })
    }

    fn twice_int(x: &[i32; 2]) -> int32x4_t {
        // SAFETY: as in `twice`.
        vreinterpretq_s32_f64(unsafe { vld1q_dup_f64(x.as_ptr().cast()) })
    }
}

/// Span `i` of a chunk, onto the tile's sums.
#[target_feature(enable = "neon,dotprod,i8mm")]
#[inline]
fn step<B: Unpack<Quad>, const R: usize, const T: usize>(
    rows: [&RowPair; R],
    tokens: [&TokenPair; T],
    i: usize,
    acc: &mut [[float32x4_t; T]; R],
) {
    // The lanes of its halves, as in `LANE_GROUP`.
    let (p, o) = (i % 4 + i / 4 * 8, i % 4 + i / 4 * 8 + 4);
    for (row, acc) in rows.into_iter().zip(acc) {
        for (token, acc) in tokens.into_iter().zip(acc) {
            let half = |sum, p: usize| {
                let sum = smmla(sum, row.w[2 * p], token.q[2 * p]);
                smmla(sum, row.w[2 * p + 1], token.q[2 * p + 1])
            };
            let zero = vdupq_n_s32(0);
            if B::HALVES {
                let (first, second) = (vcvtq_f32_s32(half(zero, p)), vcvtq_f32_s32(half(zero, o)));
                let sum = vfmaq_f32(vmulq_f32(row.scale[i], first), row.min[i], second);
                *acc = vfmaq_f32(*acc, sum, twice(&token.d[i]));
                continue;
            }
            let (sum, least) = if B::FINE {
                let both = |of: &[int32x4_t; LANES], a, b| vmlaq_s32(vmulq_s32(a, of[p]), b, of[o]);
                let least = both(&row.fine[1], twice_int(&token.h[p]), twice_int(&token.h[o]));
                (both(&row.fine[0], half(zero, p), half(zero, o)), vcvtq_f32_s32(least))
            } else {
                (half(half(zero, p), o), twice(&token.s[i]))
            };
            let mut sum = vmulq_f32(row.scale[i], vcvtq_f32_s32(sum));
            if matches!(B::FORM, Form::Min) {
                sum = vfmsq_f32(sum, row.min[i], least);
            }
            *acc = vfmaq_f32(*acc, sum, twice(&token.d[i]));
        }
    }
}

/// `R` pairs of rows times `T` pairs of tokens, each of as many chunks: (row 0 token 0, 0 1, 1 0, 1 1) of each.
///
/// Four spans at a time, so that all their sums stay in registers from the first chunk to the last.
#[target_feature(enable = "neon,dotprod,i8mm")]
#[inline]
fn tile<B: Unpack<Quad>, const R: usize, const T: usize>(
    rows: [&[RowPair]; R],
    tokens: [&[TokenPair]; T],
) -> [[float32x4_t; T]; R] {
    let n = rows[0].len();
    assert!(rows.iter().all(|r| r.len() == n) && tokens.iter().all(|t| t.len() == n), "as many chunks");
    let zero = vdupq_n_f32(0.0);
    let mut lanes = [[[zero; T]; R]; SPANS];
    for p in (0..SPANS).step_by(4) {
        let mut acc = [[[zero; T]; R]; 4];
        for c in 0..n {
            let (rows, tokens) = (rows.map(|r| &r[c]), tokens.map(|t| &t[c]));
            // One by one: the compiler leaves a loop as it is, and then sums go through memory.
            step::<B, R, T>(rows, tokens, p, &mut acc[0]);
            step::<B, R, T>(rows, tokens, p + 1, &mut acc[1]);
            step::<B, R, T>(rows, tokens, p + 2, &mut acc[2]);
            step::<B, R, T>(rows, tokens, p + 3, &mut acc[3]);
        }
        lanes[p..p + 4].copy_from_slice(&acc);
    }
    // As `sum_lanes`.
    let mut n = SPANS / 2;
    while n > 0 {
        let (low, high) = lanes[..2 * n].split_at_mut(n);
        for (low, high) in low.as_flattened_mut().iter_mut().zip(high.as_flattened()) {
            for (low, high) in low.iter_mut().zip(high) {
                *low = vaddq_f32(*low, *high);
            }
        }
        n /= 2;
    }
    lanes[0]
}

/// Where a tile's results go.
struct Place<'a> {
    /// The pairs of rows from `r` on, of `rows` rows.
    r: usize,
    rows: usize,
    /// The tokens of the tile, one to four.
    y: &'a [*mut f32],
}

impl Place<'_> {
    /// Multiplies and writes. The second of a pair without one is the first again.
    ///
    /// # Safety
    /// The CPU has the instruction set; each `y` has room for `rows` floats.
    // SAFETY: needs the CPU's features, as said above.
    #[target_feature(enable = "neon,dotprod,i8mm")]
    #[inline]
    unsafe fn fill<B: Unpack<Quad>, const R: usize, const T: usize>(
        &self,
        rows: [&[RowPair]; R],
        tokens: [&[TokenPair]; T],
    ) {
        for (i, sums) in tile::<B, R, T>(rows, tokens).into_iter().enumerate() {
            for (t, sums) in sums.into_iter().enumerate() {
                let mut four = [0.0; 4];
                // SAFETY: the array has four floats; row and token are those of the tile, clamped to what there is.
                unsafe {
                    vst1q_f32(four.as_mut_ptr(), sums);
                    for (n, sum) in four.into_iter().enumerate() {
                        let r = (self.r + 2 * i + n / 2).min(self.rows - 1);
                        let t = (2 * t + n % 2).min(self.y.len() - 1);
                        *self.y[t].add(r) = sum;
                    }
                }
            }
        }
    }
}

/// [`driver::matmul_ahead`] by pairs.
///
/// # Safety
/// As [`super::super::MatMul`].
// SAFETY: needs the CPU's features, as said above.
#[target_feature(enable = "neon,dotprod,i8mm")]
#[inline]
pub(super) unsafe fn matmul<B: Unpack<Quad>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32]) {
    let (row_bytes, n_chunk) = (B::row_bytes(&w), w.cols.div_ceil(CHUNK));
    if n_chunk > MAX_CHUNKS || n_chunk == 0 {
        // SAFETY: the caller's promise is the same.
        return unsafe { driver::matmul_ahead::<I8mm, B>(w, x, y, &[]) };
    }
    let n_row = ROWS.min(2 * (AHEAD / n_chunk));
    let mut row_pairs = [const { MaybeUninit::<RowPair>::uninit() }; AHEAD];
    let mut token_pairs = [const { MaybeUninit::<TokenPair>::uninit() }; TILE * MAX_CHUNKS];
    for (i, data) in w.data.chunks(n_row * row_bytes).enumerate() {
        let rows = Rows { data, row_bytes, n_chunk };
        // SAFETY: the caller checked the CPU.
        let row_pairs = unsafe { rows.pair::<B>(&mut row_pairs) };
        for (x, y) in x.chunks(2 * TILE).zip(y.chunks(2 * TILE)) {
            let tokens = pair_all_tokens(x, n_chunk, &mut token_pairs);
            for (pair, rows) in row_pairs.chunks(TILE * n_chunk).enumerate() {
                let place = Place { r: i * n_row + 2 * TILE * pair, rows: w.rows, y };
                let (r0, r1) = rows.split_at(n_chunk);
                let (t0, t1) = tokens.split_at(n_chunk);
                // SAFETY: the caller checked the CPU, and `y` has room for all rows.
                unsafe {
                    match (r1.is_empty(), t1.is_empty()) {
                        (false, false) => place.fill::<B, 2, 2>([r0, r1], [t0, t1]),
                        (false, true) => place.fill::<B, 2, 1>([r0, r1], [t0]),
                        (true, false) => place.fill::<B, 1, 2>([r0], [t0, t1]),
                        (true, true) => place.fill::<B, 1, 1>([r0], [t0]),
                    }
                }
            }
        }
    }
}

/// Some rows of a matrix.
struct Rows<'a> {
    data: &'a [u8],
    row_bytes: usize,
    n_chunk: usize,
}

impl Rows<'_> {
    /// All rows in pairs, the last one with itself where it is left alone.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    // SAFETY: needs the CPU's features, as said above.
    #[target_feature(enable = "neon,dotprod,i8mm")]
    #[inline]
    unsafe fn pair<'a, B: Unpack<Quad>>(&self, out: &'a mut [MaybeUninit<RowPair>]) -> &'a [RowPair] {
        let mut unpacked = [const { MaybeUninit::<Weights<Quad>>::uninit() }; MAX_CHUNKS];
        let mut n = 0;
        for two in driver::pairs(self.data, self.row_bytes) {
            let unpacked = &mut unpacked[..self.n_chunk];
            // SAFETY: the caller checked the CPU; `unpack_rows` writes every chunk.
            let unpacked = unsafe {
                unpack_rows::<I8mm, B>(two, unpacked);
                unpacked.assume_init_ref()
            };
            for two in unpacked {
                out[n].write(pair_rows::<B>(two));
                n += 1;
            }
        }
        // SAFETY: the first `n` were written above.
        unsafe { out[..n].assume_init_ref() }
    }
}

/// Up to four tokens in pairs, the last one with itself where it is left alone.
#[target_feature(enable = "neon")]
#[inline]
fn pair_all_tokens<'a>(x: &[ActRow<'_>], n_chunk: usize, out: &'a mut [MaybeUninit<TokenPair>]) -> &'a [TokenPair] {
    let mut n = 0;
    for x in x.chunks(2) {
        let (a, b) = (x[0].chunks, x[x.len() - 1].chunks);
        assert!(a.len() == n_chunk && b.len() == n_chunk, "the table's door checked the lengths");
        for (a, b) in a.iter().zip(b) {
            out[n].write(pair_tokens(a, b));
            n += 1;
        }
    }
    // SAFETY: the first `n` were written above.
    unsafe { out[..n].assume_init_ref() }
}
