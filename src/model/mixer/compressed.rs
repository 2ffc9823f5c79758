//! Attention over compressed blocks (DeepSeek-V4, 2026): a token's row is key and value at once; queries see the rows of a
//! window, and beyond that blocks of tokens, each of them one row.

use super::compressor::{Compressor, NewRows};
use crate::{
    Result,
    backend::{Attention, Backend, CacheWrite, Product, RopeKind, Rotation, Rows},
    blueprint,
    model::{
        Scratch,
        cx::{Cx, Run},
        load::{Linear, Loader, Mat, Norm},
        rope::Rope,
        state::Sequence,
    },
    quant::{GgmlType, QMat, dequantize_row},
};

/// See the module.
pub struct Compressed {
    /// Number among the parts that keep rows: those of the tokens are its first, then those of blocks, then the indexer's.
    index: usize,
    /// Number among the recurrent parts, if there are blocks: what is kept of the last tokens for them.
    pending: usize,
    /// Whether no part behind it fills any state.
    is_last: bool,
    n_head: usize,
    head: usize,
    q: [Linear; 2],
    q_norm: Norm,
    head_norm: Norm,
    row: Linear,
    row_norm: Norm,
    kind: RopeKind,
    rope: Rope,
    /// Whose angles its rows take, among those of the model.
    angles: usize,
    window: usize,
    sinks: Vec<f32>,
    scale: f32,
    /// (groups * rank, n_head / groups * head), (n_embd, groups * rank)
    o: [Linear; 2],
    groups: usize,
    blocks: Option<Blocks>,
}

struct Blocks {
    each: usize,
    compressor: Compressor,
    chooser: Option<Chooser>,
}

struct Chooser {
    n_head: usize,
    q: Linear,
    weight: Linear,
    compressor: Compressor,
    top_k: usize,
}

/// What one row is computed in: rows that it sees, one after another, and what chooses them.
pub struct SeenRows {
    /// In F32, from `start` on. (most rows, head)
    rows: Vec<u8>,
    start: usize,
    /// Of one row. (widest)
    row: Vec<f32>,
    /// Of each head of an indexer for each block, then their sums. (heads + 1, blocks)
    scores: Vec<f32>,
    /// Numbers of blocks. (blocks)
    chosen: Vec<u32>,
    /// Queries of an indexer. (heads, dim)
    queries: Rows,
    /// Cosines and sines of a block. (2 * pairs)
    turns: Vec<f32>,
}

/// Where rows begin: at a cache line.
const LINE: usize = 64;

/// Lengths of its buffers.
#[derive(Clone, Copy, Default)]
struct SeenSizes {
    rows: usize,
    row: usize,
    scores: usize,
    chosen: usize,
    queries: [usize; 2],
    turns: usize,
}

impl SeenSizes {
    /// The most that any part needs in a context of `n_ctx` tokens.
    fn of(m: &blueprint::Blueprint, n_ctx: usize) -> Self {
        m.compressed().fold(Self::default(), |most, part| {
            let blocks = part.blocks.as_ref();
            let n = blocks.map_or(0, |blocks| n_ctx / blocks.each);
            let index = blocks.and_then(|blocks| blocks.index.as_ref());
            let dim = index.map_or(0, |index| index.compressor.dim);
            let heads = index.map_or(0, |index| index.n_head);
            Self {
                rows: most.rows.max(part.most_rows(n_ctx).saturating_mul(part.head)),
                row: most.row.max(part.head).max(dim),
                scores: if heads > 0 { most.scores.max(n.saturating_mul(heads + 1)) } else { most.scores },
                chosen: most.chosen.max(n),
                queries: if heads * dim > most.queries[0] * most.queries[1] { [heads, dim] } else { most.queries },
                turns: most.turns.max(part.rope.n_rot),
            }
        })
    }
}

