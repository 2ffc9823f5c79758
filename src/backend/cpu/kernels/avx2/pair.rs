//! A chunk of two rows in another order of lanes, for types of which that takes fewer instructions.
//!
//! For one token out of memory on a Zen 5 core, as shares of a plain read's rate: Q4_0 81 % and not 57, Q4_1 77 and not 61, IQ4_NL 58
//! and not 49, IQ4_XS 53 and not 46, MXFP4 56 and not 47, Q5_0 55 and not 50, Q5_1 as before (AVX2; with AVX-VNNI 86, 82, 67, 61,
//! 58, 55 and 50). Four tokens, whose activations take more loads: 2 to 6 % faster with AVX2, 5 to 8 % slower with AVX-VNNI.
//!
//! Tried for Q4_K and Q5_K: both rows' scales in vectors. no faster, since the integer units do them meanwhile.
//!
//! Must not know: loops over rows and tokens.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::bytes::{MXFP4_UNSIGNED, sized, u32_at};
use super::super::driver::{Form, Simd, Unpack, Weights, unpack};
use super::{L256, Narrow, W256, high4, load16, look_up, low4};
use crate::quant::GgmlType;
use crate::quant::act::ActChunk;
use crate::quant::block::{IQ4_NL, IQ4_VALUES, IQ4_XS, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1};

/// Whether a type's chunk is eight blocks with nibbles of a span each, first halves low and second ones high. Their lanes have an
/// order of their own: register `k` has word `k` of each first half, register `4 + k` of each second one, so that nibbles are
/// turned before they are taken apart, in half as many instructions, and halves of spans are added without a permutation.
/// [`activations`] has them so too.
pub(super) const fn by_blocks(ty: GgmlType) -> bool {
    use GgmlType::{IQ4_NL, IQ4_XS, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1};
    matches!(ty, Q4_0 | Q4_1 | Q5_0 | Q5_1 | IQ4_NL | IQ4_XS | MXFP4)
}

/// Two rows as [`Simd::unpack`] has them.
// SAFETY: needs the CPU's features.
#[inline(always)]
pub(super) unsafe fn rows<S: Simd<R = Narrow>, B: Unpack<Narrow>>(bytes: [&[u8]; 2]) -> Weights<Narrow> {
    // SAFETY: the caller checked the CPU.
    unsafe {
        if const { by_blocks(B::TYPE) } {
            let (a, scale_a, min_a) = blocks::<B>(bytes[0]);
            let (b, scale_b, min_b) = blocks::<B>(bytes[1]);
            let w = if matches!(B::FORM, Form::Signed) { [S::from_signed(a), S::from_signed(b)] } else { [a, b] };
            let (scale, min) = (L256(scale_a, scale_b), L256(min_a, min_b));
            return Weights { w, scale, min, fine: [MaybeUninit::uninit(); 2] };
        }
        unpack::<S, B>(bytes)
    }
}

avx2! {
    /// Word `k` of the activations of each span's first half, or second one.
    pub(super) fn activations(x: &ActChunk, half: usize, k: usize) -> __m256i {
        let at = 64 * k + 16 * half;
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load16(&x.q, at)), load16(&x.q, at + 32))
    }

    /// A chunk's weights in the order of [`by_blocks`], its spans' scales and minimums.
    fn blocks<B: Unpack<Narrow>>(bytes: &[u8]) -> (W256, __m256, __m256) {
        macro_rules! of {
            ($ty:ident, |$b:ident| $w:expr) => {{
                let $b = sized::<{ $ty::BYTES }>(bytes);
                let (scale, min) = $ty::scales($b);
                ($w, scale, min)
            }};
        }
        match B::TYPE {
            GgmlType::Q4_0 => of!(Q4_0, |b| nibbles(b, 2, 18)),
            GgmlType::Q4_1 => of!(Q4_1, |b| nibbles(b, 4, 20)),
            GgmlType::Q5_0 => of!(Q5_0, |b| with_fifth(nibbles(b, 6, 22), b, 2, 22)),
            GgmlType::Q5_1 => of!(Q5_1, |b| with_fifth(nibbles(b, 8, 24), b, 4, 24)),
            GgmlType::IQ4_NL => of!(IQ4_NL, |b| looked_up(IQ4_VALUES, nibbles(b, 2, 18))),
            GgmlType::IQ4_XS => of!(IQ4_XS, |b| looked_up(IQ4_VALUES, nibbles(b, 8, 16))),
            GgmlType::MXFP4 => of!(MXFP4, |b| looked_up(MXFP4_UNSIGNED, nibbles(b, 1, 17))),
            _ => unreachable!("see `by_blocks`"),
        }
    }

    /// The nibbles of eight blocks, 16 bytes each.
    fn nibbles<const N: usize>(bytes: &[u8; N], at: usize, stride: usize) -> W256 {
        let two = |i: usize| {
            let (low, high) = (load16(bytes, at + i * stride), load16(bytes, at + (i + 4) * stride));
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
        };
        let (a, b, c, d) = (two(0), two(1), two(2), two(3));
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (w0, w1) = (_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
        let (ab, cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        let (w2, w3) = (_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
        [low4(w0), low4(w1), low4(w2), low4(w3), high4(w0), high4(w1), high4(w2), high4(w3)]
    }

    fn looked_up(values: [i8; 16], w: W256) -> W256 {
        let of = |index| look_up(values, index);
        [of(w[0]), of(w[1]), of(w[2]), of(w[3]), of(w[4]), of(w[5]), of(w[6]), of(w[7])]
    }

    /// Sixteen more where a bit is set: of each block's 32, four for each register.
    fn with_fifth(mut w: W256, bytes: &[u8], at: usize, stride: usize) -> W256 {
        let bits = |i: usize| u32_at(bytes, at + i * stride) as i32;
        let bits = _mm256_setr_epi32(bits(0), bits(1), bits(2), bits(3), bits(4), bits(5), bits(6), bits(7));
        let byte = _mm256_broadcastsi128_si256(_mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c));
        for two in 0..4 {
            let spread = _mm256_shuffle_epi8(bits, _mm256_or_si256(byte, _mm256_set1_epi8(two as i8)));
            for one in 0..2 {
                let bit = _mm256_set1_epi32(if one == 0 { 0x0804_0201 } else { 0x8040_2010_u32 as i32 });
                let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
                let w = &mut w[2 * two + one];
                *w = _mm256_or_si256(*w, _mm256_and_si256(is_set, _mm256_set1_epi8(16)));
            }
        }
        w
    }
}
