//! What a model is, as data: a pure function of a file's metadata and tensor table.
//!
//! A [`Blueprint`] names every tensor that a run touches, with its checked shape and type, and says what is computed
//! with it. The loader, the expert index, plans, `inspect` and `repack` read it; nothing else knows a tensor's name. It
//! needs no weights and no memory, so the first megabytes of a download are enough to plan a run.
//!
//! Names are GGUF's own: `n_embd`, `n_head_kv`, `n_expert_used`.
//!
//! Must not know: bytes of weights, caches, threads.

mod experts;
mod reader;
mod role;
mod shape;
mod unread;

pub use crate::backend::{Act, RopeKind};
pub use experts::{ExpertSet, ExpertTensors, single_name};
pub use reader::{LayerReader, Reader};
pub use role::Role;
pub use shape::{Shape, elements};
pub use unread::Unread;

use crate::quant::GgmlType;

/// A tensor of the file, its shape and type checked against what is computed with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tensor {
    /// Row of the file's tensor table.
    pub index: usize,
    /// Element type, one that hotset computes with.
    pub ty: GgmlType,
    /// Outputs; 1 for a vector. Of stacked experts: of one expert.
    pub rows: usize,
    /// Inputs, or a vector's elements.
    pub cols: usize,
    /// Of the whole tensor.
    pub bytes: u64,
}

/// A product with a matrix, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// (outputs, inputs)
    pub w: Tensor,
    /// What the product is multiplied by: a file of NVFP4 has its blocks' scales relative to it. (1)
    pub scale: Option<Tensor>,
    /// What is added then. (outputs)
    pub bias: Option<Tensor>,
}

/// RMS norm: `x / sqrt(mean(x²) + eps) * weight`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// As wide as what it norms.
    pub weight: Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

/// A model.
#[derive(Clone, Debug)]
pub struct Blueprint {
    /// `general.architecture`.
    pub arch: &'static str,
    /// Layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Entries of the vocabulary.
    pub n_vocab: usize,
    /// The longest context that the model was trained for, in tokens.
    pub n_ctx_train: usize,
    /// Routed experts of each MoE layer.
    pub n_expert: usize,
    /// The token embedding, of which a token needs one row. (n_vocab, n_embd)
    pub embed: Tensor,
    /// What is added to the residual stream, in order.
    pub blocks: Vec<Block>,
    /// What makes logits of it.
    pub head: Head,
    /// What the file has beside that, and why that changes nothing.
    pub unread: Vec<Unread>,
}

/// One residual step: `x += part(norm(x))`. A usual layer is two of them, attention and feed-forward.
#[derive(Clone, Debug)]
pub struct Block {
    /// The layer it belongs to: N of `blk.N`.
    pub layer: usize,
    /// Of the part's input.
    pub norm: Norm,
    /// What is computed.
    pub part: Part,
}

/// What a block computes.
#[derive(Clone, Debug)]
pub enum Part {
    /// Attention.
    Gqa(Gqa),
    /// A feed-forward network that every token takes.
    Dense(Gated),
    /// Routed experts.
    Moe(Moe),
}