impl SeenRows {
    pub fn new(m: &blueprint::Blueprint, n_ctx: usize) -> Self {
        let sizes = SeenSizes::of(m, n_ctx);
        let len = sizes.rows * size_of::<f32>();
        let rows = vec![0; len + LINE];
        // Where that cannot be told (in an interpreter), they are as good from the start.
        let start = Some(rows.as_ptr().align_offset(LINE)).filter(|start| start + len <= rows.len());
        Self {
            rows,
            start: start.unwrap_or(0),
            row: vec![0.0; sizes.row],
            scores: vec![0.0; sizes.scores],
            chosen: Vec::with_capacity(sizes.chosen),
            queries: Rows::new(sizes.queries[0], sizes.queries[1]),
            turns: vec![0.0; sizes.turns],
        }
    }

    /// Bytes that [`SeenRows::new`] takes.
    pub fn bytes(m: &blueprint::Blueprint, n_ctx: usize) -> u64 {
        let sizes = SeenSizes::of(m, n_ctx);
        let floats = sizes
            .rows
            .saturating_add(LINE)
            .saturating_add(sizes.row)
            .saturating_add(sizes.scores)
            .saturating_add(sizes.turns);
        let bytes = floats.saturating_add(sizes.chosen).saturating_mul(size_of::<f32>());
        (bytes as u64).saturating_add(Rows::bytes(sizes.queries[0], sizes.queries[1]))
    }
}

/// The rows of the part, in memory that experts write to later. Of `n` tokens
struct PartRows<'a> {
    /// (n, n_head, head)
    q: &'a mut [f32],
    /// (n, head)
    row: &'a mut [f32],
    /// Of each compressor: values, then scores.
    pending: [[&'a mut [f32]; 2]; 2],
    /// (n, heads, dim)
    index_q: &'a mut [f32],
    /// (n, heads)
    index_weight: &'a mut [f32],
    /// Cosines and sines that rotate back. (n, 2 * pairs)
    back: &'a mut [f32],
    /// (n, n_embd)
    out: &'a mut [f32],
}

/// Takes the first `n` of what is left.
fn take<'a>(rest: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (first, others) = std::mem::take(rest).split_at_mut(n);
    *rest = others;
    first
}

impl Compressed {
    /// The part whose rows are number `index` and whose memory is number `pending`; `ropes` are the model's rotations.
    pub fn load(
        loader: &mut Loader<'_>,
        part: &blueprint::Compressed,
        [index, pending]: [usize; 2],
        is_last: bool,
        ropes: &[blueprint::Rope],
    ) -> Result<Self> {
        let blocks = match &part.blocks {
            None => None,
            Some(blocks) => Some(Blocks {
                each: blocks.each,
                compressor: Compressor::load(loader, &blocks.compressor)?,
                chooser: match &blocks.index {
                    None => None,
                    Some(index) => Some(Chooser {
                        n_head: index.n_head,
                        q: loader.linear(&index.q)?,
                        weight: loader.linear(&index.weight)?,
                        compressor: Compressor::load(loader, &index.compressor)?,
                        top_k: index.top_k,
                    }),
                },
            }),
        };
        let [down, up] = &part.q;
        let [o_low, o_high] = &part.o;
        Ok(Self {
            index,
            pending,
            is_last,
            n_head: part.n_head,
            head: part.head,
            q: [loader.linear(down)?, loader.linear(up)?],
            q_norm: loader.norm(&part.q_norm)?,
            head_norm: loader.norm(&part.head_norm)?,
            row: loader.linear(&part.row)?,
            row_norm: loader.norm(&part.row_norm)?,
            kind: part.rope.kind,
            rope: Rope::load(loader, &part.rope)?,
            angles: ropes.iter().position(|rope| *rope == part.rope).expect("all ropes are listed"),
            window: part.window,
            sinks: loader.vector(&part.sinks)?,
            scale: part.scale,
            o: [loader.linear(o_low)?, loader.linear(o_high)?],
            groups: part.groups,
            blocks,
        })
    }

    /// Floats per token of its rows.
    pub fn cols(part: &blueprint::Compressed, n_embd: usize) -> usize {
        let blocks = part.blocks.as_ref();
        let pending: usize = blocks.map_or(0, |blocks| blocks.compressors().map(|c| c.token_cols()).sum());
        let index = blocks.and_then(|blocks| blocks.index.as_ref());
        let index = index.map_or(0, |index| index.n_head * (index.compressor.dim + 1));
        (part.n_head + 1) * part.head + pending + index + part.rope.n_rot + n_embd
    }

