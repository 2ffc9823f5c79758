//! What a model is, as data: a pure function of a file's metadata and tensor table.
//!
//! A [`Blueprint`] names every tensor that a run touches, with its checked shape and type, and says what is computed
//! with it. The loader, the expert index, plans, `inspect` and `repack` read it; nothing else knows a tensor's name. It
//! needs no weights and no memory, so the first megabytes of a download are enough to plan a run.
//!
//! Names are GGUF's own: `n_embd`, `n_head_kv`, `n_expert_used`.
//!
//! Must not know: bytes of weights, caches, threads.

mod attention;
mod compressed;
mod experts;
mod ffn;
mod heads;
mod hyper;
mod indexer;
mod kda;
mod kind;
mod layer;
mod ngram;
mod reader;
mod recurrent;
mod role;
mod shape;
mod state;
mod ungated;
mod unread;

pub use crate::backend::{Act, RopeKind};
pub use attention::{
    Gate, GateAct, Gqa, Heads, IndexKeys, IndexScores, Indexer, Latent, LongRope, Rope, Temperature, TopK, Up, Yarn,
};
pub use compressed::{BlockScore, Blocks, Compressed, CompressedShape, Compressor};
pub use experts::{ExpertSet, ExpertTensors, single_name};
pub use ffn::{Choice, Gated, Groups, MAX_GROUPS, Moe, Router, RouterInput, Score, Shared};
pub use heads::{FullLayers, LatentSizes};
pub use hyper::{Connection, GatedStreams, MAX_STREAMS, MixedStreams, Mixture};
pub use indexer::IndexerSizes;
pub use kind::Kind;
pub use layer::LayerReader;
pub use ngram::{MAX_TOKENS, NGram, NGramTable};
pub use reader::Reader;
pub use recurrent::{Conv, Decay, DeltaNet, KeyHeads, LowRank, Mamba2, Rates, ShortConv};
pub use role::Role;
pub use shape::{Shape, elements};
pub use state::{IndexRows, State};
pub use unread::Unread;

use crate::quant::GgmlType;

/// A tensor of the file, or some rows of one, its shape and type checked against what is computed with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tensor {
    /// Row of the file's tensor table.
    pub index: usize,
    /// Bytes of the file's tensor before it: several matrices may be fused into one.
    pub start: u64,
    /// Element type, one that hotset computes with.
    pub ty: GgmlType,
    /// Outputs; 1 for a vector. Of stacked experts: of one expert.
    pub rows: usize,
    /// Inputs, or a vector's elements.
    pub cols: usize,
    /// Of all of it.
    pub bytes: u64,
    /// Which rows of the file's tensor, from `start` on: the first of each group. `None`: all, one after another.
    pub groups: Option<RowGroups>,
}

/// Rows that are the first of each group of a larger matrix's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowGroups {
    /// Rows that are taken of each.
    pub take: usize,
    /// Rows of a group.
    pub of: usize,
}

impl Tensor {
    /// Rows `range` of it.
    pub(crate) fn slice(&self, range: std::ops::Range<usize>) -> Tensor {
        let row = (self.cols / self.ty.block_len() * self.ty.block_bytes()) as u64;
        let (start, bytes) = (self.start + range.start as u64 * row, range.len() as u64 * row);
        Tensor { start, bytes, rows: range.len(), ..*self }
    }

    /// Rows `range` of each group of `of` rows.
    pub(crate) fn each(&self, range: std::ops::Range<usize>, of: usize) -> Tensor {
        let rows = self.rows / of * range.len();
        let first = self.slice(range.start..range.start + rows);
        Tensor { groups: Some(RowGroups { take: range.len(), of }), ..first }
    }

    /// Elements `range` of a vector.
    pub(crate) fn elements(&self, range: std::ops::Range<usize>) -> Tensor {
        let column = Tensor { rows: self.cols, cols: 1, ..*self }.slice(range);
        Tensor { rows: 1, cols: column.rows, ..column }
    }
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

/// `x / sqrt(mean(x²) + eps) * weight + bias`, where a layer norm subtracts x's mean first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// As wide as what it norms. `None`: 1.
    pub weight: Option<Tensor>,
    /// What is added. (cols)
    pub bias: Option<Tensor>,
    /// Width of what it norms.
    pub cols: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// Weights are multiplied by this.
    pub scale: f32,
}

impl Norm {
    fn tensors(&self, all: &mut Vec<Tensor>) {
        all.extend(self.weight);
        all.extend(self.bias);
    }
}

/// Kinds of [`Norm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square (arXiv 1910.07467).
    Rms,
    /// Of what deviates from the mean (arXiv 1607.06450).
    Layer,
}

