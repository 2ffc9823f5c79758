//! Operations on vectors of floats, written once for all instruction sets over sixteen lanes.
//!
//! Sums run in 32 lanes (two registers' worth, so that additions overlap) and end as [`sum_lanes`] adds them.
//!
//! Must not know: weights, tokens.
//!
//! [`sum_lanes`]: crate::quant::dot::sum_lanes

use half::{bf16, f16};

use super::ahead::ask_for;
pub(super) use super::tile::{accumulate, accumulate_q8_0, rotate, scores, scores_q8_0, turn, widen, widen_keys_q8_0};
use crate::quant::act::{self, ActChunk, LANE_GROUP, LANES, STEPS, TINY, span_of};
use crate::quant::block::{CHUNK, GROUP};

/// Sixteen floats of one instruction set.
///
/// # Safety
/// Every method: the CPU has the instruction set; a pointer is valid for sixteen elements, at any alignment.
pub(super) trait Lanes: Copy {
    /// Whether there are 32 registers of sixteen floats; otherwise as many of eight, or sixteen.
    const WIDE: bool = false;
    // SAFETY: as the trait says.
    unsafe fn splat(x: f32) -> Self;
    /// The half at `p`, for which alone `p` need be valid.
    // SAFETY: as the trait says.
    unsafe fn splat_f16(p: *const f16) -> Self;
    // SAFETY: as the trait says.
    unsafe fn load(p: *const f32) -> Self;
    // SAFETY: as the trait says.
    unsafe fn load_f16(p: *const f16) -> Self;
    // SAFETY: as the trait says.
    unsafe fn load_bf16(p: *const bf16) -> Self;
    // SAFETY: as the trait says.
    unsafe fn load_i8(p: *const i8) -> Self;
    // SAFETY: as the trait says.
    unsafe fn store(self, p: *mut f32);
    // SAFETY: as the trait says.
    unsafe fn store_f16(self, p: *mut f16);
    // SAFETY: as the trait says.
    unsafe fn add(self, b: Self) -> Self;
    // SAFETY: as the trait says.
    unsafe fn mul(self, b: Self) -> Self;
    // SAFETY: as the trait says.
    unsafe fn div(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    // SAFETY: as the trait says.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// `c - self * b`, rounded once.
    // SAFETY: as the trait says.
    unsafe fn fnma(self, b: Self, c: Self) -> Self;
    /// `self > b ? self : b`.
    // SAFETY: as the trait says.
    unsafe fn max(self, b: Self) -> Self;
    /// `self < b ? self : b`.
    // SAFETY: as the trait says.
    unsafe fn min(self, b: Self) -> Self;
    /// To the nearest whole number, ties to even.
    // SAFETY: as the trait says.
    unsafe fn round(self) -> Self;
    /// `2^self` for whole numbers in -126..=127.
    // SAFETY: as the trait says.
    unsafe fn pow2(self) -> Self;
    /// Zero in the lanes where `x < limit`.
    // SAFETY: as the trait says.
    unsafe fn zero_below(self, x: Self, limit: f32) -> Self;
    /// Lane `p` of row `i` becomes lane `i` of row `p`.
    // SAFETY: as the trait says.
    #[inline(always)]
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        let (mut from, mut to) = ([[0.0f32; LANES]; LANES], [[0.0f32; LANES]; LANES]);
        // SAFETY: the caller checked the CPU; the arrays have sixteen elements.
        unsafe {
            for (row, from) in rows.into_iter().zip(&mut from) {
                row.store(from.as_mut_ptr());
            }
            for i in 0..LANES {
                for p in 0..LANES {
                    to[p][i] = from[i][p];
                }
            }
            let mut out = rows;
            for (row, to) in out.iter_mut().zip(&to) {
                *row = Self::load(to.as_ptr());
            }
            out
        }
    }
    /// Lane `p ^ 4` in lane `p`: the other half of its span.
    // SAFETY: as the trait says.
    unsafe fn partner(self) -> Self;
    /// `self > b ? new : old`.
    // SAFETY: as the trait says.
    unsafe fn where_greater(self, b: Self, new: Self, old: Self) -> Self;
    /// The sum, as [`crate::quant::dot::sum_lanes`].
    // SAFETY: as the trait says.
    unsafe fn sum(self) -> f32;
}

