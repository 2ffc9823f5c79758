//! The matrices of a gated feed-forward block, wherever their bytes lie.

use super::QMat;

/// `down(silu(gate x) * up x)`: one expert, a shared expert or a dense block.
#[derive(Clone, Copy)]
pub struct FfnMats<'a> {
    /// (n_ff, n_embd)
    pub gate: QMat<'a>,
    /// (n_ff, n_embd)
    pub up: QMat<'a>,
    /// (n_embd, n_ff)
    pub down: QMat<'a>,
}

impl FfnMats<'_> {
    /// Width of the hidden layer.
    pub fn n_ff(&self) -> usize {
        self.gate.rows
    }
}
