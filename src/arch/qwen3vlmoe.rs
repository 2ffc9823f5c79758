//! Qwen3-VL-30B-A3B, Qwen3-Omni-30B-A3B (arXiv 2511.21631): the text model, which is qwen3moe.

use super::{Arch, qwen3moe};
use crate::{
    Result,
    blueprint::{Blueprint, Reader},
};

pub const ARCH: Arch = Arch { name: "qwen3vlmoe", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    m.ignore("rope.dimension_sections", "text has the same position in all of them");
    m.ignore("n_deepstack_layers", "text has nothing from a vision tower");
    qwen3moe::blueprint(m)
}
