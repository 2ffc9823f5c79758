//! AVX-512 with VNNI.
//!
//! Two of AVX2's registers of 32 weights lie in one here: run `v` below run `v + 4`.
//!
//! Must not know: loops over rows and tokens, but for those of [`panel`] and [`interleaved`].

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use half::{bf16, f16};

use super::avx2::{half, k4, load16, negated, no_min, scales_iq4_xs, scales_k3};
use super::bytes::{LANE_BYTES, MXFP4_UNSIGNED, above, sized, u32_at};
use super::driver::{self, Form, Registers, Row, Simd, Unpack, Weights};
use super::expanded::Expanded;
use super::maker::is_amd;
use super::ops::{Lanes, ops_table};
use super::table::matmul_table;
use super::{Isa, Kernels};
use crate::quant::act::{ActChunk, ActRow, LANES};
use crate::quant::block::{
    CHUNK, IQ4_NL, IQ4_VALUES, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0,
};
use crate::quant::interleaved::is_possible;
use crate::quant::{GgmlType, QMat};

/// Runs `$item` once for the attribute that all functions here have.
macro_rules! avx512 {
    ($($item:item)*) => { $(
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        #[inline]
        $item
    )* };
}

mod interleaved;
mod one;
mod pair;
mod panel;
mod sixteen;
mod step;

use step::{Apart, Together};

/// The table of AVX-512 with VNNI.
pub(super) const AVX512_VNNI: Kernels = Kernels {
    interleaves: Some(interleaved::turn),
    ..Kernels::new(
        Isa::Avx512Vnni,
        matmul_table!(
            Avx512,
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        ),
        OPS,
    )
};

ops_table!(
    L512,
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
);

/// Products by `vpdpbusd` on 64 bytes.
struct Avx512;

/// Registers of 512 bits.
#[derive(Clone, Copy)]
struct Wide;

/// Sixteen floats.
#[derive(Clone, Copy)]
struct L512(__m512);

/// 256 weights: run `v` of 32 below run `v + 4` as they are read, then register `k` having word `k` of each lane's four.
type W512 = [__m512i; 4];

