//! A chunk of sixteen rows, from their bytes to a lane each.
//!
//! Bytes are turned before they become weights: a turn moves words of four bytes, whatever they mean, and there are half as
//! many words of packed nibbles as of weights. Sixteen bytes of each row are loaded into their 128-bit place, so that only
//! words inside 128 bits are left to turn. Nothing is where rows lie interleaved.
//!
//! Must not know: panels, tokens.

#![expect(clippy::needless_range_loop, reason = "words, halves and rows are numbers of places in several registers")]

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::super::bytes::MXFP4_UNSIGNED;
use super::super::driver::{Form, Registers, Unpack};
use super::step::Q3_K_OFFSET;
use super::{Avx512, IQ4_UNSIGNED, Simd, Wide, high4, load16, look_up, low4, transpose};
use crate::quant::GgmlType;
use crate::quant::act::{LANES, SPANS, WORDS};
use crate::quant::block::CHUNK;
use crate::quant::interleaved::{self, TILE_ROWS};

/// Runs the block for each number, one after another in the code: where places in registers depend on it, it must be a constant.
macro_rules! each {
    ($i:ident in [$($n:literal)*] $body:block) => { $( { let $i: usize = $n; $body } )* };
}

/// Where a chunk of sixteen rows goes: the scales of a span, then its weights.
pub(super) trait Cells {
    /// The weights of span `s`: word `k` has four of each row.
    ///
    /// # Safety
    /// The CPU has the features.
    unsafe fn span(&mut self, s: usize, words: [__m512i; WORDS]);
    /// The weights of half `half` of span `s`, where halves have scales that weights are not multiplied by (Q6_K).
    ///
    /// # Safety
    /// The CPU has the features.
    unsafe fn half(&mut self, s: usize, half: usize, words: [__m512i; WORDS / 2]);
    /// The weights of spans `s` and `s + 1`, in low and high nibbles.
    ///
    /// # Safety
    /// The CPU has the features.
    unsafe fn nibbles(&mut self, s: usize, words: [__m512i; WORDS]);
    /// Each row's scale of span `s`.
    fn scale(&mut self, s: usize, scales: __m512);
    /// Each row's minimum of span `s`, where there are minima.
    fn min(&mut self, s: usize, minima: __m512);
    /// Each row's scale of half `half` of span `s`, where weights are not multiplied by it.
    fn half_scale(&mut self, s: usize, half: usize, scales: __m512);
    /// Each row's minima of the halves of span `s`, whole numbers of 16 bits, where there are such (Q2_K).
    fn half_minima(&mut self, s: usize, minima: __m512i);
}

/// No byte: see `spread`.
const ZERO: usize = usize::MAX;

/// Where a chunk of sixteen rows comes from.
///
/// # Safety
/// Every method: the CPU has the features.
pub(super) trait Source {
    type B: Unpack<Wide>;
    /// Words of sixteen bytes of each row, from byte `at` of block `block` on: the first ones of all rows, the second ones, …
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn four(&self, block: usize, at: usize) -> [__m512i; 4];
    /// The half that ends each row's chunk.
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn last(&self) -> __m512;
    /// Scales and minima of blocks of 32.
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn small_scales(&self, out: &mut impl Cells);
    /// Weights, scales and minima of a type that is not read by words.
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn by_row(&self, out: &mut impl Cells);
}

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

    #[inline(always)]
    fn row(&self, i: usize) -> &'a [u8] {
        &self.bytes[i * self.stride..][..B::BYTES]
    }
}

impl<B: Unpack<Wide>> Source for Rows<'_, B> {
    type B = B;
    avx512! {
        // SAFETY: needs the CPU's features, as [`Source`] says.
        unsafe fn four(&self, block: usize, at: usize) -> [__m512i; 4] {
            let at = block * B::TYPE.block_bytes() + at;
            assert!(at + 16 <= B::BYTES, "bytes of a chunk");
            // SAFETY: rows have `BYTES` bytes, by `Rows::new`.
            unsafe { four_of_rows(self.bytes.as_ptr().add(at), self.stride) }
        }
        // SAFETY: needs the CPU's features, as [`Source`] says.
        unsafe fn last(&self) -> __m512 {
            let [.., last] = four(self, 0, B::TYPE.block_bytes() - 16);
            upper_halves(last)
        }
        // SAFETY: needs the CPU's features, as [`Source`] says.
        unsafe fn small_scales(&self, out: &mut impl Cells) {
            scales_by_row(self, out);
        }
        // SAFETY: needs the CPU's features, as [`Source`] says.
        unsafe fn by_row(&self, out: &mut impl Cells) {
            scales_by_row(self, out);
            words_by_row(self, out);
        }
    }
}

