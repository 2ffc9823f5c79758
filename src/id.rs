//! The name of one routed expert. Knows nothing else.

/// The `expert`-th routed expert of MoE layer `layer`.
///
/// `layer` counts MoE layers only (a model's leading dense layers have no id), so that traces, slots and
/// policies can index by it. Shared experts are dense weights: they are never offloaded and have no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExpertId {
    /// Index among the model's MoE layers.
    pub layer: u16,
    /// Index within the layer, below `n_expert`.
    pub expert: u16,
}

impl std::fmt::Display for ExpertId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "expert {} of MoE layer {}", self.expert, self.layer)
    }
}
