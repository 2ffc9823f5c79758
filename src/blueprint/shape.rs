//! The figures of a model by its keys and its tensors' names alone: what can be told of a file that does not run.

use super::{Reader, Role};
use crate::{
    Result,
    gguf::{Gguf, TensorInfo},
};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Layers.
    pub n_layer: usize,
    /// Layers with experts.
    pub n_moe: usize,
    /// Layers with an expert that every token uses.
    pub n_shared: usize,
    /// Routed experts of each.
    pub n_expert: usize,
    /// Experts used per token.
    pub n_expert_used: usize,
    /// The longest context that the model was trained for, in tokens.
    pub n_ctx_train: usize,
    /// Entries of the vocabulary.
    pub n_vocab: usize,
    /// Parameters that one token is multiplied with: of a token embedding of its own, it takes a row, of n-grams a few.
    pub active_parameters: u64,
}

impl Shape {
    /// # Errors
    /// A key that is missing or does not make sense.
    pub(super) fn new(m: &Reader<'_>) -> Result<Self> {
        let gguf = m.gguf();
        let by_layer = m.experts_used_by_layer()?;
        let n_expert_used = m.within("expert_used_count", by_layer.iter().copied().max().unwrap_or(0), m.n_expert)?;
        let tied = gguf.tensors().iter().all(|t| Role::of(&t.name) != Role::Output);
        let (experts, rows) = (elements(gguf, Role::is_routed_expert), elements(gguf, |role| role == Role::Embedding));
        let of_a_token = |t: &TensorInfo| {
            let layer = t.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse().ok());
            let used = layer.and_then(|layer: usize| by_layer.get(layer).copied()).unwrap_or(n_expert_used);
            (u128::from(t.elements()) * used as u128 / m.n_expert as u128) as u64
        };
        let routed = gguf.tensors().iter().filter(|t| Role::of(&t.name).is_routed_expert());
        let used = routed.map(of_a_token).fold(0, u64::saturating_add);
        let n_grams = elements(gguf, |role| role == Role::NGrams);
        let unused = experts.saturating_add(if tied { 0 } else { rows }).saturating_add(n_grams);
        Ok(Self {
            n_layer: m.n_layer,
            n_moe: (0..m.n_layer).filter(|&layer| m.layer(layer).is_moe()).count(),
            n_shared: (0..m.n_layer).filter(|&layer| m.layer(layer).has("ffn_up_shexp.weight")).count(),
            n_expert: m.n_expert,
            n_expert_used,
            n_ctx_train: m.n_ctx_train()?,
            n_vocab: m.n_vocab()?,
            active_parameters: elements(gguf, |_| true).saturating_sub(unused).saturating_add(used),
        })
    }
}

/// Elements of the tensors of some roles.
pub fn elements(gguf: &Gguf, of: impl Fn(Role) -> bool) -> u64 {
    let tensors = gguf.tensors().iter().filter(|t| of(Role::of(&t.name)));
    tensors.map(|t| t.elements()).fold(0, u64::saturating_add)
}
