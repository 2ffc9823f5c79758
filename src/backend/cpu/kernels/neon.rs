//! NEON, the same with the dot product of Armv8.2, and that with the matrix product of Armv8.6.
//!
//! All multiply signed bytes: unsigned weights have at most 6 bits. Rust has no stable intrinsics for the products yet,
//! so they are one instruction of `asm!` each. Tested under emulation; no aarch64 machine was at hand to measure.
//!
//! Must not know: loops over rows and tokens, but for those of [`i8mm`].

use std::arch::aarch64::*;
use std::arch::asm;
use std::mem::MaybeUninit;

use half::{bf16, f16};

use super::bytes::{LANE_BYTES, MXFP4_UNSIGNED, scales_k3, scales_k4, sized, u16_at, u32_at};
use super::driver::{Form, Registers, Row, Simd, Unpack};
use super::expanded::Expanded;
use super::ops::{Lanes, ops_table};
use super::table::matmul_table;
use super::{Isa, Kernels};
use crate::quant::act::{ActChunk, ActRow, LANES};
use crate::quant::block::{
    IQ4_NL, IQ4_VALUES, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0,
};
use crate::quant::{GgmlType, QMat};

/// Runs `$item` once for the attribute that nearly all functions here have.
macro_rules! neon {
    ($($item:item)*) => { $(
        #[target_feature(enable = "neon")]
        #[inline]
        $item
    )* };
}

mod i8mm;

