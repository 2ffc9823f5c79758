//! Attention's arithmetic on a tile of cached positions, over sixteen lanes.
//!
//! Every score and every output element is one chain of fused additions in the order of the dimensions or positions, so
//! which queries share a call changes no bit of any of them, and neither does the instruction set.
//!
//! Must not know: caches, softmax, threads.

use super::{
    ahead::ask_for,
    ops::{Element, Lanes, Q8_0, by_lanes, load},
};
use crate::quant::act::LANES;

/// Positions of a tile: keys, values and scores of 64 queries with heads of 128 take 80 KiB then.
pub const TILE: usize = 64;

/// `out[d][p] = x[p][d]` for the positions that `x` (n, dim) has. (dim, TILE)
// SAFETY: needs the features of `L`; lengths as [`super::Kernels`] has checked them.
#[inline(always)]
pub(super) unsafe fn turn<L: Lanes>(x: &[f32], dim: usize, out: &mut [f32]) {
    let n = x.len() / dim;
    for p in (0..n).step_by(LANES) {
        for d in (0..dim).step_by(LANES) {
            // SAFETY: the caller checked the CPU, that `n` is at most a tile and that `out` has `dim` rows of a tile.
            unsafe {
                let mut block = [L::splat(0.0); LANES];
                for (i, lanes) in block.iter_mut().enumerate().take(n - p) {
                    let row = &x[(p + i) * dim..(p + i + 1) * dim];
                    *lanes = if d + LANES <= dim {
                        load::<true, L, _>(row, d, 0.0)
                    } else {
                        load::<false, L, _>(row, d, 0.0)
                    };
                }
                let block = L::transpose(block);
                for (i, lanes) in block.iter().enumerate().take(dim - d) {
                    lanes.store(out.as_mut_ptr().add((d + i) * TILE + p));
                }
            }
        }
    }
}

/// `y[r] = x[r]` with rows of `dim` padded by zeros to whole lanes. x: (n, dim), y: (n, that or more)
// SAFETY: needs the features of `L`; lengths as [`super::Kernels`] has checked them.
#[inline(always)]
pub(super) unsafe fn widen<L: Lanes, T: Element>(x: &[T], dim: usize, y: &mut [f32]) {
    let wide = y.len() / (x.len() / dim).max(1);
    for (x, y) in x.chunks_exact(dim).zip(y.chunks_exact_mut(wide)) {
        let whole = dim / LANES * LANES;
        // SAFETY: the caller checked the CPU; `y` has whole lanes, `x` has them below `whole`.
        unsafe {
            for d in (0..whole).step_by(LANES) {
                load::<true, L, T>(x, d, T::ZERO).store(y.as_mut_ptr().add(d));
            }
            if whole < dim {
                load::<false, L, T>(x, whole, T::ZERO).store(y.as_mut_ptr().add(whole));
            }
        }
    }
}

/// `out[d][p] = x[d][p]` as floats for the `width` positions of a tile of keys of Q8_0, which lie as
/// [`crate::backend::TurnedKey`] says. (dim, TILE)
// SAFETY: needs the features of `L`; lengths as [`super::Kernels`] has checked them.
#[inline(always)]
pub(super) unsafe fn widen_keys_q8_0<L: Lanes>(x: &[u8], width: usize, out: &mut [f32]) {
    for (block, out) in x.chunks_exact(width * Q8_0.0).zip(out.chunks_exact_mut(Q8_0.1 * TILE)) {
        let (scales, bytes) = block.split_at(2 * width);
        let scales = scales.as_chunks::<2>().0;
        // SAFETY: the caller checked the CPU, and that `width` is at most a tile, which is a multiple of LANES.
        unsafe {
            by_lanes!(width, |p| {
                let scales = load::<WHOLE, L, _>(scales, p, [0; 2]);
                for (x, out) in bytes.chunks_exact(width).zip(out.chunks_exact_mut(TILE)) {
                    scales.mul(load::<WHOLE, L, _>(x, p, 0)).store(out.as_mut_ptr().add(p));
                }
            });
        }
    }
}

/// The vectors of a [`Block`]: `V` of them side by side from column `c` on, in each of its steps.
///
/// # Safety
/// Every method: the CPU has the instruction set, step and columns are inside; `c` is a multiple of `V` vectors, and `V` is
/// even or 1.
trait Vectors: Copy {
    /// Whether they come from the KV cache, and have to be made of what it holds; or else from a copy, as floats.
    const CACHED: bool;
    /// Scales that the steps of a [`Q8_0`] block from `s` on have in common, if they do.
    // SAFETY: as the trait says.
    #[inline(always)]
    unsafe fn scales<L: Lanes, const V: usize>(self, _s: usize, _c: usize) -> [L; V] {
        // SAFETY: the caller's promise.
        [unsafe { L::splat(0.0) }; V]
    }
    // SAFETY: as the trait says.
    unsafe fn load<L: Lanes, const V: usize>(self, s: usize, c: usize, scales: [L; V]) -> [L; V];
    /// Asks memory for what stands `ahead` bytes behind these vectors.
    fn ask<const V: usize>(self, s: usize, c: usize, ahead: usize);
}

