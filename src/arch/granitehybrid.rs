//! Granite 4.0-H Tiny and Small (IBM, 2025): Mamba 2 in most layers, attention in the others; the factors of Granite 3.

use super::{Arch, granitemoe};
use crate::{
    Result,
    blueprint::{Blueprint, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "granitehybrid", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads_if_any()?;
    let rotates = m.flag("rope.scaling.finetuned", true)?;
    let residual = m.factor("residual_scale")?.unwrap_or(1.0);
    let choice = m.choice(Score::Softmax, true)?;
    let model = m.model(|l| {
        let mixer = match heads[l.layer] {
            Some(heads) => {
                let rope = m.rope(RopeKind::Interleaved, heads.k)?;
                let rope = if rotates { Some(rope) } else { None };
                Part::gqa(Gqa { scale: m.score_scale(heads)?, ..l.gqa(heads, rope)? })
            }
            None => l.mamba2()?,
        };
        let moe = Part::moe(granitemoe::moe(l, choice)?);
        Ok([l.block("attn_norm", mixer)?.scaled(residual), l.block("ffn_norm", moe)?.scaled(residual)])
    })?;
    granitemoe::scaled(m, model)
}