/// A chunk of a tile, as [`interleaved`] has it.
pub(super) struct Tile<'a, B> {
    words: &'a [u8],
    rest: &'a [u8],
    of: PhantomData<B>,
}

impl<'a, B: Unpack<Wide>> Tile<'a, B> {
    /// Chunk `c` of the `n` that a tile's rows have.
    ///
    /// # Panics
    /// Where `bytes` are not all of a tile.
    #[inline(always)]
    pub fn new(bytes: &'a [u8], c: usize, n: usize) -> Self {
        let (words, rest) = (interleaved::words(B::TYPE, c, n), interleaved::rest(B::TYPE, c));
        assert!(c < n && bytes.len() == n * TILE_ROWS * B::BYTES, "a tile");
        Tile { words: &bytes[words], rest: &bytes[rest], of: PhantomData }
    }

    /// The words of weights, of a type that has nothing behind them.
    #[inline(always)]
    pub fn weights(&self) -> &'a [u8] {
        &self.words[TILE_ROWS * interleaved::place(B::TYPE, 0, B::TYPE.block_bytes() - CHUNK / 2)..]
    }

    /// Word `i` of each row.
    #[inline(always)]
    fn word(&self, i: usize) -> __m512i {
        assert!(64 * (i + 1) <= self.words.len(), "words of a chunk");
        // SAFETY: by the line above; the CPU has the features, or this would not run.
        unsafe { _mm512_loadu_si512(self.words.as_ptr().add(64 * i).cast()) }
    }
}

impl<B: Unpack<Wide>> Source for Tile<'_, B> {
    type B = B;
    avx512! {
        // SAFETY: needs the CPU's features, as [`Source`] says.
        unsafe fn four(&self, block: usize, at: usize) -> [__m512i; 4] {
            let load = |i: usize| self.word(interleaved::place(B::TYPE, block, at + 4 * i) / 4);
            [load(0), load(1), load(2), load(3)]
        }
        // SAFETY: needs the CPU's features, as [`Source`] says.
        unsafe fn last(&self) -> __m512 {
            assert!(self.rest.len() == 2 * LANES, "a half of each row");
            // SAFETY: by the line above.
            _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(self.rest.as_ptr().cast()) })
        }
        // SAFETY: needs the CPU's features, as [`Source`] says.
        unsafe fn small_scales(&self, out: &mut impl Cells) {
            // The words before the weights.
            let word = |i: usize| self.word(interleaved::place(B::TYPE, 0, 0) / 4 + i);
            each!(s in [0 1 2 3 4 5 6 7] {
                match B::TYPE {
                    GgmlType::MXFP4 => {
                        let byte = _mm512_srlv_epi32(word(s / 4), _mm512_set1_epi32(8 * (s as i32 % 4)));
                        out.scale(s, e8m0_half(_mm512_and_si512(byte, _mm512_set1_epi32(255))));
                    }
                    GgmlType::Q4_1 => {
                        out.scale(s, lower_halves(word(s)));
                        let minus = _mm512_castsi512_ps(_mm512_set1_epi32(i32::MIN));
                        out.min(s, _mm512_xor_ps(upper_halves(word(s)), minus));
                    }
                    _ if s.is_multiple_of(2) => out.scale(s, lower_halves(word(s / 2))),
                    _ => out.scale(s, upper_halves(word(s / 2))),
                }
            });
        }
        // SAFETY: needs the CPU's features, as [`Source`] says.
        unsafe fn by_row(&self, _: &mut impl Cells) {
            unreachable!("`is_possible` leaves such types out");
        }
    }
}

