//! Causal grouped-query attention in tiles (Dao et al., arXiv 2205.14135; Milakov and Gimelshein, arXiv 1805.02867).
//!
//! A piece of work is one key/value head and a block of the queries that read it. Positions come in tiles; keys and
//! values of a tile become floats once for the whole block, and a running maximum and sum make one pass do.
//!
//! Tiles start at multiples of [`TILE`] from position 0 and are taken in order, and a query's arithmetic sees no other
//! query: so a row gets the same bits alone, in any batch, and on any number of threads.

use std::ops::Range;

use half::f16;

use super::{
    Cpu, Out, Phase, Worker,
    kernels::{Kernels, TILE},
};
use crate::{
    backend::{Attention, Floats, KEY_TILE, is_turned, key_tile},
    quant::GgmlType,
};

const _: () = assert!(TILE == KEY_TILE, "a tile of keys lies together");

/// Queries of a block at most: enough that making floats of a tile costs little beside using them.
const QUERIES: usize = 64;

/// Queries that read the cache as it is: to make floats of a tile first does not pay for so few (8, of F16: a token 5 to 23 %
/// faster at 8192 tokens of context).
const DIRECT: usize = 16;

/// What a thread works in. Allocated by its first piece; the same whatever the context.
#[derive(Default)]
pub(super) struct Scratch {
    /// The block's queries, scaled. (QUERIES, head_k)
    q: Floats,
    /// (head_k, TILE)
    keys: Floats,
    /// (TILE, padded head_v)
    values: Floats,
    /// Scores, then weights. (QUERIES, TILE)
    scores: Floats,
    /// Weighted values so far. (QUERIES, padded head_v)
    sums: Floats,
    /// Largest score and sum of weights so far. (QUERIES)
    running: Vec<(f32, f32)>,
}

impl Scratch {
    /// Bytes of one, for a cache of any type.
    pub(super) const fn bytes(head_k: usize, head_v: usize) -> usize {
        let floats = (QUERIES + TILE) * (head_k + Kernels::padded(head_v)) + QUERIES * (TILE + 2);
        floats * size_of::<f32>()
    }

    fn reserve(&mut self, a: &Attention<'_>) {
        let wide_v = Kernels::padded(a.head_v);
        self.q.resize(QUERIES * a.head_k);
        self.keys.resize(TILE * a.head_k);
        self.values.resize(TILE * wide_v);
        self.scores.resize(QUERIES * TILE);
        self.sums.resize(QUERIES * wide_v);
        self.running.resize(QUERIES, (0.0, 0.0));
    }
}

pub(super) fn attend(cpu: &mut Cpu, a: &Attention<'_>, out: &mut [f32]) {
    let n = a.q.len() / (a.n_head * a.head_k);
    assert_eq!(out.len(), n * a.n_head * a.head_v, "output of {n} rows");
    let queries = n * (a.n_head / a.n_head_kv); // of one key/value head
    let blocks = queries.div_ceil(QUERIES);
    let out = Out(out.as_mut_ptr());
    let work = Phase::new(blocks * a.n_head_kv);
    let (kernels, scratch) = (&cpu.kernels, &cpu.attention);
    let body = |worker: Worker<'_>| {
        let mut s = scratch[worker.index].lock().expect("each thread has its own");
        s.reserve(a);
        work.work(worker, |at| {
            // Late rows have most to do: first come, first served makes the short ones fill the gaps.
            let (block, head) = (blocks - 1 - at / a.n_head_kv, at % a.n_head_kv);
            let first = block * QUERIES;
            let block = Block { a, head, first, n: QUERIES.min(queries - first) };
            block.run(kernels, &mut s);
            for i in 0..block.n {
                // SAFETY: `out` has a row for each query, and a query is in one block only.
                let out = unsafe { std::slice::from_raw_parts_mut(out.at(block.query(i) * a.head_v), a.head_v) };
                kernels.scaled(1.0 / s.running[i].1, &s.sums[i * Kernels::padded(a.head_v)..][..a.head_v], out);
            }
        });
    };
    // A few short dot products do not pay for a hand-over.
    if n * (a.first + n) * a.n_head * a.head_k < ALONE {
        body(Worker::alone());
    } else {
        cpu.pool.run(&body);
    }
}

