//! MiMo-V2-Flash (Xiaomi, 2026): key heads longer than value heads, fewer key heads where a layer sees everything; layers with
//! a window have sinks and another base; a dense first layer, then sigmoid scores with a selection bias.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, FullLayers, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "mimo2", predicts: true, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads_by_layer()?;
    let everything = m.rope(RopeKind::Halves, heads[0].k)?;
    let within = m.window_rope(everything, heads[0].k)?;
    let windows = m.windows(FullLayers::Listed)?;
    let value_scale = m.factor("attention.value_scale")?.unwrap_or(1.0);
    let choice = m.choice_by_keys(Score::Sigmoid, true)?;
    m.model(|l| {
        let (window, heads) = (windows[l.layer], heads[l.layer]);
        let rope = if window.is_some() { within } else { everything };
        let sinks = window.map(|_| l.sinks(heads)).transpose()?;
        let attention = Part::Gqa(Gqa { window, sinks, ..l.gqa(heads, rope)? });
        let ffn = if l.is_moe() { Part::Moe(l.moe_by_bias(choice)?) } else { l.dense()? };
        Ok([l.block("attn_norm", attention)?.scaled(value_scale), l.block("ffn_norm", ffn)?])
    })
}