impl Registers for Wide {
    type W = W512;
    type I = __m512i;
    type H = __m256;
    type L = L512;
    avx512! {
        // SAFETY: needs the CPU's features and a valid pointer, as [`Registers`] says.
        unsafe fn load(p: *const i32) -> __m512i {
            // SAFETY: the caller gives sixteen elements.
            unsafe { _mm512_loadu_si512(p.cast()) }
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn splat(x: i32) -> __m512i {
            _mm512_set1_epi32(x)
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn mul(a: __m512i, b: __m512i) -> __m512i {
            _mm512_mullo_epi32(a, b)
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn sub(a: __m512i, b: __m512i) -> __m512i {
            _mm512_sub_epi32(a, b)
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn fold([a, b]: [__m512i; 2]) -> L512 {
            // The 128-bit parts 0 and 2 have first halves of spans, 1 and 3 the second ones.
            let first = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
            let second = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
            L512(_mm512_cvtepi32_ps(_mm512_add_epi32(first, second)))
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn split([a, b]: [__m512i; 2]) -> [L512; 2] {
            let first = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
            let second = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
            [L512(_mm512_cvtepi32_ps(first)), L512(_mm512_cvtepi32_ps(second))]
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn join([a, b]: [__m256; 2]) -> L512 {
            L512(_mm512_insertf32x8::<1>(_mm512_castps256_ps512(a), b))
        }
        // SAFETY: needs the CPU's features and a valid pointer, as [`Registers`] says.
        unsafe fn twice(p: *const f32) -> L512 {
            // SAFETY: the caller gives eight elements.
            L512(_mm512_broadcast_f32x8(unsafe { _mm256_loadu_ps(p) }))
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn ordered(runs: W512) -> W512 {
            transpose(runs)
        }
        // SAFETY: needs the CPU's features, as [`Registers`] says.
        unsafe fn sums(l: L512) -> [f32; 2] {
            let four = _mm512_add_ps(l.0, _mm512_shuffle_f32x4::<0b10_11_00_01>(l.0, l.0));
            let two = _mm512_add_ps(four, _mm512_permute_ps::<0b01_00_11_10>(four));
            let one = _mm512_add_ps(two, _mm512_movehdup_ps(two));
            [_mm512_cvtss_f32(one), _mm_cvtss_f32(_mm512_extractf32x4_ps::<2>(one))]
        }
    }
}

impl Simd for Avx512 {
    type R = Wide;
    const TOKENS: usize = 8;
    const SIGNED_OFFSET: u8 = 128;
    #[inline(always)]
    fn many_tokens<B: Unpack<Wide>>(interleaved: bool) -> usize {
        match B::TYPE {
            GgmlType::Q4_K | GgmlType::Q6_K if interleaved => panel::MANY_OF_TILES,
            _ => panel::MANY_TOKENS,
        }
    }
    // SAFETY: needs the CPU's features and what [`MatMul`](super::MatMul) asks for, as [`Simd`] says.
    #[inline(always)]
    unsafe fn matmul_few<B: Unpack<Wide>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8]) {
        // SAFETY: the caller's promise is the same.
        unsafe {
            if const { is_possible(B::TYPE, CHUNK) } && w.interleaved {
                interleaved::matmul::<B>(w, x, y, then)
            } else {
                one::matmul::<B>(w, x, y, then)
            }
        }
    }
    // SAFETY: needs the CPU's features and what [`MatMul`](super::MatMul) asks for, as [`Simd`] says.
    #[inline(always)]
    unsafe fn matmul_many<B: Unpack<Wide>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8]) {
        // SAFETY: the caller's promise is the same.
        unsafe {
            // Together, weights take half the room, for a mask with each word and group of tokens. AMD has ports for masks that
            // products do not use. Intel has not: apart, and with what that allows, many tokens became 5 to 10 % faster.
            if matches!(B::TYPE, GgmlType::Q4_K) && is_amd() {
                panel::matmul::<Together<Q4_K>>(w, x, y, then)
            } else {
                panel::matmul::<Apart<B>>(w, x, y, then)
            }
        }
    }
    // SAFETY: needs the CPU's features, as [`Simd`] says.
    #[inline(always)]
    unsafe fn unpack<B: Unpack<Wide>>(bytes: [&[u8]; 2]) -> Weights<Wide> {
        // SAFETY: the caller's promise is the same.
        unsafe {
            match B::TYPE {
                GgmlType::Q2_K => pair::q2_k(bytes),
                GgmlType::Q3_K => pair::q3_k(bytes),
                GgmlType::Q5_0 => pair::q5_0(bytes),
                GgmlType::Q5_1 => pair::q5_1(bytes),
                _ => driver::unpack::<Avx512, B>(bytes),
            }
        }
    }
    // SAFETY: needs the CPU's features, as [`Simd`] says, and a type whose scales are fine.
    #[inline(always)]
    unsafe fn fine<B: Unpack<Wide>>(w: &Weights<Wide>, x: &ActChunk, dots: [__m512i; 2]) -> L512 {
        // SAFETY: the caller's promise is the same.
        unsafe {
            match B::TYPE {
                GgmlType::Q2_K | GgmlType::Q3_K => pair::fine::<B>(w, x, dots),
                _ => driver::fine::<Avx512, B>(w, x, dots),
            }
        }
    }
    avx512! {
        // SAFETY: needs the CPU's features, as [`Simd`] says.
        unsafe fn from_signed(w: W512) -> W512 {
            w.map(|w| _mm512_xor_si512(w, _mm512_set1_epi8(-128)))
        }
        // SAFETY: needs the CPU's features, as [`Simd`] says.
        unsafe fn dot<B: Unpack<Wide>>(w: &W512, x: &ActChunk) -> __m512i {
            let mut sum = _mm512_setzero_si512();
            for (k, w) in w.iter().enumerate() {
                sum = _mm512_dpbusd_epi32(sum, *w, load64(&x.q, 64 * k));
            }
            sum
        }
    }
}

/// IQ4_NL's and IQ4_XS's values made unsigned by 128, as `vpdpbusd` takes them.
const IQ4_UNSIGNED: [i8; 16] = above(IQ4_VALUES, i8::MIN);

/// How to pick eight 16-bit words `STRIDE` bytes apart out of `N`: those that end in the first 128 bytes there, the
/// others in 128 bytes more.
struct Words<const AT: usize, const STRIDE: usize, const N: usize>;

impl<const AT: usize, const STRIDE: usize, const N: usize> Words<AT, STRIDE, N> {
    const INSIDE: usize = if 7 * STRIDE + 2 <= 128 { 8 } else { (128 - 2) / STRIDE + 1 };
    const SECOND: usize = if AT + 128 < N - 128 { AT + 128 } else { N - 128 };
    /// Little-endian words for `vpermt2w`, eight of 32 in use.
    const INDEX: [u8; 64] = {
        let (mut index, mut i) = ([0; 64], 0);
        while i < 8 {
            let base = if i < Self::INSIDE { AT } else { Self::SECOND };
            index[2 * i] = ((AT + i * STRIDE - base) / 2) as u8;
            i += 1;
        }
        index
    };
}

avx512! {
    /// 64 bytes from `at` on.
    fn load64<T, const N: usize>(bytes: &[T; N], at: usize) -> __m512i {
        const { assert!(size_of::<T>() == 1, "offsets are bytes") }
        assert!(at + 64 <= N);
        // SAFETY: the 64 bytes are inside the array, by the line above.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().add(at).cast()) }
    }

    /// 32 bytes from `low` on below 32 from `high` on.
    fn join32<const N: usize>(bytes: &[u8; N], low: usize, high: usize) -> __m512i {
        assert!(low + 32 <= N && high + 32 <= N);
        // SAFETY: both runs are inside the array, by the line above.
        let (low, high) = unsafe {
            let p = bytes.as_ptr();
            (_mm256_loadu_si256(p.add(low).cast()), _mm256_loadu_si256(p.add(high).cast()))
        };
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }

    fn low4(x: __m512i) -> __m512i {
        _mm512_and_si512(x, _mm512_set1_epi8(15))
    }

    fn high4(x: __m512i) -> __m512i {
        low4(_mm512_srli_epi16::<4>(x))
    }

    /// The 16 bytes at `low` and at `high`, each spread to 32 elements: low nibbles, then high ones.
    fn nibbles<const N: usize>(bytes: &[u8; N], low: usize, high: usize) -> __m512i {
        let twice = _mm512_broadcast_i32x4(load16(bytes, low));
        let twice = _mm512_mask_broadcast_i32x4(twice, 0xff00, load16(bytes, high));
        low4(_mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4)))
    }

    /// [`nibbles`] of blocks `v` and `v + 4`, for each `v`.
    fn nibble_blocks<const N: usize>(bytes: &[u8; N], at: usize, stride: usize) -> [__m512i; 4] {
        std::array::from_fn(|v| nibbles(bytes, at + v * stride, at + (v + 4) * stride))
    }

    /// Bit 4 of elements from 32 bits each of blocks `v` and `v + 4`.
    fn fifth_bits(bytes: &[u8], at: usize, stride: usize, v: usize) -> __m512i {
        let bits = u64::from(u32_at(bytes, at + (v + 4) * stride)) << 32 | u64::from(u32_at(bytes, at + v * stride));
        _mm512_maskz_set1_epi8(bits, 16)
    }

    /// Looks indices up among sixteen bytes.
    fn look_up(values: [i8; 16], index: __m512i) -> __m512i {
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(load16(&values, 0)), index)
    }

