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

/// Quantises a row: the truth for every other quantiser, and the code of all of them. Kernels compile it with their
/// instruction set's features on; it is written in loops over lanes that compilers turn into vectors, and uses no
/// operation whose result depends on how that is done.
///
/// Of each group, the largest magnitude becomes one of [`STEPS`]: the one whose integers, with the scale that fits them
/// best (least squares), lie closest to the group. That takes a seventh off the distance to the exact product, beside
/// always using 127, at a cost that disappears behind the matrix that follows.
///
/// # Panics
/// Where `out` is not `x.len()` rounded up to whole chunks.
#[inline(always)]
pub fn quantize_row(x: &[f32], out: &mut [ActChunk]) {
    assert_eq!(out.len(), x.len().div_ceil(CHUNK), "chunks of {} activations", x.len());
    let (whole, rest) = x.as_chunks::<CHUNK>();
    for (x, out) in whole.iter().zip(&mut *out) {
        quantize_chunk(x, out);
    }
    if let (false, Some(out)) = (rest.is_empty(), out.last_mut()) {
        let mut padded = [0.0; CHUNK];
        padded[..rest.len()].copy_from_slice(rest);
        quantize_chunk(&padded, out);
    }
}

/// What a group's largest magnitude may become.
const STEPS: [f32; 8] = [127.0, 126.0, 125.0, 124.0, 123.0, 122.0, 121.0, 120.0];

/// One float of each group.
type Lane = [f32; LANES];

#[inline(always)]
fn quantize_chunk(x: &[f32; CHUNK], out: &mut ActChunk) {
    // Transposed: (element of the group, lane), so that each lane works on a group of its own.
    let mut t = [[0f32; LANES]; GROUP];
    for p in 0..LANES {
        let group = &x[LANE_GROUP[p] * GROUP..][..GROUP];
        for i in 0..GROUP {
            t[i][p] = group[i];
        }
    }
    // As bits, so that an infinity or NaN wins over every number.
    let mut bits = [0u32; LANES];
    for row in &t {
        for p in 0..LANES {
            bits[p] = bits[p].max(row[p].abs().to_bits());
        }
    }
    let largest = bits.map(f32::from_bits);
    let usable = bits.map(|b| (TINY.to_bits()..f32::INFINITY.to_bits()).contains(&b));
    for p in 0..LANES {
        // Zeros and what is not finite become integers 0.
        let inverse = if usable[p] { 1.0 / largest[p] } else { 0.0 };
        for row in &mut t {
            row[p] = if usable[p] { row[p] * inverse } else { 0.0 };
        }
    }
    // From here on the largest magnitude is 1, so nothing overflows.
    let (mut best, mut step, mut scale): (Lane, Lane, Lane) = ([-1.0; LANES], [0.0; LANES], [0.0; LANES]);
    for candidate in STEPS {
        let (mut xq, mut qq): (Lane, Lane) = ([0.0; LANES], [0.0; LANES]);
        for row in &t {
            for p in 0..LANES {
                let q = (row[p] * candidate).round_ties_even();
                xq[p] += row[p] * q;
                qq[p] += q * q;
            }
        }
        for p in 0..LANES {
            // The squared distance is Σx² minus this.
            let gain = xq[p] * xq[p] / qq[p];
            let better = gain > best[p];
            best[p] = if better { gain } else { best[p] };
            step[p] = if better { candidate } else { step[p] };
            scale[p] = if better { xq[p] / qq[p] } else { scale[p] };
        }
    }
    let mut sum = [0i32; LANES];
    for (k, words) in out.q.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let mut packed = [0u32; LANES];
        for b in 0..4 {
            for p in 0..LANES {
                let q = (t[4 * k + b][p] * step[p]).round_ties_even() as i32;
                sum[p] += q;
                packed[p] |= (q as u32 & 0xff) << (8 * b);
            }
        }
        for p in 0..LANES {
            let bytes = packed[p].to_le_bytes().map(|b| b as i8);
            words[4 * p..4 * p + 4].copy_from_slice(&bytes);
        }
    }
    for p in 0..LANES {
        out.s[p] = sum[p] as f32;
        let d = if bits[p] >= f32::INFINITY.to_bits() { f32::NAN } else { 0.0 };
        out.d[p] = if usable[p] { largest[p] * scale[p] } else { d };
    }
}
