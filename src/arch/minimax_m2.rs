//! MiniMax-M2 (MiniMax, 2025): queries and keys are normed as a whole and rotate in part; sigmoid scores with a selection
//! bias.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "minimax-m2", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    m.ignore("expert_feed_forward_length", "experts are as wide as feed_forward_length says");
    let choice = m.choice_by_keys(Score::Sigmoid, true)?;
    m.model(|l| {
        let attention = Gqa { qk_norm: l.whole_norms(heads)?, ..l.gqa(heads, rope)? };
        Ok([l.block("attn_norm", Part::gqa(attention))?, l.block("ffn_norm", Part::moe(l.moe_by_bias(choice)?))?])
    })
}
