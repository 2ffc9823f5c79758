//! SmallThinker-21B-A3B, 4B-A0.6B (arXiv 2507.20984): the router sees the layer's input, so that experts can be read while
//! attention computes; ReLU; every fourth layer sees everything and knows no positions, the others see a window.

use super::Arch;
use crate::{
    Result,
    blueprint::{Act, Blueprint, FullLayers, Gqa, Moe, Part, Reader, RopeKind, Router, RouterInput, Score},
};

pub const ARCH: Arch = Arch { name: "smallthinker", predicts: false, blueprint };

/// Of every layer that has one. llama.cpp takes it whatever the file says, and the models that exist say the same.
const WINDOW: usize = 4096;

/// One layer of so many sees everything. To llama.cpp, a model of just so many layers knows positions in all of them.
const PERIOD: usize = 4;

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let windows = m.windows(FullLayers::EachFirst(PERIOD))?;
    let choice = m.choice_by_keys(Score::Softmax, true)?;
    m.model(|l| {
        let window = windows[l.layer].map(|_| WINDOW);
        let rotates = window.is_some() || windows.iter().all(Option::is_none) || m.n_layer == PERIOD;
        let rope = if rotates { Some(rope) } else { None };
        let attention = Gqa { window, ..l.gqa(heads, rope)? };
        let moe = l.moe(choice)?;
        let router = Router { input: RouterInput::LayerInput, ..moe.router };
        let moe = Moe { router, act: Act::Relu, ..moe };
        Ok([l.block("attn_norm", Part::Gqa(attention))?, l.block("ffn_norm", Part::Moe(moe))?])
    })
}
