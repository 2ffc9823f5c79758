//! One token: weights stay in the order in which they lie, for which its activations are reordered beforehand.
//!
//! What is turned then are the sums: three instructions for a chunk of a row, where turning weights takes eight, and spreading
//! blocks of nibbles sixteen, for which two pick them up here. They are whole numbers, so the bits are the driver's. From the
//! caches one core of Zen 5 became 1.3 times as fast with Q4_0, Q4_1 and IQ4_NL, 1.5 with IQ4_XS, 1.1 with Q4_K, 1.04 with MXFP4:
//! what arithmetic takes less is memory's where a core has a link of its own or shares its ports with another thread.
//!
//! Must not know: how many rows there are.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::avx2::{half, k4, scales_iq4_xs};
use super::super::bytes::{MXFP4_UNSIGNED, sized};
use super::super::driver::{self, Simd, Unpack, Weights};
use super::{Avx512, IQ4_UNSIGNED, L512, W512, Wide, exponents, high4, load64, look_up, low4, transpose, words};
use crate::quant::act::{ActChunk, ActRow, LANES, SPANS};
use crate::quant::block::{IQ4_NL, IQ4_XS, MXFP4, Q4_0, Q4_1, Q4_K};
use crate::quant::{GgmlType, QMat};

/// Which halves of spans the 128-bit parts of registers 0 to 3 have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// As [`driver`] has it.
    Usual,
    /// First halves of spans 0 to 3, their second halves, first halves of spans 4 to 7, their second halves: what low and high
    /// nibbles of four blocks are.
    Blocks,
    /// First halves of even spans, their second halves, first halves of odd spans, their second halves: what low and high
    /// nibbles of runs of 32 bytes are. High nibbles stay where they are, sixteen times as large.
    Runs,
}

impl Order {
    const fn of(ty: GgmlType) -> Order {
        match ty {
            GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::IQ4_NL | GgmlType::IQ4_XS | GgmlType::MXFP4 => Order::Blocks,
            GgmlType::Q4_K => Order::Runs,
            _ => Order::Usual,
        }
    }

    /// The span whose sums end in lane `i` of a row's eight.
    const fn span(self, i: usize) -> usize {
        match self {
            Order::Runs => i,
            _ => i / 2 + 4 * (i % 2),
        }
    }

    /// For `vpermd`: lanes of both rows in the spans' order, where a 128-bit part has two spans of the first row, then of the
    /// second.
    const fn in_order(self) -> [u32; LANES] {
        let (mut index, mut i) = ([0; LANES], 0);
        while i < LANES {
            let (row, lane) = (i / SPANS, i % SPANS);
            index[row * SPANS + self.span(lane)] = (lane / 2 * 4 + row * 2 + lane % 2) as u32;
            i += 1;
        }
        index
    }
}

/// [`Avx512`] with weights in [`Order::of`] their type, and activations that [`reordered`] gave.
struct One;

/// [`super::super::MatMul`] for few tokens.
// SAFETY: needs the CPU's features and what [`super::super::MatMul`] asks for.
#[inline(always)]
pub(super) unsafe fn matmul<B: Unpack<Wide>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8]) {
    let usual = const { matches!(Order::of(B::TYPE), Order::Usual) };
    // SAFETY: the caller's promise is the same.
    unsafe {
        match *x {
            [x] if !usual && x.chunks.len() <= driver::CHUNKS_OF_ONE => {
                driver::matmul_one::<One, B>(w, x, y[0], then, |x| reordered::<B>(x));
            }
            _ => driver::matmul::<Avx512, B>(w, x, y, then),
        }
    }
}

