//! Nemotron-3-Nano-30B-A3B, -Super-120B-A12B (NVIDIA, 2025 to 2026): each layer is one of Mamba 2, attention without positions
//! and experts; these have no gate, and in Super read and give rows of a smaller width. Puzzle models differ in experts' width
//! and number by layer.

use super::Arch;
use crate::{
    Result,
    blueprint::{Act, Blueprint, Part, Reader, Score},
};

pub const ARCH: Arch = Arch { name: "nemotron_h_moe", predicts: false, blueprint };

/// A limit on what a file may claim.
const MAX_LATENT: usize = 1 << 20;

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    m.use_either_epsilon();
    for short in ["rope.freq_base", "rope.dimension_count"] {
        m.ignore(short, "queries and keys know no positions");
    }
    let heads = m.heads_if_any()?;
    let choices = m.choices_by_layer(Score::Sigmoid, true)?;
    let latent = if m.has_key("moe_latent_size") { Some(m.count("moe_latent_size", MAX_LATENT)?) } else { None };
    m.model(|l| {
        let part = if let Some(heads) = heads[l.layer] {
            Part::gqa(l.gqa(heads, None)?)
        } else if l.is_moe() {
            l.ungated_moe(Act::ReluSquared, m.choice_in(&choices, l.layer)?, latent)?
        } else {
            l.mamba2()?
        };
        Ok([l.block("attn_norm", part)?])
    })
}
