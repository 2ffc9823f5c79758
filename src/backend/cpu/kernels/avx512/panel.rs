//! Many tokens: rows sixteen by sixteen, each in a lane of its own.
//!
//! With a row in each lane, eight dot products leave whole spans of sixteen rows, which nothing has to fold; an activation
//! is a broadcast, which costs no more than the load; and two groups of rows by six tokens keep every sum in a register.
//! Products and float operations share two ports, on Zen 5 as on Intel: of 20 to 26 for two groups and a token 16 are products,
//! so what counts is how few the others are ([`Way`]). On Zen 5 the inner loop ([`step`]) alone did 384 G
//! multiplications/s a core (Q4_K), and with unpacking 334 at 64 tokens from the caches, where pairs of rows, as
//! [`driver`](super::super::driver) has them, reach 292. What it costs is to turn sixteen rows by sixteen words, which takes
//! as long as some four to eight tokens: hence not for few ([`MANY_TOKENS`]).
//!
//! Where scales are finer than a span, they are multiplied into the weights if the product is a byte: Q2_K and Q3_K then have
//! spans like others. Against pairs of rows Q2_K became 1.4 to 2 times as fast, 8 to 144 tokens; against integers for each half
//! Q3_K 1.1 to 1.3 times (Intel). Q6_K's products are no bytes: each half has integers of its own, in four tokens' registers, and
//! both are added as floats, exactly: 12 % faster than by pairs of rows.
//!
//! AMX has been tried in their place (Emerald Rapids; tiles of sixteen rows by sixteen tokens, the same bits): from the caches
//! 20 to 55 % faster for types with three float operations a span and 16 tokens or more, while prompts of whole models (Q4_0,
//! MXFP4) came no faster: left out. Its products cost little, but the float operations on their integers stay, and nothing
//! overlaps. Bare loops of assembly on a later Xeon: tiles 630 G multiplications/s, Q4_K's floats 650, both by turns 340 (rows in
//! lanes 255), and floats with tile loads between them, whose results nobody waits for, 400. Also, sums of 16 tokens and tiles
//! on their way would need 24 KiB of L1 beside the panel.
//!
//! The bits are the driver's: each span is summed over chunks in order, and spans as [`sum_lanes`] adds them.
//!
//! Must not know: how a type's bytes are read.
//!
//! [`sum_lanes`]: crate::quant::dot::sum_lanes

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::ahead::NextRows;
use super::super::driver::Unpack;
use super::super::maker::is_amd;
use super::sixteen::{Cells, Rows, Tile, unpack};
use super::step::{BIAS, Biased, Cell, Plan, Way, WeightsAt, step};
use super::{high4, low4};
use crate::quant::QMat;
use crate::quant::act::{ActChunk, ActRow, LANES, SPANS, WORDS};
use crate::quant::block::CHUNK;
use crate::quant::interleaved::is_possible;

/// From this many tokens on, turning rows pays.
pub(super) const MANY_TOKENS: usize = 8;

/// The same where rows need not be turned, and unpacking costs little or few tokens much: prompts of 128 tokens became 1 to 4 %
/// (Q4_K) and 6 % (Q6_K) faster (Zen 4). Those of MXFP4 did not, those of Q8_0 became 4 % slower.
pub(super) const MANY_OF_TILES: usize = 4;

/// Tokens that share an unpacked panel: their activations, 432 KiB at 2048 columns, and the panel stay in the L2 cache. With
/// twice as many, in an L2 of 2 MiB, prompts of 512 took as long (Q4_K) or 5 % longer (Q6_K).
const BATCH: usize = 144;

/// Groups of sixteen rows that share each activation.
const GROUPS: usize = 2;

/// Tokens that share each weight, so that two groups' sums and integers take 24 of 32 registers.
const TOKENS: usize = 6;

/// The same where each half of a span has integers of its own.
const FINE_TOKENS: usize = 4;

