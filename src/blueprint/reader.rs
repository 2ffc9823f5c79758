//! What an architecture's file reads a model with: hyper-parameters by key, tensors by name, and the parts that most
//! architectures share. Everything is checked once, so that nothing after this has to doubt it; and whatever is taken is
//! marked, so that what nobody took can be refused by name.

use std::cell::RefCell;

use super::{
    Act, Block, Blueprint, Choice, ExpertSet, Gated, Gqa, Head, Heads, Linear, Moe, Norm, Part, Rope, RopeKind, Router,
    RouterInput, Score, Shape, Shared, Tensor, Unread, Yarn, unread,
};
use crate::{
    Error, Result,
    gguf::{self, Gguf, Value},
};

/// Limits on what a file may claim: an order of magnitude above any model known, far below anything that overflows.
const MAX_LAYERS: usize = 2_048;
const MAX_WIDTH: usize = 1 << 20;
const MAX_EXPERTS: usize = 4_096;

/// Limits of the same kind on numbers with a fraction. Bases in use reach some 5e10, factors 64.
const MAX_FREQ_BASE: f32 = 1e15;
const FACTORS: (f32, f32) = (1e-6, 1e6);
const MAX_EPS: f32 = 0.1;

/// See the module.
pub struct Reader<'a> {
    file: gguf::Reader<'a>,
    arch: &'static str,
    /// Layers of the file: the length of its lists by layer.
    n_block: usize,
    /// Layers that run.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Routed experts of each MoE layer.
    pub n_expert: usize,
    /// Added to the mean square in RMS norms.
    pub eps: f32,
    ignored: RefCell<Vec<Unread>>,
}

impl<'a> Reader<'a> {
    /// Reads what every architecture has. `predicts`: some of its files end with prediction heads.
    ///
    /// # Errors
    /// A key that is missing or does not make sense, by name; a model without experts.
    pub fn new(gguf: &'a Gguf, arch: &'static str, predicts: bool) -> Result<Self> {
        let file = gguf::Reader::new(gguf);
        let mut m =
            Self { file, arch, n_block: 0, n_layer: 0, n_embd: 0, n_expert: 0, eps: 0.0, ignored: RefCell::default() };
        m.n_block = m.count("block_count", MAX_LAYERS)?;
        m.n_layer = m.n_block - if predicts { m.prediction_layers()? } else { 0 };
        m.n_embd = m.count("embedding_length", MAX_WIDTH)?;
        if !(0..m.n_layer).any(|layer| m.layer(layer).is_moe()) {
            let expected = "tensors blk.N.ffn_gate_inp.weight";
            return Err(Error::unsupported(gguf.path(), "a model without experts", expected, "none"));
        }
        m.n_expert = m.count("expert_count", MAX_EXPERTS)?;
        gguf.meta().require_f32(&m.key("attention.layer_norm_rms_epsilon"))?;
        m.eps = m.number("attention.layer_norm_rms_epsilon", (f32::MIN_POSITIVE, MAX_EPS))?.expect("it is there");
        Ok(m)
    }

    /// How many layers at the end are prediction heads, which guess a token after the next one: nothing that decoding needs.
    fn prediction_layers(&self) -> Result<usize> {
        let key = self.key("nextn_predict_layers");
        match self.gguf().meta().u32(&key)?.unwrap_or(0) as usize {
            n if n < self.n_block => Ok(n),
            n => Err(Error::format(self.gguf().path(), key, format!("a number below {}", self.n_block), n)),
        }
    }

