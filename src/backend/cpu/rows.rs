//! What is done row by row: norms, rotations, sums. Rows are shared out among the threads; each is computed by one.

use half::f16;

use super::{
    Out, Phase, Pool,
    kernels::Kernels,
    keys::{KeyTile, is_tiled},
};
use crate::{
    backend::{CacheWrite, RopeKind, Rotation},
    quant::{GgmlType, encode_row},
};

/// Floats of a piece of work, more or less: some microseconds.
const PIECE: usize = 8 << 10;

/// Floats below which the calling thread does them all.
const ALONE: usize = 16 << 10;

/// Calls `f(i, row i)` for the rows of `cols` elements that `x` has, on all threads. `cost`: floats that a row touches.
pub(super) fn each_row<T: Send>(
    pool: &mut Pool,
    x: &mut [T],
    cols: usize,
    cost: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let n = x.len() / cols;
    if n < 2 || n * cost < ALONE {
        return x.chunks_exact_mut(cols).enumerate().for_each(|(i, row)| f(i, row));
    }
    let piece = (PIECE / cost.max(1)).clamp(1, n.div_ceil(pool.threads()));
    let work = Phase::new(n.div_ceil(piece), pool.threads());
    let x = Out(x.as_mut_ptr());
    pool.run(&|worker| {
        work.work(worker, |at| {
            for i in at * piece..((at + 1) * piece).min(n) {
                // SAFETY: `x` has `n` rows, borrowed for writing, and each is in one piece only.
                f(i, unsafe { std::slice::from_raw_parts_mut(x.at(i * cols), cols) });
            }
        });
    });
}

pub(super) fn rms_norm(k: &Kernels, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = k.sum_of_squares(x) / x.len() as f32;
    k.scale_mul(1.0 / (mean + eps).sqrt(), x, weight, out);
}

/// [`rms_norm`] of a row onto itself, with its bits.
pub(super) fn rms_norm_onto(k: &Kernels, x: &mut [f32], weight: &[f32], eps: f32) {
    const AT_ONCE: usize = 256;
    let mean = k.sum_of_squares(x) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    let mut copy = [0.0; AT_ONCE];
    for (x, weight) in x.chunks_mut(AT_ONCE).zip(weight.chunks(AT_ONCE)) {
        let copy = &mut copy[..x.len()];
        copy.copy_from_slice(x);
        k.scale_mul(scale, copy, weight, x);
    }
}

/// Turns the heads of row `i`.
pub(super) fn rope(k: &Kernels, r: &Rotation<'_>, i: usize, row: &mut [f32]) {
    let (cos, sin) = r.turns[i * 2 * r.pairs..(i + 1) * 2 * r.pairs].split_at(r.pairs);
    for head in row.chunks_exact_mut(r.head) {
        let head = &mut head[r.skip..];
        match r.kind {
            RopeKind::Interleaved => {
                for ((pair, cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                    *pair = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
                }
            }
            RopeKind::Halves => {
                let (low, high) = head.split_at_mut(r.pairs);
                k.rotate(cos, sin, low, &mut high[..r.pairs]);
            }
        }
    }
}

/// Writes a cache, head by head: each head's rows are contiguous, or in tiles.
pub(super) fn write(k: &Kernels, pool: &mut Pool, w: CacheWrite<'_>) {
    let CacheWrite { x, cache, keys, ty, heads, dim, first } = w;
    let (n, row_bytes) = (x.len() / (heads * dim), dim / ty.block_len() * ty.block_bytes());
    let head_bytes = cache.len() / heads;
    each_row(pool, cache, head_bytes, n * dim, |head, cache| {
        let rows = x.chunks_exact(heads * dim).map(|x| &x[head * dim..(head + 1) * dim]);
        let n_ctx = head_bytes / row_bytes;
        for (pos, x) in (first..).map(|pos| pos % n_ctx).zip(rows) {
            if keys && is_tiled(ty) {
                write_tiled(k, KeyTile { ty, n_ctx, dim, pos }, x, cache);
                continue;
            }
            let row = &mut cache[pos * row_bytes..][..row_bytes];
            if ty == GgmlType::F16 {
                k.to_f16(x, halves(row));
            } else {
                encode_row(ty, x, row);
            }
        }
    });
}

/// Writes one key of the head whose cache this is.
fn write_tiled(k: &Kernels, key: KeyTile, row: &[f32], cache: &mut [u8]) {
    const AT_ONCE: usize = 128;
    for (i, row) in row.chunks(AT_ONCE).enumerate() {
        if key.ty == GgmlType::F16 {
            let mut rounded = [f16::ZERO; AT_ONCE];
            k.to_f16(row, &mut rounded[..row.len()]);
            key.write(i * AT_ONCE, rounded.map(f16::to_le_bytes)[..row.len()].as_flattened(), cache);
        } else {
            let (len, bytes) = (key.ty.block_len(), key.ty.block_bytes());
            let blocks = &mut [0; 2 * AT_ONCE][..row.len() / len * bytes];
            encode_row(key.ty, row, blocks);
            key.write(i * AT_ONCE, blocks, cache);
        }
    }
}

/// The bytes of a cache, or of a row of it, as they are.
fn halves(bytes: &mut [u8]) -> &mut [f16] {
    // SAFETY: every bit pattern is a valid half, and `align_to_mut` checks the alignment.
    let (before, halves, after) = unsafe { bytes.align_to_mut::<f16>() };
    assert!(before.is_empty() && after.is_empty(), "the KV cache is aligned");
    halves
}
