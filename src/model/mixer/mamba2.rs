//! Mamba 2 (arXiv 2405.21060): each head keeps a matrix that fades as the token says.

use super::{Conv, Inputs, add_product, silu, softplus};
use crate::{
    Result,
    backend::{Backend, Product, Recurrence},
    blueprint,
    model::{
        Scratch,
        cx::Cx,
        load::{Linear, Loader, Mat},
    },
};

/// See the module.
pub struct Mamba2 {
    /// Number among the recurrent parts: which memory of a sequence is its own.
    index: usize,
    /// Whether no part behind it fills any state.
    is_last: bool,
    n_head: usize,
    head: usize,
    state: usize,
    groups: usize,
    /// Gate, x, B, C, dt.
    input: Linear,
    conv: Conv,
    dt_bias: Vec<f32>,
    a: Vec<f32>,
    d: Vec<f32>,
    /// (inner)
    norm: Vec<f32>,
    eps: f32,
    o: Linear,
}

impl Mamba2 {
    /// The recurrent part number `index`.
    pub fn load(loader: &mut Loader<'_>, mamba: &blueprint::Mamba2, index: usize, is_last: bool) -> Result<Self> {
        Ok(Self {
            index,
            is_last,
            n_head: mamba.n_head,
            head: mamba.head,
            state: mamba.state,
            groups: mamba.groups,
            input: loader.linear(&mamba.input)?,
            conv: Conv::load(loader, &[mamba.conv])?,
            dt_bias: loader.vector(&mamba.dt_bias)?,
            a: loader.vector(&mamba.a)?,
            d: loader.vector(&mamba.d)?,
            norm: loader.vector(&mamba.norm)?,
            eps: mamba.eps,
            o: loader.linear(&mamba.o)?,
        })
    }

    /// Floats per token of its rows.
    pub fn cols(mamba: &blueprint::Mamba2, n_embd: usize) -> usize {
        mamba.input.w.rows + mamba.conv.channels() + 2 * mamba.n_head + n_embd
    }

    pub fn mats(&self) -> impl Iterator<Item = &Mat> {
        [&self.input.w, &self.o.w].into_iter()
    }

    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        [&mut self.input.w, &mut self.o.w].into_iter()
    }

    /// `x += o · heads(norm(x))`, where the rows have been normed already.
    pub fn add<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_embd, n_head, inner) = (cx.len(), cx.n_embd, self.n_head, self.n_head * self.head);
        let (cols, channels) = (self.input.w.view().rows, inner + 2 * self.groups * self.state);
        let Cx { b, s, seqs, experts, target, .. } = cx;
        let Scratch { x, sum, branch, moe, attended, runs, norm, .. } = &mut **s;
        let (input, rest) = moe.out.split_at_mut(n * cols);
        let (mixed, rest) = rest.split_at_mut(n * channels);
        let (dt, rest) = rest.split_at_mut(n * n_head);
        let (decay, rest) = rest.split_at_mut(n * n_head);
        let out = &mut rest[..n * n_embd];
        b.matmul(norm, &mut [Product { w: self.input.w.view(), y: input }]);
        self.input.finish(*b, input);
        experts.meanwhile();
        b.each_row(dt, n_head, 32 * n_head, |i, row| {
            let raw = &input[(i + 1) * cols - n_head..(i + 1) * cols];
            row.iter_mut().zip(raw).zip(&self.dt_bias).for_each(|((dt, raw), bias)| *dt = softplus(raw + bias));
        });
        b.each_row(decay, n_head, 16 * n_head, |i, row| {
            row.iter_mut().zip(&dt[i * n_head..]).zip(&self.a).for_each(|((decay, dt), a)| *decay = (dt * a).exp());
        });
        let heads = attended.start_wide(n, inner);
        for run in &*runs {
            let (before, after) = seqs[run.seq].memory(self.index);
            let (inputs, memory) = before.split_at(self.conv.floats());
            let (last_inputs, state) = after.split_at_mut(self.conv.floats());
            let mixed = run.of_mut(mixed, channels);
            let from = Inputs { x: run.of(input, cols), cols, at: inner };
            self.conv.apply(*b, from, (inputs, last_inputs), mixed, silu);
            let recurrence = Recurrence {
                x: mixed,
                cols: channels,
                at: [inner + self.groups * self.state, inner, 0],
                decay: run.of(decay, n_head),
                rate: run.of(dt, n_head),
                heads: n_head,
                key_heads: self.groups,
                in_turn: false,
                k: self.state,
                v: self.head,
                corrects: false,
                from: memory,
            };
            b.recur(&recurrence, state, run.of_mut(heads, inner));
            experts.meanwhile();
        }
        let (input, mixed) = (&*input, &*mixed);
        b.each_row(heads, inner, 16 * inner, |i, row| {
            self.finish_row(&mixed[i * channels..][..inner], &input[i * cols..][..inner], row);
        });
        add_product(*b, &self.o, attended, out, target.rows([x, sum, branch], n, n_embd));
        if self.is_last {
            cx.drop_unneeded();
        }
    }

    /// What went past the memory, gate, and norm of each group. All (inner)
    fn finish_row(&self, x: &[f32], gate: &[f32], row: &mut [f32]) {
        for (i, ((y, x), gate)) in row.iter_mut().zip(x).zip(gate).enumerate() {
            *y = (*y + self.d[i / self.head] * x) * silu(*gate);
        }
        let group = row.len() / self.groups;
        for (row, weight) in row.chunks_exact_mut(group).zip(self.norm.chunks_exact(group)) {
            let mean = row.iter().map(|x| x * x).sum::<f32>() / group as f32;
            let scale = 1.0 / (mean + self.eps).sqrt();
            row.iter_mut().zip(weight).for_each(|(x, weight)| *x *= scale * weight);
        }
    }
}