    /// The file.
    pub(super) fn gguf(&self) -> &'a Gguf {
        self.file.gguf()
    }

    /// The whole name of a key of this architecture, which counts as read from now on.
    fn key(&self, short: &str) -> String {
        self.file.key(short)
    }

    fn within(&self, key: &str, value: usize, max: usize) -> Result<usize> {
        if (1..=max).contains(&value) {
            return Ok(value);
        }
        Err(Error::format(self.gguf().path(), key, format!("a number from 1 to {max}"), value))
    }

    /// A whole number from 1 to `max`.
    ///
    /// # Errors
    /// If it is another, or missing.
    pub fn count(&self, short: &str, max: usize) -> Result<usize> {
        let key = self.key(short);
        self.within(&key, self.gguf().meta().require_u32(&key)? as usize, max)
    }

    /// The same with a default.
    ///
    /// # Errors
    /// If it is another, the default too.
    pub fn count_or(&self, short: &str, default: usize, max: usize) -> Result<usize> {
        let key = self.key(short);
        self.within(&key, self.gguf().meta().u32(&key)?.map_or(default, |v| v as usize), max)
    }

    /// A number in a range, which NaN never is, if it is there.
    ///
    /// # Errors
    /// If there is something else.
    pub fn number(&self, short: &str, (min, max): (f32, f32)) -> Result<Option<f32>> {
        let key = self.key(short);
        match self.gguf().meta().f32(&key)? {
            Some(x) if !(min..=max).contains(&x) => {
                Err(Error::format(self.gguf().path(), key, format!("a number from {min:e} to {max:e}"), x))
            }
            found => Ok(found),
        }
    }

    /// What the file says of its figures, whether it runs or not.
    ///
    /// # Errors
    /// A key that is missing or does not make sense.
    pub fn shape(&self) -> Result<Shape> {
        Shape::new(self)
    }

    /// Takes a key that text needs nothing of, and says why.
    pub fn ignore(&self, short: &str, reason: &'static str) {
        if self.file.keys_left().iter().any(|(key, _)| *key == short) {
            self.ignored.borrow_mut().push(Unread { name: self.key(short), reason });
        }
    }

    /// The longest context that the model was trained for, in tokens.
    pub(super) fn n_ctx_train(&self) -> Result<usize> {
        self.count("context_length", u32::MAX as usize)
    }

    /// Rows of the embedding. A token beyond them could be asked for and has none.
    pub(super) fn n_vocab(&self) -> Result<usize> {
        let (gguf, embd) = (self.gguf(), self.gguf().require("token_embd.weight")?);
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
            let message = format!(
                "the vocabulary has {n_tokens} tokens, but the tensor token_embd.weight has only {n_vocab} rows"
            );
            return Err(Error::file(gguf.path_of(embd), message));
        }
        Ok(n_vocab)
    }

    /// Numbers and sizes of heads, the same in all layers.
    ///
    /// # Errors
    /// A key that does not make sense, or says something else of each layer.
    pub fn heads(&self) -> Result<Heads> {
        let path = self.gguf().path();
        let n_head = self.count("attention.head_count", MAX_WIDTH)?;
        let key = self.key("attention.head_count_kv");
        let n_head_kv = match self.gguf().meta().u32_or_array(&key, self.n_block)? {
            None => n_head,
            Some(list) if list.iter().all(|&n| n == list[0]) => list[0] as usize,
            Some(_) => return Err(Error::unsupported(path, key, "one number for all layers", "several")),
        };
        if n_head_kv == 0 || n_head % n_head_kv != 0 {
            return Err(Error::format(path, key, format!("a divisor of {n_head}"), n_head_kv));
        }
        let k = self.count_or("attention.key_length", self.n_embd / n_head, MAX_WIDTH)?;
        let v = self.count_or("attention.value_length", self.n_embd / n_head, MAX_WIDTH)?;
        self.even("attention.key_length", k)?;
        Ok(Heads { n_head, n_head_kv, k, v })
    }

    /// Rotation of heads of `head` elements, with the scaling that the file asks for.
    ///
    /// # Errors
    /// A key that does not make sense, or asks for another scaling; divisors of another shape.
    pub fn rope(&self, kind: RopeKind, head: usize) -> Result<Rope> {
        let n_rot = self.count_or("rope.dimension_count", head, head)?;
        self.even("rope.dimension_count", n_rot)?;
        let base = self.number("rope.freq_base", (1.0, MAX_FREQ_BASE))?.unwrap_or(10_000.0);
        let (ty, legacy) = (self.key("rope.scaling.type"), self.number("rope.scale_linear", FACTORS)?);
        let factor = self.number("rope.scaling.factor", FACTORS)?.or(legacy).unwrap_or(1.0);
        let magnitude = self.number("rope.scaling.attn_factor", FACTORS)?.unwrap_or(1.0);
        let divisors = self.vector_if_there("rope_freqs.weight", n_rot / 2)?;
        let rope = Rope { kind, n_rot, base, scale: 1.0 / factor, divisors, yarn: None, magnitude };
        match self.gguf().meta().str(&ty)? {
            Some("none") => Ok(Rope { scale: 1.0, ..rope }),
            None | Some("linear") => Ok(rope),
            Some("yarn") => {
                let magnitude = magnitude * self.number("rope.scaling.yarn_attn_factor", FACTORS)?.unwrap_or(1.0);
                let magnitude = magnitude * (1.0 + 0.1 * factor.ln());
                Ok(Rope { yarn: Some(self.yarn()?), magnitude, ..rope })
            }
            Some(other) => {
                Err(Error::unsupported(self.gguf().path(), ty, "none, linear or yarn", other.escape_debug()))
            }
        }
    }

    /// The rotation of heads of `head` elements in layers that see a window, where it is not that of the others: unscaled, with a base of its own.
    ///
    /// # Errors
    /// A key that does not make sense.
    pub fn window_rope(&self, everything: Rope, head: usize) -> Result<Rope> {
        let base = self.number("rope.freq_base_swa", (1.0, MAX_FREQ_BASE))?.unwrap_or(everything.base);
        let n_rot = self.count_or("rope.dimension_count_swa", everything.n_rot, head)?;
        self.even("rope.dimension_count_swa", n_rot)?;
        Ok(Rope { n_rot, base, scale: 1.0, divisors: None, yarn: None, magnitude: 1.0, ..everything })
    }

    fn yarn(&self) -> Result<Yarn> {
        let n_ctx = self.count_or("rope.scaling.original_context_length", self.n_ctx_train()?, u32::MAX as usize)?;
        Ok(Yarn {
            n_ctx,
            beta_fast: self.number("rope.scaling.yarn_beta_fast", FACTORS)?.unwrap_or(32.0),
            beta_slow: self.number("rope.scaling.yarn_beta_slow", FACTORS)?.unwrap_or(1.0),
        })
    }

    /// The window of each layer, where a file that names one and does not list the layers that have it means every layer but
    /// those of which `is_full` is true. (n_layer)
    ///
    /// # Errors
    /// A window of 0, or a list that does not make sense.
    pub fn windows(&self, is_full: impl Fn(usize) -> bool) -> Result<Vec<Option<usize>>> {
        let key = self.key("attention.sliding_window");
        let Some(window) = self.gguf().meta().u32(&key)? else { return Ok(vec![None; self.n_layer]) };
        let window = self.within(&key, window as usize, u32::MAX as usize)?;
        let listed = self.window_pattern()?;
        let has = |layer: usize| listed.as_ref().map_or_else(|| !is_full(layer), |listed| listed[layer]);
        Ok((0..self.n_layer).map(|layer| has(layer).then_some(window)).collect())
    }

    fn window_pattern(&self) -> Result<Option<Vec<bool>>> {
        let key = self.key("attention.sliding_window_pattern");
        let meta = self.gguf().meta();
        if !matches!(meta.get(&key), Some(Value::Array(_))) {
            // A number means that every so-manyth layer is full, and which one depends on the architecture.
            return match meta.u32(&key)? {
                None => Ok(None),
                Some(n) => Err(Error::unsupported(meta.path(), key, "a list of all layers", n)),
            };
        }
        let listed = meta.bools(&key)?.expect("it is there");
        if listed.len() != self.n_block {
            let expected = format!("one bool for each of {} layers", self.n_block);
            return Err(Error::format(meta.path(), key, expected, listed.len()));
        }
        Ok(Some(listed.to_vec()))
    }

    /// How experts are chosen, where the architecture says it all.
    ///
    /// # Errors
    /// A key that does not make sense.
    pub fn choice(&self, score: Score, renormalise: bool) -> Result<Choice> {
        let n_expert_used = self.count("expert_used_count", self.n_expert)?;
        Ok(Choice { score, n_expert_used, renormalise, scale: 1.0 })
    }

    /// How experts are chosen, where the file says it: these are what it means by saying nothing.
    ///
    /// # Errors
    /// A key that does not make sense, or asks for other scores.
    pub fn choice_by_keys(&self, score: Score, renormalise: bool) -> Result<Choice> {
        let key = self.key("expert_gating_func");
        let score = match self.gguf().meta().u32(&key)? {
            None | Some(0) => score,
            Some(1) => Score::Softmax,
            Some(2) => Score::Sigmoid,
            Some(other) => {
                return Err(Error::unsupported(self.gguf().path(), key, "1 (softmax) or 2 (sigmoid)", other));
            }
        };
        let renormalise = self.gguf().meta().bool(&self.key("expert_weights_norm"))?.unwrap_or(renormalise);
        // Files without a scale have 0.
        let scale = self.number("expert_weights_scale", (0.0, FACTORS.1))?.filter(|&scale| scale > 0.0).unwrap_or(1.0);
        Ok(Choice { scale, ..self.choice(score, renormalise)? })
    }

    /// How many layers at the beginning have a network that every token takes, where others have experts.
    ///
    /// # Errors
    /// If it is not a number below that of the layers.
    pub fn leading_dense(&self) -> Result<usize> {
        let key = self.key("leading_dense_block_count");
        match self.gguf().meta().u32(&key)?.unwrap_or(0) as usize {
            n if n < self.n_layer => Ok(n),
            n => Err(Error::format(self.gguf().path(), key, format!("a number below {}", self.n_layer), n)),
        }
    }

    fn even(&self, short: &str, value: usize) -> Result<()> {
        if value.is_multiple_of(2) {
            return Ok(());
        }
        Err(Error::format(self.gguf().path(), self.key(short), "an even number", value))
    }

    /// The whole model, with the blocks that `layer` makes of each layer.
    ///
    /// # Errors
    /// What `layer` says; a key or tensor of embedding or head that is missing or does not fit.
    pub fn model<const N: usize>(
        &self,
        layer: impl Fn(&LayerReader<'_, 'a>) -> Result<[Block; N]>,
    ) -> Result<Blueprint> {
        let n_vocab = self.n_vocab()?;
        let embed = self.matrix("token_embd.weight", self.n_embd, n_vocab)?;
        let mut blocks = Vec::with_capacity(N * self.n_layer);
        for il in 0..self.n_layer {
            blocks.extend(layer(&self.layer(il))?);
        }
        let tied = self.gguf().tensor("output.weight").is_none();
        let w = if tied { embed } else { self.matrix("output.weight", self.n_embd, n_vocab)? };
        let output = Linear { w, scale: self.vector_if_there("output.scale", 1)?, bias: None };
        Ok(Blueprint {
            arch: self.arch,
            n_layer: self.n_layer,
            n_embd: self.n_embd,
            n_vocab,
            n_ctx_train: self.n_ctx_train()?,
            n_expert: self.n_expert,
            embed,
            blocks,
            head: Head { norm: self.norm("output_norm.weight", self.n_embd)?, output, tied },
            unread: Vec::new(),
        })
    }

    /// The blueprint with what the file has beside it.
    ///
    /// # Errors
    /// Names what nothing has taken and may change what the model computes.
    pub fn finish(self, mut blueprint: Blueprint) -> Result<Blueprint> {
        if self.n_layer < self.n_block {
            for tensor in self.file.tensors_left() {
                let layer = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse().ok());
                if layer.is_some_and(|layer: usize| (self.n_layer..self.n_block).contains(&layer)) {
                    self.file.tensor(&tensor.name);
                }
            }
            let name = match self.n_block - self.n_layer {
                1 => format!("blk.{}", self.n_layer),
                _ => format!("blk.{} to blk.{}", self.n_layer, self.n_block - 1),
            };
            let reason = "prediction heads, which guess a token after the next one";
            self.ignored.borrow_mut().push(Unread { name, reason });
        }
        blueprint.unread = unread::check(&self.file, &blueprint, self.n_block)?;
        blueprint.unread.extend(self.ignored.into_inner());
        Ok(blueprint)
    }

    pub(super) fn layer<'m>(&'m self, layer: usize) -> LayerReader<'m, 'a> {
        LayerReader { m: self, layer }
    }

    /// Takes a tensor of this shape. Its dims are (cols, rows, count), of which as many as it needs.
    fn take(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let info = self.file.require(name)?;
        let ty = self.gguf().computable(info, dims)?;
        let bytes = info.require_bytes(self.gguf().path_of(info))?;
        let index = self.gguf().index_of(name).expect("it was required above");
        Ok(Tensor { index, ty, rows: dims.get(1).copied().unwrap_or(1), cols: dims[0], bytes })
    }

    /// A matrix. A single row may be stored as a vector.
    pub(super) fn matrix(&self, name: &str, cols: usize, rows: usize) -> Result<Tensor> {
        if rows == 1 && self.gguf().require(name)?.dims.len() == 1 {
            return self.vector(name, cols);
        }
        self.take(name, &[cols, rows])
    }

    /// A matrix of each expert.
    pub(super) fn stacked(&self, name: &str, cols: usize, rows: usize) -> Result<Tensor> {
        self.take(name, &[cols, rows, self.n_expert])
    }

    fn vector(&self, name: &str, n: usize) -> Result<Tensor> {
        self.take(name, &[n])
    }

    fn vector_if_there(&self, name: &str, n: usize) -> Result<Option<Tensor>> {
        self.gguf().tensor(name).map(|_| self.vector(name, n)).transpose()
    }

    fn norm(&self, name: &str, n: usize) -> Result<Norm> {
        Ok(Norm { weight: self.vector(name, n)?, eps: self.eps })
    }
}

