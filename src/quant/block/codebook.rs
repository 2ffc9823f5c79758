//! IQ1, IQ2 and IQ3 blocks: numbers of [`grids`]' vectors, signs, and scales of 16 or 32 elements.
//!
//! Elements are put together eight at a time in a word of bytes. None is farther than 62 from zero, so no byte carries into the
//! next.

use half::f16;

use super::{Block, IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, half};
use crate::quant::GgmlType;
use crate::quant::grids::{self, EVENLY_NEGATIVE, NEGATIVE};

/// Bytes of eight equal elements.
const fn all(element: u8) -> u64 {
    0x0101_0101_0101_0101 * element as u64
}

/// [`Block::OFFSET`] of these types.
const OFFSET: u8 = 64;

/// Eight magnitudes with their signs, above [`OFFSET`].
#[inline(always)]
fn signed(magnitudes: u64, negative: u64) -> u64 {
    all(OFFSET) + (magnitudes & !negative) - (magnitudes & negative)
}

/// The signs of eight elements: seven bits from bit `7 * i` on.
#[inline(always)]
fn even_signs(bits: u32, i: usize) -> u64 {
    EVENLY_NEGATIVE[(bits >> (7 * i) & 127) as usize]
}

/// Two vectors of four elements.
#[inline(always)]
fn two(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

#[inline(always)]
fn u16_at(bytes: &[u8], i: usize) -> u16 {
    u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])
}

#[inline(always)]
fn u32_at(bytes: &[u8], i: usize) -> u32 {
    u32::from(u16_at(bytes, 2 * i)) | u32::from(u16_at(bytes, 2 * i + 1)) << 16
}

/// Nibble `i` of some bytes.
#[inline(always)]
fn nibble(bytes: &[u8], i: usize) -> f32 {
    f32::from(bytes[i / 2] >> (4 * (i % 2)) & 15)
}

/// Writes all elements, eight by eight.
#[inline(always)]
fn fill(q: &mut [u8], eight: impl Fn(usize) -> u64) {
    for (i, q) in q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *q = eight(i).to_le_bytes();
    }
}

impl Block for IQ2_XXS {
    const TYPE: GgmlType = GgmlType::IQ2_XXS;
    const OFFSET: u8 = OFFSET;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        // Of 32 elements: four vectors' numbers, then signs of seven bits each and a scale of four.
        let signs = |span: usize| u32_at(&self.qs, 2 * span + 1);
        fill(q, |i| {
            let vector = grids::IQ2_XXS[usize::from(self.qs[i / 4 * 8 + i % 4])];
            signed(vector, even_signs(signs(i / 4), i % 4))
        });
        for (i, scale) in scale.iter_mut().enumerate() {
            *scale = half(self.d) * (0.5 + (signs(i / 2) >> 28) as f32) * 0.25;
        }
    }
}

impl Block for IQ2_XS {
    const TYPE: GgmlType = GgmlType::IQ2_XS;
    const OFFSET: u8 = OFFSET;
    const HALVES: bool = true;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        // A word of 16 bits for eight elements: nine of a vector's number, seven of signs.
        fill(q, |i| {
            let word = u16_at(&self.qs, i);
            signed(grids::IQ2_XS[usize::from(word & 511)], EVENLY_NEGATIVE[usize::from(word >> 9)])
        });
        for (i, scale) in scale.iter_mut().enumerate() {
            *scale = half(self.d) * (0.5 + nibble(&self.scales, i)) * 0.25;
        }
    }
}

impl Block for IQ2_S {
    const TYPE: GgmlType = GgmlType::IQ2_S;
    const OFFSET: u8 = OFFSET;
    const HALVES: bool = true;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        fill(q, |i| {
            let high = usize::from(self.qh[i / 4] >> (2 * (i % 4)) & 3);
            let vector = grids::IQ2_S[usize::from(self.qs[i]) | high << 8];
            signed(vector, NEGATIVE[usize::from(self.signs[i])])
        });
        for (i, scale) in scale.iter_mut().enumerate() {
            *scale = half(self.d) * (0.5 + nibble(&self.scales, i)) * 0.25;
        }
    }
}

impl Block for IQ3_XXS {
    const TYPE: GgmlType = GgmlType::IQ3_XXS;
    const OFFSET: u8 = OFFSET;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        // Of 32 elements: signs of seven bits for each eight, and a scale of four bits.
        let signs = |span: usize| u32_at(&self.signs, span);
        fill(q, |i| {
            let vector = |k: usize| grids::IQ3_XXS[usize::from(self.qs[2 * i + k])];
            signed(two(vector(0), vector(1)), even_signs(signs(i / 4), i % 4))
        });
        for (i, scale) in scale.iter_mut().enumerate() {
            *scale = half(self.d) * (0.5 + (signs(i / 2) >> 28) as f32) * 0.5;
        }
    }
}

impl Block for IQ3_S {
    const TYPE: GgmlType = GgmlType::IQ3_S;
    const OFFSET: u8 = OFFSET;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        fill(q, |i| {
            // A ninth bit for each vector.
            let high = |k: usize| usize::from(self.qh[i / 4] >> (i % 4 * 2 + k) & 1);
            let vector = |k: usize| grids::IQ3_S[usize::from(self.qs[2 * i + k]) | high(k) << 8];
            signed(two(vector(0), vector(1)), NEGATIVE[usize::from(self.signs[i])])
        });
        for (i, scale) in scale.iter_mut().enumerate() {
            *scale = half(self.d) * (1.0 + 2.0 * nibble(&self.scales, i / 2));
        }
    }
}

/// Eight elements of an IQ1 type, times eight: a vector's, and an eighth more or less.
#[inline(always)]
fn shifted(vector: u64, less: bool) -> u64 {
    vector + if less { all(OFFSET - 8 - 1) } else { all(OFFSET - 8 + 1) }
}

impl Block for IQ1_S {
    const TYPE: GgmlType = GgmlType::IQ1_S;
    const OFFSET: u8 = OFFSET;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        // Of 32 elements: three more bits of each vector's number, three of a scale, one of which way elements are shifted.
        let high = |span: usize| u16_at(&self.qh, span);
        fill(q, |i| {
            let high = high(i / 4);
            let number = u16::from(self.qs[i]) | (high >> (i % 4 * 3) & 7) << 8;
            shifted(grids::IQ1[usize::from(number)], high >> 15 == 1)
        });
        for (i, scale) in scale.iter_mut().enumerate() {
            *scale = half(self.d) * f32::from(high(i / 2) >> 12 & 7).mul_add(2.0, 1.0) * 0.125;
        }
    }
}

impl Block for IQ1_M {
    const TYPE: GgmlType = GgmlType::IQ1_M;
    const OFFSET: u8 = OFFSET;
    const HALVES: bool = true;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        fill(q, |i| {
            // Three more bits of the vector's number, and one of which way elements are shifted.
            let high = self.qh[i / 2] >> (i % 2 * 4);
            let number = usize::from(self.qs[i]) | usize::from(high & 7) << 8;
            shifted(grids::IQ1[number], high & 8 != 0)
        });
        // Four words: three bits for each of four scales, and four of the block's own, which is a half.
        let words: [u16; 4] = std::array::from_fn(|i| u16_at(&self.scales, i));
        let d = words.iter().rev().fold(0, |d, word| d << 4 | word >> 12);
        let d = f16::from_bits(d).to_f32();
        for (i, scale) in scale.iter_mut().enumerate() {
            *scale = d * f32::from(words[i / 4] >> (i % 4 * 3) & 7).mul_add(2.0, 1.0) * 0.125;
        }
    }
}
