//! Step-3.5-Flash (StepFun, 2026): heads by layer, a gate on each head, layers that see a window and rotate with another base;
//! sigmoid scores with a selection bias and a shared expert, activations limited in some layers.

use super::Arch;
use crate::{
    Result,
    blueprint::{
        Act, Blueprint, Choice, FullLayers, GateAct, Gated, Gqa, LayerReader, Moe, Part, Reader, Rope, RopeKind, Score,
        Shared,
    },
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
    let limits = limits(m)?;
    m.model(|l| {
        let (window, heads) = (windows[l.layer], heads[l.layer]);
        let rope = if window.is_some() { within } else { everything };
        let gate = Some(l.gate(heads, GateAct::Sigmoid)?);
        let attention = Gqa { qk_norm: l.head_norms(heads)?, window, gate, ..l.gqa(heads, rope)? };
        let ffn = limits.ffn(l, choice, l.is_moe())?;
        Ok([l.block("attn_norm", Part::gqa(attention))?, l.block("ffn_norm", ffn)?])
    })
}

/// Limits of activations by layer, of which 0 means none.
pub struct Limits {
    routed: Vec<f32>,
    /// Of what every token takes: shared experts and dense layers.
    every: Vec<f32>,
    /// What becomes of one.
    act: fn(f32) -> Act,
}

/// What the file limits activations to.
pub fn limits(m: &Reader<'_>) -> Result<Limits> {
    let (routed, every) = (m.numbers_by_layer("swiglu_clamp_exp")?, m.numbers_by_layer("swiglu_clamp_shexp")?);
    Ok(Limits { routed, every, act })
}

/// The same, where inputs of activations are limited, and what every token takes as experts are if the file says no more.
pub fn limits_before(m: &Reader<'_>) -> Result<Limits> {
    let routed = m.numbers_by_layer("swiglu_clamp_exp")?;
    let short = "swiglu_clamp_shexp";
    let every = if m.has_key(short) { m.numbers_by_layer(short)? } else { routed.clone() };
    Ok(Limits { routed, every, act: Act::clamped })
}

impl Limits {
    /// Experts with a selection bias and a shared one, or a dense network, within the limits.
    pub fn ffn(&self, l: &LayerReader<'_, '_>, choice: Choice, is_moe: bool) -> Result<Part> {
        if is_moe {
            return self.moe(l, l.moe_by_bias(choice)?);
        }
        Ok(Part::Dense(Gated { act: (self.act)(self.every[l.layer]), ..l.gated("")? }))
    }

    /// Experts and a shared one within the limits.
    pub fn moe(&self, l: &LayerReader<'_, '_>, moe: Moe) -> Result<Part> {
        let [routed, every] = [&self.routed, &self.every].map(|limits| (self.act)(limits[l.layer]));
        let ffn = Gated { act: every, ..l.gated("_shexp")? };
        Ok(Part::moe(Moe { act: routed, shared: Some(Shared { ffn, gate: None }), ..moe }))
    }
}

/// With outputs of the gate limited to `limit`, of which 0 means none.
fn act(limit: f32) -> Act {
    if limit > 0.0 { Act::SiluClamped { limit } } else { Act::Silu }
}
