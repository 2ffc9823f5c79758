//! The dot product of a weight row and activations in plain code: the truth for every kernel.
//!
//! The order of additions is part of the truth. Eight lanes each add up one span of a chunk after another, fused,
//! and [`sum_lanes`] adds the lanes as a tree. A kernel that keeps to it gives these bits, so results depend neither
//! on the CPU nor on how rows and tokens are grouped.
//!
//! Must not know: CPU features, threads.

use super::GgmlType;
use super::act::{ActChunk, ActRow, LANE_GROUP, LANES, SPANS, span_of};
use super::block::{Block, CHUNK, Fine, GROUP, float_at, for_block};

/// Adds the lanes: halves onto each other until one is left.
pub fn sum_lanes<const N: usize>(mut lane: [f32; N]) -> f32 {
    let mut n = N / 2;
    while n > 0 {
        for i in 0..n {
            lane[i] += lane[i + n];
        }
        n /= 2;
    }
    lane[0]
}

/// The dot product of one weight row and one token's activations.
///
/// # Panics
/// Where the type is not computable, the row is not `x.x.len()` elements, or `x` lacks the form that the type wants.
pub fn dot(ty: GgmlType, row: &[u8], x: ActRow<'_>) -> f32 {
    for_block!(ty, dot_quantized(row, x), ty => dot_float(ty, row, x.x))
}

fn dot_quantized<B: Block>(row: &[u8], x: ActRow<'_>) -> f32 {
    let (len, bytes) = (B::TYPE.block_len(), B::TYPE.block_bytes());
    let n_block = row.len() / bytes;
    assert_eq!(x.chunks.len(), (n_block * len).div_ceil(CHUNK), "chunks of activations for {n_block} blocks");
    let mut acc = [0f32; SPANS];
    for (row, x) in row.chunks(CHUNK / len * bytes).zip(x.chunks) {
        let (mut q, mut scale, mut min) = ([0; CHUNK], [0.0; LANES], [0.0; LANES]);
        let mut fine = None;
        for (i, block) in row.chunks_exact(bytes).enumerate() {
            let (at, group) = (i * len, i * len / GROUP);
            let groups = group..group + len / GROUP;
            let block = B::read(block);
            block.unpack(&mut q[at..at + len], &mut scale[groups.clone()], &mut min[groups]);
            fine = block.fine();
        }
        for p in (0..LANES).filter(|p| p & 4 == 0) {
            let span = span_of(p);
            let sums = [p, p + 4].map(|p| lane_sum(&q, x, p));
            let sum = match fine {
                Some(fine) => fine_sum(&fine, i32::from(B::OFFSET), sums, x, p),
                None if B::HALVES => {
                    let half = |i: usize| (sums[i] - i32::from(B::OFFSET) * x.h[p + 4 * i]) as f32; // exact
                    scale[2 * span + 1].mul_add(half(1), scale[2 * span] * half(0))
                }
                None => {
                    let sum = (sums[0] + sums[1]) as f32 - f32::from(B::OFFSET) * x.s[span]; // below 2^24: exact
                    (-min[2 * span]).mul_add(x.s[span], scale[2 * span] * sum)
                }
            };
            acc[span] = sum.mul_add(x.d[span], acc[span]);
        }
    }
    sum_lanes(acc)
}

/// The products of lane `p`'s integers, added.
fn lane_sum(q: &[u8; CHUNK], x: &ActChunk, p: usize) -> i32 {
    let product = |i: usize| i32::from(q[LANE_GROUP[p] * GROUP + i]) * i32::from(x.q[i / 4 * 64 + 4 * p + i % 4]);
    (0..GROUP).map(product).sum()
}

/// A span of lanes `p` and `p + 4` whose halves have scales of their own. These are whole numbers too, so both halves are
/// added before anything is rounded: 2 * 128 * 16 * 127 * 32 is below 2^24, the largest of the three types.
fn fine_sum(fine: &Fine, offset: i32, sums: [i32; 2], x: &ActChunk, p: usize) -> f32 {
    let (mut sum, mut least) = (0, 0);
    for (half, sum_of_products) in sums.into_iter().enumerate() {
        let (group, h) = (LANE_GROUP[p + 4 * half], x.h[p + 4 * half]);
        sum += fine.scale[group] * (sum_of_products - offset * h);
        least += fine.min[group] * h;
    }
    (-fine.dmin).mul_add(least as f32, fine.d * sum as f32)
}

/// Two sets of lanes, so that additions of one row overlap.
fn dot_float(ty: GgmlType, row: &[u8], x: &[f32]) -> f32 {
    assert_eq!(x.len() * ty.block_bytes(), row.len(), "bytes of {} elements of {ty}", x.len());
    let mut acc = [0f32; 2 * LANES];
    for (i, x) in x.iter().enumerate() {
        let acc = &mut acc[i % (2 * LANES)];
        *acc = float_at(ty, row, i).mul_add(*x, *acc);
    }
    sum_lanes::<LANES>(std::array::from_fn(|p| acc[p] + acc[p + LANES]))
}
