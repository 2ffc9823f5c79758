//! AVX2 with FMA and F16C, and the same with AVX-VNNI's dot product.
//!
//! Must not know: loops over rows and tokens, but for those of [`panel`].

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::bytes::{self, LANE_BYTES, MXFP4_UNSIGNED, scales_k4, sized, u16_at, u32_at};
use super::driver::{Form, Registers, Row, Simd, Unpack};
use super::expanded::Expanded;
use super::ops::ops_table;
use super::table::matmul_table;
use super::{Isa, Kernels};
use crate::quant::act::{ActChunk, ActRow};
use crate::quant::block::{
    IQ4_NL, IQ4_VALUES, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0,
};
use crate::quant::{GgmlType, QMat};

/// The table of AVX2.
pub(super) const AVX2: Kernels =
    Kernels::new(Isa::Avx2, matmul_table!(Avx2, #[target_feature(enable = "avx2,fma,f16c")]), OPS);

/// The table of AVX2 with AVX-VNNI.
pub(super) const AVX_VNNI: Kernels =
    Kernels::new(Isa::AvxVnni, matmul_table!(AvxVnni, #[target_feature(enable = "avx2,fma,f16c,avxvnni")]), OPS);

ops_table!(L256, #[target_feature(enable = "avx2,fma,f16c")]);

/// Products by `vpmaddubsw`, whose 16-bit sums saturate: sums are widened as the type's bits demand.
struct Avx2;
/// Products by `vpdpbusd`.
struct AvxVnni;

/// Registers of 256 bits.
#[derive(Clone, Copy)]
pub(super) struct Narrow;

/// Sixteen floats in two registers.
#[derive(Clone, Copy)]
pub(super) struct L256(__m256, __m256);

/// 256 weights: runs of 32 as they are read, then, in order, the first four registers lanes 0..8, the last four lanes 8..16.
type W256 = [__m256i; 8];

/// Runs `$item` once for the attribute that nearly all functions of [`Narrow`] have.
macro_rules! avx2 {
    ($($item:item)*) => { $(
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline]
        $item
    )* };
}

mod lanes;
mod one;
mod panel;

impl Registers for Narrow {
    type W = W256;
    type I = [__m256i; 2];
    type H = __m256;
    type L = L256;
    avx2! {
        // SAFETY: needs the CPU's features and a valid pointer, as [`Registers`] says.
        unsafe fn load(p: *const i32) -> [__m256i; 2] {
            // SAFETY: the caller gives sixteen elements.
            unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(8).cast())] }
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn splat(x: i32) -> [__m256i; 2] {
            [_mm256_set1_epi32(x); 2]
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn mul(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            [_mm256_mullo_epi32(a[0], b[0]), _mm256_mullo_epi32(a[1], b[1])]
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn sub(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])]
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn ordered(runs: W256) -> W256 {
            transpose(runs)
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn fold(rows: [[__m256i; 2]; 2]) -> L256 {
            // The lower 128 bits of each register have first halves of spans, the upper ones the second halves.
            let [a, b] = rows.map(|[low, high]| {
                let first = _mm256_permute2x128_si256::<0x20>(low, high);
                let second = _mm256_permute2x128_si256::<0x31>(low, high);
                _mm256_cvtepi32_ps(_mm256_add_epi32(first, second))
            });
            L256(a, b)
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn split([a, b]: [[__m256i; 2]; 2]) -> [L256; 2] {
            let first = |[low, high]: [__m256i; 2]| _mm256_cvtepi32_ps(_mm256_permute2x128_si256::<0x20>(low, high));
            let second = |[low, high]: [__m256i; 2]| _mm256_cvtepi32_ps(_mm256_permute2x128_si256::<0x31>(low, high));
            [L256(first(a), first(b)), L256(second(a), second(b))]
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn join([a, b]: [__m256; 2]) -> L256 {
            L256(a, b)
        }
        // SAFETY: needs the CPU's features and a valid pointer, as [`Registers`] says.
        unsafe fn twice(p: *const f32) -> L256 {
            // SAFETY: the caller gives eight elements.
            let x = unsafe { _mm256_loadu_ps(p) };
            L256(x, x)
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn sums(l: L256) -> [f32; 2] {
            [l.0, l.1].map(|eight| sum8(eight))
        }
    }
}

/// What [`Simd`] has alike for both instruction sets.
macro_rules! of_both {
    () => {
        #[inline(always)]
        fn many_tokens<B: Unpack<Narrow>>(_interleaved: bool) -> usize {
            panel::MANY_TOKENS
        }
        // SAFETY: needs the CPU's features and what [`MatMul`](super::MatMul) asks for, as [`Simd`] says.
        #[inline(always)]
        unsafe fn matmul_few<B: Unpack<Narrow>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8]) {
            // SAFETY: the caller's promise is the same.
            unsafe { one::matmul::<Self, B>(w, x, y, then) }
        }
        // SAFETY: needs the CPU's features and what [`MatMul`](super::MatMul) asks for, as [`Simd`] says.
        #[inline(always)]
        unsafe fn matmul_many<B: Unpack<Narrow>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8]) {
            // SAFETY: the caller's promise is the same.
            unsafe { panel::matmul::<Self, B>(w, x, y, then) }
        }
    };
}

impl Simd for Avx2 {
    type R = Narrow;
    const TOKENS: usize = 4;
    const SIGNED_OFFSET: u8 = 0;
    of_both!();
    // SAFETY: needs the CPU's features, as [`Simd`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn from_signed(w: W256) -> W256 {
        w
    }
    // SAFETY: needs the CPU's features, as [`Simd`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn dot<B: Unpack<Narrow>>(w: &W256, x: &ActChunk) -> [__m256i; 2] {
        let sum = |h: usize| {
            let product = |k: usize| product::<B>(w[4 * h + k], load32(&x.q, 64 * k + 32 * h));
            let widen = |p| _mm256_madd_epi16(p, _mm256_set1_epi16(1));
            let (a, b, c, d) = (product(0), product(1), product(2), product(3));
            match const { fit::<B>() } {
                8 | 4 => widen(_mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d))),
                2 => _mm256_add_epi32(widen(_mm256_add_epi16(a, b)), widen(_mm256_add_epi16(c, d))),
                _ => _mm256_add_epi32(_mm256_add_epi32(widen(a), widen(b)), _mm256_add_epi32(widen(c), widen(d))),
            }
        };
        [sum(0), sum(1)]
    }
}

