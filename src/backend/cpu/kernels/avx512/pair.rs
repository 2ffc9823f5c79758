//! A chunk of two rows at once, for types of which that takes fewer instructions than one row after the other.
//!
//! Must not know: loops over rows and tokens.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::avx2::load16;
use super::super::bytes::{sized, u16_at, u32_at};
use super::super::driver::{Form, Unpack, Weights, offset};
use super::sixteen::upper_halves;
use super::{Avx512, L512, W512, Wide, load64, nibble_blocks, none, transpose};
use crate::quant::act::{ActChunk, LANES, SPANS, lane, span_of};
use crate::quant::block::{Q2_K, Q3_K, Q5_0, Q5_1};

// What `fine` relies on.
const _: () =
    assert!(((1 << <Q3_K as Unpack<Wide>>::BITS) - 1) * 127 * 16 <= i16::MAX as u32, "sums of halves are words");

/// For `vpermt2w`: the halves of two rows' spans, out of two registers that have them in [`ActChunk`]'s lanes, as words in the
/// spans' order.
const HALVES: [u8; 64] = halves(2 * LANES);

/// For `vpermw`: the same out of one register for both rows.
const SAME_HALVES: [u8; 64] = halves(0);

/// `second`: where the second row's words are.
const fn halves(second: usize) -> [u8; 64] {
    let (mut index, mut i) = ([0; 64], 0);
    while i < 2 * LANES {
        let (row, span, half) = (i / LANES, i / 2 % SPANS, i % 2);
        index[2 * i] = (row * second + 2 * (lane(span) + 4 * half)) as u8;
        i += 1;
    }
    index
}

/// How to pick, for each of a chunk's lanes, the sixteen bits that its weights have of a block's, and above them, for a lane with
/// first halves, the block's scale, otherwise its minimum. Blocks as `fives` has them.
struct Fives<const BITS: usize, const MIN: usize, const STRIDE: usize, const N: usize>;

impl<const BITS: usize, const MIN: usize, const STRIDE: usize, const N: usize> Fives<BITS, MIN, STRIDE, N> {
    /// Little-endian words for `vpermt2w`: the first four blocks out of the first 128 bytes, the others out of the last 128.
    const INDEX: [u8; 64] = {
        let (mut index, mut at) = ([0; 64], 0);
        while at < LANES {
            let (span, second) = (span_of(at), at / 4 % 2);
            let block = span * STRIDE - if span < 4 { 0 } else { N - 128 };
            index[4 * at] = ((block + BITS + 2 * second) / 2) as u8;
            index[4 * at + 2] = ((block + second * MIN) / 2) as u8;
            at += 1;
        }
        index
    };

    avx512! {
        fn pick(bytes: &[u8; N]) -> __m512i {
            let index = load64(&Self::INDEX, 0);
            let first = _mm512_permutex2var_epi16(load64(bytes, 0), index, load64(bytes, 64));
            let last = _mm512_permutex2var_epi16(load64(bytes, N - 128), index, load64(bytes, N - 64));
            _mm512_mask_blend_epi32(0xff00, first, last)
        }
    }
}

