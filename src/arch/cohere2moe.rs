//! Command A+ (Cohere, 2026): attention and experts read the same layer norm; one layer of four sees everything and knows no
//! positions, the others see a window and rotate; leading dense layers, then sigmoid scores and a shared expert, of which half
//! the sum is added.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, FullLayers, Gqa, Head, Moe, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "cohere2moe", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Interleaved, heads.k)?;
    if m.has_key("attention.layer_norm_epsilon") {
        m.use_layer_norms();
    }
    let windows = m.windows(FullLayers::EachFirst(4))?;
    let choice = m.choice_by_keys(Score::Sigmoid, false)?;
    let n_dense = m.leading_dense()?;
    let model = m.model(|l| {
        let (window, is_dense) = (windows[l.layer], l.layer < n_dense);
        let rope = (window.is_some() || is_dense).then_some(rope);
        let attention = Part::Gqa(Gqa { window, ..l.gqa(heads, rope)? });
        let block = l.block("attn_norm", attention)?;
        Ok([if is_dense {
            block.beside(l.dense()?, 1.0)
        } else {
            block.beside(Part::Moe(Moe { shared: Some(l.shared()?), ..l.moe(choice)? }), 0.5)
        }])
    })?;
    let scale = m.factor("logit_scale")?.unwrap_or(1.0);
    Ok(Blueprint { head: Head { scale, ..model.head }, ..model })
}
