//! The one loop of matrix multiplication, for every instruction set and weight type.
//!
//! Rows are read two at a time, in chunks of 256 weights: the eight spans of both fill sixteen lanes, so that the float
//! operations of a chunk are shared, and each activation is loaded for both. A pair of chunks is unpacked once for up to
//! [`Simd::TOKENS`] tokens; a token's lanes take chunk after chunk in order, whoever else is in the group, as
//! [`crate::quant::dot`] states. A last row without a partner is its own.
//!
//! Must not know: what bytes mean, registers.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::ahead::{Ahead, NextRows};
use super::ops::{Element, Lanes};
use crate::quant::act::{ActChunk, ActRow, LANES, SPANS};
use crate::quant::block::CHUNK;
use crate::quant::{GgmlType, QMat};

/// How a type's integers become signed.
pub(super) enum Form {
    /// Unsigned; this is to be taken away.
    Offset(u8),
    /// Unsigned; each group has a minimum.
    Min,
    /// Signed bytes.
    Signed,
}

/// The registers of a family of instruction sets.
///
/// # Safety
/// Every method: the CPU has the instruction set.
pub(super) trait Registers: Sized {
    /// 256 weights of a row.
    type W: Copy;
    /// Sixteen whole numbers, one for each of [`ActChunk`]'s lanes.
    type I: Copy;
    /// Eight floats, one for each span of a row.
    type H: Copy;
    /// Sixteen floats: the spans of two rows, one after the other.
    type L: Lanes;
    /// Sixteen whole numbers from memory.
    ///
    /// # Safety
    /// As the trait, and `p` is valid for them.
    unsafe fn load(p: *const i32) -> Self::I;
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn splat(x: i32) -> Self::I;
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn mul(a: Self::I, b: Self::I) -> Self::I;
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn sub(a: Self::I, b: Self::I) -> Self::I;
    /// Weights as [`Unpack::unpack`] leaves them, in the order of [`ActChunk`].
    // SAFETY: needs the CPU's features, as the trait says.
    #[inline(always)]
    unsafe fn ordered(w: Self::W) -> Self::W {
        w
    }
    /// Two rows' numbers with the halves of each span added, as floats.
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn fold(rows: [Self::I; 2]) -> Self::L;
    /// Two rows' spans.
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn join(rows: [Self::H; 2]) -> Self::L;
    /// Eight floats from memory, for both rows.
    ///
    /// # Safety
    /// As the trait, and `p` is valid for them.
    unsafe fn twice(p: *const f32) -> Self::L;
    /// Two rows' numbers as floats: those of first halves of spans, then those of second halves.
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn split(rows: [Self::I; 2]) -> [Self::L; 2];
    /// Each row's sum, as [`crate::quant::dot::sum_lanes`].
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn sums(l: Self::L) -> [f32; 2];
}

