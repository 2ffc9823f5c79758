//! A chunk of sixteen rows, from their bytes to a lane each.
//!
//! Bytes are turned before they become weights: a turn moves words of four bytes, whatever they mean, and there are half as
//! many words of packed nibbles as of weights. Sixteen bytes of each row are loaded into their 128-bit place, so that only
//! words inside 128 bits are left to turn.
//!
//! Must not know: panels, tokens.

#![expect(clippy::needless_range_loop, reason = "words, halves and rows are numbers of places in several registers")]

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::super::bytes::MXFP4_UNSIGNED;
use super::super::driver::{Form, Registers, Unpack};
use super::step::Q3_K_OFFSET;
use super::{Avx512, Simd, Wide, high4, load16, look_up, low4, transpose};
use crate::quant::GgmlType;
use crate::quant::act::{LANES, SPANS};
use crate::quant::block::IQ4_VALUES;

/// Where a chunk of sixteen rows goes.
pub(super) trait Cells {
    /// Whether words of nibbles go as they are, for two spans: what is stored and read again is nearly half then.
    const PACKED: bool;
    /// Four weights of each row: word `k` of span `s`. Where [`Cells::PACKED`], these are low nibbles, and the high ones are
    /// the next span's, which has no words of its own.
    fn word(&mut self, s: usize, k: usize, weights: __m512i);
    /// Each row's scale of span `s`.
    fn scale(&mut self, s: usize, scales: __m512);
    /// Each row's minimum of span `s`, where there are minima.
    fn min(&mut self, s: usize, minima: __m512);
    /// Each row's scale of half `half` of span `s`, a whole number, where weights are not multiplied by it (Q6_K).
    fn half_scale(&mut self, s: usize, half: usize, scales: __m512);
    /// Each row's minima of the halves of span `s`, whole numbers of 16 bits, where there are such (Q2_K).
    fn half_minima(&mut self, s: usize, minima: __m512i);
}

/// No byte: see `spread`.
const ZERO: usize = usize::MAX;

/// [`Unpack::BYTES`] bytes of each of sixteen rows, `stride` bytes apart: one base and one distance stay in registers where
/// sixteen slices do not.
pub(super) struct Rows<'a, B> {
    bytes: &'a [u8],
    stride: usize,
    of: PhantomData<B>,
}

impl<'a, B: Unpack<Wide>> Rows<'a, B> {
    /// # Panics
    /// Where `bytes` ends before the last row's do.
    #[inline(always)]
    pub fn new(bytes: &'a [u8], stride: usize) -> Self {
        assert!((LANES - 1) * stride + B::BYTES <= bytes.len(), "a chunk of each row");
        Rows { bytes, stride, of: PhantomData }
    }

    /// Byte `at` of row `i`.
    ///
    /// # Safety
    /// `i` is below sixteen, and `at` no further than the row's bytes.
    #[inline(always)]
    unsafe fn at(&self, i: usize, at: usize) -> *const u8 {
        // SAFETY: by `new`.
        unsafe { self.bytes.as_ptr().add(i * self.stride).add(at) }
    }

    #[inline(always)]
    fn row(&self, i: usize) -> &'a [u8] {
        &self.bytes[i * self.stride..][..B::BYTES]
    }
}