impl Simd for AvxVnni {
    type R = Narrow;
    const TOKENS: usize = 4;
    const SIGNED_OFFSET: u8 = 128;
    of_both!();
    // SAFETY: needs the CPU's features, as [`Simd`] says.
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    #[inline]
    unsafe fn from_signed(w: W256) -> W256 {
        w.map(|w| _mm256_xor_si256(w, _mm256_set1_epi8(-128)))
    }
    // SAFETY: needs the CPU's features, as [`Simd`] says.
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    #[inline]
    unsafe fn dot<B: Unpack<Narrow>>(w: &W256, x: &ActChunk) -> [__m256i; 2] {
        let sum = |h: usize| {
            let mut sum = _mm256_setzero_si256();
            for k in 0..4 {
                sum = _mm256_dpbusd_avx_epi32(sum, w[4 * h + k], load32(&x.q, 64 * k + 32 * h));
            }
            sum
        };
        [sum(0), sum(1)]
    }
}

/// How many of AVX2's products of `B` 16 bits hold the sum of: one is at most 2 * 127 * 2^BITS, and 32767 is the limit.
const fn fit<B: Unpack<Narrow>>() -> usize {
    match B::BITS {
        0..=4 => 8,
        5 => 4,
        6 => 2,
        _ => 1,
    }
}

/// AVX2's products of 32 weights and activations, neighbours added.
#[inline]
#[target_feature(enable = "avx2")]
fn product<B: Unpack<Narrow>>(w: __m256i, x: __m256i) -> __m256i {
    match B::FORM {
        Form::Signed => _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)),
        _ => _mm256_maddubs_epi16(w, x),
    }
}