/// Multiplications below which the calling thread does them all.
const ALONE: usize = 64 << 10;

/// Consecutive queries of one key/value head, counted through rows: query `j` is head `j % group` of row `j / group`.
struct Block<'a> {
    a: &'a Attention<'a>,
    head: usize,
    first: usize,
    n: usize,
}

impl Block<'_> {
    /// The query's place among all rows' and heads'.
    fn query(&self, i: usize) -> usize {
        let group = self.a.n_head / self.a.n_head_kv;
        let j = self.first + i;
        j / group * self.a.n_head + self.head * group + j % group
    }

    /// Positions that the query sees. Never fewer than the query before it.
    fn sees(&self, i: usize) -> usize {
        self.a.first + (self.first + i) / (self.a.n_head / self.a.n_head_kv) + 1
    }

    /// Leaves the results in `s.sums`, each yet to be divided by the sum of its weights in `s.running`.
    fn run(&self, k: &Kernels, s: &mut Scratch) {
        let (a, wide_v) = (self.a, Kernels::padded(self.a.head_v));
        for (i, q) in s.q.chunks_exact_mut(a.head_k).enumerate().take(self.n) {
            k.scaled(a.scale, &a.q[self.query(i) * a.head_k..][..a.head_k], q);
        }
        s.sums[..self.n * wide_v].fill(0.0);
        s.running[..self.n].fill((f32::NEG_INFINITY, 0.0));
        let keys = Side::new(a.ty, a.keys, self.head, a.n_ctx, a.head_k);
        let values = Side::new(a.ty, a.values, self.head, a.n_ctx, a.head_v);
        let end = self.sees(self.n - 1);
        for start in (0..end).step_by(TILE) {
            let n = TILE.min(end - start);
            let seen = |i: usize| self.sees(i).saturating_sub(start).min(n);
            // Queries that the tile is out of sight for.
            let skip = (0..self.n).find(|&i| seen(i) > 0).unwrap_or(self.n);
            let direct = self.n <= DIRECT;
            let q = &s.q[skip * a.head_k..self.n * a.head_k];
            let scores = &mut s.scores[skip * TILE..self.n * TILE];
            match keys.turned(start) {
                Some((CachedRows::F16(tile), TILE)) if direct => k.scores_f16(q, tile, n, scores),
                Some((CachedRows::Q8_0(tile), TILE)) if direct => k.scores_q8_0(q, tile, n, scores),
                _ => {
                    keys.turn(k, start, n, &mut s.keys[..TILE * a.head_k]);
                    k.scores(q, &s.keys, n, scores);
                }
            }
            for i in skip..self.n {
                let scores = &mut s.scores[i * TILE..][..seen(i)];
                let (max, sum) = &mut s.running[i];
                let largest = k.max(scores);
                if largest > *max {
                    let mut shrink = [*max];
                    k.exp_sum(&mut shrink, largest);
                    k.scale(shrink[0], &mut s.sums[i * wide_v..][..wide_v]);
                    (*max, *sum) = (largest, *sum * shrink[0]);
                }
                *sum += k.exp_sum(scores, *max);
            }
            let part = |seen: &Range<usize>, row: usize| seen.start * row..seen.end * row;
            match values.rows(start, n) {
                CachedRows::F16(x) if direct && a.head_v == wide_v => {
                    self.add_values(&s.scores, &mut s.sums, skip, seen, |p, seen, sums| {
                        k.accumulate_f16(p, &x[part(&seen, wide_v)], wide_v, sums);
                    });
                }
                CachedRows::Q8_0(x) if direct => {
                    self.add_values(&s.scores, &mut s.sums, skip, seen, |p, seen, sums| {
                        k.accumulate_q8_0(p, &x[part(&seen, values.row_bytes)], wide_v, sums);
                    });
                }
                rows => {
                    rows.widen(k, a.head_v, &mut s.values[..n * wide_v]);
                    self.add_values(&s.scores, &mut s.sums, skip, seen, |p, seen, sums| {
                        k.accumulate(p, &s.values[part(&seen, wide_v)], wide_v, sums);
                    });
                }
            }
        }
    }

    /// Adds a tile's values, weighted, to the sums of the queries from `skip` on: `add` does so for some positions.
    fn add_values(
        &self,
        scores: &[f32],
        sums: &mut [f32],
        skip: usize,
        seen: impl Fn(usize) -> usize,
        add: impl Fn(&[f32], Range<usize>, &mut [f32]),
    ) {
        let dim = Kernels::padded(self.a.head_v);
        let mut i = skip;
        while i < self.n {
            // What four see in common at once, what later rows see beyond it one by one.
            let (next, common) = ((i + 4).min(self.n), seen(i));
            let sums = &mut sums[i * dim..next * dim];
            add(&scores[i * TILE..next * TILE], 0..common, sums);
            for (q, sums) in (i..next).zip(sums.chunks_exact_mut(dim)) {
                if seen(q) > common {
                    add(&scores[q * TILE + common..(q + 1) * TILE], common..seen(q), sums);
                }
            }
            i = next;
        }
    }
}

