//! Sixteen rows in turn, word by word: the order in which a kernel that has a row in each lane reads them.
//!
//! A tile of sixteen rows keeps its place and its bytes in the matrix; only their order changes. Chunks come two by two: first,
//! of types whose chunk of 256 columns is no whole number of words, the two bytes that are left of each chunk of each row, a
//! line of memory in all; then the words of one chunk and of the other: word 0 of each row's chunk, word 1 of each, …, in the
//! order that [`place`] says. So a kernel reads a tile from end to end. Two bytes behind all words of a tile made it wait for
//! memory at every other chunk (Zen 4); with these before all of them, Q6_K was decoded at 0.92 of the rate (Zen 5). What is no
//! whole tile at the end of a matrix stays as it was.
//!
//! Must not know: CPU features, what bytes mean, when this pays.

use std::ops::Range;

use super::GgmlType;
use super::block::CHUNK;

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;

/// Bytes of a word.
const WORD: usize = 4;

/// Bytes of the largest tile that is brought into order.
const MAX_TILE_BYTES: usize = 128 << 10;

/// Whether there is this order for rows of `cols` elements of `ty`: whole chunks of a type whose fields lie in words, or can be
/// brought there.
pub const fn is_possible(ty: GgmlType, cols: usize) -> bool {
    use GgmlType::*;
    let words = matches!(ty, Q4_0 | Q4_1 | Q8_0 | Q4_K | Q5_K | Q6_K | IQ4_NL | IQ4_XS | MXFP4);
    words && cols > 0 && cols.is_multiple_of(CHUNK) && TILE_ROWS * cols / CHUNK * chunk_bytes(ty) <= MAX_TILE_BYTES
}

/// Bytes of a row's chunk.
const fn chunk_bytes(ty: GgmlType) -> usize {
    CHUNK / ty.block_len() * ty.block_bytes()
}

/// Bytes of a chunk that are words.
const fn word_bytes(ty: GgmlType) -> usize {
    chunk_bytes(ty) / WORD * WORD
}

/// Bytes of a block that go before the weights of all blocks of its chunk: its scale, and its minimum if it has one.
const fn head_bytes(ty: GgmlType) -> usize {
    if ty.block_len() == CHUNK { 0 } else { ty.block_bytes() % 16 }
}

/// Where byte `at` of block `block` of a row's chunk has gone, counted in the row's own bytes: words are in the order in which
/// kernels make weights of them, scales before what they scale. Read here and there, even inside a chunk, they came at half the
/// rate from memory, or a third.
pub const fn place(ty: GgmlType, block: usize, at: usize) -> usize {
    let head = head_bytes(ty);
    if head > 0 {
        let heads = CHUNK / ty.block_len() * head;
        return if at < head { block * head + at } else { heads + block * (ty.block_bytes() - head) + at - head };
    }
    let (word, byte) = (at / WORD, at % WORD);
    let to = match (ty, word) {
        // Four words of low bits of 64 elements, four of 64 more, and four of the high bits of both.
        (GgmlType::Q6_K, 0..32) => 4 + (word / 16 * 2 + word / 4 % 2) * 12 + word / 8 % 2 * 4 + word % 4,
        (GgmlType::Q6_K, 32..48) => 4 + (word / 4 - 8) * 12 + 8 + word % 4,
        (GgmlType::Q6_K, 48..52) => word - 48,
        _ => word,
    };
    to * WORD + byte
}

/// Where the bytes that are left of chunk `c` lie in a tile; empty where none are.
pub const fn rest(ty: GgmlType, c: usize) -> Range<usize> {
    let bytes = TILE_ROWS * (chunk_bytes(ty) - word_bytes(ty));
    let start = c / 2 * 2 * TILE_ROWS * chunk_bytes(ty) + c % 2 * bytes;
    start..start + bytes
}

