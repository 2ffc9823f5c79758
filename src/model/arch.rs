//! What differs between architectures, one row each. A new architecture of this family (pre-norm, grouped-query
//! attention, gated FFN experts) is a new row; what a row does not say is read from the file: biases, a shared expert, a
//! head of its own and rotation factors are there exactly when their tensors are.
//!
//! Sources: the papers, and the tensor lists that llama.cpp's loader asks for.

pub use crate::backend::RopeKind;

/// RMS norm of queries and keys before the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    Off,
    /// Over each head; weights of head size.
    Head,
    /// Over all heads at once; weights of the whole projection's size.
    Whole,
}

/// One architecture.
#[derive(Debug)]
pub struct Arch {
    /// `general.architecture`.
    pub name: &'static str,
    /// Rotation layout.
    pub rope: RopeKind,
    /// Query and key norms.
    pub qk_norm: QkNorm,
    /// Whether the weights of the experts used are scaled to sum to 1.
    pub renormalise: bool,
    /// Whether there is a shared expert behind a sigmoid gate; without, there may be one that has no gate.
    pub shared_gate: bool,
}

/// Every architecture that hotset runs.
pub const ARCHS: &[Arch] = &[
    // Mixtral (arXiv 2401.04088): `llama` with experts.
    Arch { name: "llama", rope: RopeKind::Interleaved, qk_norm: QkNorm::Off, renormalise: true, shared_gate: false },
    // OLMoE (arXiv 2409.02060).
    Arch { name: "olmoe", rope: RopeKind::Halves, qk_norm: QkNorm::Whole, renormalise: false, shared_gate: false },
    // Qwen1.5-MoE, Qwen2-57B-A14B (arXiv 2407.10671): a shared expert behind a sigmoid gate, query/key/value biases.
    Arch { name: "qwen2moe", rope: RopeKind::Halves, qk_norm: QkNorm::Off, renormalise: false, shared_gate: true },
    // Qwen3-30B-A3B, Qwen3-235B-A22B (arXiv 2505.09388).
    Arch { name: "qwen3moe", rope: RopeKind::Halves, qk_norm: QkNorm::Head, renormalise: true, shared_gate: false },
];

/// The architecture of that name.
pub fn find(name: &str) -> Option<&'static Arch> {
    ARCHS.iter().find(|a| a.name == name)
}
