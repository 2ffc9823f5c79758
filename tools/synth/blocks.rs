//! Random weights of any computable type: a pool of valid blocks whose values have mean 0 and a spread that is asked for.
//!
//! The only thing known of a type is where its block keeps its floats. What they do to the values is measured, by
//! dequantising a sample. Must not know: tensors, models, files.

use std::mem::offset_of;

use half::{bf16, f16};
use hotset::quant::{
    GgmlType,
    block::{self, dequantize_row, ue4m3_half},
};

/// Blocks that are dequantised to measure the spread.
const SAMPLE: usize = 2048;

/// Values in a pool of plain floats: those are drawn one by one, not byte by byte.
const MAX_PLAIN: usize = 4 << 20;

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and the same everywhere.
pub struct Rng(u64);

impl Rng {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Between 0 and 1, neither included.
    pub fn unit(&mut self) -> f32 {
        ((self.bits() >> 41) as f32 + 0.5) / (1 << 23) as f32
    }

    /// Of the standard normal distribution (Box, Muller 1958).
    pub fn normal(&mut self) -> f32 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f32::consts::TAU * self.unit()).cos()
    }
}

/// What sets the size of a block's values.
#[derive(Clone, Copy)]
enum Scale {
    /// Half floats at these bytes: one that multiplies, and perhaps one that shifts.
    Half { d: usize, min: Option<usize> },
    /// A half whose four bits each end one of four words from this byte on.
    Parts(usize),
    /// A power of two at this byte, 127 for 1.
    Exponent(usize),
    /// Four floats of eight bits from this byte on.
    Small(usize),
    /// The values are floats themselves.
    Plain,
}

impl Scale {
    /// `None` for types without arithmetic.
    fn of(ty: GgmlType) -> Option<Scale> {
        use GgmlType::*;
        let half = |d, min| Some(Scale::Half { d, min });
        match ty {
            Q4_0 => half(offset_of!(block::Q4_0, d), None),
            Q4_1 => half(offset_of!(block::Q4_1, d), Some(offset_of!(block::Q4_1, m))),
            Q5_0 => half(offset_of!(block::Q5_0, d), None),
            Q5_1 => half(offset_of!(block::Q5_1, d), Some(offset_of!(block::Q5_1, m))),
            Q8_0 => half(offset_of!(block::Q8_0, d), None),
            Q2_K => half(offset_of!(block::Q2_K, d), Some(offset_of!(block::Q2_K, dmin))),
            Q3_K => half(offset_of!(block::Q3_K, d), None),
            Q4_K => half(offset_of!(block::Q4_K, d), Some(offset_of!(block::Q4_K, dmin))),
            Q5_K => half(offset_of!(block::Q5_K, d), Some(offset_of!(block::Q5_K, dmin))),
            Q6_K => half(offset_of!(block::Q6_K, d), None),
            IQ4_NL => half(offset_of!(block::IQ4_NL, d), None),
            IQ4_XS => half(offset_of!(block::IQ4_XS, d), None),
            IQ2_XXS => half(offset_of!(block::IQ2_XXS, d), None),
            IQ2_XS => half(offset_of!(block::IQ2_XS, d), None),
            IQ2_S => half(offset_of!(block::IQ2_S, d), None),
            IQ3_XXS => half(offset_of!(block::IQ3_XXS, d), None),
            IQ3_S => half(offset_of!(block::IQ3_S, d), None),
            IQ1_S => half(offset_of!(block::IQ1_S, d), None),
            IQ1_M => Some(Scale::Parts(offset_of!(block::IQ1_M, scales))),
            Q1_0 => half(offset_of!(block::Q1_0, d), None),
            Q2_0 => half(offset_of!(block::Q2_0, d), None),
            TQ1_0 => half(offset_of!(block::TQ1_0, d), None),
            TQ2_0 => half(offset_of!(block::TQ2_0, d), None),
            MXFP4 => Some(Scale::Exponent(offset_of!(block::MXFP4, e))),
            NVFP4 => Some(Scale::Small(offset_of!(block::NVFP4, d))),
            F32 | F16 | BF16 => Some(Scale::Plain),
            _ => None,
        }
    }
}

/// See the module.
pub struct Pool {
    ty: GgmlType,
    scale: Scale,
    bytes: Vec<u8>,
    /// Of plain types: the values at spread 1.
    plain: Vec<f32>,
    /// Spread of the values where the multiplier is 1.
    spread: f32,
    /// What the shift is to the multiplier, so that the mean is 0.
    shift: f32,
    /// The spread that the blocks are set to.
    sigma: f32,
    rng: Rng,
}