/// Where the words of chunk `c` of `n` lie in a tile.
pub const fn words(ty: GgmlType, c: usize, n: usize) -> Range<usize> {
    let bytes = TILE_ROWS * word_bytes(ty);
    let last_of_two = if c.is_multiple_of(2) && c + 1 < n { c + 1 } else { c };
    let start = rest(ty, last_of_two).end + c % 2 * bytes;
    start..start + bytes
}

/// Bytes of a row that [`Turn`] moves.
pub const RUN: usize = 16;

/// Sixteen rows' [`RUN`] bytes, of which each row's begin `stride` bytes after the one before, word by word: word 0 of each row,
/// word 1 of each, … A CPU may have something faster than [`turn`].
pub type Turn = fn(rows: &[u8], stride: usize, out: &mut [u8; TILE_ROWS * RUN]);

/// [`Turn`], plainly.
pub fn turn(rows: &[u8], stride: usize, out: &mut [u8; TILE_ROWS * RUN]) {
    for (word, out) in out.chunks_exact_mut(TILE_ROWS * WORD).enumerate() {
        for (row, out) in out.chunks_exact_mut(WORD).enumerate() {
            out.copy_from_slice(&rows[row * stride + word * WORD..][..WORD]);
        }
    }
}

/// Brings some tiles into order, each in its place.
///
/// # Panics
/// As [`interleave`], and where `tiles` are not whole tiles.
pub fn interleave_in_place(ty: GgmlType, cols: usize, tiles: &mut [u8], turn: Turn) {
    assert!(is_possible(ty, cols), "{ty} by {cols} columns has no such order");
    let bytes = TILE_ROWS * cols / CHUNK * chunk_bytes(ty);
    let mut copy = Vec::with_capacity(bytes);
    for tile in tiles.chunks_exact_mut(bytes) {
        copy.clear();
        copy.extend_from_slice(tile);
        interleave(ty, &copy, tile, turn);
    }
}

/// Brings one tile, the sixteen rows in `rows`, into order in `out`.
///
/// # Panics
/// Where both are not sixteen rows of whole chunks, or the type is not [`is_possible`].
pub fn interleave(ty: GgmlType, rows: &[u8], out: &mut [u8], turn: Turn) {
    let (row_bytes, chunk) = (rows.len() / TILE_ROWS, chunk_bytes(ty));
    let n = row_bytes / chunk;
    assert!(is_possible(ty, n * CHUNK) && rows.len() == TILE_ROWS * n * chunk, "sixteen rows of whole chunks");
    assert_eq!(rows.len(), out.len(), "room for the rows");
    let (head, block_bytes) = (head_bytes(ty), ty.block_bytes());
    for c in 0..n {
        let (rows, words) = (&rows[c * chunk..], words(ty, c, n));
        for block in 0..CHUNK / ty.block_len() {
            let from = |at: usize| block * block_bytes + at;
            // Where a byte goes of which the row's first one goes to `to` among the words.
            let to = |at: usize| place(ty, block, at) / WORD * TILE_ROWS * WORD + place(ty, block, at) % WORD;
            let runs = (block_bytes - head) / RUN;
            for at in (head..head + runs * RUN).step_by(RUN) {
                let out = out[words.clone()][to(at)..].first_chunk_mut().expect("room for a run");
                turn(&rows[from(at)..], row_bytes, out);
            }
            for at in (0..head).chain(head + runs * RUN..block_bytes) {
                let bytes = (0..TILE_ROWS).map(|i| rows[i * row_bytes + from(at)]);
                if place(ty, block, at) < word_bytes(ty) {
                    let out = out[words.clone()][to(at)..].iter_mut().step_by(WORD);
                    out.zip(bytes).for_each(|(out, byte)| *out = byte);
                } else {
                    let left = chunk - word_bytes(ty);
                    let out = out[rest(ty, c)][place(ty, block, at) - word_bytes(ty)..].iter_mut().step_by(left);
                    out.zip(bytes).for_each(|(out, byte)| *out = byte);
                }
            }
        }
    }
}

