//! Mistral Small 4 119B (Mistral, 2026): the parts of DeepSeek-V3, with queries that grow with their positions.

use super::{Arch, deepseek2};
use crate::{
    Result,
    blueprint::{Blueprint, Reader},
};

pub const ARCH: Arch = Arch { name: "mistral4", predicts: false, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    deepseek2::latent(m, false, None)
}