/// An instruction set.
///
/// # Safety
/// Every method: the CPU has the instruction set.
pub(super) trait Simd {
    type R: Registers;
    /// Tokens that share an unpacked pair of chunks: as many as registers hold.
    const TOKENS: usize;
    /// From this many tokens on, [`Simd::matmul_many`] pays, for rows that lie [`interleaved`](crate::quant::interleaved) or not.
    #[inline(always)]
    fn many_tokens<B: Unpack<Self::R>>(_interleaved: bool) -> usize {
        MANY_TOKENS
    }
    /// What [`Simd::from_signed`] adds.
    const SIGNED_OFFSET: u8;
    /// Makes signed weights fit for [`Simd::dot`].
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn from_signed(w: W<Self>) -> W<Self>;
    /// Each lane's sum of integer products.
    // SAFETY: needs the CPU's features, as the trait says.
    unsafe fn dot<B: Unpack<Self::R>>(w: &W<Self>, x: &ActChunk) -> <Self::R as Registers>::I;
    /// A chunk of two rows, [`Unpack::BYTES`] each; a set that reads two faster than one after the other has its own.
    // SAFETY: needs the CPU's features, as the trait says.
    #[inline(always)]
    unsafe fn unpack<B: Unpack<Self::R>>(bytes: [&[u8]; 2]) -> Weights<Self::R>
    where
        Self: Sized,
    {
        // SAFETY: the caller's promise is the same.
        unsafe { unpack::<Self, B>(bytes) }
    }
    /// [`Registers::fold`] of what [`Simd::dot`] gave; a set that has another order of lanes for a type has its own.
    // SAFETY: needs the CPU's features, as the trait says.
    #[inline(always)]
    unsafe fn fold<B: Unpack<Self::R>>(dots: [<Self::R as Registers>::I; 2]) -> L<Self>
    where
        Self: Sized,
    {
        // SAFETY: the caller's promise is the same.
        unsafe { Self::R::fold(dots) }
    }
    /// Products of spans, of what [`Simd::unpack`] gave and [`Simd::dot`] made of it, where [`Unpack::FINE`].
    // SAFETY: needs the CPU's features, as the trait says, and a type whose scales are fine.
    #[inline(always)]
    unsafe fn fine<B: Unpack<Self::R>>(
        w: &Weights<Self::R>,
        x: &ActChunk,
        dots: [<Self::R as Registers>::I; 2],
    ) -> L<Self>
    where
        Self: Sized,
    {
        // SAFETY: the caller's promise is the same.
        unsafe { fine::<Self, B>(w, x, dots) }
    }
    /// [`super::MatMul`] for fewer tokens than [`Simd::many_tokens`].
    // SAFETY: needs the CPU's features, as the trait says, and what [`super::MatMul`] asks for.
    #[inline(always)]
    unsafe fn matmul_few<B: Unpack<Self::R>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8])
    where
        Self: Sized,
    {
        // SAFETY: the caller's promise is the same.
        unsafe { matmul::<Self, B>(w, x, y, then) }
    }
    /// [`super::MatMul`] for many tokens; a set that multiplies matrices has its own.
    // SAFETY: needs the CPU's features, as the trait says, and what [`super::MatMul`] asks for.
    #[inline(always)]
    unsafe fn matmul_many<B: Unpack<Self::R>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8])
    where
        Self: Sized,
    {
        // SAFETY: the caller's promise is the same.
        unsafe { matmul_ahead::<Self, B>(w, x, y, then) }
    }
}

type W<S> = <<S as Simd>::R as Registers>::W;
pub(super) type L<S> = <<S as Simd>::R as Registers>::L;

/// A quantised type that a family of instruction sets reads into its registers.
pub(super) trait Unpack<R: Registers> {
    /// ggml's type.
    const TYPE: GgmlType;
    /// How integers become signed.
    const FORM: Form;
    /// Bits that the largest unsigned integer has.
    const BITS: u32;
    /// Whether each half of a span has a scale of its own, in [`Row::fine`]: see [`crate::quant::block::Fine`].
    const FINE: bool;
    /// Whether each half of a span has a float for its scale: the first one's is [`Row::scale`], the second one's [`Row::min`].
    const HALVES: bool = false;
    /// Bytes of 256 weights.
    const BYTES: usize = CHUNK / Self::TYPE.block_len() * Self::TYPE.block_bytes();
    /// Bytes of a row.
    #[inline(always)]
    fn row_bytes(w: &QMat<'_>) -> usize {
        w.row_bytes()
    }
    /// Reads [`Unpack::BYTES`] bytes.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn unpack(bytes: &[u8]) -> Row<R>;
}

/// A chunk of a row as it is read.
#[derive(Clone, Copy)]
pub(super) struct Row<R: Registers> {
    pub w: R::W,
    /// Of each span; where scales are finer, the block's own.
    pub scale: R::H,
    /// Of no meaning unless the form is [`Form::Min`], or [`Unpack::HALVES`].
    pub min: R::H,
    /// Of each lane: scale and minimum, where [`Unpack::FINE`]. Unset otherwise, so that nobody copies it.
    pub fine: MaybeUninit<[R::I; 2]>,
}

