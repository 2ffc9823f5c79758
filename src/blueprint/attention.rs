//! Attention: heads, rotation, window, what is done to queries, keys and what comes out.

use super::{Compressor, Linear, Norm, Reader, RopeKind, Tensor};
use crate::Result;

/// Causal grouped-query attention.
#[derive(Clone, Debug)]
pub struct Gqa {
    /// Their numbers and sizes.
    pub heads: Heads,
    /// Queries. (n_head * k, n_embd)
    pub q: Linear,
    /// Keys. (n_head_kv * k, n_embd)
    pub k: Linear,
    /// Values. (n_head_kv * v, n_embd) `None`: what `k` gives, before norm and rotation.
    pub v: Option<Linear>,
    /// Output. (n_embd, n_head * v), of a latent attention the `v` of that.
    pub o: Linear,
    /// Where keys and values come from latent rows: `q` gives heads of `latent.k()` elements, `k` latent rows before their
    /// norm, and `v` is `None`.
    pub latent: Option<Latent>,
    /// Norms of queries and keys before the rotation. Their width says whether they are of each head or of all at once.
    pub qk_norm: Option<[Norm; 2]>,
    /// Whether they rotate before they are normed.
    pub rotates_first: bool,
    /// Queries, keys and values are limited to ± this as they come from their products.
    pub clamp: Option<f32>,
    /// Of each value head.
    pub v_norm: Option<Norm>,
    /// Of queries and keys; `None`: they know no positions.
    pub rope: Option<Rope>,
    /// What queries are multiplied by, by their positions.
    pub temperature: Option<Temperature>,
    /// How many positions a token sees at most, its own among them; `None`: all.
    pub window: Option<usize>,
    /// Whether what it sees begins at a multiple of that: chunks of the context, not a window that slides.
    pub chunked: bool,
    /// A score of each head that counts in the softmax and has no value. (n_head)
    pub sinks: Option<Tensor>,
    /// Scores are multiplied by this before the softmax.
    pub scale: f32,
    /// Then, scores are `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// What each head's result is multiplied by before the output matrix.
    pub gate: Option<Gate>,
    /// What chooses the positions that a token sees.
    pub indexer: Option<Indexer>,
}

/// What chooses the positions that a token sees in a long context (arXiv 2512.02556).
#[derive(Clone, Copy, Debug)]
pub struct Indexer {
    /// So many.
    pub top_k: TopK,
    /// What scores them. `None`: a token sees what it does in the attention before that has scores.
    pub own: Option<IndexScores>,
}

/// How many positions a token sees: whole blocks of tokens, and those behind the last whole block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopK {
    /// Positions, those behind the last whole block not among them.
    pub n: usize,
    /// Tokens of a block.
    pub each: usize,
}

impl TopK {
    /// Blocks that a token sees at most.
    pub fn blocks(self) -> usize {
        self.n / self.each
    }

    /// Whether the last of `len` tokens does not see all of them.
    pub fn leaves_out(self, len: usize) -> bool {
        len / self.each > self.blocks()
    }
}

/// Scores of blocks: the sum over heads of `weight · max(query · key, 0)`. Queries and keys rotate as the attention's do, from
/// their first elements on; a block of several tokens by the position of its first.
#[derive(Clone, Copy, Debug)]
pub struct IndexScores {
    /// Query heads; there is one key.
    pub n_head: usize,
    /// Elements of a query head and of a key.
    pub k: usize,
    /// Queries, of the short rows that a latent attention's come from, else of the attention's input. (n_head * k, inputs)
    pub q: Linear,
    /// Of each query head, before it rotates.
    pub q_norm: Option<Norm>,
    /// Keys.
    pub keys: IndexKeys,
    /// A weight of each head; `None`: 1. (n_head, n_embd)
    pub weights: Option<Linear>,
}

/// Where the keys of an indexer come from.
#[expect(clippy::large_enum_variant, reason = "a model has one per layer, and only while it is planned and loaded")]
#[derive(Clone, Copy, Debug)]
pub enum IndexKeys {
    /// A token has one: the product, normed. (k, n_embd)
    Tokens(Linear, Norm),
    /// A block has one.
    Blocks(Compressor),
}

impl IndexScores {
    pub(super) fn tensors(&self, all: &mut Vec<Tensor>) {
        [&self.q].into_iter().chain(&self.weights).for_each(|linear| linear.tensors(all));
        self.q_norm.iter().for_each(|norm| norm.tensors(all));
        match &self.keys {
            IndexKeys::Tokens(key, norm) => {
                key.tensors(all);
                norm.tensors(all);
            }
            IndexKeys::Blocks(compressor) => compressor.tensors(all),
        }
    }

    /// What makes keys of blocks, if tokens have none.
    pub fn compressor(&self) -> Option<&Compressor> {
        match &self.keys {
            IndexKeys::Tokens(..) => None,
            IndexKeys::Blocks(compressor) => Some(compressor),
        }
    }
}

/// Multi-head latent attention (arXiv 2405.04434): a token's keys and values are products with one short row, beside which
/// the part of the keys that rotates is the same for all heads.
#[derive(Clone, Copy, Debug)]
pub struct Latent {
    /// Elements of a latent row.
    pub rank: usize,
    /// Elements of a query or key head that do not rotate.
    pub nope: usize,
    /// Elements of a query or key head behind them, which rotate if anything does.
    pub rot: usize,
    /// Elements of a value head.
    pub v: usize,
    /// Where queries come from short rows, too: their product (rank of its own, n_embd), and their norm.
    pub q: Option<(Linear, Norm)>,
    /// Of a latent row.
    pub norm: Norm,
    /// What makes heads of it.
    pub up: Up,
}

