//! DeepSeek-V2, -V2-Lite, -V3, -R1 (arXiv 2405.04434, 2412.19437), Kimi-K2, GLM-4.7-Flash: latent attention; leading dense
//! layers, then experts in groups, with a selection bias in the newer ones, and a shared expert.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, Gqa, IndexerSizes, Part, Reader, RopeKind, Score, Temperature},
};

pub const ARCH: Arch = Arch { name: "deepseek2", predicts: true, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    latent(m, true, None)
}

/// `cancels`: see [`Reader::latent_yarn`].
pub fn latent(m: &Reader<'_>, cancels: bool, indexers: Option<&IndexerSizes>) -> Result<Blueprint> {
    let sizes = m.latent_sizes(m.rotating_length()?)?;
    let rope = m.rope(RopeKind::Interleaved, sizes.rot)?;
    let (rope, factor) = m.latent_yarn(rope, cancels)?;
    let temperature = match m.factor("attention.temperature_scale")? {
        Some(scale) => {
            Some(Temperature { scale, length: m.count("attention.temperature_length", usize::MAX)?, offset: 0 })
        }
        None => None,
    };
    let choice = m.choice_by_keys(Score::Softmax, false)?;
    let n_dense = m.leading_dense()?;
    m.model(|l| {
        let attention = l.mla(sizes, rope)?;
        let indexer = indexers.map(|indexers| l.indexer(indexers, sizes)).transpose()?.flatten();
        let attention = Gqa { scale: attention.scale * factor, temperature, indexer, ..attention };
        let ffn = if l.layer < n_dense { l.dense()? } else { Part::moe(l.moe_by_bias_if_any(choice)?) };
        Ok([l.block("attn_norm", Part::gqa(attention))?, l.block("ffn_norm", ffn)?])
    })
}