/// Rows that one group of tokens visits before the next group does, whole pairs: with 2048 columns, these tokens' 24 KiB
/// stay in the L1 cache meanwhile, and the rows in L2.
pub(super) const ROWS: usize = 32;

/// From this many tokens on, unpacking rows ahead to memory pays: 10 to 25 % at 64 tokens of 2048, nothing at 16.
pub(super) const MANY_TOKENS: usize = 32;

/// Pairs of chunks that are unpacked ahead: 112 KiB.
pub(super) const AHEAD: usize = 128;

/// Runs `$tile::<S, B, n>(…)` for each pair of rows that `$pairs` gives, of which the first has number `$first` of `$n_row`,
/// and each group of tokens; the last argument is `$ahead` for the first group.
macro_rules! for_token_groups {
    ($simd:ty, $tile:ident, $pairs:expr, $first:expr, $n_row:expr, $x:expr, $y:expr, $ahead:expr) => {{
        let mut t = 0;
        while t < $x.len() {
            // Groups as equal as can be: one of a single token would wait for each addition.
            let left = $x.len() - t;
            let n = left.div_ceil(left.div_ceil(<$simd>::TOKENS));
            for (i, pair) in $pairs.enumerate() {
                let (x, y) = (&$x[t..t + n], &$y[t..t + n]);
                let r = $first + 2 * i..$n_row.min($first + 2 * i + 2);
                match n {
                    8 if <$simd>::TOKENS > 4 => $tile::<S, B, 8>(pair, x, y, r, (t == 0).then_some($ahead)),
                    7 if <$simd>::TOKENS > 4 => $tile::<S, B, 7>(pair, x, y, r, (t == 0).then_some($ahead)),
                    6 if <$simd>::TOKENS > 4 => $tile::<S, B, 6>(pair, x, y, r, (t == 0).then_some($ahead)),
                    5 if <$simd>::TOKENS > 4 => $tile::<S, B, 5>(pair, x, y, r, (t == 0).then_some($ahead)),
                    4 => $tile::<S, B, 4>(pair, x, y, r, (t == 0).then_some($ahead)),
                    3 => $tile::<S, B, 3>(pair, x, y, r, (t == 0).then_some($ahead)),
                    2 => $tile::<S, B, 2>(pair, x, y, r, (t == 0).then_some($ahead)),
                    1 => $tile::<S, B, 1>(pair, x, y, r, (t == 0).then_some($ahead)),
                    _ => unreachable!("TOKENS is 4 or 8"),
                }
            }
            t += n;
        }
    }};
}

/// [`super::MatMul`] for a quantised type: each group of tokens unpacks rows anew, in registers.
// SAFETY: needs the CPU's features and what [`super::MatMul`] asks for.
#[inline(always)]
pub(super) unsafe fn matmul<S: Simd, B: Unpack<S::R>>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8]) {
    let row_bytes = B::row_bytes(&w);
    let ahead = Ahead::new(w.data, then, x.len() <= S::TOKENS);
    for first in (0..w.rows).step_by(ROWS) {
        let rows = || pairs(&w.data[first * row_bytes..], row_bytes).take(ROWS / 2);
        // SAFETY: the caller's promise is the same; the rows are of `w`.
        unsafe { for_token_groups!(S, tile, rows(), first, w.rows, x, y, ahead) }
    }
}

/// Chunks of a token at most that [`matmul_one`] takes: 24 KiB on the stack.
#[cfg(target_arch = "x86_64")]
pub(super) const CHUNKS_OF_ONE: usize = 64;

