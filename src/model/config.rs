//! A model's hyper-parameters, read from GGUF metadata and checked once, so that nothing after this has to doubt them.
//! Names are GGUF's own.

use super::arch::{self, Arch};
use crate::{Error, Result, gguf::Gguf};

/// Limits on what a file may claim: an order of magnitude above any model known, far below anything that overflows.
const MAX_LAYERS: usize = 2_048;
const MAX_WIDTH: usize = 1 << 20;
const MAX_EXPERTS: usize = 4_096;

/// See the module.
#[derive(Debug)]
pub struct Config {
    /// The architecture's row.
    pub arch: &'static Arch,
    /// Layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Elements of a query or key head.
    pub n_embd_head_k: usize,
    /// Elements of a value head.
    pub n_embd_head_v: usize,
    /// Elements of a head that rotate.
    pub n_rot: usize,
    /// The longest context that the model was trained for.
    pub n_ctx_train: usize,
    /// Entries of the vocabulary.
    pub n_vocab: usize,
    /// Base of the rotation's frequencies.
    pub rope_freq_base: f32,
    /// Positions are multiplied by this (1 / `rope.scaling.factor` for linear scaling).
    pub rope_freq_scale: f32,
    /// Added to the mean square in RMS norms.
    pub rms_eps: f32,
    /// Routed experts a MoE layer.
    pub n_expert: usize,
    /// Experts used a token.
    pub n_expert_used: usize,
    /// Experts' weights are multiplied by this.
    pub expert_weights_scale: f32,
    /// Numbers of the MoE layers among all layers.
    pub moe_layers: Vec<usize>,
}

impl Config {
    /// Reads and checks.
    ///
    /// # Errors
    /// An architecture that hotset does not have; a key that is missing or does not make sense, by name.
    pub fn new(gguf: &Gguf) -> Result<Self> {
        let (meta, path) = (gguf.meta(), gguf.path());
        let name = meta.require_str("general.architecture")?;
        let arch = arch::find(name).ok_or_else(|| {
            let known: Vec<_> = arch::ARCHS.iter().map(|a| a.name).collect();
            Error::unsupported(path, "the architecture", format!("one of {}", known.join(", ")), name)
        })?;
        let key = |k: &str| format!("{name}.{k}");
        let number = |k: &str, max: usize| -> Result<usize> {
            let value = meta.require_u32(&key(k))? as usize;
            in_range(gguf, &key(k), value, max)
        };
        let n_layer = number("block_count", MAX_LAYERS)?;
        let n_embd = number("embedding_length", MAX_WIDTH)?;
        let n_head = number("attention.head_count", MAX_WIDTH)?;
        let n_head_kv = match meta.u32_or_array(&key("attention.head_count_kv"), n_layer)? {
            None => n_head,
            Some(list) if list.iter().all(|&n| n == list[0]) => list[0] as usize,
            Some(_) => {
                return Err(Error::unsupported(
                    path,
                    key("attention.head_count_kv"),
                    "one number for all layers",
                    "several",
                ));
            }
        };
        if n_head_kv == 0 || n_head % n_head_kv != 0 {
            return Err(Error::format(
                path,
                key("attention.head_count_kv"),
                format!("a divisor of {n_head}"),
                n_head_kv,
            ));
        }
        let optional = |k: &str, default: usize, max: usize| -> Result<usize> {
            let value = meta.u32(&key(k))?.map_or(default, |v| v as usize);
            in_range(gguf, &key(k), value, max)
        };
        let n_embd_head_k = optional("attention.key_length", n_embd / n_head, MAX_WIDTH)?;
        let n_embd_head_v = optional("attention.value_length", n_embd / n_head, MAX_WIDTH)?;
        let n_rot = optional("rope.dimension_count", n_embd_head_k, n_embd_head_k)?;
        for (k, value) in [("attention.key_length", n_embd_head_k), ("rope.dimension_count", n_rot)] {
            if value % 2 != 0 {
                return Err(Error::format(path, key(k), "an even number", value));
            }
        }
        // By any of its parts, so that a layer that lacks one is told apart from a dense one.
        let is_moe = |il: &usize| {
            let parts = ["gate_inp", "gate_exps", "up_exps", "gate_up_exps", "down_exps", "gate.0", "up.0", "down.0"];
            parts.iter().any(|part| gguf.tensor(&format!("blk.{il}.ffn_{part}.weight")).is_some())
        };
        let moe_layers: Vec<_> = (0..n_layer).filter(is_moe).collect();
        if moe_layers.is_empty() {
            return Err(Error::unsupported(
                path,
                "a model without experts",
                "tensors blk.N.ffn_gate_inp.weight",
                "none",
            ));
        }
        let n_expert = number("expert_count", MAX_EXPERTS)?;
        let n_expert_used = number("expert_used_count", n_expert)?;
        let embd = gguf.require("token_embd.weight")?;
        let n_vocab = embd.dims.get(1).map_or(0, |&n| n as usize);
        if n_vocab == 0 || n_vocab > u32::MAX as usize {
            return Err(Error::format(
                path,
                "tensor token_embd.weight",
                "a row for each token",
                format!("{:?}", embd.dims),
            ));
        }
        let rms_eps = meta.require_f32(&key("attention.layer_norm_rms_epsilon"))?;
        let scale = meta.f32(&key("expert_weights_scale"))?.filter(|&s| s != 0.0).unwrap_or(1.0);
        Ok(Self {
            arch,
            n_layer,
            n_embd,
            n_head,
            n_head_kv,
            n_embd_head_k,
            n_embd_head_v,
            n_rot,
            n_ctx_train: number("context_length", u32::MAX as usize)?,
            n_vocab,
            rope_freq_base: meta.f32(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            rope_freq_scale: rope_freq_scale(gguf, name)?,
            rms_eps,
            n_expert,
            n_expert_used,
            expert_weights_scale: scale,
            moe_layers,
        })
    }
}

fn in_range(gguf: &Gguf, key: &str, value: usize, max: usize) -> Result<usize> {
    if (1..=max).contains(&value) {
        return Ok(value);
    }
    Err(Error::format(gguf.path(), key, format!("a number from 1 to {max}"), value))
}

/// 1 without scaling, 1 / factor for linear scaling; other kinds change the arithmetic and are refused.
fn rope_freq_scale(gguf: &Gguf, name: &str) -> Result<f32> {
    let meta = gguf.meta();
    let key = format!("{name}.rope.scaling.type");
    let factor = || -> Result<f32> {
        let legacy = meta.f32(&format!("{name}.rope.scale_linear"))?;
        Ok(meta.f32(&format!("{name}.rope.scaling.factor"))?.or(legacy).filter(|&f| f != 0.0).unwrap_or(1.0))
    };
    match meta.str(&key)? {
        Some("none") => Ok(1.0),
        None | Some("linear") => Ok(1.0 / factor()?),
        Some(other) => Err(Error::unsupported(gguf.path(), key, "none or linear", other)),
    }
}
