//! Causal grouped-query attention (arXiv 2305.13245).

use std::ops::Range;

use crate::{
    Result,
    backend::{Attention, Backend, CacheWrite, Product, Rotation, Rows},
    blueprint::{self, GateAct, Heads, RopeKind, Temperature},
    model::{
        KvView, Scratch,
        cx::Cx,
        ffn::sigmoid,
        load::{Linear, Loader, Mat, Norm},
    },
    quant::{GgmlType, QMat},
};

/// See the module.
pub struct Gqa {
    /// Number among the attentions: whose keys and values in the cache are its own.
    index: usize,
    /// Whether no part behind it fills any state.
    is_last: bool,
    heads: Heads,
    q: Linear,
    k: Linear,
    /// `None`: what `k` gives.
    v: Option<Linear>,
    o: Linear,
    clamp: Option<f32>,
    /// Of queries and keys.
    qk_norm: Option<[Norm; 2]>,
    /// Whether they rotate before they are normed.
    rotates_first: bool,
    /// Of value heads.
    v_norm: Option<Norm>,
    rotates: Option<Rotates>,
    temperature: Option<Temperature>,
    window: Option<usize>,
    /// (n_head), or empty.
    sinks: Vec<f32>,
    scale: f32,
    soft_cap: Option<f32>,
    gate: Option<Gate>,
}

/// What each head's result, or each of its elements, is multiplied by.
struct Gate {
    w: Linear,
    act: GateAct,
}

/// How queries and keys rotate.
#[derive(Clone, Copy)]
struct Rotates {
    kind: RopeKind,
    /// Pairs of a head.
    pairs: usize,
    /// Whose angles they take, among those of the model.
    angles: usize,
}

/// The rows of an attention, in memory that experts write to later.
pub struct AttentionRows<'a> {
    /// (n, n_head, k)
    pub q: &'a mut [f32],
    /// (n, n_head_kv, k)
    pub k: &'a mut [f32],
    /// (n, n_head_kv, v)
    pub v: &'a mut [f32],
    /// What the gate's product gives. (n, n_head or n_head * v)
    pub gate: &'a mut [f32],
    /// (n, n_embd)
    pub out: &'a mut [f32],
}

impl<'a> AttentionRows<'a> {
    /// Those of `n` tokens. `gate`: outputs of the gate.
    ///
    /// # Panics
    /// If `memory` is less than [`AttentionRows::cols`] for each token.
    fn of(h: Heads, gate: usize, n_embd: usize, n: usize, memory: &'a mut [f32]) -> Self {
        let (q, rest) = memory.split_at_mut(n * h.n_head * h.k);
        let (k, rest) = rest.split_at_mut(n * h.n_head_kv * h.k);
        let (v, rest) = rest.split_at_mut(n * h.n_head_kv * h.v);
        let (gate, rest) = rest.split_at_mut(n * gate);
        AttentionRows { q, k, v, gate, out: &mut rest[..n * n_embd] }
    }

    /// Floats per token.
    pub fn cols(gqa: &blueprint::Gqa, n_embd: usize) -> usize {
        let h = gqa.heads;
        (h.n_head + h.n_head_kv) * h.k + h.n_head_kv * h.v + gqa.gate.map_or(0, |gate| gate.w.w.rows) + n_embd
    }
}

impl Gqa {
    /// The attention number `index`; `ropes` are the model's rotations.
    pub fn load(
        loader: &mut Loader<'_>,
        gqa: &blueprint::Gqa,
        index: usize,
        is_last: bool,
        ropes: &[blueprint::Rope],
    ) -> Result<Self> {
        let rotates = gqa.rope.map(|rope| {
            let angles = ropes.iter().position(|other| *other == rope).expect("all ropes are listed");
            Rotates { kind: rope.kind, pairs: rope.n_rot / 2, angles }
        });
        let gate = match &gqa.gate {
            Some(gate) => Some(Gate { w: loader.linear(&gate.w)?, act: gate.act }),
            None => None,
        };
        let qk_norm = match &gqa.qk_norm {
            Some([q, k]) => Some([loader.norm(q)?, loader.norm(k)?]),
            None => None,
        };
        Ok(Self {
            index,
            is_last,
            heads: gqa.heads,
            q: loader.linear(&gqa.q)?,
            k: loader.linear(&gqa.k)?,
            v: gqa.v.as_ref().map(|v| loader.linear(v)).transpose()?,
            o: loader.linear(&gqa.o)?,
            clamp: gqa.clamp,
            qk_norm,
            rotates_first: gqa.rotates_first,
            v_norm: loader.norm_if_there(gqa.v_norm.as_ref())?,
            rotates,
            temperature: gqa.temperature,
            window: gqa.window,
            sinks: loader.optional(gqa.sinks.as_ref())?,
            scale: gqa.scale,
            soft_cap: gqa.soft_cap,
            gate,
        })
    }

