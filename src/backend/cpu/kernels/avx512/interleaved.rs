//! Few tokens times rows that lie [`interleaved`]: sixteen rows, each in a lane of its own.
//!
//! Nothing has to be turned or folded, so that from the caches one token goes twice as fast as by pairs of rows where registers
//! of 512 bits are worked on by halves (Zen 4). A span's integers stay in registers, its floats, of all eight spans, in L1.
//!
//! The bits are those of [`crate::quant::dot`]: each span is summed over chunks in order, and spans as `sum_lanes` adds them.
//!
//! Must not know: how a type's bytes are read.
//!
//! [`interleaved`]: crate::quant::interleaved

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::super::ahead::Ahead;
use super::super::driver::{self, Unpack};
use super::panel;
use super::sixteen::{Cells, Tile, four_of_rows, unpack};
use super::step::{Way, nibble};
use super::{Avx512, Wide};
use crate::quant::act::{ActChunk, ActRow, LANES, SPANS, WORDS, lane, word};
use crate::quant::interleaved::{RUN, TILE_ROWS};
use crate::quant::{GgmlType, QMat};

/// Tokens that share a tile's words while these are in registers.
const TOKENS: usize = 4;

/// [`crate::quant::interleaved::Turn`].
pub(super) fn turn(rows: &[u8], stride: usize, out: &mut [u8; TILE_ROWS * RUN]) {
    assert!((TILE_ROWS - 1) * stride + RUN <= rows.len(), "a run of each row");
    // SAFETY: only [`Kernels`](super::Kernels) of this set have this, which are given where the CPU has the features; the rows
    // have a run each, by the line above.
    unsafe { turn_rows(rows.as_ptr(), stride, out) }
}

avx512! {
    /// See [`turn`].
    ///
    /// # Safety
    /// Each row has a run of bytes.
    unsafe fn turn_rows(rows: *const u8, stride: usize, out: &mut [u8; TILE_ROWS * RUN]) {
        // SAFETY: the caller's promise; a run of sixteen rows is four registers.
        unsafe {
            for (i, words) in four_of_rows(rows, stride).into_iter().enumerate() {
                _mm512_storeu_si512(out.as_mut_ptr().add(64 * i).cast(), words);
            }
        }
    }

    /// [`super::super::MatMul`] for fewer tokens than `Simd::many_tokens` says, [`panel::MANY_TOKENS`] at most.
    ///
    /// # Safety
    /// As [`super::super::MatMul`].
    pub(super) unsafe fn matmul<B: Unpack<Wide>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8]) {
        let in_tiles = w.rows / TILE_ROWS * TILE_ROWS;
        let tiles = w.slice(0..in_tiles);
        let ahead = Ahead::new(tiles.data, then, true);
        for (i, tile) in tiles.data.chunks_exact(TILE_ROWS * w.row_bytes()).enumerate() {
            let each = x.len().div_ceil(x.len().div_ceil(TOKENS).max(1)).max(1);
            for (g, (x, y)) in x.chunks(each).zip(y.chunks(each)).enumerate() {
                let ahead = (g == 0).then_some(ahead);
                // SAFETY: the caller's promise is the same; the rows are of `w`.
                unsafe {
                    match x.len() {
                        4 => tile_times::<B, 4>(tile, x, y, i * TILE_ROWS, ahead),
                        3 => tile_times::<B, 3>(tile, x, y, i * TILE_ROWS, ahead),
                        2 => tile_times::<B, 2>(tile, x, y, i * TILE_ROWS, ahead),
                        _ => tile_times::<B, 1>(tile, x, y, i * TILE_ROWS, ahead),
                    }
                }
            }
        }
        if in_tiles < w.rows {
            let others = QMat { interleaved: false, ..w.slice(in_tiles..w.rows) };
            let mut to = [std::ptr::null_mut(); panel::MANY_TOKENS];
            for (to, y) in to.iter_mut().zip(y) {
                *to = y.wrapping_add(in_tiles);
            }
            // SAFETY: the caller's promise is the same; `y` has room for the rows behind the tiles.
            unsafe { driver::matmul::<Avx512, B>(others, x, &to[..y.len()], then) }
        }
    }

    /// A tile times `T` tokens, for the sixteen rows from `r` on.
    ///
    /// # Safety
    /// Each `y` has room for the rows.
    unsafe fn tile_times<B: Unpack<Wide>, const T: usize>(tile: &[u8], x: &[ActRow<'_>], y: &[*mut f32], r: usize, ahead: Option<Ahead>) {
        let n = tile.len() / (TILE_ROWS * B::BYTES);
        let mut chunks: [&[ActChunk]; T] = [&[]; T];
        for (chunks, x) in chunks.iter_mut().zip(x) {
            assert!(x.chunks.len() == n, "the table's door checked the lengths");
            *chunks = x.chunks;
        }
        let mut products = Products::<B, T>::new(chunks.map(|x| &x[0]));
        for c in 0..n {
            // SAFETY: each token has `n` chunks.
            products.x = chunks.map(|x| unsafe { x.get_unchecked(c) });
            let at = tile[c * TILE_ROWS * B::BYTES..].as_ptr();
            if let Some(ahead) = ahead {
                ahead.ask_page(at, TILE_ROWS * B::BYTES);
            }
            unpack(&Tile::<B>::new(tile, c, n), &mut products);
        }
        for (acc, y) in products.acc.iter().zip(y) {
            let [a, b, c, d]: [__m512; 4] = std::array::from_fn(|s| _mm512_add_ps(acc[s], acc[s + 4]));
            let sum = _mm512_add_ps(_mm512_add_ps(a, c), _mm512_add_ps(b, d));
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(y.add(r), sum) }
        }
    }
}