/// 32 bytes from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
fn load32<T, const N: usize>(bytes: &[T; N], at: usize) -> __m256i {
    const { assert!(size_of::<T>() == 1, "offsets are bytes") }
    assert!(at + 32 <= N);
    // SAFETY: the 32 bytes are inside the array, by the line above.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) }
}

/// 16 bytes from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load16<T, const N: usize>(bytes: &[T; N], at: usize) -> __m128i {
    const { assert!(size_of::<T>() == 1, "offsets are bytes") }
    assert!(at + 16 <= N);
    // SAFETY: the 16 bytes are inside the array, by the line above.
    unsafe { _mm_loadu_si128(bytes.as_ptr().add(at).cast()) }
}

/// The half at `at` in all lanes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn half(b: &[u8], at: usize) -> __m256 {
    _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16_at(b, at)))))
}

/// The halves at `at`, `at + stride`, … of eight blocks.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves(b: &[u8], at: usize, stride: usize) -> __m256 {
    let h = |i| u16_at(b, at + i * stride) as i16;
    _mm256_cvtph_ps(_mm_setr_epi16(h(0), h(1), h(2), h(3), h(4), h(5), h(6), h(7)))
}

/// Lanes from sixteen signed bytes, one for each group.
#[inline]
#[target_feature(enable = "avx2")]
fn per16(s: __m128i) -> [__m256i; 2] {
    let s = _mm_shuffle_epi8(s, load16(&LANE_BYTES, 0));
    [_mm256_cvtepi8_epi32(s), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(s, s))]
}

/// A row's eight lanes, as [`crate::quant::dot::sum_lanes`].
#[inline]
#[target_feature(enable = "avx2")]
fn sum8(eight: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Q3_K's scales, see [`crate::quant::block::scales_k3`], less 32.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn scales_k3(b: &[u8], at: usize) -> __m128i {
    let [w0, w1, w2, w3] = bytes::scales_k3(b, at).map(|w| w as i32);
    let s = _mm_setr_epi32(w0, w1, w2, w3);
    _mm_sub_epi8(s, _mm_set1_epi8(32))
}

/// IQ4_XS's scales, see [`crate::quant::block::scales_iq4_xs`], less 32.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn scales_iq4_xs(b: &[u8; IQ4_XS::BYTES]) -> __m256 {
    let low = _mm256_set1_epi32(u32_at(b, 4) as i32);
    let low = _mm256_srlv_epi32(low, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    let high = _mm256_set1_epi32(i32::from(u16_at(b, 2)));
    let high = _mm256_srlv_epi32(high, _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    let high = _mm256_slli_epi32::<4>(_mm256_and_si256(high, _mm256_set1_epi32(3)));
    let s = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)), high);
    _mm256_cvtepi32_ps(_mm256_sub_epi32(s, _mm256_set1_epi32(32)))
}

/// What [`crate::quant::block::e8m0_half`] makes of eight exponents.
#[inline]
#[target_feature(enable = "avx2")]
fn e8m0_half(e: __m256i) -> __m256 {
    let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
    let denormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
    let is_denormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    _mm256_castsi256_ps(_mm256_blendv_epi8(normal, denormal, is_denormal))
}

/// The exponents of eight blocks of MXFP4.
#[inline]
#[target_feature(enable = "avx2")]
fn exponents(b: &[u8; MXFP4::BYTES]) -> __m256i {
    let e = |m: usize| i32::from(b[17 * m]);
    _mm256_setr_epi32(e(0), e(1), e(2), e(3), e(4), e(5), e(6), e(7))
}

