//! Hunyuan-A13B (Tencent, 2025): queries and keys rotate before they are normed; a shared expert.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Gqa, Moe, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "hunyuan-moe", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    m.ignore("expert_feed_forward_length", "experts are as wide as feed_forward_length says");
    let choice = m.choice(Score::Softmax, true)?;
    m.model(|l| {
        let attention = Gqa { qk_norm: l.head_norms(heads)?, rotates_first: true, ..l.gqa(heads, rope)? };
        let moe = Moe { shared: Some(l.shared()?), ..l.moe(choice)? };
        Ok([l.block("attn_norm", Part::Gqa(attention))?, l.block("ffn_norm", Part::Moe(moe))?])
    })
}
