//! What an architecture's file reads of Kimi Delta Attention (arXiv 2510.26692): a gated delta rule whose memories fade by
//! each element of a key.

use super::{
    Decay, DeltaNet, GateAct, KeyHeads, LayerReader, LowRank, Part, Rates, Reader, Tensor,
    reader::{FACTORS, MAX_WIDTH},
    recurrent::MAX_KERNEL,
};
use crate::{Error, Result};

/// Of decays' logarithms, as far below 0 as makes sense: at -100, a memory is gone.
const BOUNDS: (f32, f32) = (-100.0, -1.0 / FACTORS.1);

impl Reader<'_> {
    /// A decay that is bounded by what the file says. `sign`: see [`Decay::Bounded`].
    ///
    /// # Errors
    /// If it says nothing that makes sense, or that decays are not bounded.
    pub fn bounded_decay(&self, sign: f32) -> Result<Decay> {
        if !self.flag("kda.safe_gate", true)? {
            return Err(Error::unsupported(self.gguf().path(), self.key("kda.safe_gate"), "true", false));
        }
        let short = "kda.gate_lower_bound";
        let key = self.key(short);
        self.gguf().meta().require_f32(&key)?;
        let bound = self.number(short, BOUNDS)?.expect("it is there");
        Ok(Decay::Bounded { bound, sign })
    }
}

impl LayerReader<'_, '_> {
    /// Kimi Delta Attention with `attn_q`, `attn_k`, `attn_v`, `ssm_conv1d_q` and so on, `ssm_beta`, `ssm_f_a`, `ssm_g_a`,
    /// `ssm_f_b` and `ssm_g_b` where decays and gates are of low rank, `ssm_a`, `ssm_dt.bias`, `ssm_norm`, `attn_output`.
    /// Queries and keys are as many as the model has heads.
    ///
    /// # Errors
    /// A key that does not make sense; a tensor that is missing or does not fit.
    pub fn kda(&self, decay: Decay) -> Result<DeltaNet> {
        let (m, n_embd) = (self.m, self.m.n_embd);
        let n_head = m.count("attention.head_count", MAX_WIDTH)?;
        let (k, kernel) = (m.count("kda.head_dim", MAX_WIDTH)?, m.count("ssm.conv_kernel", MAX_KERNEL)?);
        let inner = n_head * k;
        let (mut qkv, mut convs) = (Vec::with_capacity(3), Vec::with_capacity(3));
        for which in ["q", "k", "v"] {
            qkv.push(self.linear(&format!("attn_{which}"), n_embd, inner)?);
            convs.push(self.conv(&format!("ssm_conv1d_{which}"), kernel, inner)?);
        }
        let rate = self.linear("ssm_beta", n_embd, n_head)?;
        let norm = m.norm(&self.name("ssm_norm"), k)?;
        Ok(DeltaNet {
            n_k: n_head,
            n_v: n_head,
            k,
            v: k,
            key_heads: KeyHeads::InTurn,
            qkv,
            convs,
            rates: Rates::Apart { rate, decay: self.low_rank("ssm_f", inner)? },
            dt_bias: m.vector(&self.name("ssm_dt.bias"), inner)?,
            a: self.of_each_head("ssm_a", n_head)?,
            decay,
            eps: norm.eps,
            norm,
            gate: self.low_rank("ssm_g", inner)?,
            gate_act: GateAct::Sigmoid,
            o: self.linear("attn_output", inner, n_embd)?,
        })
    }

    /// [`LayerReader::kda`] as a part.
    ///
    /// # Errors
    /// As that.
    pub fn kda_part(&self, decay: Decay) -> Result<Part> {
        Ok(Part::DeltaNet(self.kda(decay)?))
    }

    /// `NAME_a` and, if there is one, `NAME_b` behind it.
    fn low_rank(&self, name: &str, rows: usize) -> Result<LowRank> {
        let (a, b, n_embd) = (format!("{name}_a"), format!("{name}_b"), self.m.n_embd);
        if !self.has(&format!("{b}.weight")) {
            return Ok(self.linear(&a, n_embd, rows)?.into());
        }
        let info = self.m.gguf().require(&self.name(&format!("{a}.weight")))?;
        let rank = info.dims.get(1).map_or(0, |&d| d as usize);
        Ok(LowRank { down: Some(self.linear(&a, n_embd, rank)?), up: self.linear(&b, rank, rows)? })
    }

    /// A number of each head, as a vector or a matrix of one column.
    fn of_each_head(&self, name: &str, n_head: usize) -> Result<Tensor> {
        let name = self.name(name);
        match self.m.gguf().require(&name)?.dims.len() {
            1 => self.m.vector(&name, n_head),
            _ => self.m.take(&name, &[1, n_head]),
        }
    }
}
