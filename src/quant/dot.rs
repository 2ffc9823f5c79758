//! The dot product of a weight row and activations in plain code: the truth for every kernel.
//!
//! The order of additions is part of the truth. Sixteen lanes each add up one group of a chunk after another, fused,
//! and [`sum_lanes`] adds the lanes as a tree. A kernel that keeps to it gives these bits, so results depend neither
//! on the CPU nor on how rows and tokens are grouped.
//!
//! Must not know: CPU features, threads.

use super::GgmlType;
use super::act::{ActRow, LANE_GROUP, LANES};
use super::block::{Block, CHUNK, GROUP, float_at, for_block};

/// Adds the lanes: halves onto each other until one is left.
pub fn sum_lanes(mut lane: [f32; LANES]) -> f32 {
    let mut n = LANES / 2;
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
    let mut acc = [0f32; LANES];
    for (row, x) in row.chunks(CHUNK / len * bytes).zip(x.chunks) {
        let (mut q, mut scale, mut min) = ([0; CHUNK], [0.0; LANES], [0.0; LANES]);
        for (i, block) in row.chunks_exact(bytes).enumerate() {
            let (at, group) = (i * len, i * len / GROUP);
            let groups = group..group + len / GROUP;
            B::read(block).unpack(&mut q[at..at + len], &mut scale[groups.clone()], &mut min[groups]);
        }
        for (p, group) in LANE_GROUP.into_iter().enumerate() {
            let product = |i| i32::from(q[group * GROUP + i]) * i32::from(x.q[i / 4 * 64 + 4 * p + i % 4]);
            let sum = (0..GROUP).map(product).sum::<i32>() as f32;
            let sum = sum - f32::from(B::OFFSET) * x.s[p]; // whole numbers below 2^24: exact
            let sum = (-min[group]).mul_add(x.s[p], scale[group] * sum);
            acc[p] = sum.mul_add(x.d[p], acc[p]);
        }
    }
    sum_lanes(acc)
}

/// Two sets of lanes, so that additions of one row overlap.
fn dot_float(ty: GgmlType, row: &[u8], x: &[f32]) -> f32 {
    assert_eq!(x.len() * ty.block_bytes(), row.len(), "bytes of {} elements of {ty}", x.len());
    let mut acc = [0f32; 2 * LANES];
    for (i, x) in x.iter().enumerate() {
        let acc = &mut acc[i % (2 * LANES)];
        *acc = float_at(ty, row, i).mul_add(*x, *acc);
    }
    sum_lanes(std::array::from_fn(|p| acc[p] + acc[p + LANES]))
}
