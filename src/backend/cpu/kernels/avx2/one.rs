//! One token: weights in an order of lanes that takes fewer instructions, for which its activations are reordered beforehand.
//!
//! Nibbles are turned before they are taken apart, which takes half as many instructions ([`Order`]). Out of memory on a Zen 5
//! core, as shares of a plain read's rate, with AVX2 and with AVX-VNNI: Q4_0 78 and 86 % (57 and 72 in the usual order), Q4_1 74
//! and 82 (61, 67), Q4_K 75 and 85 (71, 81), Q5_0 56 and 60 (52, 54), Q5_1 58 and 59 (52, 52), IQ4_NL 57 and 68 (50, 57), IQ4_XS
//! 51 and 61 (45, 54), MXFP4 55 and 60 (47, 48).
//!
//! Tried for Q4_K and Q5_K: both rows' scales in vectors; no faster, since the integer units do them meanwhile.
//!
//! Must not know: how many rows there are.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::super::bytes::{MXFP4_UNSIGNED, sized, u32_at};
use super::super::driver::{self, Form, Simd, Unpack, Weights};
use super::{L256, Narrow, W256, high4, k4, load16, load32, look_up, low4};
use crate::quant::act::{ActChunk, ActRow};
use crate::quant::block::{CHUNK, IQ4_NL, IQ4_VALUES, IQ4_XS, MXFP4, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1};
use crate::quant::{GgmlType, QMat};

/// Where words go that are read four registers by four, by nibble (low: registers 0 to 3, high: 4 to 7), and 128-bit part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// As [`driver`] has it.
    Usual,
    /// Eight blocks, low nibbles first halves of spans: those of spans 0 to 3 | 4 to 7, then second halves alike, so that halves
    /// are added without a permutation.
    Blocks,
    /// Four runs of 32 bytes, low nibbles even spans: spans 0, 2, 4, 6, first halves | second halves, then odd spans alike.
    Runs,
}

impl Order {
    const fn of(ty: GgmlType) -> Order {
        match ty {
            GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 => Order::Blocks,
            GgmlType::IQ4_NL | GgmlType::IQ4_XS | GgmlType::MXFP4 => Order::Blocks,
            GgmlType::Q4_K => Order::Runs,
            _ => Order::Usual,
        }
    }
}

/// `S` with weights in [`Order::of`] their type, and activations that [`reordered`] gave.
struct One<S>(PhantomData<S>);

