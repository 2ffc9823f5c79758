//! A model's hyper-parameters, read from GGUF metadata and checked once, so that nothing after this has to doubt them.
//! Names are GGUF's own.

use super::{
    arch::{self, Arch},
    dense::Dense,
    unread::{self, Unread},
};
use crate::{
    Error, Result,
    expert::take_experts,
    gguf::{Gguf, Metadata, Reader, Value},
};

/// Limits on what a file may claim: an order of magnitude above any model known, far below anything that overflows.
const MAX_LAYERS: usize = 2_048;
const MAX_WIDTH: usize = 1 << 20;
const MAX_EXPERTS: usize = 4_096;

/// Limits of the same kind on numbers with a fraction. Bases in use reach some 5e10, factors 64.
const MAX_FREQ_BASE: f32 = 1e15;
const MIN_FACTOR: f32 = 1e-6;
const MAX_FACTOR: f32 = 1e6;
const MAX_EPS: f32 = 0.1;

/// See the module.
#[derive(Debug)]
pub struct Config {
    /// The architecture's row.
    pub arch: &'static Arch,
    /// Layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Elements of a query or key head.
    pub n_embd_head_k: usize,
    /// Elements of a value head.
    pub n_embd_head_v: usize,
    /// Elements of a head that rotate.
    pub n_rot: usize,
    /// The longest context that the model was trained for.
    pub n_ctx_train: usize,
    /// Entries of the vocabulary.
    pub n_vocab: usize,
    /// Base of the rotation's frequencies.
    pub rope_freq_base: f32,
    /// Positions are multiplied by this (1 / `rope.scaling.factor` for linear scaling).
    pub rope_freq_scale: f32,
    /// Queries and keys are multiplied by this where they rotate.
    pub rope_attn_factor: f32,
    /// Added to the mean square in RMS norms.
    pub rms_eps: f32,
    /// Routed experts a MoE layer.
    pub n_expert: usize,
    /// Experts used a token.
    pub n_expert_used: usize,
    /// Numbers of the MoE layers among all layers.
    pub moe_layers: Vec<usize>,
    /// Keys of the file that are not read, and why that is right.
    pub unread: Vec<Unread>,
}

impl Config {
    /// Reads and checks the whole description: no key and no tensor of the file is left over that could change what the model
    /// computes. Shapes and types of tensors are checked where they are loaded.
    ///
    /// # Errors
    /// An architecture that hotset does not have; a key that is missing, does not make sense or is not read, and a tensor
    /// that is missing or not read, by name.
    pub fn new(gguf: &Gguf) -> Result<Self> {
        let reader = Reader::new(gguf);
        let mut config = Self::read(&reader)?;
        Dense::find(&reader, &config)?;
        config.take_experts(&reader)?;
        config.unread = unread::check(&reader, &config)?;
        Ok(config)
    }

    /// Reads the hyper-parameters alone: what can be told of a file that does not run.
    ///
    /// # Errors
    /// An architecture that hotset does not have; a key that is missing or does not make sense, by name.
    pub fn read(reader: &Reader<'_>) -> Result<Self> {
        let (gguf, meta) = (reader.gguf(), reader.gguf().meta());
        let name = meta.require_str("general.architecture")?;
        let arch = arch::find(name).ok_or_else(|| {
            let known: Vec<_> = arch::ARCHS.iter().map(|a| a.name).collect();
            Error::unsupported(
                gguf.path(),
                "the architecture",
                format!("one of {}", known.join(", ")),
                name.escape_debug(),
            )
        })?;
        let keys = Keys(reader);
        let n_layer = keys.count("block_count", MAX_LAYERS)?;
        let n_embd = keys.count("embedding_length", MAX_WIDTH)?;
        let heads = Heads::read(&keys, n_layer, n_embd)?;
        // First of all that is about experts, so that a model without them is called that.
        let moe_layers = moe_layers(gguf, n_layer)?;
        let n_expert = keys.count("expert_count", MAX_EXPERTS)?;
        let n_ctx_train = keys.count("context_length", u32::MAX as usize)?;
        Ok(Self {
            arch,
            n_layer,
            n_embd,
            n_head: heads.n,
            n_head_kv: heads.n_kv,
            n_embd_head_k: heads.k,
            n_embd_head_v: heads.v,
            n_rot: heads.rot,
            n_ctx_train,
            n_vocab: n_vocab(gguf)?,
            rope_freq_base: keys.number("rope.freq_base", 1.0, MAX_FREQ_BASE)?.unwrap_or(10_000.0),
            rope_freq_scale: rope_freq_scale(&keys)?,
            rope_attn_factor: keys.number("rope.scaling.attn_factor", MIN_FACTOR, MAX_FACTOR)?.unwrap_or(1.0),
            rms_eps: rms_eps(&keys)?,
            n_expert,
            n_expert_used: keys.count("expert_used_count", n_expert)?,
            moe_layers,
            unread: Vec::new(),
        })
    }

