//! The CPU: kernels chosen once at run time, and the pool that spreads them over threads.
//!
//! Work is handed out in pieces of rows. Each output element is one kernel call's dot product from start to end, so the
//! pieces decide who computes it, never what comes out.
//!
//! Must not know: files, expert ids, caches.

mod attention;
pub mod kernels;
pub mod keys;
mod pool;
mod rate;
mod recurrent;
mod rows;
mod sync;

use std::{mem::MaybeUninit, ops::Range};

use kernels::{KernelChoice, Kernels};
use pool::{Phase, Pool, Worker};
pub use rate::{WeightRate, plain_read};

use super::{
    Act, Attention, AttentionShape, Backend, CacheWrite, FfnExtras, FfnJob, Hidden, MAX_PRODUCTS, Pair, Product,
    Recurrence, Rotation, Rows,
};
use crate::{
    Error, Result,
    quant::{ActRow, FfnMats, QMat, QMatMut, block::CHUNK, interleaved::TILE_ROWS},
};

/// Tokens of one kernel call at most: their activations stay in the second-level cache while weight rows pass.
const TOKENS: usize = 144;

/// Floats of a piece of rows that are quantised, more or less.
const ACT_FLOATS: usize = 8 << 10;

/// Products of fewer weight bytes are computed by the calling thread: the hand-over to others costs more.
const ALONE_BYTES: usize = 32 << 10;

/// See the module.
pub struct Cpu {
    kernels: Kernels,
    pool: Pool,
    attention: attention::Scratch,
}

/// Base of memory that threads write disjoint parts of.
struct Out<T>(*mut T);

// SAFETY: the users below write each element from one thread only, and read it in a later phase.
unsafe impl<T> Sync for Out<T> {}

impl<T> Out<T> {
    /// The element `i` from the base.
    fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

impl Cpu {
    /// `threads` threads with the best kernels that the CPU has.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with(KernelChoice::default(), threads)
    }

    /// `threads` threads with these kernels.
    ///
    /// # Errors
    /// The CPU lacks them; or the system refuses a thread.
    pub fn with(choice: KernelChoice, threads: usize) -> Result<Self> {
        let kernels = Kernels::choose(choice)?;
        let pool =
            Pool::new(threads).map_err(|e| Error::invalid(format!("cannot start {threads} compute threads: {e}")))?;
        let attention = attention::Scratch::new(pool.threads());
        Ok(Self { kernels, pool, attention })
    }

    /// The kernels, for people.
    pub fn isa(&self) -> String {
        self.kernels.name()
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

/// Rows of a piece, whole tiles of them: some pieces for each thread, so that a slow core does not hold up the others, but no
/// tiny ones. (For one token at most 64, 128, 256 or 1024: 114, 117, 116, 117 tokens a second of `mid` Q4_K.)
fn piece(rows: usize, tokens: usize, threads: usize) -> usize {
    rows.div_ceil(threads * 4).clamp(TILE_ROWS, if tokens < 8 { 128 } else { 256 }).next_multiple_of(TILE_ROWS)
}

/// A matrix's rows in pieces.
#[derive(Clone, Copy)]
struct Pieces {
    rows: usize,
    each: usize,
}

impl Pieces {
    fn count(self) -> usize {
        self.rows.div_ceil(self.each)
    }

    /// The rows of piece `i`.
    fn range(self, i: usize) -> Range<usize> {
        i * self.each..((i + 1) * self.each).min(self.rows)
    }
}

/// `y(t)[range] = w[range] · x(t)` for tokens `t` below `n`, where `y(t)` is the start of token t's output; `then` as in
/// [`kernels::MatMul`].
///
/// # Safety
/// Each `y(t)` is valid for `w.rows` floats, of which nobody else uses those in `range` meanwhile.
unsafe fn product<'x>(
    kernels: &Kernels,
    w: &QMat<'_>,
    range: Range<usize>,
    then: &[u8],
    n: usize,
    x: impl Fn(usize) -> ActRow<'x>,
    y: impl Fn(usize) -> *mut f32,
) {
    let part = w.slice(range.clone());
    // Not filled beforehand: they are 6 KiB, and a token comes here some hundred times per layer.
    let mut rows = [const { MaybeUninit::uninit() }; TOKENS];
    let mut out = [const { MaybeUninit::uninit() }; TOKENS];
    for first in (0..n).step_by(TOKENS) {
        let tile = TOKENS.min(n - first);
        for t in 0..tile {
            rows[t].write(x(first + t));
            out[t].write(y(first + t).wrapping_add(range.start));
        }
        let then = if first + tile == n { then } else { part.data };
        // SAFETY: `tile` of each are written; the caller's `y(t)` have `w.rows` floats, of which `range` is this call's alone.
        unsafe { kernels.matmul(part, rows[..tile].assume_init_ref(), out[..tile].assume_init_ref(), then) };
    }
}

/// Scale and bias of some of the products with gate (0), up (1) or down (2).
fn finish(kernels: &Kernels, extras: &FfnExtras<'_>, role: usize, range: Range<usize>, y: &mut [f32]) {
    if extras.scale[role] != 1.0 {
        kernels.scale(extras.scale[role], y);
    }
    if !extras.bias[role].is_empty() {
        kernels.axpy(1.0, &extras.bias[role][range], y);
    }
}

impl Backend for Cpu {
    fn describe(&self) -> String {
        let n = self.threads();
        format!("{}, {n} thread{}", self.kernels.name(), if n == 1 { "" } else { "s" })
    }