    /// Floats per token of its short rows.
    pub fn low_cols(part: &blueprint::Compressed) -> usize {
        part.q[0].w.rows.max(part.o[0].w.rows)
    }

    /// All but the products of groups, each of which is a matrix of its own.
    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        let blocks = self.blocks.iter_mut().flat_map(|blocks| {
            let chooser = blocks.chooser.iter_mut().flat_map(|chooser| {
                [&mut chooser.q, &mut chooser.weight].into_iter().chain(chooser.compressor.linears_mut())
            });
            blocks.compressor.linears_mut().into_iter().chain(chooser)
        });
        let own = self.q.iter_mut().chain([&mut self.row, &mut self.o[1]]);
        own.chain(blocks).map(|linear| &mut linear.w)
    }

    pub fn mats(&self) -> impl Iterator<Item = &Mat> {
        self.q.iter().chain([&self.row]).chain(&self.o).map(|linear| &linear.w)
    }

    fn compressors(&self) -> impl Iterator<Item = &Compressor> {
        let blocks = self.blocks.iter();
        blocks.flat_map(|blocks| [&blocks.compressor].into_iter().chain(blocks.chooser.as_ref().map(|c| &c.compressor)))
    }

    fn rows<'m>(&self, n_embd: usize, n: usize, mut memory: &'m mut [f32]) -> PartRows<'m> {
        let mut cols = [[0; 2]; 2];
        self.compressors().zip(&mut cols).for_each(|(compressor, cols)| *cols = compressor.cols());
        let chooser = self.blocks.as_ref().and_then(|blocks| blocks.chooser.as_ref());
        let (heads, dim) = chooser.map_or((0, 0), |chooser| (chooser.n_head, chooser.compressor.dim()));
        let rest = &mut memory;
        PartRows {
            q: take(rest, n * self.n_head * self.head),
            row: take(rest, n * self.head),
            pending: cols.map(|cols| cols.map(|cols| take(rest, n * cols))),
            index_q: take(rest, n * heads * dim),
            index_weight: take(rest, n * heads),
            back: take(rest, n * self.rope.width()),
            out: take(rest, n * n_embd),
        }
    }

    /// `x += o · attend(norm(x))`, where the rows have been normed already.
    pub fn add<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        self.project(cx);
        self.keep(cx);
        cx.experts.meanwhile();
        self.attend(cx);
        self.output(cx);
        if self.is_last {
            cx.drop_unneeded();
        }
    }

    /// All products with the input, normed and rotated.
    fn project<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, .. } = cx;
        let Scratch { norm, low, moe, turns, .. } = &mut **s;
        let rows = self.rows(n_embd, n, &mut moe.out);
        let short = low.start_wide(n, self.q[0].w.view().rows);
        b.matmul(norm, &mut [product(&self.q[0], short), product(&self.row, rows.row)]);
        self.q[0].finish(*b, short);
        self.row.finish(*b, rows.row);
        for (compressor, [values, scores]) in self.compressors().zip(rows.pending) {
            compressor.project(*b, norm, values, scores);
        }
        self.q_norm.apply_onto(*b, short);
        b.prepare(low);
        b.matmul(low, &mut [product(&self.q[1], rows.q)]);
        self.q[1].finish(*b, rows.q);
        self.head_norm.apply_onto(*b, rows.q);
        self.row_norm.apply_onto(*b, rows.row);
        let turns = &turns[self.angles][..n * self.rope.width()];
        self.rotate(*b, rows.q, self.head, turns);
        self.rotate(*b, rows.row, self.head, turns);
        if let Some(chooser) = self.blocks.as_ref().and_then(|blocks| blocks.chooser.as_ref()) {
            b.matmul(low, &mut [product(&chooser.q, rows.index_q)]);
            b.matmul(norm, &mut [product(&chooser.weight, rows.index_weight)]);
            chooser.q.finish(*b, rows.index_q);
            chooser.weight.finish(*b, rows.index_weight);
            self.rotate(*b, rows.index_q, chooser.compressor.dim(), turns);
        }
    }

    /// Rotates the last elements of heads of `head`.
    fn rotate(&self, b: &mut impl Backend, x: &mut [f32], head: usize, turns: &[f32]) {
        let pairs = self.rope.width() / 2;
        b.rope(x, &Rotation { kind: self.kind, head, skip: head - 2 * pairs, pairs, turns });
    }

    /// Writes the tokens' rows, and those of the blocks that they complete.
    fn keep<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, seqs, .. } = cx;
        let Scratch { moe, runs, seen, .. } = &mut **s;
        let rows = self.rows(n_embd, n, &mut moe.out);
        for run in &*runs {
            let seq = &mut seqs[run.seq];
            write(*b, seq, self.index, self.head, run.of(rows.row, self.head), run.pos);
            let Some(blocks) = &self.blocks else { continue };
            let (mut start, turns) = (0, &mut seen.turns[..self.rope.width()]);
            for (i, (compressor, [values, scores])) in self.compressors().zip(&rows.pending).enumerate() {
                let [cols, score_cols] = compressor.cols();
                let range = start..start + compressor.floats();
                start = range.end;
                let new = [run.of(values, cols), run.of(scores, score_cols)];
                let new = NewRows { rows: new, pos: run.pos, pending: (self.pending, &range) };
                compressor.complete(*b, seq, &new, &mut seen.row, |b, seq, block, row| {
                    self.rope.angles(block * blocks.each, 1, turns);
                    self.rotate(b, row, compressor.dim(), turns);
                    write(b, seq, self.index + 1 + i, compressor.dim(), row, block);
                });
            }
        }
    }

    /// Attention of each row over what it sees, which no other row does.
    fn attend<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, seqs, experts, .. } = cx;
        let Scratch { moe, attended, runs, seen, .. } = &mut **s;
        let rows = self.rows(n_embd, n, &mut moe.out);
        let width = self.n_head * self.head;
        let heads = attended.start_wide(n, width);
        for run in &*runs {
            for i in 0..run.n {
                let row = run.row + i;
                let n_seen = self.gather(*b, &seqs[run.seq], run, i, [rows.index_q, rows.index_weight], seen);
                let attention = Attention {
                    q: &rows.q[row * width..(row + 1) * width],
                    keys: &seen.rows[seen.start..][..n_seen * self.head * size_of::<f32>()],
                    values: &[],
                    ty: GgmlType::F32,
                    n_ctx: n_seen,
                    n_head: self.n_head,
                    n_head_kv: 1,
                    head_k: self.head,
                    head_v: self.head,
                    first: n_seen - 1,
                    window: None,
                    chunked: false,
                    chosen: &[],
                    sinks: &self.sinks,
                    scale: self.scale,
                    soft_cap: None,
                };
                b.attend(&attention, &mut heads[row * width..(row + 1) * width]);
                experts.meanwhile();
            }
        }
    }

    /// Puts the rows that row `i` of a run sees into `seen`, and returns how many there are: those of the window, then those of
    /// blocks, the first ones first.
    fn gather(
        &self,
        b: &mut impl Backend,
        seq: &Sequence,
        run: &Run,
        i: usize,
        [index_q, index_weight]: [&[f32]; 2],
        seen: &mut SeenRows,
    ) -> usize {
        let pos = run.pos + i;
        seen.chosen.clear();
        if let Some(blocks) = &self.blocks {
            let visible = (pos + 1) / blocks.each;
            match &blocks.chooser {
                Some(chooser) if visible > chooser.top_k => {
                    let view = seq.rows(self.index + 2);
                    let width = chooser.n_head * chooser.compressor.dim();
                    let row = run.row + i;
                    let queries = &index_q[row * width..(row + 1) * width];
                    let weights = &index_weight[row * chooser.n_head..(row + 1) * chooser.n_head];
                    chooser.choose(b, [queries, weights], (view.ty, view.values), visible, seen);
                }
                _ => seen.chosen.extend(0..visible as u32),
            }
        }
        let first = (pos + 1).saturating_sub(self.window);
        let (tokens, of_blocks) = (seq.rows(self.index), self.blocks.as_ref().map(|_| seq.rows(self.index + 1)));
        let own = (first..=pos).map(|pos| (&tokens, pos % tokens.n_ctx));
        let chosen = of_blocks.iter().flat_map(|view| seen.chosen.iter().map(move |&block| (view, block as usize)));
        let mut n = 0;
        for ((view, at), out) in
            own.chain(chosen).zip(seen.rows[seen.start..].chunks_exact_mut(self.head * size_of::<f32>()))
        {
            let bytes = self.head / view.ty.block_len() * view.ty.block_bytes();
            let from = &view.values[at * bytes..(at + 1) * bytes];
            if view.ty == GgmlType::F32 {
                out.copy_from_slice(from);
            } else {
                let row = &mut seen.row[..self.head];
                dequantize_row(view.ty, from, row);
                out.as_chunks_mut().0.iter_mut().zip(row).for_each(|(out, x)| *out = x.to_ne_bytes());
            }
            n += 1;
        }
        n
    }

    /// Rotates what attention gives back, and takes it through short rows of groups to the output.
    fn output<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, target, .. } = cx;
        let Scratch { x, sum, branch, moe, attended, low, turns, .. } = &mut **s;
        let PartRows { back, out, .. } = self.rows(n_embd, n, &mut moe.out);
        let width = self.rope.width();
        let turns = turns[self.angles][..n * width].chunks_exact(width);
        for (back, turns) in back.chunks_exact_mut(width).zip(turns) {
            let (cosines, sines) = turns.split_at(width / 2);
            back[..width / 2].copy_from_slice(cosines);
            back[width / 2..].iter_mut().zip(sines).for_each(|(back, sine)| *back = -sine);
        }
        self.rotate(*b, attended.x_mut(), self.head, back);
        attended.reshape(self.n_head / self.groups * self.head);
        b.prepare(attended);
        let short = low.start_wide(n, self.o[0].w.view().rows);
        b.matmul_per_head(attended, self.groups, self.o[0].w.view(), short);
        self.o[0].finish(*b, short);
        b.prepare(low);
        b.matmul(low, &mut [product(&self.o[1], out)]);
        self.o[1].finish(*b, out);
        b.add_weighted(target.rows([x, sum, branch], n, n_embd), n_embd, out, |_| 1.0);
    }
}

