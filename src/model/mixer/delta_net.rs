//! A gated delta rule (arXiv 2412.06464): each head keeps a matrix that maps keys to values, and a token corrects what it maps
//! its own key to.

use super::{Conv, Inputs, LowRank, add_product, multiply, open, silu, softplus};
use crate::{
    Result,
    backend::{Backend, Product, Recurrence, Rows},
    blueprint::{self, Decay, GateAct, KeyHeads},
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
    /// Of queries, keys and values together, or of each.
    qkv: Vec<Linear>,
    conv: Conv,
    rates: Rates,
    /// (decays of a token)
    dt_bias: Vec<f32>,
    /// (n_v)
    a: Vec<f32>,
    decay: Decay,
    eps: f32,
    norm: Norm,
    gate: LowRank,
    gate_act: GateAct,
    o: Linear,
}

enum Rates {
    Apart { rate: Linear, decay: LowRank },
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
    /// Rates and decays as one product gives them, or empty. (n, 2 * n_v)
    raw: &'a mut [f32],
    /// (n, n_v)
    rate: &'a mut [f32],
    /// (n, n_v) or (n, n_v * k)
    decay: &'a mut [f32],
    /// (n, n_embd)
    out: &'a mut [f32],
}

impl DeltaNet {
    /// The recurrent part number `index`.
    pub fn load(loader: &mut Loader<'_>, net: &blueprint::DeltaNet, index: usize, is_last: bool) -> Result<Self> {
        let rates = match &net.rates {
            blueprint::Rates::Apart { rate, decay } => {
                Rates::Apart { rate: loader.linear(rate)?, decay: LowRank::load(loader, decay)? }
            }
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
            qkv: net.qkv.iter().map(|linear| loader.linear(linear)).collect::<Result<_>>()?,
            conv: Conv::load(loader, &net.convs)?,
            rates,
            dt_bias: loader.vector(&net.dt_bias)?,
            a: loader.vector(&net.a)?,
            decay: net.decay,
            eps: net.eps,
            norm: loader.norm(&net.norm)?,
            gate: LowRank::load(loader, &net.gate)?,
            gate_act: net.gate_act,
            o: loader.linear(&net.o)?,
        })
    }

    /// Floats per token of its rows.
    pub fn cols(net: &blueprint::DeltaNet, n_embd: usize) -> usize {
        let raw = if matches!(net.rates, blueprint::Rates::Together(_)) { 2 * net.n_v } else { 0 };
        2 * net.channels() + net.n_v * net.v + raw + net.n_v + net.decays() + n_embd
    }

    pub fn mats(&self) -> impl Iterator<Item = &Mat> {
        self.qkv.iter().chain([&self.o]).map(|linear| &linear.w).chain(self.gate.mats())
    }

    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        let (rates, decays) = match &mut self.rates {
            Rates::Apart { rate, decay } => (rate, Some(decay)),
            Rates::Together(linear) => (linear, None),
        };
        let low = decays.into_iter().chain([&mut self.gate]).flat_map(LowRank::mats_mut);
        self.qkv.iter_mut().chain([&mut self.o, rates]).map(|linear| &mut linear.w).chain(low)
    }

    /// Queries, keys and values of a token: elements of all.
    fn channels(&self) -> usize {
        self.qkv.iter().map(|linear| linear.w.view().rows).sum()
    }

    fn rows<'m>(&self, n_embd: usize, n: usize, memory: &'m mut [f32]) -> DeltaRows<'m> {
        let (channels, inner) = (self.channels(), self.n_v * self.v);
        let raw = if matches!(self.rates, Rates::Together(_)) { 2 * self.n_v } else { 0 };
        let (qkv, rest) = memory.split_at_mut(n * channels);
        let (mixed, rest) = rest.split_at_mut(n * channels);
        let (gate, rest) = rest.split_at_mut(n * inner);
        let (raw, rest) = rest.split_at_mut(n * raw);
        let (rate, rest) = rest.split_at_mut(n * self.n_v);
        let (decay, rest) = rest.split_at_mut(n * self.dt_bias.len());
        DeltaRows { qkv, mixed, gate, raw, rate, decay, out: &mut rest[..n * n_embd] }
    }

    /// `x += o · heads(norm(x))`, where the rows have been normed already.
    pub fn add<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_embd, inner, channels) = (cx.len(), cx.n_embd, self.n_v * self.v, self.channels());
        let Cx { b, s, seqs, experts, target, .. } = cx;
        let Scratch { x, sum, branch, moe, attended, low, runs, norm, .. } = &mut **s;
        let mut rows = self.rows(n_embd, n, &mut moe.out);
        self.project(*b, norm, low, &mut rows);
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
                decay: run.of(decay, self.dt_bias.len()),
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
            row.iter_mut().zip(&gate[i * inner..]).for_each(|(x, gate)| *x *= open(self.gate_act, *gate));
        });
        add_product(*b, &self.o, attended, out, target.rows([x, sum, branch], n, n_embd));
        if self.is_last {
            cx.drop_unneeded();
        }
    }

    /// All products with the input, and what becomes of rates and decays.
    fn project(&self, b: &mut impl Backend, norm: &Rows, low: &mut Rows, rows: &mut DeltaRows<'_>) {
        let DeltaRows { qkv, mixed, gate, raw, rate, decay, .. } = rows;
        let [rate_y, decay_y] = match &self.rates {
            Rates::Apart { rate: linear, decay: product } => [Some(of(linear, rate)), product.only(decay)],
            Rates::Together(both) => [Some(of(both, raw)), None],
        };
        let mut products = [None, None, None, self.gate.only(gate), rate_y, decay_y];
        let mut rest = if self.qkv.len() == 1 { &mut qkv[..] } else { &mut mixed[..] };
        for (linear, product) in self.qkv.iter().zip(&mut products) {
            let (y, after) = rest.split_at_mut(norm.len() * linear.w.view().rows);
            (*product, rest) = (Some(of(linear, y)), after);
        }
        multiply(b, norm, products);
        self.finish_qkv(b, qkv, mixed);
        self.gate.finish(b, norm, low, gate);
        match &self.rates {
            Rates::Apart { rate: linear, decay: product } => {
                linear.finish(b, rate);
                product.finish(b, norm, low, decay);
            }
            Rates::Together(both) => {
                both.finish(b, raw);
                self.take_apart(b, raw, [rate, decay]);
            }
        }
        let (n_v, decays) = (self.n_v, self.dt_bias.len());
        b.each_row(rate, n_v, 16 * n_v, |_, row| row.iter_mut().for_each(|rate| *rate = sigmoid(*rate)));
        b.each_row(decay, decays, 32 * decays, |_, row| {
            for (i, (decay, bias)) in row.iter_mut().zip(&self.dt_bias).enumerate() {
                let (a, x) = (self.a[i * n_v / decays], *decay + bias);
                *decay = match self.decay {
                    Decay::Softplus => a * softplus(x),
                    Decay::Bounded { bound, sign } => bound * sigmoid(sign * a * x),
                }
                .exp();
            }
        });
    }

    /// Finishes the products for queries, keys and values, which are in `apart` one after another unless they are one; then
    /// a token's stand beside each other in `qkv`.
    fn finish_qkv(&self, b: &mut impl Backend, qkv: &mut [f32], apart: &mut [f32]) {
        if let [all] = &self.qkv[..] {
            return all.finish(b, qkv);
        }
        let (channels, mut start) = (self.channels(), 0);
        let n = qkv.len() / channels;
        for linear in &self.qkv {
            let end = start + n * linear.w.view().rows;
            linear.finish(b, &mut apart[start..end]);
            start = end;
        }
        let apart = &*apart;
        b.each_row(qkv, channels, channels, |i, row| {
            let (mut at, mut start) = (0, 0);
            for cols in self.qkv.iter().map(|linear| linear.w.view().rows) {
                row[at..at + cols].copy_from_slice(&apart[start + i * cols..][..cols]);
                (at, start) = (at + cols, start + n * cols);
            }
        });
    }

    /// Rates and decays, where one product gives both of each key head's value heads.
    fn take_apart(&self, b: &mut impl Backend, raw: &[f32], to: [&mut [f32]; 2]) {
        let (n_v, each) = (self.n_v, self.n_v / self.n_k);
        for (which, to) in to.into_iter().enumerate() {
            b.each_row(to, n_v, n_v, |i, row| {
                for (h, y) in row.iter_mut().enumerate() {
                    *y = raw[i * 2 * n_v + (2 * (h / each) + which) * each + h % each];
                }
            });
        }
    }

    /// Queries and keys of length 1; queries also by the root of their number of elements.
    fn to_unit_length(&self, b: &mut impl Backend, mixed: &mut [f32]) {
        let (channels, queries) = (self.channels(), self.n_k * self.k);
        b.each_row(mixed, channels, 2 * channels, |_, row| {
            for (i, head) in row[..2 * queries].chunks_exact_mut(self.k).enumerate() {
                let square = head.iter().map(|x| x * x).sum::<f32>() + self.eps;
                let scale = 1.0 / if i < self.n_k { square * self.k as f32 } else { square }.sqrt();
                head.iter_mut().for_each(|x| *x *= scale);
            }
        });
    }
}

fn of<'a>(linear: &'a Linear, y: &'a mut [f32]) -> Product<'a> {
    Product { w: linear.w.view(), y }
}