/// Tokens of a group.
const fn tokens(way: Way) -> usize {
    if matches!(way, Way::Halves(_)) { FINE_TOKENS } else { TOKENS }
}

/// Chunks of columns that are unpacked at once where [`Way::Packed`], and so at most.
pub(super) const CHUNKS: usize = 4;

/// The same where each span has a cell.
const UNPACKED_CHUNKS: usize = 2;

/// The same: a panel of 24 KiB stays in the L1 cache while tokens pass. With eight chunks, which left it to L2, prompts took 2
/// to 4 % longer (Zen 5). With three where each span has a cell, 36 KiB, eight tokens took 17 % longer (Intel, L1 of 48 KiB),
/// many no less.
const fn chunks(way: Way) -> usize {
    if matches!(way, Way::Packed) { CHUNKS } else { UNPACKED_CHUNKS }
}

/// Some rows by up to [`chunks`] chunks: (SPANS, chunks, groups), or half as many spans where two share a cell.
struct Panel {
    cells: [MaybeUninit<Cell>; SPANS * UNPACKED_CHUNKS * GROUPS],
}

const _: () = assert!(SPANS / 2 * CHUNKS <= SPANS * UNPACKED_CHUNKS, "a packed panel has room");

/// Up to as many rows as a panel has: `n` of them, the first being row `first` of the matrix.
struct Strip<'a> {
    bytes: &'a [u8],
    first: usize,
    n: usize,
    /// Whether sixteen rows are a tile: see [`crate::quant::interleaved`].
    interleaved: bool,
}

/// A chunk's cells in a panel: every `step`th from its first span's on.
struct Place<'a, P> {
    cells: &'a mut [MaybeUninit<Cell>],
    step: usize,
    of: PhantomData<P>,
}

impl<'a, P: Plan> Place<'a, P> {
    #[inline(always)]
    fn new(panel: &'a mut Panel, at: usize, step: usize) -> Self {
        Place { cells: &mut panel.cells[at..=at + P::WAY.cell_of(SPANS - 1) * step], step, of: PhantomData }
    }

    #[inline(always)]
    fn cell(&mut self, s: usize) -> *mut Cell {
        assert!(s < SPANS); // a constant, once inlined
        // SAFETY: there is a cell for each span, by `new`.
        unsafe { self.cells.get_unchecked_mut(P::WAY.cell_of(s) * self.step).as_mut_ptr() }
    }

    /// What takes [`BIAS`] away from integers that are multiplied by `scales`.
    ///
    /// # Safety
    /// The CPU has the features.
    #[inline(always)]
    unsafe fn less_bias(&mut self, s: usize, scales: __m512) {
        // SAFETY: the cell is one of the panel's; the rest is the caller's promise.
        unsafe { (&raw mut (*self.cell(s)).scale[1]).write(_mm512_mul_ps(scales, _mm512_set1_ps(-BIAS))) }
    }
}

