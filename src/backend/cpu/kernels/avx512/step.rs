//! A span of some groups of sixteen rows times some tokens: what a prompt spends most of its time in.
//!
//! For two groups and as many tokens as [`step`] lists, which is nearly always, it is assembly: sums, integers and what they
//! are made of take up to 30 of 32 registers. The compiler, which gathers loads ahead of the products that use them, kept
//! half of the sums in memory, whatever was tried to dissuade it; prompts took 6 % longer.
//!
//! Must not know: panels, how many spans there are.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::offset_of;

use super::super::driver::{Form, Unpack, offset};
use super::panel::CHUNKS;
use super::{Avx512, Wide};
use crate::quant::GgmlType;
use crate::quant::act::{ActChunk, LANES, WORDS, lane, word};
use crate::quant::block::Q4_K;

/// How spans of a type are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Unsigned weights; this is to be taken away from each.
    Offset(u8),
    /// Unsigned weights; each span has a minimum.
    Min,
    /// The same with two spans in the nibbles of a cell's bytes.
    Packed,
    /// As [`Way::Offset`], and each half has a scale of its own: a whole number of the span's, or a float where the span's is 1.
    Halves(u8),
    /// Unsigned weights; each half has a minimum, a whole number of the span's.
    HalfMin,
}

impl Way {
    /// How `B` is multiplied.
    pub const fn of<B: Unpack<Wide>>() -> Way {
        match (B::TYPE, B::FORM) {
            (GgmlType::Q2_K, _) => Way::HalfMin,
            (GgmlType::Q3_K, _) => Way::Offset(Q3_K_OFFSET),
            (_, Form::Min) => Way::Min,
            _ if B::FINE || B::HALVES => Way::Halves(offset::<Avx512, B>()),
            _ => Way::Offset(offset::<Avx512, B>()),
        }
    }

    /// What sums of integers that start from [`BIAS`] are multiplied by, so that cells have what takes it away.
    pub const fn biased(self) -> Option<Biased> {
        match self {
            Way::Offset(_) | Way::Min | Way::HalfMin => Some(Biased::Scale),
            Way::Halves(_) => Some(Biased::FirstHalf),
            Way::Packed => None,
        }
    }
}

/// See [`Way::biased`].
#[derive(PartialEq, Eq)]
pub(super) enum Biased {
    /// A span's scale.
    Scale,
    /// The scale of a span's first half: one product less. The second half's is added as it is multiplied.
    FirstHalf,
}

/// A type, and how its spans are multiplied.
pub(super) trait Plan {
    type B: Unpack<Wide>;
    const WAY: Way;
}

/// Each span has a cell.
pub(super) struct Apart<B>(PhantomData<B>);

/// Two spans share a cell: [`Way::Packed`].
pub(super) struct Together<B>(PhantomData<B>);

impl<B: Unpack<Wide>> Plan for Apart<B> {
    type B = B;
    const WAY: Way = Way::of::<B>();
}

impl Plan for Together<Q4_K> {
    type B = Q4_K;
    const WAY: Way = Way::Packed;
}

/// What weights of Q3_K times their halves' scales, -124 to 128, are stored above.
pub(super) const Q3_K_OFFSET: u8 = 124;

/// 1.5 * 2^23. A whole number below 2^22 that is added to its bits is added to its value, so that integers are floats
/// without a conversion; the scale's product takes it away again. That rounds once, like the product alone: both products are
/// exact inside it, since scales have at most 17 bits. (Infinite scales, and those from 2^104 up that MXFP4 could have, give NaN.)
pub(super) const BIAS: f32 = 12_582_912.0;

/// A span of sixteen rows, each in its lane; two where the way is [`Way::Packed`].
#[repr(C, align(64))]
pub(super) struct Cell {
    /// Where [`Way::Packed`], the first span's weights in the low nibbles, the second one's in the high ones.
    pub w: [__m512i; WORDS],
    /// The scale. Then what takes [`BIAS`] away: minus it times the scale, or the first half's ([`Way::biased`]); where
    /// [`Way::Packed`], the second span's scale, for weights that are sixteen times as large.
    pub scale: [__m512; 2],
    /// [`Way::Min`]: the minimum; [`Way::Packed`]: of each span. [`Way::Halves`]: the scale of each half, a whole number.
    /// [`Way::HalfMin`]: the minimum, then the halves', two whole numbers of 16 bits. Of no meaning otherwise.
    pub others: [__m512; 2],
}