/// A model.
#[derive(Clone, Debug)]
pub struct Blueprint {
    /// `general.architecture`.
    pub arch: &'static str,
    /// Layers.
    pub n_layer: usize,
    /// Width of a residual stream.
    pub n_embd: usize,
    /// Residual streams of a token: more than one where blocks have a [`Connection`]. All begin as the embedding.
    pub n_stream: usize,
    /// Entries of the vocabulary.
    pub n_vocab: usize,
    /// The longest context that the model was trained for, or that it is computed for, in tokens.
    pub n_ctx_train: usize,
    /// Why it is not computed for a longer one, or empty.
    pub context_limit: &'static str,
    /// Routed experts of each MoE layer.
    pub n_expert: usize,
    /// The token embedding, of which a token needs one row. (n_vocab, n_embd)
    pub embed: Tensor,
    /// The embedding's rows are multiplied by this.
    pub embed_scale: f32,
    /// A table of n-grams, of which a token needs some rows.
    pub ngrams: Option<NGramTable>,
    /// What is added to the residual stream, in order.
    pub blocks: Vec<Block>,
    /// What makes logits of it.
    pub head: Head,
    /// What the file has beside that, and why that changes nothing.
    pub unread: Vec<Unread>,
}

/// One residual step: `x = scale · (x + post(Σ branch(x)))`. A usual layer is two of them of one branch each, attention and
/// feed-forward.
#[derive(Clone, Debug)]
pub struct Block {
    /// The layer it belongs to: N of `blk.N`.
    pub layer: usize,
    /// What it reads of several residual streams, and how it adds to them. `None`: there is one, or the part knows itself.
    pub connection: Option<Connection>,
    /// What is computed of the residual stream as it is before the block. Attention comes first.
    pub branches: Vec<Branch>,
    /// Of the branches' sum.
    pub post: Option<Norm>,
    /// The residual stream is multiplied by this afterwards. (1)
    pub scale: Option<Tensor>,
}

/// One part of a block: `scale · post(part(norm(x)))`.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Of the part's input. `None`: what the branch before has as its input, and in the first one the block's input as it is.
    pub norm: Option<Norm>,
    /// What is computed.
    pub part: Part,
    /// Of what it gives.
    pub post: Option<Norm>,
    /// What is added is multiplied by this.
    pub scale: f32,
}

impl Branch {
    /// Whether what it gives is not added as it is.
    pub fn has_sum(&self) -> bool {
        self.post.is_some() || self.scale != 1.0
    }
}

impl Block {
    /// Whether what its branches give is not added to the residual stream one after another.
    pub fn has_sum(&self) -> bool {
        self.post.is_some() || self.branches.len() > 1 || self.connection.is_some()
    }

    /// The same block between several residual streams.
    pub fn connected(self, connection: Connection) -> Self {
        Self { connection: Some(connection), ..self }
    }

    /// The same block, with its sum normed.
    pub fn post(self, norm: Norm) -> Self {
        Self { post: Some(norm), ..self }
    }

    /// The same block, with what it adds multiplied by `scale`.
    pub fn scaled(mut self, scale: f32) -> Self {
        self.branches.iter_mut().for_each(|branch| branch.scale *= scale);
        self
    }

    /// The same block, with a second branch that reads what the first one does.
    pub fn beside(mut self, part: Part, scale: f32) -> Self {
        self.branches.push(Branch { norm: None, part, post: None, scale });
        self
    }

    fn tensors(&self, all: &mut Vec<Tensor>) {
        for branch in &self.branches {
            branch.norm.iter().chain(&branch.post).for_each(|norm| norm.tensors(all));
            match &branch.part {
                Part::Gqa(gqa) => gqa.tensors(all),
                Part::Compressed(part) => part.tensors(all),
                Part::DeltaNet(net) => net.tensors(all),
                Part::Mamba2(mamba) => mamba.tensors(all),
                Part::ShortConv(conv) => conv.tensors(all),
                Part::NGram(ngram) => ngram.tensors(all),
                Part::Dense(ffn) => ffn.tensors(all),
                Part::Moe(moe) => moe.dense_tensors(all),
            }
        }
        self.post.iter().for_each(|norm| norm.tensors(all));
        self.connection.iter().for_each(|connection| connection.tensors(all));
        all.extend(self.scale);
    }
}

/// What a block computes.
#[expect(clippy::large_enum_variant, reason = "a model has one per layer, and only while it is planned and loaded")]
#[derive(Clone, Debug)]
pub enum Part {
    /// Attention.
    Gqa(Box<Gqa>),
    /// Attention over compressed blocks.
    Compressed(Box<Compressed>),
    /// A gated delta rule.
    DeltaNet(DeltaNet),
    /// A selective state space.
    Mamba2(Mamba2),
    /// A short gated convolution.
    ShortConv(ShortConv),
    /// A memory of n-grams, which reads all residual streams and adds to all of them.
    NGram(NGram),
    /// A feed-forward network that every token takes.
    Dense(Gated),
    /// Routed experts.
    Moe(Box<Moe>),
}

impl Part {
    /// Attention.
    pub fn gqa(gqa: Gqa) -> Part {
        Part::Gqa(Box::new(gqa))
    }

