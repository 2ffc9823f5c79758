//! Activations as the kernels want them: 8-bit integers with one scale for each 16.
//!
//! One format serves every quantised weight type. ggml scales 32 or 256 activations together; 16 costs 0.5 bytes an
//! element for scales and sums and makes our distance to the exact product smaller than ggml's.
//!
//! Must not know: weights, CPU features.

use super::block::{CHUNK, GROUP};

/// Lanes of the accumulator: groups in a chunk.
pub const LANES: usize = CHUNK / GROUP;

/// The group of 16 elements that each lane holds.
///
/// This order is what interleaving 32-bit words inside 128-bit registers gives when eight runs of 32 weights are
/// read as they lie in the file, so that unpacked weights reach it in eight instructions on AVX-512.
pub const LANE_GROUP: [usize; LANES] = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15];

/// Groups whose largest magnitude is below this (2^-116) count as zero: `1 / magnitude` must stay finite.
pub const TINY: f32 = f32::from_bits((127 - 116) << 23);

/// 256 activations, transposed so that the 32-bit lanes of a dot-product instruction are groups.
///
/// `x[16 * LANE_GROUP[p] + 4 * k + b]` is about `d[p] * q[64 * k + 4 * p + b]`, for `k < 4` and `b < 4`. Four
/// instructions therefore leave a group's whole sum in lane `p`, next to `d[p]` and `s[p]`, with no shuffle.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct ActChunk {
    /// Integers in -127..=127.
    pub q: [i8; CHUNK],
    /// Scale of each lane; NaN where the group holds an infinity or NaN, 0 where it is [`TINY`].
    pub d: [f32; LANES],
    /// Sum of each lane's integers, exact.
    pub s: [f32; LANES],
}

impl ActChunk {
    /// 256 zeros.
    pub const ZERO: ActChunk = ActChunk { q: [0; CHUNK], d: [0.0; LANES], s: [0.0; LANES] };
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
/// Of each group, the largest magnitude becomes one of [`STEPS`]: the one whose integers, with the scale that fits them
/// best (least squares), lie closest to the group. That takes a seventh off the distance to the exact product, beside
/// always using 127.
///
/// # Panics
/// Where `out` is not `x.len()` rounded up to whole chunks.
pub fn quantize_row(x: &[f32], out: &mut [ActChunk]) {
    assert_eq!(out.len(), x.len().div_ceil(CHUNK), "chunks of {} activations", x.len());
    for (x, out) in x.chunks(CHUNK).zip(out) {
        *out = ActChunk::ZERO;
        for (p, group) in LANE_GROUP.into_iter().enumerate() {
            let x = x.get(group * GROUP..).unwrap_or_default();
            quantize_group(&x[..x.len().min(GROUP)], p, out);
        }
    }
}

/// What a group's largest magnitude may become.
pub const STEPS: [f32; 8] = [127.0, 126.0, 125.0, 124.0, 123.0, 122.0, 121.0, 120.0];

fn quantize_group(x: &[f32], p: usize, out: &mut ActChunk) {
    // As bits, so that an infinity or NaN wins over every number.
    let largest = f32::from_bits(x.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0));
    if !largest.is_finite() {
        out.d[p] = f32::NAN;
        return;
    }
    if largest < TINY {
        return;
    }
    let inverse = 1.0 / largest;
    let (mut best, mut step, mut scale) = (-1.0, 0.0, 0.0);
    for candidate in STEPS {
        let (mut xq, mut qq) = (0.0, 0.0);
        for x in x {
            let x = x * inverse;
            let q = (x * candidate).round_ties_even();
            xq += x * q;
            qq += q * q;
        }
        // The squared distance is Σx² minus this.
        let gain = xq * xq / qq;
        if gain > best {
            (best, step, scale) = (gain, candidate, xq / qq);
        }
    }
    let mut sum = 0;
    for (i, x) in x.iter().enumerate() {
        let q = (x * inverse * step).round_ties_even() as i8;
        out.q[i / 4 * 64 + 4 * p + i % 4] = q;
        sum += i32::from(q);
    }
    out.d[p] = largest * scale;
    out.s[p] = sum as f32;
}
