//! SmallThinker-21B-A3B, 4B-A0.6B (arXiv 2507.20984): the router sees the layer's input, so that experts can be read while
//! attention computes; ReLU; every fourth layer sees everything and knows no positions, the others see a window.

use super::Arch;
use crate::{
    Result,
    blueprint::{Act, Blueprint, Gqa, Moe, Part, Reader, RopeKind, Router, RouterInput, Score},
};

pub const ARCH: Arch = Arch { name: "smallthinker", blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let windows = m.windows(|layer| layer % 4 == 0)?;
    let choice = m.choice_by_keys(Score::Softmax, true)?;
    m.model(|l| {
        let window = windows[l.layer];
        // A model without windows rotates everywhere.
        let rope = if windows.iter().all(Option::is_none) || window.is_some() { Some(rope) } else { None };
        let attention = Gqa { window, ..l.gqa(heads, rope)? };
        let moe = l.moe(choice)?;
        let router = Router { input: RouterInput::LayerInput, ..moe.router };
        let moe = Moe { router, act: Act::Relu, ..moe };
        Ok([l.block("attn_norm", Part::Gqa(attention))?, l.block("ffn_norm", Part::Moe(moe))?])
    })
}
