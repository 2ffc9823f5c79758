//! GLM-4.5, 4.6, 4.7, their Air models (arXiv 2508.06471), Solar-Open-100B: leading dense layers, then sigmoid scores with a
//! selection bias and a shared expert; queries and keys rotate in part, and are normed in the larger models.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "glm4moe", predicts: true, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let choice = m.choice_by_keys(Score::Sigmoid, true)?;
    let n_dense = m.leading_dense()?;
    m.model(|l| {
        let qk_norm = if l.has("attn_q_norm.weight") { l.head_norms(heads)? } else { None };
        let attention = Gqa { qk_norm, ..l.gqa(heads, rope)? };
        let ffn = if l.layer < n_dense { l.dense()? } else { l.moe_by_bias_and_shared(choice)? };
        Ok([l.block("attn_norm", Part::gqa(attention))?, l.block("post_attention_norm", ffn)?])
    })
}
