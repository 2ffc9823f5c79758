//! What a file has and the model does not read: refused by name, unless it is known to change nothing.
//!
//! A file says what its model is. A key or a tensor that nothing reads may be a bias, a scale, a window or a layer, and
//! without it the model's text is plausible and wrong. So what is left over after reading is an error, but for the keys of
//! [`HARMLESS`], each with the values with which it does nothing here and the reason why.

use super::Config;
use crate::{
    Error, Result,
    gguf::{Gguf, Reader, Value},
};

/// A key that is there and not read, and why that is right. Shown by `inspect` and `run --verbose`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The whole key.
    pub key: String,
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
    /// 0 or below: llama.cpp's -1 leaves the choice to the kind of scaling, and YaRN is refused.
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

/// What of `reader`'s file was not read and need not be.
///
/// # Errors
/// Names the first key or tensor that would have to be read.
pub(super) fn check(reader: &Reader<'_>, c: &Config) -> Result<Vec<Unread>> {
    let gguf = reader.gguf();
    check_layers(gguf, c)?;
    if let Some(tensor) = reader.tensors_left().first() {
        let message = format!(
            "tensor {} is not part of a {} model as hotset runs it; without it the answers would be wrong",
            tensor.name.escape_debug(),
            c.arch.name
        );
        return Err(Error::file(gguf.path_of(tensor), message));
    }
    let mut keys = gguf.meta().iter().map(|(key, _)| key);
    if let Some(key) = keys.find(|key| CHANGED_WEIGHTS.iter().any(|prefix| key.starts_with(prefix))) {
        let key = key.escape_debug();
        let message = format!("metadata key {key} says that the weights are transformed, which hotset does not undo");
        return Err(Error::file(gguf.path(), message));
    }
    reader.keys_left().into_iter().map(|(short, value)| unread(gguf, c, short, value)).collect()
}

/// The layers that the file has tensors for are those that it says it has.
fn check_layers(gguf: &Gguf, c: &Config) -> Result<()> {
    let layer = |name: &str| name.strip_prefix("blk.")?.split_once('.')?.0.parse::<usize>().ok();
    let beyond = gguf.tensors().iter().find(|t| layer(&t.name).is_some_and(|il| il >= c.n_layer));
    let Some(tensor) = beyond else { return Ok(()) };
    let message = format!(
        "{}.block_count is {}, but the file has more layers: there is a tensor {}",
        c.arch.name,
        c.n_layer,
        tensor.name.escape_debug()
    );
    Err(Error::file(gguf.path_of(tensor), message))
}

fn unread(gguf: &Gguf, c: &Config, short: &str, value: &Value) -> Result<Unread> {
    let key = format!("{}.{short}", c.arch.name);
    match HARMLESS.iter().find(|(known, ..)| *known == short) {
        Some(&(_, when, reason)) if does_nothing(c, when, value) => Ok(Unread { key, reason }),
        Some(_) => {
            let message = format!("metadata key {key} is {value}, which hotset does not support in this architecture");
            Err(Error::file(gguf.path(), message))
        }
        None => {
            let key = key.escape_debug();
            let message =
                format!("metadata key {key} ({value}) is unknown to hotset, and may change what the model computes");
            Err(Error::file(gguf.path(), message))
        }
    }
}

fn does_nothing(c: &Config, when: When, value: &Value) -> bool {
    let all = |fine: &dyn Fn(f64) -> bool| value.numbers().is_some_and(|numbers| numbers.into_iter().all(fine));
    match when {
        When::Always => true,
        When::Zero => all(&|x| x == 0.0),
        When::ZeroOr(other) => all(&|x| x == 0.0 || x == other),
        When::True => all(&|x| x == 1.0),
        When::Renormalises => all(&|x| (x == 1.0) == c.arch.renormalise),
        When::NoWindow => all(&|x| x == 0.0 || x >= c.n_ctx_train as f64),
        When::DefaultScale => {
            let default = 1.0 / (c.n_embd_head_k as f64).sqrt();
            all(&|x| x == 0.0 || (x - default).abs() <= default * f64::from(f32::EPSILON))
        }
        When::NotPositive => all(&|x| x <= 0.0),
    }
}
