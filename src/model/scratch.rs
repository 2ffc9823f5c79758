//! The buffers of a forward pass, allocated once: after start-up the token loop allocates nothing.

use super::{
    cx::Run,
    ffn::MoeScratch,
    hyper::Connection,
    mixer::{AttentionRows, Compressed, DeltaNet, IndexScratch, Latent, Mamba2, SeenRows, ShortConv},
    ngram::NGram,
};
use crate::{
    backend::{FfnJob, Floats, Hidden, Pair, Rows},
    blueprint::{self, Block, Blueprint, Branch, NGramTable, Part},
    id::ExpertId,
    quant::block::CHUNK,
    trace::Routed,
};

/// Rows of (token, expert) pairs that go through experts in one call at most. Bounds the hidden rows of a long prompt. Threads
/// wait for the last one three times per call, the longer the more they are: with 16, prompts of 512 took 25 % less time in
/// calls of 4096 pairs than in ones of 256; with one or two the hidden rows of 256 stay in their caches.
fn call_pairs(threads: usize) -> usize {
    (64 * threads.min(8) * threads.min(8)).max(256)
}

/// What the buffers must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScratchShape {
    /// Tokens of a batch.
    pub n_batch: usize,
    /// Threads that compute.
    pub threads: usize,
    /// Rows of logits.
    pub n_logits: usize,
    /// Tokens of a sequence.
    pub n_ctx: usize,
}

/// See the module. Lengths beside the fields are maxima; a batch uses the front.
pub struct Scratch {
    pub(super) n_batch: usize,
    /// The rows of each sequence that are computed. (up to n_batch)
    pub(super) runs: Vec<Run>,
    /// Which token each row is. (n_batch)
    pub(super) tokens: Vec<u32>,
    /// Residual streams. (n_batch, n_stream, n_embd)
    pub(super) x: Floats,
    /// What a block reads of several. (n_batch, n_embd), or empty
    pub(super) input: Floats,
    /// All streams, normed for that. (n_batch, n_stream * n_embd), or empty
    pub(super) streams: Rows,
    /// What a block reads and adds with. (n_batch + 1, [`Connection::most_weights`]), or empty; the last is a lookahead's.
    pub(super) weights: Floats,
    /// What a block adds, where that is normed or scaled. (n_batch, n_embd), or empty
    pub(super) sum: Floats,
    /// The same of a branch.
    pub(super) branch: Floats,
    /// (n_batch, n_embd)
    pub(super) norm: Rows,
    /// What attention gives, before its last product. (n_batch, n_head * v)
    pub(super) attended: Rows,
    /// Short rows of latent attention, and between two matrices of one product. (n_batch, [`low_cols`])
    pub(super) low: Rows,
    /// Of indexers.
    pub(super) index: IndexScratch,
    /// Cosines and sines of each rotation. (n_batch, 2, n_rot / 2)
    pub(super) turns: Vec<Vec<f32>>,
    /// One row of the token embedding or of a table of n-grams.
    pub(super) embd: Vec<u8>,
    /// Which rows of that table the batch takes. (up to n_batch * rows of a token)
    pub(super) ngram_ids: Vec<u64>,
    /// These rows, side by side. (n_batch, rows of a token * cols)
    pub(super) ngrams: Rows,
    /// What a row of an attention over compressed blocks sees.
    pub(super) seen: SeenRows,
    pub(super) moe: MoeScratch,
    /// (n_logits, n_vocab)
    pub(super) logits: Floats,
}

impl Scratch {
    /// Allocates.
    pub fn new(m: &Blueprint, shape: ScratchShape) -> Self {
        let (n, n_used, n_expert) = (shape.n_batch, m.n_expert_used(), m.n_expert);
        Self {
            n_batch: n,
            runs: Vec::with_capacity(n),
            tokens: vec![0; n],
            x: Floats::zeros(n * m.n_stream * m.n_embd),
            input: Floats::zeros(n * stream_cols(m) / m.n_stream),
            streams: Rows::new(n, stream_cols(m)),
            weights: Floats::zeros(weights(m, n)),
            sum: Floats::zeros(if sums(m)[0] { n * m.n_embd } else { 0 }),
            branch: Floats::zeros(if sums(m)[1] { n * m.n_embd } else { 0 }),
            norm: Rows::new(n, m.n_embd),
            attended: Rows::new(n, attended_cols(m)),
            low: Rows::new(n, low_cols(m)),
            index: IndexScratch::new(m, n, shape.n_ctx),
            turns: m.ropes().iter().map(|rope| vec![0.0; n * rope.n_rot]).collect(),
            embd: vec![0; row_cols(m) * 4],
            ngram_ids: Vec::with_capacity(n * m.ngrams.as_ref().map_or(0, NGramTable::n_row)),
            ngrams: Rows::new(n, m.ngrams.as_ref().map_or(0, NGramTable::width)),
            seen: SeenRows::new(m, shape.n_ctx),
            moe: MoeScratch {
                scores: Floats::zeros(n * n_expert),
                lookahead: vec![0.0; n_expert],
                ahead: Rows::new(1, m.n_embd),
                routed: Vec::with_capacity(n * n_used),
                out: Floats::zeros(n * wide(m)),
                shared: Floats::zeros(n * m.n_embd),
                shared_gate: vec![0.0; n],
                hidden: Hidden::new(max_pairs(m, shape), m.n_ff()),
                pairs: vec![Pair::default(); n * n_used],
                jobs: Vec::with_capacity(n_expert),
                ready: Vec::with_capacity(n_expert),
                starts: vec![0; n_expert + 1],
            },
            logits: Floats::zeros(shape.n_logits * m.n_vocab),
        }
    }