/// Brings one tile's rows back, one after another, in `out`.
///
/// # Panics
/// Where both are not sixteen rows of whole chunks.
pub fn restore_tile(ty: GgmlType, tile: &[u8], out: &mut [u8]) {
    let (row_bytes, chunk) = (tile.len() / TILE_ROWS, chunk_bytes(ty));
    let n = row_bytes / chunk;
    assert!(tile.len() == TILE_ROWS * n * chunk && out.len() == tile.len(), "sixteen rows of whole chunks");
    let (head, block_bytes, left) = (head_bytes(ty), ty.block_bytes(), chunk - word_bytes(ty));
    let runs = head..head + (block_bytes - head) / RUN * RUN;
    for (c, block) in (0..n).flat_map(|c| (0..CHUNK / ty.block_len()).map(move |block| (c, block))) {
        let words = &tile[words(ty, c, n)];
        let from = |at: usize| c * chunk + block * block_bytes + at;
        let to = |at: usize| place(ty, block, at) / WORD * TILE_ROWS * WORD + place(ty, block, at) % WORD;
        for at in runs.clone().step_by(RUN) {
            let words = &words[to(at)..][..TILE_ROWS * RUN];
            for row in 0..TILE_ROWS {
                let mut run = [0; RUN];
                for (word, run) in run.as_chunks_mut::<WORD>().0.iter_mut().enumerate() {
                    run.copy_from_slice(&words[(word * TILE_ROWS + row) * WORD..][..WORD]);
                }
                out[row * row_bytes + from(at)..][..RUN].copy_from_slice(&run);
            }
        }
        for at in (0..head).chain(runs.end..block_bytes) {
            let (bytes, first, apart) = match place(ty, block, at) {
                at_word if at_word < word_bytes(ty) => (words, to(at), WORD),
                at_rest => (&tile[rest(ty, c)], at_rest - word_bytes(ty), left),
            };
            for row in 0..TILE_ROWS {
                out[row * row_bytes + from(at)] = bytes[first + row * apart];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_has_the_bytes_of_its_rows_in_the_order_that_is_said() {
        let types = GgmlType::ALL.iter().copied().filter(|&ty| is_possible(ty, 3 * CHUNK));
        for (ty, n) in types.flat_map(|ty| [(ty, 1), (ty, 2), (ty, 3)]) {
            let row_bytes = n * chunk_bytes(ty);
            // Which byte of which row it is.
            let rows: Vec<u16> =
                (0..TILE_ROWS as u16).flat_map(|r| (0..row_bytes as u16).map(move |b| r << 10 | b)).collect();
            let parts = [0, 8].map(|shift| rows.iter().map(|b| (b >> shift) as u8).collect::<Vec<_>>());
            let [low, high] = parts.each_ref().map(|rows| {
                let mut out = vec![0; rows.len()];
                interleave(ty, rows, &mut out, turn);
                out
            });
            for (low, plain) in [(&low, &parts[0]), (&high, &parts[1])] {
                let mut rows = vec![0; low.len()];
                restore_tile(ty, low, &mut rows);
                assert!(rows == *plain, "{ty}: {n} chunks come back");
            }
            let got: Vec<u16> = low.iter().zip(&high).map(|(&low, &high)| u16::from_le_bytes([low, high])).collect();
            for (c, block) in (0..n).flat_map(|c| (0..CHUNK / ty.block_len()).map(move |block| (c, block))) {
                for (r, at) in (0..TILE_ROWS).flat_map(|r| (0..ty.block_bytes()).map(move |at| (r, at))) {
                    let to = place(ty, block, at);
                    let to = if to < word_bytes(ty) {
                        words(ty, c, n).start + to / WORD * TILE_ROWS * WORD + r * WORD + to % WORD
                    } else {
                        rest(ty, c).start + r * (chunk_bytes(ty) - word_bytes(ty)) + to - word_bytes(ty)
                    };
                    let from = r << 10 | (c * chunk_bytes(ty) + block * ty.block_bytes() + at);
                    assert_eq!(usize::from(got[to]), from, "{ty}: byte {at} of block {block} of chunk {c} of row {r}");
                }
            }
        }
    }
}