// SAFETY of all: the cell is one of the panel's, and fields may be written before others are.
impl<P: Plan> Cells for Place<'_, P> {
    avx512! {
        // SAFETY: needs the CPU's features, as [`Cells`] says.
        unsafe fn span(&mut self, s: usize, words: [__m512i; WORDS]) {
            for (k, word) in words.into_iter().enumerate() {
                // SAFETY: as above.
                unsafe { (&raw mut (*self.cell(s)).w[k]).write(word) }
            }
        }
        // SAFETY: needs the CPU's features, as [`Cells`] says.
        unsafe fn half(&mut self, s: usize, half: usize, words: [__m512i; WORDS / 2]) {
            for (k, word) in words.into_iter().enumerate() {
                // SAFETY: as above.
                unsafe { (&raw mut (*self.cell(s)).w[WORDS / 2 * half + k]).write(word) }
            }
        }
        // SAFETY: needs the CPU's features, as [`Cells`] says.
        unsafe fn nibbles(&mut self, s: usize, words: [__m512i; WORDS]) {
            for (k, word) in words.into_iter().enumerate() {
                // SAFETY: as above. Where spans share a cell, half as much is stored and read again.
                unsafe {
                    if matches!(P::WAY, Way::Packed) {
                        (&raw mut (*self.cell(s)).w[k]).write(word);
                    } else {
                        (&raw mut (*self.cell(s)).w[k]).write(low4(word));
                        (&raw mut (*self.cell(s + 1)).w[k]).write(high4(word));
                    }
                }
            }
        }
    }
    #[inline(always)]
    fn scale(&mut self, s: usize, scales: __m512) {
        let i = P::WAY.in_cell(s);
        // SAFETY: as above; the CPU has the features, or this would not run.
        unsafe {
            // High nibbles stay where they are, sixteen times as large. Exact: no scale of a half is so small.
            let scales = if i == 1 { _mm512_mul_ps(scales, _mm512_set1_ps(1.0 / 16.0)) } else { scales };
            (&raw mut (*self.cell(s)).scale[i]).write(scales);
            if P::WAY.biased() == Some(Biased::Scale) {
                self.less_bias(s, scales);
            }
        }
    }
    #[inline(always)]
    fn min(&mut self, s: usize, minima: __m512) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.cell(s)).others[P::WAY.in_cell(s)]).write(minima) }
    }
    #[inline(always)]
    fn half_scale(&mut self, s: usize, half: usize, scales: __m512) {
        // SAFETY: as above; the CPU has the features, or this would not run.
        unsafe {
            (&raw mut (*self.cell(s)).others[half]).write(scales);
            if P::WAY.biased() == Some(Biased::FirstHalf) && half == 0 {
                self.less_bias(s, scales);
            }
        }
    }
    #[inline(always)]
    fn half_minima(&mut self, s: usize, minima: __m512i) {
        // SAFETY: as above; the CPU has the features, or this would not run.
        unsafe { (&raw mut (*self.cell(s)).others[1]).write(_mm512_castsi512_ps(minima)) }
    }
}

/// A chunk's cells where weights, two spans' nibbles, stay where they are.
struct Scales<'a, P>(Place<'a, P>);

impl<P: Plan> Cells for Scales<'_, P> {
    // SAFETY: nothing is done.
    #[inline(always)]
    unsafe fn nibbles(&mut self, _: usize, _: [__m512i; WORDS]) {}
    #[inline(always)]
    fn scale(&mut self, s: usize, scales: __m512) {
        self.0.scale(s, scales);
    }
    #[inline(always)]
    fn min(&mut self, s: usize, minima: __m512) {
        self.0.min(s, minima);
    }
    // SAFETY: nothing is done.
    #[inline(always)]
    unsafe fn span(&mut self, _: usize, _: [__m512i; WORDS]) {
        unreachable!("such a type comes by nibbles")
    }
    // SAFETY: nothing is done.
    #[inline(always)]
    unsafe fn half(&mut self, _: usize, _: usize, _: [__m512i; WORDS / 2]) {
        unreachable!("such a type comes by nibbles")
    }
    #[inline(always)]
    fn half_scale(&mut self, _: usize, _: usize, _: __m512) {
        unreachable!("such a type comes by nibbles")
    }
    #[inline(always)]
    fn half_minima(&mut self, _: usize, _: __m512i) {
        unreachable!("such a type comes by nibbles")
    }
}

/// The lanes of [`ActChunk`] that have spans' first halves.
const FIRST_HALVES: u16 = 0x0f0f;

/// What each token's spans need beside its integers, sixteen numbers a chunk, as [`Way`] has it: see `set_starts`.
type Starts<const T: usize> = [[MaybeUninit<__m512i>; CHUNKS]; T];

/// Sums of a batch, (BATCH, SPANS, GROUPS): kept between blocks of columns.
type Sums = [MaybeUninit<__m512>; BATCH * SPANS * GROUPS];