/// [`matmul`] for one token whose chunks, [`CHUNKS_OF_ONE`] at most, `S` wants `reordered`.
#[cfg(target_arch = "x86_64")]
// SAFETY: needs the CPU's features and what [`super::MatMul`] asks for.
#[inline(always)]
pub(super) unsafe fn matmul_one<S: Simd, B: Unpack<S::R>>(
    w: QMat<'_>,
    x: ActRow<'_>,
    y: *mut f32,
    then: &[u8],
    reordered: impl Fn(&ActChunk) -> ActChunk,
) {
    let mut chunks = [const { MaybeUninit::uninit() }; CHUNKS_OF_ONE];
    for (to, x) in chunks.iter_mut().zip(x.chunks) {
        to.write(reordered(x));
    }
    // SAFETY: as many are written.
    let x = ActRow { x: x.x, chunks: unsafe { chunks[..x.chunks.len()].assume_init_ref() } };
    let ahead = Ahead::new(w.data, then, true);
    for (i, pair) in pairs(w.data, B::row_bytes(&w)).enumerate() {
        // SAFETY: the caller's promise is the same; the rows are of `w`.
        unsafe { tile::<S, B, 1>(pair, &[x], &[y], 2 * i..w.rows.min(2 * i + 2), Some(ahead)) }
    }
}

/// Two rows, or one twice.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    /// What there is from each row's first byte on: it and those behind it.
    from: [&'a [u8]; 2],
    row_bytes: usize,
}

impl<'a> Pair<'a> {
    /// The whole chunks of `bytes`.
    #[inline(always)]
    fn chunks(self, bytes: usize) -> impl Iterator<Item = [&'a [u8]; 2]> {
        let [a, b] = self.from;
        let (a, b) = (a[..self.row_bytes].chunks_exact(bytes), b[..self.row_bytes].chunks_exact(bytes));
        a.zip(b).map(|(a, b)| [a, b])
    }
}

/// Rows two by two; one that is left alone twice.
#[inline(always)]
pub(super) fn pairs(rows: &[u8], row_bytes: usize) -> impl Iterator<Item = Pair<'_>> {
    (0..rows.len()).step_by(2 * row_bytes).map(move |at| {
        let (a, b) = (&rows[at..], &rows[at + row_bytes..]);
        Pair { from: [a, if b.is_empty() { a } else { b }], row_bytes }
    })
}