/// (cosines, sines, first elements of pairs, second ones)
// SAFETY: to call it, as [`Ops`] says.
type Rotate = unsafe fn(&[f32], &[f32], &mut [f32], &mut [f32]);

/// The operations of an instruction set; see [`super::Kernels`] for what each does and for the lengths that it checks.
///
/// # Safety
/// To call any of them: the CPU has the instruction set, and lengths are as below.
#[derive(Clone, Copy)]
pub(super) struct Ops {
    // SAFETY: to call it, a chunk for each 256 floats or part of them.
    pub quantize_row: unsafe fn(&[f32], &mut [ActChunk]),
    // SAFETY: to call it, slices of one length.
    pub dot: unsafe fn(&[f32], &[f32]) -> f32,
    // SAFETY: to call it, slices of one length.
    pub axpy: unsafe fn(f32, &[f32], &mut [f32]),
    // SAFETY: to call it, slices of one length.
    pub to_f16: unsafe fn(&[f32], &mut [f16]),
    // SAFETY: to call it, slices of one length.
    pub scaled: unsafe fn(f32, &[f32], &mut [f32]),
    // SAFETY: to call it, slices of one length.
    pub scale_mul: unsafe fn(f32, &[f32], &[f32], &mut [f32]),
    // SAFETY: to call it, slices of one length.
    pub silu_mul: unsafe fn(&mut [f32], &[f32]),
    // SAFETY: to call it, slices of one length.
    pub rotate: Rotate,
    // SAFETY: to call it, any length.
    pub scale: unsafe fn(f32, &mut [f32]),
    // SAFETY: to call it, any length.
    pub max: unsafe fn(&[f32]) -> f32,
    // SAFETY: to call it, any length.
    pub exp_sum: unsafe fn(&mut [f32], f32) -> f32,
    // SAFETY: to call it, whole blocks, and room for their elements.
    pub from_q8_0: unsafe fn(&[u8], &mut [f32]),
    // SAFETY: to call it, whole blocks, and room for their elements.
    pub widen_keys_q8_0: unsafe fn(&[u8], usize, &mut [f32]),
    // SAFETY: to call it, at most a tile of keys, and room for a whole one.
    pub turn: unsafe fn(&[f32], usize, &mut [f32]),
    // SAFETY: to call it, whole rows, and room for as many padded ones.
    pub widen: unsafe fn(&[f32], usize, &mut [f32]),
    // SAFETY: to call it, whole rows, and room for as many padded ones.
    pub widen_f16: unsafe fn(&[f16], usize, &mut [f32]),
    // SAFETY: to call it, whole queries, a tile of keys, and a tile of scores for each query.
    pub scores: unsafe fn(&[f32], &[f32], usize, &mut [f32]),
    // SAFETY: to call it, whole queries, a tile of keys, and a tile of scores for each query.
    pub scores_f16: unsafe fn(&[f32], &[f16], usize, &mut [f32]),
    // SAFETY: to call it, whole queries, a tile of keys, and a tile of scores for each query.
    pub scores_q8_0: unsafe fn(&[f32], &[u8], usize, &mut [f32]),
    // SAFETY: to call it, values and room in rows of whole lanes, and for each row of room weights, a tile apart.
    pub accumulate: unsafe fn(&[f32], &[f32], usize, &mut [f32]),
    // SAFETY: to call it, values and room in rows of whole lanes, and for each row of room weights, a tile apart.
    pub accumulate_f16: unsafe fn(&[f32], &[f16], usize, &mut [f32]),
    // SAFETY: to call it, values and room in rows of whole lanes, and for each row of room weights, a tile apart.
    pub accumulate_q8_0: unsafe fn(&[f32], &[u8], usize, &mut [f32]),
}