/// One head's cached rows.
struct Side<'a> {
    ty: GgmlType,
    bytes: &'a [u8],
    n_ctx: usize,
    row_bytes: usize,
    cols: usize,
}

/// Cached rows of a tile.
enum CachedRows<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Q8_0(&'a [u8]),
}

impl<'a> CachedRows<'a> {
    fn new(ty: GgmlType, bytes: &'a [u8]) -> Self {
        match ty {
            // SAFETY: every bit pattern is a valid float, and `align_to` checks the alignment.
            GgmlType::F32 => CachedRows::F32(aligned(unsafe { bytes.align_to::<f32>() })),
            // SAFETY: every bit pattern is a valid half, and `align_to` checks the alignment.
            GgmlType::F16 => CachedRows::F16(aligned(unsafe { bytes.align_to::<f16>() })),
            GgmlType::Q8_0 => CachedRows::Q8_0(bytes),
            ty => unreachable!("a KV cache of {ty}"),
        }
    }

    /// To rows of floats, padded to whole lanes.
    fn widen(self, k: &Kernels, cols: usize, out: &mut [f32]) {
        match self {
            CachedRows::F32(x) => k.widen(x, cols, out),
            CachedRows::F16(x) => k.widen_f16(x, cols, out),
            CachedRows::Q8_0(x) => k.from_q8_0(x, out),
        }
    }
}

impl<'a> Side<'a> {
    fn new(ty: GgmlType, bytes: &'a [u8], head: usize, n_ctx: usize, cols: usize) -> Self {
        let row_bytes = cols / ty.block_len() * ty.block_bytes();
        Self { ty, bytes: &bytes[head * n_ctx * row_bytes..], n_ctx, row_bytes, cols }
    }

    /// Rows `start..start + n`.
    fn rows(&self, start: usize, n: usize) -> CachedRows<'a> {
        CachedRows::new(self.ty, &self.bytes[start * self.row_bytes..][..n * self.row_bytes])
    }

    /// The tile of keys that begins at `start`, and its positions, where the cache has it turned: see
    /// [`crate::backend::TurnedBlock`].
    fn turned(&self, start: usize) -> Option<(CachedRows<'a>, usize)> {
        let width = key_tile(self.n_ctx, start);
        is_turned(self.ty).then(|| (self.rows(start, width), width))
    }

    /// Keys `start..start + n` to columns of floats; what stands behind them is nobody's.
    fn turn(&self, k: &Kernels, start: usize, n: usize, out: &mut [f32]) {
        match (self.rows(start, n), self.turned(start)) {
            (_, Some((CachedRows::F16(tile), width))) => k.widen_f16(tile, width, out),
            (_, Some((CachedRows::Q8_0(tile), width))) => k.widen_keys_q8_0(tile, width, out),
            (CachedRows::F32(x), _) => k.turn(x, self.cols, out),
            _ => unreachable!("keys that are no floats are turned"),
        }
    }
}

/// The aligned middle, which is everything: the cache's rows start at multiples of their element's size.
fn aligned<'x, T>((before, middle, after): (&[u8], &'x [T], &[u8])) -> &'x [T] {
    assert!(before.is_empty() && after.is_empty(), "the KV cache is aligned");
    middle
}