/// Causal grouped-query attention.
#[derive(Clone, Debug)]
pub struct Gqa {
    /// Their numbers and sizes.
    pub heads: Heads,
    /// Queries. (n_head * k, n_embd)
    pub q: Linear,
    /// Keys. (n_head_kv * k, n_embd)
    pub k: Linear,
    /// Values. (n_head_kv * v, n_embd)
    pub v: Linear,
    /// Output. (n_embd, n_head * v)
    pub o: Linear,
    /// Norms of queries and keys before the rotation. Their width says whether they are of each head or of all at once.
    pub qk_norm: Option<[Norm; 2]>,
    /// Of queries and keys; `None`: they know no positions.
    pub rope: Option<Rope>,
    /// How many positions a token sees at most, its own among them; `None`: all.
    pub window: Option<usize>,
    /// A score of each head that counts in the softmax and has no value. (n_head)
    pub sinks: Option<Tensor>,
    /// Scores are multiplied by this before the softmax.
    pub scale: f32,
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
    /// Which frequencies the scale is for; `None`: all.
    pub yarn: Option<Yarn>,
    /// Cosines and sines are multiplied by this.
    pub magnitude: f32,
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

/// A gated feed-forward network: `down(act(gate x) * up x)`.
#[derive(Clone, Copy, Debug)]
pub struct Gated {
    /// What lies between.
    pub act: Act,
    /// (n_ff, n_embd)
    pub gate: Tensor,
    /// (n_ff, n_embd)
    pub up: Tensor,
    /// (n_embd, n_ff)
    pub down: Tensor,
}

impl Gated {
    /// Width of the hidden layer.
    pub fn n_ff(&self) -> usize {
        self.gate.rows
    }
}

/// Routed experts, and one that every token uses.
#[derive(Clone, Debug)]
pub struct Moe {
    /// Who chooses.
    pub router: Router,
    /// Among whom.
    pub experts: ExpertSet,
    /// What lies between their matrices.
    pub act: Act,
    /// What their products with gate, up and down are multiplied by. (n_expert) each
    pub scales: [Option<Tensor>; 3],
    /// What is added to them then. (n_expert, n_ff), (n_expert, n_ff), (n_expert, n_embd)
    pub biases: [Option<Tensor>; 3],
    /// The expert that every token uses.
    pub shared: Option<Shared>,
}

/// What chooses the experts of a token.
#[derive(Clone, Copy, Debug)]
pub struct Router {
    /// (n_expert, n_embd)
    pub w: Linear,
    /// What it sees.
    pub input: RouterInput,
    /// Added to scores where experts are compared, not where they are weighted. (n_expert)
    pub select_bias: Option<Tensor>,
    /// How it chooses.
    pub choice: Choice,
}

/// What a router sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterInput {
    /// What the experts see.
    Normed,
    /// The residual stream as the layer begins, before its attention.
    LayerInput,
}

/// How experts and their weights follow from a router's outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// How its outputs become scores.
    pub score: Score,
    /// Experts used per token.
    pub n_expert_used: usize,
    /// Whether the weights of the experts used are scaled to sum to 1.
    pub renormalise: bool,
    /// Weights are multiplied by this.
    pub scale: f32,
}

/// How a router's outputs become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each.
    Sigmoid,
    /// The outputs themselves; weights are a softmax over those chosen.
    SoftmaxOfChosen,
}

/// The expert that every token uses.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// Its network.
    pub ffn: Gated,
    /// Its weight: sigmoid of the product with the input. (1, n_embd)
    pub gate: Option<Tensor>,
}

/// From the residual stream to logits.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Of the residual stream.
    pub norm: Norm,
    /// (n_vocab, n_embd)
    pub output: Linear,
    /// Whether the output matrix is the token embedding.
    pub tied: bool,
}

/// Weights of one type that a token touches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Touched {
    /// The type.
    pub ty: GgmlType,
    /// In all.
    pub bytes: f64,
    /// Of so many tensors.
    pub tensors: f64,
}

impl Blueprint {
    /// The MoE layers in order.
    pub fn moe(&self) -> impl Iterator<Item = &Moe> {
        self.blocks.iter().filter_map(|b| if let Part::Moe(moe) = &b.part { Some(moe) } else { None })
    }

    /// The experts of the MoE layers in order.
    pub fn experts(&self) -> impl Iterator<Item = &ExpertSet> {
        self.moe().map(|moe| &moe.experts)
    }

    /// The attentions in order.
    pub fn attentions(&self) -> impl Iterator<Item = &Gqa> {
        self.blocks.iter().filter_map(|b| if let Part::Gqa(gqa) = &b.part { Some(gqa) } else { None })
    }

    /// The different rotations of its attentions.
    pub fn ropes(&self) -> Vec<Rope> {
        let mut ropes = Vec::new();
        for gqa in self.attentions() {
            ropes.extend(gqa.rope.filter(|rope| !ropes.contains(rope)));
        }
        ropes
    }