    /// The 16-bit words at `AT`, `AT + STRIDE`, … of eight blocks.
    fn words<const AT: usize, const STRIDE: usize, const N: usize>(bytes: &[u8; N]) -> __m128i {
        let (inside, second) = (Words::<AT, STRIDE, N>::INSIDE, Words::<AT, STRIDE, N>::SECOND);
        let index = load64(&Words::<AT, STRIDE, N>::INDEX, 0);
        let pick = |from| {
            let words = _mm512_permutex2var_epi16(load64(bytes, from), index, load64(bytes, from + 64));
            _mm512_castsi512_si128(words)
        };
        let first = pick(AT);
        if inside == 8 { first } else { _mm_mask_mov_epi16(pick(second), (1 << inside) - 1, first) }
    }

    /// The halves at `AT`, `AT + STRIDE`, … of eight blocks.
    fn halves<const AT: usize, const STRIDE: usize, const N: usize>(bytes: &[u8; N]) -> __m256 {
        _mm256_cvtph_ps(words::<AT, STRIDE, N>(bytes))
    }

    /// The exponents of eight blocks of MXFP4. They lie 17 bytes apart: in low and high bytes of words by turns.
    fn exponents(bytes: &[u8; MXFP4::BYTES]) -> __m256i {
        let turns = _mm_setr_epi8(0, 3, 4, 7, 8, 11, 12, 15, -1, -1, -1, -1, -1, -1, -1, -1);
        _mm256_cvtepu8_epi32(_mm_shuffle_epi8(words::<0, 17, _>(bytes), turns))
    }

