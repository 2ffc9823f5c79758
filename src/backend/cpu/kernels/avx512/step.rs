//! A span of some groups of sixteen rows times some tokens: what a prompt spends most of its time in.
//!
//! For two groups and as many tokens as [`step`] lists, which is nearly always, it is assembly: sums, integers and what they
//! are made of take up to 28 of 32 registers. The compiler, which gathers loads ahead of the products that use them, kept
//! half of the sums in memory, whatever was tried to dissuade it; prompts took 6 % longer.
//!
//! Must not know: panels, how many spans there are.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::offset_of;

use super::super::driver::{Form, Unpack, offset};
use super::panel::CHUNKS;
use super::sixteen::packed;
use super::{Avx512, Wide};
use crate::quant::act::{ActChunk, SPAN};

/// Words of four weights in a span.
const WORDS: usize = SPAN / 4;

/// A span of sixteen rows, each in its lane; where [`packed`], two spans.
#[repr(C, align(64))]
pub(super) struct Cell {
    /// Where [`packed`], the first span's weights in the low nibbles, the second one's in the high ones.
    pub w: [__m512i; WORDS],
    /// Of the first span, then of the second, for weights that are sixteen times as large.
    pub scale: [__m512; 2],
    /// Minima of the first span and the second, where the form is [`Form::Min`]; where [`Unpack::FINE`], the scale of each
    /// half, a whole number. Of no meaning otherwise.
    pub others: [__m512; 2],
}

/// Which of a chunk's cells has span `s`.
pub(super) const fn cell_of<B: Unpack<Wide>>(s: usize) -> usize {
    if packed::<B>() { s / 2 } else { s }
}

/// Which of its cell's spans `s` is.
pub(super) const fn in_cell<B: Unpack<Wide>>(s: usize) -> usize {
    if packed::<B>() { s % 2 } else { 0 }
}

/// The bits that span `s` has of a [`packed`] byte.
const fn nibble(s: usize) -> u8 {
    [0x0f, 0xf0][s % 2]
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

// Parts of the assembly, each for all tokens. `i`, `h` and `f` are sums of integers, of a second half and of floats, 0 and 1
// the groups of rows; `a`, `b` and `t` hold what two groups and a token have to give.

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

/// The four words of a half, 0 or 16, added to integers: `j` runs over [`word`]'s first term. `$of` loads a word.
macro_rules! products {
    ($half:literal $($x:ident $i0:ident $i1:ident)*) => { products!("vmovdqa64 {", "}, [", $half $($x $i0 $i1)*) };
    (nibbles $half:literal $($x:ident $i0:ident $i1:ident)*) => {
        products!("vpandq {", "}, {mask}, [", $half $($x $i0 $i1)*)
    };
    ($of:literal, $from:literal, $half:literal $($x:ident $i0:ident $i1:ident)*) => { concat!(
        ".irp j, 0, 64, 128, 192\n",
        $of, "a", $from, "{cell} + 16 * ", $half, " + \\j]\n",
        $of, "b", $from, "{cell} + {cell_bytes} + 16 * ", $half, " + \\j]\n",
        $(
            "vpbroadcastd {t}, [{", stringify!($x), "} + {q} + ", $half, " + \\j]\n",
            "vpdpbusd {", stringify!($i0), "}, {a}, {t}\n",
            "vpdpbusd {", stringify!($i1), "}, {b}, {t}\n",
        )*
        ".endr\n",
    ) };
}

/// What the cells have at `$at`, to `a` and `b`.
macro_rules! load {
    ($at:literal) => {
        concat!("vmovaps {a}, [{cell} + ", $at, "]\n", "vmovaps {b}, [{cell} + {cell_bytes} + ", $at, "]\n")
    };
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
        "vbroadcastss {t}, [{", stringify!($x), "} + 4 * {s} + {d}]\n",
        "vfmadd231ps {", stringify!($f0), "}, {", stringify!($i0), "}, {t}\n",
        "vfmadd231ps {", stringify!($f1), "}, {", stringify!($i1), "}, {t}\n",
    )*) };
}