/// Written before it is read: [`Cells`] says in which order things come, and a type has all of its own.
type Unset = MaybeUninit<__m512>;

/// Sixteen rows times `T` tokens, chunk by chunk, as spans come.
struct Products<'a, B, const T: usize> {
    /// The tokens' chunks.
    x: [&'a ActChunk; T],
    /// Each span's sum over the chunks so far. (T, SPANS)
    acc: [[__m512; SPANS]; T],
    /// Where halves have scales: the first one's sum. (T, SPANS)
    first: [[Unset; SPANS]; T],
    /// A chunk's scales, and what else its type has. Zeroed tile by tile, they took 2 % of a token.
    scale: [Unset; SPANS],
    min: [Unset; SPANS],
    half_scale: [[Unset; 2]; SPANS],
    of: PhantomData<B>,
}

impl<'a, B: Unpack<Wide>, const T: usize> Products<'a, B, T> {
    #[inline(always)]
    fn new(x: [&'a ActChunk; T]) -> Self {
        // SAFETY: the CPU has the features, or this would not run.
        let zero = unsafe { _mm512_setzero_ps() };
        let unset = [Unset::uninit(); SPANS];
        Products {
            x,
            acc: [[zero; SPANS]; T],
            first: [unset; T],
            scale: unset,
            min: unset,
            half_scale: [[Unset::uninit(); 2]; SPANS],
            of: PhantomData,
        }
    }
}

impl<B: Unpack<Wide>, const T: usize> Cells for Products<'_, B, T> {
    // SAFETY: needs the CPU's features, as [`Cells`] says. Inlined whatever it costs: weights stay in registers.
    #[inline(always)]
    unsafe fn span(&mut self, s: usize, words: [__m512i; WORDS]) {
        assert!(s < SPANS); // a constant, or below one, once inlined
        // SAFETY: the caller's promise; a word is four of the chunk's 256 bytes, at a multiple of four; scales come before weights.
        unsafe {
            for (x, acc) in self.x.iter().zip(&mut self.acc) {
                let mut dots = _mm512_setzero_si512();
                for (k, weights) in words.into_iter().enumerate() {
                    let x = x.q.as_ptr().add(4 * lane(s) + word(k)).cast::<i32>().read();
                    dots = _mm512_dpbusd_epi32(dots, weights, _mm512_set1_epi32(x));
                }
                let dots = _mm512_cvtepi32_ps(dots);
                let total = _mm512_set1_ps(x.s[s]);
                let sum = match Way::of::<B>() {
                    Way::Offset(offset) => {
                        // Whole numbers below 2^24: exact.
                        let dots = _mm512_fnmadd_ps(_mm512_set1_ps(f32::from(offset)), total, dots);
                        _mm512_mul_ps(self.scale[s].assume_init(), dots)
                    }
                    Way::Min | Way::Packed => {
                        let scaled = _mm512_mul_ps(self.scale[s].assume_init(), dots);
                        _mm512_fnmadd_ps(self.min[s].assume_init(), total, scaled)
                    }
                    Way::Halves(_) => unreachable!("such a type comes by halves"),
                    Way::HalfMin => unreachable!("`is_possible` leaves such types out"),
                };
                acc[s] = _mm512_fmadd_ps(sum, _mm512_set1_ps(x.d[s]), acc[s]);
            }
        }
    }
    // SAFETY: needs the CPU's features, as [`Cells`] says. Inlined as well.
    #[inline(always)]
    unsafe fn half(&mut self, s: usize, half: usize, words: [__m512i; WORDS / 2]) {
        let Way::Halves(offset) = Way::of::<B>() else { unreachable!("such a type comes by spans") };
        assert!(s < SPANS && half < 2);
        // SAFETY: the caller's promise; words and scales are as above, and first halves come first.
        unsafe {
            for ((x, acc), first) in self.x.iter().zip(&mut self.acc).zip(&mut self.first) {
                let mut dots = _mm512_set1_epi32(-i32::from(offset) * x.h[lane(s) + 4 * half]);
                for (k, weights) in words.into_iter().enumerate() {
                    let x = x.q.as_ptr().add(4 * lane(s) + word(WORDS / 2 * half + k)).cast::<i32>().read();
                    dots = _mm512_dpbusd_epi32(dots, weights, _mm512_set1_epi32(x));
                }
                // Whole numbers below 2^24 again: see `crate::quant::dot::fine_sum`.
                let (dots, scale) = (_mm512_cvtepi32_ps(dots), self.half_scale[s][half].assume_init());
                if half == 0 {
                    first[s].write(_mm512_mul_ps(scale, dots));
                } else {
                    let both = _mm512_fmadd_ps(scale, dots, first[s].assume_init());
                    let sum = _mm512_mul_ps(self.scale[s].assume_init(), both);
                    acc[s] = _mm512_fmadd_ps(sum, _mm512_set1_ps(x.d[s]), acc[s]);
                }
            }
        }
    }
    // SAFETY: needs the CPU's features, as [`Cells`] says. Inlined as well.
    #[inline(always)]
    unsafe fn nibbles(&mut self, s: usize, words: [__m512i; WORDS]) {
        let (mut low, mut high) = (words, words);
        // SAFETY: the caller's promise.
        unsafe {
            for (low, high) in low.iter_mut().zip(&mut high) {
                *low = _mm512_and_si512(*low, _mm512_set1_epi8(nibble(0) as i8));
                *high = _mm512_and_si512(*high, _mm512_set1_epi8(nibble(1) as i8));
            }
            self.span(s, low);
            self.span(s + 1, high);
        }
    }
    #[inline(always)]
    fn scale(&mut self, s: usize, scales: __m512) {
        // High nibbles stay where they are, sixteen times as large. Exact: no scale of a half is so small.
        // SAFETY: the CPU has the features, or this would not run.
        let sixteenth = |x| unsafe { _mm512_mul_ps(x, _mm512_set1_ps(1.0 / 16.0)) };
        let in_nibbles = matches!(B::TYPE, GgmlType::Q4_K);
        self.scale[s].write(if in_nibbles && s % 2 == 1 { sixteenth(scales) } else { scales });
    }
    #[inline(always)]
    fn min(&mut self, s: usize, minima: __m512) {
        self.min[s].write(minima);
    }
    #[inline(always)]
    fn half_scale(&mut self, s: usize, half: usize, scales: __m512) {
        self.half_scale[s][half].write(scales);
    }
    #[inline(always)]
    fn half_minima(&mut self, _: usize, _: __m512i) {
        unreachable!("`is_possible` leaves such types out");
    }
}

const _: () = assert!(LANES == TILE_ROWS, "a row in each lane");