    /// Takes the tensors of the routed experts, whose widths are those that the file says, if it says any.
    fn take_experts(&self, reader: &Reader<'_>) -> Result<()> {
        let meta = reader.gguf().meta();
        let (key, shared) = (reader.key("expert_feed_forward_length"), reader.key("expert_shared_feed_forward_length"));
        let widths = meta.u32_or_array(&key, self.n_layer)?;
        let shared_width = meta.u32(&shared)?.filter(|&n| n != 0);
        for &il in &self.moe_layers {
            let got = take_experts(reader, il, self.n_expert)?;
            let said = widths.as_ref().map(|w| w[il]).filter(|&n| n != 0);
            check_width(meta, &key, said, got, il)?;
            let gate = reader.gguf().tensor(&format!("blk.{il}.ffn_gate_shexp.weight"));
            check_width(meta, &shared, shared_width, gate.and_then(|t| t.dims.get(1).copied()), il)?;
        }
        let n_shared = meta.u32(&reader.key("expert_shared_count"))?.unwrap_or(0);
        let shared = |il: &usize| reader.gguf().tensor(&format!("blk.{il}.ffn_gate_shexp.weight")).is_some();
        if n_shared > 0 && !self.moe_layers.iter().all(shared) {
            let what = format!("{n_shared}, but there are layers without a tensor blk.N.ffn_gate_shexp.weight");
            return Err(wrong(meta, &reader.key("expert_shared_count"), "0 where no layer has a shared expert", what));
        }
        Ok(())
    }
}

/// What is wrong with a key.
fn wrong(meta: &Metadata, key: &str, expected: impl ToString, got: impl ToString) -> Error {
    Error::format(meta.path(), key, expected, got)
}

fn check_width(meta: &Metadata, key: &str, said: Option<u32>, got: Option<u64>, il: usize) -> Result<()> {
    match (said, got) {
        (Some(said), got) if got != Some(u64::from(said)) => {
            let got = got.map_or("no such tensors".to_owned(), |n| n.to_string());
            Err(wrong(meta, key, format!("{got}, as the tensors of blk.{il} have it"), said))
        }
        _ => Ok(()),
    }
}

/// The keys of an architecture, with ranges.
struct Keys<'r, 'a>(&'r Reader<'a>);

impl Keys<'_, '_> {
    fn meta(&self) -> &Metadata {
        self.0.gguf().meta()
    }

    /// A number from 1 to `max`.
    fn count(&self, short: &str, max: usize) -> Result<usize> {
        let value = self.meta().require_u32(&self.0.key(short))? as usize;
        self.in_range(short, value, max)
    }

    fn optional_count(&self, short: &str, default: usize, max: usize) -> Result<usize> {
        let value = self.meta().u32(&self.0.key(short))?.map_or(default, |v| v as usize);
        self.in_range(short, value, max)
    }

    fn in_range(&self, short: &str, value: usize, max: usize) -> Result<usize> {
        if (1..=max).contains(&value) {
            return Ok(value);
        }
        Err(wrong(self.meta(), &self.0.key(short), format!("a number from 1 to {max}"), value))
    }

    /// A number in a range, which NaN never is.
    fn number(&self, short: &str, min: f32, max: f32) -> Result<Option<f32>> {
        let key = self.0.key(short);
        match self.meta().f32(&key)? {
            Some(x) if !(min..=max).contains(&x) => {
                Err(wrong(self.meta(), &key, format!("a number from {min:e} to {max:e}"), x))
            }
            found => Ok(found),
        }
    }
}

/// The shape of the attention.
struct Heads {
    n: usize,
    n_kv: usize,
    k: usize,
    v: usize,
    rot: usize,
}

