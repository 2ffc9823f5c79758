//! Activations as the kernels want them: 8-bit integers with one scale for each 32.
//!
//! One format serves every quantised weight type. ggml scales 32 activations together for some types and 256 for others;
//! with the scale that fits each 32 best, a product's distance from the exact one is 0.90 to 0.97 % of its size (median of
//! the rows in the reference data, 13 types), llama.cpp's 1.01 to 1.48 %. A scale for each 16 gave 0.72 to 0.76 %, and made
//! long prompts a fifth slower: four dot products then came with three float operations, not one and a half.
//!
//! Must not know: weights, CPU features.

use super::block::{CHUNK, GROUP};

/// Lanes in which integers are summed: groups of 16 in a chunk, the finest that any weight type scales.
pub const LANES: usize = CHUNK / GROUP;

/// Activations that share a scale: two groups.
pub const SPAN: usize = 32;

/// Spans in a chunk.
pub const SPANS: usize = CHUNK / SPAN;

/// The group of 16 elements that each lane holds.
///
/// This order is what interleaving 32-bit words inside 128-bit registers gives when eight runs of 32 weights are
/// read as they lie in the file, so that unpacked weights reach it in eight instructions on AVX-512. Lanes `p` and
/// `p ^ 4` hold the halves of one span: [`span_of`].
pub const LANE_GROUP: [usize; LANES] = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15];

/// The span that lane `p` holds a half of.
pub const fn span_of(p: usize) -> usize {
    LANE_GROUP[p] / 2
}

/// The first lane that has a half of span `s`; the other half is four lanes on.
pub const fn lane(s: usize) -> usize {
    s + (s & 4)
}

/// Words of four activations in a span.
pub const WORDS: usize = SPAN / 4;

/// Where word `k` of a span is, from the first one of its [`lane`] in [`ActChunk::q`]: word `k % 4` of half `k / 4`.
pub const fn word(k: usize) -> usize {
    64 * (k % 4) + 16 * (k / 4)
}

/// Spans whose largest magnitude is below this (2^-116) count as zero: `1 / magnitude` must stay finite.
pub const TINY: f32 = f32::from_bits((127 - 116) << 23);

/// 256 activations, transposed so that the 32-bit lanes of a dot-product instruction are groups.
///
/// `x[16 * LANE_GROUP[p] + 4 * k + b]` is about `d[span_of(p)] * q[64 * k + 4 * p + b]`, for `k < 4` and `b < 4`. Four
/// instructions therefore leave a group's whole sum in lane `p`, next to `h[p]`, and adding lanes `p` and `p ^ 4` a span's.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct ActChunk {
    /// Integers in -127..=127.
    pub q: [i8; CHUNK],
    /// Scale of each span; NaN where it holds an infinity or NaN, 0 where it is [`TINY`].
    pub d: [f32; SPANS],
    /// Sum of each span's integers, exact.
    pub s: [f32; SPANS],
    /// Sum of each lane's integers.
    pub h: [i32; LANES],
}

impl ActChunk {
    /// 256 zeros.
    pub const ZERO: ActChunk = ActChunk { q: [0; CHUNK], d: [0.0; SPANS], s: [0.0; SPANS], h: [0; LANES] };
}

/// One token's activations: what a kernel multiplies a weight row with.
#[derive(Clone, Copy)]
pub struct ActRow<'a> {
    /// The exact values; F32, F16 and BF16 weights use these.
    pub x: &'a [f32],
    /// The same quantised, padded with zeros to whole chunks; all other weight types use these.
    pub chunks: &'a [ActChunk],
}

/// The buffer of quantised activations of a batch: `rows` tokens of `cols` values.
#[derive(Default)]
pub struct Acts {
    chunks: Vec<ActChunk>, // (rows, cols rounded up to 256)
    per_row: usize,
}

impl Acts {
    /// A buffer that takes up to `rows` x `cols` without allocating.
    pub fn with_capacity(rows: usize, cols: usize) -> Acts {
        Acts { chunks: Vec::with_capacity(rows * cols.div_ceil(CHUNK)), per_row: 0 }
    }

    /// Bytes that `rows` x `cols` take.
    pub const fn bytes(rows: usize, cols: usize) -> usize {
        rows * cols.div_ceil(CHUNK) * size_of::<ActChunk>()
    }