    pub fn mats(&self) -> impl Iterator<Item = &Mat> {
        let linears = [&self.q, &self.k, &self.o].into_iter().chain(&self.v);
        linears.chain(self.gate.as_ref().map(|gate| &gate.w)).map(|linear| &linear.w)
    }

    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        let linears = [&mut self.q, &mut self.k, &mut self.o].into_iter().chain(&mut self.v);
        linears.chain(self.gate.as_mut().map(|gate| &mut gate.w)).map(|linear| &mut linear.w)
    }

    /// The rows of `n` tokens.
    fn rows<'m>(&self, n_embd: usize, n: usize, memory: &'m mut [f32]) -> AttentionRows<'m> {
        AttentionRows::of(self.heads, self.gate.as_ref().map_or(0, |gate| gate.w.w.view().rows), n_embd, n, memory)
    }

    /// `x += o · attend(norm(x))`, where the rows have been normed already.
    pub fn add<B: Backend>(&self, norm: Option<&Norm>, cx: &mut Cx<'_, B>) {
        // Of rows that nothing needs afterwards, keys and values alone are of use.
        let drops = self.is_last && cx.has_unneeded();
        self.project(!drops, cx);
        if self.is_last {
            cx.drop_unneeded();
        }
        if drops {
            if cx.is_done() {
                return;
            }
            cx.norm(norm.expect("attention is a block's first branch"));
            let n = cx.len();
            let AttentionRows { q, gate, .. } = self.rows(cx.n_embd, n, &mut cx.s.moe.out);
            multiply(
                cx.b,
                &cx.s.norm,
                [Some(Product { w: self.q.w.view(), y: q }), self.gate_product(gate), None, None],
            );
        }
        self.attend(cx);
    }

    fn gate_product<'m>(&'m self, y: &'m mut [f32]) -> Option<Product<'m>> {
        self.gate.as_ref().map(|gate| Product { w: gate.w.w.view(), y })
    }

    /// Keys and values, which go into the cache; and, with them, queries.
    fn project<B: Backend>(&self, queries: bool, cx: &mut Cx<'_, B>) {
        let (h, n, pos, n_embd, rows) = (self.heads, cx.len(), cx.pos(), cx.n_embd, cx.rows());
        let Cx { b, s, kv, experts, .. } = cx;
        let AttentionRows { q, k, v, gate, .. } = self.rows(n_embd, n, &mut s.moe.out);
        let values = self.v.as_ref().map(|linear| Product { w: linear.w.view(), y: &mut *v });
        let keys = Some(Product { w: self.k.w.view(), y: &mut *k });
        let [q, gate] =
            if queries { [Some(Product { w: self.q.w.view(), y: q }), self.gate_product(gate)] } else { [None, None] };
        multiply(*b, &s.norm, [q, keys, values, gate]);
        experts.meanwhile();
        self.finish(*b, &self.k, k);
        match &self.v {
            Some(linear) => self.finish(*b, linear, v),
            None => v.copy_from_slice(k),
        }
        if let Some(norm) = &self.v_norm {
            norm.apply_onto(*b, v);
        }
        self.place(*b, k, 1, &s.turns, rows);
        let (ty, heads) = (kv.ty(), h.n_head_kv);
        let (keys, values) = kv.layer_mut(self.index);
        b.write_cache(CacheWrite { x: k, cache: keys, keys: true, ty, heads, dim: h.k, first: pos });
        b.write_cache(CacheWrite { x: v, cache: values, keys: false, ty, heads, dim: h.v, first: pos });
    }

    /// What becomes of the products that queries, keys or values are.
    fn finish(&self, b: &mut impl Backend, linear: &Linear, y: &mut [f32]) {
        linear.finish(b, y);
        if let Some(clamp) = self.clamp {
            let cols = linear.w.view().rows;
            b.each_row(y, cols, cols, |_, row| row.iter_mut().for_each(|x| *x = x.clamp(-clamp, clamp)));
        }
    }

    /// Attention of the queries over the cache.
    fn attend<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (h, n, pos, n_embd, rows) = (self.heads, cx.len(), cx.pos(), cx.n_embd, cx.rows());
        let Cx { b, s, kv, experts, target, .. } = cx;
        let Scratch { x, sum, branch, moe, attended, turns, .. } = &mut **s;
        let AttentionRows { q, gate, out, .. } = self.rows(n_embd, n, &mut moe.out);
        self.finish(*b, &self.q, q);
        self.place(*b, q, 0, turns, rows.clone());
        if let Some(temperature) = self.temperature {
            let cols = h.n_head * h.k;
            b.each_row(q, cols, cols, |i, row| {
                let factor = temperature.at(pos + i);
                row.iter_mut().for_each(|x| *x *= factor);
            });
        }
        let KvView { ty, n_ctx, keys, values } = kv.view(self.index);
        let attention = Attention {
            q,
            keys,
            values,
            ty,
            n_ctx,
            n_head: h.n_head,
            n_head_kv: h.n_head_kv,
            head_k: h.k,
            head_v: h.v,
            first: pos,
            window: self.window,
            sinks: &self.sinks,
            scale: self.scale,
            soft_cap: self.soft_cap,
        };
        let heads = attended.start_wide(n, h.n_head * h.v);
        b.attend(&attention, heads);
        experts.meanwhile();
        if let Some(linear) = &self.gate {
            linear.open(*b, gate, heads, h.n_head * h.v);
        }
        b.prepare(attended);
        b.matmul(attended, &mut [Product { w: self.o.w.view(), y: out }]);
        self.o.finish(*b, out);
        b.add_weighted(target.rows([x, sum, branch], rows, n_embd), n_embd, out, |_| 1.0);
    }

    /// Norms and rotates queries (`which` 0) or keys (1).
    fn place(&self, b: &mut impl Backend, x: &mut [f32], which: usize, turns: &[Vec<f32>], rows: Range<usize>) {
        if self.rotates_first {
            self.rotate(b, x, turns, rows.clone());
        }
        if let Some(norms) = &self.qk_norm {
            norms[which].apply_onto(b, x);
        }
        if !self.rotates_first {
            self.rotate(b, x, turns, rows);
        }
    }

    /// Rotates the heads of some rows of the batch, whose angles are among those in `turns`.
    fn rotate(&self, b: &mut impl Backend, x: &mut [f32], turns: &[Vec<f32>], rows: Range<usize>) {
        if let Some(Rotates { kind, pairs, angles }) = self.rotates {
            let turns = &turns[angles][rows.start * 2 * pairs..rows.end * 2 * pairs];
            b.rope(x, &Rotation { kind, head: self.heads.k, pairs, turns });
        }
    }
}

impl Gate {
    /// Multiplies rows of `cols` by what the products in `y` open.
    fn open(&self, b: &mut impl Backend, y: &mut [f32], rows: &mut [f32], cols: usize) {
        self.w.finish(b, y);
        let each = self.w.w.view().rows;
        let y = &*y;
        b.each_row(rows, cols, 8 * cols, |i, row| {
            let y = &y[i * each..(i + 1) * each];
            for (head, y) in row.chunks_exact_mut(cols / each).zip(y) {
                let open = match self.act {
                    GateAct::Sigmoid => sigmoid(*y),
                    GateAct::Softplus => softplus(*y),
                };
                head.iter_mut().for_each(|x| *x *= open);
            }
        });
    }
}

/// `ln(1 + exp(x))`, which is x where that overflows.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// The products that there are, of one input.
fn multiply<B: Backend>(b: &mut B, rows: &Rows, products: [Option<Product<'_>>; 4]) {
    let none = || Product { w: QMat::new(GgmlType::F32, 0, 0, &[]), y: &mut [] };
    let (mut there, mut n) = ([none(), none(), none(), none()], 0);
    for product in products.into_iter().flatten() {
        there[n] = product;
        n += 1;
    }
    b.matmul(rows, &mut there[..n]);
}
