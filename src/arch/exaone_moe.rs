//! K-EXAONE-236B-A23B (LG, 2026): three layers of four see a window and rotate, the fourth sees everything and knows no
//! positions; each query and key head is normed; leading dense layers, then sigmoid scores with a selection bias and a shared
//! expert.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, FullLayers, Gqa, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "exaone-moe", predicts: true, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let windows = m.windows(FullLayers::EachLast(4))?;
    let choice = m.choice_by_keys(Score::Sigmoid, false)?;
    let n_dense = m.leading_dense()?;
    m.model(|l| {
        let window = windows[l.layer];
        let rotates = window.is_some() || windows.iter().all(Option::is_none);
        let rope = if rotates { Some(rope) } else { None };
        let attention = Gqa { qk_norm: l.head_norms(heads)?, window, ..l.gqa(heads, rope)? };
        let ffn = if l.layer < n_dense { l.dense()? } else { l.moe_by_bias_and_shared(choice)? };
        Ok([l.block("attn_norm", Part::Gqa(attention))?, l.block("ffn_norm", ffn)?])
    })
}
