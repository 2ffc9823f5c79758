//! One token: weights stay in the order in which they lie, for which its activations are reordered beforehand.
//!
//! What is turned then are the sums: three instructions for a chunk of a row, where turning weights takes eight, and spreading
//! blocks of nibbles sixteen, for which two pick them up here, or none. They are whole numbers, so the bits are the driver's. One
//! core of Zen 5 went at 101 % of a plain read's rate out of memory with IQ4_XS, not 92.
//!
//! Tried for others: Q4_1 at 97 %, not 93, in models no faster; out of the caches Q4_0 and IQ4_NL became 1.3 times as fast, Q4_K 1.1, MXFP4 1.04; out of memory, which
//! bound them before, Q4_0 stayed as fast, Q4_K and IQ4_NL became 1 to 3 % slower, MXFP4 7 %, and models no faster.
//!
//! Must not know: how many rows there are.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::avx2::{half, scales_iq4_xs};
use super::super::bytes::sized;
use super::super::driver::{self, Simd, Unpack, Weights};
use super::{Avx512, IQ4_UNSIGNED, L512, W512, Wide, high4, load64, look_up, low4, transpose};
use crate::quant::act::{ActChunk, ActRow, LANES, SPANS};
use crate::quant::block::IQ4_XS;
use crate::quant::{GgmlType, QMat};

/// Whether a type has an order of its own: of 128-bit parts, register 0 has the first halves of spans 0 to 3, register 1 their
/// second halves, registers 2 and 3 those of spans 4 to 7, as low and high nibbles of four blocks are.
const fn has_order(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::IQ4_XS)
}

/// For `vpermd`: both rows' lanes in the spans' order. Part `i` has spans `i` and `i + 4` of the first row, then of the second.
const IN_ORDER: [u32; LANES] = {
    let (mut index, mut i) = ([0; LANES], 0);
    while i < LANES {
        let (row, span) = (i / SPANS, i % SPANS);
        index[i] = (span % 4 * 4 + row * 2 + span / 4) as u32;
        i += 1;
    }
    index
};

/// [`Avx512`] with weights in the order that [`has_order`] says, and activations that [`reordered`] gave.
struct One;

/// [`super::super::MatMul`] for few tokens.
// SAFETY: needs the CPU's features and what [`super::super::MatMul`] asks for.
#[inline(always)]
pub(super) unsafe fn matmul<B: Unpack<Wide>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8]) {
    // SAFETY: the caller's promise is the same.
    unsafe {
        match *x {
            [x] if const { has_order(B::TYPE) } && x.chunks.len() <= driver::CHUNKS_OF_ONE => {
                driver::matmul_one::<One, B>(w, x, y[0], then, |x| reordered(x));
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
            let second = product(product(_mm512_setzero_si512(), 2), 3);
            // In each 128-bit part: a span of the first, one of the second, the same again.
            _mm512_add_epi32(_mm512_unpacklo_epi32(first, second), _mm512_unpackhi_epi32(first, second))
        }
        // SAFETY: needs the CPU's features, as [`Simd`] says.
        unsafe fn fold<B: Unpack<Wide>>([a, b]: [__m512i; 2]) -> L512 {
            let sum = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
            // SAFETY: the array has sixteen words.
            let index = unsafe { _mm512_loadu_si512(IN_ORDER.as_ptr().cast()) };
            L512(_mm512_cvtepi32_ps(_mm512_permutexvar_epi32(index, sum)))
        }
    }
    // Inlined in any case, and so without closures, which would not be.
    // SAFETY: needs the CPU's features, as [`Simd`] says.
    #[inline(always)]
    unsafe fn unpack<B: Unpack<Wide>>(bytes: [&[u8]; 2]) -> Weights<Wide> {
        // SAFETY: the caller's promise is the same.
        unsafe {
            let (w, scale, min) = match B::TYPE {
                GgmlType::IQ4_XS => {
                    let (a, b) = (sized::<{ IQ4_XS::BYTES }>(bytes[0]), sized::<{ IQ4_XS::BYTES }>(bytes[1]));
                    ([values(a), values(b)], scales_of(a, b), _mm512_setzero_ps())
                }
                _ => unreachable!("a type in the usual order"),
            };
            Weights { w, scale: L512(scale), min: L512(min), fine: [MaybeUninit::uninit(); 2] }
        }
    }
}

avx512! {
    /// A chunk with its integers in the order that [`has_order`] says.
    fn reordered(x: &ActChunk) -> ActChunk {
        // 128-bit parts of register `j`: first and second half of span `j`, and of `j + 4`.
        let t = transpose([load64(&x.q, 0), load64(&x.q, 64), load64(&x.q, 128), load64(&x.q, 192)]);
        let lower = |a, b| _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b); // parts 0 and 2 of each
        let upper = |a, b| _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
        // First halves of spans a, a + 4, b, b + 4; once more, those of a, b, c, d and of a + 4 ….
        let (first, second) = ([lower(t[0], t[1]), lower(t[2], t[3])], [upper(t[0], t[1]), upper(t[2], t[3])]);
        let of_first = [lower(first[0], first[1]), lower(second[0], second[1])];
        let of_last = [upper(first[0], first[1]), upper(second[0], second[1])];
        let mut out = *x;
        for (to, q) in out.q.as_chunks_mut::<64>().0.iter_mut().zip(of_first.into_iter().chain(of_last)) {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), q) }
        }
        out
    }

    fn nibbles([a, b]: [__m512i; 2]) -> W512 {
        [low4(a), high4(a), low4(b), high4(b)]
    }

    /// IQ4_XS's weights, whose nibbles lie block by block without gaps.
    fn values(b: &[u8; IQ4_XS::BYTES]) -> W512 {
        let [c, d, e, f] = nibbles([load64(b, 8), load64(b, 72)]);
        [look_up(IQ4_UNSIGNED, c), look_up(IQ4_UNSIGNED, d), look_up(IQ4_UNSIGNED, e), look_up(IQ4_UNSIGNED, f)]
    }

    /// IQ4_XS's scales of both rows.
    fn scales_of(a: &[u8; IQ4_XS::BYTES], b: &[u8; IQ4_XS::BYTES]) -> __m512 {
        let (first, second) = (_mm256_mul_ps(half(a, 0), scales_iq4_xs(a)), _mm256_mul_ps(half(b, 0), scales_iq4_xs(b)));
        _mm512_insertf32x8::<1>(_mm512_castps256_ps512(first), second)
    }
}