    /// Bytes that [`Scratch::new`] takes, to within a thousand.
    pub fn bytes(m: &Blueprint, shape: ScratchShape) -> u64 {
        let (n, n_used, n_expert) = (shape.n_batch, m.n_expert_used(), m.n_expert);
        let n_rot: usize = m.ropes().iter().map(|rope| rope.n_rot).sum();
        let floats = n
            * (m.n_embd * (1 + m.n_stream + sums(m).into_iter().filter(|&is| is).count())
                + stream_cols(m) / m.n_stream
                + wide(m)
                + n_expert
                + n_rot
                + 1)
            + weights(m, n)
            + row_cols(m)
            + 2 * n_expert
            + shape.n_logits * m.n_vocab;
        let rows = Rows::bytes(n, m.n_embd)
            + Rows::bytes(n, attended_cols(m))
            + Rows::bytes(n, low_cols(m))
            + Rows::bytes(1, m.n_embd)
            + IndexScratch::bytes(m, n, shape.n_ctx)
            + Rows::bytes(n, stream_cols(m))
            + Rows::bytes(n, m.ngrams.as_ref().map_or(0, NGramTable::width))
            + Hidden::bytes(max_pairs(m, shape), m.n_ff());
        let lists = n * (size_of::<Run>() + size_of::<u32>())
            + n * m.ngrams.as_ref().map_or(0, NGramTable::n_row) * size_of::<u64>()
            + n * n_used * (size_of::<Routed>() + size_of::<Pair>())
            + n_expert * (size_of::<FfnJob<'_>>() + size_of::<ExpertId>() + 4);
        ((floats * size_of::<f32>()) as u64 + rows + lists as u64)
            .saturating_add(SeenRows::bytes(m, shape.n_ctx))
            .min(u64::MAX / 64)
    }

    /// Tokens that fit in a batch.
    pub fn n_batch(&self) -> usize {
        self.n_batch
    }
    /// The last batch's logits. (rows wanted, n_vocab), then old ones
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }
}

/// Whether any block has a sum of its own, and any branch.
fn sums(m: &Blueprint) -> [bool; 2] {
    [m.blocks.iter().any(Block::has_sum), m.blocks.iter().flat_map(|block| &block.branches).any(Branch::has_sum)]
}

/// Floats per token in the widest of the buffers, which attention and experts share.
fn wide(m: &Blueprint) -> usize {
    let mixer = m.parts().map(|part| match part {
        Part::Gqa(gqa) => AttentionRows::cols(gqa, m.n_embd),
        Part::Compressed(part) => Compressed::cols(part, m.n_embd),
        Part::DeltaNet(net) => DeltaNet::cols(net, m.n_embd),
        Part::Mamba2(mamba) => Mamba2::cols(mamba, m.n_embd),
        Part::ShortConv(_) => ShortConv::cols(m.n_embd),
        Part::NGram(ngram) => NGram::cols(ngram, m.n_embd),
        Part::Dense(_) | Part::Moe(_) => 0,
    });
    let experts = m.moe().map(|moe| moe.router.choice.n_expert_used * moe.width(m.n_embd).max(m.n_embd));
    mixer.chain(experts).max().unwrap_or(0).max(stream_cols(m))
}

/// Floats per token of what heads give. Heads of latent attention are rows of their own, in whole chunks.
fn attended_cols(m: &Blueprint) -> usize {
    let heads = m.parts().map(|part| match part {
        Part::Gqa(gqa) => {
            let (n_head, v) = (gqa.heads.n_head, gqa.heads.v);
            let rows = gqa.latent.map_or(0, |latent| n_head * v.max(latent.nope).next_multiple_of(CHUNK));
            rows.max(n_head * v)
        }
        Part::Compressed(part) => part.groups * (part.n_head / part.groups * part.head).next_multiple_of(CHUNK),
        Part::DeltaNet(net) => net.n_v * net.v,
        Part::Mamba2(mamba) => mamba.inner(),
        Part::ShortConv(_) => m.n_embd,
        Part::NGram(_) => 0,
        Part::Dense(_) | Part::Moe(_) => 0,
    });
    heads.max().unwrap_or(0)
}

fn low_cols(m: &Blueprint) -> usize {
    let of = |part: &Part| match part {
        Part::Gqa(gqa) => gqa.latent.map_or(0, |latent| Latent::low_cols(&latent, gqa.heads.n_head)),
        Part::Compressed(part) => Compressed::low_cols(part),
        Part::DeltaNet(net) => net.rank(),
        Part::Moe(moe) => moe.latent.map_or(0, |[down, _]| down.w.rows),
        _ => 0,
    };
    let connections = m.blocks.iter().filter_map(|block| block.connection.as_ref()).chain(&m.head.connection);
    let rank = connections.map(|connection| match connection {
        blueprint::Connection::Gated(gated) => gated.down.rows,
        blueprint::Connection::Mixed(_) | blueprint::Connection::Mean => 0,
    });
    m.parts().map(of).chain(rank).max().unwrap_or(0)
}

/// Floats of a token's residual streams, if there are several.
fn stream_cols(m: &Blueprint) -> usize {
    if m.n_stream > 1 { m.n_stream * m.n_embd } else { 0 }
}

/// Floats of [`Scratch::weights`].
fn weights(m: &Blueprint, n_batch: usize) -> usize {
    if m.n_stream > 1 { (n_batch + 1) * Connection::most_weights(m.n_stream) } else { 0 }
}

/// Elements of the widest row that is read from the file.
fn row_cols(m: &Blueprint) -> usize {
    m.ngrams.as_ref().map_or(0, |table| table.rows.cols).max(m.n_embd)
}

fn max_pairs(m: &Blueprint, shape: ScratchShape) -> usize {
    (shape.n_batch * m.n_expert_used()).min(call_pairs(shape.threads).max(m.n_expert_used()))
}
