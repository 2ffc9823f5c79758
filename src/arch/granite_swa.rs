//! Granite 4.1 MoE (IBM, 2026): granitemoe with layers that see a window, layers that know no positions, and sinks.

use super::{Arch, granitemoe};
use crate::{
    Result,
    blueprint::{Blueprint, FullLayers, Gqa, Moe, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "granite_swa", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Interleaved, heads.k)?;
    let (windows, rotates) = (m.windows(FullLayers::Listed)?, m.flags_by_layer("attention.rope_pattern")?);
    let (scale, residual) = (m.score_scale(heads)?, m.factor("residual_scale")?.unwrap_or(1.0));
    let choice = m.choice(Score::Softmax, true)?;
    let model = m.model(|l| {
        let rope = rotates[l.layer].then_some(rope);
        let (window, sinks) = (windows[l.layer], Some(l.sinks(heads)?));
        let attention = Part::Gqa(Gqa { scale, window, sinks, ..l.gqa(heads, rope)? });
        let moe = Part::Moe(Moe { shared: l.shared_if_any()?, ..l.moe(choice)? });
        Ok([l.block("attn_norm", attention)?.scaled(residual), l.block("ffn_norm", moe)?.scaled(residual)])
    })?;
    granitemoe::scaled(m, model)
}
