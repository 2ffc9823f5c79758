//! Granite 3.0 and 3.1 MoE (1B-A400M, 3B-A800M), 4.0-Tiny's first preview (IBM, 2024): factors on the embedding, on what
//! each part adds, on scores and on logits; some have an expert that every token uses.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Choice, Gqa, Head, LayerReader, Moe, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "granitemoe", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Interleaved, heads.k)?;
    let rope = if m.flag("rope.scaling.finetuned", true)? { Some(rope) } else { None };
    let (scale, residual) = (m.score_scale(heads)?, m.factor("residual_scale")?.unwrap_or(1.0));
    let choice = m.choice(Score::Softmax, true)?;
    let model = m.model(|l| {
        let attention = Part::Gqa(Gqa { scale, ..l.gqa(heads, rope)? });
        let moe = Part::Moe(moe(l, choice)?);
        Ok([l.block("attn_norm", attention)?.scaled(residual), l.block("ffn_norm", moe)?.scaled(residual)])
    })?;
    scaled(m, model)
}

fn moe(l: &LayerReader<'_, '_>, choice: Choice) -> Result<Moe> {
    Ok(Moe { shared: l.shared_if_any()?, ..l.moe(choice)? })
}

/// The model with its factors on embedding and logits.
pub fn scaled(m: &Reader<'_>, model: Blueprint) -> Result<Blueprint> {
    let embed_scale = m.factor("embedding_scale")?.unwrap_or(1.0);
    let scale = 1.0 / m.factor("logit_scale")?.unwrap_or(1.0);
    Ok(Blueprint { embed_scale, head: Head { scale, ..model.head }, ..model })
}
