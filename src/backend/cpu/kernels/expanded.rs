//! Types that no instruction set reads by itself: their rows are [expanded](crate::quant::expanded) first, some at a time.
//!
//! So each such type is written once, in [`crate::quant::block`], and the CPU's vectors come in where bytes are multiplied: by the
//! driver for few tokens, by the panel for many. What is left for speed: elements are put together by scalar code, eight at a time
//! (a vector's number, its signs), which one token waits for. Look-ups in registers, for types of sixteen values or fewer (NVFP4,
//! Q1_0, Q2_0, TQ2_0), or gathers would do more at once.
//!
//! Must not know: registers, what bytes mean.

use std::mem::MaybeUninit;

use super::MatMul;
use super::driver::Form;
use crate::quant::act::{ActRow, SPANS};
use crate::quant::block::{Block, CHUNK};
use crate::quant::expanded::{chunk_bytes, expand_row, scales};
use crate::quant::{GgmlType, QMat};

/// A row that is expanded, with as many scales for a chunk: a type as instruction sets read it.
pub(super) struct Expanded<const SCALES: usize>;

impl<const SCALES: usize> Expanded<SCALES> {
    /// The type that it resembles: no instruction set does anything special for that one.
    pub const TYPE: GgmlType = GgmlType::Q8_K;
    pub const FORM: Form = Form::Signed;
    /// Of a magnitude.
    pub const BITS: u32 = 6;
    pub const HALVES: bool = SCALES == 2 * SPANS;
    pub const BYTES: usize = chunk_bytes(SCALES);

    /// Bytes of a row.
    #[inline(always)]
    pub fn row_bytes(w: &QMat<'_>) -> usize {
        w.cols.div_ceil(CHUNK) * Self::BYTES
    }

    /// A chunk's weights, and where its scales are, eight floats or sixteen.
    #[inline(always)]
    pub fn parts(bytes: &[u8]) -> (&[u8; CHUNK], *const f32) {
        assert_eq!(bytes.len(), Self::BYTES, "a chunk");
        let (weights, scales) = bytes.split_first_chunk().expect("a chunk has 256 weights");
        (weights, scales.as_ptr().cast())
    }
}

/// Bytes of rows that are expanded at once, on the stack.
const ROOM: usize = 96 << 10;

/// The same for few tokens: these stay in the L1 cache.
const LITTLE: usize = 16 << 10;

/// Rows at once at most: what the driver takes for many tokens, and two groups of the widest panel.
const ROWS: usize = 32;

/// Tokens at once at most: as many as share a panel.
const BATCH: usize = 144;

/// [`MatMul`] of `B`, given that of its expanded rows, which has another way from `many` tokens on.
///
/// # Safety
/// As [`MatMul`].
// Inlined so that rows are expanded by code for the CPU features of the caller.
// SAFETY: needs what [`MatMul`] asks for.
#[inline(always)]
pub(super) unsafe fn matmul<B: Block, const SCALES: usize>(
    w: QMat<'_>,
    x: &[ActRow<'_>],
    y: &[*mut f32],
    then: &[u8],
    many: usize,
    product: MatMul,
) {
    const { assert!(SCALES == scales::<B>(), "the scales that the type has") }
    let (row_bytes, out_bytes) = (w.row_bytes(), Expanded::<SCALES>::row_bytes(&w));
    if w.cols == 0 {
        // SAFETY: the caller gives `w.rows` floats behind each pointer.
        return y.iter().for_each(|y| unsafe { y.write_bytes(0, w.rows) });
    }
    let mut on_stack = [const { MaybeUninit::<u8>::uninit() }; ROOM];
    let mut on_heap = Vec::new();
    let room = if 2 * out_bytes <= ROOM {
        &mut on_stack[..]
    } else {
        // Rows of over 40,000 columns.
        on_heap.reserve_exact(2 * out_bytes);
        on_heap.spare_capacity_mut()
    };
    let at_once = if x.len() < many { LITTLE } else { ROOM };
    let n_row = (at_once / out_bytes / 2 * 2).clamp(2, ROWS);
    for (x, y) in x.chunks(BATCH).zip(y.chunks(BATCH)) {
        let mut to = [std::ptr::null_mut(); BATCH];
        for (i, rows) in w.data.chunks(n_row * row_bytes).enumerate() {
            let (n, first) = (rows.len() / row_bytes, i * n_row);
            let out = &mut room[..n * out_bytes];
            for (row, out) in rows.chunks_exact(row_bytes).zip(out.chunks_exact_mut(out_bytes)) {
                expand_row::<B>(row, out);
            }
            for (to, y) in to.iter_mut().zip(y) {
                *to = y.wrapping_add(first);
            }
            let rest = &w.data[first * row_bytes + rows.len()..];
            // SAFETY: `expand_row` wrote every byte; `y` has room for all rows, of which these are some; the CPU is the caller's
            // promise.
            unsafe {
                let rows =
                    QMat::new(Expanded::<SCALES>::TYPE, n, w.cols.next_multiple_of(CHUNK), out.assume_init_ref());
                product(rows, x, &to[..x.len()], if rest.is_empty() { then } else { rest });
            }
        }
    }
}