avx512! {
    /// Reads a chunk of sixteen rows, the first [`Unpack::BYTES`] bytes of each.
    pub(super) fn unpack<B: Unpack<Wide>, C: Cells>(rows: &Rows<'_, B>, out: &mut C) {
        match B::TYPE {
            GgmlType::Q4_0 => nibbles::<B>(rows, 18, 2, out, |x| x),
            GgmlType::Q4_1 => nibbles::<B>(rows, 20, 4, out, |x| x),
            GgmlType::IQ4_NL => nibbles::<B>(rows, 18, 2, out, |x| signed(look_up(IQ4_VALUES, x))),
            GgmlType::IQ4_XS => nibbles::<B>(rows, 16, 8, out, |x| signed(look_up(IQ4_VALUES, x))),
            GgmlType::MXFP4 => nibbles::<B>(rows, 17, 1, out, |x| look_up(MXFP4_UNSIGNED, x)),
            GgmlType::Q8_0 => {
                for s in 0..SPANS {
                    for half in 0..2 {
                        let words = four::<B>(rows, 34 * s + 2 + 16 * half);
                        (0..4).for_each(|k| out.word(s, 4 * half + k, signed(words[k])));
                    }
                }
                scales_by_row::<B>(rows, out);
            }
            GgmlType::Q4_K => {
                for s in (0..SPANS).step_by(2) {
                    for half in 0..2 {
                        let words = four::<B>(rows, 16 + 16 * s + 16 * half);
                        for k in 0..4 {
                            if C::PACKED {
                                out.word(s, 4 * half + k, words[k]);
                            } else {
                                out.word(s, 4 * half + k, low4(words[k]));
                                out.word(s + 1, 4 * half + k, high4(words[k]));
                            }
                        }
                    }
                }
                scales_k4::<B>(rows, out);
            }
            GgmlType::Q5_K => {
                let high: [_; 2] = std::array::from_fn(|half| four::<B>(rows, 16 + 16 * half));
                for s in (0..SPANS).step_by(2) {
                    for half in 0..2 {
                        let words = four::<B>(rows, 48 + 16 * s + 16 * half);
                        for k in 0..4 {
                            let fifth = |s: usize| bits(high[half][k], s, 1, 4);
                            out.word(s, 4 * half + k, _mm512_or_si512(low4(words[k]), fifth(s)));
                            out.word(s + 1, 4 * half + k, _mm512_or_si512(high4(words[k]), fifth(s + 1)));
                        }
                    }
                }
                scales_k4::<B>(rows, out);
            }
            GgmlType::Q6_K => {
                for n in 0..2 {
                    for half in 0..2 {
                        let low: [_; 2] = std::array::from_fn(|i| four::<B>(rows, 64 * n + 32 * i + 16 * half));
                        let high = four::<B>(rows, 128 + 32 * n + 16 * half);
                        for k in 0..4 {
                            let mut word = |s: usize, low: __m512i| {
                                out.word(4 * n + s, 4 * half + k, _mm512_or_si512(low, bits(high[k], 2 * s, 2, 4)));
                            };
                            word(0, low4(low[0][k]));
                            word(1, low4(low[1][k]));
                            word(2, high4(low[0][k]));
                            word(3, high4(low[1][k]));
                        }
                    }
                }
                scales_q6_k::<B>(rows, out);
            }
            GgmlType::Q2_K => q2_k::<B>(rows, out),
            GgmlType::Q3_K => q3_k::<B>(rows, out),
            _ => {
                words_by_row::<B>(rows, out);
                scales_by_row::<B>(rows, out);
            }
        }
    }

    /// Eight blocks of 32 weights, `stride` bytes apart: 16 bytes from `first` on, low nibbles before high ones.
    fn nibbles<B: Unpack<Wide>>(
        rows: &Rows<'_, B>,
        stride: usize,
        first: usize,
        out: &mut impl Cells,
        value: impl Fn(__m512i) -> __m512i,
    ) {
        for s in 0..SPANS {
            let words = four::<B>(rows, stride * s + first);
            for k in 0..4 {
                out.word(s, k, value(low4(words[k])));
                out.word(s, k + 4, value(high4(words[k])));
            }
        }
        scales_by_row::<B>(rows, out);
    }

    /// Weights times the scales of their halves, at most 45, and the halves' minima.
    fn q2_k<B: Unpack<Wide>>(rows: &Rows<'_, B>, out: &mut impl Cells) {
        let both = four::<B>(rows, 0); // of half `i`: nibbles of byte `i`
        for n in 0..2 {
            for half in 0..2 {
                let words = four::<B>(rows, 16 + 32 * n + 16 * half);
                for j in 0..4 {
                    let scale = low4(spread(both[2 * n + j / 2], [2 * (j % 2) + half, ZERO, 2 * (j % 2) + half, ZERO]));
                    for k in 0..4 {
                        // Two bytes at a time: a product leaves none over to the next byte.
                        let product = _mm512_mullo_epi16(bits(words[k], 2 * j, 2, 0), scale);
                        out.word(4 * n + j, 4 * half + k, product);
                    }
                }
            }
        }
        let [.., last] = four::<B>(rows, B::BYTES - 16);
        let (d, dmin) = (lower_halves(last), upper_halves(last));
        for s in 0..SPANS {
            out.scale(s, d);
            out.min(s, dmin);
            out.half_minima(s, high4(spread(both[s / 2], [2 * (s % 2), ZERO, 2 * (s % 2) + 1, ZERO])));
        }
    }

    /// Weights times the scales of their halves, plus [`Q3_K_OFFSET`].
    fn q3_k<B: Unpack<Wide>>(rows: &Rows<'_, B>, out: &mut impl Cells) {
        let [_, a, b, c] = four::<B>(rows, 92);
        let [.., last] = four::<B>(rows, B::BYTES - 16);
        let high: [_; 2] = std::array::from_fn(|half| four::<B>(rows, 16 * half));
        let each = |x| _mm512_set1_epi8(x);
        // Of scale `i`: byte `i % 4` of register `i / 4`, as [`crate::quant::block::scales_k3`].
        let scales = [low4(a), low4(b), high4(a), high4(b)];
        let parts: [_; 4] = std::array::from_fn(|i| {
            let scale = _mm512_sub_epi8(_mm512_or_si512(scales[i], bits(c, 2 * i, 2, 4)), each(32));
            let size = _mm512_abs_epi8(scale);
            let below = _mm512_movm_epi8(_mm512_movepi8_mask(scale));
            // (q - 4) * scale + 124 is q * size + 124 - 4 * size, or, for a scale below zero, (7 - q) * size + 124 - 3 * size.
            let flip = _mm512_and_si512(below, each(7));
            let least = _mm512_sub_epi8(each(Q3_K_OFFSET as i8), bits(size, 0, 6, 2));
            (size, flip, _mm512_add_epi8(least, _mm512_and_si512(below, size)))
        });
        for n in 0..2 {
            for half in 0..2 {
                let words = four::<B>(rows, 32 + 32 * n + 16 * half);
                for j in 0..4 {
                    let s = 4 * n + j;
                    let (size, flip, least) = parts[s / 2];
                    let i = 2 * (s % 2) + half;
                    let size = spread(size, [i, ZERO, i, ZERO]);
                    let (flip, least) = (spread(flip, [i; 4]), spread(least, [i; 4]));
                    for k in 0..4 {
                        let q = _mm512_or_si512(bits(words[k], 2 * j, 2, 0), bits(high[half][k], s, 1, 2));
                        // Two bytes at a time: a product, at most 224, leaves none over to the next byte.
                        let product = _mm512_mullo_epi16(_mm512_xor_si512(q, flip), size);
                        out.word(s, 4 * half + k, _mm512_add_epi8(product, least));
                    }
                }
            }
        }
        let d = upper_halves(last);
        (0..SPANS).for_each(|s| out.scale(s, d));
    }

    /// In each word, the bytes of it that are named, or [`ZERO`].
    fn spread(x: __m512i, bytes: [usize; 4]) -> __m512i {
        let index: [i8; 16] = std::array::from_fn(|i| match bytes[i % 4] {
            ZERO => -1,
            byte => (i / 4 * 4 + byte) as i8,
        });
        _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(load16(&index, 0)))
    }

    /// `n` bits of each byte from bit `from` on, moved to bit `to`.
    fn bits(x: __m512i, from: usize, n: usize, to: usize) -> __m512i {
        // Bits of the neighbouring byte, which 16-bit shifts bring, are masked.
        let moved = if from >= to {
            _mm512_srl_epi16(x, _mm_cvtsi64_si128((from - to) as i64))
        } else {
            _mm512_sll_epi16(x, _mm_cvtsi64_si128((to - from) as i64))
        };
        _mm512_and_si512(moved, _mm512_set1_epi8((((1 << n) - 1) << to) as i8))
    }

    /// [`Simd::from_signed`] of 64 weights.
    fn signed(x: __m512i) -> __m512i {
        _mm512_xor_si512(x, _mm512_set1_epi8(-128))
    }

    /// Words of sixteen bytes of each row, from `at` on: the first ones of all rows, the second ones, …
    fn four<B: Unpack<Wide>>(rows: &Rows<'_, B>, at: usize) -> [__m512i; 4] {
        assert!(at + 16 <= B::BYTES, "bytes of a chunk");
        // SAFETY: rows have `BYTES` bytes, by `Rows::new`.
        let load = |i: usize| unsafe { _mm_loadu_si128(rows.at(i, at).cast()) };
        // No `from_fn` here: it is not always inlined, which cost 4 % of a prompt.
        let mut parts = [_mm512_setzero_si512(); 4];
        for (i, parts) in parts.iter_mut().enumerate() {
            *parts = _mm512_castsi128_si512(load(i));
            *parts = _mm512_inserti32x4::<1>(*parts, load(4 + i));
            *parts = _mm512_inserti32x4::<2>(*parts, load(8 + i));
            *parts = _mm512_inserti32x4::<3>(*parts, load(12 + i));
        }
        transpose(parts)
    }

    /// The halves in each word's lower two bytes.
    fn lower_halves(x: __m512i) -> __m512 {
        _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x))
    }

    /// The halves in each word's upper two bytes.
    fn upper_halves(x: __m512i) -> __m512 {
        lower_halves(_mm512_srli_epi32::<16>(x))
    }

    /// Scales and minima of Q4_K and Q5_K: two halves and twelve bytes of six bits each.
    fn scales_k4<B: Unpack<Wide>>(rows: &Rows<'_, B>, out: &mut impl Cells) {
        let [both, a, b, c] = four::<B>(rows, 0);
        let (d, dmin) = (lower_halves(both), upper_halves(both));
        let low6 = |x| _mm512_and_si512(x, _mm512_set1_epi8(63));
        let top2 = |x| bits(x, 6, 2, 4);
        let scales = [low6(a), _mm512_or_si512(low4(c), top2(a))];
        let minima = [low6(b), _mm512_or_si512(high4(c), top2(b))];
        let float = |four: __m512i, s: usize| {
            let byte = _mm512_srlv_epi32(four, _mm512_set1_epi32(8 * (s as i32 % 4)));
            _mm512_cvtepi32_ps(_mm512_and_si512(byte, _mm512_set1_epi32(255)))
        };
        for s in 0..SPANS {
            out.scale(s, _mm512_mul_ps(d, float(scales[s / 4], s)));
            out.min(s, _mm512_mul_ps(dmin, float(minima[s / 4], s)));
        }
    }

    /// Scales of Q6_K: sixteen signed bytes, and a half behind them.
    fn scales_q6_k<B: Unpack<Wide>>(rows: &Rows<'_, B>, out: &mut impl Cells) {
        let of_halves = four::<B>(rows, 192);
        let [.., last] = four::<B>(rows, B::BYTES - 16);
        let d = upper_halves(last);
        for s in 0..SPANS {
            out.scale(s, d);
            for half in 0..2 {
                // Byte `2 * s + half`, with its sign.
                let top = _mm512_sllv_epi32(of_halves[s / 2], _mm512_set1_epi32(24 - 8 * (2 * (s as i32 % 2) + half as i32)));
                out.half_scale(s, half, _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top)));
            }
        }
    }

    /// Scales as a row has them, turned.
    fn scales_by_row<B: Unpack<Wide>>(rows: &Rows<'_, B>, out: &mut impl Cells) {
        let mut floats = [const { MaybeUninit::uninit() }; LANES]; // scales of eight spans, then minima
        for i in 0..LANES {
            // SAFETY: the CPU has the features, or this would not run.
            let both = unsafe {
                let row = B::unpack(rows.row(i));
                Wide::join([row.scale, row.min])
            };
            floats[i].write(_mm512_castps_si512(both.0));
        }
        let min = matches!(B::FORM, Form::Min);
        // SAFETY: every row has been written.
        unsafe {
            turn(&floats, |i, floats| match i {
                0..SPANS => out.scale(i, _mm512_castsi512_ps(floats)),
                _ if min => out.min(i - SPANS, _mm512_castsi512_ps(floats)),
                _ => {}
            });
        }
    }

    /// Weights as a row has them, turned.
    fn words_by_row<B: Unpack<Wide>>(rows: &Rows<'_, B>, out: &mut impl Cells) {
        let mut runs = [[const { MaybeUninit::uninit() }; LANES]; 4];
        for i in 0..LANES {
            // SAFETY: the CPU has the features, or this would not run.
            let row = unsafe {
                let w = B::unpack(rows.row(i)).w;
                if matches!(B::FORM, Form::Signed) { Avx512::from_signed(w) } else { w }
            };
            for (runs, run) in runs.iter_mut().zip(row) {
                runs[i].write(run);
            }
        }
        for (v, runs) in runs.iter().enumerate() {
            // SAFETY: every row has been written.
            unsafe { turn(runs, |i, words| out.word(v + i / 8 * 4, i % 8, words)) }
        }
    }

    /// Sixteen rows by sixteen words; `out` gets words `i` of all rows.
    ///
    /// # Safety
    /// All rows are written.
    unsafe fn turn(rows: &[MaybeUninit<__m512i>; LANES], mut out: impl FnMut(usize, __m512i)) {
        // SAFETY: the caller's promise.
        let row = |i: usize| unsafe { rows[i].assume_init() };
        let quads: [_; 4] = std::array::from_fn(|i| transpose([row(4 * i), row(4 * i + 1), row(4 * i + 2), row(4 * i + 3)]));
        // Words inside 128-bit parts are in place; now the parts themselves, twice.
        for k in 0..4 {
            let even = |i: usize| _mm512_shuffle_i32x4::<0b10_00_10_00>(quads[i][k], quads[i + 1][k]);
            let odd = |i: usize| _mm512_shuffle_i32x4::<0b11_01_11_01>(quads[i][k], quads[i + 1][k]);
            let [a, b, c, d] = [even(0), even(2), odd(0), odd(2)];
            out(k, _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b));
            out(4 + k, _mm512_shuffle_i32x4::<0b10_00_10_00>(c, d));
            out(8 + k, _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b));
            out(12 + k, _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d));
        }
    }
}
