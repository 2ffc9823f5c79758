//! Rows of floats into the types that a KV cache may have: F32, F16 and Q8_0.

use half::f16;

use super::GgmlType;

/// Encodes a row of whole blocks.
///
/// # Panics
/// For other types.
pub fn encode_row(ty: GgmlType, x: &[f32], out: &mut [u8]) {
    match ty {
        GgmlType::F32 => {
            for (x, out) in x.iter().zip(out.as_chunks_mut().0) {
                *out = x.to_le_bytes();
            }
        }
        GgmlType::F16 => {
            for (x, out) in x.iter().zip(out.as_chunks_mut().0) {
                *out = f16::from_f32(*x).to_le_bytes();
            }
        }
        GgmlType::Q8_0 => {
            // A block: an f16 scale, then 32 integers.
            for (x, out) in x.chunks_exact(32).zip(out.as_chunks_mut::<34>().0) {
                let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
                let scale = largest / 127.0;
                let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                for (x, q) in x.iter().zip(&mut out[2..]) {
                    *q = (x * inverse).round_ties_even() as i8 as u8;
                }
            }
        }
        other => unreachable!("{other} is no type of a KV cache"),
    }
}
