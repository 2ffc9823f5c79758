//! A short convolution between two gates (arXiv 2511.23404).

use super::{Conv, Inputs, add_product};
use crate::{
    Result,
    backend::{Backend, Product},
    blueprint,
    model::{
        Scratch,
        cx::Cx,
        load::{Linear, Loader, Mat},
    },
};

/// See the module.
pub struct ShortConv {
    /// Number among the recurrent parts: which memory of a sequence is its own.
    index: usize,
    /// Whether no part behind it fills any state.
    is_last: bool,
    /// Gate before, gate behind, then what is convolved. (3 * n_embd, n_embd)
    input: Linear,
    conv: Conv,
    o: Linear,
}

impl ShortConv {
    /// The recurrent part number `index`.
    pub fn load(loader: &mut Loader<'_>, conv: &blueprint::ShortConv, index: usize, is_last: bool) -> Result<Self> {
        let (input, o) = (loader.linear(&conv.input)?, loader.linear(&conv.o)?);
        Ok(Self { index, is_last, input, conv: Conv::load(loader, &[conv.conv])?, o })
    }

    /// Floats per token of its rows.
    pub fn cols(n_embd: usize) -> usize {
        6 * n_embd
    }

    pub fn mats(&self) -> impl Iterator<Item = &Mat> {
        [&self.input.w, &self.o.w].into_iter()
    }

    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        [&mut self.input.w, &mut self.o.w].into_iter()
    }

    /// `x += o · (c * conv(b * x))` of the normed rows.
    pub fn add<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, seqs, experts, target, .. } = cx;
        let Scratch { x, sum, branch, moe, attended, runs, norm, .. } = &mut **s;
        let (input, rest) = moe.out.split_at_mut(3 * n * n_embd);
        let (gated, rest) = rest.split_at_mut(n * n_embd);
        let (mixed, rest) = rest.split_at_mut(n * n_embd);
        let out = &mut rest[..n * n_embd];
        b.matmul(norm, &mut [Product { w: self.input.w.view(), y: input }]);
        self.input.finish(*b, input);
        experts.meanwhile();
        let part = |i: usize, which: usize| &input[(3 * i + which) * n_embd..][..n_embd];
        b.each_row(gated, n_embd, 2 * n_embd, |i, row| {
            row.iter_mut().zip(part(i, 0)).zip(part(i, 2)).for_each(|((y, gate), x)| *y = gate * x);
        });
        for run in &*runs {
            let inputs = Inputs { x: run.of(gated, n_embd), cols: n_embd, at: 0 };
            self.conv.apply(*b, inputs, seqs[run.seq].memory(self.index), run.of_mut(mixed, n_embd), |x| x);
        }
        b.each_row(attended.start_wide(n, n_embd), n_embd, 2 * n_embd, |i, row| {
            row.iter_mut().zip(part(i, 1)).zip(&mixed[i * n_embd..]).for_each(|((y, gate), x)| *y = gate * x);
        });
        add_product(*b, &self.o, attended, out, target.rows([x, sum, branch], n, n_embd));
        if self.is_last {
            cx.drop_unneeded();
        }
    }
}
