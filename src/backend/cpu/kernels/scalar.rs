//! Kernels in plain code: what runs where the CPU has nothing better, and what the tests compare with.
//!
//! Must not know: other instruction sets.

use half::{bf16, f16};

use super::ops::{Lanes, ops_table};
use super::{Isa, Kernels, N_TYPE};
use crate::quant::QMat;
use crate::quant::act::{ActRow, LANES};
use crate::quant::dot::{dot, sum_lanes};

/// The table; every type goes through [`dot`].
pub(super) const KERNELS: Kernels = Kernels::new(Isa::Scalar, [matmul; N_TYPE], OPS);

/// # Safety
/// As [`super::MatMul`].
pub(super) unsafe fn matmul(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], _then: &[u8]) {
    for r in 0..w.rows {
        for (x, y) in x.iter().zip(y) {
            // SAFETY: the caller gives `w.rows` floats behind each pointer.
            unsafe { *y.add(r) = dot(w.ty, w.row(r), *x) }
        }
    }
}

ops_table!([f32; LANES]);

impl Lanes for [f32; LANES] {
    // SAFETY: as the trait says; needs no features.
    unsafe fn splat(x: f32) -> Self {
        [x; LANES]
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn splat_f16(p: *const f16) -> Self {
        // SAFETY: the caller gives one.
        [unsafe { p.read_unaligned() }.to_f32(); LANES]
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller gives sixteen elements.
        unsafe { p.cast::<Self>().read_unaligned() }
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: the caller gives sixteen elements.
        unsafe { p.cast::<[f16; LANES]>().read_unaligned() }.map(f16::to_f32)
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: the caller gives sixteen elements.
        unsafe { p.cast::<[bf16; LANES]>().read_unaligned() }.map(bf16::to_f32)
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: the caller gives sixteen elements.
        unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from)
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller gives room for sixteen elements.
        unsafe { p.cast::<Self>().write_unaligned(self) }
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn store_f16(self, p: *mut f16) {
        // SAFETY: the caller gives room for sixteen elements.
        unsafe { p.cast::<[f16; LANES]>().write_unaligned(self.map(f16::from_f32)) }
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn add(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] + b[i])
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn mul(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] * b[i])
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn div(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] / b[i])
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        std::array::from_fn(|i| self[i].mul_add(b[i], c[i]))
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn fnma(self, b: Self, c: Self) -> Self {
        std::array::from_fn(|i| (-self[i]).mul_add(b[i], c[i]))
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn max(self, b: Self) -> Self {
        std::array::from_fn(|i| if self[i] > b[i] { self[i] } else { b[i] })
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn min(self, b: Self) -> Self {
        std::array::from_fn(|i| if self[i] < b[i] { self[i] } else { b[i] })
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn round(self) -> Self {
        self.map(f32::round_ties_even)
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn pow2(self) -> Self {
        self.map(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn zero_below(self, x: Self, limit: f32) -> Self {
        std::array::from_fn(|i| if x[i] < limit { 0.0 } else { self[i] })
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn partner(self) -> Self {
        std::array::from_fn(|i| self[i ^ 4])
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn where_greater(self, b: Self, new: Self, old: Self) -> Self {
        std::array::from_fn(|i| if self[i] > b[i] { new[i] } else { old[i] })
    }
    // SAFETY: as the trait says; needs no features.
    unsafe fn sum(self) -> f32 {
        sum_lanes(self)
    }
}