/// Defines `OPS`, the table of an instruction set: each operation with the set's features enabled around it.
macro_rules! ops_table {
    ($lanes:ty $(, #[$feature:meta])?) => {
        const OPS: $crate::backend::cpu::kernels::ops::Ops = {
            use $crate::backend::cpu::kernels::ops;
            $crate::backend::cpu::kernels::ops::ops_table! { @each (ops) ($lanes) ($(#[$feature])?)
                quantize_row(x: &[f32], out: &mut [$crate::quant::act::ActChunk]) -> () = quantize_row::<$lanes>;
                dot(a: &[f32], b: &[f32]) -> f32 = dot::<$lanes, f32>;
                axpy(a: f32, x: &[f32], y: &mut [f32]) -> () = axpy::<$lanes>;
                to_f16(x: &[f32], y: &mut [half::f16]) -> () = to_f16::<$lanes>;
                from_q8_0(x: &[u8], y: &mut [f32]) -> () = from_q8_0::<$lanes>;
                scale(a: f32, x: &mut [f32]) -> () = scale::<$lanes>;
                scaled(a: f32, x: &[f32], y: &mut [f32]) -> () = scaled::<$lanes>;
                scale_mul(a: f32, x: &[f32], w: &[f32], y: &mut [f32]) -> () = scale_mul::<$lanes>;
                max(x: &[f32]) -> f32 = max::<$lanes>;
                exp_sum(x: &mut [f32], max: f32) -> f32 = exp_sum::<$lanes>;
                silu_mul(gate: &mut [f32], up: &[f32]) -> () = silu_mul::<$lanes>;
                turn(x: &[f32], dim: usize, out: &mut [f32]) -> () = turn::<$lanes>;
                widen(x: &[f32], dim: usize, y: &mut [f32]) -> () = widen::<$lanes, f32>;
                widen_f16(x: &[half::f16], dim: usize, y: &mut [f32]) -> () = widen::<$lanes, half::f16>;
                widen_keys_q8_0(x: &[u8], width: usize, y: &mut [f32]) -> () = widen_keys_q8_0::<$lanes>;
                scores(q: &[f32], keys: &[f32], n: usize, out: &mut [f32]) -> () = scores::<$lanes, f32>;
                scores_f16(q: &[f32], keys: &[half::f16], n: usize, out: &mut [f32]) -> () = scores::<$lanes, half::f16>;
                scores_q8_0(q: &[f32], keys: &[u8], n: usize, out: &mut [f32]) -> () = scores_q8_0::<$lanes>;
                accumulate(p: &[f32], v: &[f32], dim: usize, out: &mut [f32]) -> () = accumulate::<$lanes, f32>;
                accumulate_f16(p: &[f32], v: &[half::f16], dim: usize, out: &mut [f32]) -> () = accumulate::<$lanes, half::f16>;
                accumulate_q8_0(p: &[f32], v: &[u8], dim: usize, out: &mut [f32]) -> () = accumulate_q8_0::<$lanes>;
                rotate(cos: &[f32], sin: &[f32], a: &mut [f32], b: &mut [f32]) -> () = rotate::<$lanes>;
            }
            ops::Ops {
                quantize_row, dot, axpy, to_f16, from_q8_0, scale, scaled, scale_mul, max, exp_sum, silu_mul,
                turn, widen, widen_f16, widen_keys_q8_0, scores, scores_f16, scores_q8_0, accumulate, accumulate_f16,
                accumulate_q8_0, rotate,
            }
        };
    };
    (@each ($ops:ident) ($lanes:ty) $feature:tt) => {};
    (@each ($ops:ident) ($lanes:ty) ($($feature:tt)*)
     $name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $f:ident::<$($g:ty),*>; $($rest:tt)*) => {
        $($feature)*
        // SAFETY: needs the features; lengths as [`Ops`] says.
        unsafe fn $name($($arg: $ty),*) -> $out {
            // SAFETY: the features that the lanes need are enabled here, which the caller checked.
            unsafe { $ops::$f::<$($g),*>($($arg),*) }
        }
        $crate::backend::cpu::kernels::ops::ops_table! { @each ($ops) ($lanes) ($($feature)*) $($rest)* }
    };
}
pub(super) use ops_table;

/// An element type that lanes can be loaded from.
pub(super) trait Element: Copy {
    const ZERO: Self;
    /// Whether tiles of these come from the KV cache, not from a copy.
    const CACHED: bool = false;
    /// # Safety
    /// As [`Lanes::load`].
    unsafe fn load<L: Lanes>(p: *const Self) -> L;
}

impl Element for f32 {
    const ZERO: f32 = 0.0;
    // SAFETY: as the trait says.
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const f32) -> L {
        // SAFETY: the caller's promise is the same.
        unsafe { L::load(p) }
    }
}

impl Element for f16 {
    const ZERO: f16 = f16::ZERO;
    const CACHED: bool = true;
    // SAFETY: as the trait says.
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const f16) -> L {
        // SAFETY: the caller's promise is the same.
        unsafe { L::load_f16(p) }
    }
}

/// A half's bytes.
impl Element for [u8; 2] {
    const ZERO: [u8; 2] = [0; 2];
    // SAFETY: as the trait says.
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const [u8; 2]) -> L {
        // SAFETY: the caller's promise is the same.
        unsafe { L::load_f16(p.cast()) }
    }
}

