//! LFM2-8B-A1B, LFM2-24B-A2B (Liquid AI, arXiv 2511.23404): short convolutions, and attention in some layers.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "lfm2moe", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads_if_any()?;
    let n_dense = m.leading_dense()?;
    let choice = m.choice_by_keys(Score::Sigmoid, true)?;
    m.model_with_final_norm("token_embd_norm", |l| {
        let mixer = match heads[l.layer] {
            Some(heads) => {
                let rope = m.rope(RopeKind::Halves, heads.k)?;
                Part::gqa(Gqa { qk_norm: l.head_norms(heads)?, ..l.gqa(heads, rope)? })
            }
            None => l.short_conv()?,
        };
        let ffn = if l.layer < n_dense { l.dense()? } else { Part::moe(l.moe_by_bias(choice)?) };
        Ok([l.block("attn_norm", mixer)?, l.block("ffn_norm", ffn)?])
    })
}
