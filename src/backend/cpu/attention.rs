//! Causal grouped-query attention. A piece of work is one key/value head of one row: its group of query heads reads the
//! keys once.

use half::f16;

use super::{Cpu, Kernels, Out, Phase, Worker};
use crate::{
    backend::Attention,
    quant::{GgmlType, dequantize_row},
};

/// Rows of a Q8_0 cache are dequantised into this on the way.
const MAX_HEAD: usize = 1024;

pub(super) fn attend(cpu: &mut Cpu, a: &Attention<'_>, out: &mut [f32]) {
    let n = a.q.len() / (a.n_head * a.head_k);
    assert_eq!(out.len(), n * a.n_head * a.head_v, "output of {n} rows");
    let group = a.n_head / a.n_head_kv;
    let out = Out(out.as_mut_ptr());
    let work = Phase::new(n * a.n_head_kv);
    let (kernels, scores) = (&cpu.kernels, &cpu.scores);
    let body = |worker: Worker<'_>| {
        let mut scores = scores[worker.index].lock().expect("each thread has its own");
        scores.resize(group * (a.first + n), 0.0);
        work.work(worker, |at| {
            let (row, head) = (at / a.n_head_kv, at % a.n_head_kv);
            let first = row * a.n_head + head * group; // query head, over all rows
            // SAFETY: query heads `first..first + group` are this piece's alone, and `out` has a row for each.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(first * a.head_v), group * a.head_v) };
            one(kernels, a, row, head, &a.q[first * a.head_k..][..group * a.head_k], &mut scores, out);
        });
    };
    // A few short dot products do not pay for a hand-over.
    if n * (a.first + n) * a.n_head * a.head_k < 16 << 10 {
        body(Worker::alone());
    } else {
        cpu.pool.run(&body);
    }
}

/// The query heads `q` (group, head_k) of one row over the keys and values of head `head`; `out` is (group, head_v).
fn one(k: &Kernels, a: &Attention<'_>, row: usize, head: usize, q: &[f32], scores: &mut [f32], out: &mut [f32]) {
    let n_pos = a.first + row + 1;
    let keys = Side::new(a.ty, a.keys, head * a.n_ctx, a.head_k);
    let values = Side::new(a.ty, a.values, head * a.n_ctx, a.head_v);
    for pos in 0..n_pos {
        keys.with(pos, |key| {
            for (g, q) in q.chunks_exact(a.head_k).enumerate() {
                scores[g * n_pos + pos] = a.scale * key.dot(k, q);
            }
        });
    }
    out.fill(0.0);
    for scores in scores[..n_pos * (q.len() / a.head_k)].chunks_exact_mut(n_pos) {
        let max = k.max(scores);
        let sum = k.exp_sum(scores, max);
        k.scale(1.0 / sum, scores);
    }
    for pos in 0..n_pos {
        values.with(pos, |value| {
            for (g, out) in out.chunks_exact_mut(a.head_v).enumerate() {
                value.axpy(k, scores[g * n_pos + pos], out);
            }
        });
    }
}

/// One head's cached rows.
struct Side<'a> {
    ty: GgmlType,
    bytes: &'a [u8],
    row_bytes: usize,
    cols: usize,
}

/// One cached row.
enum CachedRow<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

impl CachedRow<'_> {
    fn dot(&self, k: &Kernels, q: &[f32]) -> f32 {
        match self {
            CachedRow::F32(x) => k.dot(q, x),
            CachedRow::F16(x) => k.dot_f16(q, x),
        }
    }
    fn axpy(&self, k: &Kernels, a: f32, out: &mut [f32]) {
        match self {
            CachedRow::F32(x) => k.axpy(a, x, out),
            CachedRow::F16(x) => k.axpy_f16(a, x, out),
        }
    }
}

impl<'a> Side<'a> {
    fn new(ty: GgmlType, bytes: &'a [u8], first_row: usize, cols: usize) -> Self {
        let row_bytes = cols / ty.block_len() * ty.block_bytes();
        Self { ty, bytes: &bytes[first_row * row_bytes..], row_bytes, cols }
    }

    /// Gives row `pos` to `f`.
    fn with(&self, pos: usize, mut f: impl FnMut(CachedRow<'_>)) {
        let row = &self.bytes[pos * self.row_bytes..][..self.row_bytes];
        match self.ty {
            // SAFETY: every bit pattern is a valid float, and `align_to` checks the alignment.
            GgmlType::F32 => f(CachedRow::F32(aligned(unsafe { row.align_to::<f32>() }))),
            // SAFETY: every bit pattern is a valid half, and `align_to` checks the alignment.
            GgmlType::F16 => f(CachedRow::F16(aligned(unsafe { row.align_to::<f16>() }))),
            ty => {
                let mut x = [0.0; MAX_HEAD];
                let x = &mut x[..self.cols];
                dequantize_row(ty, row, x);
                f(CachedRow::F32(x));
            }
        }
    }
}

/// The aligned middle, which is everything: the cache's rows start at multiples of their element's size.
fn aligned<'x, T>((before, middle, after): (&[u8], &'x [T], &[u8])) -> &'x [T] {
    assert!(before.is_empty() && after.is_empty(), "the KV cache is aligned");
    middle
}
