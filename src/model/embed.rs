//! The token embedding, left in the file: a token needs one row, of a matrix that is among the largest of a model.

use crate::{
    Result,
    blueprint::Tensor,
    gguf::{Gguf, TensorReader},
    quant::{GgmlType, dequantize_row},
};

/// See the module.
pub struct Embed {
    reader: TensorReader,
    ty: GgmlType,
    n_embd: usize,
    row_bytes: usize,
    scale: f32,
}

impl Embed {
    pub fn new(gguf: &Gguf, t: &Tensor, scale: f32) -> Self {
        let row_bytes = t.cols / t.ty.block_len() * t.ty.block_bytes();
        Self { reader: gguf.reader(&gguf.tensors()[t.index]), ty: t.ty, n_embd: t.cols, row_bytes, scale }
    }

    /// Gathers the tokens' rows, scaled, into `x` (n, n_embd). `raw` has room for a row.
    pub fn gather(&self, tokens: &[u32], x: &mut [f32], raw: &mut [u8]) -> Result<()> {
        let raw = &mut raw[..self.row_bytes];
        for (&token, x) in tokens.iter().zip(x.chunks_exact_mut(self.n_embd)) {
            self.reader.read(u64::from(token) * self.row_bytes as u64, raw)?;
            dequantize_row(self.ty, raw, x);
            if self.scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= self.scale);
            }
        }
        Ok(())
    }
}