    /// Routed experts.
    pub fn moe(moe: Moe) -> Part {
        Part::Moe(Box::new(moe))
    }
}

/// From the residual stream to logits.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// What it reads of several residual streams.
    pub connection: Option<Connection>,
    /// Of what it reads. `None`: that is normed already.
    pub norm: Option<Norm>,
    /// (n_vocab, n_embd)
    pub output: Linear,
    /// Logits are multiplied by this.
    pub scale: f32,
    /// Then, logits are `cap * tanh(logits / cap)`.
    pub soft_cap: Option<f32>,
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
    /// Everything that is computed, in order.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.blocks.iter().flat_map(|block| &block.branches).map(|branch| &branch.part)
    }

    /// The MoE layers in order.
    pub fn moe(&self) -> impl Iterator<Item = &Moe> {
        self.parts().filter_map(|part| if let Part::Moe(moe) = part { Some(&**moe) } else { None })
    }

    /// The experts of the MoE layers in order.
    pub fn experts(&self) -> impl Iterator<Item = &ExpertSet> {
        self.moe().map(|moe| &moe.experts)
    }

    /// The attentions in order.
    pub fn attentions(&self) -> impl Iterator<Item = &Gqa> {
        self.parts().filter_map(|part| if let Part::Gqa(gqa) = part { Some(&**gqa) } else { None })
    }

    /// What is wrong with a context of `n` tokens, for people.
    pub fn context_error(&self, n: usize) -> String {
        let said = format!("context length {n} exceeds the model's maximum of {}", self.n_ctx_train);
        if self.context_limit.is_empty() { said } else { format!("{said}: {}", self.context_limit) }
    }

    /// The same model for sequences of up to `n_ctx` tokens: some rotate by other divisors in long ones.
    pub fn for_context(mut self, n_ctx: usize) -> Self {
        for branch in self.blocks.iter_mut().flat_map(|block| &mut block.branches) {
            if let Part::Gqa(gqa) = &mut branch.part
                && let Some(rope) = &mut gqa.rope
                && let Some(long) = rope.long.take()
                && n_ctx > long.n_ctx
            {
                rope.divisors = Some(long.divisors);
            }
        }
        self
    }

    /// The different rotations of its attentions.
    pub fn ropes(&self) -> Vec<Rope> {
        let mut ropes = Vec::new();
        let of = |part: &Part| match part {
            Part::Gqa(gqa) => gqa.rope,
            Part::Compressed(part) => Some(part.rope),
            _ => None,
        };
        for rope in self.parts().filter_map(of) {
            if !ropes.contains(&rope) {
                ropes.push(rope);
            }
        }
        ropes
    }

    /// The attentions over compressed blocks, in order.
    pub fn compressed(&self) -> impl Iterator<Item = &Compressed> {
        self.parts().filter_map(|part| if let Part::Compressed(part) = part { Some(&**part) } else { None })
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
        let of = |part: &Part| match part {
            Part::Dense(ffn) => ffn.n_ff(),
            Part::Moe(moe) => moe.experts.n_ff.max(moe.shared.map_or(0, |shared| shared.ffn.n_ff())),
            _ => 0,
        };
        self.parts().map(of).max().unwrap_or(0)
    }

    /// Bytes of the dense weights in memory, each in pages of its own.
    pub fn resident_bytes(&self) -> u64 {
        self.dense_tensors().iter().map(|t| t.bytes.next_multiple_of(4096)).sum()
    }

    /// What a token touches of each type: the dense weights and its share of the routed experts.
    pub fn touched(&self) -> Vec<Touched> {
        let all = |t: Tensor| (t, 1.0);
        // Which experts a token takes is looked up, not computed.
        let dense = self.dense_tensors().into_iter().filter(|t| t.ty.is_computable());
        let used = |moe: &Moe| moe.router.choice.n_expert_used as f64 / self.n_expert as f64;
        let experts = self.moe().flat_map(|moe| moe.experts.tensors().iter().map(move |&t| (t, used(moe))));
        let mut tensors: Vec<_> = dense.map(all).chain(experts).collect();
        tensors.sort_unstable_by_key(|(t, _)| (t.index, t.start));
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

    /// Every tensor that stays in memory, once each: all but the routed experts, but a table of n-grams, and but the token
    /// embedding where the output matrix is another.
    pub fn dense_tensors(&self) -> Vec<Tensor> {
        let mut all = Vec::new();
        self.blocks.iter().for_each(|block| block.tensors(&mut all));
        self.head.norm.iter().for_each(|norm| norm.tensors(&mut all));
        self.head.connection.iter().for_each(|connection| connection.tensors(&mut all));
        self.head.output.tensors(&mut all);
        // Layers may share a tensor, as they do `rope_freqs.weight`.
        all.sort_unstable_by_key(|t| (t.index, t.start));
        all.dedup_by_key(|t| (t.index, t.start));
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