    fn is_cpu(&self) -> bool {
        true
    }

    fn prepare(&mut self, rows: &mut Rows) {
        let (n, cols) = (rows.n, rows.cols);
        let acts = rows.acts.reset(n, cols);
        let (x, kernels) = (&rows.x, &self.kernels);
        rows::each_row(&mut self.pool, acts, cols.div_ceil(CHUNK), cols, |i, out| {
            kernels.quantize_row(&x[i * cols..(i + 1) * cols], out);
        });
    }

    fn interleave(&mut self, w: QMatMut<'_>) -> bool {
        if !self.kernels.wants_interleaved(w.ty, w.cols) {
            return false;
        }
        let tile_bytes = TILE_ROWS * w.cols / w.ty.block_len() * w.ty.block_bytes();
        let tiles = w.rows / TILE_ROWS;
        let each = tiles.div_ceil(4 * self.pool.threads()).max(1);
        let work = Phase::new(tiles.div_ceil(each), self.pool.threads());
        let (kernels, data) = (&self.kernels, Out(w.data.as_mut_ptr()));
        assert!(tiles * tile_bytes <= w.data.len(), "bytes of {} rows", w.rows);
        self.pool.run(&|worker: Worker<'_>| {
            work.work(worker, |at| {
                let n = each.min(tiles - at * each);
                // SAFETY: these tiles are in the borrowed bytes (asserted), and this thread's alone.
                let tiles = unsafe { std::slice::from_raw_parts_mut(data.at(at * each * tile_bytes), n * tile_bytes) };
                kernels.interleave(w.ty, w.cols, tiles);
            });
        });
        true
    }

    fn matmul(&mut self, rows: &Rows, products: &mut [Product<'_>]) {
        let n = rows.n;
        let total: usize = products.iter().map(|p| p.w.rows).sum();
        let bytes: usize = products.iter().map(|p| p.w.data.len()).sum();
        let piece = piece(total, n, self.pool.threads());
        // Pieces of the products one after another, none across two of them.
        let n_pieces = products.iter().map(|p| p.w.rows.div_ceil(piece)).sum();
        let mut outs = [const { Out(std::ptr::null_mut()) }; MAX_PRODUCTS];
        for (p, out) in products.iter_mut().zip(&mut outs) {
            assert_eq!(p.y.len(), n * p.w.rows, "output of {n} rows of {}", p.w.rows);
            *out = Out(p.y.as_mut_ptr());
        }
        let work = Phase::new(n_pieces, self.pool.threads());
        let (kernels, products) = (&self.kernels, &*products);
        assert!(products.len() <= MAX_PRODUCTS, "at most {MAX_PRODUCTS} products share an input");
        let piece_at = |mut at: usize| {
            for (p, out) in products.iter().zip(&outs) {
                let pieces = Pieces { rows: p.w.rows, each: piece };
                if at < pieces.count() {
                    return (&p.w, pieces.range(at), out);
                }
                at -= pieces.count();
            }
            unreachable!("a piece of one of the products")
        };
        let body = |worker: Worker<'_>| {
            work.work(worker, |at| {
                let (w, range, y) = piece_at(at);
                let then = work.next(worker).map(piece_at).map_or(&[][..], |(w, range, _)| w.slice(range).data);
                // SAFETY: `y` has n * w.rows floats (asserted) that are borrowed for writing; pieces are disjoint.
                unsafe { product(kernels, w, range, then, n, |t| rows.row(t), |t| y.at(t * w.rows)) };
            });
        };
        if bytes * n < ALONE_BYTES { body(Worker::alone()) } else { self.pool.run(&body) }
    }

