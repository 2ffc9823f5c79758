//! What a file has and the model does not read: refused by name, unless it is known to change nothing.
//!
//! A file says what its model is. A key or a tensor that nothing reads may be a bias, a scale, a window or a layer, and
//! without it the model's text is plausible and wrong. So what is left over after reading is an error, but for the keys of
//! [`HARMLESS`], each with the values with which it does nothing here and the reason why.

use super::Blueprint;
use crate::{
    Error, Result,
    gguf::{Gguf, Metadata, Reader, Value},
};

/// What is there and not read, and why that is right. Shown by `inspect` and `run --verbose`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The whole key, or which tensors.
    pub name: String,
    /// Why the model is the same without it.
    pub reason: &'static str,
}

/// The values with which a key does nothing.
#[derive(Clone, Copy)]
enum When {
    /// Whatever it says.
    Always,
    /// 0, false, or only such.
    Zero,
    /// This number, or 0.
    ZeroOr(f64),
    /// True.
    True,
    /// What the architecture does anyway.
    Renormalises,
    /// 0, or at least as many tokens as the longest context.
    NoWindow,
    /// 0, or the default: one over the root of the length of a key.
    DefaultScale,
    /// 0 or below: llama.cpp's -1 leaves the choice to the kind of scaling, and only YaRN has any.
    NotPositive,
}

/// Keys that nothing reads. All others are refused.
const HARMLESS: &[(&str, When, &str)] = &[
    ("vocab_size", When::Always, "the embedding has a row for each token"),
    ("feed_forward_length", When::Always, "the tensors' shapes say it"),
    ("rope.scaling.original_context_length", When::Always, "only YaRN scales by it"),
    ("rope.scaling.finetuned", When::Always, "tells how the model was trained"),
    ("rope.scaling.yarn_beta_fast", When::Always, "only YaRN scales by it"),
    ("rope.scaling.yarn_beta_slow", When::Always, "only YaRN scales by it"),
    ("rope.scaling.yarn_log_multiplier", When::Always, "only YaRN scales by it"),
    ("rope.scaling.yarn_ext_factor", When::NotPositive, "it turns YaRN off"),
    ("rope.scaling.yarn_attn_factor", When::ZeroOr(1.0), "it multiplies by 1"),
    ("rope.scaling.alpha", When::ZeroOr(1.0), "it multiplies by 1"),
    ("rope.dimension_sections", When::Zero, "there are none"),
    ("rope.dimension_count_swa", When::Always, "no layer has a sliding window"),
    ("rope.freq_base_swa", When::Always, "no layer has a sliding window"),
    ("attention.layer_norm_epsilon", When::Always, "the norms are RMS norms, which have their own"),
    ("attention.causal", When::True, "attention is causal"),
    ("attention.sliding_window", When::NoWindow, "every token sees the whole context"),
    ("attention.sliding_window_pattern", When::Zero, "every token sees the whole context"),
    ("attention.scale", When::DefaultScale, "it is the default"),
    ("attention.max_alibi_bias", When::Zero, "it adds nothing"),
    ("attention.clamp_kqv", When::Zero, "it limits nothing"),
    ("attn_logit_softcapping", When::Zero, "it limits nothing"),
    ("final_logit_softcapping", When::Zero, "it limits nothing"),
    ("logit_scale", When::ZeroOr(1.0), "it multiplies by 1"),
    ("residual_scale", When::ZeroOr(1.0), "it multiplies by 1"),
    ("embedding_scale", When::ZeroOr(1.0), "it multiplies by 1"),
    ("expert_group_count", When::ZeroOr(1.0), "one group is all experts"),
    ("expert_group_used_count", When::ZeroOr(1.0), "one group is all experts"),
    ("expert_gating_func", When::ZeroOr(1.0), "the router's scores go through a softmax"),
    ("expert_weights_norm", When::Renormalises, "the architecture says so too"),
    // llama.cpp does not multiply by it in the architectures that run here, whatever it says; a file with another number
    // would have two meanings.
    ("expert_weights_scale", When::ZeroOr(1.0), "it multiplies by 1"),
    ("leading_dense_block_count", When::Zero, "the tensors say which layers have experts"),
    ("interleave_moe_layer_step", When::ZeroOr(1.0), "the tensors say which layers have experts"),
    ("moe_every_n_layers", When::ZeroOr(1.0), "the tensors say which layers have experts"),
    ("nextn_predict_layers", When::Zero, "there are none"),
    ("use_parallel_residual", When::Zero, "feed-forward blocks follow attention"),
    ("pooling_type", When::Zero, "only embedding models pool"),
    ("tensor_data_layout", When::Always, "the architecture says how heads are rotated"),
];

/// Keys outside the architecture's that say that the weights are not what they seem.
const CHANGED_WEIGHTS: &[&str] = &["prism.hadamard."];

