//! Causal grouped-query attention (arXiv 2305.13245).

use super::{multiply, softplus};
use crate::{
    Result,
    backend::{Attention, Backend, CacheWrite, Product, Rotation},
    blueprint::{self, GateAct, Heads, RopeKind, Temperature},
    model::{
        Scratch,
        cx::Cx,
        ffn::sigmoid,
        load::{Linear, Loader, Mat, Norm},
        state::KvView,
    },
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
        let (h, n, n_embd) = (self.heads, cx.len(), cx.n_embd);
        let Cx { b, s, seqs, experts, .. } = cx;
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
        self.place(*b, k, 1, &s.turns, n);
        for run in &s.runs {
            let (ty, heads, first, seq) = (seqs[run.seq].ty(), h.n_head_kv, run.pos, &mut seqs[run.seq]);
            let (keys, values) = seq.rows_mut(self.index);
            let x = run.of(k, heads * h.k);
            b.write_cache(CacheWrite { x, cache: keys, keys: true, ty, heads, dim: h.k, first });
            let x = run.of(v, heads * h.v);
            b.write_cache(CacheWrite { x, cache: values, keys: false, ty, heads, dim: h.v, first });
        }
    }

    /// What becomes of the products that queries, keys or values are.
    fn finish(&self, b: &mut impl Backend, linear: &Linear, y: &mut [f32]) {
        linear.finish(b, y);
        if let Some(clamp) = self.clamp {
            let cols = linear.w.view().rows;
            b.each_row(y, cols, cols, |_, row| row.iter_mut().for_each(|x| *x = x.clamp(-clamp, clamp)));
        }
    }

    /// Attention of each sequence's queries over its own rows.
    fn attend<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (h, n, n_embd) = (self.heads, cx.len(), cx.n_embd);
        let Cx { b, s, seqs, experts, target, .. } = cx;
        let Scratch { x, sum, branch, moe, attended, turns, runs, .. } = &mut **s;
        let AttentionRows { q, gate, out, .. } = self.rows(n_embd, n, &mut moe.out);
        self.finish(*b, &self.q, q);
        self.place(*b, q, 0, turns, n);
        if let Some(temperature) = self.temperature {
            let cols = h.n_head * h.k;
            for run in &*runs {
                b.each_row(run.of_mut(q, cols), cols, cols, |i, row| {
                    let factor = temperature.at(run.pos + i);
                    row.iter_mut().for_each(|x| *x *= factor);
                });
            }
        }
        let heads = attended.start_wide(n, h.n_head * h.v);
        for run in &*runs {
            let KvView { ty, n_ctx, keys, values } = seqs[run.seq].rows(self.index);
            let attention = Attention {
                q: run.of(q, h.n_head * h.k),
                keys,
                values,
                ty,
                n_ctx,
                n_head: h.n_head,
                n_head_kv: h.n_head_kv,
                head_k: h.k,
                head_v: h.v,
                first: run.pos,
                window: self.window,
                sinks: &self.sinks,
                scale: self.scale,
                soft_cap: self.soft_cap,
            };
            b.attend(&attention, run.of_mut(heads, h.n_head * h.v));
            experts.meanwhile();
        }
        if let Some(linear) = &self.gate {
            linear.open(*b, gate, heads, h.n_head * h.v);
        }
        b.prepare(attended);
        b.matmul(attended, &mut [Product { w: self.o.w.view(), y: out }]);
        self.o.finish(*b, out);
        b.add_weighted(target.rows([x, sum, branch], n, n_embd), n_embd, out, |_| 1.0);
    }

    /// Norms and rotates queries (`which` 0) or keys (1).
    fn place(&self, b: &mut impl Backend, x: &mut [f32], which: usize, turns: &[Vec<f32>], n: usize) {
        if self.rotates_first {
            self.rotate(b, x, turns, n);
        }
        if let Some(norms) = &self.qk_norm {
            norms[which].apply_onto(b, x);
        }
        if !self.rotates_first {
            self.rotate(b, x, turns, n);
        }
    }

    /// Rotates the heads of all `n` rows, whose angles are among those in `turns`.
    fn rotate(&self, b: &mut impl Backend, x: &mut [f32], turns: &[Vec<f32>], n: usize) {
        if let Some(Rotates { kind, pairs, angles }) = self.rotates {
            let turns = &turns[angles][..n * 2 * pairs];
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