impl Pool {
    /// At least one block, at most about `bytes` bytes. `None` where hotset has no arithmetic for the type.
    pub fn new(ty: GgmlType, bytes: usize, mut rng: Rng) -> Option<Self> {
        let scale = Scale::of(ty)?;
        let mut n = (bytes / ty.block_bytes()).max(1);
        let mut plain = Vec::new();
        if let Scale::Plain = scale {
            n = n.min(MAX_PLAIN);
            plain = (0..n).map(|_| rng.normal()).collect();
        }
        let mut bytes = vec![0; n * ty.block_bytes()];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&rng.bits().to_le_bytes()[..chunk.len()]);
        }
        if matches!(ty, GgmlType::Q2_0 | GgmlType::TQ2_0) {
            // As quantisers write it: the code 3, which would be twice the scale, is not used. 1 stands for zero.
            for byte in &mut bytes {
                *byte &= !(*byte & *byte << 1 & 0xaa);
            }
        }
        let mut pool = Self { ty, scale, bytes, plain, spread: 1.0, shift: 0.0, sigma: f32::NAN, rng };
        pool.measure();
        Some(pool)
    }

    /// Values are `d * a + min * b` of some random a and b: their means give the shift, and then the spread is what it is.
    fn measure(&mut self) {
        let sample = self.bytes.len().min(SAMPLE * self.ty.block_bytes());
        let stats = |pool: &mut Self, d: f32, min: f32| {
            for block in pool.bytes[..sample].chunks_exact_mut(pool.ty.block_bytes()) {
                pool.scale.set(block, d, min);
            }
            let mut values = vec![0.0; sample / pool.ty.block_bytes() * pool.ty.block_len()];
            dequantize_row(pool.ty, &pool.bytes[..sample], &mut values);
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            (mean, (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt())
        };
        match self.scale {
            Scale::Plain => {}
            Scale::Half { min: Some(_), .. } => {
                self.shift = -(stats(self, 1.0, 0.0).0 / stats(self, 0.0, 1.0).0) as f32;
                let shift = self.shift;
                self.spread = stats(self, 1.0, shift).1 as f32;
            }
            Scale::Half { min: None, .. } | Scale::Parts(_) | Scale::Exponent(_) | Scale::Small(_) => {
                self.spread = stats(self, 1.0, 0.0).1 as f32
            }
        }
    }

    /// The blocks, with values of spread `sigma`. Multipliers differ by up to a quarter from block to block.
    pub fn scaled(&mut self, sigma: f32) -> &[u8] {
        if self.sigma == sigma {
            return &self.bytes;
        }
        self.sigma = sigma;
        let bytes = self.ty.block_bytes();
        for (i, block) in self.bytes.chunks_exact_mut(bytes).enumerate() {
            match self.scale {
                Scale::Plain => write_float(self.ty, self.plain[i] * sigma, block),
                Scale::Half { .. } | Scale::Parts(_) => {
                    let d = sigma / self.spread * (0.75 + 0.5 * self.rng.unit());
                    self.scale.set(block, d, d * self.shift);
                }
                Scale::Exponent(_) => {
                    // The power below or the one above, so that on average the squares are right.
                    let d = sigma / self.spread;
                    let low = d.log2().floor().exp2();
                    let above = ((d / low).powi(2) - 1.0) / 3.0;
                    self.scale.set(block, if self.rng.unit() < above { 2.0 * low } else { low }, 0.0);
                }
                Scale::Small(at) => {
                    // As above.
                    let d = sigma / self.spread;
                    let low = small_below(d);
                    let [a, b] = [low, low + 1].map(|byte| (2.0 * ue4m3_half(byte)).powi(2));
                    for byte in &mut block[at..at + 4] {
                        *byte = low + u8::from(self.rng.unit() < (d * d - a) / (b - a));
                    }
                }
            }
        }
        &self.bytes
    }

    /// `n_bytes` of whole blocks, in pieces: from random places of the pool as it was last scaled.
    pub fn pieces(&mut self, n_bytes: usize, mut piece: impl FnMut(&[u8]) -> hotset::Result<()>) -> hotset::Result<()> {
        let block = self.ty.block_bytes();
        let mut left = n_bytes;
        while left > 0 {
            let start = self.rng.below(self.bytes.len() / block) * block;
            let n = left.min(self.bytes.len() - start);
            piece(&self.bytes[start..start + n])?;
            left -= n;
        }
        Ok(())
    }
}

impl Scale {
    fn set(self, block: &mut [u8], d: f32, min: f32) {
        let mut half = |at: usize, v: f32| block[at..at + 2].copy_from_slice(&f16::from_f32(v).to_le_bytes());
        match self {
            Scale::Half { d: at, min: None } => half(at, d),
            Scale::Half { d: at, min: Some(min_at) } => {
                half(at, d);
                half(min_at, min);
            }
            Scale::Parts(at) => {
                let d = f16::from_f32(d).to_bits();
                for (i, word) in block[at..at + 8].as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    word[1] = word[1] & 15 | ((d >> (4 * i) & 15) as u8) << 4;
                }
            }
            Scale::Small(at) => block[at..at + 4].fill(small_below(d)),
            Scale::Exponent(at) => block[at] = (127.0 + d.log2().round()).clamp(0.0, 254.0) as u8,
            Scale::Plain => {}
        }
    }
}

/// The largest float of eight bits that is not above `d`, but for the very largest.
fn small_below(d: f32) -> u8 {
    (0..0x7d).rev().find(|&byte| 2.0 * ue4m3_half(byte) <= d).unwrap_or(0)
}

/// One element of a plain type.
pub fn write_float(ty: GgmlType, value: f32, out: &mut [u8]) {
    match ty {
        GgmlType::F32 => out.copy_from_slice(&value.to_le_bytes()),
        GgmlType::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        GgmlType::BF16 => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        other => unreachable!("{other} is no plain type"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_computable_type_gets_the_spread_that_was_asked_for() {
        for &ty in GgmlType::ALL.iter().filter(|ty| ty.is_computable()) {
            let mut pool = Pool::new(ty, 512 << 10, Rng::new(7)).expect("the type is computable");
            for sigma in [1.0, 0.022, 0.005] {
                let bytes = pool.scaled(sigma).to_vec();
                let mut values = vec![0.0; bytes.len() / ty.block_bytes() * ty.block_len()];
                dequantize_row(ty, &bytes, &mut values);
                let n = values.len() as f32;
                let mean = values.iter().sum::<f32>() / n;
                let spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt();
                assert!((spread / sigma - 1.0).abs() < 0.1, "{ty}: {spread} for {sigma}");
                assert!((mean / sigma).abs() < 0.15, "{ty}: mean {mean} for {sigma}");
            }
        }
    }
}