/// Elements that lanes can be loaded from: step `s` starts at `s * step`.
#[derive(Clone, Copy)]
struct Plain<T> {
    b: *const T,
    step: usize,
}

impl<T: Element> Vectors for Plain<T> {
    const CACHED: bool = T::CACHED;
    // SAFETY: as the trait says.
    #[inline(always)]
    unsafe fn load<L: Lanes, const V: usize>(self, s: usize, c: usize, _: [L; V]) -> [L; V] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut x = [L::splat(0.0); V];
            for (v, x) in x.iter_mut().enumerate() {
                *x = T::load(self.b.add(s * self.step + c + v * LANES));
            }
            x
        }
    }
    #[inline(always)]
    fn ask<const V: usize>(self, s: usize, c: usize, ahead: usize) {
        let at = self.b.wrapping_add(s * self.step + c).cast::<u8>();
        ask_for(at.wrapping_add(ahead), V * LANES * size_of::<T>());
    }
}

/// Keys of Q8_0, turned: a step is a dimension, a column a position.
#[derive(Clone, Copy)]
struct KeysQ8(*const u8);

impl KeysQ8 {
    /// The block of dimension `s`: scales of a tile of positions, then bytes.
    #[inline(always)]
    fn block(self, s: usize) -> *const u8 {
        self.0.wrapping_add(s / Q8_0.1 * Q8_0.0 * TILE)
    }
}

impl Vectors for KeysQ8 {
    const CACHED: bool = true;
    // SAFETY: as the trait says.
    #[inline(always)]
    unsafe fn scales<L: Lanes, const V: usize>(self, s: usize, c: usize) -> [L; V] {
        let scales = self.block(s).wrapping_add(2 * c);
        // SAFETY: the caller's promise.
        unsafe {
            let mut x = [L::splat(0.0); V];
            for (v, x) in x.iter_mut().enumerate() {
                *x = L::load_f16(scales.add(2 * v * LANES).cast());
            }
            x
        }
    }
    // SAFETY: as the trait says.
    #[inline(always)]
    unsafe fn load<L: Lanes, const V: usize>(self, s: usize, c: usize, scales: [L; V]) -> [L; V] {
        let bytes = self.block(s).wrapping_add((2 + s % Q8_0.1) * TILE + c);
        let mut x = scales;
        for (v, x) in x.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *x = unsafe { x.mul(L::load_i8(bytes.add(v * LANES).cast())) };
        }
        x
    }
    #[inline(always)]
    fn ask<const V: usize>(self, s: usize, c: usize, ahead: usize) {
        ask_for(self.block(s).wrapping_add((2 + s % Q8_0.1) * TILE + c + ahead), V * LANES);
    }
}

/// Values of Q8_0: a step is a position, a row of blocks, of which two vectors take one.
#[derive(Clone, Copy)]
struct ValuesQ8 {
    b: *const u8,
    row_bytes: usize,
}

impl Vectors for ValuesQ8 {
    const CACHED: bool = true;
    // SAFETY: as the trait says.
    #[inline(always)]
    unsafe fn load<L: Lanes, const V: usize>(self, s: usize, c: usize, _: [L; V]) -> [L; V] {
        let row = self.b.wrapping_add(s * self.row_bytes);
        let first = row.wrapping_add(c / Q8_0.1 * Q8_0.0);
        // SAFETY: the caller's promise; two vectors of a block begin where it does.
        unsafe {
            if V == 1 {
                return [L::splat_f16(first.cast()).mul(L::load_i8(first.add(2 + c % Q8_0.1).cast())); V];
            }
            let mut x = [L::splat(0.0); V];
            for (j, x) in x.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let block = first.add(j * Q8_0.0);
                let scale = L::splat_f16(block.cast());
                x[0] = scale.mul(L::load_i8(block.add(2).cast()));
                x[1] = scale.mul(L::load_i8(block.add(2 + LANES).cast()));
            }
            x
        }
    }
    #[inline(always)]
    fn ask<const V: usize>(self, s: usize, c: usize, ahead: usize) {
        let block = self.b.wrapping_add(s * self.row_bytes + c / Q8_0.1 * Q8_0.0);
        ask_for(block.wrapping_add(ahead), V * LANES);
    }
}