avx512! {
    /// Words of sixteen bytes of each of sixteen rows, `stride` bytes apart: the first ones of all rows, the second ones, …
    ///
    /// # Safety
    /// Each row has sixteen bytes.
    pub(super) unsafe fn four_of_rows(rows: *const u8, stride: usize) -> [__m512i; 4] {
        // SAFETY: the caller's promise.
        let load = |i: usize| unsafe { _mm_loadu_si128(rows.add(i * stride).cast()) };
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

    /// Reads a chunk of sixteen rows.
    pub(super) fn unpack<S: Source, C: Cells>(rows: &S, out: &mut C) {
        // SAFETY: the CPU has the features, or this would not run.
        unsafe {
            match S::B::TYPE {
                GgmlType::Q4_0 => small_nibbles(rows, 2, out, |x| x),
                GgmlType::Q4_1 => small_nibbles(rows, 4, out, |x| x),
                GgmlType::IQ4_NL => small_nibbles(rows, 2, out, |x| look_up(IQ4_UNSIGNED, x)),
                GgmlType::MXFP4 => small_nibbles(rows, 1, out, |x| look_up(MXFP4_UNSIGNED, x)),
                GgmlType::Q8_0 => {
                    rows.small_scales(out);
                    for s in 0..SPANS {
                        let mut words = eight(rows, s, 2);
                        for word in &mut words {
                            *word = signed(*word);
                        }
                        out.span(s, words);
                    }
                }
                GgmlType::IQ4_XS => {
                    scales_iq4_xs(rows, out);
                    for s in 0..SPANS {
                        out.span(s, spread_nibbles(four(rows, 0, 8 + 16 * s), |x| look_up(IQ4_UNSIGNED, x)));
                    }
                }
                GgmlType::Q4_K => {
                    scales_k4(rows, out);
                    for s in (0..SPANS).step_by(2) {
                        out.nibbles(s, eight(rows, 0, 16 + 16 * s));
                    }
                }
                GgmlType::Q5_K => q5_k(rows, out),
                GgmlType::Q6_K => q6_k(rows, out),
                GgmlType::Q2_K => q2_k(rows, out),
                GgmlType::Q3_K => q3_k(rows, out),
                _ => rows.by_row(out),
            }
        }
    }

    /// Eight blocks of 32 weights: 16 bytes from `first` on, low nibbles before high ones.
    ///
    /// # Safety
    /// The CPU has the features.
    unsafe fn small_nibbles(rows: &impl Source, first: usize, out: &mut impl Cells, value: impl Fn(__m512i) -> __m512i) {
        // SAFETY: the caller's promise.
        unsafe {
            rows.small_scales(out);
            for s in 0..SPANS {
                out.span(s, spread_nibbles(four(rows, s, first), &value));
            }
        }
    }

    /// Low nibbles, then high ones.
    fn spread_nibbles(words: [__m512i; 4], value: impl Fn(__m512i) -> __m512i) -> [__m512i; WORDS] {
        let [a, b, c, d] = words;
        [
            value(low4(a)),
            value(low4(b)),
            value(low4(c)),
            value(low4(d)),
            value(high4(a)),
            value(high4(b)),
            value(high4(c)),
            value(high4(d)),
        ]
    }

    /// Nibbles, and a fifth bit of each span.
    ///
    /// # Safety
    /// The CPU has the features.
    unsafe fn q5_k(rows: &impl Source, out: &mut impl Cells) {
        scales_k4(rows, out);
        let high = eight(rows, 0, 16);
        each!(s in [0 2 4 6] {
            let words = eight(rows, 0, 48 + 16 * s);
            let (mut first, mut second) = (words, words);
            for k in 0..WORDS {
                first[k] = _mm512_or_si512(low4(words[k]), bits(high[k], s, 1, 4));
                second[k] = _mm512_or_si512(high4(words[k]), bits(high[k], s + 1, 1, 4));
            }
            // SAFETY: the caller's promise.
            unsafe {
                out.span(s, first);
                out.span(s + 1, second);
            }
        });
    }

    /// Nibbles and two bits more, half by half.
    ///
    /// # Safety
    /// The CPU has the features.
    unsafe fn q6_k(rows: &impl Source, out: &mut impl Cells) {
        scales_q6_k(rows, out);
        each!(n in [0 1] {
            each!(half in [0 1] {
                let low = [four(rows, 0, 64 * n + 16 * half), four(rows, 0, 64 * n + 32 + 16 * half)];
                let high = four(rows, 0, 128 + 32 * n + 16 * half);
                each!(j in [0 1 2 3] {
                    let mut words = high;
                    for (word, low) in words.iter_mut().zip(low[j % 2]) {
                        *word = _mm512_or_si512(if j < 2 { low4(low) } else { high4(low) }, bits(*word, 2 * j, 2, 4));
                    }
                    // SAFETY: the caller's promise.
                    unsafe { out.half(4 * n + j, half, words) }
                });
            });
        });
    }

    /// Weights times the scales of their halves, at most 45, and the halves' minima.
    ///
    /// # Safety
    /// The CPU has the features.
    unsafe fn q2_k(rows: &impl Source, out: &mut impl Cells) {
        let [.., last] = four(rows, 0, 68);
        let both = four(rows, 0, 0); // of half `i`: nibbles of byte `i`
        let (d, dmin) = (lower_halves(last), upper_halves(last));
        each!(s in [0 1 2 3 4 5 6 7] {
            out.scale(s, d);
            out.min(s, dmin);
            out.half_minima(s, high4(spread(both[s / 2], [2 * (s % 2), ZERO, 2 * (s % 2) + 1, ZERO])));
        });
        each!(n in [0 1] {
            let words = eight(rows, 0, 16 + 32 * n);
            each!(j in [0 1 2 3] {
                let i = 2 * (j % 2);
                let first = low4(spread(both[2 * n + j / 2], [i, ZERO, i, ZERO]));
                let second = low4(spread(both[2 * n + j / 2], [i + 1, ZERO, i + 1, ZERO]));
                let mut products = words;
                for (k, product) in products.iter_mut().enumerate() {
                    // Two bytes at a time: a product leaves none over to the next byte.
                    *product = _mm512_mullo_epi16(bits(*product, 2 * j, 2, 0), if k < 4 { first } else { second });
                }
                // SAFETY: the caller's promise.
                unsafe { out.span(4 * n + j, products) }
            });
        });
    }

    /// Weights times the scales of their halves, plus [`Q3_K_OFFSET`].
    ///
    /// # Safety
    /// The CPU has the features.
    unsafe fn q3_k(rows: &impl Source, out: &mut impl Cells) {
        let [_, a, b, c] = four(rows, 0, 92);
        let high = eight(rows, 0, 0);
        let each = |x| _mm512_set1_epi8(x);
        // Of scale `i`: byte `i % 4` of register `i / 4`, as [`crate::quant::block::scales_k3`].
        let scales = [low4(a), low4(b), high4(a), high4(b)];
        let d = last_halves(rows);
        each!(pair in [0 1 2 3] {
            let scale = _mm512_sub_epi8(_mm512_or_si512(scales[pair], bits(c, 2 * pair, 2, 4)), each(32));
            let size = _mm512_abs_epi8(scale);
            let below = _mm512_movm_epi8(_mm512_movepi8_mask(scale));
            // (q - 4) * scale + 124 is q * size + 124 - 4 * size, or, for a scale below zero, (7 - q) * size + 124 - 3 * size.
            let flip = _mm512_and_si512(below, each(7));
            let least = _mm512_sub_epi8(each(Q3_K_OFFSET as i8), bits(size, 0, 6, 2));
            let least = _mm512_add_epi8(least, _mm512_and_si512(below, size));
            let words = eight(rows, 0, 32 + 32 * (pair / 2));
            each!(odd in [0 1] {
                let s = 2 * pair + odd;
                out.scale(s, d);
                let mut products = words;
                each!(half in [0 1] {
                    let i = 2 * odd + half;
                    let size = spread(size, [i, ZERO, i, ZERO]);
                    let (flip, least) = (spread(flip, [i; 4]), spread(least, [i; 4]));
                    for k in 4 * half..4 * half + 4 {
                        let q = _mm512_or_si512(bits(words[k], 2 * (s % 4), 2, 0), bits(high[k], s, 1, 2));
                        // Two bytes at a time: a product, at most 224, leaves none over to the next byte.
                        let product = _mm512_mullo_epi16(_mm512_xor_si512(q, flip), size);
                        products[k] = _mm512_add_epi8(product, least);
                    }
                });
                // SAFETY: the caller's promise.
                unsafe { out.span(s, products) }
            });
        });
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

    /// [`Source::four`].
    fn four(rows: &impl Source, block: usize, at: usize) -> [__m512i; 4] {
        // SAFETY: the CPU has the features, or this would not run.
        unsafe { rows.four(block, at) }
    }

    /// [`Source::last`].
    fn last_halves(rows: &impl Source) -> __m512 {
        // SAFETY: the CPU has the features, or this would not run.
        unsafe { rows.last() }
    }

    /// Words of 32 bytes of each row, as [`Source::four`].
    fn eight(rows: &impl Source, block: usize, at: usize) -> [__m512i; WORDS] {
        let ([a, b, c, d], [e, f, g, h]) = (four(rows, block, at), four(rows, block, at + 16));
        [a, b, c, d, e, f, g, h]
    }

    /// [`crate::quant::block::e8m0_half`] of sixteen exponents.
    fn e8m0_half(e: __m512i) -> __m512 {
        let denormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), e);
        let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
        let is_small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
        _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, is_small, denormal))
    }

    /// The halves in each word's lower two bytes.
    fn lower_halves(x: __m512i) -> __m512 {
        _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x))
    }

    /// The halves in each word's upper two bytes.
    pub(super) fn upper_halves(x: __m512i) -> __m512 {
        lower_halves(_mm512_srli_epi32::<16>(x))
    }

    /// Scales and minima of Q4_K and Q5_K: two halves and twelve bytes of six bits each.
    fn scales_k4(rows: &impl Source, out: &mut impl Cells) {
        let [both, a, b, c] = four(rows, 0, 0);
        let (d, dmin) = (lower_halves(both), upper_halves(both));
        let low6 = |x| _mm512_and_si512(x, _mm512_set1_epi8(63));
        let top2 = |x| bits(x, 6, 2, 4);
        let scales = [low6(a), _mm512_or_si512(low4(c), top2(a))];
        let minima = [low6(b), _mm512_or_si512(high4(c), top2(b))];
        let float = |four: __m512i, s: usize| {
            let byte = _mm512_srlv_epi32(four, _mm512_set1_epi32(8 * (s as i32 % 4)));
            _mm512_cvtepi32_ps(_mm512_and_si512(byte, _mm512_set1_epi32(255)))
        };
        each!(s in [0 1 2 3 4 5 6 7] {
            out.scale(s, _mm512_mul_ps(d, float(scales[s / 4], s)));
            out.min(s, _mm512_mul_ps(dmin, float(minima[s / 4], s)));
        });
    }

    /// Scales of Q6_K: sixteen signed bytes, and a half behind them.
    fn scales_q6_k(rows: &impl Source, out: &mut impl Cells) {
        let of_halves = four(rows, 0, 192);
        let d = last_halves(rows);
        each!(s in [0 1 2 3 4 5 6 7] {
            out.scale(s, d);
            each!(half in [0 1] {
                // Byte `2 * s + half`, with its sign.
                let top = _mm512_sllv_epi32(of_halves[s / 2], _mm512_set1_epi32(24 - 8 * (2 * (s as i32 % 2) + half as i32)));
                out.half_scale(s, half, _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top)));
            });
        });
    }

    /// Scales of IQ4_XS: a half, then eight times two bits and eight times four.
    fn scales_iq4_xs(rows: &impl Source, out: &mut impl Cells) {
        let [both, low, ..] = four(rows, 0, 0);
        let d = lower_halves(both);
        each!(s in [0 1 2 3 4 5 6 7] {
            let shift = |n: usize| _mm512_set1_epi32(n as i32);
            let low = _mm512_and_si512(_mm512_srlv_epi32(low, shift(4 * s)), _mm512_set1_epi32(15));
            let high = _mm512_and_si512(_mm512_srlv_epi32(both, shift(16 + 2 * s)), _mm512_set1_epi32(3));
            let scale = _mm512_sub_epi32(_mm512_or_si512(low, _mm512_slli_epi32::<4>(high)), _mm512_set1_epi32(32));
            out.scale(s, _mm512_mul_ps(d, _mm512_cvtepi32_ps(scale)));
        });
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
                _ if B::HALVES => {
                    out.half_scale(i % SPANS, i / SPANS, _mm512_castsi512_ps(floats));
                    out.scale(i % SPANS, _mm512_set1_ps(1.0));
                }
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
            let mut spans = [[_mm512_setzero_si512(); WORDS]; 2];
            // SAFETY: every row has been written; the CPU has the features, or this would not run.
            unsafe {
                turn(runs, |i, words| spans[i / WORDS][i % WORDS] = words);
                out.span(v, spans[0]);
                out.span(v + 4, spans[1]);
            }
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
        each!(k in [0 1 2 3] {
            let even = |i: usize| _mm512_shuffle_i32x4::<0b10_00_10_00>(quads[i][k], quads[i + 1][k]);
            let odd = |i: usize| _mm512_shuffle_i32x4::<0b11_01_11_01>(quads[i][k], quads[i + 1][k]);
            let [a, b, c, d] = [even(0), even(2), odd(0), odd(2)];
            out(k, _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b));
            out(4 + k, _mm512_shuffle_i32x4::<0b10_00_10_00>(c, d));
            out(8 + k, _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b));
            out(12 + k, _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d));
        });
    }
}