/// A signed byte's bits.
impl Element for u8 {
    const ZERO: u8 = 0;
    // SAFETY: as the trait says.
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L {
        // SAFETY: the caller's promise is the same.
        unsafe { L::load_i8(p.cast()) }
    }
}

impl Element for bf16 {
    const ZERO: bf16 = bf16::ZERO;
    // SAFETY: as the trait says.
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const bf16) -> L {
        // SAFETY: the caller's promise is the same.
        unsafe { L::load_bf16(p) }
    }
}

/// Runs `$body` for each sixteen of `$n` elements: with `WHOLE` true while there are sixteen left, then once more with
/// it false for the rest.
macro_rules! by_lanes {
    ($n:expr, |$i:ident| $body:expr) => {{
        let n = $n;
        let whole = n / LANES * LANES;
        for $i in (0..whole).step_by(LANES) {
            const WHOLE: bool = true;
            $body
        }
        if whole < n {
            const WHOLE: bool = false;
            let $i = whole;
            $body
        }
    }};
}
pub(super) use by_lanes;

/// Sixteen elements from `i` on, the missing ones being `pad`.
///
/// # Safety
/// The CPU has the instruction set; where `WHOLE`, `x` has the sixteen elements.
#[inline(always)]
pub(super) unsafe fn load<const WHOLE: bool, L: Lanes, T: Element>(x: &[T], i: usize, pad: T) -> L {
    debug_assert!(!WHOLE || i + LANES <= x.len());
    if WHOLE {
        // SAFETY: the caller's promise is the same.
        unsafe { T::load(x.as_ptr().add(i)) }
    } else {
        let mut padded = [pad; LANES];
        padded[..x.len() - i].copy_from_slice(&x[i..]);
        // SAFETY: the array has sixteen elements.
        unsafe { T::load(padded.as_ptr()) }
    }
}

