//! Ling-3.0-tiny, -flash (Ant Group, 2026): Kimi Delta Attention with bounded decays in most layers, latent attention with a
//! gate on each head in the others; experts in groups with a selection bias and a shared expert, activations limited in some
//! layers.

use super::{Arch, step35};
use crate::{
    Result,
    blueprint::{Blueprint, GateAct, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "bailingmoe3", predicts: true, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let (latent, recurrent) = (m.latent_sizes(m.rotating_length()?)?, m.layers_without_heads()?);
    m.ignore("rope.dimension_sections", "a text token has the same position in every section");
    let rope = m.rope(RopeKind::Interleaved, latent.rot)?;
    let decay = m.bounded_decay(1.0)?;
    let choice = m.choice_by_keys(Score::Sigmoid, true)?;
    let n_dense = m.leading_dense()?;
    let limits = step35::limits(m)?;
    m.model(|l| {
        let mixer = if recurrent[l.layer] {
            l.kda_part(decay)?
        } else {
            let gate = Some(l.gate(latent.of_values(), GateAct::Sigmoid)?);
            Part::gqa(Gqa { gate, ..l.mla(latent, rope)? })
        };
        let ffn = limits.ffn(l, choice, l.layer >= n_dense)?;
        Ok([l.block("attn_norm", mixer)?, l.block("ffn_norm", ffn)?])
    })
}
