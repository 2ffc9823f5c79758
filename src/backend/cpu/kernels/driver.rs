//! The one loop of matrix multiplication, for every instruction set and weight type.
//!
//! A row is read in chunks of 256 weights. Each chunk is unpacked once for up to [`Simd::TOKENS`] tokens; a token's
//! sixteen lanes take chunk after chunk in order, whoever else is in the group, as [`crate::quant::dot`] states.
//!
//! Must not know: what bytes mean, registers.

use std::mem::MaybeUninit;

use super::ops::{Element, Lanes};
use crate::quant::act::{ActChunk, ActRow, LANES};
use crate::quant::block::CHUNK;
use crate::quant::{GgmlType, QMat};

/// How a type's integers become signed.
pub(super) enum Form {
    /// Unsigned; this is to be taken away.
    Offset(u8),
    /// Unsigned; each group has a minimum.
    Min,
    /// Signed bytes.
    Signed,
}

/// An instruction set.
///
/// # Safety
/// Every method: the CPU has the instruction set.
pub(super) trait Simd {
    /// Sixteen floats.
    type L: Lanes;
    /// 256 weights in the order of [`ActChunk`].
    type W: Copy;
    /// Tokens that share an unpacked chunk: as many as registers hold.
    const TOKENS: usize;
    /// What [`Simd::from_signed`] adds.
    const SIGNED_OFFSET: u8;
    /// Makes signed weights fit for [`Simd::dot`].
    unsafe fn from_signed(w: Self::W) -> Self::W;
    /// Each lane's sum of integer products.
    unsafe fn dot<B: Unpack<Self::W, Self::L>>(w: &Self::W, x: &ActChunk) -> Self::L;
    /// [`super::MatMul`] for many tokens; a set that multiplies matrices has its own.
    #[inline(always)]
    unsafe fn matmul_many<B: Unpack<Self::W, Self::L>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32])
    where
        Self: Sized,
    {
        // SAFETY: the caller's promise is the same.
        unsafe { matmul_ahead::<Self, B>(w, x, y) }
    }
}

/// A quantised type that an instruction set reads into `W`.
pub(super) trait Unpack<W, L> {
    /// ggml's type.
    const TYPE: GgmlType;
    /// How integers become signed.
    const FORM: Form;
    /// Bits that the largest unsigned integer has.
    const BITS: u32;
    /// Bytes of 256 weights.
    const BYTES: usize = CHUNK / Self::TYPE.block_len() * Self::TYPE.block_bytes();
    /// Reads [`Unpack::BYTES`] bytes: integers, scale and minimum (of no meaning unless the form is [`Form::Min`]).
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn unpack(bytes: &[u8]) -> (W, L, L);
}

/// Rows that one group of tokens visits before the next group does: with 2048 columns, these tokens' 24 KiB stay in
/// the L1 cache meanwhile, and the rows in L2.
pub(super) const ROWS: usize = 32;

/// From this many tokens on, unpacking rows ahead to memory pays: 10 to 25 % at 64 tokens of 2048, nothing at 16.
pub(super) const MANY_TOKENS: usize = 32;

/// Chunks that are unpacked ahead: 96 KiB.
pub(super) const AHEAD: usize = 256;

/// Runs `$tile::<S, B, n>(…)` for each row of `$rows` and each group of tokens; the last argument tells the first group.
macro_rules! for_token_groups {
    ($simd:ty, $tile:ident, $rows:expr, $first:expr, $x:expr, $y:expr) => {{
        let mut t = 0;
        while t < $x.len() {
            // Groups as equal as can be: one of a single token would wait for each addition.
            let left = $x.len() - t;
            let n = left.div_ceil(left.div_ceil(<$simd>::TOKENS));
            for (r, row) in $rows.enumerate() {
                let (x, y, r) = (&$x[t..t + n], &$y[t..t + n], $first + r);
                match n {
                    8 if <$simd>::TOKENS > 4 => $tile::<S, B, 8>(row, x, y, r, t == 0),
                    7 if <$simd>::TOKENS > 4 => $tile::<S, B, 7>(row, x, y, r, t == 0),
                    6 if <$simd>::TOKENS > 4 => $tile::<S, B, 6>(row, x, y, r, t == 0),
                    5 if <$simd>::TOKENS > 4 => $tile::<S, B, 5>(row, x, y, r, t == 0),
                    4 => $tile::<S, B, 4>(row, x, y, r, t == 0),
                    3 => $tile::<S, B, 3>(row, x, y, r, t == 0),
                    2 => $tile::<S, B, 2>(row, x, y, r, t == 0),
                    1 => $tile::<S, B, 1>(row, x, y, r, t == 0),
                    _ => unreachable!("TOKENS is 4 or 8"),
                }
            }
            t += n;
        }
    }};
}