/// [`matmul`] for many tokens: rows are unpacked once, to memory.
// SAFETY: needs the CPU's features and what [`super::MatMul`] asks for.
#[inline(always)]
pub(super) unsafe fn matmul_ahead<S: Simd, B: Unpack<S::R>>(
    w: QMat<'_>,
    x: &[ActRow<'_>],
    y: &[*mut f32],
    then: &[u8],
) {
    let (row_bytes, n_chunk) = (B::row_bytes(&w), w.cols.div_ceil(CHUNK));
    if n_chunk > AHEAD || n_chunk == 0 {
        // SAFETY: the caller's promise is the same.
        return unsafe { matmul::<S, B>(w, x, y, then) };
    }
    let n_row = ROWS.min(2 * (AHEAD / n_chunk));
    let n_group = x.len().div_ceil(S::TOKENS);
    let mut unpacked = [const { MaybeUninit::<Weights<S::R>>::uninit() }; AHEAD];
    for (i, rows) in w.data.chunks(n_row * row_bytes).enumerate() {
        let n_pair = (rows.len() / row_bytes).div_ceil(2);
        let rest = &w.data[i * n_row * row_bytes + rows.len()..];
        let mut next = NextRows::of(if rest.is_empty() { then } else { rest }, rows.len(), n_pair * n_group);
        // SAFETY: the caller's promise is the same; `unpack_rows` writes every chunk of the rows that are then read.
        unsafe {
            for (two, out) in pairs(rows, row_bytes).zip(unpacked.chunks_exact_mut(n_chunk)) {
                unpack_rows::<S, B>(two, out);
            }
            let unpacked = unpacked[..n_pair * n_chunk].assume_init_ref();
            let unpacked = || unpacked.chunks_exact(n_chunk);
            for_token_groups!(S, tile_unpacked, unpacked().inspect(|_| next.ask()), i * n_row, w.rows, x, y, ());
        }
    }
}

/// A chunk of two rows, ready to be multiplied: [`Row`]'s fields. `fine` is between [`Simd::unpack`] and [`Simd::fine`].
pub(super) struct Weights<R: Registers> {
    pub w: [R::W; 2],
    pub scale: R::L,
    pub min: R::L,
    pub fine: [MaybeUninit<[R::I; 2]>; 2],
}

/// [`Simd::unpack`], row by row.
// SAFETY: needs the CPU's features.
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd, B: Unpack<S::R>>(bytes: [&[u8]; 2]) -> Weights<S::R> {
    // SAFETY: the caller checked the CPU.
    unsafe {
        let [mut a, mut b] = [B::unpack(bytes[0]), B::unpack(bytes[1])];
        (a.w, b.w) = (S::R::ordered(a.w), S::R::ordered(b.w));
        let w = if matches!(B::FORM, Form::Signed) { [S::from_signed(a.w), S::from_signed(b.w)] } else { [a.w, b.w] };
        Weights { w, scale: S::R::join([a.scale, b.scale]), min: S::R::join([a.min, b.min]), fine: [a.fine, b.fine] }
    }
}

/// As many ones as there are spans, and zeros.
const ONES: [f32; 2 * SPANS] = [1., 1., 1., 1., 1., 1., 1., 1., 0., 0., 0., 0., 0., 0., 0., 0.];

/// The last chunk of two rows, of which there are only so many bytes: whole blocks of a span. A model's rows are of such
/// where its width is no multiple of 256.
///
/// What lies behind it, in the next rows, is read along, since activations are zero there; only scales must not stay, which
/// might be infinite. Zeros beside a copy of its bytes took one token two and a half times as long.
// SAFETY: needs the CPU's features.
#[inline(always)]
unsafe fn unpack_rest<S: Simd, B: Unpack<S::R>>(pair: Pair<'_>, bytes: usize) -> Weights<S::R> {
    let rest = pair.from.map(|from| &from[pair.row_bytes - bytes..]);
    // SAFETY: the caller checked the CPU; there are eight floats, since fewer than all spans are left.
    unsafe {
        if let [Some(a), Some(b)] = rest.map(|rest| rest.get(..B::BYTES)) {
            let mut w = S::unpack::<B>([a, b]);
            let there = S::R::twice(ONES[SPANS - bytes / B::TYPE.block_bytes()..].as_ptr());
            w.scale = w.scale.zero_below(there, 1.0);
            if matches!(B::FORM, Form::Min) {
                w.min = w.min.zero_below(there, 1.0);
            }
            return w;
        }
        // Zero bytes are zero weights with zero scales in every type of such blocks.
        let mut padded = [[0; 2 * CHUNK]; 2];
        for (padded, rest) in padded.iter_mut().zip(rest) {
            padded[..bytes].copy_from_slice(&rest[..bytes]);
        }
        S::unpack::<B>([&padded[0][..B::BYTES], &padded[1][..B::BYTES]])
    }
}

/// Writes every chunk of two rows to `out`, which has room for just these.
// SAFETY: needs the CPU's features.
#[inline(always)]
pub(super) unsafe fn unpack_rows<S: Simd, B: Unpack<S::R>>(pair: Pair<'_>, out: &mut [MaybeUninit<Weights<S::R>>]) {
    let rest = pair.row_bytes % B::BYTES;
    assert_eq!(out.len(), pair.row_bytes.div_ceil(B::BYTES), "room for two rows");
    let ahead = Ahead::endless();
    // SAFETY: the caller checked the CPU.
    unsafe {
        if let (1.., Some(out)) = (rest, out.last_mut()) {
            out.write(unpack_rest::<S, B>(pair, rest));
        }
        for (c, (chunk, out)) in pair.chunks(B::BYTES).zip(out).enumerate() {
            ahead.ask(pair.from[1].as_ptr().wrapping_add(2 * c * B::BYTES), 2 * B::BYTES);
            out.write(S::unpack::<B>(chunk));
        }
    }
}

/// Two rows times `T` tokens, for the rows `r` of the result.
// SAFETY: needs the CPU's features, and room in each `y` for the rows.
#[inline(always)]
unsafe fn tile<S: Simd, B: Unpack<S::R>, const T: usize>(
    pair: Pair<'_>,
    x: &[ActRow<'_>],
    y: &[*mut f32],
    r: Range<usize>,
    ahead: Option<Ahead>,
) {
    let (n, rest) = (pair.row_bytes.div_ceil(B::BYTES), pair.row_bytes % B::BYTES);
    let x = chunks_of::<T>(x, n);
    // SAFETY: the caller checked the CPU; each token has `n` chunks, and `y` has room for the rows.
    unsafe {
        let mut acc = [L::<S>::splat(0.0); T];
        for (c, chunk) in pair.chunks(B::BYTES).enumerate() {
            if let Some(ahead) = ahead {
                ahead.ask(pair.from[1].as_ptr().wrapping_add(2 * c * B::BYTES), 2 * B::BYTES);
            }
            step::<S, B, T>(&S::unpack::<B>(chunk), x.map(|x| x.get_unchecked(c)), &mut acc);
        }
        if rest > 0 {
            step::<S, B, T>(&unpack_rest::<S, B>(pair, rest), x.map(|x| x.get_unchecked(n - 1)), &mut acc);
        }
        finish::<S, T>(acc, y, r);
    }
}

/// Writes the sums of one or two rows.
///
/// # Safety
/// The CPU has the instruction set; each `y` has room for the rows `r`.
#[inline(always)]
unsafe fn finish<S: Simd, const T: usize>(acc: [L<S>; T], y: &[*mut f32], r: Range<usize>) {
    for (acc, y) in acc.into_iter().zip(y) {
        // SAFETY: the caller's promise is the same.
        unsafe {
            let [a, b] = S::R::sums(acc);
            *y.add(r.start) = a;
            if r.len() > 1 {
                *y.add(r.start + 1) = b;
            }
        }
    }
}

/// [`tile`] of unpacked rows.
// SAFETY: needs the CPU's features, and room in each `y` for the rows.
#[inline(always)]
unsafe fn tile_unpacked<S: Simd, B: Unpack<S::R>, const T: usize>(
    rows: &[Weights<S::R>],
    x: &[ActRow<'_>],
    y: &[*mut f32],
    r: Range<usize>,
    _: Option<()>,
) {
    let x = chunks_of::<T>(x, rows.len());
    // SAFETY: as in `tile`.
    unsafe {
        let mut acc = [L::<S>::splat(0.0); T];
        for (c, w) in rows.iter().enumerate() {
            step::<S, B, T>(w, x.map(|x| x.get_unchecked(c)), &mut acc);
        }
        finish::<S, T>(acc, y, r);
    }
}

/// The tokens' activations, each `n` chunks.
#[inline(always)]
fn chunks_of<'a, const T: usize>(x: &[ActRow<'a>], n: usize) -> [&'a [ActChunk]; T] {
    let x: [&[ActChunk]; T] = std::array::from_fn(|t| x[t].chunks);
    assert!(x.iter().all(|x| x.len() == n), "the table's door checked the lengths");
    x
}

/// One chunk of two rows times that of `T` tokens, onto their lanes.
// SAFETY: needs the CPU's features.
#[inline(always)]
unsafe fn step<S: Simd, B: Unpack<S::R>, const T: usize>(w: &Weights<S::R>, x: [&ActChunk; T], acc: &mut [L<S>; T]) {
    for t in 0..T {
        // SAFETY: the caller checked the CPU; a chunk has eight scales.
        unsafe {
            let dots = [S::dot::<B>(&w.w[0], x[t]), S::dot::<B>(&w.w[1], x[t])];
            let sum = if B::FINE {
                S::fine::<B>(w, x[t], dots)
            } else if B::HALVES {
                halves::<S, B>(w, x[t], dots)
            } else {
                coarse::<S, B>(w, x[t], dots)
            };
            acc[t] = sum.fma(S::R::twice(x[t].d.as_ptr()), acc[t]);
        }
    }
}

/// What the form takes from each integer.
pub(super) const fn offset<S: Simd, B: Unpack<S::R>>() -> u8 {
    match B::FORM {
        Form::Offset(offset) => offset,
        Form::Min => 0,
        Form::Signed => S::SIGNED_OFFSET,
    }
}

/// Sums of products to products of spans with one scale each.
// SAFETY: needs the CPU's features.
#[inline(always)]
unsafe fn coarse<S: Simd, B: Unpack<S::R>>(w: &Weights<S::R>, x: &ActChunk, dots: [<S::R as Registers>::I; 2]) -> L<S> {
    let offset = const { offset::<S, B>() };
    // SAFETY: the caller checked the CPU; a chunk has eight sums.
    unsafe {
        let mut sum = S::fold::<B>(dots);
        let s = S::R::twice(x.s.as_ptr());
        if offset != 0 {
            sum = L::<S>::splat(f32::from(offset)).fnma(s, sum); // whole numbers below 2^24: exact
        }
        sum = w.scale.mul(sum);
        if matches!(B::FORM, Form::Min) {
            sum = w.min.fnma(s, sum);
        }
        sum
    }
}

/// [`coarse`] for spans whose halves have scales of their own, which are applied to whole numbers.
///
/// # Safety
/// The CPU has the instruction set, and `B` is [`Unpack::FINE`].
#[inline(always)]
pub(super) unsafe fn fine<S: Simd, B: Unpack<S::R>>(
    w: &Weights<S::R>,
    x: &ActChunk,
    dots: [<S::R as Registers>::I; 2],
) -> L<S> {
    let offset = const { offset::<S, B>() };
    // SAFETY: the caller checked the CPU; a chunk has sixteen sums of halves; such a type sets `fine`.
    unsafe {
        let halves = w.fine.map(|fine| fine.assume_init());
        let h = S::R::load(x.h.as_ptr());
        let mut scaled = dots;
        for (scaled, [scale, _]) in scaled.iter_mut().zip(halves) {
            if offset != 0 {
                *scaled = S::R::sub(*scaled, S::R::mul(h, S::R::splat(i32::from(offset))));
            }
            *scaled = S::R::mul(*scaled, scale);
        }
        let mut sum = w.scale.mul(S::R::fold(scaled));
        if matches!(B::FORM, Form::Min) {
            sum = w.min.fnma(S::R::fold([S::R::mul(h, halves[0][1]), S::R::mul(h, halves[1][1])]), sum);
        }
        sum
    }
}

/// [`coarse`] for spans whose halves have floats for scales.
///
/// # Safety
/// The CPU has the instruction set, and `B` is [`Unpack::HALVES`].
#[inline(always)]
unsafe fn halves<S: Simd, B: Unpack<S::R>>(
    w: &Weights<S::R>,
    x: &ActChunk,
    mut dots: [<S::R as Registers>::I; 2],
) -> L<S> {
    let offset = const { offset::<S, B>() };
    // SAFETY: the caller checked the CPU; a chunk has sixteen sums of halves.
    unsafe {
        if offset != 0 {
            let less = S::R::mul(S::R::load(x.h.as_ptr()), S::R::splat(i32::from(offset)));
            dots = [S::R::sub(dots[0], less), S::R::sub(dots[1], less)];
        }
        let [first, second] = S::R::split(dots);
        w.min.fma(second, w.scale.mul(first))
    }
}

/// [`super::MatMul`] for plain floats.
// SAFETY: needs the CPU's features and what [`super::MatMul`] asks for.
#[inline(always)]
pub(super) unsafe fn matmul_float<L: Lanes, E: Element>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32]) {
    let row_bytes = w.row_bytes();
    for (i, rows) in w.data.chunks(ROWS * row_bytes).enumerate() {
        let mut t = 0;
        while t < x.len() {
            let n = if x.len() - t >= 4 { 4 } else { 1 };
            let (x, y) = (&x[t..t + n], &y[t..t + n]);
            // Two rows share each load of an activation where registers hold their sums.
            let pairs = if L::WIDE && n == 4 { rows.len() / row_bytes / 2 } else { 0 };
            let (two_by_two, others) = rows.split_at(2 * pairs * row_bytes);
            // SAFETY: the caller's promise is the same; the rows are of `w`.
            unsafe {
                for (r, two) in two_by_two.chunks_exact(2 * row_bytes).enumerate() {
                    let (a, b) = two.split_at(row_bytes);
                    tile_float::<L, E, 2, 4>([a, b], x, y, i * ROWS + 2 * r);
                }
                for (r, row) in others.chunks_exact(row_bytes).enumerate() {
                    match n {
                        4 => tile_float::<L, E, 1, 4>([row], x, y, i * ROWS + 2 * pairs + r),
                        _ => tile_float::<L, E, 1, 1>([row], x, y, i * ROWS + 2 * pairs + r),
                    }
                }
            }
            t += n;
        }
    }
}