impl Simd for One {
    type R = Wide;
    const TOKENS: usize = Avx512::TOKENS;
    const SIGNED_OFFSET: u8 = Avx512::SIGNED_OFFSET;
    avx512! {
        // SAFETY: needs the CPU's features, as [`Simd`] says.
        unsafe fn from_signed(w: W512) -> W512 {
            // SAFETY: the caller's promise is the same.
            unsafe { Avx512::from_signed(w) }
        }
        // SAFETY: needs the CPU's features, as [`Simd`] says.
        unsafe fn dot<B: Unpack<Wide>>(w: &W512, x: &ActChunk) -> __m512i {
            let product = |sum, k: usize| _mm512_dpbusd_epi32(sum, w[k], load64(&x.q, 64 * k));
            let first = product(product(_mm512_setzero_si512(), 0), 1);
            let mut second = product(product(_mm512_setzero_si512(), 2), 3);
            if const { matches!(Order::of(B::TYPE), Order::Runs) } {
                second = _mm512_srai_epi32::<4>(second);
            }
            // In each 128-bit part: a span of the first, one of the second, the same again.
            _mm512_add_epi32(_mm512_unpacklo_epi32(first, second), _mm512_unpackhi_epi32(first, second))
        }
        // SAFETY: needs the CPU's features, as [`Simd`] says.
        unsafe fn fold<B: Unpack<Wide>>([a, b]: [__m512i; 2]) -> L512 {
            let sum = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
            let index = const { Order::of(B::TYPE).in_order() };
            // SAFETY: the array has sixteen words.
            let index = unsafe { _mm512_loadu_si512(index.as_ptr().cast()) };
            L512(_mm512_cvtepi32_ps(_mm512_permutexvar_epi32(index, sum)))
        }
    }
    // Inlined in any case, and so without closures, which would not be.
    // SAFETY: needs the CPU's features, as [`Simd`] says.
    #[inline(always)]
    unsafe fn unpack<B: Unpack<Wide>>(bytes: [&[u8]; 2]) -> Weights<Wide> {
        macro_rules! of {
            ($ty:ident, |$b:ident| $w:expr, |$two:ident| $scale:expr, $min:expr) => {{
                let $two = [sized::<{ $ty::BYTES }>(bytes[0]), sized::<{ $ty::BYTES }>(bytes[1])];
                let first = {
                    let $b = $two[0];
                    $w
                };
                let second = {
                    let $b = $two[1];
                    $w
                };
                ([first, second], $scale, $min)
            }};
        }
        // SAFETY: the caller's promise is the same.
        unsafe {
            let none = _mm512_setzero_ps();
            let (w, scale, min) = match B::TYPE {
                GgmlType::Q4_0 => of!(Q4_0, |b| nibbles(blocks::<2, 18, _>(b)), |two| floats::<0, 18, _>(two), none),
                GgmlType::Q4_1 => {
                    of!(Q4_1, |b| nibbles(blocks::<4, 20, _>(b)), |two| floats::<0, 20, _>(two), minima_q4_1(two))
                }
                GgmlType::IQ4_NL => of!(
                    IQ4_NL,
                    |b| looked_up(IQ4_UNSIGNED, nibbles(blocks::<2, 18, _>(b))),
                    |two| floats::<0, 18, _>(two),
                    none
                ),
                GgmlType::IQ4_XS => of!(
                    IQ4_XS,
                    |b| looked_up(IQ4_UNSIGNED, nibbles([load64(b, 8), load64(b, 72)])),
                    |two| join(scale_iq4_xs(two[0]), scale_iq4_xs(two[1])),
                    none
                ),
                GgmlType::MXFP4 => of!(
                    MXFP4,
                    |b| looked_up(MXFP4_UNSIGNED, nibbles(odd_blocks::<1, 17, _>(b))),
                    |two| scales_mxfp4(two),
                    none
                ),
                GgmlType::Q4_K => {
                    let (a, b) = (sized::<{ Q4_K::BYTES }>(bytes[0]), sized::<{ Q4_K::BYTES }>(bytes[1]));
                    let ((scale_a, min_a), (scale_b, min_b)) = (k4(a), k4(b));
                    ([runs(a), runs(b)], join(scale_a, scale_b), join(min_a, min_b))
                }
                _ => unreachable!("a type in the usual order"),
            };
            Weights { w, scale: L512(scale), min: L512(min), fine: [MaybeUninit::uninit(); 2] }
        }
    }
}

/// How to pick the nibbles of four blocks, sixteen bytes each from `at` on and `stride` apart, out of 128 bytes from `from` on:
/// little-endian words for `vpermt2w`.
const fn picked(at: usize, stride: usize, from: usize) -> [u8; 64] {
    let (mut index, mut i) = ([0; 64], 0);
    while i < 32 {
        index[2 * i] = ((at + i / 8 * stride - from) / 2 + i % 8) as u8;
        i += 1;
    }
    index
}

/// [`picked`] of a chunk of `N` bytes: blocks 0 to 3 out of the first 128 bytes, the others out of the last 128.
struct Picked<const AT: usize, const STRIDE: usize, const N: usize>;

impl<const AT: usize, const STRIDE: usize, const N: usize> Picked<AT, STRIDE, N> {
    const FIRST: [u8; 64] = picked(AT, STRIDE, 0);
    const LAST: [u8; 64] = picked(AT + 4 * STRIDE, STRIDE, N - 128);
    /// Out of the last but one.
    const ODD_LAST: [u8; 64] = picked(AT + 4 * STRIDE, STRIDE, N - 129);
}

