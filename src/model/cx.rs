//! What a batch is computed with, and which of its rows are still needed.

use std::ops::Range;

use super::{Batch, KvCache, Scratch, Want, finite::first_broken_row, load::Norm, rope::Rope};
use crate::{
    backend::{Backend, Floats},
    expert::Experts,
    trace::Phase,
};

/// See the module.
pub struct Cx<'a, B> {
    pub b: &'a mut B,
    pub kv: &'a mut KvCache,
    pub experts: &'a mut Experts,
    pub s: &'a mut Scratch,
    pub phase: Phase,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Where parts add what they give.
    pub target: Target,
    /// Rows of the batch.
    n: usize,
    /// The first row that is computed: those before it have done their part.
    first: usize,
    /// The first row whose logits are wanted.
    wanted: usize,
    /// The first row that anything will read.
    needed: usize,
}

/// Where parts add what they give: to the residual stream, or to a sum beside it that is normed or scaled first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// [`Scratch::x`]
    Stream,
    /// [`Scratch::sum`], of a block's branches.
    Block,
    /// [`Scratch::branch`], of one branch.
    Branch,
}

impl Target {
    /// The rows of it that are computed, of the three there are.
    pub fn rows<'s>(self, [x, sum, branch]: [&'s mut Floats; 3], rows: Range<usize>, n_embd: usize) -> &'s mut [f32] {
        let all = match self {
            Target::Stream => x,
            Target::Block => sum,
            Target::Branch => branch,
        };
        &mut all[rows.start * n_embd..rows.end * n_embd]
    }
}

impl<'a, B: Backend> Cx<'a, B> {
    /// # Panics
    /// If the batch is empty, or larger than scratch or KV cache.
    pub fn new(
        b: &'a mut B,
        batch: &Batch<'_>,
        kv: &'a mut KvCache,
        experts: &'a mut Experts,
        s: &'a mut Scratch,
        n_embd: usize,
    ) -> Self {
        let (n, pos) = (batch.tokens.len(), kv.len());
        assert!(n > 0 && n <= s.n_batch() && pos + n <= kv.n_ctx(), "{n} tokens at {pos} fit");
        let wanted = match batch.want {
            Want::All => 0,
            Want::Last => n - 1,
            Want::Nothing => n,
        };
        Self { b, kv, experts, s, phase: batch.phase, n_embd, target: Target::Stream, n, first: 0, wanted, needed: 0 }
    }

    /// The rows of the batch that are computed.
    pub fn rows(&self) -> Range<usize> {
        self.first..self.n
    }

    /// Position of the first row that is computed.
    pub fn pos(&self) -> usize {
        self.kv.len() + self.first
    }

    /// Rows that are computed.
    pub fn len(&self) -> usize {
        self.n - self.first
    }

    /// Whether no row is needed any more.
    pub fn is_done(&self) -> bool {
        self.first == self.n
    }

    /// Puts the angles of all rows' positions into [`Scratch::turns`].
    pub fn rotate(&mut self, ropes: &[Rope]) {
        let (pos, n) = (self.kv.len(), self.n);
        ropes.iter().zip(&mut self.s.turns).for_each(|(rope, turns)| rope.angles(pos, n, turns));
    }

    /// Norms the rows of the residual stream that are computed into [`Scratch::norm`], ready for products.
    pub fn norm(&mut self, norm: &Norm) {
        let (first, n) = (self.first, self.n);
        let x = &self.s.x[first * self.n_embd..n * self.n_embd];
        norm.apply(self.b, x, self.s.norm.start(n - first));
        self.b.prepare(&mut self.s.norm);
    }

    /// From here on, parts add to `target`, which is empty.
    pub fn begin(&mut self, target: Target) {
        self.target = target;
        if target != Target::Stream {
            let (rows, n_embd) = (self.rows(), self.n_embd);
            let Scratch { x, sum, branch, .. } = &mut *self.s;
            target.rows([x, sum, branch], rows, n_embd).fill(0.0);
        }
    }

    /// `to += scale * norm(target)`; from here on, parts add to `to`.
    pub fn pass_on(&mut self, to: Target, norm: Option<&Norm>, scale: f32) {
        let (from, rows, n_embd) = (self.target, self.rows(), self.n_embd);
        self.target = to;
        if from == to {
            return;
        }
        let Scratch { x, sum, branch, .. } = &mut *self.s;
        let (terms, y) = match from {
            Target::Block => (sum, x),
            Target::Branch if to == Target::Block => (branch, sum),
            Target::Branch => (branch, x),
            Target::Stream => unreachable!("the stream is passed on to nothing"),
        };
        let (terms, y) = [terms, y].map(|all| &mut all[rows.start * n_embd..rows.end * n_embd]).into();
        if let Some(norm) = norm {
            norm.apply_onto(self.b, terms);
        }
        self.b.add_weighted(y, n_embd, terms, |_| scale);
    }

    /// Multiplies the rows of the residual stream that are computed.
    pub fn scale(&mut self, scale: f32) {
        let (rows, n) = (self.rows(), self.n_embd);
        let x = &mut self.s.x[rows.start * n..rows.end * n];
        self.b.each_row(x, n, n, |_, row| row.iter_mut().for_each(|x| *x *= scale));
    }

    /// Puts them into [`Scratch::norm`] without any norm, ready for products.
    pub fn as_they_are(&mut self) {
        let x = &self.s.x[self.first * self.n_embd..self.n * self.n_embd];
        self.s.norm.start(self.n - self.first).copy_from_slice(x);
        self.b.prepare(&mut self.s.norm);
    }

    /// Whether [`Cx::drop_unneeded`] would drop any row. A trace wants every token's experts.
    pub fn has_unneeded(&self) -> bool {
        self.first < self.wanted && !self.experts.wants_every_token()
    }

    /// Goes on with the rows whose logits are wanted. For the last part that fills any state of the sequence: behind it no
    /// other row is of use, so a prompt of 512 tokens costs a layer less.
    pub fn drop_unneeded(&mut self) {
        if self.has_unneeded() {
            self.first = self.wanted;
        }
        self.needed = self.wanted;
    }

    /// Position of the first row that is needed and no number any more.
    pub fn broken(&self) -> Option<usize> {
        let from = self.first.max(self.needed);
        let rows = &self.s.x[from * self.n_embd..self.n * self.n_embd];
        first_broken_row(rows, self.n_embd).map(|row| self.kv.len() + from + row)
    }

    /// Goes on with the rows whose logits are wanted, whoever else wants others.
    pub fn keep_wanted(&mut self) {
        self.first = self.wanted;
    }
}
