//! Trinity (Arcee, 2025): norms before and behind each part, a gate on what attention gives; three layers of four see a window
//! and rotate, the fourth sees everything and knows no positions; leading dense layers, then sigmoid scores with a selection
//! bias and a shared expert.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, FullLayers, GateAct, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "afmoe", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let windows = m.windows(FullLayers::EachLast(4))?;
    let choice = m.choice_by_keys(Score::Sigmoid, false)?;
    let n_dense = m.leading_dense()?;
    let model = m.model(|l| {
        let window = windows[l.layer];
        let rope = window.map(|_| rope);
        let gate = Some(l.gate(heads, GateAct::Sigmoid)?);
        let attention = Part::Gqa(Gqa { qk_norm: l.head_norms(heads)?, window, gate, ..l.gqa(heads, rope)? });
        let ffn = if l.layer < n_dense { l.dense()? } else { l.moe_by_bias_and_shared(choice)? };
        Ok([
            l.block("attn_norm", attention)?.post(l.norm("post_attention_norm")?),
            l.block("ffn_norm", ffn)?.post(l.norm("post_ffw_norm")?),
        ])
    })?;
    Ok(Blueprint { embed_scale: (m.n_embd as f32).sqrt(), ..model })
}
