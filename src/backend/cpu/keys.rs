//! Where the CPU's KV cache has keys: of F16 and Q8_0 they lie transposed, in tiles of [`TILE`] positions.
//!
//! Scores take a lane for each position, so the positions of a tile lie together (of the last one fewer), and among these all
//! first elements, all second ones, …; of Q8_0, block by block, with the scales of a block before its bytes. Transposed at each
//! use instead, keys took half of the time of attention while decoding.

use super::kernels::TILE;
use crate::{backend::KV_GROUP, quant::GgmlType};

const _: () = assert!(TILE == KV_GROUP, "a tile of keys lies among its own positions' bytes");

/// Whether keys of this type lie in tiles.
pub const fn is_tiled(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::F16 | GgmlType::Q8_0)
}

/// Positions of the tile that begins at `start`, in a cache of `n_ctx`.
pub const fn tile_len(n_ctx: usize, start: usize) -> usize {
    if n_ctx - start < TILE { n_ctx - start } else { TILE }
}

/// A key of a head that has `n_ctx` positions of `dim` elements, of a type that lies in tiles.
#[derive(Clone, Copy)]
pub struct KeyTile {
    /// F16 or Q8_0.
    pub ty: GgmlType,
    /// Positions of the head.
    pub n_ctx: usize,
    /// Elements of a key.
    pub dim: usize,
    /// The key's position.
    pub pos: usize,
}

impl KeyTile {
    /// Puts the blocks `bytes`, the first of which has element `d`, into the head's bytes.
    ///
    /// # Panics
    /// If the type does not lie in tiles.
    pub fn write(self, d: usize, bytes: &[u8], head: &mut [u8]) {
        assert!(is_tiled(self.ty), "keys of {} lie as they are", self.ty);
        if self.ty == GgmlType::F16 {
            let (first, step) = self.half(d);
            let to = head[first..].chunks_mut(step);
            return bytes.as_chunks::<2>().0.iter().zip(to).for_each(|(x, to)| to[..2].copy_from_slice(x));
        }
        for (i, block) in bytes.chunks_exact(self.ty.block_bytes()).enumerate() {
            let (scale, first, step) = self.block(d / self.ty.block_len() + i);
            head[scale..scale + 2].copy_from_slice(&block[..2]);
            block[2..].iter().zip(head[first..].iter_mut().step_by(step)).for_each(|(x, to)| *to = *x);
        }
    }

    /// Takes the key's blocks out of the head's bytes.
    ///
    /// # Panics
    /// If the type does not lie in tiles.
    pub fn read(self, head: &[u8], bytes: &mut [u8]) {
        assert!(is_tiled(self.ty), "keys of {} lie as they are", self.ty);
        if self.ty == GgmlType::F16 {
            let (first, step) = self.half(0);
            let from = head[first..].chunks(step);
            return bytes
                .as_chunks_mut::<2>()
                .0
                .iter_mut()
                .zip(from)
                .for_each(|(x, from)| x.copy_from_slice(&from[..2]));
        }
        for (i, block) in bytes.chunks_exact_mut(self.ty.block_bytes()).enumerate() {
            let (scale, first, step) = self.block(i);
            block[..2].copy_from_slice(&head[scale..scale + 2]);
            block[2..].iter_mut().zip(head[first..].iter().step_by(step)).for_each(|(x, from)| *x = *from);
        }
    }

    /// (start of its tile, positions of that, place among them)
    const fn tile(self) -> (usize, usize, usize) {
        let start = self.pos / TILE * TILE;
        (start, tile_len(self.n_ctx, start), self.pos - start)
    }

    /// Of F16: (byte of element `d`, bytes from there to the next element)
    const fn half(self, d: usize) -> (usize, usize) {
        let (start, width, lane) = self.tile();
        (2 * (start * self.dim + d * width + lane), 2 * width)
    }

    /// Of Q8_0: (byte of the scale of block `i`, byte of its first element, bytes from there to the next)
    const fn block(self, i: usize) -> (usize, usize, usize) {
        let (start, width, lane) = self.tile();
        let scales = (start * (self.dim / self.ty.block_len()) + width * i) * self.ty.block_bytes();
        (scales + 2 * lane, scales + 2 * width + lane, width)
    }
}