/// What of `file` was not read and need not be. Its lists by layer have `n_block` elements.
///
/// # Errors
/// Names the first key or tensor that would have to be read, or that contradicts the blueprint.
pub(super) fn check(file: &Reader<'_>, b: &Blueprint, n_block: usize) -> Result<Vec<Unread>> {
    let gguf = file.gguf();
    check_widths(file, b, n_block)?;
    if let Some(tensor) = file.tensors_left().first() {
        return Err(Error::file(gguf.path_of(tensor), strange_tensor(b, &tensor.name)));
    }
    let mut keys = gguf.meta().iter().map(|(key, _)| key);
    if let Some(key) = keys.find(|key| CHANGED_WEIGHTS.iter().any(|prefix| key.starts_with(prefix))) {
        let key = key.escape_debug();
        let message = format!("metadata key {key} says that the weights are transformed, which hotset does not undo");
        return Err(Error::file(gguf.path(), message));
    }
    file.keys_left().into_iter().map(|(short, value)| unread(gguf, b, short, value)).collect()
}

fn strange_tensor(b: &Blueprint, name: &str) -> String {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
    let name = name.escape_debug();
    if layer.is_some_and(|layer| layer >= b.n_layer) {
        let (arch, n) = (b.arch, b.n_layer);
        return format!("{arch}.block_count is {n}, but the file has more layers: there is a tensor {name}");
    }
    format!("tensor {name} is not part of a {} model as hotset runs it; without it the answers would be wrong", b.arch)
}

/// The widths of experts that the file names are those of its tensors, and so is the number of shared experts.
fn check_widths(file: &Reader<'_>, b: &Blueprint, n_block: usize) -> Result<()> {
    let meta = file.gguf().meta();
    let left = |short: &str| file.keys_left().iter().any(|(key, _)| *key == short);
    if left("expert_feed_forward_length") {
        let key = file.key("expert_feed_forward_length");
        let widths = meta.u32_or_array(&key, n_block)?.unwrap_or_default();
        for set in b.experts() {
            check_width(meta, &key, widths[set.layer], Some(set.n_ff), set.layer)?;
        }
    }
    if left("expert_shared_feed_forward_length") {
        let key = file.key("expert_shared_feed_forward_length");
        let width = meta.u32(&key)?.unwrap_or(0);
        for moe in b.moe() {
            check_width(meta, &key, width, moe.shared.map(|shared| shared.ffn.n_ff()), moe.experts.layer)?;
        }
    }
    if left("expert_shared_count") {
        let key = file.key("expert_shared_count");
        let n_shared = meta.u32(&key)?.unwrap_or(0);
        if n_shared > 0 && b.moe().any(|moe| moe.shared.is_none()) {
            let got = format!("{n_shared}, but there are layers without the tensors of one");
            return Err(wrong(meta, &key, "0 where no layer has a shared expert", got));
        }
    }
    Ok(())
}

/// What is wrong with a key.
fn wrong(meta: &Metadata, key: &str, expected: impl ToString, got: impl ToString) -> Error {
    Error::format(meta.path(), key, expected, got)
}

fn check_width(meta: &Metadata, key: &str, said: u32, got: Option<usize>, layer: usize) -> Result<()> {
    if said == 0 || got == Some(said as usize) {
        return Ok(());
    }
    let got = got.map_or("no such tensors".to_owned(), |n| n.to_string());
    Err(wrong(meta, key, format!("{got}, as the tensors of blk.{layer} have it"), said))
}

fn unread(gguf: &Gguf, b: &Blueprint, short: &str, value: &Value) -> Result<Unread> {
    let name = format!("{}.{short}", b.arch);
    match HARMLESS.iter().find(|(known, ..)| *known == short) {
        Some(&(_, when, reason)) if does_nothing(b, when, value) => Ok(Unread { name, reason }),
        Some(_) => {
            let message = format!("metadata key {name} is {value}, which hotset does not support in this architecture");
            Err(Error::file(gguf.path(), message))
        }
        None => {
            let name = name.escape_debug();
            let message =
                format!("metadata key {name} ({value}) is unknown to hotset, and may change what the model computes");
            Err(Error::file(gguf.path(), message))
        }
    }
}

fn does_nothing(b: &Blueprint, when: When, value: &Value) -> bool {
    let all = |fine: &dyn Fn(f64) -> bool| value.numbers().is_some_and(|numbers| numbers.into_iter().all(fine));
    match when {
        When::Always => true,
        When::Zero => all(&|x| x == 0.0),
        When::ZeroOr(other) => all(&|x| x == 0.0 || x == other),
        When::True => all(&|x| x == 1.0),
        When::Renormalises => b.moe().all(|moe| all(&|x| (x == 1.0) == moe.router.choice.renormalise)),
        When::NoWindow => all(&|x| x == 0.0 || x >= b.n_ctx_train as f64),
        When::DefaultScale => b.attentions().all(|gqa| {
            let default = 1.0 / (gqa.heads.k as f64).sqrt();
            all(&|x| x == 0.0 || (x - default).abs() <= default * f64::from(f32::EPSILON))
        }),
        When::NotPositive => all(&|x| x <= 0.0),
    }
}
