//! Causal grouped-query attention (arXiv 2305.13245).

use super::{
    add_product,
    compressor::NewRows,
    indexer::{Indexer, Keys, Scores},
    latent::Latent,
    multiply, open,
};
use crate::{
    Result,
    backend::{Attention, Backend, CacheWrite, Product, Rotation, Rows},
    blueprint::{self, GateAct, Heads, RopeKind, Temperature},
    model::{
        Scratch,
        cx::Cx,
        load::{Linear, Loader, Mat, Norm},
        state::{KvView, Sequence},
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
    latent: Option<Box<Latent>>,
    /// Floats per token that it works in.
    latent_cols: usize,
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
    chunked: bool,
    /// (n_head), or empty.
    sinks: Vec<f32>,
    scale: f32,
    soft_cap: Option<f32>,
    gate: Option<Gate>,
    indexer: Option<Indexer>,
    /// Floats per token that this works in.
    index_cols: usize,
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
    /// Of a latent attention: see [`Latent::cols`].
    pub latent: &'a mut [f32],
    /// Of an indexer: see [`Indexer::cols`].
    pub index: &'a mut [f32],
    /// (n, n_embd)
    pub out: &'a mut [f32],
}

impl<'a> AttentionRows<'a> {
    /// Those of `n` tokens. `gate`: outputs of the gate; `latent`, `index`: floats per token.
    ///
    /// # Panics
    /// If `memory` is less than [`AttentionRows::cols`] for each token.
    fn of(h: Heads, [gate, latent, index]: [usize; 3], n_embd: usize, n: usize, memory: &'a mut [f32]) -> Self {
        let (q, rest) = memory.split_at_mut(n * h.n_head * h.k);
        let (k, rest) = rest.split_at_mut(n * h.n_head_kv * h.k);
        let (v, rest) = rest.split_at_mut(n * h.n_head_kv * h.v);
        let (gate, rest) = rest.split_at_mut(n * gate);
        let (latent, rest) = rest.split_at_mut(n * latent);
        let (index, rest) = rest.split_at_mut(n * index);
        AttentionRows { q, k, v, gate, latent, index, out: &mut rest[..n * n_embd] }
    }

    /// Floats per token.
    pub fn cols(gqa: &blueprint::Gqa, n_embd: usize) -> usize {
        let h = gqa.heads;
        let latent = gqa.latent.map_or(0, |latent| Latent::cols(&latent, h.n_head));
        let (gate, index) =
            (gqa.gate.map_or(0, |gate| gate.w.w.rows), gqa.indexer.map_or(0, |indexer| Indexer::cols(&indexer)));
        (h.n_head + h.n_head_kv) * h.k + h.n_head_kv * h.v + gate + latent + index + n_embd
    }
}

impl Gqa {
    /// The attention number `index`, whose memory, if it has one, is number `pending`; `ropes` are the model's rotations.
    pub fn load(
        loader: &mut Loader<'_>,
        gqa: &blueprint::Gqa,
        [index, pending]: [usize; 2],
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
            latent: gqa
                .latent
                .map(|latent| Latent::load(loader, &latent, gqa.heads.n_head).map(Box::new))
                .transpose()?,
            latent_cols: gqa.latent.map_or(0, |latent| Latent::cols(&latent, gqa.heads.n_head)),
            clamp: gqa.clamp,
            qk_norm,
            rotates_first: gqa.rotates_first,
            v_norm: loader.norm_if_there(gqa.v_norm.as_ref())?,
            rotates,
            temperature: gqa.temperature,
            window: gqa.window,
            chunked: gqa.chunked,
            sinks: loader.optional(gqa.sinks.as_ref())?,
            scale: gqa.scale,
            soft_cap: gqa.soft_cap,
            gate,
            indexer: match &gqa.indexer {
                Some(indexer) => Some(Indexer::load(loader, indexer, gqa.rope.as_ref(), pending)?),
                None => None,
            },
            index_cols: gqa.indexer.map_or(0, |indexer| Indexer::cols(&indexer)),
        })
    }

    pub fn mats(&self) -> impl Iterator<Item = &Mat> {
        let linears = [&self.q, &self.k, &self.o].into_iter().chain(&self.v);
        linears.chain(self.gate.as_ref().map(|gate| &gate.w)).map(|linear| &linear.w)
    }

    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        let linears = [&mut self.q, &mut self.k, &mut self.o].into_iter().chain(&mut self.v);
        let own = linears.chain(self.gate.as_mut().map(|gate| &mut gate.w)).map(|linear| &mut linear.w);
        let own = own.chain(self.latent.iter_mut().flat_map(|latent| latent.mats_mut()));
        own.chain(self.indexer.iter_mut().flat_map(Indexer::mats_mut))
    }

    /// The rows of `n` tokens.
    fn rows<'m>(&self, n_embd: usize, n: usize, memory: &'m mut [f32]) -> AttentionRows<'m> {
        let gate = self.gate.as_ref().map_or(0, |gate| gate.w.w.view().rows);
        AttentionRows::of(self.heads, [gate, self.latent_cols, self.index_cols], n_embd, n, memory)
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
            cx.enter(norm);
            self.queries(cx);
        }
        self.attend(cx);
    }

    /// Products for queries and gate.
    fn queries<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, .. } = cx;
        let Scratch { norm, low, moe, .. } = &mut **s;
        let AttentionRows { q, gate, latent: memory, .. } = self.rows(n_embd, n, &mut moe.out);
        match &self.latent {
            None => {
                multiply(*b, norm, [Some(Product { w: self.q.w.view(), y: q }), self.gate_product(gate), None, None])
            }
            Some(latent) => {
                multiply(*b, norm, [self.gate_product(gate), None, None, None]);
                latent.queries(*b, norm, &self.q, low, latent.split(n, memory).0);
            }
        }
        self.index_queries(cx);
    }

    /// Queries and weights of the indexer. A latent attention has left its short rows.
    fn index_queries<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let Some(own) = self.scores(cx) else { return };
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, .. } = cx;
        let Scratch { norm, low, moe, turns, .. } = &mut **s;
        let AttentionRows { index, .. } = self.rows(n_embd, n, &mut moe.out);
        let (rows, of) = (own.rows(n, index), if self.latent.is_some() { low } else { &*norm });
        own.queries(*b, [norm, of], [&mut *rows.q, rows.weights]);
        self.rotate(*b, rows.q, [own.k, 0], turns, n);
    }

    /// What scores positions, in contexts that are long enough for it.
    fn scores<B: Backend>(&self, cx: &Cx<'_, B>) -> Option<&Scores> {
        self.indexer.as_ref().and_then(|indexer| indexer.own.as_ref()).filter(|_| !cx.s.index.chosen.is_empty())
    }

    fn gate_product<'m>(&'m self, y: &'m mut [f32]) -> Option<Product<'m>> {
        self.gate.as_ref().map(|gate| Product { w: gate.w.w.view(), y })
    }

    /// Keys and values, which go into the cache; and, with them, queries.
    fn project<B: Backend>(&self, queries: bool, cx: &mut Cx<'_, B>) {
        if let Some(latent) = &self.latent {
            self.project_latent(latent, cx);
            if queries {
                self.queries(cx);
            }
        } else {
            self.project_heads(queries, cx);
            if queries {
                self.index_queries(cx);
            }
        }
        self.keep_index(cx);
        self.keep(cx);
    }

    fn project_heads<B: Backend>(&self, queries: bool, cx: &mut Cx<'_, B>) {
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, experts, .. } = cx;
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
    }

    /// The same, where they come from latent rows.
    fn project_latent<B: Backend>(&self, latent: &Latent, cx: &mut Cx<'_, B>) {
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, experts, .. } = cx;
        let Scratch { norm, low, moe, turns, .. } = &mut **s;
        let AttentionRows { k, v, latent: memory, .. } = self.rows(n_embd, n, &mut moe.out);
        let cols = self.k.w.view().rows;
        let (x, heads) = if latent.is_absorbed() {
            (k, None)
        } else {
            let (x, both) = memory.split_at_mut(n * cols);
            (x, Some((both, [k, v])))
        };
        b.matmul(norm, &mut [Product { w: self.k.w.view(), y: x }]);
        experts.meanwhile();
        self.k.finish(*b, x);
        latent.norm(*b, x, low);
        self.rotate(*b, x, [cols, latent.rank], turns, n);
        if let Some((both, heads)) = heads {
            latent.expand(*b, low, x, both, heads);
        }
    }

    /// Writes keys and values into the cache.
    fn keep<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (h, n, n_embd) = (self.heads, cx.len(), cx.n_embd);
        let Cx { b, s, seqs, .. } = cx;
        let AttentionRows { k, v, .. } = self.rows(n_embd, n, &mut s.moe.out);
        for run in &s.runs {
            let (ty, heads, first, seq) = (seqs[run.seq].ty(), h.n_head_kv, run.pos, &mut seqs[run.seq]);
            let (keys, values) = seq.rows_mut(self.index);
            let x = run.of(k, heads * h.k);
            b.write_cache(CacheWrite { x, cache: keys, keys: true, ty, heads, dim: h.k, first });
            if !values.is_empty() {
                let x = run.of(v, heads * h.v);
                b.write_cache(CacheWrite { x, cache: values, keys: false, ty, heads, dim: h.v, first });
            }
        }
    }

    /// Writes index keys into the cache.
    fn keep_index<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let Some(own) = self.scores(cx) else { return };
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, seqs, .. } = cx;
        let Scratch { norm, moe, runs, turns, index: scratch, .. } = &mut **s;
        let AttentionRows { index, .. } = self.rows(n_embd, n, &mut moe.out);
        let [keys, scores] = own.rows(n, index).keys;
        own.project_keys(*b, norm, [&mut *keys, &mut *scores]);
        let write = |b: &mut B, seq: &mut Sequence, first: usize, x: &[f32]| {
            let (ty, cache) = (seq.ty(), seq.index_mut(self.index));
            b.write_cache(CacheWrite { x, cache, keys: false, ty, heads: 1, dim: own.k, first });
        };
        let blocks = match &own.keys {
            Keys::Blocks(blocks) => blocks,
            Keys::Tokens(..) => {
                self.rotate(*b, keys, [own.k, 0], turns, n);
                runs.iter().for_each(|run| write(b, &mut seqs[run.seq], run.pos, run.of(keys, own.k)));
                return;
            }
        };
        let (compressor, [cols, score_cols]) = (&blocks.compressor, blocks.compressor.cols());
        for run in &*runs {
            let rows = [run.of(keys, cols), run.of(scores, score_cols)];
            let new = NewRows { rows, pos: run.pos, pending: (blocks.pending, &(0..compressor.floats())) };
            compressor.complete(*b, &mut seqs[run.seq], &new, &mut scratch.row, |b, seq, block, row| {
                if let Some((rope, Rotates { kind, pairs, .. })) = blocks.rope.as_ref().zip(self.rotates) {
                    let turns = &mut scratch.turns[..rope.width()];
                    rope.angles(block * compressor.each(), 1, turns);
                    b.rope(row, &Rotation { kind, head: own.k, skip: 0, pairs, turns });
                }
                write(b, seq, block, row);
            });
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

    /// Chooses what each row looks at, in sequences that are longer than that.
    fn choose<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (Some(indexer), Some(own)) = (&self.indexer, self.scores(cx)) else { return };
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, seqs, experts, .. } = cx;
        let Scratch { moe, runs, index: scratch, .. } = &mut **s;
        let AttentionRows { index, .. } = self.rows(n_embd, n, &mut moe.out);
        let rows = own.rows(n, index);
        for run in &*runs {
            let KvView { ty, index: keys, .. } = seqs[run.seq].rows(self.index);
            indexer.choose(*b, &rows, run, (ty, keys), scratch);
            experts.meanwhile();
        }
    }

    /// Attention of each sequence's queries over its own rows.
    fn attend<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        self.choose(cx);
        let (h, n, n_embd) = (self.heads, cx.len(), cx.n_embd);
        let Cx { b, s, seqs, experts, target, .. } = cx;
        let Scratch { x, sum, branch, moe, attended, low, turns, runs, index, .. } = &mut **s;
        let AttentionRows { q, gate, latent: memory, out, .. } = self.rows(n_embd, n, &mut moe.out);
        if let Some(latent) = &self.latent {
            let (heads, wide) = latent.split(n, memory);
            self.q.finish(*b, heads);
            self.rotate(*b, heads, [latent.k(), latent.nope], turns, n);
            latent.absorb(*b, heads, attended, wide, q);
        } else {
            self.finish(*b, &self.q, q);
            self.place(*b, q, 0, turns, n);
        }
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
            let KvView { ty, n_ctx, keys, values, .. } = seqs[run.seq].rows(self.index);
            let chosen = self.indexer.as_ref().map_or(&[][..], |indexer| indexer.chosen(run, index));
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
                chunked: self.chunked,
                chosen,
                sinks: &self.sinks,
                scale: self.scale,
                soft_cap: self.soft_cap,
            };
            b.attend(&attention, run.of_mut(heads, h.n_head * h.v));
            experts.meanwhile();
        }
        let given = match &self.latent {
            Some(latent) => {
                latent.values(*b, attended, low);
                low
            }
            None => attended,
        };
        if let Some(linear) = &self.gate {
            linear.open(*b, gate, given);
        }
        add_product(*b, &self.o, given, out, target.rows([x, sum, branch], n, n_embd));
    }

    /// Norms and rotates queries (`which` 0) or keys (1).
    fn place(&self, b: &mut impl Backend, x: &mut [f32], which: usize, turns: &[Vec<f32>], n: usize) {
        if self.rotates_first {
            self.rotate(b, x, [self.heads.k, 0], turns, n);
        }
        if let Some(norms) = &self.qk_norm {
            norms[which].apply_onto(b, x);
        }
        if !self.rotates_first {
            self.rotate(b, x, [self.heads.k, 0], turns, n);
        }
    }

    /// Rotates all `n` rows, heads of `head` elements from the element `skip` on, by angles among those in `turns`.
    fn rotate(&self, b: &mut impl Backend, x: &mut [f32], [head, skip]: [usize; 2], turns: &[Vec<f32>], n: usize) {
        if let Some(Rotates { kind, pairs, angles }) = self.rotates {
            let turns = &turns[angles][..n * 2 * pairs];
            b.rope(x, &Rotation { kind, head, skip, pairs, turns });
        }
    }
}

impl Gate {
    /// Multiplies rows by what the products in `y` open.
    fn open(&self, b: &mut impl Backend, y: &mut [f32], rows: &mut Rows) {
        self.w.finish(b, y);
        let (each, cols) = (self.w.w.view().rows, rows.cols());
        let (y, rows) = (&*y, rows.x_mut());
        b.each_row(rows, cols, 8 * cols, |i, row| {
            let y = &y[i * each..(i + 1) * each];
            for (head, y) in row.chunks_exact_mut(cols / each).zip(y) {
                let open = open(self.act, *y);
                head.iter_mut().for_each(|x| *x *= open);
            }
        });
    }
}
