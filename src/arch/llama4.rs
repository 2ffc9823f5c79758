//! Llama 4 Scout and Maverick (Meta, 2025): an expert's weight multiplies its input; every fourth layer knows no positions
//! and looks at all of them, the others at chunks of 8192.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Gqa, Moe, Part, Reader, RopeKind, Score, Temperature},
};

pub const ARCH: Arch = Arch { name: "llama4", predicts: false, blueprint };

/// Positions of a chunk, and of a step of the temperature. llama.cpp takes both whatever the file says.
const CHUNK: usize = 8192;

/// One layer of so many knows no positions.
const PERIOD: usize = 4;

/// Maverick has so many experts and norms neither queries nor keys.
const MAVERICK: usize = 128;

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Interleaved, heads.k)?;
    let choice = m.choice(Score::Sigmoid, false)?;
    let is_moe = m.moe_layers()?;
    let (norm, n_ctx) = (m.plain_norm(heads.k)?, m.n_ctx_train()?);
    m.model(|l| {
        let attention = if (l.layer + 1).is_multiple_of(PERIOD) {
            let temperature = Some(Temperature { scale: 0.1, length: CHUNK, offset: 1 });
            Gqa { temperature, ..l.gqa(heads, None)? }
        } else {
            let qk_norm = if m.n_expert == MAVERICK { None } else { Some([norm; 2]) };
            // In a context of one chunk, everything is seen.
            let window = Some(CHUNK).filter(|&chunk| chunk < n_ctx);
            Gqa { qk_norm, rotates_first: true, window, chunked: true, ..l.gqa(heads, rope)? }
        };
        let ffn = if is_moe[l.layer] {
            Part::moe(Moe { weighs_input: true, shared: Some(l.shared()?), ..l.moe(choice)? })
        } else {
            l.dense()?
        };
        Ok([l.block("attn_norm", Part::gqa(attention))?, l.block("ffn_norm", ffn)?])
    })
}
