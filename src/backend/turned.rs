//! Where the KV cache has keys: of F16 and Q8_0 they lie turned.
//!
//! Scores take a lane for each position, so [`KEY_TILE`] positions lie together, the last ones fewer, and among these all first
//! elements, all second ones, …; of Q8_0, block by block, with the scales of a block before its bytes. Turned at each use
//! instead, keys took half of the time of attention while decoding.

use crate::quant::GgmlType;

/// Positions of a tile of keys.
pub const KEY_TILE: usize = 64;

/// Whether keys of this type are turned.
pub const fn is_turned(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::F16 | GgmlType::Q8_0)
}

/// Positions of the tile that begins at `start`, in a cache of `n_ctx`.
pub const fn key_tile(n_ctx: usize, start: usize) -> usize {
    if n_ctx - start < KEY_TILE { n_ctx - start } else { KEY_TILE }
}

/// A key of a head that has `n_ctx` positions of `dim` elements, of a type that is turned.
#[derive(Clone, Copy)]
pub struct TurnedKey {
    /// F16 or Q8_0.
    pub ty: GgmlType,
    /// Positions of the head.
    pub n_ctx: usize,
    /// Elements of a key.
    pub dim: usize,
    /// The key's position.
    pub pos: usize,
}

impl TurnedKey {
    /// Puts the blocks `bytes`, the first of which has element `d`, into the head's bytes.
    ///
    /// # Panics
    /// If the type is not turned.
    pub fn write(self, d: usize, bytes: &[u8], head: &mut [u8]) {
        assert!(is_turned(self.ty), "keys of {} lie as they are", self.ty);
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
    /// If the type is not turned.
    pub fn read(self, head: &[u8], bytes: &mut [u8]) {
        assert!(is_turned(self.ty), "keys of {} lie as they are", self.ty);
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
        let start = self.pos / KEY_TILE * KEY_TILE;
        (start, key_tile(self.n_ctx, start), self.pos - start)
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
