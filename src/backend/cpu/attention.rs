//! Causal grouped-query attention in tiles (Dao et al., arXiv 2205.14135; Milakov and Gimelshein, arXiv 1805.02867).
//!
//! A piece of work is one key/value head and a block of the queries that read it. Positions come in tiles; keys and
//! values of a tile become floats once for the whole block, and a running maximum and sum make one pass do.
//!
//! Tiles start at multiples of [`TILE`] from position 0 and are taken in order, spans of them are put together in order, and a
//! query's arithmetic sees no other query: so a row gets the same bits alone, in any batch, and on any number of threads.

mod sums;

use std::{ops::Range, sync::Mutex};

use half::f16;

use super::{
    Cpu, Out, Phase, Worker,
    kernels::{Kernels, TILE},
    keys::{is_tiled, tile_len},
};
use crate::{
    backend::{Attention, AttentionShape, Floats, soft_cap},
    quant::GgmlType,
};
use sums::{Part, Sums};

const _: () = assert!(TILE == u64::BITS as usize, "a word says which positions of a tile are looked at");

/// Queries of a block at most: enough that making floats of a tile costs little beside using them.
const QUERIES: usize = 64;

/// Queries that read the cache as it is: to make floats of a tile first does not pay for so few (8, of F16: a token 5 to 23 %
/// faster at 8192 tokens of context).
const DIRECT: usize = 16;

/// Positions that have a softmax of their own, a multiple of a tile. A single row's spans are pieces of work: threads can be
/// more than key/value heads.
const SPAN: usize = 2048;

/// What the CPU's attention works in. Allocated when used; the same whatever the context's length so far.
pub(super) struct Scratch {
    /// Each thread's.
    threads: Vec<Mutex<ThreadScratch>>,
    /// All spans of a row. (spans, n_head)
    spans: Sums,
}

#[derive(Default)]
struct ThreadScratch {
    tile: TileScratch,
    /// A block's sums so far. (QUERIES)
    all: Sums,
    /// Those of a span. (QUERIES)
    span: Sums,
}

#[derive(Default)]
struct TileScratch {
    /// The block's queries, scaled. (QUERIES, head_k)
    q: Floats,
    /// (head_k, TILE)
    keys: Floats,
    /// (TILE, padded head_v)
    values: Floats,
    /// Scores, then weights. (QUERIES, TILE)
    scores: Floats,
}

impl Scratch {
    pub(super) fn new(threads: usize) -> Self {
        Self { threads: (0..threads).map(|_| Mutex::default()).collect(), spans: Sums::default() }
    }

    /// Bytes on `threads` threads.
    pub(super) const fn bytes(threads: usize, shape: AttentionShape) -> usize {
        let AttentionShape { n_head, head_k, head_v, n_ctx } = shape;
        let thread = QUERIES * (head_k + TILE) + TILE * (head_k + Kernels::padded(head_v));
        threads * (thread * size_of::<f32>() + 2 * Sums::bytes(QUERIES, head_v))
            + Sums::bytes(n_span_of(n_ctx) * n_head, head_v)
    }
}

/// Spans of a row whose context has room for `n_ctx` positions, if it has more than one.
const fn n_span_of(n_ctx: usize) -> usize {
    // One more where they begin in the middle of one.
    if n_ctx > SPAN { n_ctx.div_ceil(SPAN) + 1 } else { 0 }
}

impl ThreadScratch {
    fn reserve(&mut self, a: &Attention<'_>) {
        self.tile.q.resize(QUERIES * a.head_k);
        self.tile.keys.resize(TILE * a.head_k);
        self.tile.values.resize(TILE * Kernels::padded(a.head_v));
        self.tile.scores.resize(QUERIES * TILE);
        self.all.resize(QUERIES, a.head_v);
        self.span.resize(QUERIES, a.head_v);
    }
}

