//! A gated delta rule (arXiv 2412.06464): each head keeps a matrix that maps keys to values, and a token corrects what it maps
//! its own key to.

use super::{Conv, Inputs, multiply, silu, softplus};
use crate::{
    Result,
    backend::{Backend, Product, Recurrence, Rows},
    blueprint::{self, KeyHeads, OutputGate},
    model::{
        Scratch,
        cx::Cx,
        ffn::sigmoid,
        load::{Linear, Loader, Mat, Norm},
    },
};

/// See the module.
pub struct DeltaNet {
    /// Number among the recurrent parts: which memory of a sequence is its own.
    index: usize,
    /// Whether no part behind it fills any state.
    is_last: bool,
    n_k: usize,
    n_v: usize,
    k: usize,
    v: usize,
    key_heads: KeyHeads,
    qkv: Linear,
    conv: Conv,
    rates: Rates,
    dt_bias: Vec<f32>,
    a: Vec<f32>,
    norm: Norm,
    gate: Linear,
    gate_act: OutputGate,
    o: Linear,
}

enum Rates {
    Apart([Linear; 2]),
    Together(Linear),
}

/// The rows of a part, in memory that experts write to later. Of `n` tokens
struct DeltaRows<'a> {
    /// (n, channels)
    qkv: &'a mut [f32],
    /// What the convolution makes of them.
    mixed: &'a mut [f32],
    /// (n, n_v * v)
    gate: &'a mut [f32],
    /// As products give them. (2 * n * n_v)
    raw: [&'a mut [f32]; 2],
    /// (n, n_v)
    rate: &'a mut [f32],
    /// (n, n_v)
    decay: &'a mut [f32],
    /// (n, n_embd)
    out: &'a mut [f32],
}

impl DeltaNet {
    /// The recurrent part number `index`.
    pub fn load(loader: &mut Loader<'_>, net: &blueprint::DeltaNet, index: usize, is_last: bool) -> Result<Self> {
        let rates = match &net.rates {
            blueprint::Rates::Apart([rate, decay]) => Rates::Apart([loader.linear(rate)?, loader.linear(decay)?]),
            blueprint::Rates::Together(both) => Rates::Together(loader.linear(both)?),
        };
        Ok(Self {
            index,
            is_last,
            n_k: net.n_k,
            n_v: net.n_v,
            k: net.k,
            v: net.v,
            key_heads: net.key_heads,
            qkv: loader.linear(&net.qkv)?,
            conv: Conv::load(loader, &net.conv)?,
            rates,
            dt_bias: loader.vector(&net.dt_bias)?,
            a: loader.vector(&net.a)?,
            norm: loader.norm(&net.norm)?,
            gate: loader.linear(&net.gate)?,
            gate_act: net.gate_act,
            o: loader.linear(&net.o)?,
        })
    }

    /// Floats per token of its rows.
    pub fn cols(net: &blueprint::DeltaNet, n_embd: usize) -> usize {
        2 * net.conv.channels() + net.n_v * net.v + 4 * net.n_v + n_embd
    }

