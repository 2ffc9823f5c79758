//! Attention over compressed blocks (DeepSeek-V4, 2026): a token's row is key and value at once; queries see the rows of a
//! window, and beyond that blocks of tokens, each of them one row.

use super::{
    add_product,
    compressor::{Compressor, NewRows},
    indexer::{IndexRows, IndexScratch, Indexer, Scores},
};
use crate::{
    Result,
    backend::{Attention, Backend, CacheWrite, Product, RopeKind, Rotation},
    blueprint,
    model::{
        Scratch,
        cx::{Cx, Run},
        load::{Linear, Loader, Mat, Norm},
        rope::Rope,
        state::Sequence,
    },
    quant::{GgmlType, dequantize_row},
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
    /// Those of a row, as often as rows go through together. (TOGETHER, n_head)
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
    /// What chooses among them; `None`: all are seen.
    indexer: Option<Indexer>,
}

/// Rows of a run that go through together, at most.
const TOGETHER: usize = 16;

/// What a row sees at most that goes through with others: the backend divides longer ones.
const SHORT: usize = 2048;

/// What some rows are computed in: what each of them sees, one after another.
pub struct SeenRows {
    /// In F32, from `start` on. (up to TOGETHER * most rows, head)
    rows: Vec<u8>,
    start: usize,
    /// Of one row. (widest)
    row: Vec<f32>,
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
    turns: usize,
}

impl SeenSizes {
    /// The most that any part needs of batches of `n_batch` tokens in a context of `n_ctx`.
    fn of(m: &blueprint::Blueprint, n_batch: usize, n_ctx: usize) -> Self {
        m.compressed().fold(Self::default(), |most, part| {
            let dims = part.blocks.iter().flat_map(|blocks| blocks.compressors()).map(|compressor| compressor.dim);
            let seen = part.most_rows(n_ctx);
            let seen = seen.max(seen.min(SHORT).saturating_mul(TOGETHER.min(n_batch)));
            Self {
                rows: most.rows.max(seen.saturating_mul(part.head)),
                row: dims.fold(most.row.max(part.head), usize::max),
                turns: most.turns.max(part.rope.n_rot),
            }
        })
    }
}

impl SeenRows {
    /// For batches of `n_batch` tokens and contexts of `n_ctx`.
    pub fn new(m: &blueprint::Blueprint, n_batch: usize, n_ctx: usize) -> Self {
        let sizes = SeenSizes::of(m, n_batch, n_ctx);
        let len = sizes.rows * size_of::<f32>();
        let rows = vec![0; len + LINE];
        // Where that cannot be told (in an interpreter), they are as good from the start.
        let start = Some(rows.as_ptr().align_offset(LINE)).filter(|start| start + len <= rows.len());
        Self { rows, start: start.unwrap_or(0), row: vec![0.0; sizes.row], turns: vec![0.0; sizes.turns] }
    }

    /// Bytes that [`SeenRows::new`] takes.
    pub fn bytes(m: &blueprint::Blueprint, n_batch: usize, n_ctx: usize) -> u64 {
        let sizes = SeenSizes::of(m, n_batch, n_ctx);
        let floats = sizes.rows.saturating_add(LINE).saturating_add(sizes.row).saturating_add(sizes.turns);
        floats.saturating_mul(size_of::<f32>()) as u64
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
                indexer: match &blocks.index {
                    None => None,
                    Some(index) => Some(Indexer::load(loader, index, None, pending)?),
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
            sinks: loader.vector(&part.sinks)?.repeat(TOGETHER),
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
        let own = blocks.and_then(|blocks| blocks.index.as_ref()?.own.as_ref());
        let index = own.map_or(0, |own| own.n_head * (own.k + 1));
        (part.n_head + 1) * part.head + pending + index + part.rope.n_rot + n_embd
    }

    /// Floats per token of its short rows.
    pub fn low_cols(part: &blueprint::Compressed) -> usize {
        part.q[0].w.rows.max(part.o[0].w.rows)
    }

    /// All but the products of groups, each of which is a matrix of its own.
    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        let blocks = self.blocks.iter_mut().flat_map(|blocks| {
            let indexer = blocks.indexer.iter_mut().flat_map(Indexer::mats_mut);
            blocks.compressor.linears_mut().map(|linear| &mut linear.w).chain(indexer)
        });
        let own = self.q.iter_mut().chain([&mut self.row, &mut self.o[1]]).map(|linear| &mut linear.w);
        own.chain(blocks)
    }

    pub fn mats(&self) -> impl Iterator<Item = &Mat> {
        self.q.iter().chain([&self.row]).chain(&self.o).map(|linear| &linear.w)
    }

    fn scores(&self) -> Option<&Scores> {
        self.blocks.as_ref()?.indexer.as_ref()?.own.as_ref()
    }

    fn compressors(&self) -> impl Iterator<Item = &Compressor> {
        let blocks = self.blocks.iter();
        blocks.map(|blocks| &blocks.compressor).chain(self.scores().and_then(Scores::compressor))
    }

