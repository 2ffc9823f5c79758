//! Mellum2-12B-A2.5B (JetBrains, 2026): qwen3moe, but three layers of four see a window and rotate with another base; the
//! fourth sees everything and is scaled by YaRN.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, FullLayers, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "mellum", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let everything = m.rope(RopeKind::Halves, heads.k)?;
    let within = m.window_rope(everything, heads.k)?;
    let windows = m.windows(FullLayers::EachLast(4))?;
    let choice = m.choice_by_keys(Score::Softmax, true)?;
    m.model(|l| {
        let window = windows[l.layer];
        let rope = if window.is_some() { within } else { everything };
        let attention = Gqa { qk_norm: l.head_norms(heads)?, window, ..l.gqa(heads, rope)? };
        Ok([l.block("attn_norm", Part::Gqa(attention))?, l.block("ffn_norm", Part::Moe(l.moe(choice)?))?])
    })
}
