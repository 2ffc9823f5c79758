//! Qwen3-30B-A3B, Qwen3-235B-A22B (arXiv 2505.09388): each query and key head is normed.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "qwen3moe", predicts: false, blueprint };

pub fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let choice = m.choice(Score::Softmax, true)?;
    m.model(|l| {
        let attention = Gqa { qk_norm: l.head_norms(heads)?, ..l.gqa(heads, rope)? };
        Ok([l.block("attn_norm", Part::gqa(attention))?, l.block("ffn_norm", l.ffn(choice)?)?])
    })
}