/// [`super::MatMul`] for a quantised type: each group of tokens unpacks a row anew, in registers.
#[inline(always)]
pub(super) unsafe fn matmul<S: Simd, B: Unpack<S::W, S::L>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32]) {
    let row_bytes = w.row_bytes();
    for (i, rows) in w.data.chunks(ROWS * row_bytes).enumerate() {
        // SAFETY: the caller's promise is the same; the rows are of `w`.
        unsafe { for_token_groups!(S, tile, rows.chunks_exact(row_bytes), i * ROWS, x, y) }
    }
}

/// [`matmul`] for many tokens: rows are unpacked once, to memory.
#[inline(always)]
pub(super) unsafe fn matmul_ahead<S: Simd, B: Unpack<S::W, S::L>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32]) {
    let (row_bytes, n_chunk) = (w.row_bytes(), w.cols.div_ceil(CHUNK));
    if n_chunk > AHEAD || n_chunk == 0 {
        // SAFETY: the caller's promise is the same.
        return unsafe { matmul::<S, B>(w, x, y) };
    }
    let n_row = ROWS.min(AHEAD / n_chunk);
    let mut unpacked = [const { MaybeUninit::<Weights<S>>::uninit() }; AHEAD];
    for (i, rows) in w.data.chunks(n_row * row_bytes).enumerate() {
        // SAFETY: the caller's promise is the same; `unpack_row` writes every chunk of the rows that are then read.
        unsafe {
            for (row, out) in rows.chunks_exact(row_bytes).zip(unpacked.chunks_exact_mut(n_chunk)) {
                unpack_row::<S, B>(row, out);
            }
            let unpacked = unpacked[..rows.len() / row_bytes * n_chunk].assume_init_ref();
            for_token_groups!(S, tile_unpacked, unpacked.chunks_exact(n_chunk), i * n_row, x, y);
        }
    }
}

/// A chunk of weights, ready to be multiplied.
pub(super) struct Weights<S: Simd> {
    pub w: S::W,
    pub scale: S::L,
    pub min: S::L,
}

#[inline(always)]
unsafe fn unpack<S: Simd, B: Unpack<S::W, S::L>>(bytes: &[u8]) -> Weights<S> {
    // SAFETY: the caller checked the CPU.
    unsafe {
        let (w, scale, min) = B::unpack(bytes);
        let w = if matches!(B::FORM, Form::Signed) { S::from_signed(w) } else { w };
        Weights { w, scale, min }
    }
}

/// The last, incomplete chunk of a row. Zero bytes are zero weights with zero scales in every type of 32-element
/// blocks.
#[inline(always)]
unsafe fn unpack_rest<S: Simd, B: Unpack<S::W, S::L>>(rest: &[u8]) -> Weights<S> {
    let mut padded = [0; 2 * CHUNK];
    padded[..rest.len()].copy_from_slice(rest);
    // SAFETY: the caller checked the CPU.
    unsafe { unpack::<S, B>(&padded[..B::BYTES]) }
}

/// Writes every chunk of a row to `out`, which has room for just these.
#[inline(always)]
pub(super) unsafe fn unpack_row<S: Simd, B: Unpack<S::W, S::L>>(row: &[u8], out: &mut [MaybeUninit<Weights<S>>]) {
    let whole = row.chunks_exact(B::BYTES);
    assert_eq!(out.len(), row.len().div_ceil(B::BYTES), "room for a row");
    // SAFETY: the caller checked the CPU.
    unsafe {
        if let (rest @ [_, ..], Some(out)) = (whole.remainder(), out.last_mut()) {
            out.write(unpack_rest::<S, B>(rest));
        }
        for (bytes, out) in whole.zip(out) {
            prefetch(bytes.as_ptr(), B::BYTES);
            out.write(unpack::<S, B>(bytes));
        }
    }
}