avx512! {
    /// A chunk with its integers as [`Order::of`] `B` has weights.
    fn reordered<B: Unpack<Wide>>(x: &ActChunk) -> ActChunk {
        // 128-bit parts of register `j`: first and second half of span `j`, and of `j + 4`.
        let t = transpose([load64(&x.q, 0), load64(&x.q, 64), load64(&x.q, 128), load64(&x.q, 192)]);
        let lower = |a, b| _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b); // parts 0 and 2 of each
        let upper = |a, b| _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
        let q = if matches!(Order::of(B::TYPE), Order::Blocks) {
            // First halves of spans a, a + 4, b, b + 4; once more, those of a, b, c, d and of a + 4 ….
            let (first, second) = ([lower(t[0], t[1]), lower(t[2], t[3])], [upper(t[0], t[1]), upper(t[2], t[3])]);
            [lower(first[0], first[1]), lower(second[0], second[1]), upper(first[0], first[1]), upper(second[0], second[1])]
        } else {
            // Spans 0, 4, 2, 6 to 0, 2, 4, 6.
            let sorted = |x| _mm512_shuffle_i32x4::<0b11_01_10_00>(x, x);
            let both = |a, b| [sorted(lower(a, b)), sorted(upper(a, b))];
            let ([a, b], [c, d]) = (both(t[0], t[2]), both(t[1], t[3]));
            [a, b, c, d]
        };
        let mut out = *x;
        for (to, q) in out.q.as_chunks_mut::<64>().0.iter_mut().zip(q) {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), q) }
        }
        out
    }

    fn join(a: __m256, b: __m256) -> __m512 {
        _mm512_insertf32x8::<1>(_mm512_castps256_ps512(a), b)
    }

    /// The halves at `AT`, `AT + STRIDE`, … of eight blocks of both rows.
    fn floats<const AT: usize, const STRIDE: usize, const N: usize>([a, b]: [&[u8; N]; 2]) -> __m512 {
        let (a, b) = (words::<AT, STRIDE, N>(a), words::<AT, STRIDE, N>(b));
        _mm512_cvtph_ps(_mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b))
    }

    fn minima_q4_1(two: [&[u8; Q4_1::BYTES]; 2]) -> __m512 {
        _mm512_xor_ps(floats::<2, 20, _>(two), _mm512_set1_ps(-0.0))
    }

    fn scale_iq4_xs(b: &[u8; IQ4_XS::BYTES]) -> __m256 {
        _mm256_mul_ps(half(b, 0), scales_iq4_xs(b))
    }

    /// [`e8m0_half`](super::e8m0_half) of both rows' exponents.
    fn scales_mxfp4([a, b]: [&[u8; MXFP4::BYTES]; 2]) -> __m512 {
        let e = _mm512_cvtepu8_epi32(_mm_unpacklo_epi64(exponents(a), exponents(b)));
        let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
        let is_denormal = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
        _mm512_castsi512_ps(_mm512_mask_sllv_epi32(normal, is_denormal, _mm512_set1_epi32(0x0020_0000), e))
    }

    /// The nibbles of blocks 0 to 3 and 4 to 7, which begin at even addresses.
    fn blocks<const AT: usize, const STRIDE: usize, const N: usize>(bytes: &[u8; N]) -> [__m512i; 2] {
        const { assert!(AT.is_multiple_of(2) && STRIDE.is_multiple_of(2), "whole words") }
        let (first, last) = (Picked::<AT, STRIDE, N>::FIRST, Picked::<AT, STRIDE, N>::LAST);
        let (first, last) = (load64(&first, 0), load64(&last, 0));
        [
            _mm512_permutex2var_epi16(load64(bytes, 0), first, load64(bytes, 64)),
            _mm512_permutex2var_epi16(load64(bytes, N - 128), last, load64(bytes, N - 64)),
        ]
    }

    /// The nibbles of blocks 0 to 3 and 4 to 7, which begin at odd and even addresses by turns.
    fn odd_blocks<const AT: usize, const STRIDE: usize, const N: usize>(bytes: &[u8; N]) -> [__m512i; 2] {
        const { assert!(!AT.is_multiple_of(2) && !STRIDE.is_multiple_of(2), "whole words by turns") }
        let pick = |index: &[u8; 64], from: usize| {
            _mm512_permutex2var_epi16(load64(bytes, from), load64(index, 0), load64(bytes, from + 64))
        };
        let (first, last) = (Picked::<AT, STRIDE, N>::FIRST, Picked::<AT, STRIDE, N>::LAST);
        // Half a word on, and half a word less far.
        let (odd_first, odd_last) = (pick(&first, 1), pick(&Picked::<AT, STRIDE, N>::ODD_LAST, N - 129));
        [
            _mm512_mask_blend_epi64(0xcc, odd_first, pick(&first, 0)),
            _mm512_mask_blend_epi64(0xcc, odd_last, pick(&last, N - 128)),
        ]
    }

    fn nibbles([a, b]: [__m512i; 2]) -> W512 {
        [low4(a), high4(a), low4(b), high4(b)]
    }

    fn looked_up(values: [i8; 16], [a, b, c, d]: W512) -> W512 {
        [look_up(values, a), look_up(values, b), look_up(values, c), look_up(values, d)]
    }

    /// Q4_K's weights as [`Order::Runs`] has them.
    fn runs(bytes: &[u8; Q4_K::BYTES]) -> W512 {
        let (a, b) = (load64(bytes, 16), load64(bytes, 80));
        let (first, second) = (_mm512_shuffle_i32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b));
        let high = |x| _mm512_and_si512(x, _mm512_set1_epi8(-16));
        [low4(first), low4(second), high(first), high(second)]
    }
}