    /// Sets the shape and gives the chunks to fill: (rows, `cols.div_ceil(256)`).
    pub fn reset(&mut self, rows: usize, cols: usize) -> &mut [ActChunk] {
        self.per_row = cols.div_ceil(CHUNK);
        self.chunks.resize(rows * self.per_row, ActChunk::ZERO);
        &mut self.chunks
    }

    /// Quantises `x`, which is `rows` x `cols`, by [`quantize_row`] or a kernel with the same bits.
    pub fn quantize(&mut self, x: &[f32], rows: usize, cols: usize, quantize_row: impl Fn(&[f32], &mut [ActChunk])) {
        assert_eq!(x.len(), rows * cols, "activations of {rows} rows of {cols}");
        let per_row = cols.div_ceil(CHUNK).max(1);
        for (x, out) in x.chunks_exact(cols.max(1)).zip(self.reset(rows, cols).chunks_exact_mut(per_row)) {
            quantize_row(x, out);
        }
    }

    /// Row `r`, beside the exact values `x` that it was made from.
    pub fn row<'a>(&'a self, r: usize, x: &'a [f32]) -> ActRow<'a> {
        ActRow { x, chunks: &self.chunks[r * self.per_row..(r + 1) * self.per_row] }
    }
}

/// Quantises a row: the truth for every other quantiser.
///
/// Of each span, the largest magnitude becomes one of [`STEPS`]: the one whose integers, with the scale that fits them
/// best (least squares), lie closest to the span. Sums over a span are those of its halves, added.
///
/// # Panics
/// Where `out` is not `x.len()` rounded up to whole chunks.
pub fn quantize_row(x: &[f32], out: &mut [ActChunk]) {
    assert_eq!(out.len(), x.len().div_ceil(CHUNK), "chunks of {} activations", x.len());
    for (x, out) in x.chunks(CHUNK).zip(out) {
        let mut padded = [0.0; CHUNK];
        padded[..x.len()].copy_from_slice(x);
        *out = ActChunk::ZERO;
        for p in (0..LANES).filter(|p| p & 4 == 0) {
            let span = span_of(p);
            quantize_span(padded[span * SPAN..].first_chunk().expect("a chunk has whole spans"), p, out);
        }
    }
}

/// What a span's largest magnitude may become.
pub const STEPS: [f32; 8] = [127.0, 126.0, 125.0, 124.0, 123.0, 122.0, 121.0, 120.0];

/// The span whose halves are lanes `p` and `p + 4`.
fn quantize_span(x: &[f32; SPAN], p: usize, out: &mut ActChunk) {
    let span = span_of(p);
    // As bits, so that an infinity or NaN wins over every number.
    let largest = f32::from_bits(x.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0));
    if !largest.is_finite() {
        out.d[span] = f32::NAN;
        return;
    }
    if largest < TINY {
        return;
    }
    let inverse = 1.0 / largest;
    // The largest xq² / qq: of two fractions with positive denominators, that is greater whose numerator times the other's
    // denominator is: one division for a span, not sixteen.
    let (mut best, mut step) = ((0.0, 1.0), 0.0);
    for candidate in STEPS {
        let sums = x.as_chunks::<GROUP>().0.iter().map(|x| {
            let (mut xq, mut qq) = (0.0, 0.0);
            for x in x {
                let x = x * inverse;
                let q = (x * candidate).round_ties_even();
                xq = x.mul_add(q, xq);
                qq += q * q; // exact
            }
            (xq, qq)
        });
        let (xq, qq) = sums.reduce(|a, b| (a.0 + b.0, a.1 + b.1)).expect("a span has two halves");
        // The squared distance is Σx² minus xq² / qq.
        if xq * xq * best.1 > best.0 * best.0 * qq {
            (best, step) = ((xq, qq), candidate);
        }
    }
    let scale = best.0 / best.1;
    for (half, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        let p = p + 4 * half;
        for (i, x) in x.iter().enumerate() {
            let q = (x * inverse * step).round_ties_even() as i8;
            out.q[i / 4 * 64 + 4 * p + i % 4] = q;
            out.h[p] += i32::from(q);
        }
    }
    out.d[span] = largest * scale;
    out.s[span] = (out.h[p] + out.h[p + 4]) as f32;
}
