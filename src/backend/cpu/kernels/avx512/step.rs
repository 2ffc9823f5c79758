//! A span of some groups of sixteen rows times some tokens: what a prompt spends most of its time in.
//!
//! For two groups and four to six tokens, which is nearly always, it is assembly. Its 24 sums and integers and what they are
//! made of take 30 of 32 registers, and the compiler, which gathers loads ahead of the products that use them, kept half of
//! the sums in memory, whatever was tried to dissuade it.
//!
//! Must not know: panels, how many spans there are.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::offset_of;

use super::super::driver::{Form, Unpack, offset};
use super::panel::CHUNKS;
use super::{Avx512, Wide};
use crate::quant::act::{ActChunk, SPAN};

/// Words of four weights in a span.
pub(super) const WORDS: usize = SPAN / 4;

/// A span of sixteen rows, each in its lane.
#[repr(C, align(64))]
pub(super) struct Cell {
    pub w: [__m512i; WORDS],
    pub scale: __m512,
    /// Of no meaning unless the form is [`Form::Min`].
    pub min: __m512,
}

/// Bytes from a token's starts of a chunk to the next one's.
const START_BYTES: usize = CHUNKS * size_of::<__m512i>();

/// The first lane of [`ActChunk`] that has a half of span `s`: see [`crate::quant::act::LANE_GROUP`].
const fn lane(s: usize) -> usize {
    s + (s & 4)
}

/// Where word `k` of a span is, from its first one in [`ActChunk::q`]: word `k % 4` of half `k / 4`, which is four lanes on.
const fn word(k: usize) -> usize {
    64 * (k % 4) + 16 * (k / 4)
}

