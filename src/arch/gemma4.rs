//! Gemma 4 26B-A4B (Google, 2026): norms before and behind each part, a dense network beside the experts, a router with a norm
//! of its own; layers that see everything have longer heads and values that are their keys.

use super::Arch;
use crate::{
    Result,
    blueprint::{
        Act, Blueprint, FullLayers, Gated, Gqa, Head, Heads, Moe, Norm, Part, Reader, RopeKind, Router, RouterInput,
        Score,
    },
};

pub const ARCH: Arch = Arch { name: "gemma4", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads_by_layer()?;
    let (k, v) = (
        m.head_length("attention.key_length_swa", heads[0].k)?,
        m.head_length("attention.value_length_swa", heads[0].v)?,
    );
    let everything = m.rope(RopeKind::Halves, heads[0].k)?;
    let within = m.window_rope(everything, k)?;
    let windows = m.windows(FullLayers::Listed)?;
    let choice = m.choice(Score::Softmax, true)?;
    let root = (m.n_embd as f32).sqrt();
    let model = m.model(|l| {
        let window = windows[l.layer];
        let (heads, rope) = match window {
            Some(_) => (Heads { k, v, ..heads[l.layer] }, within),
            None => (heads[l.layer], everything),
        };
        let (qk_norm, v_norm) = (l.head_norms(heads)?, Some(m.plain_norm(heads.v)?));
        let attention = Gqa { qk_norm, v_norm, window, scale: 1.0, ..l.gqa_of_keys(heads, rope)? };
        let dense = Part::Dense(Gated { act: Act::Gelu, ..l.gated("")? });
        let moe = l.moe(choice)?;
        let weight = Some(l.vector("ffn_gate_inp.scale", m.n_embd)?);
        let own = Norm { weight, scale: 1.0 / root, ..m.plain_norm(m.n_embd)? };
        let router = Router { input: RouterInput::Own(own), ..moe.router };
        let moe = l.branch("pre_ffw_norm_2", Part::moe(Moe { router, act: Act::Gelu, ..moe }))?;
        let mut feed_forward = l.block("ffn_norm", dense)?.post(l.norm("post_ffw_norm")?);
        feed_forward.branches.push(moe);
        for (branch, name) in feed_forward.branches.iter_mut().zip(["post_ffw_norm_1", "post_ffw_norm_2"]) {
            branch.post = Some(l.norm(name)?);
        }
        feed_forward.scale = l.vector_if_there("layer_output_scale.weight", 1)?;
        let attention = l.block("attn_norm", Part::gqa(attention))?.post(l.norm("post_attention_norm")?);
        Ok([attention, feed_forward])
    })?;
    let head = Head { soft_cap: m.factor("final_logit_softcapping")?, ..model.head };
    Ok(Blueprint { embed_scale: root, head, ..model })
}