/// One row times `T` tokens.
#[inline(always)]
unsafe fn tile<S: Simd, B: Unpack<S::W, S::L>, const T: usize>(
    row: &[u8],
    x: &[ActRow<'_>],
    y: &[*mut f32],
    r: usize,
    first: bool,
) {
    let whole = row.chunks_exact(B::BYTES);
    let rest = whole.remainder();
    let n = row.len().div_ceil(B::BYTES);
    let x = chunks_of::<T>(x, n);
    // SAFETY: the caller checked the CPU; each token has `n` chunks, and `y` has room for row `r`.
    unsafe {
        let mut acc = [S::L::splat(0.0); T];
        for (c, bytes) in whole.enumerate() {
            if first {
                prefetch(bytes.as_ptr(), B::BYTES);
            }
            step::<S, B, T>(&unpack::<S, B>(bytes), x.map(|x| x.get_unchecked(c)), &mut acc);
        }
        if !rest.is_empty() {
            step::<S, B, T>(&unpack_rest::<S, B>(rest), x.map(|x| x.get_unchecked(n - 1)), &mut acc);
        }
        for t in 0..T {
            *y[t].add(r) = acc[t].sum();
        }
    }
}

/// How far ahead of the weights in use memory is asked for, in bytes: some rows, across the pages at which the hardware's
/// own prefetcher stops. The first group of tokens to visit a row asks; nothing else hides DRAM's latency from it.
#[cfg(target_arch = "x86_64")]
const PREFETCH_BYTES: usize = 4096;

/// Asks for the `n` bytes that lie [`PREFETCH_BYTES`] of `at`. A hint: any address will do.
#[inline(always)]
fn prefetch(at: *const u8, n: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..n).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults, and every x86-64 CPU has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES + line).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, n);
}

/// [`tile`] of an unpacked row.
#[inline(always)]
unsafe fn tile_unpacked<S: Simd, B: Unpack<S::W, S::L>, const T: usize>(
    row: &[Weights<S>],
    x: &[ActRow<'_>],
    y: &[*mut f32],
    r: usize,
    _first: bool,
) {
    let x = chunks_of::<T>(x, row.len());
    // SAFETY: as in `tile`.
    unsafe {
        let mut acc = [S::L::splat(0.0); T];
        for (c, w) in row.iter().enumerate() {
            step::<S, B, T>(w, x.map(|x| x.get_unchecked(c)), &mut acc);
        }
        for t in 0..T {
            *y[t].add(r) = acc[t].sum();
        }
    }
}

/// The tokens' activations, each `n` chunks.
#[inline(always)]
fn chunks_of<'a, const T: usize>(x: &[ActRow<'a>], n: usize) -> [&'a [ActChunk]; T] {
    let x: [&[ActChunk]; T] = std::array::from_fn(|t| x[t].chunks);
    assert!(x.iter().all(|x| x.len() == n), "the table's door checked the lengths");
    x
}

/// One chunk of a row times that of `T` tokens, onto their lanes.
#[inline(always)]
unsafe fn step<S: Simd, B: Unpack<S::W, S::L>, const T: usize>(w: &Weights<S>, x: [&ActChunk; T], acc: &mut [S::L; T]) {
    let offset = match B::FORM {
        Form::Offset(offset) => offset,
        Form::Min => 0,
        Form::Signed => S::SIGNED_OFFSET,
    };
    for t in 0..T {
        // SAFETY: the caller checked the CPU.
        unsafe {
            let mut sum = S::dot::<B>(&w.w, x[t]);
            let s = S::L::load(x[t].s.as_ptr());
            if offset != 0 {
                sum = S::L::splat(f32::from(offset)).fnma(s, sum); // whole numbers below 2^24: exact
            }
            sum = w.scale.mul(sum);
            if matches!(B::FORM, Form::Min) {
                sum = w.min.fnma(s, sum);
            }
            acc[t] = sum.fma(S::L::load(x[t].d.as_ptr()), acc[t]);
        }
    }
}

/// [`super::MatMul`] for plain floats.
#[inline(always)]
pub(super) unsafe fn matmul_float<L: Lanes, E: Element>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32]) {
    let row_bytes = w.row_bytes();
    for (i, rows) in w.data.chunks(ROWS * row_bytes).enumerate() {
        let mut t = 0;
        while t < x.len() {
            let n = if x.len() - t >= 4 { 4 } else { 1 };
            for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
                let (x, y, r) = (&x[t..t + n], &y[t..t + n], i * ROWS + r);
                // SAFETY: the caller's promise is the same; `r` is a row of `w`.
                unsafe {
                    match n {
                        4 => tile_float::<L, E, 4>(row, x, y, r),
                        _ => tile_float::<L, E, 1>(row, x, y, r),
                    }
                }
            }
            t += n;
        }
    }
}