    fn rows<'m>(&self, n_embd: usize, n: usize, mut memory: &'m mut [f32]) -> PartRows<'m> {
        let mut cols = [[0; 2]; 2];
        self.compressors().zip(&mut cols).for_each(|(compressor, cols)| *cols = compressor.cols());
        let (heads, dim) = self.scores().map_or((0, 0), |own| (own.n_head, own.k));
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
        if let Some(own) = self.scores() {
            own.queries(*b, [norm, low], [&mut *rows.index_q, rows.index_weight]);
            self.rotate(*b, rows.index_q, own.k, turns);
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

    /// Rows that the token at a position sees.
    fn n_seen(&self, pos: usize) -> usize {
        let blocks = self.blocks.as_ref().map_or(0, |blocks| {
            let most = blocks.indexer.as_ref().map_or(usize::MAX, |indexer| indexer.top_k.blocks());
            most.min((pos + 1) / blocks.each)
        });
        self.window.min(pos + 1) + blocks
    }

    /// Chooses which blocks the rows of a run see.
    fn choose(
        &self,
        b: &mut impl Backend,
        seq: &Sequence,
        run: &Run,
        rows: &mut PartRows<'_>,
        scratch: &mut IndexScratch,
    ) {
        if let Some(indexer) = self.blocks.as_ref().and_then(|blocks| blocks.indexer.as_ref()) {
            let view = seq.rows(self.index + 2);
            let rows = IndexRows { q: rows.index_q, keys: [&mut [], &mut []], weights: rows.index_weight };
            indexer.choose(b, &rows, run, (view.ty, view.values), scratch);
        }
    }

    /// Attention of each row over what it sees, which no other row does. Rows that see equally many go through together, as if
    /// each were a key head of one row.
    fn attend<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, seqs, experts, .. } = cx;
        let Scratch { moe, attended, runs, seen, index, n_batch, .. } = &mut **s;
        let mut rows = self.rows(n_embd, n, &mut moe.out);
        let width = self.n_head * self.head;
        let heads = attended.start_wide(n, width);
        for run in &*runs {
            let (seq, mut i) = (&seqs[run.seq], 0);
            self.choose(*b, seq, run, &mut rows, index);
            while i < run.n {
                let n_seen = self.n_seen(run.pos + i);
                let most = if n_seen > SHORT { 1 } else { TOGETHER.min(*n_batch) };
                let alike = (i..run.n).take(most).take_while(|i| self.n_seen(run.pos + i) == n_seen).count();
                let bytes = n_seen * self.head * size_of::<f32>();
                for j in 0..alike {
                    self.gather(seq, run, i + j, index, (j * bytes, bytes), seen);
                }
                let at = (run.row + i) * width..(run.row + i + alike) * width;
                let attention = Attention {
                    q: &rows.q[at.clone()],
                    keys: &seen.rows[seen.start..][..alike * bytes],
                    values: &[],
                    ty: GgmlType::F32,
                    n_ctx: n_seen,
                    n_head: alike * self.n_head,
                    n_head_kv: alike,
                    head_k: self.head,
                    head_v: self.head,
                    first: n_seen - 1,
                    window: None,
                    chunked: false,
                    chosen: &[],
                    sinks: &self.sinks[..alike * self.n_head],
                    scale: self.scale,
                    soft_cap: None,
                };
                b.attend(&attention, &mut heads[at]);
                experts.meanwhile();
                i += alike;
            }
        }
    }

    /// Puts the rows that row `i` of a run sees where they belong in `seen` (start and length in bytes): those of the window,
    /// then those of blocks, the first ones first.
    fn gather(
        &self,
        seq: &Sequence,
        run: &Run,
        i: usize,
        index: &IndexScratch,
        (start, len): (usize, usize),
        seen: &mut SeenRows,
    ) {
        let pos = run.pos + i;
        let indexer = self.blocks.as_ref().and_then(|blocks| blocks.indexer.as_ref());
        let chosen = indexer.map_or(&[][..], |indexer| indexer.chosen(run, index));
        let chosen = &chosen[chosen.len() / run.n * i..][..chosen.len() / run.n];
        let each = self.blocks.as_ref().map_or(usize::MAX, |blocks| blocks.each);
        // All positions of a block are chosen, or none.
        let is_seen =
            |block: &usize| chosen.get(block * each / 64).is_none_or(|word| word >> (block * each % 64) & 1 == 1);
        let first = (pos + 1).saturating_sub(self.window);
        let (tokens, of_blocks) = (seq.rows(self.index), self.blocks.as_ref().map(|_| seq.rows(self.index + 1)));
        let own = (first..=pos).map(|pos| (&tokens, pos % tokens.n_ctx));
        let blocks = (0..(pos + 1) / each).filter(is_seen);
        let blocks = blocks.flat_map(|block| of_blocks.iter().map(move |view| (view, block)));
        let out = seen.rows[seen.start + start..][..len].chunks_exact_mut(self.head * size_of::<f32>());
        for ((view, at), out) in own.chain(blocks).zip(out) {
            let bytes = self.head / view.ty.block_len() * view.ty.block_bytes();
            let from = &view.values[at * bytes..(at + 1) * bytes];
            if view.ty == GgmlType::F32 {
                out.copy_from_slice(from);
            } else {
                let row = &mut seen.row[..self.head];
                dequantize_row(view.ty, from, row);
                out.as_chunks_mut().0.iter_mut().zip(row).for_each(|(out, x)| *out = x.to_ne_bytes());
            }
        }
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
        add_product(*b, &self.o[1], low, out, target.rows([x, sum, branch], n, n_embd));
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