impl Way {
    /// Which of a chunk's cells has span `s`.
    pub const fn cell_of(self, s: usize) -> usize {
        if matches!(self, Way::Packed) { s / 2 } else { s }
    }

    /// Which of its cell's spans `s` is.
    pub const fn in_cell(self, s: usize) -> usize {
        if matches!(self, Way::Packed) { s % 2 } else { 0 }
    }
}

/// Where the weights of some chunks are: in the cells, or, where [`Way::Packed`] and rows lie
/// [`interleaved`](crate::quant::interleaved), where they always were. Bytes are all distances.
#[derive(Clone, Copy)]
pub(super) struct WeightsAt {
    /// Of the first chunk and group, from the first span on.
    pub first: *const u8,
    /// From a group to the next one.
    pub group: usize,
    /// From a chunk to the next one.
    pub chunk: usize,
    /// From the weights of a cell to those of the next one of its chunk.
    pub cell: usize,
}

/// The bits that span `s` has of a byte where [`Way::Packed`].
pub(super) const fn nibble(s: usize) -> u8 {
    [0x0f, 0xf0][s % 2]
}

/// Bytes from a token's starts of a chunk to the next one's.
const START_BYTES: usize = CHUNKS * size_of::<__m512i>();

// Parts of the assembly, each for all tokens. `i`, `h` and `f` are sums of integers, of a second half and of floats, 0 and 1
// the groups of rows; `a`, `b` and `t` hold what two groups and a token have to give.

/// Integers from [`BIAS`].
macro_rules! from_bias {
    ($($i0:ident $i1:ident)*) => { concat!($(
        "vmovdqa64 {", stringify!($i0), "}, {bias}\n",
        "vmovdqa64 {", stringify!($i1), "}, {bias}\n",
    )*) };
}

/// Integers from zero.
macro_rules! from_zero {
    ($($i0:ident $i1:ident)*) => { concat!($(
        "vpxord {", stringify!($i0), "}, {", stringify!($i0), "}, {", stringify!($i0), "}\n",
        "vpxord {", stringify!($i1), "}, {", stringify!($i1), "}, {", stringify!($i1), "}\n",
    )*) };
}

/// Integers from the starts of a half: 0 or 16, four lanes on.
macro_rules! from_starts {
    ($half:literal $($t:literal $i0:ident $i1:ident)*) => { concat!($(
        "vpbroadcastd {", stringify!($i0), "}, [{starts} + {q} + ", $t, " * {start_bytes} + ", $half, "]\n",
        "vmovdqa64 {", stringify!($i1), "}, {", stringify!($i0), "}\n",
    )*) };
}

/// The four words of a half, 0 or 16, added to integers: `j` runs over [`word`]'s first term. `$of` loads a word from `$first`
/// or, of the second group, `$second`.
macro_rules! products {
    ($half:literal $($x:ident $i0:ident $i1:ident)*) => {
        products!("vmovdqa64 {", "}, [", "{cell}", "{cell} + {cell_bytes}", $half $($x $i0 $i1)*)
    };
    (nibbles $half:literal $($x:ident $i0:ident $i1:ident)*) => {
        products!("vpandq {", "}, {mask}, [", "{w}", "{w} + {w_group}", $half $($x $i0 $i1)*)
    };
    ($of:literal, $from:literal, $first:literal, $second:literal, $half:literal $($x:ident $i0:ident $i1:ident)*) => { concat!(
        ".irp j, 0, 64, 128, 192\n",
        $of, "a", $from, $first, " + 16 * ", $half, " + \\j]\n",
        $of, "b", $from, $second, " + 16 * ", $half, " + \\j]\n",
        $(
            "vpbroadcastd {t}, [{", stringify!($x), "} + {q} + ", $half, " + \\j]\n",
            "vpdpbusd {", stringify!($i0), "}, {a}, {t}\n",
            "vpdpbusd {", stringify!($i1), "}, {b}, {t}\n",
        )*
        ".endr\n",
    ) };
}

/// What the cells have at `$at`, to `a` and `b` or other registers.
macro_rules! load {
    ($at:literal) => { load!($at, a b) };
    ($at:literal, $a:ident $b:ident) => {
        concat!(
            "vmovaps {", stringify!($a), "}, [{cell} + ", $at, "]\n",
            "vmovaps {", stringify!($b), "}, [{cell} + {cell_bytes} + ", $at, "]\n",
        )
    };
}

