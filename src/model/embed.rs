//! Rows of tensors that are left in the file: a token needs one row of its embedding, of a matrix that is among the largest of a
//! model, and a few of a table of n-grams.

use crate::{
    Result,
    blueprint::Tensor,
    gguf::{Gguf, TensorReader},
    quant::{GgmlType, dequantize_row},
};

/// Reads rows of one tensor.
pub struct RowReader {
    reader: TensorReader,
    ty: GgmlType,
    row_bytes: usize,
}

impl RowReader {
    pub fn new(gguf: &Gguf, t: &Tensor) -> Self {
        let row_bytes = t.cols / t.ty.block_len() * t.ty.block_bytes();
        Self { reader: gguf.reader(&gguf.tensors()[t.index]), ty: t.ty, row_bytes }
    }

    /// Tells the system that a row will be read.
    pub fn announce(&self, row: u64) {
        self.reader.announce(row * self.row_bytes as u64, self.row_bytes);
    }

    /// Reads a row into `x`, which is as long. `raw` has room for its bytes.
    ///
    /// # Errors
    /// A read that failed.
    pub fn read(&self, row: u64, raw: &mut [u8], x: &mut [f32]) -> Result<()> {
        let raw = &mut raw[..self.row_bytes];
        self.reader.read(row * self.row_bytes as u64, raw)?;
        dequantize_row(self.ty, raw, x);
        Ok(())
    }
}

/// The token embedding.
pub struct Embed {
    rows: RowReader,
    scale: f32,
}

impl Embed {
    pub fn new(gguf: &Gguf, t: &Tensor, scale: f32) -> Self {
        Self { rows: RowReader::new(gguf, t), scale }
    }

    /// Gathers the tokens' rows, scaled, into `x` (n, n_stream, n_embd): the same in all streams. `raw` has room for a row.
    pub fn gather(&self, tokens: &[u32], n_embd: usize, x: &mut [f32], raw: &mut [u8]) -> Result<()> {
        let cols = x.len() / tokens.len();
        for (&token, streams) in tokens.iter().zip(x.chunks_exact_mut(cols)) {
            let (x, others) = streams.split_at_mut(n_embd);
            self.rows.read(u64::from(token), raw, x)?;
            if self.scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= self.scale);
            }
            others.chunks_exact_mut(n_embd).for_each(|other| other.copy_from_slice(x));
        }
        Ok(())
    }
}
