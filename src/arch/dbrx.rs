//! DBRX (Databricks, 2024): layer norms, queries, keys and values limited as they come.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "dbrx", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    m.use_layer_norms();
    let clamp = m.factor("attention.clamp_kqv")?;
    let choice = m.choice(Score::Softmax, true)?;
    m.model(|l| {
        let attention = Gqa { clamp, ..l.gqa(heads, rope)? };
        Ok([l.block("attn_norm", Part::Gqa(attention))?, l.block("attn_output_norm", Part::Moe(l.moe(choice)?))?])
    })
}
