//! MiniMax-M3 (MiniMax, 2026): each query and key head is normed and rotates in part; leading dense layers, then sigmoid
//! scores with a selection bias and a shared expert; gpt-oss's activation. An indexer chooses which blocks of a long context
//! attention looks at: while all of them are chosen, it looks at everything.

use super::Arch;
use crate::{
    Result,
    blueprint::{Act, Blueprint, Gated, Gqa, Moe, Part, Reader, RopeKind, Score, Shared},
};

pub const ARCH: Arch = Arch { name: "minimax-m3", predicts: true, blueprint };

const ACT: Act = Act::SwigluOai { alpha: 1.702, limit: 7.0 };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let blocks = m.count("attention.indexer.top_k", u32::MAX as usize)?;
    let block = m.count("attention.indexer.block_size", u32::MAX as usize)?;
    m.limit_to_indexed(blocks.saturating_mul(block));
    let choice = m.choice_by_keys(Score::Sigmoid, true)?;
    let n_dense = m.leading_dense()?;
    m.model(|l| {
        let attention = Gqa { qk_norm: l.head_norms(heads)?, ..l.gqa(heads, rope)? };
        let ffn = if l.layer < n_dense {
            Part::Dense(Gated { act: ACT, ..l.gated("")? })
        } else {
            let shared = Some(Shared { ffn: Gated { act: ACT, ..l.gated("_shexp")? }, gate: None });
            Part::Moe(Moe { act: ACT, shared, ..l.moe_by_bias(choice)? })
        };
        Ok([l.block("attn_norm", Part::Gqa(attention))?, l.block("ffn_norm", ffn)?])
    })
}