avx512! {
    /// [`super::super::MatMul`]. Takes some 180 KiB of stack: a panel and a batch's sums.
    ///
    /// # Safety
    /// As [`super::super::MatMul`].
    pub(super) unsafe fn matmul<P: Plan>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8]) {
        let mut panel = Panel { cells: [const { MaybeUninit::uninit() }; _] };
        let mut sums: Sums = [const { MaybeUninit::uninit() }; _];
        let (row_bytes, n_chunk) = (P::B::row_bytes(&w), w.cols.div_ceil(CHUNK));
        for (x, y) in x.chunks(BATCH).zip(y.chunks(BATCH)) {
            let n_step = n_chunk.div_ceil(chunks(P::WAY)) * SPANS * x.len().div_ceil(tokens(P::WAY));
            for (i, bytes) in w.data.chunks(GROUPS * LANES * row_bytes).enumerate() {
                let first = i * GROUPS * LANES;
                let strip = Strip { bytes, first, n: bytes.len() / row_bytes, interleaved: w.interleaved };
                let rest = &w.data[first * row_bytes + bytes.len()..];
                let mut next = NextRows::of(if rest.is_empty() { then } else { rest }, bytes.len(), n_step);
                // SAFETY: the caller's promise is the same.
                unsafe {
                    if strip.n > LANES {
                        strip_times::<P, 2>(&strip, x, y, &mut panel, &mut sums, &mut next);
                    } else {
                        strip_times::<P, 1>(&strip, x, y, &mut panel, &mut sums, &mut next);
                    }
                }
            }
        }
    }

    /// `R` groups of rows times all tokens.
    ///
    /// # Safety
    /// Each token has as many chunks as a row, and each `y` room for the rows.
    unsafe fn strip_times<P: Plan, const R: usize>(
        rows: &Strip<'_>,
        x: &[ActRow<'_>],
        y: &[*mut f32],
        panel: &mut Panel,
        sums: &mut Sums,
        next: &mut NextRows,
    ) {
        let n_row = rows.n;
        let row_bytes = rows.bytes.len() / n_row;
        let n_chunk = row_bytes.div_ceil(P::B::BYTES);
        for first in (0..n_chunk).step_by(chunks(P::WAY)) {
            let block = first..n_chunk.min(first + chunks(P::WAY));
            let weights = fill::<P, R>(rows, &block, panel);
            let mut t = 0;
            while t < x.len() {
                let left = x.len() - t;
                let count = left.div_ceil(left.div_ceil(tokens(P::WAY)));
                let (x, y) = (&x[t..t + count], &y[t..t + count]);
                let last = block.end == n_chunk;
                // What need not wait for another block of columns stays in the L1 cache.
                let kept = if block.len() == n_chunk { 0 } else { t };
                let sums = &mut sums[kept * SPANS * R..(kept + count) * SPANS * R];
                let out = if last { y } else { &[] };
                // SAFETY: [`fill`] wrote every cell of the block and `R` groups; the caller answers for the chunks.
                unsafe {
                    match count {
                        6 => tile::<P, R, 6>((panel, weights), &block, x, sums, next, (out, rows.first)),
                        5 => tile::<P, R, 5>((panel, weights), &block, x, sums, next, (out, rows.first)),
                        4 => tile::<P, R, 4>((panel, weights), &block, x, sums, next, (out, rows.first)),
                        3 => tile::<P, R, 3>((panel, weights), &block, x, sums, next, (out, rows.first)),
                        2 => tile::<P, R, 2>((panel, weights), &block, x, sums, next, (out, rows.first)),
                        1 => tile::<P, R, 1>((panel, weights), &block, x, sums, next, (out, rows.first)),
                        _ => unreachable!("groups of at most TOKENS"),
                    }
                    if last {
                        store::<R>(sums, y, rows.first, n_row);
                    }
                }
                t += count;
            }
        }
    }

    /// Unpacks chunks `block` of `R` groups of rows, and says where their weights are.
    fn fill<P: Plan, const R: usize>(rows: &Strip<'_>, block: &Range<usize>, panel: &mut Panel) -> WeightsAt {
        let (row_bytes, n) = (rows.bytes.len() / rows.n, block.len());
        let tile_bytes = LANES * row_bytes;
        let in_tiles = const { is_possible(P::B::TYPE, CHUNK) } && rows.interleaved;
        // Nibbles of two spans are what a tile has: only scales are unpacked then. Many tokens became 3 to 4 % faster (Zen 4).
        let as_they_lie = matches!(P::WAY, Way::Packed) && in_tiles && rows.n == R * LANES;
        let chunk_of = |tile, c| Tile::<P::B>::new(tile, block.start + c, row_bytes / P::B::BYTES);
        for r in 0..R {
            let group = &rows.bytes[r * tile_bytes..rows.n.min((r + 1) * LANES) * row_bytes];
            for c in 0..n {
                let mut place = Place::<P>::new(panel, c * R + r, n * R);
                if as_they_lie {
                    unpack(&chunk_of(group, c), &mut Scales(place));
                    continue;
                }
                if in_tiles && group.len() == tile_bytes {
                    unpack(&chunk_of(group, c), &mut place);
                    continue;
                }
                let at = (block.start + c) * P::B::BYTES;
                if is_amd() {
                    let ahead = if c + 1 < n { at + P::B::BYTES } else { tile_bytes + block.start * P::B::BYTES };
                    ask_for_rows(group.as_ptr().wrapping_add(ahead), row_bytes, P::B::BYTES);
                }
                if at + P::B::BYTES <= row_bytes && group.len() == tile_bytes {
                    unpack(&Rows::<P::B>::new(&group[at..], row_bytes), &mut place);
                } else {
                    // Zero bytes are zero weights with zero scales in every type of 32-element blocks.
                    let mut padded = [[0; 2 * CHUNK]; LANES];
                    for (p, row) in padded.iter_mut().zip(group.chunks_exact(row_bytes)) {
                        let bytes = &row[at..row_bytes.min(at + P::B::BYTES)];
                        p[..bytes.len()].copy_from_slice(bytes);
                    }
                    unpack(&Rows::<P::B>::new(padded.as_flattened(), 2 * CHUNK), &mut place);
                }
            }
        }
        if as_they_lie {
            let first = chunk_of(&rows.bytes[..tile_bytes], 0).weights().as_ptr();
            WeightsAt { first, group: tile_bytes, chunk: LANES * P::B::BYTES, cell: WORDS * size_of::<__m512i>() }
        } else {
            let (first, group) = (panel.cells.as_ptr().cast(), size_of::<Cell>());
            WeightsAt { first, group, chunk: R * group, cell: n * R * group }
        }
    }

    /// Asks for `n` bytes of each of sixteen rows into L1: more streams than AMD's hardware follows from L2. Intel's prompts of
    /// Q4_0 became 4 to 19 % slower by it, from DRAM too.
    fn ask_for_rows(first: *const u8, row_bytes: usize, n: usize) {
        for row in 0..LANES {
            for line in (0..n + 63).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(row * row_bytes + line).cast());
            }
        }
    }

    /// `R` groups of rows times `T` tokens, over the chunks of a row that the panel has: onto `sums`, (T, SPANS, R), or afresh
    /// for a row's first ones. Asks for a row of each token's output, if these are the last.
    ///
    /// # Safety
    /// The panel's cells for as many chunks and `R` groups are written, `weights` are of these, and `sums` for all chunks before these.
    unsafe fn tile<P: Plan, const R: usize, const T: usize>(
        (panel, weights): (&Panel, WeightsAt),
        block: &Range<usize>,
        x: &[ActRow<'_>],
        sums: &mut [MaybeUninit<__m512>],
        next: &mut NextRows,
        (out, row): (&[*mut f32], usize),
    ) {
        let n = block.len();
        // No `from_fn` here: it is not inlined, and copies what it returns.
        let mut chunks: [&[ActChunk]; T] = [&[]; T];
        for (chunks, x) in chunks.iter_mut().zip(x) {
            *chunks = &x.chunks[block.clone()];
        }
        let x = chunks;
        assert!(n <= CHUNKS && sums.len() == T * SPANS * R, "a tile of a panel");
        let mut starts: Starts<T> = [const { [const { MaybeUninit::uninit() }; _] }; T];
        set_starts::<P, T>(&mut starts, x);
        for s in 0..SPANS {
            let mut acc = [[_mm512_setzero_ps(); R]; T];
            // One pointer, and places at constant distances from it.
            let of_span = sums[s * R..].as_mut_ptr().cast::<__m512>();
            let place = |t: usize, r: usize| of_span.wrapping_add(t * SPANS * R + r);
            if block.start > 0 {
                for (t, acc) in acc.iter_mut().enumerate() {
                    for (r, acc) in acc.iter_mut().enumerate() {
                        // SAFETY: `sums` has (T, SPANS, R), and the tile of the chunks before these wrote them.
                        *acc = unsafe { place(t, r).read() };
                    }
                }
            }
            // Little by little: loads of the panel wait while many lines are on their way.
            next.ask();
            if let Some(y) = out.get(s) {
                // Outputs are cold: 33 MB of a layer's experts for 512 tokens. Asked for all at once and into L1, they made
                // everything wait: prompts took 2 to 4 % longer.
                let line = y.wrapping_add(row).cast::<i8>();
                _mm_prefetch::<_MM_HINT_T1>(line);
                _mm_prefetch::<_MM_HINT_T1>(line.wrapping_add(64));
            }
            // SAFETY: the caller answers for cells and chunks; the starts are of `n` chunks.
            unsafe {
                let cells = panel.cells.as_ptr().add(P::WAY.cell_of(s) * n * R).cast::<[Cell; R]>();
                let first = weights.first.add(P::WAY.cell_of(s) * weights.cell);
                let cells = std::slice::from_raw_parts(cells, n);
                step::<P, R, T>(cells, WeightsAt { first, ..weights }, x, starts.as_ptr().cast(), s, &mut acc);
            }
            for (t, acc) in acc.iter().enumerate() {
                for (r, acc) in acc.iter().enumerate() {
                    // SAFETY: `sums` has (T, SPANS, R).
                    unsafe { place(t, r).write(*acc) };
                }
            }
        }
    }

    /// [`Way::Offset`], [`Way::Halves`]: what the integers of whole spans, in the lane of their first half, or of halves start
    /// from. [`Way::HalfMin`]: sums of activations in both halves, in the lane of the first. Nothing otherwise.
    fn set_starts<P: Plan, const T: usize>(starts: &mut Starts<T>, x: [&[ActChunk]; T]) {
        for (starts, x) in starts.iter_mut().zip(x) {
            for (start, x) in starts.iter_mut().zip(x) {
                // SAFETY: sixteen elements.
                let h = unsafe { _mm512_loadu_si512(x.h.as_ptr().cast()) };
                // Lanes `p` and `p ^ 4` have the halves of a span.
                let other = _mm512_shuffle_i32x4::<0b10_11_00_01>(h, h);
                let bias = _mm512_castps_si512(_mm512_set1_ps(BIAS));
                let times = |h, offset: u8| _mm512_mullo_epi32(h, _mm512_set1_epi32(-i32::from(offset)));
                start.write(match P::WAY {
                    Way::Min | Way::Packed => return,
                    Way::Offset(offset) => _mm512_add_epi32(bias, times(_mm512_add_epi32(h, other), offset)),
                    Way::Halves(offset) => {
                        let h = times(h, offset);
                        _mm512_mask_add_epi32(h, FIRST_HALVES, h, bias)
                    }
                    // Below 2^11.
                    Way::HalfMin => _mm512_mask_blend_epi16(0xaaaa_aaaa, h, _mm512_slli_epi32::<16>(other)),
                });
            }
        }
    }

    /// Adds the spans of each token and row, and writes `n_row` rows from `row` on.
    ///
    /// # Safety
    /// Each `y` has room for the rows; the sums of as many tokens are written.
    unsafe fn store<const R: usize>(sums: &[MaybeUninit<__m512>], y: &[*mut f32], row: usize, n_row: usize) {
        for (y, spans) in y.iter().zip(sums.chunks_exact(SPANS * R)) {
            for r in 0..R {
                // SAFETY: the caller answers for the sums.
                let span = |s: usize| unsafe { spans[s * R + r].assume_init() };
                let [a, b, c, d]: [__m512; 4] = std::array::from_fn(|s| _mm512_add_ps(span(s), span(s + 4)));
                let sum = _mm512_add_ps(_mm512_add_ps(a, c), _mm512_add_ps(b, d));
                let n = LANES.min(n_row - r * LANES);
                // SAFETY: the caller answers for `y`; the mask leaves out what is no row.
                unsafe { _mm512_mask_storeu_ps(y.add(row + r * LANES), (u16::MAX) >> (LANES - n), sum) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::super::Isa;
    use super::super::step::{Apart, Together};
    use super::*;
    use crate::quant::block::Q4_K;
    use crate::quant::{Acts, GgmlType, act::quantize_row, dot};

    /// Which way Q4_K goes is the CPU's maker's choice (`matmul_many`): other tests see only this one's.
    #[test]
    fn q4_k_has_the_same_bits_on_either_makers_way() {
        if !Isa::Avx512Vnni.is_available() {
            return;
        }
        for (rows, cols, tokens) in [(32, 1024, 6), (48, 256, 11), (33, 1280, 17), (5, 2048, 2), (70, 2816, 150)] {
            let row_bytes = GgmlType::Q4_K.row_bytes(cols as u64).expect("whole blocks") as usize;
            let mut data: Vec<u8> =
                (0..rows * row_bytes).map(|i| (i as u32).wrapping_mul(2_654_435_769).to_le_bytes()[3]).collect();
            for (i, block) in data.chunks_exact_mut(GgmlType::Q4_K.block_bytes()).enumerate() {
                for (at, factor) in [(0, 1e-3), (2, -7e-4)] {
                    block[at..at + 2].copy_from_slice(&f16::from_f32((i % 31) as f32 * factor).to_le_bytes());
                }
            }
            let w = QMat::new(GgmlType::Q4_K, rows, cols, &data);
            let x: Vec<f32> = (0..tokens * cols).map(|i| (i as f32 * 0.37).sin() * (i % 13) as f32).collect();
            let mut acts = Acts::default();
            acts.quantize(&x, tokens, cols, quantize_row);
            let x: Vec<_> = (0..tokens).map(|t| acts.row(t, &x[t * cols..(t + 1) * cols])).collect();
            let want: Vec<_> = x.iter().flat_map(|x| (0..rows).map(|r| dot(w.ty, w.row(r), *x).to_bits())).collect();
            // SAFETY: `times` itself gives what such a function asks for.
            let times = |matmul: unsafe fn(QMat<'_>, &[ActRow<'_>], &[*mut f32], &[u8])| {
                let mut y = vec![f32::NAN; tokens * rows];
                let to: Vec<_> = y.chunks_exact_mut(rows).map(<[f32]>::as_mut_ptr).collect();
                // SAFETY: the CPU has the features, and each pointer has `rows` floats behind it.
                unsafe { matmul(w, &x, &to, &[]) };
                y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert!(times(matmul::<Apart<Q4_K>>) == want, "apart: {rows} x {cols}, {tokens} tokens");
            assert!(times(matmul::<Together<Q4_K>>) == want, "together: {rows} x {cols}, {tokens} tokens");
        }
    }
}
