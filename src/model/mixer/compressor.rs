//! Makes one row of a block of tokens: a sum of their values, each element weighted by a softmax over them, or their mean.

use std::ops::Range;

use super::multiply;
use crate::{
    Result,
    backend::{Backend, Product, Rows},
    blueprint,
    model::{
        load::{Linear, Loader, Norm},
        state::Sequence,
    },
};

/// See the module.
pub struct Compressor {
    dim: usize,
    /// Tokens of a block.
    each: usize,
    /// Whether a block sums the first half of the values of the block before as well, and the second half of its own.
    overlaps: bool,
    value: Linear,
    value_norm: Option<Norm>,
    /// Scores, and what is added to them. (tokens of a block, cols)
    score: Option<(Linear, Vec<f32>)>,
    norm: Option<Norm>,
}

/// Values and scores of a batch's tokens of one sequence.
#[derive(Clone, Copy)]
pub struct NewRows<'a> {
    /// (n, cols) each; of means, no scores.
    pub rows: [&'a [f32]; 2],
    /// Position of the first.
    pub pos: usize,
    /// Number of the recurrent part that keeps the last tokens', and which of its floats.
    pub pending: (usize, &'a Range<usize>),
}

/// Values and scores of a sequence's last tokens.
#[derive(Clone, Copy)]
struct PendingRows<'a> {
    /// Those before the batch: of token t, values, then scores, as row t modulo their number. (kept, token_cols)
    before: &'a [f32],
    /// Values and scores of the batch's. (n, cols) each
    new: [&'a [f32]; 2],
    /// Position of the first of them.
    pos: usize,
}

impl Compressor {
    pub fn load(loader: &mut Loader<'_>, compressor: &blueprint::Compressor) -> Result<Self> {
        Ok(Self {
            dim: compressor.dim,
            each: compressor.each,
            overlaps: compressor.overlaps,
            value: loader.linear(&compressor.value)?,
            value_norm: loader.norm_if_there(compressor.value_norm.as_ref())?,
            score: match &compressor.score {
                Some(score) => Some((loader.linear(&score.w)?, loader.vector(&score.ape)?)),
                None => None,
            },
            norm: loader.norm_if_there(compressor.norm.as_ref())?,
        })
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        [&mut self.value].into_iter().chain(self.score.as_mut().map(|(linear, _)| linear))
    }

    /// Tokens of a block.
    pub fn each(&self) -> usize {
        self.each
    }

    /// Elements of a block's row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Elements of a token's values and of its scores.
    pub fn cols(&self) -> [usize; 2] {
        let cols = if self.overlaps { 2 * self.dim } else { self.dim };
        [cols, if self.score.is_some() { cols } else { 0 }]
    }

    /// Elements of both.
    fn token_cols(&self) -> usize {
        self.cols().iter().sum()
    }

    /// Tokens that a sequence keeps.
    fn kept(&self) -> usize {
        if self.overlaps { 2 * self.each } else { self.each }
    }

    /// Floats of these.
    pub fn floats(&self) -> usize {
        self.kept() * self.token_cols()
    }

    /// Values and scores of rows.
    pub fn project(&self, b: &mut impl Backend, x: &Rows, values: &mut [f32], scores: &mut [f32]) {
        let value = Product { w: self.value.w.view(), y: &mut *values };
        let score = self.score.as_ref().map(|(linear, _)| Product { w: linear.w.view(), y: &mut *scores });
        multiply(b, x, [Some(value), score]);
        self.value.finish(b, values);
        if let Some(norm) = &self.value_norm {
            norm.apply_onto(b, values);
        }
        if let Some((linear, _)) = &self.score {
            linear.finish(b, scores);
        }
    }

    /// Keeps the last tokens' values and scores, and calls `write` with the number of each block that the new ones complete
    /// and its row, not yet rotated. `row` has room for one.
    pub fn complete<B: Backend>(
        &self,
        b: &mut B,
        seq: &mut Sequence,
        new: &NewRows<'_>,
        row: &mut [f32],
        mut write: impl FnMut(&mut B, &mut Sequence, usize, &mut [f32]),
    ) {
        let (NewRows { rows, pos, pending: (part, range) }, row) = (*new, &mut row[..self.dim]);
        let (before, after) = seq.memory(part);
        self.keep(&PendingRows { before: &before[range.clone()], new: rows, pos }, &mut after[range.clone()]);
        let end = pos + rows[0].len() / self.cols()[0];
        for block in pos / self.each..end / self.each {
            let (before, _) = seq.memory(part);
            self.row_of(b, &PendingRows { before: &before[range.clone()], new: rows, pos }, block, row);
            write(b, seq, block, row);
        }
    }

    fn keep(&self, rows: &PendingRows<'_>, after: &mut [f32]) {
        let ([cols, _], width, kept) = (self.cols(), self.token_cols(), self.kept());
        after.copy_from_slice(rows.before);
        let n = rows.new[0].len() / cols;
        for i in n.saturating_sub(kept)..n {
            let at = (rows.pos + i) % kept * width;
            for (new, after) in rows.new.iter().zip(after[at..at + width].chunks_exact_mut(cols)) {
                after.copy_from_slice(&new[i * cols..(i + 1) * cols]);
            }
        }
    }

    /// The row of a block whose last token is one of the batch's, not yet rotated. (dim)
    fn row_of(&self, b: &mut impl Backend, rows: &PendingRows<'_>, block: usize, out: &mut [f32]) {
        let (each, [cols, _], width) = (self.each, self.cols(), self.token_cols());
        let ape = self.score.as_ref().map_or(&[][..], |(_, ape)| ape);
        let (first, end) = (block * each, (block + 1) * each);
        let start = if self.overlaps { first.saturating_sub(each) } else { first };
        // Value and score of an element, of the half that counts for the block. Where nothing is scored, all have the same.
        let of = |t: usize, j: usize| {
            let j = if self.overlaps && t >= first { self.dim + j } else { j };
            let [value, score] = match t.checked_sub(rows.pos) {
                Some(i) => rows.new.map(|new| new.get(i * cols + j).copied().unwrap_or(0.0)),
                None => {
                    let row = &rows.before[t % self.kept() * width..][..width];
                    [row[j], row.get(cols + j).copied().unwrap_or(0.0)]
                }
            };
            (value, score + ape.get(t % each * cols + j).copied().unwrap_or(0.0))
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
        if let Some(norm) = &self.norm {
            norm.apply_onto(b, out);
        }
    }
}
