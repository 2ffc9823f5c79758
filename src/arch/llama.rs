//! Mixtral (arXiv 2401.04088): `llama` with experts.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "llama", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Interleaved, heads.k)?;
    let choice = m.choice(Score::Softmax, true)?;
    m.model(|l| Ok([l.block("attn_norm", Part::gqa(l.gqa(heads, rope)?))?, l.block("ffn_norm", l.ffn(choice)?)?]))
}
