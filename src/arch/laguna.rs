//! Laguna (Poolside, 2026): heads by layer, a softplus gate on what attention gives, layers that see a window and rotate with
//! another base; a leading dense layer, then sigmoid scores with a selection bias and a shared expert.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, FullLayers, GateAct, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "laguna", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads_by_layer()?;
    let everything = m.rope(RopeKind::Halves, heads[0].k)?;
    let windows = m.windows(FullLayers::EachFirst(4))?;
    let within = m.window_rope_if_any(&windows, everything, heads[0].k)?;
    let choice = m.choice_by_keys(Score::Sigmoid, false)?;
    let n_dense = m.leading_dense()?;
    m.model(|l| {
        let (window, heads) = (windows[l.layer], heads[l.layer]);
        let rope = if window.is_some() { within } else { everything };
        let gate = Some(l.gate(heads, GateAct::Softplus)?);
        let attention = Gqa { qk_norm: l.head_norms(heads)?, window, gate, ..l.gqa(heads, rope)? };
        let ffn = if l.layer < n_dense { l.dense()? } else { l.moe_by_bias_and_shared(choice)? };
        Ok([l.block("attn_norm", Part::Gqa(attention))?, l.block("ffn_norm", ffn)?])
    })
}
