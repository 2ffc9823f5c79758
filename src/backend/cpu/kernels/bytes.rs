//! Reading a block's bytes, as all instruction sets' kernels need it before their registers come in.
//!
//! Must not know: registers, CPU features.

use crate::quant::act::LANE_GROUP;
use crate::quant::block::MXFP4_VALUES;

/// The chunk's bytes at their true length.
#[inline]
pub(super) fn sized<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.try_into().expect("the driver gives whole chunks")
}

#[inline]
pub(super) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

#[inline]
pub(super) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// [`LANE_GROUP`] as a byte shuffle.
pub(super) const LANE_BYTES: [u8; 16] = {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = LANE_GROUP[i] as u8;
        i += 1;
    }
    bytes
};

/// MXFP4's values made unsigned.
pub(super) const MXFP4_UNSIGNED: [i8; 16] = above(MXFP4_VALUES, 12);

/// Bytes of `values` plus `offset`.
pub(super) const fn above(mut values: [i8; 16], offset: i8) -> [i8; 16] {
    let mut i = 0;
    while i < 16 {
        values[i] = values[i].wrapping_add(offset);
        i += 1;
    }
    values
}

/// Q4_K's and Q5_K's scales and minimums, see [`crate::quant::block::scales_k4`], as 8 bytes each.
#[inline]
pub(super) fn scales_k4(b: &[u8], at: usize) -> (u64, u64) {
    let (low, mid, high) = (u32_at(b, at), u32_at(b, at + 4), u32_at(b, at + 8));
    let sc = high & 0x0f0f_0f0f | (low >> 6 & 0x0303_0303) << 4;
    let mn = high >> 4 & 0x0f0f_0f0f | (mid >> 6 & 0x0303_0303) << 4;
    let join = |low: u32, high: u32| u64::from(low & 0x3f3f_3f3f) | u64::from(high) << 32;
    (join(low, sc), join(mid, mn))
}

/// Q3_K's scales, see [`crate::quant::block::scales_k3`], as 16 bytes; 32 stands for 0.
#[inline]
pub(super) fn scales_k3(b: &[u8], at: usize) -> [u32; 4] {
    let (a0, a1, a2) = (u32_at(b, at), u32_at(b, at + 4), u32_at(b, at + 8));
    let join = |low: u32, high: u32| low & 0x0f0f_0f0f | (high & 0x0303_0303) << 4;
    [join(a0, a2), join(a1, a2 >> 2), join(a0 >> 4, a2 >> 4), join(a1 >> 4, a2 >> 6)]
}