    /// Number of MoE layers.
    pub fn n_moe(&self) -> usize {
        self.moe().count()
    }

    /// Experts used per token: the most of any layer.
    pub fn n_expert_used(&self) -> usize {
        self.moe().map(|moe| moe.router.choice.n_expert_used).max().unwrap_or(0)
    }

    /// The widest hidden layer of any feed-forward network.
    pub fn n_ff(&self) -> usize {
        let of = |block: &Block| match &block.part {
            Part::Gqa(_) => 0,
            Part::Dense(ffn) => ffn.n_ff(),
            Part::Moe(moe) => moe.experts.n_ff.max(moe.shared.map_or(0, |shared| shared.ffn.n_ff())),
        };
        self.blocks.iter().map(of).max().unwrap_or(0)
    }

    /// Bytes of the dense weights in memory, each in pages of its own.
    pub fn resident_bytes(&self) -> u64 {
        self.dense_tensors().iter().map(|t| t.bytes.next_multiple_of(4096)).sum()
    }

    /// What a token touches of each type: the dense weights and its share of the routed experts.
    pub fn touched(&self) -> Vec<Touched> {
        let all = |t: Tensor| (t, 1.0);
        let used = |moe: &Moe| moe.router.choice.n_expert_used as f64 / self.n_expert as f64;
        let experts = self.moe().flat_map(|moe| moe.experts.tensors().iter().map(move |&t| (t, used(moe))));
        let mut tensors: Vec<_> = self.dense_tensors().into_iter().map(all).chain(experts).collect();
        tensors.sort_unstable_by_key(|(t, _)| t.index);
        let mut types: Vec<Touched> = Vec::new();
        for (t, share) in tensors {
            let at = types.iter().position(|known| known.ty == t.ty).unwrap_or_else(|| {
                types.push(Touched { ty: t.ty, bytes: 0.0, tensors: 0.0 });
                types.len() - 1
            });
            types[at].bytes += t.bytes as f64 * share;
            types[at].tensors += 1.0;
        }
        types
    }

    /// Every tensor that stays in memory, once each: all but the routed experts, and but the token embedding where the
    /// output matrix is another.
    pub fn dense_tensors(&self) -> Vec<Tensor> {
        let mut all = Vec::new();
        for block in &self.blocks {
            all.push(block.norm.weight);
            match &block.part {
                Part::Gqa(gqa) => gqa.tensors(&mut all),
                Part::Dense(ffn) => ffn.tensors(&mut all),
                Part::Moe(moe) => moe.dense_tensors(&mut all),
            }
        }
        all.push(self.head.norm.weight);
        self.head.output.tensors(&mut all);
        // Layers may share a tensor, as they do `rope_freqs.weight`.
        all.sort_unstable_by_key(|t| t.index);
        all.dedup_by_key(|t| t.index);
        all
    }
}

impl Linear {
    fn tensors(&self, all: &mut Vec<Tensor>) {
        all.push(self.w);
        all.extend(self.scale);
        all.extend(self.bias);
    }
}

impl Gqa {
    fn tensors(&self, all: &mut Vec<Tensor>) {
        [&self.q, &self.k, &self.v, &self.o].into_iter().for_each(|linear| linear.tensors(all));
        all.extend(self.qk_norm.iter().flatten().map(|norm| norm.weight));
        all.extend(self.rope.and_then(|rope| rope.divisors));
        all.extend(self.sinks);
    }
}

impl Gated {
    fn tensors(&self, all: &mut Vec<Tensor>) {
        all.extend([self.gate, self.up, self.down]);
    }
}

impl Moe {
    fn dense_tensors(&self, all: &mut Vec<Tensor>) {
        self.router.w.tensors(all);
        all.extend(self.router.select_bias);
        all.extend(self.scales.iter().chain(&self.biases).flatten());
        if let Some(shared) = &self.shared {
            shared.ffn.tensors(all);
            all.extend(shared.gate);
        }
    }
}