/// [`plain`] of a form, for two groups of rows and the tokens listed: for each its number, and names for its pointer and
/// registers.
macro_rules! in_registers {
    (min, $of:tt, $($t:literal $x:ident $i0:ident $i1:ident $h0:ident $h1:ident $f0:ident $f1:ident,)*) => {
        in_registers!(
            @ $of,
            [
                from_zero!($($i0 $i1)*), products!("0" $($x $i0 $i1)*), products!("16" $($x $i0 $i1)*),
                load!("{scale}"), to_floats!($($i0 $i1)*), scale!($($i0 $i1)*),
                load!("{others}"), less_minima!($($x $i0 $i1)*),
            ]
            [others = const offset_of!(Cell, others), total = const offset_of!(ActChunk, s),]
            $($t $x $i0 $i1 $f0 $f1,)*
        )
    };
    (packed, ($cells:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
     $($t:literal $x:ident $i0:ident $i1:ident $h0:ident $h1:ident $f0:ident $f1:ident,)*) => {
        in_registers!(
            @ ($cells, $xs, $starts, $s, $acc, $gone),
            [
                from_zero!($($i0 $i1)*), products!(nibbles "0" $($x $i0 $i1)*), products!(nibbles "16" $($x $i0 $i1)*),
                load!("{odd} + {scale}"), to_floats!($($i0 $i1)*), scale!($($i0 $i1)*),
                load!("{odd} + {others}"), less_minima!($($x $i0 $i1)*),
            ]
            [
                others = const offset_of!(Cell, others),
                total = const offset_of!(ActChunk, s),
                odd = in(reg) size_of::<__m512>() * ($s % 2),
                mask = in(zmm_reg) _mm512_set1_epi8(nibble($s) as i8),
            ]
            $($t $x $i0 $i1 $f0 $f1,)*
        )
    };
    (offset, ($cells:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
     $($t:literal $x:ident $i0:ident $i1:ident $h0:ident $h1:ident $f0:ident $f1:ident,)*) => {
        in_registers!(
            @ ($cells, $xs, $starts, $s, $acc, $gone),
            [
                from_starts!("0" $($t $i0 $i1)*), products!("0" $($x $i0 $i1)*), products!("16" $($x $i0 $i1)*),
                load!("{scale}"), to_floats!($($i0 $i1)*), scale!($($i0 $i1)*),
            ]
            [starts = in(reg) $starts, start_bytes = const START_BYTES,]
            $($t $x $i0 $i1 $f0 $f1,)*
        )
    };
    (fine, ($cells:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
     $($t:literal $x:ident $i0:ident $i1:ident $h0:ident $h1:ident $f0:ident $f1:ident,)*) => {
        in_registers!(
            @ ($cells, $xs, $starts, $s, $acc, $gone),
            [
                from_starts!("0" $($t $i0 $i1)*), products!("0" $($x $i0 $i1)*),
                from_starts!("16" $($t $h0 $h1)*), products!("16" $($x $h0 $h1)*),
                load!("{others}"), to_floats!($($i0 $i1)*), scale!($($i0 $i1)*),
                load!("{others} + 64"), to_floats!($($h0 $h1)*), add_scaled!($($i0 $i1 $h0 $h1)*),
                load!("{scale}"), scale!($($i0 $i1)*),
            ]
            [
                starts = in(reg) $starts,
                start_bytes = const START_BYTES,
                others = const offset_of!(Cell, others),
                $($h0 = out(zmm_reg) $gone, $h1 = out(zmm_reg) $gone,)*
            ]
            $($t $x $i0 $i1 $f0 $f1,)*
        )
    };
    (@ ($cells:ident, $xs:ident, $starts:ident, $s:ident, $acc:ident, $gone:ident),
     [$($lines:expr,)*] [$($operands:tt)*]
     $($t:literal $x:ident $i0:ident $i1:ident $f0:ident $f1:ident,)*) => {
        asm!(
            $($lines,)*
            finish!($($x $i0 $i1 $f0 $f1)*),
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
            $($i0 = out(zmm_reg) $gone, $i1 = out(zmm_reg) $gone,)*
            $($f0 = inout(zmm_reg) $acc[$t][0], $f1 = inout(zmm_reg) $acc[$t][1],)*
            options(pure, readonly, nostack, preserves_flags)
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
    /// Span `s` of a chunk, as [`crate::quant::dot`] has it, onto `acc`. `starts` has those of a chunk and the first token:
    /// what the integers of each lane of [`ActChunk`] start from; those of whole spans are in their first lane.
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
        // Registers that only the assembly uses need a type, or they are named wrongly.
        let mut _gone: __m512i;
        // SAFETY: what is read are the cells, the tokens' chunks and the starts, of which the caller says that they are there.
        unsafe {
            match (R, T, B::FINE, matches!(B::FORM, Form::Min)) {
                (2, 6, ..) if packed::<B>() => of_tokens!(6, packed, (cells, x, starts, s, acc, _gone),),
                (2, 5, ..) if packed::<B>() => of_tokens!(5, packed, (cells, x, starts, s, acc, _gone),),
                (2, 4, ..) if packed::<B>() => of_tokens!(4, packed, (cells, x, starts, s, acc, _gone),),
                (2, 6, false, true) => of_tokens!(6, min, (cells, x, starts, s, acc, _gone),),
                (2, 5, false, true) => of_tokens!(5, min, (cells, x, starts, s, acc, _gone),),
                (2, 4, false, true) => of_tokens!(4, min, (cells, x, starts, s, acc, _gone),),
                (2, 6, false, false) => of_tokens!(6, offset, (cells, x, starts, s, acc, _gone),),
                (2, 5, false, false) => of_tokens!(5, offset, (cells, x, starts, s, acc, _gone),),
                (2, 4, false, false) => of_tokens!(4, offset, (cells, x, starts, s, acc, _gone),),
                (2, 4, true, false) => of_tokens!(4, fine, (cells, x, starts, s, acc, _gone),),
                (2, 3, true, false) => of_tokens!(3, fine, (cells, x, starts, s, acc, _gone),),
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
                let start = |lane: usize| match const { offset::<Avx512, B>() } {
                    0 => _mm512_setzero_si512(),
                    _ => _mm512_set1_epi32(*starts.add(t * START_BYTES / 4 + lane)),
                };
                let words = x.q.as_ptr().add(4 * lane(s));
                let dots = |cell: &Cell, range: std::ops::Range<usize>, mut dots: __m512i| {
                    for k in range {
                        let x = _mm512_set1_epi32(words.add(word(k)).cast::<i32>().read());
                        let mask = if packed::<B>() { nibble(s) } else { u8::MAX };
                        dots = _mm512_dpbusd_epi32(dots, _mm512_and_si512(cell.w[k], _mm512_set1_epi8(mask as i8)), x);
                    }
                    _mm512_cvtepi32_ps(dots)
                };
                let i = in_cell::<B>(s);
                for (cell, acc) in cells.iter().zip(acc) {
                    let mut sum = if B::FINE {
                        // Whole numbers below 2^24, which floats hold: see `crate::quant::dot::fine_sum`.
                        let first = _mm512_mul_ps(cell.others[0], dots(cell, 0..WORDS / 2, start(lane(s))));
                        _mm512_fmadd_ps(cell.others[1], dots(cell, WORDS / 2..WORDS, start(lane(s) + 4)), first)
                    } else {
                        dots(cell, 0..WORDS, start(lane(s)))
                    };
                    sum = _mm512_mul_ps(cell.scale[i], sum);
                    if matches!(B::FORM, Form::Min) {
                        sum = _mm512_fnmadd_ps(cell.others[i], _mm512_set1_ps(*x.s.get_unchecked(s)), sum);
                    }
                    *acc = _mm512_fmadd_ps(sum, _mm512_set1_ps(*x.d.get_unchecked(s)), *acc);
                }
            }
        }
    }
}
