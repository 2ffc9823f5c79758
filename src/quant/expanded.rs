//! Weights as signed bytes beside float scales: what kernels multiply for types that they do not read themselves.
//!
//! A row is whole chunks of 256 columns, padded with zeros: the bytes, then a scale for each of eight spans of 32, or, for
//! [`Block::HALVES`], one for each first half, then one for each second half. All are in the order of the columns, and no byte
//! has more than six bits beside its sign.
//!
//! Must not know: activations, CPU features.

use std::mem::MaybeUninit;

use super::act::SPANS;
use super::block::{Block, CHUNK, GROUP};

/// Groups of a chunk.
const GROUPS: usize = CHUNK / GROUP;

/// Bytes of a chunk with as many scales.
pub const fn chunk_bytes(scales: usize) -> usize {
    CHUNK + size_of::<f32>() * scales
}

/// Scales of a chunk of `B`: one for each span, or one for each half.
pub const fn scales<B: Block>() -> usize {
    if B::HALVES { 2 * SPANS } else { SPANS }
}

/// Writes all of `out`, a row.
///
/// # Panics
/// Where `row` is not whole blocks, or `out` not its chunks.
// Inlined so that it is compiled for the CPU features of its caller.
#[inline(always)]
pub fn expand_row<B: Block>(row: &[u8], out: &mut [MaybeUninit<u8>]) {
    let (len, bytes) = (B::TYPE.block_len(), B::TYPE.block_bytes());
    let chunks = row.chunks(CHUNK / len * bytes);
    assert!(row.len().is_multiple_of(bytes), "whole blocks of {}", B::TYPE);
    assert_eq!(out.len(), chunks.len() * chunk_bytes(scales::<B>()), "room for a row of {}", B::TYPE);
    for (blocks, out) in chunks.zip(out.chunks_exact_mut(chunk_bytes(scales::<B>()))) {
        let (mut q, mut scale, mut min) = ([B::OFFSET; CHUNK], [0.0; GROUPS], [0.0; GROUPS]);
        for (i, block) in blocks.chunks_exact(bytes).enumerate() {
            let groups = i * len / GROUP..(i + 1) * len / GROUP;
            B::read(block).unpack(&mut q[i * len..(i + 1) * len], &mut scale[groups.clone()], &mut min[groups]);
        }
        for q in &mut q {
            *q = q.wrapping_sub(B::OFFSET);
        }
        let (weights, floats) = out.split_at_mut(CHUNK);
        weights.write_copy_of_slice(&q);
        for (i, out) in floats.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            // Of a span's two groups, the first, or after eight of these the second ones.
            out.write_copy_of_slice(&scale[2 * (i % SPANS) + i / SPANS].to_ne_bytes());
        }
    }
}
