//! What an architecture's file reads a model with: hyper-parameters by key, tensors by name, and the parts that most
//! architectures share. Everything is checked once, so that nothing after this has to doubt it; and whatever is taken is
//! marked, so that what nobody took can be refused by name.

use std::cell::{Cell, RefCell};

use super::{
    Block, Blueprint, Choice, Connection, Groups, Head, LayerReader, Linear, MAX_GROUPS, Norm, NormKind, Score, Shape,
    Tensor, Unread, unread,
};
use crate::{
    Error, Result,
    gguf::{self, Gguf, Value},
    quant::GgmlType,
};

/// Limits on what a file may claim: an order of magnitude above any model known, far below anything that overflows.
pub(super) const MAX_LAYERS: usize = 2_048;
pub(super) const MAX_WIDTH: usize = 1 << 20;
const MAX_EXPERTS: usize = 4_096;

/// Limits of the same kind on numbers with a fraction: factors in use reach 64.
pub(super) const FACTORS: (f32, f32) = (1e-6, 1e6);
const MAX_EPS: f32 = 0.1;

/// See the module.
pub struct Reader<'a> {
    file: gguf::Reader<'a>,
    arch: &'static str,
    /// Layers of the file: the length of its lists by layer.
    pub(super) n_block: usize,
    /// Layers that run.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Routed experts of each MoE layer.
    pub n_expert: usize,
    norms: Cell<NormKind>,
    /// Whether norms may have biases.
    norm_biases: Cell<bool>,
    /// Whether RMS norms may go by the key that layer norms have.
    either_eps: Cell<bool>,
    /// Tokens of context up to which the blueprint is right, and why.
    limit: Cell<Option<(usize, &'static str)>>,
    ignored: RefCell<Vec<Unread>>,
}

impl<'a> Reader<'a> {
    /// Reads what every architecture has. `predicts`: some of its files end with prediction heads.
    ///
    /// # Errors
    /// A key that is missing or does not make sense, by name; a model without experts.
    pub fn new(gguf: &'a Gguf, arch: &'static str, predicts: bool) -> Result<Self> {
        let file = gguf::Reader::new(gguf);
        let (norms, norm_biases, ignored) = (Cell::new(NormKind::Rms), Cell::default(), RefCell::default());
        let (limit, either_eps) = (Cell::default(), Cell::default());
        let (n_block, n_layer, n_embd, n_expert) = (0, 0, 0, 0);
        let mut m =
            Self { file, arch, n_block, n_layer, n_embd, n_expert, norms, norm_biases, either_eps, limit, ignored };
        m.n_block = m.count("block_count", MAX_LAYERS)?;
        m.n_layer = m.n_block - if predicts { m.prediction_layers()? } else { 0 };
        m.n_embd = m.count("embedding_length", MAX_WIDTH)?;
        if !(0..m.n_layer).any(|layer| m.layer(layer).is_moe()) {
            let expected = "tensors blk.N.ffn_gate_inp.weight";
            return Err(Error::unsupported(gguf.path(), "a model without experts", expected, "none"));
        }
        m.n_expert = m.count("expert_count", MAX_EXPERTS)?;
        Ok(m)
    }

    /// From here on, norms are layer norms.
    pub fn use_layer_norms(&self) {
        self.norms.set(NormKind::Layer);
    }

    /// From here on, norms may have biases.
    pub fn use_norm_biases(&self) {
        self.norm_biases.set(true);
    }