/// Integers above [`BIAS`], which are floats as they are, times the scales at `$at`.
macro_rules! scale_biased {
    ($at:literal, $($i0:ident $i1:ident)*) => { concat!(
        load!($at),
        load!("{scale} + 64", c d),
        $(
            "vfmadd213ps {", stringify!($i0), "}, {a}, {c}\n",
            "vfmadd213ps {", stringify!($i1), "}, {b}, {d}\n",
        )*
    ) };
}

/// Takes the halves' minima, times the halves' sums, times the spans' minima away.
macro_rules! less_half_minima {
    ($($t:literal $i0:ident $i1:ident)*) => { concat!(
        load!("{others} + 64"),
        load!("{others}", c d),
        $(
            "vpbroadcastd {t}, [{starts} + {q} + ", $t, " * {start_bytes}]\n",
            "vpmaddwd {u}, {a}, {t}\n",
            "vpmaddwd {t}, {b}, {t}\n",
            "vcvtdq2ps {u}, {u}\n",
            "vcvtdq2ps {t}, {t}\n",
            "vfnmadd231ps {", stringify!($i0), "}, {u}, {c}\n",
            "vfnmadd231ps {", stringify!($i1), "}, {t}, {d}\n",
        )*
    ) };
}

/// Integers to floats.
macro_rules! to_floats {
    ($($i0:ident $i1:ident)*) => { concat!($(
        "vcvtdq2ps {", stringify!($i0), "}, {", stringify!($i0), "}\n",
        "vcvtdq2ps {", stringify!($i1), "}, {", stringify!($i1), "}\n",
    )*) };
}

/// Times what [`load`] has loaded.
macro_rules! scale {
    ($($i0:ident $i1:ident)*) => { concat!($(
        "vmulps {", stringify!($i0), "}, {", stringify!($i0), "}, {a}\n",
        "vmulps {", stringify!($i1), "}, {", stringify!($i1), "}, {b}\n",
    )*) };
}

/// Adds the second halves times what [`load`] has loaded.
macro_rules! add_scaled {
    ($($i0:ident $i1:ident $h0:ident $h1:ident)*) => { concat!($(
        "vfmadd231ps {", stringify!($i0), "}, {", stringify!($h0), "}, {a}\n",
        "vfmadd231ps {", stringify!($i1), "}, {", stringify!($h1), "}, {b}\n",
    )*) };
}

/// Takes the minima, which [`load`] has loaded, times the spans' sums away.
macro_rules! less_minima {
    ($($x:ident $i0:ident $i1:ident)*) => { concat!($(
        "vbroadcastss {t}, [{", stringify!($x), "} + 4 * {s} + {total}]\n",
        "vfnmadd231ps {", stringify!($i0), "}, {a}, {t}\n",
        "vfnmadd231ps {", stringify!($i1), "}, {b}, {t}\n",
    )*) };
}

/// Adds everything times the tokens' scales to the sums.
macro_rules! finish {
    ($($x:ident $i0:ident $i1:ident $f0:ident $f1:ident)*) => { concat!($(
        "vbroadcastss {t}, [{", stringify!($x), "} + 4 * {s} + {x_scale}]\n",
        "vfmadd231ps {", stringify!($f0), "}, {", stringify!($i0), "}, {t}\n",
        "vfmadd231ps {", stringify!($f1), "}, {", stringify!($i1), "}, {t}\n",
    )*) };
}