/// Eight registers of 32 weights as they lie in the file, to the order of [`ActChunk`].
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(y: [__m256i; 8]) -> W256 {
    let mut w = y;
    for h in 0..2 {
        let [a, b, c, d] = [y[4 * h], y[4 * h + 1], y[4 * h + 2], y[4 * h + 3]];
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        w[4 * h] = _mm256_unpacklo_epi64(ab, cd);
        w[4 * h + 1] = _mm256_unpackhi_epi64(ab, cd);
        let (ab, cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        w[4 * h + 2] = _mm256_unpacklo_epi64(ab, cd);
        w[4 * h + 3] = _mm256_unpackhi_epi64(ab, cd);
    }
    w
}

/// Element `p` of row `i` becomes element `i` of row `p`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_floats(r: [__m256; 8]) -> [__m256; 8] {
    // Rows 4 * h to 4 * h + 3, inside 128-bit parts: pairs of floats, then of pairs. Then the parts themselves.
    let columns = |h: usize| {
        let [a, b, c, d] = [r[4 * h], r[4 * h + 1], r[4 * h + 2], r[4 * h + 3]];
        let (low_ab, high_ab) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (low_cd, high_cd) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0b01_00_01_00>(low_ab, low_cd),
            _mm256_shuffle_ps::<0b11_10_11_10>(low_ab, low_cd),
            _mm256_shuffle_ps::<0b01_00_01_00>(high_ab, high_cd),
            _mm256_shuffle_ps::<0b11_10_11_10>(high_ab, high_cd),
        ]
    };
    let (upper, lower) = (columns(0), columns(1));
    let mut out = r;
    for k in 0..4 {
        out[k] = _mm256_permute2f128_ps::<0x20>(upper[k], lower[k]);
        out[4 + k] = _mm256_permute2f128_ps::<0x31>(upper[k], lower[k]);
    }
    out
}

#[inline]
#[target_feature(enable = "avx2")]
fn low4(x: __m256i) -> __m256i {
    _mm256_and_si256(x, _mm256_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx2")]
fn high4(x: __m256i) -> __m256i {
    low4(_mm256_srli_epi16::<4>(x))
}

/// 16 bytes to 32 elements: low nibbles, then high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(x: __m128i) -> __m256i {
    low4(_mm256_set_m128i(_mm_srli_epi16::<4>(x), x))
}

/// Bit 4 of each of 32 elements from the bits of `qh`.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bits(qh: u32) -> __m256i {
    let byte = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(qh as i32), byte);
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
    _mm256_and_si256(is_set, _mm256_set1_epi8(16))
}

/// Looks indices up among sixteen bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up(values: [i8; 16], index: __m256i) -> __m256i {
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(&values, 0)), index)
}

/// Declares how AVX2 reads a type: [`Row`]'s fields, with runs of 32 weights for `w`. The body has the chunk's bytes as an
/// array.
macro_rules! unpack {
    ($ty:ident, $form:expr, $bits:literal, $fine:literal, |$b:ident| $body:expr) => {
        impl Unpack<Narrow> for $ty {
            const TYPE: GgmlType = GgmlType::$ty;
            const FORM: Form = $form;
            const BITS: u32 = $bits;
            const FINE: bool = $fine;
            avx2! {
                // SAFETY: needs the CPU's features, as [`Unpack`] says.
                unsafe fn unpack(bytes: &[u8]) -> Row<Narrow> {
                    let $b = sized::<{ $ty::BYTES }>(bytes);
                    let (runs, scale, min, fine): ([__m256i; 8], __m256, __m256, MaybeUninit<[[__m256i; 2]; 2]>) = $body;
                    Row { w: runs, scale, min, fine }
                }
            }
        }
        impl $ty {
            /// Bytes of 256 weights.
            pub(super) const BYTES: usize = <$ty as Unpack<Narrow>>::BYTES;
        }
    };
    // A scale for each 32 and perhaps a minimum.
    ($ty:ident, $form:expr, $bits:literal, |$b:ident| $body:expr) => {
        unpack!($ty, $form, $bits, false, |$b| {
            let (runs, scale, min) = $body;
            (runs, scale, min, MaybeUninit::uninit())
        });
    };
}

