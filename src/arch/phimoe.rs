//! Phi-3.5-MoE (arXiv 2404.14219): biases everywhere but in the experts. Norms are RMS norms here, as llama.cpp has them.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "phimoe", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    m.use_norm_biases();
    let choice = m.choice(Score::Softmax, true)?;
    let mut model = m.model(|l| {
        Ok([l.block("attn_norm", Part::Gqa(l.gqa(heads, rope)?))?, l.block("ffn_norm", Part::Moe(l.moe(choice)?))?])
    })?;
    model.head.output.bias = m.vector_if_there("output.bias", model.n_vocab)?;
    Ok(model)
}