    /// From here on, RMS norms go by the key that layer norms have where their own is missing.
    pub fn use_either_epsilon(&self) {
        self.either_eps.set(true);
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
    pub(super) fn key(&self, short: &str) -> String {
        self.file.key(short)
    }

    pub(super) fn within(&self, key: &str, value: usize, max: usize) -> Result<usize> {
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

    /// A number above 0, if there is one: files without it may have 0.
    ///
    /// # Errors
    /// If there is something else.
    pub fn factor(&self, short: &str) -> Result<Option<f32>> {
        Ok(self.number(short, (0.0, FACTORS.1))?.filter(|&x| x > 0.0))
    }

    /// Whether the file says so.
    ///
    /// # Errors
    /// If it is something else.
    pub fn flag(&self, short: &str, default: bool) -> Result<bool> {
        Ok(self.gguf().meta().bool(&self.key(short))?.unwrap_or(default))
    }

    /// Refuses a file that says no, or nothing.
    ///
    /// # Errors
    /// If it does.
    pub fn require_flag(&self, short: &str) -> Result<()> {
        if self.flag(short, false)? {
            return Ok(());
        }
        Err(Error::unsupported(self.gguf().path(), self.key(short), "true", false))
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
    ///
    /// # Errors
    /// If the key is missing or does not make sense.
    pub fn n_ctx_train(&self) -> Result<usize> {
        self.count("context_length", u32::MAX as usize)
    }

    /// Up to so many tokens of context the model is what the blueprint says; why, for people.
    pub fn limit_context(&self, n_ctx: usize, reason: &'static str) {
        self.limit.set(Some((n_ctx, reason)));
    }

    /// Up to `n_ctx` tokens of context an indexer chooses all of them, so that nothing of it is needed.
    pub fn limit_to_indexed(&self, n_ctx: usize) {
        let reason = "beyond that, an indexer chooses what attention looks at, which hotset does not compute";
        self.limit_context(n_ctx, reason);
        for short in ["head_count", "key_length", "local_blocks", "types", "kpool", "kpool_select_tail"] {
            self.ignore(
                &format!("attention.indexer.{short}"),
                "the context is short enough for all of it to be looked at",
            );
        }
        let mut any = false;
        for tensor in self.file.tensors_left() {
            any |= tensor.name.contains(".indexer") && self.file.tensor(&tensor.name).is_some();
        }
        if any {
            let reason = "the indexer: the context is short enough for all of it to be looked at";
            self.ignored.borrow_mut().push(Unread { name: "blk.*.indexer*".to_owned(), reason });
        }
    }

    /// Whether the file has such a key.
    pub fn has_key(&self, short: &str) -> bool {
        self.gguf().meta().get(&format!("{}.{short}", self.arch)).is_some()
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

    /// A bool of each layer. (n_layer)
    ///
    /// # Errors
    /// If it is missing, or a list of another length.
    pub fn flags_by_layer(&self, short: &str) -> Result<Vec<bool>> {
        let (meta, key) = (self.gguf().meta(), self.key(short));
        let expected = format!("one bool for each of {} layers", self.n_block);
        let Some(listed) = meta.bools(&key)? else { return Err(meta.wrong(&key, expected, "no such key")) };
        if listed.len() != self.n_block {
            return Err(meta.wrong(&key, expected, listed.len()));
        }
        Ok(listed[..self.n_layer].to_vec())
    }

    /// A number of each layer, from 0 on, or one for all; 0 where the file has none. (n_layer)
    ///
    /// # Errors
    /// A list of another length, or another number.
    pub fn numbers_by_layer(&self, short: &str) -> Result<Vec<f32>> {
        let (meta, key) = (self.gguf().meta(), self.key(short));
        if !matches!(meta.get(&key), Some(Value::Array(_))) {
            return Ok(vec![self.number(short, (0.0, FACTORS.1))?.unwrap_or(0.0); self.n_layer]);
        }
        let listed = meta.f32s(&key)?.expect("it is there");
        if listed.len() != self.n_block {
            return Err(meta.wrong(&key, format!("one number for each of {} layers", self.n_block), listed.len()));
        }
        if let Some(x) = listed.iter().find(|x| !(0.0..=FACTORS.1).contains(*x)) {
            return Err(meta.wrong(&key, format!("numbers from 0 to {:e}", FACTORS.1), x));
        }
        Ok(listed[..self.n_layer].to_vec())
    }

    /// How experts are chosen, where the architecture says it all.
    ///
    /// # Errors
    /// A key that does not make sense.
    pub fn choice(&self, score: Score, renormalise: bool) -> Result<Choice> {
        let n_expert_used = self.count("expert_used_count", self.n_expert)?;
        Ok(Choice { score, n_expert_used, renormalise, scale: 1.0, groups: None })
    }

    /// How experts are chosen, where the file says it: these are what it means by saying nothing.
    ///
    /// # Errors
    /// A key that does not make sense, or asks for other scores.
    pub fn choice_by_keys(&self, score: Score, renormalise: bool) -> Result<Choice> {
        self.choice_of(score, renormalise, self.count("expert_used_count", self.n_expert)?)
    }

    /// [`Reader::choice_by_keys`] of each layer, where the file may say of each how many experts it uses. `None`: it has
    /// none. (n_layer)
    ///
    /// # Errors
    /// A key that does not make sense.
    pub fn choices_by_layer(&self, score: Score, renormalise: bool) -> Result<Vec<Option<Choice>>> {
        let used = self.experts_used_by_layer()?.into_iter();
        let choice = |n| if n > 0 { self.choice_of(score, renormalise, n).map(Some) } else { Ok(None) };
        used.map(choice).collect()
    }

    /// That of a layer with experts, among [`Reader::choices_by_layer`].
    ///
    /// # Errors
    /// If the file says that a token uses none.
    pub fn choice_in(&self, choices: &[Option<Choice>], layer: usize) -> Result<Choice> {
        let wrong = || {
            let expected = format!("at least 1 in layer {layer}, which has experts");
            Error::format(self.gguf().path(), self.key("expert_used_count"), expected, 0)
        };
        choices[layer].ok_or_else(wrong)
    }

    /// Experts that a token uses in each layer; 0 where there are none. (n_layer)
    ///
    /// # Errors
    /// If they are more than there are, or the key is missing or a list of another length.
    pub(super) fn experts_used_by_layer(&self) -> Result<Vec<usize>> {
        let key = self.key("expert_used_count");
        let used = self.gguf().meta().require_u32_or_array(&key, self.n_block)?;
        let check = |&n: &u32| if n == 0 { Ok(0) } else { self.within(&key, n as usize, self.n_expert) };
        used[..self.n_layer].iter().map(check).collect()
    }

    fn choice_of(&self, score: Score, renormalise: bool, n_expert_used: usize) -> Result<Choice> {
        let key = self.key("expert_gating_func");
        let score = match self.gguf().meta().u32(&key)? {
            None | Some(0) => score,
            Some(1) => Score::Softmax,
            Some(2) => Score::Sigmoid,
            Some(4) => Score::SqrtSoftplus,
            Some(other) => {
                return Err(Error::unsupported(
                    self.gguf().path(),
                    key,
                    "1 (softmax), 2 (sigmoid) or 4 (root of softplus)",
                    other,
                ));
            }
        };
        let renormalise = self.gguf().meta().bool(&self.key("expert_weights_norm"))?.unwrap_or(renormalise);
        // Files without a scale have 0.
        let scale = self.factor("expert_weights_scale")?.unwrap_or(1.0);
        Ok(Choice { score, n_expert_used, renormalise, scale, groups: self.groups(n_expert_used)? })
    }

    fn groups(&self, n_expert_used: usize) -> Result<Option<Groups>> {
        let (meta, key, key_used) =
            (self.gguf().meta(), self.key("expert_group_count"), self.key("expert_group_used_count"));
        let n = meta.u32(&key)?.unwrap_or(0) as usize;
        if n < 2 {
            return Ok(None);
        }
        if !self.n_expert.is_multiple_of(n) || n > MAX_GROUPS {
            let expected = format!("a divisor of {} experts, at most {MAX_GROUPS}", self.n_expert);
            return Err(Error::format(meta.path(), key, expected, n));
        }
        let n_used = meta.require_u32(&key_used)? as usize;
        if !(n_expert_used.div_ceil(self.n_expert / n)..=n).contains(&n_used) {
            let expected = format!("at most {n} groups, and enough for {n_expert_used} experts");
            return Err(Error::format(meta.path(), key_used, expected, n_used));
        }
        Ok(Some(Groups { n, n_used }))
    }

    /// How many layers at the beginning have a network that every token takes, where others have experts.
    ///
    /// # Errors
    /// If it is not a number below that of the layers.
    pub fn leading_dense(&self) -> Result<usize> {
        self.count_from_zero("leading_dense_block_count", self.n_layer - 1)
    }

    /// A whole number up to `max`; 0 where the file has none.
    ///
    /// # Errors
    /// If it is another.
    pub fn count_from_zero(&self, short: &str, max: usize) -> Result<usize> {
        let key = self.key(short);
        match self.gguf().meta().u32(&key)?.unwrap_or(0) as usize {
            n if n <= max => Ok(n),
            n => Err(Error::format(self.gguf().path(), key, format!("a number below {}", max + 1), n)),
        }
    }

    /// `output_norm`.
    ///
    /// # Errors
    /// If it is missing or does not fit.
    pub fn final_norm(&self) -> Result<Norm> {
        self.norm("output_norm", self.n_embd)
    }

    /// Which layers have experts, by how many at the beginning have none and how often others do. (n_layer)
    ///
    /// # Errors
    /// A key that does not make sense.
    pub fn moe_layers(&self) -> Result<Vec<bool>> {
        let (n_dense, step) = (self.leading_dense()?, self.count_or("interleave_moe_layer_step", 1, MAX_LAYERS)?);
        Ok((0..self.n_layer).map(|layer| layer >= n_dense && (layer + 1).is_multiple_of(step)).collect())
    }

    /// The whole model, with the blocks that `layer` makes of each layer.
    ///
    /// # Errors
    /// What `layer` says; a key or tensor of embedding or head that is missing or does not fit.
    pub fn model<L: IntoIterator<Item = Block>>(
        &self,
        layer: impl Fn(&LayerReader<'_, 'a>) -> Result<L>,
    ) -> Result<Blueprint> {
        self.model_with_final_norm("output_norm", layer)
    }

    /// [`Reader::model`], where the norm before the output matrix has another name.
    ///
    /// # Errors
    /// As [`Reader::model`].
    pub fn model_with_final_norm<L: IntoIterator<Item = Block>>(
        &self,
        norm: &str,
        layer: impl Fn(&LayerReader<'_, 'a>) -> Result<L>,
    ) -> Result<Blueprint> {
        let blueprint = self.model_of_streams(1, Connection::Mean, layer)?;
        let norm = Some(self.norm(norm, self.n_embd)?);
        Ok(Blueprint { head: Head { connection: None, norm, ..blueprint.head }, ..blueprint })
    }

    /// [`Reader::model`] of several residual streams, of which the output reads `connection` without a norm.
    ///
    /// # Errors
    /// As [`Reader::model`].
    pub fn model_of_streams<L: IntoIterator<Item = Block>>(
        &self,
        n_stream: usize,
        connection: Connection,
        layer: impl Fn(&LayerReader<'_, 'a>) -> Result<L>,
    ) -> Result<Blueprint> {
        let n_vocab = self.n_vocab()?;
        let embed = self.matrix("token_embd.weight", self.n_embd, n_vocab)?;
        let mut blocks = Vec::new();
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
            n_stream,
            n_vocab,
            n_ctx_train: self.limit.get().map_or(usize::MAX, |(n_ctx, _)| n_ctx).min(self.n_ctx_train()?),
            context_limit: self.limit.get().map_or("", |(_, reason)| reason),
            n_expert: self.n_expert,
            embed,
            embed_scale: 1.0,
            ngrams: None,
            blocks,
            head: Head { connection: Some(connection), norm: None, output, scale: 1.0, soft_cap: None, tied },
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
        LayerReader::new(self, layer)
    }

    /// Takes a tensor of this shape. Its dims are (cols, rows, count), of which as many as it needs.
    pub(super) fn take(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let info = self.file.require(name)?;
        let ty = self.gguf().computable(info, dims)?;
        let bytes = info.require_bytes(self.gguf().path_of(info))?;
        let index = self.gguf().index_of(name).expect("it was required above");
        let rows = dims.get(1).copied().unwrap_or(1);
        Ok(Tensor { index, start: 0, ty, rows, cols: dims[0], bytes, groups: None })
    }

    /// Takes a tensor of whole numbers of this shape.
    pub(super) fn numbers(&self, name: &str, [cols, rows]: &[usize; 2]) -> Result<Tensor> {
        let info = self.file.require(name)?;
        let (path, what) = (self.gguf().path_of(info), format!("tensor {name}"));
        if info.dims != [*cols as u64, *rows as u64] {
            return Err(Error::format(path, what, format!("shape {:?}", [cols, rows]), format!("{:?}", info.dims)));
        }
        let ty = info.ggml_type(path)?;
        if ty != GgmlType::I32 {
            return Err(Error::unsupported(path, format!("the type of {what}"), GgmlType::I32, ty));
        }
        let (index, bytes) = (self.gguf().index_of(name).expect("it was required above"), info.require_bytes(path)?);
        Ok(Tensor { index, start: 0, ty, rows: *rows, cols: *cols, bytes, groups: None })
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

    pub(super) fn vector(&self, name: &str, n: usize) -> Result<Tensor> {
        self.take(name, &[n])
    }

    /// A vector, if there is one.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn vector_if_there(&self, name: &str, n: usize) -> Result<Option<Tensor>> {
        self.gguf().tensor(name).map(|_| self.vector(name, n)).transpose()
    }

    /// `NAME.weight`, a norm of the model's kind.
    pub(super) fn norm(&self, name: &str, cols: usize) -> Result<Norm> {
        let weight = Some(self.vector(&format!("{name}.weight"), cols)?);
        let bias = if self.norm_biases.get() { self.vector_if_there(&format!("{name}.bias"), cols)? } else { None };
        Ok(Norm { weight, bias, ..self.plain_norm(cols)? })
    }

    /// What layer norms add to the variance, if the file says so.
    ///
    /// # Errors
    /// A number that does not make sense.
    pub(super) fn layer_norm_eps(&self) -> Result<Option<f32>> {
        self.number("attention.layer_norm_epsilon", (f32::MIN_POSITIVE, MAX_EPS))
    }

    /// A norm of the model's kind without weights.
    ///
    /// # Errors
    /// Without the key that says what is added to mean squares.
    pub fn plain_norm(&self, cols: usize) -> Result<Norm> {
        let kind = self.norms.get();
        let (rms, layer) = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon");
        let short = match kind {
            NormKind::Rms if !self.either_eps.get() || self.has_key(rms) => rms,
            _ => layer,
        };
        self.gguf().meta().require_f32(&self.key(short))?;
        let eps = self.number(short, (f32::MIN_POSITIVE, MAX_EPS))?.expect("it is there");
        Ok(Norm { kind, weight: None, bias: None, cols, eps, scale: 1.0 })
    }
}
