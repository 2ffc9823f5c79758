//! OLMoE (arXiv 2409.02060): queries and keys are normed as a whole.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "olmoe", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let choice = m.choice(Score::Softmax, false)?;
    m.model(|l| {
        let attention = Gqa { qk_norm: l.whole_norms(heads)?, ..l.gqa(heads, rope)? };
        Ok([l.block("attn_norm", Part::gqa(attention))?, l.block("ffn_norm", l.ffn(choice)?)?])
    })
}