/// From latent rows to heads.
#[derive(Clone, Copy, Debug)]
pub enum Up {
    /// Queries and results go through it: what is kept of a token is its latent row and its rotated part. A matrix of each
    /// head: (n_head, rank, nope), (n_head, v, rank)
    Absorbed([Tensor; 2]),
    /// Latent rows do: each head's keys and values are kept. (n_head * (nope + v), rank)
    Expanded(Linear),
}

impl Latent {
    /// Elements of a query or key head.
    pub fn k(&self) -> usize {
        self.nope + self.rot
    }

    /// Heads as the attention has them.
    pub fn heads(&self, n_head: usize) -> Heads {
        match self.up {
            Up::Absorbed(_) => Heads { n_head, n_head_kv: 1, k: self.rank + self.rot, v: self.rank },
            Up::Expanded(_) => Heads { n_head, n_head_kv: n_head, k: self.k(), v: self.v },
        }
    }

    fn tensors(&self, all: &mut Vec<Tensor>) {
        if let Some((linear, norm)) = &self.q {
            linear.tensors(all);
            norm.tensors(all);
        }
        self.norm.tensors(all);
        match &self.up {
            Up::Absorbed(tensors) => all.extend(tensors),
            Up::Expanded(linear) => linear.tensors(all),
        }
    }
}

/// A factor of a query at `pos`: `1 + scale * ln(1 + (pos + offset) / length)`, in whole lengths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// See above.
    pub scale: f32,
    /// Positions of a step.
    pub length: usize,
    /// See above.
    pub offset: usize,
}

impl Temperature {
    /// The factor at a position.
    pub fn at(&self, pos: usize) -> f32 {
        let steps = (pos + self.offset) / self.length;
        1.0 + self.scale * (1.0 + steps as f32).ln()
    }
}

/// A gate on what an attention gives: `act(w · x)`, of the attention's input.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// One output for each head, or for each element of a head. (n_head or n_head * v, n_embd)
    pub w: Linear,
    /// What its outputs go through.
    pub act: GateAct,
}

/// What a gate's outputs go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateAct {
    /// Logistic function.
    Sigmoid,
    /// `ln(1 + exp(x))`.
    Softplus,
    /// `x` times its logistic function.
    Silu,
}

/// Heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Elements of a query or key head.
    pub k: usize,
    /// Elements of a value head.
    pub v: usize,
}

/// Rotary position embedding (Su et al., arXiv 2104.09864).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Which elements make a pair.
    pub kind: RopeKind,
    /// Elements of a head that rotate, from the first on.
    pub n_rot: usize,
    /// Base of the frequencies.
    pub base: f32,
    /// Positions are multiplied by this.
    pub scale: f32,
    /// Divisors of the frequencies. (n_rot / 2)
    pub divisors: Option<Tensor>,
    /// Others for long sequences.
    pub long: Option<LongRope>,
    /// Which frequencies the scale is for; `None`: all.
    pub yarn: Option<Yarn>,
    /// Cosines and sines are multiplied by this.
    pub magnitude: f32,
}

/// Divisors of frequencies in long sequences (LongRoPE, arXiv 2402.13753).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LongRope {
    /// (n_rot / 2)
    pub divisors: Tensor,
    /// For sequences that have room for more tokens than this.
    pub n_ctx: usize,
}

/// YaRN (arXiv 2309.00071): pairs that turn often within the context of training keep their frequency, pairs that turn
/// less than once get the scaled one, those in between a mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// The context of training, in tokens, before it was extended.
    pub n_ctx: usize,
    /// Turns within it from which on a pair keeps its frequency.
    pub beta_fast: f32,
    /// Turns within it up to which a pair gets the scaled one.
    pub beta_slow: f32,
}

impl Yarn {
    /// The same, with another `beta_fast` where the file has none.
    ///
    /// # Errors
    /// If it has one that does not make sense.
    pub fn faster_by_default(self, m: &Reader<'_>, beta_fast: f32) -> Result<Self> {
        let said = m.factor("rope.scaling.yarn_beta_fast")?;
        Ok(Self { beta_fast: said.unwrap_or(beta_fast), ..self })
    }
}

impl Gqa {
    /// Elements of the value heads that are kept beside keys: none where values are the beginning of keys.
    pub fn kept_v(&self) -> usize {
        if self.latent.is_some_and(|latent| matches!(latent.up, Up::Absorbed(_))) { 0 } else { self.heads.v }
    }

    pub(super) fn tensors(&self, all: &mut Vec<Tensor>) {
        let linears =
            [&self.q, &self.k, &self.o].into_iter().chain(&self.v).chain(self.gate.as_ref().map(|gate| &gate.w));
        linears.for_each(|linear| linear.tensors(all));
        self.latent.iter().for_each(|latent| latent.tensors(all));
        self.indexer.and_then(|indexer| indexer.own).iter().for_each(|scores| scores.tensors(all));
        self.qk_norm.iter().flatten().chain(&self.v_norm).for_each(|norm| norm.tensors(all));
        if let Some(rope) = &self.rope {
            all.extend(rope.divisors.into_iter().chain(rope.long.map(|long| long.divisors)));
        }
        all.extend(self.sinks);
    }
}