impl Heads {
    fn read(keys: &Keys<'_, '_>, n_layer: usize, n_embd: usize) -> Result<Self> {
        let meta = keys.meta();
        let n = keys.count("attention.head_count", MAX_WIDTH)?;
        let key = keys.0.key("attention.head_count_kv");
        let n_kv = match meta.u32_or_array(&key, n_layer)? {
            None => n,
            Some(list) if list.iter().all(|&n| n == list[0]) => list[0] as usize,
            Some(_) => {
                return Err(Error::unsupported(meta.path(), key, "one number for all layers", "several"));
            }
        };
        if n_kv == 0 || n % n_kv != 0 {
            return Err(wrong(meta, &key, format!("a divisor of {n}"), n_kv));
        }
        let k = keys.optional_count("attention.key_length", n_embd / n, MAX_WIDTH)?;
        let v = keys.optional_count("attention.value_length", n_embd / n, MAX_WIDTH)?;
        let rot = keys.optional_count("rope.dimension_count", k, k)?;
        for (short, value) in [("attention.key_length", k), ("rope.dimension_count", rot)] {
            if value % 2 != 0 {
                return Err(wrong(meta, &keys.0.key(short), "an even number", value));
            }
        }
        Ok(Self { n, n_kv, k, v, rot })
    }
}

/// The layers with experts: by any of their parts, so that a layer that lacks one is told apart from a dense one.
fn moe_layers(gguf: &Gguf, n_layer: usize) -> Result<Vec<usize>> {
    let is_moe = |il: &usize| {
        let parts = ["gate_inp", "gate_exps", "up_exps", "gate_up_exps", "down_exps", "gate.0", "up.0", "down.0"];
        parts.iter().any(|part| gguf.tensor(&format!("blk.{il}.ffn_{part}.weight")).is_some())
    };
    let layers: Vec<_> = (0..n_layer).filter(is_moe).collect();
    if layers.is_empty() {
        let expected = "tensors blk.N.ffn_gate_inp.weight";
        return Err(Error::unsupported(gguf.path(), "a model without experts", expected, "none"));
    }
    Ok(layers)
}

/// Rows of the embedding; a token beyond them could be asked for and has none.
fn n_vocab(gguf: &Gguf) -> Result<usize> {
    let embd = gguf.require("token_embd.weight")?;
    let n_vocab = embd.dims.get(1).map_or(0, |&n| n as usize);
    if n_vocab == 0 || n_vocab > u32::MAX as usize {
        let got = format!("{:?}", embd.dims);
        return Err(Error::format(gguf.path_of(embd), "tensor token_embd.weight", "a row for each token", got));
    }
    let n_tokens = match gguf.meta().get("tokenizer.ggml.tokens") {
        Some(Value::Array(tokens)) => tokens.len(),
        // The tokenizer says what it thinks of other things.
        _ => 0,
    };
    if n_tokens > n_vocab {
        let message =
            format!("the vocabulary has {n_tokens} tokens, but the tensor token_embd.weight has only {n_vocab} rows");
        return Err(Error::file(gguf.path(), message));
    }
    Ok(n_vocab)
}

/// Above 0, which no range of [`Keys::number`] can say.
fn rms_eps(keys: &Keys<'_, '_>) -> Result<f32> {
    let short = "attention.layer_norm_rms_epsilon";
    keys.meta().require_f32(&keys.0.key(short))?;
    Ok(keys.number(short, f32::MIN_POSITIVE, MAX_EPS)?.expect("it is there"))
}

/// 1 without scaling, 1 / factor for linear scaling; other kinds change the arithmetic and are refused.
fn rope_freq_scale(keys: &Keys<'_, '_>) -> Result<f32> {
    let legacy = keys.number("rope.scale_linear", MIN_FACTOR, MAX_FACTOR)?;
    let factor = keys.number("rope.scaling.factor", MIN_FACTOR, MAX_FACTOR)?.or(legacy).unwrap_or(1.0);
    let key = keys.0.key("rope.scaling.type");
    match keys.meta().str(&key)? {
        Some("none") => Ok(1.0),
        None | Some("linear") => Ok(1.0 / factor),
        Some(other) => Err(Error::unsupported(keys.meta().path(), key, "none or linear", other.escape_debug())),
    }
}
