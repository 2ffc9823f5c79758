//! dots.llm1 (arXiv 2506.05767): leading dense layers, then sigmoid scores with a selection bias and a shared expert; each
//! query and key head is normed.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "dots1", predicts: false, blueprint };

pub fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let choice = m.choice_by_keys(Score::Sigmoid, false)?;
    let n_dense = m.leading_dense()?;
    m.model(|l| {
        let attention = Gqa { qk_norm: l.head_norms(heads)?, ..l.gqa(heads, rope)? };
        let ffn = if l.layer < n_dense { l.dense()? } else { l.moe_by_bias_and_shared(choice)? };
        Ok([l.block("attn_norm", Part::gqa(attention))?, l.block("ffn_norm", ffn)?])
    })
}
