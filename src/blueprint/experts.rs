//! The tensors of a layer's routed experts.
//!
//! GGUF files have them in three layouts: *stacked* (`blk.N.ffn_gate_exps.weight` holds all experts of a layer, one
//! after another); the same with gate and up *fused* into `ffn_gate_up_exps`; and *single*, the oldest, with a tensor per
//! expert (`blk.N.ffn_gate.7.weight`), which `hotset repack` writes too.

use super::{Reader, Tensor};
use crate::{Error, Result, gguf::TensorInfo};

/// The experts of one MoE layer, alike in shape and types.
#[derive(Clone, Debug)]
pub struct ExpertSet {
    /// The layer's number among all layers: N of `blk.N`.
    pub layer: usize,
    /// How many.
    pub n_expert: usize,
    /// Width of their hidden layer.
    pub n_ff: usize,
    /// Where they lie.
    pub tensors: ExpertTensors,
}

/// See the module. gate, up: (n_ff, n_embd); down: (n_embd, n_ff).
#[derive(Clone, Debug)]
pub enum ExpertTensors {
    /// Gate, up and down of all experts.
    Stacked([Tensor; 3]),
    /// Gate and up of all experts, an expert's gate before its up (rows: both); and down.
    Fused([Tensor; 2]),
    /// Gate, up and down of each expert.
    Single(Vec<[Tensor; 3]>),
}

/// The name of one expert's gate (0), up (1) or down (2) where each has a tensor of its own.
pub fn single_name(layer: usize, role: usize, expert: usize) -> String {
    format!("blk.{layer}.ffn_{}.{expert}.weight", ["gate", "up", "down"][role])
}

impl ExpertSet {
    /// All tensors.
    pub fn tensors(&self) -> &[Tensor] {
        match &self.tensors {
            ExpertTensors::Stacked(tensors) => tensors,
            ExpertTensors::Fused(tensors) => tensors,
            ExpertTensors::Single(tensors) => tensors.as_flattened(),
        }
    }

    /// Finds them. The hidden width is the tensors' own, since some models vary it by layer.
    pub(super) fn find(m: &Reader<'_>, layer: usize) -> Result<Self> {
        let (n_expert, n_embd) = (m.n_expert, m.n_embd);
        let name = |role: &str| format!("blk.{layer}.ffn_{role}.weight");
        let width = |tensor: &TensorInfo| tensor.dims.get(1).map_or(0, |&d| d as usize);

        if let Some(fused) = m.gguf().tensor(&name("gate_up_exps")) {
            let n_ff = width(fused) / 2;
            let both = m.stacked(&name("gate_up_exps"), n_embd, 2 * n_ff)?;
            let down = m.stacked(&name("down_exps"), n_ff, n_embd)?;
            return Ok(Self { layer, n_expert, n_ff, tensors: ExpertTensors::Fused([both, down]) });
        }
        let single = m.gguf().tensor(&name("gate_exps")).is_none() && m.gguf().tensor(&name("gate.0")).is_some();
        let n_ff = width(m.gguf().require(&name(if single { "gate.0" } else { "gate_exps" }))?);
        if !single {
            let tensors = [
                m.stacked(&name("gate_exps"), n_embd, n_ff)?,
                m.stacked(&name("up_exps"), n_embd, n_ff)?,
                m.stacked(&name("down_exps"), n_ff, n_embd)?,
            ];
            return Ok(Self { layer, n_expert, n_ff, tensors: ExpertTensors::Stacked(tensors) });
        }
        let mut experts: Vec<[Tensor; 3]> = Vec::with_capacity(n_expert);
        for e in 0..n_expert {
            let tensors = [
                m.matrix(&single_name(layer, 0, e), n_embd, n_ff)?,
                m.matrix(&single_name(layer, 1, e), n_embd, n_ff)?,
                m.matrix(&single_name(layer, 2, e), n_ff, n_embd)?,
            ];
            for (first, other) in experts.first().unwrap_or(&tensors).iter().zip(&tensors) {
                if other.ty != first.ty {
                    let info = &m.gguf().tensors()[other.index];
                    let expected = format!("the layer's type {}", first.ty);
                    let what = format!("tensor {}", info.name);
                    return Err(Error::format(m.gguf().path_of(info), what, expected, other.ty));
                }
            }
            experts.push(tensors);
        }
        Ok(Self { layer, n_expert, n_ff, tensors: ExpertTensors::Single(experts) })
    }
}