/// [`super::super::MatMul`] for few tokens.
// SAFETY: needs the CPU's features and what [`super::super::MatMul`] asks for.
#[inline(always)]
pub(super) unsafe fn matmul<S: Simd<R = Narrow>, B: Unpack<Narrow>>(
    w: QMat<'_>,
    x: &[ActRow<'_>],
    y: &[*mut f32],
    then: &[u8],
) {
    let usual = const { matches!(Order::of(B::TYPE), Order::Usual) };
    // SAFETY: the caller's promise is the same.
    unsafe {
        match *x {
            [x] if !usual && x.chunks.len() <= driver::CHUNKS_OF_ONE => {
                driver::matmul_one::<One<S>, B>(w, x, y[0], then, |x| reordered::<B>(x));
            }
            _ => driver::matmul::<S, B>(w, x, y, then),
        }
    }
}

impl<S: Simd<R = Narrow>> Simd for One<S> {
    type R = Narrow;
    const TOKENS: usize = S::TOKENS;
    const SIGNED_OFFSET: u8 = S::SIGNED_OFFSET;
    // SAFETY: needs the CPU's features, as [`Simd`] says.
    #[inline(always)]
    unsafe fn from_signed(w: W256) -> W256 {
        // SAFETY: the caller's promise is the same.
        unsafe { S::from_signed(w) }
    }
    // SAFETY: needs the CPU's features, as [`Simd`] says.
    #[inline(always)]
    unsafe fn dot<B: Unpack<Narrow>>(w: &W256, x: &ActChunk) -> [__m256i; 2] {
        // SAFETY: the caller's promise is the same.
        unsafe { S::dot::<B>(w, x) }
    }
    // SAFETY: needs the CPU's features, as [`Simd`] says.
    #[inline(always)]
    unsafe fn unpack<B: Unpack<Narrow>>(bytes: [&[u8]; 2]) -> Weights<Narrow> {
        // SAFETY: the caller's promise is the same.
        unsafe {
            let (a, scale_a, min_a) = row::<B>(bytes[0]);
            let (b, scale_b, min_b) = row::<B>(bytes[1]);
            let w = if matches!(B::FORM, Form::Signed) { [S::from_signed(a), S::from_signed(b)] } else { [a, b] };
            let (scale, min) = (L256(scale_a, scale_b), L256(min_a, min_b));
            Weights { w, scale, min, fine: [MaybeUninit::uninit(); 2] }
        }
    }
    // SAFETY: needs the CPU's features, as [`Simd`] says.
    #[inline(always)]
    unsafe fn fold<B: Unpack<Narrow>>([a, b]: [[__m256i; 2]; 2]) -> L256 {
        // SAFETY: the caller's promise is the same.
        unsafe { L256(spans::<B>(a), spans::<B>(b)) }
    }
}

avx2! {
    /// A chunk with its integers as [`Order::of`] `B` has weights.
    fn reordered<B: Unpack<Narrow>>(x: &ActChunk) -> ActChunk {
        let mut out = *x;
        for at in (0..CHUNK).step_by(64) {
            let (a, b) = (load32(&x.q, at), load32(&x.q, at + 32));
            let (low, high) = if matches!(Order::of(B::TYPE), Order::Blocks) {
                (_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b))
            } else {
                let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
                let (even, odd) = (_mm256_shuffle_ps::<0b10_00_10_00>(a, b), _mm256_shuffle_ps::<0b11_01_11_01>(a, b));
                (_mm256_castps_si256(even), _mm256_castps_si256(odd))
            };
            // SAFETY: 64 bytes from there on are inside the array.
            unsafe {
                let to = out.q.as_mut_ptr().add(at);
                _mm256_storeu_si256(to.cast(), low);
                _mm256_storeu_si256(to.add(32).cast(), high);
            }
        }
        out
    }

    /// The spans' sums of a row, in order.
    fn spans<B: Unpack<Narrow>>([low, high]: [__m256i; 2]) -> __m256 {
        _mm256_cvtepi32_ps(if matches!(Order::of(B::TYPE), Order::Blocks) {
            _mm256_add_epi32(low, high)
        } else {
            let first = _mm256_permute2x128_si256::<0x20>(low, high);
            let second = _mm256_permute2x128_si256::<0x31>(low, high);
            let in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_permutevar8x32_epi32(_mm256_add_epi32(first, second), in_order)
        })
    }

    /// A chunk of a row: weights in [`Order::of`] their type, the spans' scales and minimums.
    fn row<B: Unpack<Narrow>>(bytes: &[u8]) -> (W256, __m256, __m256) {
        macro_rules! of {
            ($ty:ident, |$b:ident| $w:expr) => {{
                let $b = sized::<{ $ty::BYTES }>(bytes);
                let (scale, min) = $ty::scales($b);
                ($w, scale, min)
            }};
        }
        match B::TYPE {
            GgmlType::Q4_0 => of!(Q4_0, |b| nibbles(b, 2, 18)),
            GgmlType::Q4_1 => of!(Q4_1, |b| nibbles(b, 4, 20)),
            GgmlType::Q5_0 => of!(Q5_0, |b| with_fifth(nibbles(b, 6, 22), b, 2, 22)),
            GgmlType::Q5_1 => of!(Q5_1, |b| with_fifth(nibbles(b, 8, 24), b, 4, 24)),
            GgmlType::IQ4_NL => of!(IQ4_NL, |b| looked_up(IQ4_VALUES, nibbles(b, 2, 18))),
            GgmlType::IQ4_XS => of!(IQ4_XS, |b| looked_up(IQ4_VALUES, nibbles(b, 8, 16))),
            GgmlType::MXFP4 => of!(MXFP4, |b| looked_up(MXFP4_UNSIGNED, nibbles(b, 1, 17))),
            GgmlType::Q4_K => {
                let b = sized::<{ Q4_K::BYTES }>(bytes);
                let run = |i: usize| load32(b, 16 + 32 * i);
                let (scale, min) = k4(b);
                (turned_nibbles(run(0), run(1), run(2), run(3)), scale, min)
            }
            _ => unreachable!("a type in the usual order"),
        }
    }

    /// The nibbles of eight blocks, 16 bytes each.
    fn nibbles<const N: usize>(bytes: &[u8; N], at: usize, stride: usize) -> W256 {
        let two = |i: usize| {
            let (low, high) = (load16(bytes, at + i * stride), load16(bytes, at + (i + 4) * stride));
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
        };
        turned_nibbles(two(0), two(1), two(2), two(3))
    }

    /// Words of four registers, turned inside 128-bit parts, then their low nibbles and their high ones.
    fn turned_nibbles(a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> W256 {
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (w0, w1) = (_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
        let (ab, cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        let (w2, w3) = (_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
        [low4(w0), low4(w1), low4(w2), low4(w3), high4(w0), high4(w1), high4(w2), high4(w3)]
    }

    fn looked_up(values: [i8; 16], w: W256) -> W256 {
        let of = |index| look_up(values, index);
        [of(w[0]), of(w[1]), of(w[2]), of(w[3]), of(w[4]), of(w[5]), of(w[6]), of(w[7])]
    }

    /// Sixteen more where a bit is set: of each block's 32, four for each register.
    fn with_fifth(mut w: W256, bytes: &[u8], at: usize, stride: usize) -> W256 {
        let bits = |i: usize| u32_at(bytes, at + i * stride) as i32;
        let bits = _mm256_setr_epi32(bits(0), bits(1), bits(2), bits(3), bits(4), bits(5), bits(6), bits(7));
        let byte = _mm256_broadcastsi128_si256(_mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c));
        for two in 0..4 {
            let spread = _mm256_shuffle_epi8(bits, _mm256_or_si256(byte, _mm256_set1_epi8(two as i8)));
            for one in 0..2 {
                let bit = _mm256_set1_epi32(if one == 0 { 0x0804_0201 } else { 0x8040_2010_u32 as i32 });
                let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
                let w = &mut w[2 * two + one];
                *w = _mm256_or_si256(*w, _mm256_and_si256(is_set, _mm256_set1_epi8(16)));
            }
        }
        w
    }
}