avx512! {
    /// Sixteen bytes of each row.
    fn two16<const N: usize>(a: &[u8; N], b: &[u8; N], at: usize) -> __m256i {
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load16(a, at)), load16(b, at))
    }

    /// Two floats, of 16 bits, of each row.
    fn floats(a: u32, b: u32) -> __m128 {
        _mm_cvtph_ps(_mm_setr_epi32(a as i32, b as i32, 0, 0))
    }

    /// The first or second of [`floats`] of each row, to its eight lanes.
    fn spread(floats: __m128, which: i32) -> L512 {
        let index = _mm512_inserti64x4::<1>(_mm512_set1_epi32(which), _mm256_set1_epi32(which + 2));
        L512(_mm512_permutexvar_ps(index, _mm512_castps128_ps512(floats)))
    }

    /// Runs are two bits of the same bytes, so one shuffle for each register gives their order. The bits stay in their places:
    /// run `i` is 4^i times as large, and its lanes' sums are, until [`fine`] shifts them, which for one token are fewer.
    fn words_q2_k(b: &[u8; Q2_K::BYTES]) -> W512 {
        let x = load64(b, 16);
        let runs = _mm_setr_epi32(0x0303_0303, 0x0c0c_0c0c, 0x3030_3030, 0xc0c0_c0c0_u32 as i32);
        let runs = _mm512_broadcast_i32x4(runs);
        [
            _mm512_and_si512(_mm512_shuffle_epi32::<0b00_00_00_00>(x), runs),
            _mm512_and_si512(_mm512_shuffle_epi32::<0b01_01_01_01>(x), runs),
            _mm512_and_si512(_mm512_shuffle_epi32::<0b10_10_10_10>(x), runs),
            _mm512_and_si512(_mm512_shuffle_epi32::<0b11_11_11_11>(x), runs),
        ]
    }

    pub(super) fn q2_k([a, b]: [&[u8]; 2]) -> Weights<Wide> {
        let (a, b) = (sized::<{ Q2_K::BYTES }>(a), sized::<{ Q2_K::BYTES }>(b));
        let both = two16(a, b, 0);
        let nibble = _mm256_set1_epi8(15);
        let scales = _mm256_and_si256(both, nibble);
        let minima = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble);
        let floats = floats(u32_at(a, 80), u32_at(b, 80)); // the scale and the minimum
        Weights {
            w: [words_q2_k(a), words_q2_k(b)],
            scale: spread(floats, 0),
            min: spread(floats, 1),
            fine: [MaybeUninit::new([_mm512_cvtepu8_epi16(scales), _mm512_cvtepu8_epi16(minima)]), MaybeUninit::uninit()],
        }
    }

    pub(super) fn q3_k([a, b]: [&[u8]; 2]) -> Weights<Wide> {
        // SAFETY: the CPU has the features, or this would not run.
        let (row_a, row_b) = unsafe { (<Q3_K as Unpack<Wide>>::unpack(a), <Q3_K as Unpack<Wide>>::unpack(b)) };
        let (a, b) = (sized::<{ Q3_K::BYTES }>(a), sized::<{ Q3_K::BYTES }>(b));
        // Three words, the last sixteen bytes but two: as `bytes::scales_k3` has them.
        let both = two16(a, b, 94);
        let low = _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9);
        let low = _mm256_shuffle_epi8(both, _mm256_broadcastsi128_si256(low));
        let low = _mm256_srlv_epi32(low, _mm256_setr_epi32(0, 0, 4, 4, 0, 0, 4, 4));
        let high = _mm_setr_epi8(10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13);
        let high = _mm256_shuffle_epi8(both, _mm256_broadcastsi128_si256(high));
        let high = _mm256_rolv_epi32(high, _mm256_setr_epi32(4, 2, 0, 30, 4, 2, 0, 30));
        // Low nibbles of one, all else of the other.
        let six = _mm256_ternarylogic_epi32::<0xca>(_mm256_set1_epi8(0x0f), low, high);
        let six = _mm256_and_si256(six, _mm256_set1_epi8(0x3f));
        let scales = _mm512_cvtepi8_epi16(_mm256_sub_epi8(six, _mm256_set1_epi8(32)));
        let floats = floats(u32::from(u16_at(a, 108)), u32::from(u16_at(b, 108)));
        Weights {
            w: [transpose(row_a.w), transpose(row_b.w)],
            scale: spread(floats, 0),
            min: L512(_mm512_setzero_ps()),
            fine: [MaybeUninit::new([scales, none()]), MaybeUninit::uninit()],
        }
    }

    pub(super) fn q5_0([a, b]: [&[u8]; 2]) -> Weights<Wide> {
        fives::<2, 0, 22, _>(sized::<{ Q5_0::BYTES }>(a), sized::<{ Q5_0::BYTES }>(b))
    }

    pub(super) fn q5_1([a, b]: [&[u8]; 2]) -> Weights<Wide> {
        fives::<4, 2, 24, _>(sized::<{ Q5_1::BYTES }>(a), sized::<{ Q5_1::BYTES }>(b))
    }

    /// Nibbles with a fifth bit each, in blocks of `STRIDE` bytes: the scale, the minimum at `MIN`, if there is one, 32 bits at
    /// `BITS`, nibbles.
    fn fives<const BITS: usize, const MIN: usize, const STRIDE: usize, const N: usize>(
        a: &[u8; N],
        b: &[u8; N],
    ) -> Weights<Wide> {
        let (bits_a, bits_b) = (Fives::<BITS, MIN, STRIDE, N>::pick(a), Fives::<BITS, MIN, STRIDE, N>::pick(b));
        // 128-bit parts: scales of four spans, minima of four, of the other four.
        let (floats_a, floats_b) = (upper_halves(bits_a), upper_halves(bits_b));
        let min = _mm512_shuffle_f32x4::<0b11_01_11_01>(floats_a, floats_b);
        let nibbles = |row| transpose(nibble_blocks(row, BITS + 4, STRIDE));
        Weights {
            w: [with_fifth(nibbles(a), bits_a), with_fifth(nibbles(b), bits_b)],
            scale: L512(_mm512_shuffle_f32x4::<0b10_00_10_00>(floats_a, floats_b)),
            min: L512(_mm512_xor_ps(min, _mm512_set1_ps(-0.0))),
            fine: [MaybeUninit::uninit(); 2],
        }
    }

    /// Sixteen more where a bit is set: of a lane's sixteen, four for each register, one for each of its bytes.
    fn with_fifth([a, b, c, d]: W512, bits: __m512i) -> W512 {
        let byte = |at| _mm512_broadcast_i32x4(_mm_setr_epi32(at, at + 0x0404_0404, at + 0x0808_0808, at + 0x0c0c_0c0c));
        let (first, second) = (_mm512_shuffle_epi8(bits, byte(0)), _mm512_shuffle_epi8(bits, byte(0x0101_0101)));
        let (low, high) = (_mm512_set1_epi32(0x0804_0201), _mm512_set1_epi32(0x8040_2010_u32 as i32));
        let sixteen = _mm512_set1_epi8(16);
        [
            _mm512_mask_add_epi8(a, _mm512_test_epi8_mask(first, low), a, sixteen),
            _mm512_mask_add_epi8(b, _mm512_test_epi8_mask(first, high), b, sixteen),
            _mm512_mask_add_epi8(c, _mm512_test_epi8_mask(second, low), c, sixteen),
            _mm512_mask_add_epi8(d, _mm512_test_epi8_mask(second, high), d, sixteen),
        ]
    }

    /// [`driver::fine`](super::super::driver::fine) for [`q2_k`] and [`q3_k`]. A half's sum of products fits 16 bits, so the
    /// halves of two rows' spans are 32 words, one register: `vpmaddwd` multiplies them by their scales and adds halves to spans,
    /// sixteen lanes as [`Weights::scale`] has them. Scales lie in the file as spans do, and need no other order.
    ///
    /// # Safety
    /// The CPU has the features; `w` is from one of the two.
    pub(super) unsafe fn fine<B: Unpack<Wide>>(w: &Weights<Wide>, x: &ActChunk, dots: [__m512i; 2]) -> L512 {
        // SAFETY: the caller's promise; a chunk has sixteen sums of halves.
        let ([scales, minima], h) = unsafe { (w.fine[0].assume_init(), _mm512_loadu_si512(x.h.as_ptr().cast())) };
        let [a, b] = dots;
        let (a, b) = match B::FORM {
            Form::Min => {
                let places = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 2, 4, 6));
                (_mm512_srav_epi32(a, places), _mm512_srav_epi32(b, places))
            }
            _ => {
                let offset = _mm512_set1_epi32(i32::from(const { offset::<Avx512, B>() }));
                let less = _mm512_mullo_epi32(h, offset);
                (_mm512_sub_epi32(a, less), _mm512_sub_epi32(b, less))
            }
        };
        let halves = _mm512_permutex2var_epi16(a, load64(&HALVES, 0), b);
        let sum = _mm512_mul_ps(w.scale.0, _mm512_cvtepi32_ps(_mm512_madd_epi16(halves, scales)));
        L512(match B::FORM {
            Form::Min => {
                let halves = _mm512_permutexvar_epi16(load64(&SAME_HALVES, 0), h);
                _mm512_fnmadd_ps(w.min.0, _mm512_cvtepi32_ps(_mm512_madd_epi16(halves, minima)), sum)
            }
            _ => sum,
        })
    }
}