/// Rows of `a` (q, ·) times rows of `b` (·, TILE or dim), accumulated in registers: `Q` queries by `V` vectors.
struct Block<'a, B> {
    /// Factors: step `s` of query `i` is at `i * a_query + s * 1`.
    a: &'a [f32],
    a_query: usize,
    b: B,
    steps: usize,
    /// Bytes of a tile: while one is used, memory is asked for the next. Half as far ahead, or less, attention of a token at
    /// 8192 was up to 1.3 times as slow (Zen 5, F16; without asking, 1.5 times).
    ahead: usize,
}

impl<B: Vectors> Block<'_, B> {
    /// `out[i][c..]` gets the sums that start from `out` itself or, where `FRESH`, from nothing.
    ///
    /// # Safety
    /// The CPU has the instruction set; queries `i` to `i + Q` and columns `c` to `c + V * LANES` are inside.
    #[inline(always)]
    unsafe fn run<L: Lanes, const FRESH: bool, const ASK: bool, const Q: usize, const V: usize>(
        &self,
        i: usize,
        c: usize,
        out: *mut f32,
        out_query: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let a = self.a.as_ptr().add(i * self.a_query);
            let out = out.add(i * out_query + c);
            let mut acc = [[L::splat(0.0); V]; Q];
            if !FRESH {
                for (q, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = L::load(out.add(q * out_query + v * LANES));
                    }
                }
            }
            for start in (0..self.steps).step_by(Q8_0.1) {
                let scales = self.b.scales::<L, V>(start, c);
                for s in start..self.steps.min(start + Q8_0.1) {
                    let x = self.b.load::<L, V>(s, c, scales);
                    if ASK {
                        self.b.ask::<V>(s, c, self.ahead);
                    }
                    for (q, acc) in acc.iter_mut().enumerate() {
                        let a = L::splat(*a.add(q * self.a_query + s));
                        for (acc, x) in acc.iter_mut().zip(x) {
                            *acc = x.fma(a, *acc);
                        }
                    }
                }
            }
            for (q, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    acc.store(out.add(q * out_query + v * LANES));
                }
            }
        }
    }

    /// All columns of `Q` queries from `i` on.
    ///
    /// # Safety
    /// As [`Block::run`], for `columns`, a multiple of [`LANES`].
    #[inline(always)]
    unsafe fn queries<L: Lanes, const FRESH: bool, const ASK: bool, const Q: usize>(
        &self,
        i: usize,
        columns: usize,
        out: *mut f32,
        out_query: usize,
    ) {
        let mut c = 0;
        // SAFETY: the caller's promise.
        unsafe {
            if L::WIDE && Q == 8 {
                while c + 2 * LANES <= columns {
                    self.run::<L, FRESH, ASK, Q, 2>(i, c, out, out_query);
                    c += 2 * LANES;
                }
            } else if L::WIDE {
                while c + 4 * LANES <= columns {
                    self.run::<L, FRESH, ASK, Q, 4>(i, c, out, out_query);
                    c += 4 * LANES;
                }
            }
            while c < columns {
                self.run::<L, FRESH, ASK, Q, 1>(i, c, out, out_query);
                c += LANES;
            }
        }
    }

    /// Of `n` positions.
    ///
    /// # Safety
    /// The CPU has the instruction set; `out` has `queries` rows of a tile, of which `n` is no more.
    #[inline(always)]
    unsafe fn scores<L: Lanes>(&self, queries: usize, n: usize, out: &mut [f32]) {
        // SAFETY: the caller's promise; a tile is a multiple of LANES.
        unsafe { self.all::<L, true>(queries, n.next_multiple_of(LANES), out.as_mut_ptr(), TILE) }
    }

    /// Added to rows of `dim`.
    ///
    /// # Safety
    /// The CPU has the instruction set; the lengths are right.
    #[inline(always)]
    unsafe fn accumulate<L: Lanes>(&self, dim: usize, out: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.all::<L, false>(out.len() / dim, dim, out.as_mut_ptr(), dim) }
    }

    /// All of `n` queries, four at a time: enough chains of additions to hide their latency. Vectors that have to be made are
    /// made for eight (attention of a token: 4 to 6 % faster). The first ones ask memory.
    ///
    /// # Safety
    /// As [`Block::queries`], for all `n`.
    #[inline(always)]
    unsafe fn all<L: Lanes, const FRESH: bool>(&self, n: usize, columns: usize, out: *mut f32, out_query: usize) {
        let mut i = 0;
        while i < n {
            let (left, first) = (n - i, i == 0);
            // SAFETY: the caller's promise.
            i += unsafe {
                match left {
                    8.. if L::WIDE && B::CACHED => self.some::<L, FRESH, 8>(i, first, columns, out, out_query),
                    4.. => self.some::<L, FRESH, 4>(i, first, columns, out, out_query),
                    2.. => self.some::<L, FRESH, 2>(i, first, columns, out, out_query),
                    _ => self.some::<L, FRESH, 1>(i, first, columns, out, out_query),
                }
            };
        }
    }

    /// As [`Block::queries`], and how many they were.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn some<L: Lanes, const FRESH: bool, const Q: usize>(
        &self,
        i: usize,
        ask: bool,
        columns: usize,
        out: *mut f32,
        out_query: usize,
    ) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            if ask && B::CACHED {
                self.queries::<L, FRESH, true, Q>(i, columns, out, out_query);
            } else {
                self.queries::<L, FRESH, false, Q>(i, columns, out, out_query);
            }
        }
        Q
    }
}

