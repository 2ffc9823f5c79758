//! Makes one row of a block of tokens: a sum of their values, each element weighted by a softmax over them.

use crate::{
    Result,
    backend::{Backend, Product, Rows},
    blueprint,
    model::load::{Linear, Loader, Norm},
};

/// See the module.
pub struct Compressor {
    dim: usize,
    /// Whether a block sums the first half of the values of the block before as well, and the second half of its own.
    overlaps: bool,
    value: Linear,
    score: Linear,
    /// Added to scores. (tokens of a block, cols)
    ape: Vec<f32>,
    norm: Norm,
}

/// Values and scores of a sequence's last tokens.
#[derive(Clone, Copy)]
pub struct PendingRows<'a> {
    /// Those before the batch: of token t, values, then scores, as row t modulo their number. (kept, 2 * cols)
    pub before: &'a [f32],
    /// Values and scores of the batch's. (n, cols) each
    pub new: [&'a [f32]; 2],
    /// Position of the first of them.
    pub pos: usize,
}

impl Compressor {
    pub fn load(loader: &mut Loader<'_>, compressor: &blueprint::Compressor) -> Result<Self> {
        Ok(Self {
            dim: compressor.dim,
            overlaps: compressor.overlaps,
            value: loader.linear(&compressor.value)?,
            score: loader.linear(&compressor.score)?,
            ape: loader.vector(&compressor.ape)?,
            norm: loader.norm(&compressor.norm)?,
        })
    }

    pub fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.value, &mut self.score]
    }

    /// Elements of a block's row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Elements of a token's values, or of its scores.
    pub fn cols(&self) -> usize {
        if self.overlaps { 2 * self.dim } else { self.dim }
    }

    /// Tokens of a block.
    fn each(&self) -> usize {
        self.ape.len() / self.cols()
    }

    /// Tokens that a sequence keeps.
    fn kept(&self) -> usize {
        if self.overlaps { 2 * self.each() } else { self.each() }
    }

    /// Floats of these.
    pub fn floats(&self) -> usize {
        self.kept() * 2 * self.cols()
    }

    /// Values and scores of rows.
    pub fn project(&self, b: &mut impl Backend, x: &Rows, values: &mut [f32], scores: &mut [f32]) {
        let value = Product { w: self.value.w.view(), y: values };
        b.matmul(x, &mut [value, Product { w: self.score.w.view(), y: scores }]);
        self.value.finish(b, values);
        self.score.finish(b, scores);
    }

    /// Keeps the last tokens' values and scores.
    pub fn keep(&self, rows: &PendingRows<'_>, after: &mut [f32]) {
        let (cols, kept) = (self.cols(), self.kept());
        after.copy_from_slice(rows.before);
        let n = rows.new[0].len() / cols;
        for i in n.saturating_sub(kept)..n {
            let at = (rows.pos + i) % kept * 2 * cols;
            for (new, after) in rows.new.iter().zip(after[at..at + 2 * cols].chunks_exact_mut(cols)) {
                after.copy_from_slice(&new[i * cols..(i + 1) * cols]);
            }
        }
    }

    /// The row of a block whose last token is one of the batch's, not yet rotated. (dim)
    pub fn row_of(&self, b: &mut impl Backend, rows: &PendingRows<'_>, block: usize, out: &mut [f32]) {
        let (each, cols) = (self.each(), self.cols());
        let (first, end) = (block * each, (block + 1) * each);
        let start = if self.overlaps { first.saturating_sub(each) } else { first };
        // Value and score of an element, of the half that counts for the block.
        let of = |t: usize, j: usize| {
            let j = if self.overlaps && t >= first { self.dim + j } else { j };
            let [value, score] = match t.checked_sub(rows.pos) {
                Some(i) => rows.new.map(|new| new[i * cols + j]),
                None => {
                    let row = &rows.before[t % self.kept() * 2 * cols..];
                    [row[j], row[cols + j]]
                }
            };
            (value, score + self.ape[t % each * cols + j])
        };
        for (j, out) in out.iter_mut().enumerate() {
            let max = (start..end).fold(f32::NEG_INFINITY, |max, t| max.max(of(t, j).1));
            let (mut sum, mut total) = (0.0, 0.0);
            for (value, score) in (start..end).map(|t| of(t, j)) {
                let weight = (score - max).exp();
                (sum, total) = (sum + weight * value, total + weight);
            }
            *out = sum / total;
        }
        self.norm.apply_onto(b, out);
    }
}