/// [`plain`] of a form, chunk after chunk, for two groups of rows and the tokens listed: for each its number, and names for its
/// pointer and registers. The loop is inside: outside it took some forty scalar instructions a chunk, on ports that products use.
macro_rules! in_registers {
    (min, ($cells:ident, $n:ident, $w:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
     $($t:literal $x:ident $i0:ident $i1:ident $h0:ident $h1:ident $f0:ident $f1:ident,)*) => {
        in_registers!(
            @ ($cells, $n, $w, $xs, $starts, $s, $acc, $gone),
            [
                from_bias!($($i0 $i1)*), products!("0" $($x $i0 $i1)*), products!("16" $($x $i0 $i1)*),
                scale_biased!("{scale}", $($i0 $i1)*),
                load!("{others}"), less_minima!($($x $i0 $i1)*),
            ]
            [
                others = const offset_of!(Cell, others),
                total = const offset_of!(ActChunk, s),
                bias = in(zmm_reg) _mm512_set1_ps(BIAS),
                c = out(zmm_reg) $gone,
                d = out(zmm_reg) $gone,
            ]
            $($t $x $i0 $i1 $f0 $f1,)*
        )
    };
    (half_min, ($cells:ident, $n:ident, $w:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
     $($t:literal $x:ident $i0:ident $i1:ident $h0:ident $h1:ident $f0:ident $f1:ident,)*) => {
        in_registers!(
            @ ($cells, $n, $w, $xs, $starts, $s, $acc, $gone),
            [
                from_bias!($($i0 $i1)*), products!("0" $($x $i0 $i1)*), products!("16" $($x $i0 $i1)*),
                scale_biased!("{scale}", $($i0 $i1)*), less_half_minima!($($t $i0 $i1)*),
                "add {starts}, 64\n",
            ]
            [
                others = const offset_of!(Cell, others),
                starts = inout(reg) $starts => _,
                start_bytes = const START_BYTES,
                bias = in(zmm_reg) _mm512_set1_ps(BIAS),
                c = out(zmm_reg) $gone,
                d = out(zmm_reg) $gone,
                u = out(zmm_reg) $gone,
            ]
            $($t $x $i0 $i1 $f0 $f1,)*
        )
    };
    (packed, ($cells:ident, $n:ident, $w:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
     $($t:literal $x:ident $i0:ident $i1:ident $h0:ident $h1:ident $f0:ident $f1:ident,)*) => {
        in_registers!(
            @ ($cells, $n, $w, $xs, $starts, $s, $acc, $gone),
            [
                from_zero!($($i0 $i1)*), products!(nibbles "0" $($x $i0 $i1)*), products!(nibbles "16" $($x $i0 $i1)*),
                load!("{odd} + {scale}"), to_floats!($($i0 $i1)*), scale!($($i0 $i1)*),
                load!("{odd} + {others}"), less_minima!($($x $i0 $i1)*),
                "add {w}, {w_chunk}\n",
            ]
            [
                others = const offset_of!(Cell, others),
                total = const offset_of!(ActChunk, s),
                odd = in(reg) size_of::<__m512>() * ($s % 2),
                w = inout(reg) $w.first => _,
                w_group = in(reg) $w.group,
                w_chunk = in(reg) $w.chunk,
                mask = in(zmm_reg) _mm512_set1_epi8(nibble($s) as i8),
            ]
            $($t $x $i0 $i1 $f0 $f1,)*
        )
    };
    (offset, ($cells:ident, $n:ident, $w:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
     $($t:literal $x:ident $i0:ident $i1:ident $h0:ident $h1:ident $f0:ident $f1:ident,)*) => {
        in_registers!(
            @ ($cells, $n, $w, $xs, $starts, $s, $acc, $gone),
            [
                from_starts!("0" $($t $i0 $i1)*), products!("0" $($x $i0 $i1)*), products!("16" $($x $i0 $i1)*),
                scale_biased!("{scale}", $($i0 $i1)*),
                "add {starts}, 64\n",
            ]
            [
                starts = inout(reg) $starts => _,
                start_bytes = const START_BYTES,
                c = out(zmm_reg) $gone,
                d = out(zmm_reg) $gone,
            ]
            $($t $x $i0 $i1 $f0 $f1,)*
        )
    };
    (halves, ($cells:ident, $n:ident, $w:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
     $($t:literal $x:ident $i0:ident $i1:ident $h0:ident $h1:ident $f0:ident $f1:ident,)*) => {
        in_registers!(
            @ ($cells, $n, $w, $xs, $starts, $s, $acc, $gone),
            [
                from_starts!("0" $($t $i0 $i1)*), products!("0" $($x $i0 $i1)*),
                from_starts!("16" $($t $h0 $h1)*), products!("16" $($x $h0 $h1)*),
                scale_biased!("{others}", $($i0 $i1)*),
                load!("{others} + 64"), to_floats!($($h0 $h1)*), add_scaled!($($i0 $i1 $h0 $h1)*),
                load!("{scale}"), scale!($($i0 $i1)*),
                "add {starts}, 64\n",
            ]
            [
                starts = inout(reg) $starts => _,
                start_bytes = const START_BYTES,
                others = const offset_of!(Cell, others),
                c = out(zmm_reg) $gone,
                d = out(zmm_reg) $gone,
                $($h0 = out(zmm_reg) $gone, $h1 = out(zmm_reg) $gone,)*
            ]
            $($t $x $i0 $i1 $f0 $f1,)*
        )
    };
    (@ ($cells:ident, $n:ident, $w:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
     [$($lines:expr,)*] [$($operands:tt)*]
     $($t:literal $x:ident $i0:ident $i1:ident $f0:ident $f1:ident,)*) => {
        asm!(
            "2:\n",
            $($lines,)*
            finish!($($x $i0 $i1 $f0 $f1)*),
            "add {cell}, 2 * {cell_bytes}\n",
            $(concat!("add {", stringify!($x), "}, {chunk_bytes}\n"),)*
            "dec {n}\n",
            "jnz 2b\n",
            cell = inout(reg) $cells.as_ptr() => _,
            n = inout(reg) $n => _,
            chunk_bytes = const size_of::<ActChunk>(),
            q = in(reg) 4 * lane($s),
            s = in(reg) $s,
            cell_bytes = const size_of::<Cell>(),
            scale = const offset_of!(Cell, scale),
            x_scale = const offset_of!(ActChunk, d),
            a = out(zmm_reg) $gone,
            b = out(zmm_reg) $gone,
            t = out(zmm_reg) $gone,
            $($operands)*
            $($x = inout(reg) $xs[$t].as_ptr() => _,)*
            $($i0 = out(zmm_reg) $gone, $i1 = out(zmm_reg) $gone,)*
            $($f0 = inout(zmm_reg) $acc[$t][0], $f1 = inout(zmm_reg) $acc[$t][1],)*
            options(pure, readonly, nostack)
        )
    };
}

/// [`in_registers`] for three to six tokens.
macro_rules! of_tokens {
    (6, $form:ident, $of:tt, $($more:tt)*) => { of_tokens!(5, $form, $of, 5 x5 i50 i51 h50 h51 f50 f51, $($more)*) };
    (5, $form:ident, $of:tt, $($more:tt)*) => { of_tokens!(4, $form, $of, 4 x4 i40 i41 h40 h41 f40 f41, $($more)*) };
    (4, $form:ident, $of:tt, $($more:tt)*) => { of_tokens!(3, $form, $of, 3 x3 i30 i31 h30 h31 f30 f31, $($more)*) };
    (3, $form:ident, $of:tt, $($more:tt)*) => {
        in_registers!(
            $form, $of, 0 x0 i00 i01 h00 h01 f00 f01, 1 x1 i10 i11 h10 h11 f10 f11, 2 x2 i20 i21 h20 h21 f20 f21, $($more)*
        )
    };
}

avx512! {
    /// Span `s` of some chunks, at least one, as [`crate::quant::dot`] has it, onto `acc`: as many as each token has in `x`, which
    /// are as many as `cells` have, (chunks, R). `w`: the weights of the span, or of its cell, of these chunks. `starts` has those
    /// of the first token, as [`set_starts`](super::panel) made them.
    ///
    /// # Safety
    /// `s` is below [`SPANS`](crate::quant::act::SPANS); `cells` and each of `x` are of one length, and `w` of as many; where the way asks for starts,
    /// there are sixteen numbers for each chunk, and as many for the next token [`CHUNKS`] times sixteen on.
    pub(super) unsafe fn step<P: Plan, const R: usize, const T: usize>(
        cells: &[[Cell; R]],
        w: WeightsAt,
        x: [&[ActChunk]; T],
        starts: *const i32,
        s: usize,
        acc: &mut [[__m512; R]; T],
    ) {
        let n = cells.len();
        // Registers that only the assembly uses need a type, or they are named wrongly.
        let mut _gone: __m512i;
        // SAFETY: what is read are the cells, the tokens' chunks and the starts, of which the caller says that they are there.
        unsafe {
            match (R, T, P::WAY) {
                (2, 6, Way::Packed) => of_tokens!(6, packed, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 5, Way::Packed) => of_tokens!(5, packed, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 4, Way::Packed) => of_tokens!(4, packed, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 6, Way::Min) => of_tokens!(6, min, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 5, Way::Min) => of_tokens!(5, min, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 4, Way::Min) => of_tokens!(4, min, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 6, Way::HalfMin) => of_tokens!(6, half_min, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 5, Way::HalfMin) => of_tokens!(5, half_min, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 4, Way::HalfMin) => of_tokens!(4, half_min, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 6, Way::Offset(_)) => of_tokens!(6, offset, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 5, Way::Offset(_)) => of_tokens!(5, offset, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 4, Way::Offset(_)) => of_tokens!(4, offset, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 4, Way::Halves(_)) => of_tokens!(4, halves, (cells, n, w, x, starts, s, acc, _gone),),
                (2, 3, Way::Halves(_)) => of_tokens!(3, halves, (cells, n, w, x, starts, s, acc, _gone),),
                _ => {
                    for (c, cells) in cells.iter().enumerate() {
                        let w = WeightsAt { first: w.first.add(c * w.chunk), ..w };
                        plain::<P, R, T>(cells, w, x.map(|x| x.get_unchecked(c)), starts.add(c * LANES), s, acc);
                    }
                }
            }
        }
    }

    /// [`step`] of one chunk, as its definition.
    ///
    /// # Safety
    /// As [`step`].
    unsafe fn plain<P: Plan, const R: usize, const T: usize>(
        cells: &[Cell; R],
        w: WeightsAt,
        x: [&ActChunk; T],
        starts: *const i32,
        s: usize,
        acc: &mut [[__m512; R]; T],
    ) {
        let i = P::WAY.in_cell(s);
        let mask = _mm512_set1_epi8(if P::WAY == Way::Packed { nibble(s) } else { u8::MAX } as i8);
        for (t, (x, acc)) in x.into_iter().zip(acc).enumerate() {
            // SAFETY: the caller's promise; a word is four of the chunk's 256 bytes, at a multiple of four.
            unsafe {
                let start = |lane: usize| _mm512_set1_epi32(*starts.add(t * START_BYTES / 4 + lane));
                let words = x.q.as_ptr().add(4 * lane(s));
                let dots = |r: usize, range: std::ops::Range<usize>, mut dots: __m512i| {
                    for k in range {
                        let x = _mm512_set1_epi32(words.add(word(k)).cast::<i32>().read());
                        let w = _mm512_loadu_si512(w.first.add(r * w.group).cast::<__m512i>().add(k));
                        dots = _mm512_dpbusd_epi32(dots, _mm512_and_si512(w, mask), x);
                    }
                    dots
                };
                let scaled = |r: usize, from: __m512i| {
                    let above_bias = _mm512_castsi512_ps(dots(r, 0..WORDS, from));
                    _mm512_fmadd_ps(above_bias, cells[r].scale[0], cells[r].scale[1])
                };
                let bias = _mm512_castps_si512(_mm512_set1_ps(BIAS));
                let total = _mm512_set1_ps(*x.s.get_unchecked(s));
                for (r, (cell, acc)) in cells.iter().zip(acc).enumerate() {
                    let sum = match P::WAY {
                        Way::Offset(_) => scaled(r, start(lane(s))),
                        Way::Min => _mm512_fnmadd_ps(cell.others[0], total, scaled(r, bias)),
                        Way::Packed => {
                            let dots = _mm512_cvtepi32_ps(dots(r, 0..WORDS, _mm512_setzero_si512()));
                            _mm512_fnmadd_ps(cell.others[i], total, _mm512_mul_ps(cell.scale[i], dots))
                        }
                        Way::HalfMin => {
                            let least = _mm512_madd_epi16(_mm512_castps_si512(cell.others[1]), start(lane(s)));
                            _mm512_fnmadd_ps(cell.others[0], _mm512_cvtepi32_ps(least), scaled(r, bias))
                        }
                        Way::Halves(_) => {
                            // Whole numbers below 2^24, which floats hold: see `crate::quant::dot::fine_sum`.
                            let above_bias = _mm512_castsi512_ps(dots(r, 0..WORDS / 2, start(lane(s))));
                            let first = _mm512_fmadd_ps(above_bias, cell.others[0], cell.scale[1]);
                            let second = _mm512_cvtepi32_ps(dots(r, WORDS / 2..WORDS, start(lane(s) + 4)));
                            let both = _mm512_fmadd_ps(cell.others[1], second, first);
                            _mm512_mul_ps(cell.scale[0], both)
                        }
                    };
                    *acc = _mm512_fmadd_ps(sum, _mm512_set1_ps(*x.d.get_unchecked(s)), *acc);
                }
            }
        }
    }
}
