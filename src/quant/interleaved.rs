//! Sixteen rows in turn, word by word: the order in which a kernel that has a row in each lane reads them.
//!
//! A tile of sixteen rows keeps its place and its bytes in the matrix; only their order changes. First, of types whose chunk of
//! 256 columns is no whole number of words, the two bytes that are left of each chunk of each row. Then the words, chunk after
//! chunk: word 0 of each row's chunk, word 1 of each, …, in the order that [`place`] says. So a kernel reads a tile from end to
//! end: two bytes behind all words made it wait for memory at every other chunk. What is no whole tile at the end of a matrix
//! stays as it was.
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
    c * bytes..(c + 1) * bytes
}

/// Where the words of chunk `c` of `n` lie in a tile.
pub const fn words(ty: GgmlType, c: usize, n: usize) -> Range<usize> {
    let bytes = TILE_ROWS * word_bytes(ty);
    let start = rest(ty, n).start + c * bytes;
    start..start + bytes
}

/// Brings some tiles into order, each in its place. Takes 128 KiB of stack.
///
/// # Panics
/// As [`interleave`], and where `tiles` are not whole tiles.
pub fn interleave_in_place(ty: GgmlType, cols: usize, tiles: &mut [u8]) {
    assert!(is_possible(ty, cols), "{ty} by {cols} columns has no such order");
    let mut copy = [0; MAX_TILE_BYTES];
    let bytes = TILE_ROWS * cols / CHUNK * chunk_bytes(ty);
    for tile in tiles.chunks_exact_mut(bytes) {
        copy[..bytes].copy_from_slice(tile);
        interleave(ty, &copy[..bytes], tile);
    }
}

/// Brings one tile, the sixteen rows in `rows`, into order in `out`.
///
/// # Panics
/// Where both are not sixteen rows of whole chunks, or the type is not [`is_possible`].
pub fn interleave(ty: GgmlType, rows: &[u8], out: &mut [u8]) {
    let row_bytes = rows.len() / TILE_ROWS;
    let n = row_bytes / chunk_bytes(ty);
    assert!(
        is_possible(ty, n * CHUNK) && rows.len() == TILE_ROWS * n * chunk_bytes(ty),
        "sixteen rows of whole chunks"
    );
    assert_eq!(rows.len(), out.len(), "room for the rows");
    // Where each byte of a chunk comes from.
    let mut from = [0; 8 * 34];
    for block in 0..CHUNK / ty.block_len() {
        (0..ty.block_bytes()).for_each(|at| from[place(ty, block, at)] = block * ty.block_bytes() + at);
    }
    let (from, left) = from[..chunk_bytes(ty)].split_at(word_bytes(ty));
    for c in 0..n {
        let byte = |i: usize, at: usize| rows[i * row_bytes + c * chunk_bytes(ty) + at];
        for (out, from) in out[words(ty, c, n)].chunks_exact_mut(TILE_ROWS * WORD).zip(from.as_chunks::<WORD>().0) {
            let words = out.as_chunks_mut::<WORD>().0.iter_mut().enumerate();
            if from[3] == from[0] + 3 {
                // Nearly all: as they are, in one piece.
                let first = &rows[c * chunk_bytes(ty) + from[0]..];
                words.for_each(|(i, out)| *out = *first[i * row_bytes..].first_chunk().expect("a word of each row"));
            } else {
                words.for_each(|(i, out)| *out = from.map(|at| byte(i, at)));
            }
        }
        if !left.is_empty() {
            for (i, out) in out[rest(ty, c)].chunks_exact_mut(left.len()).enumerate() {
                out.iter_mut().zip(left).for_each(|(out, &at)| *out = byte(i, at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_has_the_bytes_of_its_rows_in_the_order_that_is_said() {
        for ty in GgmlType::ALL.iter().copied().filter(|&ty| is_possible(ty, 2 * CHUNK)) {
            let row_bytes = 2 * chunk_bytes(ty);
            // Which byte of which row it is.
            let rows: Vec<u16> =
                (0..TILE_ROWS as u16).flat_map(|r| (0..row_bytes as u16).map(move |b| r << 10 | b)).collect();
            let parts = [0, 8].map(|shift| rows.iter().map(|b| (b >> shift) as u8).collect::<Vec<_>>());
            let [low, high] = parts.map(|rows| {
                let mut out = vec![0; rows.len()];
                interleave(ty, &rows, &mut out);
                out
            });
            let got: Vec<u16> = low.iter().zip(&high).map(|(&low, &high)| u16::from_le_bytes([low, high])).collect();
            for (c, block) in (0..2).flat_map(|c| (0..CHUNK / ty.block_len()).map(move |block| (c, block))) {
                for (r, at) in (0..TILE_ROWS).flat_map(|r| (0..ty.block_bytes()).map(move |at| (r, at))) {
                    let to = place(ty, block, at);
                    let to = if to < word_bytes(ty) {
                        words(ty, c, 2).start + to / WORD * TILE_ROWS * WORD + r * WORD + to % WORD
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