    /// What [`crate::quant::block::e8m0_half`] makes of eight exponents: AVX2's way but for the mask, without which
    /// products for one token go at nine tenths of the rate, for four at 95 % (Zen 5).
    fn e8m0_half(e: __m256i) -> __m256 {
        let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
        let is_denormal = _mm256_cmplt_epi32_mask(e, _mm256_set1_epi32(2));
        let scale = _mm256_mask_sllv_epi32(normal, is_denormal, _mm256_set1_epi32(0x0020_0000), e);
        _mm256_castsi256_ps(scale)
    }

    /// Lanes from sixteen signed bytes, one for each group.
    fn per16(s: __m128i) -> __m512i {
        _mm512_cvtepi8_epi32(_mm_shuffle_epi8(s, load16(&LANE_BYTES, 0)))
    }

    fn none() -> __m512i {
        _mm512_setzero_si512()
    }

    /// Four by four words in each 128-bit part: runs of 32 weights as they lie in the file, to the order of [`ActChunk`].
    fn transpose([a, b, c, d]: [__m512i; 4]) -> W512 {
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ef, gh) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ef, gh),
            _mm512_unpackhi_epi64(ef, gh),
        ]
    }

    /// Two bits of each byte, from the lowest up.
    fn pairs(x: __m512i) -> [__m512i; 4] {
        let two = |x| _mm512_and_si512(x, _mm512_set1_epi8(3));
        [two(x), two(_mm512_srli_epi16::<2>(x)), two(_mm512_srli_epi16::<4>(x)), two(_mm512_srli_epi16::<6>(x))]
    }

    /// 32 bytes, and above them the same bytes with their upper four bits moved to the lower.
    fn bits_by_run<const N: usize>(bytes: &[u8; N], at: usize) -> __m512i {
        _mm512_srlv_epi64(join32(bytes, at, at), _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4))
    }
}