/// The table of NEON.
pub(super) const NEON: Kernels = Kernels::new(Isa::Neon, matmul_table!(Neon, #[target_feature(enable = "neon")]), OPS);

/// The table of NEON with the dot product.
pub(super) const DOTPROD: Kernels =
    Kernels::new(Isa::Dotprod, matmul_table!(Dotprod, #[target_feature(enable = "neon,dotprod")]), OPS);

/// The table of NEON with the dot and the matrix product.
pub(super) const I8MM: Kernels =
    Kernels::new(Isa::I8mm, matmul_table!(I8mm, #[target_feature(enable = "neon,dotprod,i8mm")]), OPS);

ops_table!(L128, #[target_feature(enable = "neon")]);

/// Products by `smull` and `smlal`, whose 16-bit sums are widened as the type's bits demand.
struct Neon;
/// Products by `sdot`.
struct Dotprod;
/// Products by `sdot` for few tokens, by `smmla` for many.
struct I8mm;

/// Registers of 128 bits.
#[derive(Clone, Copy)]
struct Quad;

/// Sixteen floats in four registers.
#[derive(Clone, Copy)]
struct L128([float32x4_t; 4]);

/// 256 weights: `[j][k]` is word `k` of lanes `4 * j` to `4 * j + 3`.
type W128 = [[uint8x16_t; 4]; 4];

impl Registers for Quad {
    type W = W128;
    type I = [int32x4_t; 4];
    type H = [float32x4_t; 2];
    type L = L128;
    neon! {
        // SAFETY: needs the CPU's features, as the trait says, and `p` is valid for sixteen numbers.
        unsafe fn load(p: *const i32) -> [int32x4_t; 4] {
            // SAFETY: the caller gives sixteen elements.
            std::array::from_fn(|j| unsafe { vld1q_s32(p.add(4 * j)) })
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn splat(x: i32) -> [int32x4_t; 4] {
            [vdupq_n_s32(x); 4]
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn mul(a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
            std::array::from_fn(|j| vmulq_s32(a[j], b[j]))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn sub(a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
            std::array::from_fn(|j| vsubq_s32(a[j], b[j]))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn fold(rows: [[int32x4_t; 4]; 2]) -> L128 {
            // Registers 0 and 2 have first halves of spans, 1 and 3 the second ones.
            let [[a, b], [c, d]] = rows.map(|[first, second, third, fourth]| {
                [vcvtq_f32_s32(vaddq_s32(first, second)), vcvtq_f32_s32(vaddq_s32(third, fourth))]
            });
            L128([a, b, c, d])
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn split([a, b]: [[int32x4_t; 4]; 2]) -> [L128; 2] {
            [0, 1].map(|half| L128([a[half], a[2 + half], b[half], b[2 + half]].map(|x| vcvtq_f32_s32(x))))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn join([[a, b], [c, d]]: [[float32x4_t; 2]; 2]) -> L128 {
            L128([a, b, c, d])
        }
        // SAFETY: needs the CPU's features, as the trait says, and `p` is valid for eight floats.
        unsafe fn twice(p: *const f32) -> L128 {
            // SAFETY: the caller gives eight elements.
            let (a, b) = unsafe { (vld1q_f32(p), vld1q_f32(p.add(4))) };
            L128([a, b, a, b])
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn sums(L128([a, b, c, d]): L128) -> [f32; 2] {
            [sum4(vaddq_f32(a, b)), sum4(vaddq_f32(c, d))]
        }
    }
}

impl Simd for Neon {
    type R = Quad;
    const TOKENS: usize = 4;
    const SIGNED_OFFSET: u8 = 0;
    neon! {
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn from_signed(w: W128) -> W128 {
            w
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn dot<B: Unpack<Quad>>(w: &W128, x: &ActChunk) -> [int32x4_t; 4] {
            std::array::from_fn(|j| {
                let wx = |k: usize| (signed(w[j][k]), signed(load16(&x.q, 64 * k + 16 * j)));
                let low = |k| {
                    let (w, x) = wx(k);
                    vmull_s8(vget_low_s8(w), vget_low_s8(x))
                };
                let add_low = |sum, k| {
                    let (w, x) = wx(k);
                    vmlal_s8(sum, vget_low_s8(w), vget_low_s8(x))
                };
                let high = |k| {
                    let (w, x) = wx(k);
                    vmull_high_s8(w, x)
                };
                let add_high = |sum, k| {
                    let (w, x) = wx(k);
                    vmlal_high_s8(sum, w, x)
                };
                // Four words' products fit in 16 bits where a weight is at most 63: 4 * 127 * 63 = 32004. Of signed
                // bytes two fit: 2 * 127 * 128 = 32512.
                if B::BITS <= 6 {
                    let low = add_low(add_low(add_low(low(0), 1), 2), 3);
                    let high = add_high(add_high(add_high(high(0), 1), 2), 3);
                    vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high))
                } else {
                    let low = vpadalq_s16(vpaddlq_s16(add_low(low(0), 1)), add_low(low(2), 3));
                    let high = vpadalq_s16(vpaddlq_s16(add_high(high(0), 1)), add_high(high(2), 3));
                    vpaddq_s32(low, high)
                }
            })
        }
    }
}

/// Adds to each word the sum of the products of its four signed bytes.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn sdot(mut sum: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    // SAFETY: the instruction is enabled here and touches these registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

impl Simd for Dotprod {
    type R = Quad;
    const TOKENS: usize = 4;
    const SIGNED_OFFSET: u8 = 0;
    neon! {
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn from_signed(w: W128) -> W128 {
            w
        }
    }
    #[target_feature(enable = "neon,dotprod")]
    #[inline]
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn dot<B: Unpack<Quad>>(w: &W128, x: &ActChunk) -> [int32x4_t; 4] {
        std::array::from_fn(|j| {
            let mut sum = vdupq_n_s32(0);
            for (k, w) in w[j].into_iter().enumerate() {
                sum = sdot(sum, w, load16(&x.q, 64 * k + 16 * j));
            }
            sum
        })
    }
}

impl Simd for I8mm {
    type R = Quad;
    const TOKENS: usize = Dotprod::TOKENS;
    const SIGNED_OFFSET: u8 = Dotprod::SIGNED_OFFSET;
    neon! {
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn from_signed(w: W128) -> W128 {
            w
        }
    }
    #[target_feature(enable = "neon,dotprod,i8mm")]
    #[inline]
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn dot<B: Unpack<Quad>>(w: &W128, x: &ActChunk) -> [int32x4_t; 4] {
        // SAFETY: the caller checked the CPU.
        unsafe { Dotprod::dot::<B>(w, x) }
    }
    #[target_feature(enable = "neon,dotprod,i8mm")]
    #[inline]
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn matmul_many<B: Unpack<Quad>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], _then: &[u8]) {
        // SAFETY: the caller's promise is the same.
        unsafe { i8mm::matmul::<B>(w, x, y) }
    }
}

/// [`by_word`]'s shifts that bring field `i` of `BITS` bits to the bottom, then `UP` bits up.
const fn down(bits: i8, up: i8) -> [i8; 4] {
    [up, up - bits, up - 2 * bits, up - 3 * bits]
}

neon! {
    fn signed(x: uint8x16_t) -> int8x16_t {
        vreinterpretq_s8_u8(x)
    }

    /// 16 bytes from `at` on.
    fn load16<T, const N: usize>(bytes: &[T; N], at: usize) -> uint8x16_t {
        const { assert!(size_of::<T>() == 1, "offsets are bytes") }
        assert!(at + 16 <= N);
        // SAFETY: the 16 bytes are inside the array, by the line above.
        unsafe { vld1q_u8(bytes.as_ptr().add(at).cast()) }
    }

    fn words(words: [u32; 4]) -> uint32x4_t {
        // SAFETY: the array has four words.
        unsafe { vld1q_u32(words.as_ptr()) }
    }

    /// Words of both by turns: those of the lower halves, then of the upper ones.
    fn zip32(a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; 2] {
        let (a, b) = (vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b));
        [vreinterpretq_u8_u32(vzip1q_u32(a, b)), vreinterpretq_u8_u32(vzip2q_u32(a, b))]
    }

    /// The lower halves of both, then the upper ones.
    fn zip64(a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; 2] {
        let (a, b) = (vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b));
        [vreinterpretq_u8_u64(vzip1q_u64(a, b)), vreinterpretq_u8_u64(vzip2q_u64(a, b))]
    }

    /// Word `k` of four registers, for each `k`.
    fn turn([a, b, c, d]: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        let ([ac0, ac1], [bd0, bd1]) = (zip32(a, c), zip32(b, d));
        let ([k0, k1], [k2, k3]) = (zip32(ac0, bd0), zip32(ac1, bd1));
        [k0, k1, k2, k3]
    }

    fn low4(x: uint8x16_t) -> uint8x16_t {
        vandq_u8(x, vdupq_n_u8(15))
    }

    fn high4(x: uint8x16_t) -> uint8x16_t {
        vshrq_n_u8::<4>(x)
    }

    fn or(a: W128, b: W128) -> W128 {
        std::array::from_fn(|j| std::array::from_fn(|k| vorrq_u8(a[j][k], b[j][k])))
    }

    /// Weights from the 16 bytes at `at`, `at + stride`, … of eight blocks, each low nibbles, then high ones.
    fn nibble_blocks<const N: usize>(b: &[u8; N], at: usize, stride: usize) -> W128 {
        let half = |h: usize| turn(std::array::from_fn(|i| load16(b, at + (4 * h + i) * stride)));
        let (a, b) = (half(0), half(1));
        [a.map(|x| low4(x)), a.map(|x| high4(x)), b.map(|x| low4(x)), b.map(|x| high4(x))]
    }

    /// Bit 4 of weights from the 32 bits each at `at`, `at + stride`, … of eight blocks.
    fn fifth_bits(b: &[u8], at: usize, stride: usize) -> W128 {
        // Bit `b` or `4 + b` of a byte, for byte `b` of a word, to bit 4.
        const UP: [[i8; 16]; 2] = [[4, 3, 2, 1, 4, 3, 2, 1, 4, 3, 2, 1, 4, 3, 2, 1], [0, -1, -2, -3, 0, -1, -2, -3, 0, -1, -2, -3, 0, -1, -2, -3]];
        std::array::from_fn(|j| {
            let qh = words(std::array::from_fn(|i| u32_at(b, at + (4 * (j / 2) + i) * stride)));
            std::array::from_fn(|k| {
                let byte = (2 * (j % 2) + k / 2) as u8;
                let index: [u8; 16] = std::array::from_fn(|i| (i / 4 * 4) as u8 + byte);
                let bits = vqtbl1q_u8(vreinterpretq_u8_u32(qh), load16(&index, 0));
                vandq_u8(vshlq_u8(bits, signed(load16(&UP[k % 2], 0))), vdupq_n_u8(16))
            })
        })
    }

    /// Looks indices up among sixteen bytes.
    fn look_up(values: &[i8; 16], w: W128) -> W128 {
        let values = load16(values, 0);
        w.map(|w| w.map(|index| vqtbl1q_u8(values, index)))
    }

    /// For each word of `x`: the word four times, copy `i` shifted up by `shift[i]` bits (down where negative), masked.
    fn spread(x: uint8x16_t, shift: [i8; 4], mask: u8) -> [uint8x16_t; 4] {
        let shift: [i8; 16] = std::array::from_fn(|i| shift[i / 4]);
        let (x, shift) = (vreinterpretq_u32_u8(x), signed(load16(&shift, 0)));
        let copies =
            [vdupq_laneq_u32::<0>(x), vdupq_laneq_u32::<1>(x), vdupq_laneq_u32::<2>(x), vdupq_laneq_u32::<3>(x)];
        copies.map(|x| vandq_u8(vshlq_u8(vreinterpretq_u8_u32(x), shift), vdupq_n_u8(mask)))
    }

    /// The low nibbles of 32 bytes are a run of 32 weights, the high ones the next run.
    fn nibble_runs<const N: usize>(b: &[u8; N], at: usize) -> W128 {
        std::array::from_fn(|j| {
            let at = at + 64 * (j / 2) + 16 * (j % 2);
            let [low, high] = zip32(load16(b, at), load16(b, at + 32));
            let ([k0, k1], [k2, k3]) = (zip32(low4(low), high4(low)), zip32(low4(high), high4(high)));
            [k0, k1, k2, k3]
        })
    }

    /// The half at `at`.
    fn half(b: &[u8], at: usize) -> f32 {
        vgetq_lane_f32::<0>(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(u16_at(b, at)))))
    }

    /// The halves at `at`, `at + stride`, … of eight blocks.
    fn halves(b: &[u8], at: usize, stride: usize) -> [float32x4_t; 2] {
        let h: [u16; 8] = std::array::from_fn(|i| u16_at(b, at + i * stride));
        // SAFETY: the array has eight halves.
        let h = vreinterpretq_f16_u16(unsafe { vld1q_u16(h.as_ptr()) });
        [vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)]
    }

    /// The half at `at` for every span.
    fn whole(b: &[u8], at: usize) -> [float32x4_t; 2] {
        [vdupq_n_f32(half(b, at)); 2]
    }

    /// Lanes from sixteen signed bytes, one for each group.
    fn per16(s: uint8x16_t) -> [int32x4_t; 4] {
        let s = signed(vqtbl1q_u8(s, load16(&LANE_BYTES, 0)));
        let (low, high) = (vmovl_s8(vget_low_s8(s)), vmovl_high_s8(s));
        [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)]
    }

    /// Four floats, added as [`crate::quant::dot::sum_lanes`] does.
    fn sum4(four: float32x4_t) -> f32 {
        let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
    }

    fn negated(x: [float32x4_t; 2]) -> [float32x4_t; 2] {
        x.map(|x| vnegq_f32(x))
    }

    fn no_min() -> [float32x4_t; 2] {
        [vdupq_n_f32(0.0); 2]
    }

    fn none() -> [int32x4_t; 4] {
        [vdupq_n_s32(0); 4]
    }

    /// Q4_K's and Q5_K's scales and minimums.
    fn k4(b: &[u8]) -> ([float32x4_t; 2], [float32x4_t; 2]) {
        let (sc, mn) = scales_k4(b, 4);
        let lanes = |s: u64, d| {
            let s = vmovl_u8(vcreate_u8(s));
            let s = [vmovl_u16(vget_low_u16(s)), vmovl_high_u16(s)];
            s.map(|s| vmulq_n_f32(vcvtq_f32_u32(s), d))
        };
        (lanes(sc, half(b, 0)), lanes(mn, half(b, 2)))
    }

    /// IQ4_XS's scales, see [`crate::quant::block::scales_iq4_xs`], less 32, times `d`.
    fn iq4_xs(b: &[u8; IQ4_XS::BYTES], d: f32) -> [float32x4_t; 2] {
        let (low, high) = (vdupq_n_u32(u32_at(b, 4)), vdupq_n_u32(u32::from(u16_at(b, 2))));
        std::array::from_fn(|h| {
            let at = |bits: i32| std::array::from_fn(|i| (-bits * (4 * h + i) as i32) as u32);
            let low = vandq_u32(vshlq_u32(low, vreinterpretq_s32_u32(words(at(4)))), vdupq_n_u32(15));
            let high = vandq_u32(vshlq_u32(high, vreinterpretq_s32_u32(words(at(2)))), vdupq_n_u32(3));
            let s = vreinterpretq_s32_u32(vorrq_u32(low, vshlq_n_u32::<4>(high)));
            vmulq_n_f32(vcvtq_f32_s32(vsubq_s32(s, vdupq_n_s32(32))), d)
        })
    }

    /// What [`crate::quant::block::e8m0_half`] makes of four exponents.
    fn e8m0_half(e: uint32x4_t) -> float32x4_t {
        let normal = vshlq_n_u32::<23>(vsubq_u32(e, vdupq_n_u32(1)));
        let denormal = vshlq_u32(vdupq_n_u32(0x0020_0000), vreinterpretq_s32_u32(e));
        vreinterpretq_f32_u32(vbslq_u32(vcltq_u32(e, vdupq_n_u32(2)), denormal, normal))
    }
}

/// Declares how NEON reads a type: [`Row`]'s fields. The body has the chunk's bytes as an array.
macro_rules! unpack {
    ($ty:ident, $form:expr, $bits:literal, $fine:literal, |$b:ident| $body:expr) => {
        impl Unpack<Quad> for $ty {
            const TYPE: GgmlType = GgmlType::$ty;
            const FORM: Form = $form;
            const BITS: u32 = $bits;
            const FINE: bool = $fine;
            neon! {
                // SAFETY: needs the CPU's features, as the trait says.
                unsafe fn unpack(bytes: &[u8]) -> Row<Quad> {
                    let $b = sized::<{ $ty::BYTES }>(bytes);
                    let (w, scale, min, fine) = $body;
                    Row { w, scale, min, fine }
                }
            }
        }
        impl $ty {
            /// Bytes of 256 weights.
            const BYTES: usize = <$ty as Unpack<Quad>>::BYTES;
        }
    };
    // A scale for each 32 and perhaps a minimum.
    ($ty:ident, $form:expr, $bits:literal, |$b:ident| $body:expr) => {
        unpack!($ty, $form, $bits, false, |$b| {
            let (w, scale, min) = $body;
            (w, scale, min, MaybeUninit::uninit())
        });
    };
}

unpack!(Q4_0, Form::Offset(8), 4, |b| (nibble_blocks(b, 2, 18), halves(b, 0, 18), no_min()));

unpack!(Q4_1, Form::Min, 4, |b| (nibble_blocks(b, 4, 20), halves(b, 0, 20), negated(halves(b, 2, 20))));

unpack!(Q5_0, Form::Offset(16), 5, |b| {
    (or(nibble_blocks(b, 6, 22), fifth_bits(b, 2, 22)), halves(b, 0, 22), no_min())
});

unpack!(Q5_1, Form::Min, 5, |b| {
    let w = or(nibble_blocks(b, 8, 24), fifth_bits(b, 4, 24));
    (w, halves(b, 0, 24), negated(halves(b, 2, 24)))
});

unpack!(Q8_0, Form::Signed, 8, |b| {
    let w =
        std::array::from_fn(|j| turn(std::array::from_fn(|i| load16(b, 34 * (4 * (j / 2) + i) + 2 + 16 * (j % 2)))));
    (w, halves(b, 0, 34), no_min())
});

unpack!(IQ4_NL, Form::Signed, 8, |b| (look_up(&IQ4_VALUES, nibble_blocks(b, 2, 18)), halves(b, 0, 18), no_min()));

unpack!(IQ4_XS, Form::Signed, 8, |b| {
    (look_up(&IQ4_VALUES, nibble_blocks(b, 8, 16)), iq4_xs(b, half(b, 0)), no_min())
});

unpack!(MXFP4, Form::Offset(12), 5, |b| {
    let e = |h: usize| e8m0_half(words(std::array::from_fn(|i| u32::from(b[17 * (4 * h + i)]))));
    (look_up(&MXFP4_UNSIGNED, nibble_blocks(b, 1, 17)), [e(0), e(1)], no_min())
});

unpack!(Q2_K, Form::Min, 2, true, |b| {
    let sc = load16(b, 0);
    let w = std::array::from_fn(|j| spread(load16(b, 16 + 16 * j), down(2, 0), 3));
    (w, whole(b, 80), whole(b, 82), MaybeUninit::new([per16(low4(sc)), per16(high4(sc))]))
});

unpack!(Q3_K, Form::Offset(4), 3, true, |b| {
    let low = std::array::from_fn(|j| spread(load16(b, 32 + 16 * j), down(2, 0), 3));
    let high = std::array::from_fn(|j| spread(load16(b, 16 * (j % 2)), down(1, 2 - 4 * (j / 2) as i8), 4));
    let sc = vsubq_u8(vreinterpretq_u8_u32(words(scales_k3(b, 96))), vdupq_n_u8(32));
    (or(low, high), whole(b, 108), no_min(), MaybeUninit::new([per16(sc), none()]))
});

unpack!(Q4_K, Form::Min, 4, |b| {
    let (scale, min) = k4(b);
    (nibble_runs(b, 16), scale, min)
});

unpack!(Q5_K, Form::Min, 5, |b| {
    let high = std::array::from_fn(|j| spread(load16(b, 16 + 16 * (j % 2)), down(1, 4 - 4 * (j / 2) as i8), 16));
    let (scale, min) = k4(b);
    (or(nibble_runs(b, 48), high), scale, min)
});

unpack!(Q6_K, Form::Offset(32), 6, true, |b| {
    // The low nibbles of 64 bytes are two runs of 32 weights, the high ones the next two.
    let low = std::array::from_fn(|j| {
        let at = 64 * (j / 2) + 16 * (j % 2);
        let [low, high] = zip32(load16(b, at), load16(b, at + 32));
        let ([k0, k1], [k2, k3]) = (zip64(low4(low), high4(low)), zip64(low4(high), high4(high)));
        [k0, k1, k2, k3]
    });
    let high = std::array::from_fn(|j| spread(load16(b, 128 + 16 * j), down(2, 4), 0x30));
    (or(low, high), whole(b, 208), no_min(), MaybeUninit::new([per16(load16(b, 192)), none()]))
});

impl<const SCALES: usize> Unpack<Quad> for Expanded<SCALES> {
    const TYPE: GgmlType = Self::TYPE;
    const FORM: Form = Self::FORM;
    const BITS: u32 = Self::BITS;
    const FINE: bool = false;
    const HALVES: bool = Self::HALVES;
    const BYTES: usize = Self::BYTES;
    #[inline(always)]
    fn row_bytes(w: &QMat<'_>) -> usize {
        Self::row_bytes(w)
    }
    neon! {
        // SAFETY: needs the CPU's features, as [`Unpack`] says.
        unsafe fn unpack(bytes: &[u8]) -> Row<Quad> {
            let (w, scales) = Self::parts(bytes);
            // SAFETY: there are eight floats, and where halves have scales sixteen.
            unsafe {
                let floats = |from: usize| [vld1q_f32(scales.add(from)), vld1q_f32(scales.add(from + 4))];
                // As Q8_0's: sixteen bytes of each of four spans, first halves or second ones.
                let lanes = |j: usize| turn(std::array::from_fn(|i| load16(w, 32 * (4 * (j / 2) + i) + 16 * (j % 2))));
                Row {
                    w: std::array::from_fn(lanes),
                    scale: floats(0),
                    min: if Self::HALVES { floats(8) } else { no_min() },
                    fine: MaybeUninit::uninit(),
                }
            }
        }
    }
}

impl Lanes for L128 {
    neon! {
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn splat(x: f32) -> Self {
            L128([vdupq_n_f32(x); 4])
        }
        // SAFETY: needs the CPU's features, as the trait says, and `p` is valid for sixteen numbers.
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller gives sixteen elements.
            L128(std::array::from_fn(|j| unsafe { vld1q_f32(p.add(4 * j)) }))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn splat_f16(p: *const f16) -> Self {
            // SAFETY: the caller gives one.
            let x = vdup_n_u16(unsafe { p.cast::<u16>().read_unaligned() });
            L128([vcvt_f32_f16(vreinterpret_f16_u16(x)); 4])
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn load_f16(p: *const f16) -> Self {
            // SAFETY: the caller gives sixteen elements.
            let x = std::array::from_fn(|j| unsafe { vld1_u16(p.add(4 * j).cast()) });
            L128(x.map(|x| vcvt_f32_f16(vreinterpret_f16_u16(x))))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn load_bf16(p: *const bf16) -> Self {
            // SAFETY: the caller gives sixteen elements.
            let x = std::array::from_fn(|j| unsafe { vld1_u16(p.add(4 * j).cast()) });
            L128(x.map(|x| vreinterpretq_f32_u32(vshll_n_u16::<16>(x))))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn load_i8(p: *const i8) -> Self {
            // SAFETY: the caller gives sixteen elements.
            let x = unsafe { vld1q_s8(p) };
            let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
            let x = [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)];
            L128(x.map(|x| vcvtq_f32_s32(vmovl_s16(x))))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn store(self, p: *mut f32) {
            for (j, x) in self.0.into_iter().enumerate() {
                // SAFETY: the caller gives room for sixteen elements.
                unsafe { vst1q_f32(p.add(4 * j), x) }
            }
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn store_f16(self, p: *mut f16) {
            for (j, x) in self.0.into_iter().enumerate() {
                // SAFETY: the caller gives room for sixteen elements.
                unsafe { vst1_u16(p.add(4 * j).cast(), vreinterpret_u16_f16(vcvt_f16_f32(x))) }
            }
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn add(self, b: Self) -> Self {
            L128(std::array::from_fn(|j| vaddq_f32(self.0[j], b.0[j])))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn mul(self, b: Self) -> Self {
            L128(std::array::from_fn(|j| vmulq_f32(self.0[j], b.0[j])))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn div(self, b: Self) -> Self {
            L128(std::array::from_fn(|j| vdivq_f32(self.0[j], b.0[j])))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            L128(std::array::from_fn(|j| vfmaq_f32(c.0[j], self.0[j], b.0[j])))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn fnma(self, b: Self, c: Self) -> Self {
            L128(std::array::from_fn(|j| vfmsq_f32(c.0[j], self.0[j], b.0[j])))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn max(self, b: Self) -> Self {
            // Not `fmax`, which gives NaN for a NaN on either side.
            L128(std::array::from_fn(|j| vbslq_f32(vcgtq_f32(self.0[j], b.0[j]), self.0[j], b.0[j])))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn min(self, b: Self) -> Self {
            L128(std::array::from_fn(|j| vbslq_f32(vcltq_f32(self.0[j], b.0[j]), self.0[j], b.0[j])))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn round(self) -> Self {
            L128(self.0.map(|x| vrndnq_f32(x)))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn pow2(self) -> Self {
            L128(self.0.map(|n| {
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127))))
            }))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn zero_below(self, x: Self, limit: f32) -> Self {
            let keep = |j| vmvnq_u32(vcltq_f32(x.0[j], vdupq_n_f32(limit)));
            let bits = |j: usize| vandq_u32(vreinterpretq_u32_f32(self.0[j]), keep(j));
            L128(std::array::from_fn(|j| vreinterpretq_f32_u32(bits(j))))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
            // Row `r` of the result has in register `j` words `r` of rows `4 * j` to `4 * j + 3`.
            let block = |j: usize, i: usize| {
                turn(std::array::from_fn(|n| vreinterpretq_u8_f32(rows[4 * j + n].0[i])))
            };
            let mut out = rows;
            for i in 0..4 {
                let columns: [_; 4] = std::array::from_fn(|j| block(j, i));
                for k in 0..4 {
                    out[4 * i + k] = L128(std::array::from_fn(|j| vreinterpretq_f32_u8(columns[j][k])));
                }
            }
            out
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn partner(self) -> Self {
            let [a, b, c, d] = self.0;
            L128([b, a, d, c])
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn where_greater(self, b: Self, new: Self, old: Self) -> Self {
            L128(std::array::from_fn(|j| vbslq_f32(vcgtq_f32(self.0[j], b.0[j]), new.0[j], old.0[j])))
        }
        // SAFETY: needs the CPU's features, as the trait says.
        unsafe fn sum(self) -> f32 {
            let [a, b, c, d] = self.0;
            sum4(vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d)))
        }
    }
}
