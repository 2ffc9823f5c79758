//! Qwen1.5-MoE, Qwen2-57B-A14B (arXiv 2407.10671): a shared expert behind a sigmoid gate; biases of queries, keys and
//! values.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Moe, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "qwen2moe", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let choice = m.choice(Score::Softmax, false)?;
    m.model(|l| {
        let ffn = match l.ffn(choice)? {
            Part::Moe(moe) => Part::moe(Moe { shared: Some(l.gated_shared()?), ..*moe }),
            dense => dense,
        };
        Ok([l.block("attn_norm", Part::gqa(l.gqa(heads, rope)?))?, l.block("ffn_norm", ffn)?])
    })
}