pub(super) fn attend(cpu: &mut Cpu, a: &Attention<'_>, out: &mut [f32]) {
    let n = a.q.len() / (a.n_head * a.head_k);
    assert_eq!(out.len(), n * a.n_head * a.head_v, "output of {n} rows");
    let Cpu { kernels, pool, attention: Scratch { threads, spans } } = cpu;
    let (kernels, threads, end) = (&*kernels, &*threads, a.first + n);
    let begin = a.sees_from(a.first) / TILE * TILE;
    let fits = end <= a.n_ctx || a.n_ctx.is_multiple_of(TILE) && end - begin <= a.n_ctx;
    assert!(fits, "{n} rows at {} in a cache of {}", a.first, a.n_ctx);
    // Spans that no row sees anything of are left out.
    let (first_span, end_span) = (begin / SPAN, end.div_ceil(SPAN));
    let out = Out(out.as_mut_ptr());
    // SAFETY: `out` has a row for each query (asserted), which only the piece that has the query uses.
    let row = |query: usize| unsafe { std::slice::from_raw_parts_mut(out.at(query * a.head_v), a.head_v) };
    let blocks = Blocks::new(a, n);
    // A few short dot products do not pay for a hand-over.
    let alone = n * (end - begin) * a.n_head * a.head_k < ALONE;
    let mut run = |body: &(dyn Fn(Worker<'_>, &mut ThreadScratch) + Sync)| {
        let body = |worker: Worker<'_>| {
            let mut s = threads[worker.index].lock().expect("each thread has its own");
            s.reserve(a);
            body(worker, &mut s);
        };
        if alone { body(Worker::alone()) } else { pool.run(&body) }
    };

    // Where heads leave no thread without work, each stays with a head: hopping among them, two threads with four heads were 6 %
    // slower at 8192 tokens (spans of 512).
    if n == 1 && end_span - first_span > 1 && !blocks.count().is_multiple_of(threads.len()) {
        let n_span = end_span - first_span;
        spans.resize(n_span_of(a.n_ctx) * a.n_head, a.head_v);
        let (parts, rows) = (Phase::new(n_span * blocks.count(), threads.len()), Phase::new(a.n_head, threads.len()));
        let spans = spans.shared();
        run(&|worker, s| {
            parts.work(worker, |at| {
                let (span, block) = (at % n_span, blocks.at(at / n_span));
                // SAFETY: there are as many sums as spans and heads, since rows end within the context (asserted); each piece has
                // its own.
                let mut part = unsafe { spans.part(span * a.n_head + block.query(0), block.n) };
                block.run(kernels, (first_span + span) * SPAN, &mut s.tile, &mut part);
            });
            rows.work(worker, |query| {
                // SAFETY: as above; all were written in an earlier phase.
                let part = |span: usize| unsafe { spans.part(span * a.n_head + query, 1) };
                let mut all = part(0);
                (1..n_span).for_each(|span| all.add(kernels, &part(span)));
                if let Some(&sink) = a.sinks.get(query) {
                    all.add_sink(kernels, 0, sink);
                }
                all.divide(kernels, 0, row(query));
            });
        });
    } else {
        let work = Phase::new(blocks.count(), threads.len());
        run(&|worker, s| {
            work.work(worker, |at| {
                // Late rows have most to do: first come, first served makes the short ones fill the gaps.
                let block = blocks.at(blocks.count() - 1 - at);
                let (mut all, mut span) = (s.all.first(block.n), s.span.first(block.n));
                block.run(kernels, first_span * SPAN, &mut s.tile, &mut all);
                for start in ((first_span + 1) * SPAN..block.sees(block.n - 1)).step_by(SPAN) {
                    block.run(kernels, start, &mut s.tile, &mut span);
                    all.add(kernels, &span);
                }
                for i in 0..block.n {
                    let query = block.query(i);
                    if let Some(&sink) = a.sinks.get(query % a.n_head) {
                        all.add_sink(kernels, i, sink);
                    }
                    all.divide(kernels, i, row(query));
                }
            });
        });
    }
}

/// Multiplications below which the calling thread does them all.
const ALONE: usize = 64 << 10;

/// A batch's queries in blocks of at most [`QUERIES`]: the first ones of each key/value head, then the next ones of each, …
#[derive(Clone, Copy)]
struct Blocks<'a> {
    a: &'a Attention<'a>,
    /// Queries of a key/value head.
    queries: usize,
}

impl<'a> Blocks<'a> {
    /// Of `n` rows.
    fn new(a: &'a Attention<'a>, n: usize) -> Self {
        Self { a, queries: n * (a.n_head / a.n_head_kv) }
    }

    fn count(self) -> usize {
        self.queries.div_ceil(QUERIES) * self.a.n_head_kv
    }