/// Declares how AVX-512 reads a type: [`Row`]'s fields, with runs of 32 weights for `w`. The body has the chunk's bytes as an
/// array.
macro_rules! unpack {
    ($ty:ident, $form:expr, $bits:literal, $fine:literal, |$b:ident| $body:expr) => {
        impl Unpack<Wide> for $ty {
            const TYPE: GgmlType = GgmlType::$ty;
            const FORM: Form = $form;
            const BITS: u32 = $bits;
            const FINE: bool = $fine;
            avx512! {
                // SAFETY: needs the CPU's features, as [`Unpack`] says.
                unsafe fn unpack(bytes: &[u8]) -> Row<Wide> {
                    let $b = sized::<{ $ty::BYTES }>(bytes);
                    let (runs, scale, min, fine): ([__m512i; 4], __m256, __m256, MaybeUninit<[__m512i; 2]>) = $body;
                    Row { w: runs, scale, min, fine }
                }
            }
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

unpack!(Q4_0, Form::Offset(8), 4, |b| (nibble_blocks(b, 2, 18), halves::<0, 18, _>(b), no_min()));

unpack!(Q4_1, Form::Min, 4, |b| { (nibble_blocks(b, 4, 20), halves::<0, 20, _>(b), negated(halves::<2, 20, _>(b))) });

unpack!(Q5_0, Form::Offset(16), 5, |b| {
    let low = nibble_blocks(b, 6, 22);
    let runs = std::array::from_fn(|v| _mm512_or_si512(low[v], fifth_bits(b, 2, 22, v)));
    (runs, halves::<0, 22, _>(b), no_min())
});

unpack!(Q5_1, Form::Min, 5, |b| {
    let low = nibble_blocks(b, 8, 24);
    let runs = std::array::from_fn(|v| _mm512_or_si512(low[v], fifth_bits(b, 4, 24, v)));
    (runs, halves::<0, 24, _>(b), negated(halves::<2, 24, _>(b)))
});

unpack!(Q8_0, Form::Signed, 8, |b| {
    let runs = std::array::from_fn(|v| join32(b, 34 * v + 2, 34 * (v + 4) + 2));
    (runs, halves::<0, 34, _>(b), no_min())
});

unpack!(IQ4_NL, Form::Offset(128), 8, |b| {
    (nibble_blocks(b, 2, 18).map(|x| look_up(IQ4_UNSIGNED, x)), halves::<0, 18, _>(b), no_min())
});

unpack!(IQ4_XS, Form::Offset(128), 8, |b| {
    let scale = _mm256_mul_ps(half(b, 0), scales_iq4_xs(b));
    (nibble_blocks(b, 8, 16).map(|x| look_up(IQ4_UNSIGNED, x)), scale, no_min())
});

unpack!(MXFP4, Form::Offset(12), 5, |b| {
    (nibble_blocks(b, 1, 17).map(|x| look_up(MXFP4_UNSIGNED, x)), e8m0_half(exponents(b)), no_min())
});

unpack!(Q2_K, Form::Min, 2, true, |b| {
    let sc = load16(b, 0);
    let low = _mm_and_si128(sc, _mm_set1_epi8(15));
    let high = _mm_and_si128(_mm_srli_epi16::<4>(sc), _mm_set1_epi8(15));
    (pairs(load64(b, 16)), half(b, 80), half(b, 82), MaybeUninit::new([per16(low), per16(high)]))
});

unpack!(Q3_K, Form::Offset(4), 3, true, |b| {
    let [a, b_, c, d] = pairs(load64(b, 32));
    let mask = bits_by_run(b, 0);
    let with = |low, bit| _mm512_or_si512(low, _mm512_and_si512(bit, _mm512_set1_epi8(4)));
    let runs = [
        with(a, _mm512_slli_epi16::<2>(mask)),
        with(b_, _mm512_slli_epi16::<1>(mask)),
        with(c, mask),
        with(d, _mm512_srli_epi16::<1>(mask)),
    ];
    (runs, half(b, 108), no_min(), MaybeUninit::new([per16(scales_k3(b, 96)), none()]))
});

unpack!(Q4_K, Form::Min, 4, |b| {
    let (even, odd) = (join32(b, 16, 80), join32(b, 48, 112));
    let (scale, min) = k4(b);
    ([low4(even), high4(even), low4(odd), high4(odd)], scale, min)
});

unpack!(Q5_K, Form::Min, 5, |b| {
    let (even, odd) = (join32(b, 48, 112), join32(b, 80, 144));
    let mask = bits_by_run(b, 16);
    let with = |low, bit| _mm512_or_si512(low, _mm512_and_si512(bit, _mm512_set1_epi8(16)));
    let runs = [
        with(low4(even), _mm512_slli_epi16::<4>(mask)),
        with(high4(even), _mm512_slli_epi16::<3>(mask)),
        with(low4(odd), _mm512_slli_epi16::<2>(mask)),
        with(high4(odd), _mm512_slli_epi16::<1>(mask)),
    ];
    let (scale, min) = k4(b);
    (runs, scale, min)
});

unpack!(Q6_K, Form::Offset(32), 6, true, |b| {
    let (even, odd, high) = (join32(b, 0, 64), join32(b, 32, 96), load64(b, 128));
    let with = |low, bits| _mm512_or_si512(low, _mm512_and_si512(bits, _mm512_set1_epi8(0x30)));
    let runs = [
        with(low4(even), _mm512_slli_epi16::<4>(high)),
        with(low4(odd), _mm512_slli_epi16::<2>(high)),
        with(high4(even), high),
        with(high4(odd), _mm512_srli_epi16::<2>(high)),
    ];
    (runs, half(b, 208), no_min(), MaybeUninit::new([per16(load16(b, 192)), none()]))
});

impl<const SCALES: usize> Unpack<Wide> for Expanded<SCALES> {
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
    avx512! {
        // SAFETY: needs the CPU's features, as [`Unpack`] says.
        unsafe fn unpack(bytes: &[u8]) -> Row<Wide> {
            let (w, scales) = Self::parts(bytes);
            // SAFETY: there are eight floats, and where halves have scales sixteen.
            unsafe {
                Row {
                    w: [join32(w, 0, 128), join32(w, 32, 160), join32(w, 64, 192), join32(w, 96, 224)],
                    scale: _mm256_loadu_ps(scales),
                    min: if Self::HALVES { _mm256_loadu_ps(scales.add(8)) } else { no_min() },
                    fine: MaybeUninit::uninit(),
                }
            }
        }
    }
}

impl Lanes for L512 {
    const WIDE: bool = true;
    avx512! {
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn splat(x: f32) -> Self {
            L512(_mm512_set1_ps(x))
        }
        // SAFETY: needs the CPU's features and a valid pointer, as [`Lanes`] says.
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller gives sixteen elements.
            unsafe { L512(_mm512_loadu_ps(p)) }
        }
        // SAFETY: needs the CPU's features and a valid pointer, as [`Lanes`] says.
        unsafe fn splat_f16(p: *const f16) -> Self {
            // SAFETY: the caller gives one.
            L512(_mm512_cvtph_ps(_mm256_set1_epi16(unsafe { p.cast::<i16>().read_unaligned() })))
        }
        // SAFETY: needs the CPU's features and a valid pointer, as [`Lanes`] says.
        unsafe fn load_f16(p: *const f16) -> Self {
            // SAFETY: the caller gives sixteen elements.
            L512(_mm512_cvtph_ps(unsafe { _mm256_loadu_si256(p.cast()) }))
        }
        // SAFETY: needs the CPU's features and a valid pointer, as [`Lanes`] says.
        unsafe fn load_bf16(p: *const bf16) -> Self {
            // SAFETY: the caller gives sixteen elements.
            let x = unsafe { _mm256_loadu_si256(p.cast()) };
            L512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x))))
        }
        // SAFETY: needs the CPU's features and a valid pointer, as [`Lanes`] says.
        unsafe fn load_i8(p: *const i8) -> Self {
            // SAFETY: the caller gives sixteen elements.
            L512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(p.cast()) })))
        }
        // SAFETY: needs the CPU's features and a valid pointer, as [`Lanes`] says.
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: the caller gives room for sixteen elements.
            unsafe { _mm512_storeu_ps(p, self.0) }
        }
        // SAFETY: needs the CPU's features and a valid pointer, as [`Lanes`] says.
        unsafe fn store_f16(self, p: *mut f16) {
            // SAFETY: the caller gives room for sixteen elements.
            unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<0>(self.0)) }
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn add(self, b: Self) -> Self {
            L512(_mm512_add_ps(self.0, b.0))
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn mul(self, b: Self) -> Self {
            L512(_mm512_mul_ps(self.0, b.0))
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn div(self, b: Self) -> Self {
            L512(_mm512_div_ps(self.0, b.0))
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            L512(_mm512_fmadd_ps(self.0, b.0, c.0))
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn fnma(self, b: Self, c: Self) -> Self {
            L512(_mm512_fnmadd_ps(self.0, b.0, c.0))
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn max(self, b: Self) -> Self {
            L512(_mm512_max_ps(self.0, b.0))
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn min(self, b: Self) -> Self {
            L512(_mm512_min_ps(self.0, b.0))
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn round(self) -> Self {
            L512(_mm512_roundscale_ps::<8>(self.0))
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn pow2(self) -> Self {
            let n = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            L512(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(n)))
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn zero_below(self, x: Self, limit: f32) -> Self {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, _mm512_set1_ps(limit));
            L512(_mm512_maskz_mov_ps(keep, self.0))
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
            // Pairs of floats, then of pairs, inside 128-bit parts; then the parts themselves, twice.
            let r = rows.map(|r| r.0);
            let mut a = r;
            for i in 0..8 {
                a[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                a[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            let (pd, ps) = (|x| _mm512_castps_pd(x), |x| _mm512_castpd_ps(x));
            let mut b = r; // b[4 * i + k]: column k of each part, rows 4 * i to 4 * i + 3
            for i in 0..4 {
                let [a0, a1, a2, a3] = [a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]];
                b[4 * i] = ps(_mm512_unpacklo_pd(pd(a0), pd(a2)));
                b[4 * i + 1] = ps(_mm512_unpackhi_pd(pd(a0), pd(a2)));
                b[4 * i + 2] = ps(_mm512_unpacklo_pd(pd(a1), pd(a3)));
                b[4 * i + 3] = ps(_mm512_unpackhi_pd(pd(a1), pd(a3)));
            }
            let mut out = r;
            for k in 0..4 {
                let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(b[k], b[4 + k]); // parts 0, 2 of both
                let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(b[k], b[4 + k]); // parts 1, 3 of both
                let low2 = _mm512_shuffle_f32x4::<0b10_00_10_00>(b[8 + k], b[12 + k]);
                let high2 = _mm512_shuffle_f32x4::<0b11_01_11_01>(b[8 + k], b[12 + k]);
                out[k] = _mm512_shuffle_f32x4::<0b10_00_10_00>(low, low2);
                out[4 + k] = _mm512_shuffle_f32x4::<0b10_00_10_00>(high, high2);
                out[8 + k] = _mm512_shuffle_f32x4::<0b11_01_11_01>(low, low2);
                out[12 + k] = _mm512_shuffle_f32x4::<0b11_01_11_01>(high, high2);
            }
            out.map(L512)
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn partner(self) -> Self {
            L512(_mm512_shuffle_f32x4::<0b10_11_00_01>(self.0, self.0))
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn where_greater(self, b: Self, new: Self, old: Self) -> Self {
            L512(_mm512_mask_mov_ps(old.0, _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, b.0), new.0))
        }
        // SAFETY: needs the CPU's features, as [`Lanes`] says.
        unsafe fn sum(self) -> f32 {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}