/// [`unpack`] for eight blocks of nibbles, see [`one`]: all scales and minimums, and one block's run.
macro_rules! blocks {
    ($ty:ident, $form:expr, $bits:literal, |$b:ident| $scales:expr, |$m:ident| $run:expr) => {
        unpack!($ty, $form, $bits, |$b| {
            let (scale, min) = $ty::scales($b);
            (std::array::from_fn(|$m| $run), scale, min)
        });
        impl $ty {
            avx2! {
                fn scales($b: &[u8; $ty::BYTES]) -> (__m256, __m256) {
                    $scales
                }
            }
        }
    };
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn no_min() -> __m256 {
    _mm256_setzero_ps()
}

#[inline]
#[target_feature(enable = "avx2")]
fn none() -> [__m256i; 2] {
    [_mm256_setzero_si256(); 2]
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn negated(x: __m256) -> __m256 {
    _mm256_xor_ps(x, _mm256_set1_ps(-0.0))
}

blocks!(Q4_0, Form::Offset(8), 4, |b| (halves(b, 0, 18), no_min()), |m| nibbles(load16(b, 18 * m + 2)));

blocks!(Q4_1, Form::Min, 4, |b| (halves(b, 0, 20), negated(halves(b, 2, 20))), |m| nibbles(load16(b, 20 * m + 4)));

blocks!(Q5_0, Form::Offset(16), 5, |b| (halves(b, 0, 22), no_min()), |m| {
    _mm256_or_si256(nibbles(load16(b, 22 * m + 6)), fifth_bits(u32_at(b, 22 * m + 2)))
});

blocks!(Q5_1, Form::Min, 5, |b| (halves(b, 0, 24), negated(halves(b, 2, 24))), |m| {
    _mm256_or_si256(nibbles(load16(b, 24 * m + 8)), fifth_bits(u32_at(b, 24 * m + 4)))
});

unpack!(Q8_0, Form::Signed, 8, |b| {
    let y = std::array::from_fn(|m| load32(b, 34 * m + 2));
    (y, halves(b, 0, 34), no_min())
});

blocks!(IQ4_NL, Form::Signed, 8, |b| (halves(b, 0, 18), no_min()), |m| {
    look_up(IQ4_VALUES, nibbles(load16(b, 18 * m + 2)))
});

blocks!(IQ4_XS, Form::Signed, 8, |b| (_mm256_mul_ps(half(b, 0), scales_iq4_xs(b)), no_min()), |m| {
    look_up(IQ4_VALUES, nibbles(load16(b, 16 * m + 8)))
});

blocks!(MXFP4, Form::Offset(12), 5, |b| (e8m0_half(exponents(b)), no_min()), |m| {
    look_up(MXFP4_UNSIGNED, nibbles(load16(b, 17 * m + 1)))
});

/// Four registers from one: two bits each, from the lowest up.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs(x: __m256i) -> [__m256i; 4] {
    let two = |x| _mm256_and_si256(x, _mm256_set1_epi8(3));
    [two(x), two(_mm256_srli_epi16::<2>(x)), two(_mm256_srli_epi16::<4>(x)), two(_mm256_srli_epi16::<6>(x))]
}

unpack!(Q2_K, Form::Min, 2, true, |b| {
    let [y0, y1, y2, y3] = pairs(load32(b, 16));
    let [y4, y5, y6, y7] = pairs(load32(b, 48));
    let sc = load16(b, 0);
    let low = _mm_and_si128(sc, _mm_set1_epi8(15));
    let high = _mm_and_si128(_mm_srli_epi16::<4>(sc), _mm_set1_epi8(15));
    ([y0, y1, y2, y3, y4, y5, y6, y7], half(b, 80), half(b, 82), MaybeUninit::new([per16(low), per16(high)]))
});

unpack!(Q3_K, Form::Offset(4), 3, true, |b| {
    let low = [pairs(load32(b, 32)), pairs(load32(b, 64))];
    let mask = load32(b, 0);
    let bit2 = |x| _mm256_and_si256(x, _mm256_set1_epi8(4));
    let high = [
        bit2(_mm256_slli_epi16::<2>(mask)),
        bit2(_mm256_slli_epi16::<1>(mask)),
        bit2(mask),
        bit2(_mm256_srli_epi16::<1>(mask)),
        bit2(_mm256_srli_epi16::<2>(mask)),
        bit2(_mm256_srli_epi16::<3>(mask)),
        bit2(_mm256_srli_epi16::<4>(mask)),
        bit2(_mm256_srli_epi16::<5>(mask)),
    ];
    let y = std::array::from_fn(|m| _mm256_or_si256(low[m / 4][m % 4], high[m]));
    (y, half(b, 108), no_min(), MaybeUninit::new([per16(scales_k3(b, 96)), none()]))
});

/// Q4_K's and Q5_K's scales and minimums.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn k4(b: &[u8]) -> (__m256, __m256) {
    let (sc, mn) = scales_k4(b, 4);
    let float = |s: u64| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(s as i64)));
    (_mm256_mul_ps(half(b, 0), float(sc)), _mm256_mul_ps(half(b, 2), float(mn)))
}