/// [`plain`] for two groups of rows and the tokens listed: for each its number, and names for its pointer, two sums of
/// integers and two of floats.
macro_rules! in_registers {
    (min, ($cells:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
     $($t:tt $x:ident $i0:ident $i1:ident $f0:ident $f1:ident,)*) => {
        in_registers!(
            @
            [$(
                concat!("vpxord {", stringify!($i0), "}, {", stringify!($i0), "}, {", stringify!($i0), "}"),
                concat!("vpxord {", stringify!($i1), "}, {", stringify!($i1), "}, {", stringify!($i1), "}"),
            )*]
            [
                "vmovaps {m0}, [{cell} + {min}]",
                "vmovaps {m1}, [{cell} + {cell_bytes} + {min}]",
                $(
                    concat!("vbroadcastss {t}, [{", stringify!($x), "} + 4 * {s} + {total}]"),
                    concat!("vfnmadd231ps {", stringify!($i0), "}, {m0}, {t}"),
                    concat!("vfnmadd231ps {", stringify!($i1), "}, {m1}, {t}"),
                )*
            ]
            [
                m0 = out(zmm_reg) $gone,
                m1 = out(zmm_reg) $gone,
                min = const offset_of!(Cell, min),
                total = const offset_of!(ActChunk, s),
            ]
            ($cells, $xs, $starts, $s, $acc, $gone), $($t $x $i0 $i1 $f0 $f1,)*
        )
    };
    (offset, ($cells:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
     $($t:tt $x:ident $i0:ident $i1:ident $f0:ident $f1:ident,)*) => {
        in_registers!(
            @
            [$(
                concat!("vpbroadcastd {", stringify!($i0), "}, [{starts} + {q} + ", stringify!($t), " * {start_bytes}]"),
                concat!("vmovdqa64 {", stringify!($i1), "}, {", stringify!($i0), "}"),
            )*]
            []
            [starts = in(reg) $starts, start_bytes = const START_BYTES,]
            ($cells, $xs, $starts, $s, $acc, $gone), $($t $x $i0 $i1 $f0 $f1,)*
        )
    };
    // In `.irp`, h and j are the terms of a [`word`]: its weights are 16 h + j bytes from the cell's start.
    (@ [$($begin:expr,)*] [$($min:expr,)*] [$($operands:tt)*] ($cells:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
       $($t:tt $x:ident $i0:ident $i1:ident $f0:ident $f1:ident,)*) => {
        asm!(
            $($begin,)*
            ".irp h, 0, 16",
            ".irp j, 0, 64, 128, 192",
            "vmovdqa64 {a}, [{cell} + 16 * \\h + \\j]",
            "vmovdqa64 {b}, [{cell} + {cell_bytes} + 16 * \\h + \\j]",
            $(
                concat!("vpbroadcastd {t}, [{", stringify!($x), "} + {q} + \\h + \\j]"),
                concat!("vpdpbusd {", stringify!($i0), "}, {a}, {t}"),
                concat!("vpdpbusd {", stringify!($i1), "}, {b}, {t}"),
            )*
            ".endr",
            ".endr",
            "vmovaps {a}, [{cell} + {scale}]",
            "vmovaps {b}, [{cell} + {cell_bytes} + {scale}]",
            $(
                concat!("vcvtdq2ps {", stringify!($i0), "}, {", stringify!($i0), "}"),
                concat!("vcvtdq2ps {", stringify!($i1), "}, {", stringify!($i1), "}"),
                concat!("vmulps {", stringify!($i0), "}, {", stringify!($i0), "}, {a}"),
                concat!("vmulps {", stringify!($i1), "}, {", stringify!($i1), "}, {b}"),
            )*
            $($min,)*
            $(
                concat!("vbroadcastss {t}, [{", stringify!($x), "} + 4 * {s} + {d}]"),
                concat!("vfmadd231ps {", stringify!($f0), "}, {", stringify!($i0), "}, {t}"),
                concat!("vfmadd231ps {", stringify!($f1), "}, {", stringify!($i1), "}, {t}"),
            )*
            cell = in(reg) $cells.as_ptr(),
            q = in(reg) 4 * lane($s),
            s = in(reg) $s,
            cell_bytes = const size_of::<Cell>(),
            scale = const offset_of!(Cell, scale),
            d = const offset_of!(ActChunk, d),
            a = out(zmm_reg) $gone,
            b = out(zmm_reg) $gone,
            t = out(zmm_reg) $gone,
            $($operands)*
            $($x = in(reg) &raw const *$xs[$t],)*
            $($i0 = out(zmm_reg) $gone,)*
            $($i1 = out(zmm_reg) $gone,)*
            $($f0 = inout(zmm_reg) $acc[$t][0],)*
            $($f1 = inout(zmm_reg) $acc[$t][1],)*
            options(pure, readonly, nostack, preserves_flags)
        )
    };
}

/// [`in_registers`] for four, five or six tokens.
macro_rules! of_tokens {
    (6, $form:ident, $of:tt, $($more:tt)*) => { of_tokens!(5, $form, $of, 5 x5 i5 j5 f5 g5, $($more)*) };
    (5, $form:ident, $of:tt, $($more:tt)*) => { of_tokens!(4, $form, $of, 4 x4 i4 j4 f4 g4, $($more)*) };
    (4, $form:ident, $of:tt, $($more:tt)*) => {
        in_registers!(
            $form, $of, 0 x0 i0 j0 f0 g0, 1 x1 i1 j1 f1 g1, 2 x2 i2 j2 f2 g2, 3 x3 i3 j3 f3 g3, $($more)*
        )
    };
}

avx512! {
    /// Span `s` of a chunk, as [`crate::quant::dot`] has it, onto `acc`. `starts` has those of a chunk and the first token.
    ///
    /// # Safety
    /// `s` is below [`SPANS`](crate::quant::act::SPANS); where the type has an offset, `starts` has sixteen numbers for each
    /// token, [`CHUNKS`] times sixteen apart.
    pub(super) unsafe fn step<B: Unpack<Wide>, const R: usize, const T: usize>(
        cells: &[Cell; R],
        x: [&ActChunk; T],
        starts: *const i32,
        s: usize,
        acc: &mut [[__m512; R]; T],
    ) {
        // Scratch registers need a type, or they are named wrongly.
        let mut _gone: __m512i;
        // SAFETY: what is read are the cells, the tokens' chunks and the starts, of which the caller says that they are there.
        unsafe {
            match (R, T, matches!(B::FORM, Form::Min)) {
                (2, 6, true) => of_tokens!(6, min, (cells, x, starts, s, acc, _gone),),
                (2, 5, true) => of_tokens!(5, min, (cells, x, starts, s, acc, _gone),),
                (2, 4, true) => of_tokens!(4, min, (cells, x, starts, s, acc, _gone),),
                (2, 6, false) => of_tokens!(6, offset, (cells, x, starts, s, acc, _gone),),
                (2, 5, false) => of_tokens!(5, offset, (cells, x, starts, s, acc, _gone),),
                (2, 4, false) => of_tokens!(4, offset, (cells, x, starts, s, acc, _gone),),
                _ => plain::<B, R, T>(cells, x, starts, s, acc),
            }
        }
    }

    /// [`step`] as its definition.
    ///
    /// # Safety
    /// As [`step`].
    unsafe fn plain<B: Unpack<Wide>, const R: usize, const T: usize>(
        cells: &[Cell; R],
        x: [&ActChunk; T],
        starts: *const i32,
        s: usize,
        acc: &mut [[__m512; R]; T],
    ) {
        for (t, (x, acc)) in x.into_iter().zip(acc).enumerate() {
            // SAFETY: the caller's promise; a word is four of the chunk's 256 bytes, at a multiple of four.
            unsafe {
                let start = if const { offset::<Avx512, B>() } == 0 { 0 } else { *starts.add(t * START_BYTES / 4 + lane(s)) };
                let words = x.q.as_ptr().add(4 * lane(s));
                let (d, total) = (_mm512_set1_ps(*x.d.get_unchecked(s)), _mm512_set1_ps(*x.s.get_unchecked(s)));
                for (cell, acc) in cells.iter().zip(acc) {
                    let mut dots = _mm512_set1_epi32(start);
                    for (k, w) in cell.w.iter().enumerate() {
                        dots = _mm512_dpbusd_epi32(dots, *w, _mm512_set1_epi32(words.add(word(k)).cast::<i32>().read()));
                    }
                    let mut sum = _mm512_mul_ps(cell.scale, _mm512_cvtepi32_ps(dots));
                    if matches!(B::FORM, Form::Min) {
                        sum = _mm512_fnmadd_ps(cell.min, total, sum);
                    }
                    *acc = _mm512_fmadd_ps(sum, d, *acc);
                }
            }
        }
    }
}