/// One row times `T` tokens.
#[inline(always)]
unsafe fn tile_float<L: Lanes, E: Element, const T: usize>(row: &[u8], x: &[ActRow<'_>], y: &[*mut f32], r: usize) {
    let n = row.len() / size_of::<E>();
    assert!(x.iter().all(|x| x.x.len() == n), "the table's door checked the lengths");
    let whole = n / (2 * LANES) * (2 * LANES);
    // SAFETY: the caller checked the CPU; `row` and each `x` have `n` elements, lanes load at any alignment, and
    // `y` has room for row `r`.
    unsafe {
        let mut acc = [[L::splat(0.0); 2]; T];
        let w = row.as_ptr().cast::<E>();
        for i in (0..whole).step_by(2 * LANES) {
            add_run(w.add(i), std::array::from_fn(|t| x[t].x.as_ptr().add(i)), &mut acc);
        }
        if whole < n {
            // Zero times minus zero is minus zero, which adds to nothing.
            let (mut last_w, mut last_x) = ([E::ZERO; 2 * LANES], [[-0.0; 2 * LANES]; T]);
            // By bytes: a row may lie at any address.
            let rest = &row[whole * size_of::<E>()..];
            last_w.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(rest.as_ptr(), rest.len());
            for t in 0..T {
                last_x[t][..n - whole].copy_from_slice(&x[t].x[whole..]);
            }
            add_run(last_w.as_ptr(), std::array::from_fn(|t| last_x[t].as_ptr()), &mut acc);
        }
        for t in 0..T {
            *y[t].add(r) = acc[t][0].add(acc[t][1]).sum();
        }
    }
}

/// 32 elements of a row times those of `T` tokens, onto their two sets of lanes.
///
/// # Safety
/// The CPU has the instruction set; all pointers are valid for 32 elements.
#[inline(always)]
unsafe fn add_run<L: Lanes, E: Element, const T: usize>(w: *const E, x: [*const f32; T], acc: &mut [[L; 2]; T]) {
    // SAFETY: the caller's promise is the same.
    unsafe {
        let w: [L; 2] = [E::load(w), E::load(w.add(LANES))];
        for t in 0..T {
            acc[t][0] = w[0].fma(L::load(x[t]), acc[t][0]);
            acc[t][1] = w[1].fma(L::load(x[t].add(LANES)), acc[t][1]);
        }
    }
}

/// Fills an instruction set's table: `matmul` with the set's features enabled for each type.
macro_rules! matmul_table {
    ($simd:ty, #[$feature:meta]) => {{
        use $crate::backend::cpu::kernels::{MatMul, N_TYPE, driver, scalar};
        use $crate::quant::{ActRow, GgmlType, QMat};
        #[$feature]
        unsafe fn quantized<B>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32])
        where
            B: driver::Unpack<<$simd as driver::Simd>::W, <$simd as driver::Simd>::L>,
        {
            // SAFETY: the features are enabled here, which the caller checked; the rest is the caller's promise.
            unsafe {
                if x.len() < driver::MANY_TOKENS {
                    driver::matmul::<$simd, B>(w, x, y)
                } else {
                    quantized_ahead::<B>(w, x, y)
                }
            }
        }
        // Apart, so that only it has the large stack frame.
        #[$feature]
        #[inline(never)]
        unsafe fn quantized_ahead<B>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32])
        where
            B: driver::Unpack<<$simd as driver::Simd>::W, <$simd as driver::Simd>::L>,
        {
            // SAFETY: as above.
            unsafe { <$simd as driver::Simd>::matmul_many::<B>(w, x, y) }
        }
        #[$feature]
        unsafe fn float<E: $crate::backend::cpu::kernels::ops::Element>(
            w: QMat<'_>,
            x: &[ActRow<'_>],
            y: &[*mut f32],
        ) {
            // SAFETY: as above.
            unsafe { driver::matmul_float::<<$simd as driver::Simd>::L, E>(w, x, y) }
        }
        let mut table: [MatMul; N_TYPE] = [scalar::matmul; N_TYPE];
        driver::matmul_table!(@fill table quantized
            Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4);
        table[GgmlType::F32 as usize] = float::<f32>;
        table[GgmlType::F16 as usize] = float::<half::f16>;
        table[GgmlType::BF16 as usize] = float::<half::bf16>;
        table
    }};
    (@fill $table:ident $quantized:ident $($ty:ident)*) => {
        $($table[GgmlType::$ty as usize] = $quantized::<$crate::quant::block::$ty>;)*
    };
}
pub(super) use matmul_table;