unpack!(Q4_K, Form::Min, 4, |b| {
    let y = std::array::from_fn(|m| {
        let x = load32(b, 16 + 32 * (m / 2));
        if m % 2 == 0 { low4(x) } else { high4(x) }
    });
    let (scale, min) = k4(b);
    (y, scale, min)
});

unpack!(Q5_K, Form::Min, 5, |b| {
    let qh = load32(b, 16);
    let bit4 = |x| _mm256_and_si256(x, _mm256_set1_epi8(16));
    let high = [
        bit4(_mm256_slli_epi16::<4>(qh)),
        bit4(_mm256_slli_epi16::<3>(qh)),
        bit4(_mm256_slli_epi16::<2>(qh)),
        bit4(_mm256_slli_epi16::<1>(qh)),
        bit4(qh),
        bit4(_mm256_srli_epi16::<1>(qh)),
        bit4(_mm256_srli_epi16::<2>(qh)),
        bit4(_mm256_srli_epi16::<3>(qh)),
    ];
    let y = std::array::from_fn(|m| {
        let x = load32(b, 48 + 32 * (m / 2));
        _mm256_or_si256(if m % 2 == 0 { low4(x) } else { high4(x) }, high[m])
    });
    let (scale, min) = k4(b);
    (y, scale, min)
});

unpack!(Q6_K, Form::Offset(32), 6, true, |b| {
    let y = std::array::from_fn(|m| {
        let low = load32(b, m / 4 * 64 + m % 2 * 32);
        let low = if m % 4 < 2 { low4(low) } else { high4(low) };
        let qh = load32(b, 128 + m / 4 * 32);
        let high = match m % 4 {
            0 => _mm256_slli_epi16::<4>(qh),
            1 => _mm256_slli_epi16::<2>(qh),
            2 => qh,
            _ => _mm256_srli_epi16::<2>(qh),
        };
        _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(0x30)))
    });
    (y, half(b, 208), no_min(), MaybeUninit::new([per16(load16(b, 192)), none()]))
});

impl<const SCALES: usize> Unpack<Narrow> for Expanded<SCALES> {
    const TYPE: GgmlType = Self::TYPE;
    const FORM: Form = Self::FORM;
    const BITS: u32 = Self::BITS;
    const FINE: bool = false;
    const HALVES: bool = Self::HALVES;
    const BYTES: usize = Self::BYTES;
    #[inline(always)]
    fn row_bytes(w: &QMat<'_>) -> usize {
        Self::row_bytes(w)
    }
    avx2! {
        // SAFETY: needs the CPU's features, as [`Unpack`] says.
        unsafe fn unpack(bytes: &[u8]) -> Row<Narrow> {
            let (w, scales) = Self::parts(bytes);
            // SAFETY: there are eight floats, and where halves have scales sixteen.
            unsafe {
                let run = |m: usize| load32(w, 32 * m);
                Row {
                    w: [run(0), run(1), run(2), run(3), run(4), run(5), run(6), run(7)],
                    scale: _mm256_loadu_ps(scales),
                    min: if Self::HALVES { _mm256_loadu_ps(scales.add(8)) } else { no_min() },
                    fine: MaybeUninit::uninit(),
                }
            }
        }
    }
}