impl Chooser {
    /// Puts the numbers of the best blocks into `seen.chosen`, of the first `visible` whose rows these are: those with the
    /// largest scores (ties: the first ones), in order.
    fn choose(
        &self,
        b: &mut impl Backend,
        [queries, weights]: [&[f32]; 2],
        (ty, rows): (GgmlType, &[u8]),
        visible: usize,
        seen: &mut SeenRows,
    ) {
        let dim = self.compressor.dim();
        let SeenRows { scores, chosen, queries: heads, .. } = seen;
        heads.start_wide(self.n_head, dim).copy_from_slice(queries);
        b.prepare(heads);
        let bytes = dim / ty.block_len() * ty.block_bytes();
        let (of_heads, rest) = scores.split_at_mut(self.n_head * visible);
        let w = QMat::new(ty, visible, dim, &rows[..visible * bytes]);
        b.matmul(heads, &mut [Product { w, y: of_heads }]);
        let sums = &mut rest[..visible];
        sums.fill(0.0);
        for (scores, weight) in of_heads.chunks_exact(visible).zip(weights) {
            sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += weight * score.max(0.0));
        }
        chosen.extend(0..visible as u32);
        let score = |block: u32| sums[block as usize];
        let better = |a: &u32, b: &u32| score(*b).total_cmp(&score(*a)).then(a.cmp(b));
        chosen.select_nth_unstable_by(self.top_k - 1, better);
        chosen.truncate(self.top_k);
        chosen.sort_unstable();
    }
}

fn product<'a>(linear: &'a Linear, y: &'a mut [f32]) -> Product<'a> {
    Product { w: linear.w.view(), y }
}

/// Writes rows of `dim` where a part keeps no keys.
fn write(b: &mut impl Backend, seq: &mut Sequence, index: usize, dim: usize, x: &[f32], first: usize) {
    let ty = seq.ty();
    let (_, cache) = seq.rows_mut(index);
    b.write_cache(CacheWrite { x, cache, keys: false, ty, heads: 1, dim, first });
}
