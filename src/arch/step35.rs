//! Step-3.5-Flash (StepFun, 2026): heads by layer, a gate on each head, layers that see a window and rotate with another base;
//! sigmoid scores with a selection bias and a shared expert, activations limited in some layers.

use super::Arch;
use crate::{
    Result,
    blueprint::{Act, Blueprint, FullLayers, GateAct, Gated, Gqa, Moe, Part, Reader, Rope, RopeKind, Score, Shared},
};

pub const ARCH: Arch = Arch { name: "step35", predicts: true, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads_by_layer()?;
    // The whole rotation is that of layers with a window; the others rotate half as much, by the first of the divisors.
    let whole = m.rope(RopeKind::Halves, heads[0].k)?;
    let everything =
        Rope { divisors: whole.divisors.map(|d| d.elements(0..whole.n_rot / 4)), n_rot: whole.n_rot / 2, ..whole };
    let within = m.window_rope(whole, heads[0].k)?;
    let windows = m.windows(FullLayers::Listed)?;
    let choice = m.choice_by_keys(Score::Sigmoid, false)?;
    let limits = |short: &str| m.numbers_by_layer(short);
    let (routed, shared) = (limits("swiglu_clamp_exp")?, limits("swiglu_clamp_shexp")?);
    m.model(|l| {
        let (window, heads) = (windows[l.layer], heads[l.layer]);
        let rope = if window.is_some() { within } else { everything };
        let gate = Some(l.gate(heads, GateAct::Sigmoid)?);
        let attention = Gqa { qk_norm: l.head_norms(heads)?, window, gate, ..l.gqa(heads, rope)? };
        let every = Gated { act: act(shared[l.layer]), ..l.gated(if l.is_moe() { "_shexp" } else { "" })? };
        let ffn = if l.is_moe() {
            let shared = Some(Shared { ffn: every, gate: None });
            Part::Moe(Moe { act: act(routed[l.layer]), shared, ..l.moe_by_bias(choice)? })
        } else {
            Part::Dense(every)
        };
        Ok([l.block("attn_norm", Part::Gqa(attention))?, l.block("ffn_norm", ffn)?])
    })
}

/// With outputs of the gate limited to `limit`, of which 0 means none.
fn act(limit: f32) -> Act {
    if limit > 0.0 { Act::SiluClamped { limit } } else { Act::Silu }
}