    fn matmul_per_head(&mut self, rows: &Rows, n_head: usize, w: QMat<'_>, y: &mut [f32]) {
        let (n, each) = (rows.n / n_head, w.rows / n_head);
        assert_eq!(y.len(), n * w.rows, "output of {n} rows of {n_head} heads");
        let (kernels, out) = (&self.kernels, Out(y.as_mut_ptr()));
        let work = Phase::new(n_head, self.pool.threads());
        let body = |worker: Worker<'_>| {
            work.work(worker, |head| {
                let range = head * each..(head + 1) * each;
                // SAFETY: `y` has n * w.rows floats (asserted) that are borrowed for writing; heads' rows are disjoint.
                unsafe { product(kernels, &w, range, &[], n, |t| rows.row(t * n_head + head), |t| out.at(t * w.rows)) };
            });
        };
        if w.data.len() * n < ALONE_BYTES { body(Worker::alone()) } else { self.pool.run(&body) }
    }

    fn ffn(&mut self, rows: &Rows, jobs: &[FfnJob<'_>], pairs: &[Pair], hidden: &mut Hidden, out: &mut [f32]) {
        let Some(FfnJob { mats, .. }) = jobs.first() else { return };
        let (n_ff, n_embd) = (mats.n_ff(), mats.down.rows);
        let mut n = 0;
        for job in jobs {
            assert!(job.mats.n_ff() == n_ff && job.mats.down.rows == n_embd, "jobs of one shape");
            assert_eq!(job.hidden, n, "hidden rows of one job after another");
            n += job.pairs.len();
            let fits = |p: &Pair| (p.out as usize + 1) * n_embd <= out.len();
            assert!(pairs[job.pairs.clone()].iter().all(fits), "every pair has an output row");
        }
        assert!(n <= hidden.pairs(n_ff), "{n} pairs of width {n_ff} fit");

        let threads = self.pool.threads();
        // Experts differ in tokens: many threads want finer pieces, few want long runs of memory.
        let most = if threads > 2 { 128 } else { usize::MAX };
        let pieces = |rows| Pieces { rows, each: piece(rows * jobs.len(), n / jobs.len(), threads).min(most) };
        let (ups, downs) = (pieces(n_ff), pieces(n_embd)); // of a job
        let chunks = n_ff.div_ceil(CHUNK); // a row's
        let up_work = Phase::new(jobs.len() * ups.count(), threads);
        // Rows of 256 handed out one by one: prompts of moe-m took 2 % longer.
        let act_rows = Pieces { rows: n, each: (ACT_FLOATS / n_ff).min(n.div_ceil(2 * threads)).max(1) };
        let act_work = Phase::new(act_rows.count(), threads);
        let down_work = Phase::new(jobs.len() * downs.count(), threads);
        let acts = Out(hidden.rows.acts.reset(n, n_ff).as_mut_ptr()); // (n, chunks)
        let gate = Out(hidden.rows.x.as_mut_ptr()); // (n, n_ff)
        let up = Out(hidden.up.as_mut_ptr()); // (n, n_ff)
        let out = Out(out.as_mut_ptr());
        let kernels = &self.kernels;
        // Where jobs come sorted by tokens, some threads' ranges wait for arithmetic while others' wait for DRAM.
        let piece_at = |of: Pieces, at: usize| (&jobs[at / of.count()], of.range(at % of.count()));
        let next_up = |worker: Worker<'_>| {
            let (job, range) = piece_at(ups, up_work.next(worker)?);
            Some(job.mats.gate.unwrap_or(job.mats.up).slice(range).data)
        };
        let next_down = |worker: Worker<'_>| {
            let (job, range) = piece_at(downs, down_work.next(worker)?);
            Some(job.mats.down.slice(range).data)
        };
        self.pool.run(&|worker: Worker<'_>| {
            up_work.work(worker, |at| {
                let (job, range) = piece_at(ups, at);
                let FfnMats { gate: gate_mat, up: up_mat, .. } = &job.mats;
                let then_up = up_mat.slice(range.clone()).data;
                let then = next_up(worker).or_else(|| next_down(worker)).unwrap_or_default();
                let x = |t: usize| rows.row(pairs[job.pairs.start + t].row as usize);
                let to = |base: &Out<f32>, t: usize| base.at((job.hidden + t) * n_ff);
                // SAFETY: `gate` and `up` hold n rows of n_ff (asserted); a job's hidden rows are its own, pieces are
                // disjoint in `range`.
                unsafe {
                    // Without a gate, what `up` gives stands where the gate's products do.
                    let up = if gate_mat.is_some() { &up } else { &gate };
                    if let Some(w) = gate_mat {
                        product(kernels, w, range.clone(), then_up, job.pairs.len(), x, |t| to(&gate, t));
                    }
                    product(kernels, up_mat, range.clone(), then, job.pairs.len(), x, |t| to(up, t));
                    for t in 0..job.pairs.len() {
                        let scale = pairs[job.pairs.start + t].scale;
                        let finished = |base: &Out<f32>, role: usize| {
                            let y = std::slice::from_raw_parts_mut(to(base, t).add(range.start), range.len());
                            if scale != 1.0 {
                                kernels.scale(scale, y);
                            }
                            finish(kernels, &job.extras, role, range.clone(), y);
                            y
                        };
                        let u = finished(up, 1);
                        match (gate_mat, job.extras.act) {
                            (None, act) => act.apply_alone(u),
                            (Some(_), Act::Silu) => kernels.silu_mul(finished(&gate, 0), u),
                            (Some(_), act) => act.apply(finished(&gate, 0), u),
                        }
                    }
                }
            });
            act_work.work(worker, |at| {
                for i in act_rows.range(at) {
                    // SAFETY: all writes to `gate` lie in an earlier phase; row i of `acts` is this thread's alone.
                    unsafe {
                        let row = std::slice::from_raw_parts(gate.at(i * n_ff), n_ff);
                        kernels.quantize_row(row, std::slice::from_raw_parts_mut(acts.at(i * chunks), chunks));
                    }
                }
            });
            down_work.work(worker, |at| {
                let (job, range) = piece_at(downs, at);
                let then = next_down(worker).unwrap_or_default();
                // SAFETY: all writes to `gate` and `acts` lie in an earlier phase, and both hold n rows.
                let h = |t: usize| unsafe {
                    let i = job.hidden + t;
                    ActRow {
                        x: std::slice::from_raw_parts(gate.at(i * n_ff), n_ff),
                        chunks: std::slice::from_raw_parts(acts.at(i * chunks), chunks),
                    }
                };
                let y = |t: usize| out.at(pairs[job.pairs.start + t].out as usize * n_embd);
                // SAFETY: the rows were asserted to lie in `out`; each pair has its own, pieces are disjoint.
                unsafe { product(kernels, &job.mats.down, range.clone(), then, job.pairs.len(), h, y) };
                for t in 0..job.pairs.len() {
                    // SAFETY: as above.
                    let y = unsafe { std::slice::from_raw_parts_mut(y(t).add(range.start), range.len()) };
                    finish(kernels, &job.extras, 2, range.clone(), y);
                }
            });
        });
    }

    fn attention_bytes(threads: usize, shape: AttentionShape) -> u64 {
        attention::Scratch::bytes(threads, shape) as u64
    }

    fn attend(&mut self, a: &Attention<'_>, out: &mut [f32]) {
        attention::attend(self, a, out);
    }

    fn recur(&mut self, r: &Recurrence<'_>, state: &mut [f32], out: &mut [f32]) {
        recurrent::recur(&self.kernels, &mut self.pool, r, state, out);
    }

    fn rms_norm(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let (n, kernels) = (weight.len(), &self.kernels);
        rows::each_row(&mut self.pool, out, n, n, |i, out| {
            rows::rms_norm(kernels, &x[i * n..(i + 1) * n], weight, eps, out);
        });
    }

    fn rms_norm_onto(&mut self, x: &mut [f32], weight: &[f32], eps: f32) {
        let (n, kernels) = (weight.len(), &self.kernels);
        rows::each_row(&mut self.pool, x, n, n, |_, x| rows::rms_norm_onto(kernels, x, weight, eps));
    }

    fn rope(&mut self, x: &mut [f32], rotation: &Rotation<'_>) {
        let n = rotation.turns.len() / (2 * rotation.pairs);
        let (cols, kernels) = (x.len() / n, &self.kernels);
        rows::each_row(&mut self.pool, x, cols, cols, |i, row| rows::rope(kernels, rotation, i, row));
    }

    fn write_cache(&mut self, write: CacheWrite<'_>) {
        rows::write(&self.kernels, &mut self.pool, write);
    }

    fn add_bias(&mut self, x: &mut [f32], bias: &[f32]) {
        let kernels = &self.kernels;
        rows::each_row(&mut self.pool, x, bias.len(), bias.len(), |_, x| kernels.axpy(1.0, bias, x));
    }

    fn add_weighted(&mut self, x: &mut [f32], cols: usize, terms: &[f32], weight: impl Fn(usize) -> f32 + Sync) {
        let (each, kernels) = (terms.len() / x.len(), &self.kernels);
        rows::each_row(&mut self.pool, x, cols, each * cols, |i, x| {
            for r in i * each..(i + 1) * each {
                kernels.axpy(weight(r), &terms[r * cols..(r + 1) * cols], x);
            }
        });
    }

    fn softmax(&mut self, x: &mut [f32], cols: usize) {
        let kernels = &self.kernels;
        // An exponential costs as much as reading some ten floats.
        rows::each_row(&mut self.pool, x, cols, 8 * cols, |_, x| {
            let total = kernels.exp_sum(x, kernels.max(x));
            kernels.scale(1.0 / total, x);
        });
    }

    fn each_row<T: Send>(&mut self, x: &mut [T], cols: usize, cost: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        rows::each_row(&mut self.pool, x, cols, cost, f);
    }
}
