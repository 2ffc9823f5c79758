//! Kimi-Linear-48B-A3B (Moonshot AI, arXiv 2510.26692): Kimi Delta Attention in most layers, latent attention without positions
//! in the others; leading dense layers, then sigmoid scores with a selection bias and a shared expert.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Decay, Part, Reader, Score},
};

pub const ARCH: Arch = Arch { name: "kimi-linear", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    m.ignore("rope.freq_base", "queries and keys know no positions");
    let (latent, recurrent) = (m.latent_sizes(m.rotating_length()?)?, m.layers_without_heads()?);
    let choice = m.choice_by_keys(Score::Sigmoid, true)?;
    let n_dense = m.leading_dense()?;
    m.model(|l| {
        let mixer = if recurrent[l.layer] { l.kda_part(Decay::Softplus)? } else { Part::gqa(l.mla(latent, None)?) };
        let ffn = if l.layer < n_dense { l.dense()? } else { l.moe_by_bias_and_shared(choice)? };
        Ok([l.block("attn_norm", mixer)?, l.block("ffn_norm", ffn)?])
    })
}
