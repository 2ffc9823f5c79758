//! GLM-5.3-Flash 320B-A18B (Zhipu, 2026): Kimi Delta Attention in most layers, latent attention without positions in the others,
//! between four residual streams that are mixed; leading dense layers, then sigmoid scores with a selection bias and a shared
//! expert. An indexer chooses which pools of tokens a long context's attention looks at.

use super::{Arch, step35};
use crate::{
    Result,
    blueprint::{Blueprint, Connection, DeltaNet, Gqa, Head, Part, Reader, Score},
};

pub const ARCH: Arch = Arch { name: "glm5-next", predicts: true, blueprint };

/// As the first files have it.
pub const EARLY: Arch = Arch { name: "glm5next", ..ARCH };

/// Added to the square of a query's or key's length, whatever the norms add.
const EPS: f32 = 1e-6;

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let (latent, recurrent) =
        (m.latent_sizes(m.count_from_zero("rope.dimension_count", 0)?)?, m.layers_without_heads()?);
    let indexers = m.pool_indexers(latent, &recurrent)?;
    let (decay, mixture) = (m.bounded_decay(-1.0)?, m.mixture()?);
    let choice = m.choice_by_keys(Score::Sigmoid, true)?;
    let (n_dense, limits) = (m.leading_dense()?, step35::limits_before(m)?);
    let model = m.model_of_streams(mixture.n, Connection::Mean, |l| {
        let mixer = if recurrent[l.layer] {
            Part::DeltaNet(DeltaNet { eps: EPS, ..l.kda(decay)? })
        } else {
            let indexer = indexers.as_ref().map(|indexers| l.indexer(indexers, latent)).transpose()?.flatten();
            Part::gqa(Gqa { indexer, ..l.mla(latent, None)? })
        };
        let ffn = limits.ffn(l, choice, l.layer >= n_dense)?;
        Ok([
            l.block("attn_norm", mixer)?.connected(l.mixed_streams("attn", mixture)?),
            l.block("ffn_norm", ffn)?.connected(l.mixed_streams("ffn", mixture)?),
        ])
    })?;
    Ok(Blueprint { head: Head { norm: Some(m.final_norm()?), ..model.head }, ..model })
}
