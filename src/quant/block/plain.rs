//! Blocks of one or two bits, of three values, and NVFP4: no table but sixteen values.

use super::{Block, MXFP4_VALUES, NVFP4, Q1_0, Q2_0, TQ1_0, TQ2_0, half, look_up};
use crate::quant::GgmlType;

impl Block for Q1_0 {
    const TYPE: GgmlType = GgmlType::Q1_0;
    const OFFSET: u8 = 1;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        // A bit each: minus or plus the scale.
        for (i, q) in q.iter_mut().enumerate() {
            *q = (self.qs[i / 8] >> (i % 8) & 1) << 1;
        }
        scale.fill(half(self.d));
    }
}

impl Block for Q2_0 {
    const TYPE: GgmlType = GgmlType::Q2_0;
    const OFFSET: u8 = 1;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        // Four neighbours a byte.
        for (q, byte) in q.as_chunks_mut::<4>().0.iter_mut().zip(self.qs) {
            *q = [byte & 3, byte >> 2 & 3, byte >> 4 & 3, byte >> 6];
        }
        scale.fill(half(self.d));
    }
}

impl Block for TQ1_0 {
    const TYPE: GgmlType = GgmlType::TQ1_0;
    const OFFSET: u8 = 1;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        // A byte is a fraction of 256 whose digits to base three are its elements: five of them, or four in the last bytes.
        let (a, b) = q.split_at_mut(5 * 32);
        let (b, c) = b.split_at_mut(5 * 16);
        digits(&self.qs[..32], a);
        digits(&self.qs[32..], b);
        digits(&self.qh, c);
        scale.fill(half(self.d));
    }
}

/// The first digits to base three of each byte, the second ones, …
#[inline(always)]
fn digits(bytes: &[u8], out: &mut [u8]) {
    let mut power = 1u8;
    for out in out.chunks_exact_mut(bytes.len()) {
        for (out, byte) in out.iter_mut().zip(bytes) {
            *out = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
        }
        power = power.wrapping_mul(3);
    }
}

impl Block for TQ2_0 {
    const TYPE: GgmlType = GgmlType::TQ2_0;
    const OFFSET: u8 = 1;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        // Each byte holds four elements that lie 32 apart, as Q2_K's.
        for (q, bytes) in q.as_chunks_mut::<128>().0.iter_mut().zip(self.qs.as_chunks::<32>().0) {
            for (i, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                *q = bytes.map(|byte| byte >> (2 * i) & 3);
            }
        }
        scale.fill(half(self.d));
    }
}

impl Block for NVFP4 {
    const TYPE: GgmlType = GgmlType::NVFP4;
    const OFFSET: u8 = 12;
    const HALVES: bool = true;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        // Sixteen elements share a scale; low nibbles are the first eight of them.
        for (q, bytes) in q.as_chunks_mut::<16>().0.iter_mut().zip(self.qs.as_chunks::<8>().0) {
            for (i, byte) in bytes.iter().enumerate() {
                (q[i], q[i + 8]) = (byte & 15, byte >> 4);
            }
        }
        look_up(&MXFP4_VALUES, Self::OFFSET, q);
        for (scale, byte) in scale.iter_mut().zip(self.d) {
            *scale = ue4m3_half(byte);
        }
    }
}

/// Half of what a float of four bits of exponent and three of fraction says, see [`MXFP4_VALUES`]; 127, which is no number, is 0.
pub fn ue4m3_half(byte: u8) -> f32 {
    let (exponent, fraction) = (u32::from(byte >> 3 & 15), f32::from(byte & 7));
    let power = |n: u32| f32::from_bits((127 - 11 + n) << 23); // 2^(n - 11)
    match (byte, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => fraction * power(1),
        _ => (8.0 + fraction) * power(exponent),
    }
}
