//! Causal grouped-query attention (arXiv 2305.13245).

use std::ops::Range;

use crate::{
    Result,
    backend::{Attention, Backend, CacheWrite, Product, Rotation},
    blueprint::{self, Heads, RopeKind},
    model::{
        KvView,
        cx::Cx,
        load::{Linear, Loader, Mat, Norm},
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
    v: Linear,
    o: Linear,
    /// Of queries and keys.
    qk_norm: Option<[Norm; 2]>,
    rotates: Option<Rotates>,
    window: Option<usize>,
    /// (n_head), or empty.
    sinks: Vec<f32>,
    scale: f32,
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
    /// (n, n_embd)
    pub out: &'a mut [f32],
}

impl<'a> AttentionRows<'a> {
    /// Those of `n` tokens.
    ///
    /// # Panics
    /// If `memory` is less than [`AttentionRows::cols`] for each token.
    fn of(h: Heads, n_embd: usize, n: usize, memory: &'a mut [f32]) -> Self {
        let (q, rest) = memory.split_at_mut(n * h.n_head * h.k);
        let (k, rest) = rest.split_at_mut(n * h.n_head_kv * h.k);
        let (v, rest) = rest.split_at_mut(n * h.n_head_kv * h.v);
        AttentionRows { q, k, v, out: &mut rest[..n * n_embd] }
    }

    /// Floats per token.
    pub fn cols(h: Heads, n_embd: usize) -> usize {
        (h.n_head + h.n_head_kv) * h.k + h.n_head_kv * h.v + n_embd
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
            v: loader.linear(&gqa.v)?,
            o: loader.linear(&gqa.o)?,
            qk_norm,
            rotates,
            window: gqa.window,
            sinks: loader.optional(gqa.sinks.as_ref())?,
            scale: gqa.scale,
        })
    }

    pub fn mats(&self) -> [&Mat; 4] {
        [&self.q.w, &self.k.w, &self.v.w, &self.o.w]
    }

    pub fn mats_mut(&mut self) -> [&mut Mat; 4] {
        [&mut self.q.w, &mut self.k.w, &mut self.v.w, &mut self.o.w]
    }

    /// `x += o · attend(norm(x))`, where the rows have been normed already.
    pub fn add<B: Backend>(&self, norm: &Norm, cx: &mut Cx<'_, B>) {
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
            cx.norm(norm);
            let n = cx.len();
            let q = AttentionRows::of(self.heads, cx.n_embd, n, &mut cx.s.moe.out).q;
            cx.b.matmul(&cx.s.norm, &mut [Product { w: self.q.w.view(), y: q }]);
        }
        self.attend(cx);
    }

    /// Keys and values, which go into the cache; and, with them, queries.
    fn project<B: Backend>(&self, queries: bool, cx: &mut Cx<'_, B>) {
        let (h, n, pos, n_embd, rows) = (self.heads, cx.len(), cx.pos(), cx.n_embd, cx.rows());
        let Cx { b, s, kv, experts, .. } = cx;
        let AttentionRows { q, k, v, .. } = AttentionRows::of(h, n_embd, n, &mut s.moe.out);
        let (wq, wk, wv) = (self.q.w.view(), self.k.w.view(), self.v.w.view());
        if queries {
            b.matmul(&s.norm, &mut [Product { w: wq, y: q }, Product { w: wk, y: k }, Product { w: wv, y: v }]);
        } else {
            b.matmul(&s.norm, &mut [Product { w: wk, y: k }, Product { w: wv, y: v }]);
        }
        experts.meanwhile();
        self.k.finish(*b, k);
        self.v.finish(*b, v);
        if let Some([_, norm]) = &self.qk_norm {
            b.rms_norm_onto(k, &norm.weight, norm.eps);
        }
        self.rotate(*b, k, &s.turns, rows);
        let (ty, heads) = (kv.ty(), h.n_head_kv);
        let (keys, values) = kv.layer_mut(self.index);
        b.write_cache(CacheWrite { x: k, cache: keys, keys: true, ty, heads, dim: h.k, first: pos });
        b.write_cache(CacheWrite { x: v, cache: values, keys: false, ty, heads, dim: h.v, first: pos });
    }

    /// Attention of the queries over the cache.
    fn attend<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (h, n, pos, n_embd, rows) = (self.heads, cx.len(), cx.pos(), cx.n_embd, cx.rows());
        let Cx { b, s, kv, experts, .. } = cx;
        let AttentionRows { q, out, .. } = AttentionRows::of(h, n_embd, n, &mut s.moe.out);
        self.q.finish(*b, q);
        if let Some([norm, _]) = &self.qk_norm {
            b.rms_norm_onto(q, &norm.weight, norm.eps);
        }
        self.rotate(*b, q, &s.turns, rows.clone());
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
        };
        b.attend(&attention, s.attended.start(n));
        experts.meanwhile();
        b.prepare(&mut s.attended);
        b.matmul(&s.attended, &mut [Product { w: self.o.w.view(), y: out }]);
        self.o.finish(*b, out);
        b.add_weighted(&mut s.x[rows.start * n_embd..rows.end * n_embd], n_embd, out, |_| 1.0);
    }

    /// Rotates the heads of some rows of the batch, whose angles are among those in `turns`.
    fn rotate(&self, b: &mut impl Backend, x: &mut [f32], turns: &[Vec<f32>], rows: Range<usize>) {
        if let Some(Rotates { kind, pairs, angles }) = self.rotates {
            let turns = &turns[angles][rows.start * 2 * pairs..rows.end * 2 * pairs];
            b.rope(x, &Rotation { kind, head: self.heads.k, pairs, turns });
        }
    }
}