    fn at(self, i: usize) -> Block<'a> {
        let first = i / self.a.n_head_kv * QUERIES;
        Block { a: self.a, head: i % self.a.n_head_kv, first, n: QUERIES.min(self.queries - first) }
    }
}

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

    /// What the block has of the positions of the span that begins at `start`.
    fn run(&self, k: &Kernels, start: usize, s: &mut TileScratch, part: &mut Part<'_>) {
        let (a, wide_v) = (self.a, Kernels::padded(self.a.head_v));
        for (i, q) in s.q.chunks_exact_mut(a.head_k).enumerate().take(self.n) {
            k.scaled(a.scale, &a.q[self.query(i) * a.head_k..][..a.head_k], q);
        }
        part.clear();
        let keys = Side::new(a.ty, a.keys, self.head, a.n_ctx, a.head_k);
        let values = (!a.values.is_empty()).then(|| Side::new(a.ty, a.values, self.head, a.n_ctx, a.head_v));
        // Counted once: they are divisions.
        let mut sees = [0; QUERIES];
        sees.iter_mut().enumerate().take(self.n).for_each(|(i, sees)| *sees = self.sees(i));
        let end = sees[self.n - 1].min(start + SPAN);
        // Later queries see no position before the first one's.
        let begin = a.sees_from(sees[0] - 1) / TILE * TILE;
        for start in (begin.max(start)..end).step_by(TILE) {
            let n = TILE.min(end - start);
            let seen = |i: usize| sees[i].saturating_sub(start).min(n);
            // Queries that the tile is out of sight for.
            let skip = (0..self.n).find(|&i| seen(i) > 0).unwrap_or(self.n);
            // Values that are a part of keys need those as floats.
            let direct = self.n <= DIRECT && values.is_some();
            let q = &s.q[skip * a.head_k..self.n * a.head_k];
            let scores = &mut s.scores[skip * TILE..self.n * TILE];
            match keys.tiled(start) {
                Some((CachedRows::F16(tile), TILE)) if direct => k.scores_f16(q, tile, n, scores),
                Some((CachedRows::Q8_0(tile), TILE)) if direct => k.scores_q8_0(q, tile, n, scores),
                _ => {
                    keys.turn(k, start, n, &mut s.keys[..TILE * a.head_k]);
                    k.scores(q, &s.keys, n, scores);
                }
            }
            for (i, end) in sees.iter().enumerate().take(self.n).skip(skip) {
                let scores = &mut s.scores[i * TILE..][..seen(i)];
                // What the window has left behind weighs nothing: adding nothing changes no bit of a sum.
                let behind = a.sees_from(end - 1).saturating_sub(start);
                let chosen = a.chosen(end - 1 - a.first, start / TILE);
                let none = scores.len() < TILE && chosen & ((1 << scores.len()) - 1) == 0 || chosen == 0;
                if behind >= scores.len() || none {
                    scores.fill(0.0);
                    continue;
                }
                if let Some(cap) = a.soft_cap {
                    scores.iter_mut().for_each(|x| *x = soft_cap(cap, *x));
                }
                scores[..behind].fill(f32::NEG_INFINITY);
                if chosen != u64::MAX {
                    let left_out = scores.iter_mut().enumerate().filter(|(i, _)| chosen >> i & 1 == 0);
                    left_out.for_each(|(_, score)| *score = f32::NEG_INFINITY);
                }
                let (_, weights) = part.raise(k, i, k.max(scores));
                weights.1 += k.exp_sum(scores, weights.0);
            }
            let bounds = |seen: &Range<usize>, row: usize| seen.start * row..seen.end * row;
            let Some(values) = &values else {
                for (p, value) in s.values.chunks_exact_mut(wide_v).enumerate().take(n) {
                    value.iter_mut().zip(s.keys.chunks_exact(TILE)).take(a.head_v).for_each(|(v, key)| *v = key[p]);
                }
                self.add_values(&s.scores, part.values, skip, seen, |p, seen, sums| {
                    k.accumulate(p, &s.values[bounds(&seen, wide_v)], wide_v, sums);
                });
                continue;
            };
            match values.rows(start, n) {
                CachedRows::F16(x) if direct && a.head_v == wide_v => {
                    self.add_values(&s.scores, part.values, skip, seen, |p, seen, sums| {
                        k.accumulate_f16(p, &x[bounds(&seen, wide_v)], wide_v, sums);
                    });
                }
                CachedRows::Q8_0(x) if direct => {
                    self.add_values(&s.scores, part.values, skip, seen, |p, seen, sums| {
                        k.accumulate_q8_0(p, &x[bounds(&seen, values.row_bytes)], wide_v, sums);
                    });
                }
                rows => {
                    rows.widen(k, a.head_v, &mut s.values[..n * wide_v]);
                    self.add_values(&s.scores, part.values, skip, seen, |p, seen, sums| {
                        k.accumulate(p, &s.values[bounds(&seen, wide_v)], wide_v, sums);
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
            // What four, or all that see as much, have in common at once, what later rows see beyond it one by one.
            let common = seen(i);
            let same = (i..self.n).take_while(|&q| seen(q) == common).count();
            let next = (i + same.max(4)).min(self.n);
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
        CachedRows::new(self.ty, &self.bytes[start % self.n_ctx * self.row_bytes..][..n * self.row_bytes])
    }

    /// The tile of keys that begins at `start`, and its positions, where the cache has it transposed: see
    /// [`super::keys`].
    fn tiled(&self, start: usize) -> Option<(CachedRows<'a>, usize)> {
        let width = tile_len(self.n_ctx, start % self.n_ctx);
        is_tiled(self.ty).then(|| (self.rows(start, width), width))
    }

    /// Keys `start..start + n` to columns of floats; what stands behind them is nobody's.
    fn turn(&self, k: &Kernels, start: usize, n: usize, out: &mut [f32]) {
        match (self.rows(start, n), self.tiled(start)) {
            (_, Some((CachedRows::F16(tile), width))) => k.widen_f16(tile, width, out),
            (_, Some((CachedRows::Q8_0(tile), width))) => k.widen_keys_q8_0(tile, width, out),
            (CachedRows::F32(x), _) => k.turn(x, self.cols, out),
            _ => unreachable!("keys that are no floats lie in tiles"),
        }
    }
}

/// The aligned middle, which is everything: the cache's rows start at multiples of their element's size.
fn aligned<'x, T>((before, middle, after): (&[u8], &'x [T], &[u8])) -> &'x [T] {
    assert!(before.is_empty() && after.is_empty(), "the KV cache is aligned");
    middle
}