/// `R` rows times `T` tokens, for the rows from `r` on.
// SAFETY: needs the CPU's features, and room in each `y` for the rows.
#[inline(always)]
unsafe fn tile_float<L: Lanes, E: Element, const R: usize, const T: usize>(
    rows: [&[u8]; R],
    x: &[ActRow<'_>],
    y: &[*mut f32],
    r: usize,
) {
    let n = rows[0].len() / size_of::<E>();
    assert!(x.iter().all(|x| x.x.len() == n), "the table's door checked the lengths");
    assert!(rows.iter().all(|row| row.len() == n * size_of::<E>()), "rows of a matrix");
    let whole = n / (2 * LANES) * (2 * LANES);
    // SAFETY: the caller checked the CPU; rows and each `x` have `n` elements, lanes load at any alignment, and
    // `y` has room for the rows.
    unsafe {
        let mut acc = [[[L::splat(0.0); 2]; T]; R];
        for i in (0..whole).step_by(2 * LANES) {
            let mut run = [std::ptr::null(); T];
            for t in 0..T {
                run[t] = x[t].x.as_ptr().add(i);
            }
            add_run(rows.map(|row| row.as_ptr().cast::<E>().add(i)), run, &mut acc);
        }
        if whole < n {
            // Zero times minus zero is minus zero, which adds to nothing.
            let (mut last_w, mut last_x) = ([[E::ZERO; 2 * LANES]; R], [[-0.0; 2 * LANES]; T]);
            for (last, row) in last_w.iter_mut().zip(rows) {
                // By bytes: a row may lie at any address.
                let rest = &row[whole * size_of::<E>()..];
                last.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(rest.as_ptr(), rest.len());
            }
            for t in 0..T {
                last_x[t][..n - whole].copy_from_slice(&x[t].x[whole..]);
            }
            add_run(last_w.each_ref().map(|w| w.as_ptr()), last_x.each_ref().map(|x| x.as_ptr()), &mut acc);
        }
        for (i, acc) in acc.into_iter().enumerate() {
            for (acc, y) in acc.into_iter().zip(y) {
                *y.add(r + i) = acc[0].add(acc[1]).sum();
            }
        }
    }
}

/// 32 elements of `R` rows times those of `T` tokens, onto their two sets of lanes.
///
/// # Safety
/// The CPU has the instruction set; all pointers are valid for 32 elements.
#[inline(always)]
unsafe fn add_run<L: Lanes, E: Element, const R: usize, const T: usize>(
    w: [*const E; R],
    x: [*const f32; T],
    acc: &mut [[[L; 2]; T]; R],
) {
    // SAFETY: the caller's promise is the same.
    unsafe {
        let w: [[L; 2]; R] = w.map(|w| [E::load(w), E::load(w.add(LANES))]);
        for t in 0..T {
            let x = [L::load(x[t]), L::load(x[t].add(LANES))];
            for (acc, w) in acc.iter_mut().zip(&w) {
                acc[t][0] = w[0].fma(x[0], acc[t][0]);
                acc[t][1] = w[1].fma(x[1], acc[t][1]);
            }
        }
    }
}
