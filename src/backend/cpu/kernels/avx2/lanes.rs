//! Sixteen floats in two registers.
//!
//! Must not know: quantised types.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::super::ops::Lanes;
use super::{L256, sum8, transpose_floats};
use crate::quant::act::LANES;

impl Lanes for L256 {
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn splat(x: f32) -> Self {
        L256(_mm256_set1_ps(x), _mm256_set1_ps(x))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller gives sixteen elements.
        unsafe { L256(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn splat_f16(p: *const f16) -> Self {
        // SAFETY: the caller gives one.
        let x = _mm256_cvtph_ps(_mm_set1_epi16(unsafe { p.cast::<i16>().read_unaligned() }));
        L256(x, x)
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: the caller gives sixteen elements.
        let (a, b) = unsafe { (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(8).cast())) };
        L256(_mm256_cvtph_ps(a), _mm256_cvtph_ps(b))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: the caller gives sixteen elements.
        let (a, b) = unsafe { (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(8).cast())) };
        let widen = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x)));
        L256(widen(a), widen(b))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: the caller gives sixteen elements.
        let x = unsafe { _mm_loadu_si128(p.cast()) };
        let widen = |x| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x));
        L256(widen(x), widen(_mm_srli_si128::<8>(x)))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller gives room for sixteen elements.
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn store_f16(self, p: *mut f16) {
        let (a, b) = (_mm256_cvtps_ph::<0>(self.0), _mm256_cvtps_ph::<0>(self.1));
        // SAFETY: the caller gives room for sixteen elements.
        unsafe {
            _mm_storeu_si128(p.cast(), a);
            _mm_storeu_si128(p.add(8).cast(), b);
        }
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn add(self, b: Self) -> Self {
        L256(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn mul(self, b: Self) -> Self {
        L256(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn div(self, b: Self) -> Self {
        L256(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        L256(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn fnma(self, b: Self, c: Self) -> Self {
        L256(_mm256_fnmadd_ps(self.0, b.0, c.0), _mm256_fnmadd_ps(self.1, b.1, c.1))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn max(self, b: Self) -> Self {
        L256(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn min(self, b: Self) -> Self {
        L256(_mm256_min_ps(self.0, b.0), _mm256_min_ps(self.1, b.1))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn round(self) -> Self {
        L256(_mm256_round_ps::<8>(self.0), _mm256_round_ps::<8>(self.1))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn pow2(self) -> Self {
        let bits = |n| _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
        L256(_mm256_castsi256_ps(bits(self.0)), _mm256_castsi256_ps(bits(self.1)))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn zero_below(self, x: Self, limit: f32) -> Self {
        let below = |x| _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(limit));
        L256(_mm256_andnot_ps(below(x.0), self.0), _mm256_andnot_ps(below(x.1), self.1))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        let mut out = rows;
        for (i, h) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            // Columns 8 * i to 8 * i + 7 of rows 8 * h to 8 * h + 7.
            let block = std::array::from_fn(|n| if i == 0 { rows[8 * h + n].0 } else { rows[8 * h + n].1 });
            for (n, column) in transpose_floats(block).into_iter().enumerate() {
                let out = &mut out[8 * i + n];
                *(if h == 0 { &mut out.0 } else { &mut out.1 }) = column;
            }
        }
        out
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn partner(self) -> Self {
        L256(_mm256_permute2f128_ps::<1>(self.0, self.0), _mm256_permute2f128_ps::<1>(self.1, self.1))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn where_greater(self, b: Self, new: Self, old: Self) -> Self {
        let pick = |a, b, new, old| _mm256_blendv_ps(old, new, _mm256_cmp_ps::<_CMP_GT_OQ>(a, b));
        L256(pick(self.0, b.0, new.0, old.0), pick(self.1, b.1, new.1, old.1))
    }
    // SAFETY: needs the CPU's features, as [`Lanes`] says.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn sum(self) -> f32 {
        sum8(_mm256_add_ps(self.0, self.1))
    }
}