/// A [`Reader`] of one layer. Names are those behind `blk.N.`.
pub struct LayerReader<'m, 'a> {
    m: &'m Reader<'a>,
    /// N.
    pub layer: usize,
}

impl LayerReader<'_, '_> {
    fn name(&self, role: &str) -> String {
        format!("blk.{}.{role}", self.layer)
    }

    /// A block whose input is normed by `NORM.weight`.
    ///
    /// # Errors
    /// If that is missing or does not fit.
    pub fn block(&self, norm: &str, part: Part) -> Result<Block> {
        let norm = self.m.norm(&self.name(&format!("{norm}.weight")), self.m.n_embd)?;
        Ok(Block { layer: self.layer, norm, part })
    }

    /// `NAME.weight`, and `NAME.scale` and `NAME.bias` if there are any.
    fn linear(&self, name: &str, cols: usize, rows: usize) -> Result<Linear> {
        let name = self.name(name);
        let w = self.m.matrix(&format!("{name}.weight"), cols, rows)?;
        let scale = self.m.vector_if_there(&format!("{name}.scale"), 1)?;
        Ok(Linear { w, scale, bias: self.m.vector_if_there(&format!("{name}.bias"), rows)? })
    }

    /// Attention with `attn_q`, `attn_k`, `attn_v` and `attn_output`; scores by the square root of a head's size.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn gqa(&self, heads: Heads, rope: impl Into<Option<Rope>>) -> Result<Gqa> {
        let Heads { n_head, n_head_kv, k, v } = heads;
        let n_embd = self.m.n_embd;
        Ok(Gqa {
            heads,
            q: self.linear("attn_q", n_embd, n_head * k)?,
            k: self.linear("attn_k", n_embd, n_head_kv * k)?,
            v: self.linear("attn_v", n_embd, n_head_kv * v)?,
            o: self.linear("attn_output", n_head * v, n_embd)?,
            qk_norm: None,
            rope: rope.into(),
            window: None,
            sinks: None,
            scale: 1.0 / (k as f32).sqrt(),
        })
    }

    /// Norms of each query and key head.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn head_norms(&self, heads: Heads) -> Result<Option<[Norm; 2]>> {
        self.qk_norms(heads.k, heads.k)
    }

    /// Norms of all query heads at once, and of all key heads.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn whole_norms(&self, heads: Heads) -> Result<Option<[Norm; 2]>> {
        self.qk_norms(heads.n_head * heads.k, heads.n_head_kv * heads.k)
    }

    fn qk_norms(&self, q: usize, k: usize) -> Result<Option<[Norm; 2]>> {
        let norm = |name: &str, n| self.m.norm(&self.name(name), n);
        Ok(Some([norm("attn_q_norm.weight", q)?, norm("attn_k_norm.weight", k)?]))
    }

    /// A score of each query head that has no value.
    ///
    /// # Errors
    /// If it is missing or does not fit.
    pub fn sinks(&self, heads: Heads) -> Result<Tensor> {
        self.m.vector(&self.name("attn_sinks.weight"), heads.n_head)
    }

    /// Whether the layer has experts. By any of their parts, so that a layer that lacks one is told apart from a dense one.
    pub fn is_moe(&self) -> bool {
        let parts = ["gate_inp", "gate_exps", "up_exps", "gate_up_exps", "down_exps", "gate.0", "up.0", "down.0"];
        parts.iter().any(|part| self.has(&format!("ffn_{part}.weight")))
    }

    /// Experts if the layer has any, else a network that every token takes.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn ffn(&self, choice: Choice) -> Result<Part> {
        if self.is_moe() { Ok(Part::Moe(self.moe(choice)?)) } else { self.dense() }
    }

    /// A network that every token takes.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn dense(&self) -> Result<Part> {
        Ok(Part::Dense(self.gated("")?))
    }

    /// Experts of which a bias decides which are chosen, and one that every token uses.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn moe_by_bias_and_shared(&self, choice: Choice) -> Result<Part> {
        let shared = Some(Shared { ffn: self.gated("_shexp")?, gate: None });
        Ok(Part::Moe(Moe { shared, ..self.moe_by_bias(choice)? }))
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.m.gguf().tensor(&self.name(name)).is_some()
    }

    /// Experts without a shared one.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn moe(&self, choice: Choice) -> Result<Moe> {
        let w = self.m.matrix(&self.name("ffn_gate_inp.weight"), self.m.n_embd, self.m.n_expert)?;
        let w = Linear { w, scale: None, bias: None };
        let experts = ExpertSet::find(self.m, self.layer)?;
        let router = Router { w, input: RouterInput::Normed, select_bias: None, choice };
        let scales = self.expert_scales()?;
        Ok(Moe { router, experts, act: Act::Silu, scales, biases: [None; 3], shared: None })
    }

    /// [`LayerReader::moe`], where a bias decides which experts are chosen.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn moe_by_bias(&self, choice: Choice) -> Result<Moe> {
        let moe = self.moe(choice)?;
        let name = if self.has("exp_probs_b") { "exp_probs_b" } else { "exp_probs_b.bias" };
        let select_bias = Some(self.m.vector(&self.name(name), self.m.n_expert)?);
        Ok(Moe { router: Router { select_bias, ..moe.router }, ..moe })
    }

    /// [`LayerReader::moe`], where router and experts have biases.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn moe_with_biases(&self, choice: Choice) -> Result<Moe> {
        let moe = self.moe(choice)?;
        let bias = |role: &str, n: usize| {
            self.m.take(&self.name(&format!("ffn_{role}_exps.bias")), &[n, self.m.n_expert]).map(Some)
        };
        let (n_ff, n_embd) = (moe.experts.n_ff, self.m.n_embd);
        let biases = [bias("gate", n_ff)?, bias("up", n_ff)?, bias("down", n_embd)?];
        let bias = Some(self.m.vector(&self.name("ffn_gate_inp.bias"), self.m.n_expert)?);
        let w = Linear { bias, ..moe.router.w };
        Ok(Moe { router: Router { w, ..moe.router }, biases, ..moe })
    }

    fn expert_scales(&self) -> Result<[Option<Tensor>; 3]> {
        let scale = |role: &str| self.m.vector_if_there(&self.name(&format!("ffn_{role}_exps.scale")), self.m.n_expert);
        Ok([scale("gate")?, scale("up")?, scale("down")?])
    }

    /// The expert that every token uses, behind a sigmoid gate.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn gated_shared(&self) -> Result<Shared> {
        let ffn = self.gated("_shexp")?;
        let gate = self.m.matrix(&self.name("ffn_gate_inp_shexp.weight"), self.m.n_embd, 1)?;
        Ok(Shared { ffn, gate: Some(gate) })
    }

    /// `ffn_gateX`, `ffn_upX`, `ffn_downX` for the suffix X. The hidden width is the tensors' own.
    fn gated(&self, suffix: &str) -> Result<Gated> {
        let name = |role: &str| self.name(&format!("ffn_{role}{suffix}.weight"));
        let n_ff = self.m.gguf().require(&name("gate"))?.dims.get(1).map_or(0, |&d| d as usize);
        let n_embd = self.m.n_embd;
        Ok(Gated {
            act: Act::Silu,
            gate: self.m.matrix(&name("gate"), n_embd, n_ff)?,
            up: self.m.matrix(&name("up"), n_embd, n_ff)?,
            down: self.m.matrix(&name("down"), n_ff, n_embd)?,
        })
    }
}
