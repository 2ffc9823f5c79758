//! The matrices of a feed-forward block, wherever their bytes lie.

use super::QMat;

/// `down(act(gate x) * up x)`, or `down(act(up x))` without a gate: one expert, a shared expert or a dense block.
#[derive(Clone, Copy)]
pub struct FfnMats<'a> {
    /// (n_ff, n_embd)
    pub gate: Option<QMat<'a>>,
    /// (n_ff, n_embd)
    pub up: QMat<'a>,
    /// (n_embd, n_ff)
    pub down: QMat<'a>,
}

impl FfnMats<'_> {
    /// Width of the hidden layer.
    pub fn n_ff(&self) -> usize {
        self.up.rows
    }
}