/// Writes lanes to the elements from `i` on, as many as there are.
///
/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn store<const WHOLE: bool, L: Lanes>(v: L, x: &mut [f32], i: usize) {
    debug_assert!(!WHOLE || i + LANES <= x.len());
    if WHOLE {
        // SAFETY: the caller's promise is the same.
        unsafe { v.store(x.as_mut_ptr().add(i)) }
    } else {
        let mut padded = [0.0; LANES];
        // SAFETY: the array has sixteen elements.
        unsafe { v.store(padded.as_mut_ptr()) }
        let rest = &mut x[i..];
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// [`quantize_row`](crate::quant::act::quantize_row) with its bits.
// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
pub(super) unsafe fn quantize_row<L: Lanes>(x: &[f32], out: &mut [ActChunk]) {
    let (whole, rest) = x.as_chunks::<CHUNK>();
    for (x, out) in whole.iter().zip(&mut *out) {
        // Loads come in the order of lanes, which the hardware does not follow: a third of the time was waiting for them.
        ask_for(x.as_ptr().wrapping_add(2 * CHUNK).cast(), size_of_val(x));
        // SAFETY: the caller checked the CPU.
        unsafe { quantize_chunk::<L>(x, out) }
    }
    if let (false, Some(out)) = (rest.is_empty(), out.last_mut()) {
        let mut padded = [0.0; CHUNK];
        padded[..rest.len()].copy_from_slice(rest);
        // SAFETY: the caller checked the CPU.
        unsafe { quantize_chunk::<L>(&padded, out) }
    }
}

/// Added to a float below 2^22, leaves it rounded (ties to even) in the low bits.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// One chunk, each step as in the scalar truth, all lanes at once.
// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
unsafe fn quantize_chunk<L: Lanes>(x: &[f32; CHUNK], out: &mut ActChunk) {
    // SAFETY: the caller checked the CPU; groups and arrays of lanes have sixteen elements.
    unsafe {
        let zero = L::splat(0.0);
        let mut rows = [zero; GROUP];
        for (row, group) in rows.iter_mut().zip(LANE_GROUP) {
            *row = L::load(x.as_ptr().add(group * GROUP));
        }
        let mut rows = L::transpose(rows);
        let (mut largest, mut odd) = (zero, zero);
        for row in rows {
            largest = row.max(row.mul(L::splat(-1.0))).max(largest);
            odd = row.fma(zero, odd);
        }
        if odd.sum() != 0.0 {
            // An infinity or NaN somewhere.
            return act::quantize_row(x, std::slice::from_mut(out));
        }
        // Both lanes of a span from here on have its values.
        largest = largest.max(largest.partner());
        let inverse = L::splat(1.0).div(largest).zero_below(largest, TINY);
        for row in &mut rows {
            *row = row.mul(inverse);
        }
        let (mut best, mut step) = ((zero, L::splat(1.0)), zero);
        for candidate in STEPS {
            let candidate = L::splat(candidate);
            let (mut xq, mut qq) = (zero, zero);
            for row in rows {
                let q = row.mul(candidate).round();
                xq = row.fma(q, xq);
                qq = q.fma(q, qq);
            }
            let (xq, qq) = (xq.add(xq.partner()), qq.add(qq.partner()));
            let (gain, least) = (xq.mul(xq).mul(best.1), best.0.mul(best.0).mul(qq));
            step = gain.where_greater(least, candidate, step);
            best = (gain.where_greater(least, xq, best.0), gain.where_greater(least, qq, best.1));
        }
        let scale = best.0.div(best.1);
        let mut sum = zero;
        for (rows, bytes) in rows.as_chunks::<4>().0.iter().zip(out.q.as_chunks_mut::<64>().0) {
            let mut words = [0u32; LANES];
            for (b, row) in rows.iter().enumerate() {
                let q = row.mul(step).add(L::splat(ROUND));
                sum = sum.add(q.add(L::splat(-ROUND)));
                let mut bits = [0.0f32; LANES];
                q.store(bits.as_mut_ptr());
                for p in 0..LANES {
                    words[p] |= (bits[p].to_bits() & 0xff) << (8 * b);
                }
            }
            for (bytes, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                *bytes = word.to_le_bytes().map(|b| b as i8);
            }
        }
        let (mut s, mut d) = ([0.0; LANES], [0.0; LANES]);
        sum.store(s.as_mut_ptr());
        // SAFETY: at most sixteen times 127 in magnitude. Saturating casts would be done one by one.
        out.h = s.map(|sum: f32| sum.to_int_unchecked());
        sum.add(sum.partner()).store(s.as_mut_ptr());
        largest.mul(scale).zero_below(largest, TINY).store(d.as_mut_ptr());
        for p in 0..LANES {
            (out.s[span_of(p)], out.d[span_of(p)]) = (s[p], d[p]);
        }
    }
}

/// The sum of products, over two sets of lanes.
// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes, T: Element>(a: &[f32], b: &[T]) -> f32 {
    // SAFETY: the caller checked the CPU and that both have as many elements.
    unsafe {
        let mut acc = [L::splat(0.0); 2];
        let pairs = a.len() / (2 * LANES) * (2 * LANES);
        for i in (0..pairs).step_by(2 * LANES) {
            acc[0] = load::<true, L, T>(b, i, T::ZERO).fma(load::<true, L, _>(a, i, 0.0), acc[0]);
            let i = i + LANES;
            acc[1] = load::<true, L, T>(b, i, T::ZERO).fma(load::<true, L, _>(a, i, 0.0), acc[1]);
        }
        let (a, b) = (&a[pairs..], &b[pairs..]);
        by_lanes!(a.len(), |i| {
            let sum = &mut acc[i / LANES];
            *sum = load::<WHOLE, L, T>(b, i, T::ZERO).fma(load::<WHOLE, L, _>(a, i, 0.0), *sum);
        });
        acc[0].add(acc[1]).sum()
    }
}

// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
pub(super) unsafe fn axpy<L: Lanes>(a: f32, x: &[f32], y: &mut [f32]) {
    // SAFETY: the caller checked the CPU and that both have as many elements.
    unsafe {
        by_lanes!(y.len(), |i| {
            let x = load::<WHOLE, L, _>(x, i, 0.0);
            store::<WHOLE, L>(L::splat(a).fma(x, load::<WHOLE, L, _>(y, i, 0.0)), y, i);
        });
    }
}

// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
pub(super) unsafe fn to_f16<L: Lanes>(x: &[f32], y: &mut [f16]) {
    // SAFETY: the caller checked the CPU and that both have as many elements.
    unsafe {
        by_lanes!(y.len(), |i| {
            let x = load::<WHOLE, L, _>(x, i, 0.0);
            if WHOLE {
                x.store_f16(y.as_mut_ptr().add(i));
            } else {
                let mut padded = [f16::ZERO; LANES];
                x.store_f16(padded.as_mut_ptr());
                let rest = &mut y[i..];
                rest.copy_from_slice(&padded[..rest.len()]);
            }
        });
    }
}

/// Bytes and elements of a block of [`crate::quant::GgmlType::Q8_0`]: its scale, a half, and as many bytes as elements.
pub(super) const Q8_0: (usize, usize) = (2 + 2 * LANES, 2 * LANES);

// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
pub(super) unsafe fn from_q8_0<L: Lanes>(x: &[u8], y: &mut [f32]) {
    let (blocks, rows) = (x.as_chunks::<{ Q8_0.0 }>().0, y.as_chunks_mut::<{ Q8_0.1 }>().0);
    for (block, y) in blocks.iter().zip(rows) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for i in [0, LANES] {
            // SAFETY: the caller checked the CPU; the block and the row have sixteen elements from `i` on.
            unsafe { L::splat(d).mul(L::load_i8(block.as_ptr().add(2 + i).cast())).store(y.as_mut_ptr().add(i)) }
        }
    }
}

// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
pub(super) unsafe fn scale<L: Lanes>(a: f32, x: &mut [f32]) {
    // SAFETY: the caller checked the CPU.
    unsafe {
        by_lanes!(x.len(), |i| store::<WHOLE, L>(L::splat(a).mul(load::<WHOLE, L, _>(x, i, 0.0)), x, i));
    }
}

// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
pub(super) unsafe fn scaled<L: Lanes>(a: f32, x: &[f32], y: &mut [f32]) {
    // SAFETY: the caller checked the CPU and that both have as many elements.
    unsafe {
        by_lanes!(y.len(), |i| store::<WHOLE, L>(L::splat(a).mul(load::<WHOLE, L, _>(x, i, 0.0)), y, i));
    }
}

// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
pub(super) unsafe fn scale_mul<L: Lanes>(a: f32, x: &[f32], w: &[f32], y: &mut [f32]) {
    // SAFETY: the caller checked the CPU and that all have as many elements.
    unsafe {
        by_lanes!(y.len(), |i| {
            let scaled = L::splat(a).mul(load::<WHOLE, L, _>(x, i, 0.0));
            store::<WHOLE, L>(scaled.mul(load::<WHOLE, L, _>(w, i, 0.0)), y, i);
        });
    }
}

// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
pub(super) unsafe fn max<L: Lanes>(x: &[f32]) -> f32 {
    // SAFETY: the caller checked the CPU; `lane` has sixteen elements.
    unsafe {
        let mut largest = L::splat(f32::NEG_INFINITY);
        by_lanes!(x.len(), |i| largest = largest.max(load::<WHOLE, L, _>(x, i, f32::NEG_INFINITY)));
        let mut lane = [0.0; LANES];
        largest.store(lane.as_mut_ptr());
        lane.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
}

// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
pub(super) unsafe fn exp_sum<L: Lanes>(x: &mut [f32], max: f32) -> f32 {
    // SAFETY: the caller checked the CPU.
    unsafe {
        let mut sum = L::splat(0.0);
        by_lanes!(x.len(), |i| {
            // The padding becomes zeros: exp(-inf).
            let e = exp(load::<WHOLE, L, _>(x, i, f32::NEG_INFINITY).add(L::splat(-max)));
            store::<WHOLE, L>(e, x, i);
            sum = sum.add(e);
        });
        sum.sum()
    }
}

// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
pub(super) unsafe fn silu_mul<L: Lanes>(gate: &mut [f32], up: &[f32]) {
    // SAFETY: the caller checked the CPU and that both have as many elements.
    unsafe {
        by_lanes!(gate.len(), |i| {
            let x = load::<WHOLE, L, _>(gate, i, 0.0);
            let below = exp(x.mul(L::splat(-1.0))).add(L::splat(1.0));
            store::<WHOLE, L>(x.div(below).mul(load::<WHOLE, L, _>(up, i, 0.0)), gate, i);
        });
    }
}

/// `e^x`: 2^n times a polynomial of degree 6 on ±ln(2)/2 (Cephes' `expf`), off by at most 2 units in the last place.
/// Clamped to 88.37 above, zero below -87.33: the ends of what `2^n` can be made of bits for.
// SAFETY: needs the features of `L`; lengths as [`Ops`] says.
#[inline(always)]
unsafe fn exp<L: Lanes>(x: L) -> L {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.376_26;
    // SAFETY: the caller checked the CPU.
    unsafe {
        let clamped = L::splat(LOWEST).max(L::splat(HIGHEST).min(x));
        let n = clamped.mul(L::splat(std::f32::consts::LOG2_E)).round();
        // ln(2) in two parts, the first with so few bits that n times it is exact.
        let r = n.fnma(L::splat(0.693_359_4), clamped);
        let r = n.fnma(L::splat(-2.121_944_4e-4), r);
        let mut p = L::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p.fma(r, L::splat(c));
        }
        let p = p.fma(r.mul(r), r).add(L::splat(1.0));
        p.mul(n.pow2()).zero_below(x, LOWEST)
    }
}
