//! Qwen3-Next-80B-A3B, Qwen3-Coder-Next (Qwen, 2025): three layers of a gated delta rule, then one of gated attention.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, GateAct, KeyHeads, Moe, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "qwen3next", predicts: true, blueprint: |m| blueprint(m, KeyHeads::InRuns) };

/// One layer of so many attends, where the file does not say.
const PERIOD: usize = 4;

/// The model, by which key head a value head reads.
pub fn blueprint(m: &Reader<'_>, key_heads: KeyHeads) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let choice = m.choice(Score::Softmax, true)?;
    let recurrent = m.recurrent_layers(PERIOD)?;
    m.model(|l| {
        let mixer = if recurrent[l.layer] {
            l.delta_net(key_heads, GateAct::Silu)?
        } else {
            Part::gqa(l.gqa_with_gated_queries(heads, rope)?)
        };
        let moe = Moe { shared: Some(l.gated_shared()?), ..l.moe(choice)? };
        Ok([l.block("attn_norm", mixer)?, l.block("post_attention_norm", Part::moe(moe))?])
    })
}
