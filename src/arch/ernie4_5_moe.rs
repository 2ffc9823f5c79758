//! ERNIE-4.5-21B-A3B, -300B-A47B (Baidu, 2025): leading dense layers, then a softmax with a selection bias, and a shared
//! expert.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "ernie4_5-moe", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Interleaved, heads.k)?;
    let choice = m.choice_by_keys(Score::Softmax, true)?;
    let is_moe = m.moe_layers()?;
    m.model(|l| {
        let ffn = if is_moe[l.layer] { l.moe_by_bias_and_shared(choice)? } else { l.dense()? };
        Ok([l.block("attn_norm", Part::Gqa(l.gqa(heads, rope)?))?, l.block("ffn_norm", ffn)?])
    })
}
