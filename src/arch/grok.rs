//! Grok-1 and Grok-2 (xAI, 2024): norms behind each part, scores and logits that are capped smoothly, GELU; Grok-2 has a
//! network that every token takes beside the experts.

use super::Arch;
use crate::{
    Result,
    blueprint::{Act, Blueprint, Gated, Gqa, Head, Moe, Part, Reader, Rope, RopeKind, Score, Shared},
};

pub const ARCH: Arch = Arch { name: "grok", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let rope = Rope { yarn: rope.yarn.map(|yarn| yarn.faster_by_default(m, 8.0)).transpose()?, ..rope };
    // What llama.cpp takes where a file says nothing.
    let scale = m.factor("attention.output_scale")?.unwrap_or(0.088_388_35);
    let soft_cap = Some(m.factor("attn_logit_softcapping")?.unwrap_or(30.0));
    m.ignore("router_logit_softcapping", "llama.cpp caps no router's outputs");
    let choice = m.choice(Score::Softmax, true)?;
    let model = m.model(|l| {
        let attention = Part::Gqa(Gqa { scale, soft_cap, ..l.gqa(heads, rope)? });
        let attention = l.block("attn_norm", attention)?.post(l.norm("attn_output_norm")?);
        let beside = l.has("ffn_up.weight");
        let dense = if beside { Some(Gated { act: Act::Gelu, ..l.gated("")? }) } else { None };
        let shared = dense.map(|ffn| Shared { ffn, gate: None });
        let moe = Part::Moe(Moe { act: Act::Gelu, shared, ..l.moe(choice)? });
        let scale = if beside { std::f32::consts::FRAC_1_SQRT_2 } else { 1.0 };
        let post = if l.has("layer_output_norm.weight") { "layer_output_norm" } else { "post_ffw_norm" };
        Ok([attention, l.block("ffn_norm", moe)?.scaled(scale).post(l.norm(post)?)])
    })?;
    let embed_scale = m.factor("embedding_scale")?.unwrap_or(78.383_67);
    let scale = m.factor("logit_scale")?.unwrap_or(0.577_350_26);
    let head = Head { scale, soft_cap: m.factor("final_logit_softcapping")?, ..model.head };
    Ok(Blueprint { embed_scale, head, ..model })
}