    pub fn mats(&self) -> impl Iterator<Item = &Mat> {
        [&self.qkv.w, &self.gate.w, &self.o.w].into_iter()
    }

    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        let rates = match &mut self.rates {
            Rates::Apart(linears) => linears.as_mut_slice(),
            Rates::Together(linear) => std::slice::from_mut(linear),
        };
        [&mut self.qkv, &mut self.gate, &mut self.o].into_iter().chain(rates).map(|linear| &mut linear.w)
    }

    fn rows<'m>(&self, n_embd: usize, n: usize, memory: &'m mut [f32]) -> DeltaRows<'m> {
        let (channels, inner) = (self.qkv.w.view().rows, self.n_v * self.v);
        let (qkv, rest) = memory.split_at_mut(n * channels);
        let (mixed, rest) = rest.split_at_mut(n * channels);
        let (gate, rest) = rest.split_at_mut(n * inner);
        let (raw, rest) = rest.split_at_mut(2 * n * self.n_v);
        let (rate, rest) = rest.split_at_mut(n * self.n_v);
        let (decay, rest) = rest.split_at_mut(n * self.n_v);
        let raw = match self.rates {
            Rates::Apart(_) => raw.split_at_mut(n * self.n_v).into(),
            Rates::Together(_) => [raw, &mut []],
        };
        DeltaRows { qkv, mixed, gate, raw, rate, decay, out: &mut rest[..n * n_embd] }
    }

    /// `x += o · heads(norm(x))`, where the rows have been normed already.
    pub fn add<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_embd, inner, channels) = (cx.len(), cx.n_embd, self.n_v * self.v, self.qkv.w.view().rows);
        let Cx { b, s, seqs, experts, target, .. } = cx;
        let Scratch { x, sum, branch, moe, attended, runs, norm, .. } = &mut **s;
        let mut rows = self.rows(n_embd, n, &mut moe.out);
        self.project(*b, norm, &mut rows);
        let DeltaRows { qkv, mixed, gate, rate, decay, out, .. } = rows;
        experts.meanwhile();
        let heads = attended.start_wide(n, inner);
        for run in &*runs {
            let (before, after) = seqs[run.seq].memory(self.index);
            let (inputs, memory) = before.split_at(self.conv.floats());
            let (last_inputs, state) = after.split_at_mut(self.conv.floats());
            let mixed = run.of_mut(mixed, channels);
            let from = Inputs { x: run.of(qkv, channels), cols: channels, at: 0 };
            self.conv.apply(*b, from, (inputs, last_inputs), mixed, silu);
            self.to_unit_length(*b, mixed);
            let recurrence = Recurrence {
                x: mixed,
                cols: channels,
                at: [0, self.n_k * self.k, 2 * self.n_k * self.k],
                decay: run.of(decay, self.n_v),
                rate: run.of(rate, self.n_v),
                heads: self.n_v,
                key_heads: self.n_k,
                in_turn: self.key_heads == KeyHeads::InTurn,
                k: self.k,
                v: self.v,
                corrects: true,
                from: memory,
            };
            b.recur(&recurrence, state, run.of_mut(heads, inner));
            experts.meanwhile();
        }
        self.norm.apply_onto(*b, heads);
        b.each_row(heads, inner, 8 * inner, |i, row| {
            let gated = row.iter_mut().zip(&gate[i * inner..]);
            match self.gate_act {
                OutputGate::Silu => gated.for_each(|(x, gate)| *x *= silu(*gate)),
                OutputGate::Sigmoid => gated.for_each(|(x, gate)| *x *= sigmoid(*gate)),
            }
        });
        b.prepare(attended);
        b.matmul(attended, &mut [Product { w: self.o.w.view(), y: out }]);
        self.o.finish(*b, out);
        b.add_weighted(target.rows([x, sum, branch], n, n_embd), n_embd, out, |_| 1.0);
        if self.is_last {
            cx.drop_unneeded();
        }
    }

    /// All products with the input, and what becomes of rates and decays.
    fn project(&self, b: &mut impl Backend, norm: &Rows, rows: &mut DeltaRows<'_>) {
        let DeltaRows { qkv, gate, raw: [first, second], rate, decay, .. } = rows;
        let [rate_y, decay_y] = match &self.rates {
            Rates::Apart([rate, decay]) => [product(rate, first), product(decay, second)],
            Rates::Together(both) => [product(both, first), None],
        };
        multiply(b, norm, [product(&self.qkv, qkv), product(&self.gate, gate), rate_y, decay_y]);
        self.qkv.finish(b, qkv);
        self.gate.finish(b, gate);
        match &self.rates {
            Rates::Apart([rate, decay]) => {
                rate.finish(b, first);
                decay.finish(b, second);
            }
            Rates::Together(both) => both.finish(b, first),
        }
        let (n_v, each, raw) = (self.n_v, self.n_v / self.n_k, [&**first, &**second]);
        // Rate (0) or decay (1) of a row's head.
        let of = |i: usize, which: usize, h: usize| match self.rates {
            Rates::Apart(_) => raw[which][i * n_v + h],
            Rates::Together(_) => raw[0][i * 2 * n_v + (2 * (h / each) + which) * each + h % each],
        };
        b.each_row(&mut rate[..], n_v, 16 * n_v, |i, row| {
            row.iter_mut().enumerate().for_each(|(h, rate)| *rate = sigmoid(of(i, 0, h)));
        });
        b.each_row(&mut decay[..], n_v, 32 * n_v, |i, row| {
            for (h, decay) in row.iter_mut().enumerate() {
                *decay = (self.a[h] * softplus(of(i, 1, h) + self.dt_bias[h])).exp();
            }
        });
    }

    /// Queries and keys of length 1; queries also by the root of their number of elements.
    fn to_unit_length(&self, b: &mut impl Backend, mixed: &mut [f32]) {
        let (channels, queries) = (self.qkv.w.view().rows, self.n_k * self.k);
        b.each_row(mixed, channels, 2 * channels, |_, row| {
            for (i, head) in row[..2 * queries].chunks_exact_mut(self.k).enumerate() {
                let square = head.iter().map(|x| x * x).sum::<f32>() + self.norm.eps;
                let scale = 1.0 / if i < self.n_k { square * self.k as f32 } else { square }.sqrt();
                head.iter_mut().for_each(|x| *x *= scale);
            }
        });
    }
}

fn product<'a>(linear: &'a Linear, y: &'a mut [f32]) -> Option<Product<'a>> {
    Some(Product { w: linear.w.view(), y })
}
