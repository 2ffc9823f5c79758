//! Qwen3.5-35B-A3B, Qwen3.6-35B-A3B and larger (Qwen, 2026), text only: the parts of Qwen3-Next.

use super::{Arch, qwen3next};
use crate::{
    Result,
    blueprint::{Blueprint, KeyHeads, Reader},
};

pub const ARCH: Arch = Arch { name: "qwen35moe", predicts: true, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    m.ignore("rope.dimension_sections", "a text token has the same position in every section");
    qwen3next::blueprint(m, KeyHeads::InTurn)
}
