//! The buffers of a forward pass, allocated once: after start-up the token loop allocates nothing.

use super::Config;
use crate::{
    backend::{FfnJob, Floats, Hidden, Pair, Rows},
    id::ExpertId,
    trace::Routed,
};

/// Rows of (token, expert) pairs that go through experts in one call at most. Bounds the hidden rows of a long prompt.
const MAX_PAIRS: usize = 256;

/// What the buffers must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScratchShape {
    /// Tokens of a batch.
    pub n_batch: usize,
    /// Rows of logits.
    pub n_logits: usize,
    /// The widest feed-forward block.
    pub n_ff: usize,
}

/// See the module. Lengths beside the fields are maxima; a batch uses the front.
pub struct Scratch {
    n_batch: usize,
    /// (n_batch, n_embd)
    pub(super) x: Floats,
    /// (n_batch, n_embd)
    pub(super) norm: Rows,
    /// What attention gives, before its last product. (n_batch, n_head * head_v)
    pub(super) attended: Rows,
    /// The rotation's cosines and sines. (n_batch, 2, n_rot / 2)
    pub(super) turns: Vec<f32>,
    /// One row of the token embedding.
    pub(super) embd: Vec<u8>,
    pub(super) moe: MoeScratch,
    /// (n_logits, n_vocab)
    pub(super) logits: Floats,
}

/// The rows of an attention, in memory that its layer's experts write to later.
pub(super) struct AttentionRows<'a> {
    /// (n, n_head, head_k)
    pub q: &'a mut [f32],
    /// (n, n_head_kv, head_k)
    pub k: &'a mut [f32],
    /// (n, n_head_kv, head_v)
    pub v: &'a mut [f32],
    /// (n, n_embd)
    pub out: &'a mut [f32],
}

impl<'a> AttentionRows<'a> {
    /// Those of `n` tokens.
    ///
    /// # Panics
    /// If `memory` is less than [`AttentionRows::cols`] for each token.
    pub fn of(c: &Config, n: usize, memory: &'a mut [f32]) -> Self {
        let (q, rest) = memory.split_at_mut(n * c.n_head * c.n_embd_head_k);
        let (k, rest) = rest.split_at_mut(n * c.n_head_kv * c.n_embd_head_k);
        let (v, rest) = rest.split_at_mut(n * c.n_head_kv * c.n_embd_head_v);
        AttentionRows { q, k, v, out: &mut rest[..n * c.n_embd] }
    }

    /// Floats of a token.
    fn cols(c: &Config) -> usize {
        (c.n_head + c.n_head_kv) * c.n_embd_head_k + c.n_head_kv * c.n_embd_head_v + c.n_embd
    }
}

/// The buffers of a feed-forward part.
pub(super) struct MoeScratch {
    /// Router scores. (n_batch, n_expert)
    pub scores: Floats,
    /// Scores of the next layer, and of the one behind it. (n_expert)
    pub lookahead: [Vec<f32>; 2],
    /// The input of the router that is ahead. (1, n_embd)
    pub ahead: Rows,
    /// (n_batch, n_expert_used)
    pub routed: Vec<Routed>,
    /// Experts' outputs in routing order, (n_batch * n_expert_used, n_embd); before them [`AttentionRows`].
    pub out: Floats,
    /// The shared expert's or dense block's output. (n_batch, n_embd)
    pub shared: Floats,
    /// (n_batch)
    pub shared_gate: Vec<f32>,
    pub hidden: Hidden,
    pub pairs: Vec<Pair>,
    pub jobs: Vec<FfnJob<'static>>,
    pub ready: Vec<ExpertId>,
    /// First pair of each expert, by counting. (n_expert + 1)
    pub starts: Vec<u32>,
}

impl Scratch {
    /// Allocates.
    pub fn new(c: &Config, shape: ScratchShape) -> Self {
        let n = shape.n_batch;
        Self {
            n_batch: n,
            x: Floats::zeros(n * c.n_embd),
            norm: Rows::new(n, c.n_embd),
            attended: Rows::new(n, c.n_head * c.n_embd_head_v),
            turns: vec![0.0; n * c.n_rot],
            embd: vec![0; c.n_embd * 4],
            moe: MoeScratch {
                scores: Floats::zeros(n * c.n_expert),
                lookahead: [vec![0.0; c.n_expert], vec![0.0; c.n_expert]],
                ahead: Rows::new(1, c.n_embd),
                routed: Vec::with_capacity(n * c.n_expert_used),
                out: Floats::zeros(n * wide(c)),
                shared: Floats::zeros(n * c.n_embd),
                shared_gate: vec![0.0; n],
                hidden: Hidden::new(max_pairs(c, n), shape.n_ff),
                pairs: vec![Pair::default(); n * c.n_expert_used],
                jobs: Vec::with_capacity(c.n_expert),
                ready: Vec::with_capacity(c.n_expert),
                starts: vec![0; c.n_expert + 1],
            },
            logits: Floats::zeros(shape.n_logits * c.n_vocab),
        }
    }

    /// Bytes that [`Scratch::new`] takes, to within a thousand.
    pub fn bytes(c: &Config, shape: ScratchShape) -> u64 {
        let n = shape.n_batch;
        let used = n * c.n_expert_used;
        let floats = n * (c.n_embd * 2 + wide(c) + c.n_expert + c.n_rot + 1)
            + c.n_embd
            + 2 * c.n_expert
            + shape.n_logits * c.n_vocab;
        let rows = Rows::bytes(n, c.n_embd)
            + Rows::bytes(n, c.n_head * c.n_embd_head_v)
            + Rows::bytes(1, c.n_embd)
            + Hidden::bytes(max_pairs(c, n), shape.n_ff);
        let lists = used * (size_of::<Routed>() + size_of::<Pair>())
            + c.n_expert * (size_of::<FfnJob<'_>>() + size_of::<ExpertId>() + 4);
        (floats * size_of::<f32>()) as u64 + rows + lists as u64
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

/// Floats of a token in the widest of the buffers, which attention and experts share.
fn wide(c: &Config) -> usize {
    AttentionRows::cols(c).max(c.n_expert_used * c.n_embd)
}

fn max_pairs(c: &Config, n_batch: usize) -> usize {
    (n_batch * c.n_expert_used).min(MAX_PAIRS.max(c.n_expert_used))
}
