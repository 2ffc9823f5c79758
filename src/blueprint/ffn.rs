//! Feed-forward networks: those that every token takes, routed experts, and what chooses among them.

use super::{Act, ExpertSet, Linear, Norm, Tensor};

/// A feed-forward network: `down(act(gate x) * up x)`, or `down(act(up x))` without a gate.
#[derive(Clone, Copy, Debug)]
pub struct Gated {
    /// What lies between.
    pub act: Act,
    /// (n_ff, n_embd)
    pub gate: Option<Tensor>,
    /// (n_ff, n_embd)
    pub up: Tensor,
    /// (n_embd, n_ff)
    pub down: Tensor,
}

impl Gated {
    /// Width of the hidden layer.
    pub fn n_ff(&self) -> usize {
        self.up.rows
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
    /// What makes rows of their width of the residual stream's, and of their sum one of that, where it is another. (latent,
    /// n_embd), (n_embd, latent)
    pub latent: Option<[Linear; 2]>,
    /// Whether an expert's weight multiplies its input, not its output.
    pub weighs_input: bool,
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
    /// The experts of each token of the vocabulary, whatever their scores: numbers. (n_vocab, n_expert_used)
    pub by_token: Option<Tensor>,
    /// How it chooses.
    pub choice: Choice,
}

/// What a router sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RouterInput {
    /// What the experts see.
    Normed,
    /// The residual stream as the layer begins, before its attention.
    LayerInput,
    /// The residual stream as the block begins, with a norm of its own.
    Own(Norm),
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
    /// Which experts stand for choice at all.
    pub groups: Option<Groups>,
}

/// Groups of experts at most: models have 4 or 8.
pub const MAX_GROUPS: usize = 64;

/// Experts in groups of equal size, of which only some stand for choice (arXiv 2412.19437): those whose two best scores,
/// biased, have the largest sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// How many there are; divides the number of experts.
    pub n: usize,
    /// How many of them stand for choice.
    pub n_used: usize,
}

/// How a router's outputs become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each.
    Sigmoid,
    /// Root of `ln(1 + exp(x))` of each.
    SqrtSoftplus,
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

impl Gated {
    pub(super) fn tensors(&self, all: &mut Vec<Tensor>) {
        all.extend(self.gate);
        all.extend([self.up, self.down]);
    }
}

impl Moe {
    /// Width of what experts read and give, where the residual stream has `n_embd`.
    pub fn width(&self, n_embd: usize) -> usize {
        self.latent.map_or(n_embd, |[down, _]| down.w.rows)
    }

    pub(super) fn dense_tensors(&self, all: &mut Vec<Tensor>) {
        self.router.w.tensors(all);
        if let RouterInput::Own(norm) = &self.router.input {
            norm.tensors(all);
        }
        all.extend(self.router.select_bias);
        self.latent.iter().flatten().for_each(|linear| linear.tensors(all));
        all.extend(self.router.by_token);
        all.extend(self.scales.iter().chain(&self.biases).flatten());
        if let Some(shared) = &self.shared {
            shared.ffn.tensors(all);
            all.extend(shared.gate);
        }
    }
}
