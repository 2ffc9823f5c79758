//! DeepSeek-V3.2 (arXiv 2512.02556): DeepSeek-V3, where an indexer chooses what attention looks at in long contexts.

use super::{Arch, deepseek2};
use crate::{
    Result,
    blueprint::{Blueprint, Reader},
};

pub const ARCH: Arch = Arch { name: "deepseek32", predicts: true, blueprint };

pub fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let indexers = m.indexers(m.latent_sizes(m.rotating_length()?)?)?;
    deepseek2::latent(m, false, indexers.as_ref())
}