/// `out[i][p] = Σ q[i][d] * keys[d][p]` for the first `n` positions and those that fill up their lanes.
/// q: (queries, dim), keys: (dim, TILE), out: (queries, TILE)
// SAFETY: needs the features of `L`; lengths as [`super::Kernels`] has checked them.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes, T: Element>(q: &[f32], keys: &[T], n: usize, out: &mut [f32]) {
    let (dim, b) = (keys.len() / TILE, Plain { b: keys.as_ptr(), step: TILE });
    let block = Block { a: q, a_query: dim, b, steps: dim, ahead: size_of_val(keys) };
    // SAFETY: the caller's promise is the same.
    unsafe { block.scores::<L>(q.len() / dim, n, out) }
}

/// [`scores`] of a tile of Q8_0.
// SAFETY: needs the features of `L`; lengths as [`super::Kernels`] has checked them.
#[inline(always)]
pub(super) unsafe fn scores_q8_0<L: Lanes>(q: &[f32], keys: &[u8], n: usize, out: &mut [f32]) {
    let dim = keys.len() / (TILE * Q8_0.0) * Q8_0.1;
    let block = Block { a: q, a_query: dim, b: KeysQ8(keys.as_ptr()), steps: dim, ahead: keys.len() };
    // SAFETY: the caller's promise is the same.
    unsafe { block.scores::<L>(q.len() / dim, n, out) }
}

/// `out[i][d] += Σ p[i][s] * values[s][d]`. p: (queries, TILE), of which the last row may be cut; values: (n, dim);
/// out: (queries, dim); dim: a multiple of LANES
// SAFETY: needs the features of `L`; lengths as [`super::Kernels`] has checked them.
#[inline(always)]
pub(super) unsafe fn accumulate<L: Lanes, T: Element>(p: &[f32], values: &[T], dim: usize, out: &mut [f32]) {
    let (steps, b) = (values.len() / dim, Plain { b: values.as_ptr(), step: dim });
    let block = Block { a: p, a_query: TILE, b, steps, ahead: TILE * dim * size_of::<T>() };
    // SAFETY: the caller's promise is the same.
    unsafe { block.accumulate::<L>(dim, out) }
}

/// [`accumulate`] of rows of Q8_0.
// SAFETY: needs the features of `L`; lengths as [`super::Kernels`] has checked them.
#[inline(always)]
pub(super) unsafe fn accumulate_q8_0<L: Lanes>(p: &[f32], values: &[u8], dim: usize, out: &mut [f32]) {
    let row_bytes = dim / Q8_0.1 * Q8_0.0;
    let b = ValuesQ8 { b: values.as_ptr(), row_bytes };
    let block = Block { a: p, a_query: TILE, b, steps: values.len() / row_bytes, ahead: TILE * row_bytes };
    // SAFETY: the caller's promise is the same.
    unsafe { block.accumulate::<L>(dim, out) }
}

/// Turns the pairs (a[i], b[i]) by the angle with that cosine and sine.
// SAFETY: needs the features of `L`; lengths as [`super::Kernels`] has checked them.
#[inline(always)]
pub(super) unsafe fn rotate<L: Lanes>(cos: &[f32], sin: &[f32], a: &mut [f32], b: &mut [f32]) {
    let whole = a.len() / LANES * LANES;
    // SAFETY: the caller checked the CPU and that all have as many elements; all have lanes below `whole`.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            let (x, y) = (L::load(a.as_ptr().add(i)), L::load(b.as_ptr().add(i)));
            let (c, s) = (L::load(cos.as_ptr().add(i)), L::load(sin.as_ptr().add(i)));
            y.fnma(s, x.mul(c)).store(a.as_mut_ptr().add(i));
            y.fma(c, x.mul(s)).store(b.as_mut_ptr().add(i));
        }
    }
    for i in whole..a.len() {
        let (x, y) = (a[i], b[i]);
        a[i] = (-y).mul_add(sin[i], x * cos[i]);
        b[i] = y.mul_add(cos[i], x * sin[i]);
    }
}
