//! DeepSeek-V4-Flash 284B (DeepSeek, 2026): four residual streams that are mixed; attention over compressed blocks; the first
//! layers look a token's experts up, the others have scores with a selection bias; a shared expert.

use super::{Arch, step35};
use crate::{
    Result,
    blueprint::{Blueprint, Head, Reader, Score},
};

pub const ARCH: Arch = Arch { name: "deepseek4", predicts: true, blueprint };

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    let (shape, mixture) = (m.compressed_shape()?, m.mixture()?);
    let choice = m.choice_by_keys(Score::SqrtSoftplus, true)?;
    let limits = step35::limits_before(m)?;
    let n_hash = m.count_from_zero("hash_layer_count", m.n_layer)?;
    let model = m.model_of_streams(mixture.n, m.mixed_output(mixture)?, |l| {
        let moe = if l.layer < n_hash { l.moe_by_token(choice)? } else { l.moe_by_bias(choice)? };
        Ok([
            l.block("attn_norm", l.compressed(&shape)?)?.connected(l.mixed_streams("attn", mixture)?),
            l.block("ffn_norm", limits.moe(l, moe)?)?.connected(l.mixed_streams("ffn", mixture)?),
        ])
    })?;
    Ok(Blueprint { head: Head { norm: Some(m.final_norm()?), ..model.head }, ..model })
}
