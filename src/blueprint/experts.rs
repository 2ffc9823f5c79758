//! The tensors of a layer's routed experts.
//!
//! GGUF files have them in three layouts: *stacked* (`blk.N.ffn_gate_exps.weight` holds all experts of a layer, one
//! after another); the same with gate and up *fused* into `ffn_gate_up_exps`; and *single*, the oldest, with a tensor per
//! expert (`blk.N.ffn_gate.7.weight`), which `hotset repack` writes too. Some models' experts have no gate.

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
    /// Whether they have a gate.
    pub gated: bool,
    /// Where they lie.
    pub tensors: ExpertTensors,
}

/// See the module. gate, up: (n_ff, n_embd); down: (n_embd, n_ff).
#[derive(Clone, Debug)]
pub enum ExpertTensors {
    /// Gate, if there is one, up and down of all experts.
    Stacked(Vec<Tensor>),
    /// Gate and up of all experts, an expert's gate before its up (rows: both); and down.
    Fused([Tensor; 2]),
    /// The same of each expert, one expert after another.
    Single(Vec<Tensor>),
}

/// The name of one expert's gate (0), up (1) or down (2) where each has a tensor of its own.
pub fn single_name(layer: usize, role: usize, expert: usize) -> String {
    format!("blk.{layer}.ffn_{}.{expert}.weight", ROLES[role])
}

/// An expert's matrices, as tensors' names have them.
const ROLES: [&str; 3] = ["gate", "up", "down"];

impl ExpertSet {
    /// All tensors.
    pub fn tensors(&self) -> &[Tensor] {
        match &self.tensors {
            ExpertTensors::Stacked(tensors) => tensors,
            ExpertTensors::Fused(tensors) => tensors,
            ExpertTensors::Single(tensors) => tensors,
        }
    }

    /// Matrices of an expert: gate (0), if there is one, up (1) and down (2).
    pub fn roles(&self) -> std::ops::Range<usize> {
        usize::from(!self.gated)..3
    }

    /// Finds those whose inputs and outputs have `n_embd` elements. The hidden width is the tensors' own, since some models
    /// vary it by layer.
    pub(super) fn find(m: &Reader<'_>, layer: usize, n_embd: usize, gated: bool) -> Result<Self> {
        let n_expert = m.n_expert;
        let name = |role: &str| format!("blk.{layer}.ffn_{role}.weight");
        let width = |tensor: &TensorInfo| tensor.dims.get(1).map_or(0, |&d| d as usize);
        let set = |n_ff, tensors| Self { layer, n_expert, n_ff, gated, tensors };

        if let Some(fused) = m.gguf().tensor(&name("gate_up_exps")).filter(|_| gated) {
            let n_ff = width(fused) / 2;
            let both = m.stacked(&name("gate_up_exps"), n_embd, 2 * n_ff)?;
            let down = m.stacked(&name("down_exps"), n_ff, n_embd)?;
            return Ok(set(n_ff, ExpertTensors::Fused([both, down])));
        }
        let roles = &ROLES[usize::from(!gated)..];
        let (first, first_single) = (name(&format!("{}_exps", roles[0])), name(&format!("{}.0", roles[0])));
        let single = m.gguf().tensor(&first).is_none() && m.gguf().tensor(&first_single).is_some();
        let n_ff = width(m.gguf().require(if single { &first_single } else { &first })?);
        let shape = |role: &str| if role == "down" { (n_ff, n_embd) } else { (n_embd, n_ff) };
        if !single {
            let stacked = |role: &&str| {
                let (cols, rows) = shape(role);
                m.stacked(&name(&format!("{role}_exps")), cols, rows)
            };
            let tensors = roles.iter().map(stacked).collect::<Result<_>>()?;
            return Ok(set(n_ff, ExpertTensors::Stacked(tensors)));
        }
        let mut experts: Vec<Tensor> = Vec::with_capacity(n_expert * roles.len());
        for e in 0..n_expert {
            for (i, role) in roles.iter().enumerate() {
                let (cols, rows) = shape(role);
                let tensor = m.matrix(&name(&format!("{role}.{e}")), cols, rows)?;
                let ty = experts.get(i).unwrap_or(&tensor).ty;
                if tensor.ty != ty {
                    let info = &m.gguf().tensors()[tensor.index];
                    let (what, expected) = (format!("tensor {}", info.name), format!("the layer's type {ty}"));
                    return Err(Error::format(m.gguf().path_of(info), what, expected, tensor.ty));
                }
                experts.push(tensor);
            }
        }
        Ok(set(n_ff, ExpertTensors::Single(experts)))
    }
}
