//! gpt-oss-20b, -120b (OpenAI model card, arXiv 2508.10925): attention sinks, a window on every other layer, biases
//! everywhere, weights that are a softmax over the chosen.

use super::Arch;
use crate::{
    Result,
    blueprint::{Act, Blueprint, FullLayers, Gqa, Moe, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "gpt-oss", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let windows = m.windows(FullLayers::EachLast(2))?;
    let choice = m.choice(Score::SoftmaxOfChosen, false)?;
    m.model(|l| {
        let attention = Gqa { window: windows[l.layer], sinks: Some(l.sinks(heads)?), ..l.gqa(heads, rope)? };
        let moe = Moe { act: Act::SwigluOai { alpha: 1.702, limit: 7.0 }, ..l.moe_with_biases(choice)? };
        Ok([l.block("attn_norm", Part::Gqa(attention))?, l.block("post_attention_norm", Part::Moe(moe))?])
    })
}
