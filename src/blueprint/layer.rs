//! What an architecture's file reads of one layer: parts by the names that most architectures share.

use super::{
    Act, Block, Branch, Choice, ExpertSet, Gate, GateAct, Gated, Gqa, Heads, Latent, LatentSizes, Linear, Moe, Norm,
    Part, Reader, Rope, Router, RouterInput, Shared, Tensor, Up,
};
use crate::{Error, Result};

/// A [`Reader`] of one layer. Names are those behind `blk.N.`.
pub struct LayerReader<'m, 'a> {
    pub(super) m: &'m Reader<'a>,
    /// N.
    pub layer: usize,
}

impl<'m, 'a> LayerReader<'m, 'a> {
    pub(super) fn new(m: &'m Reader<'a>, layer: usize) -> Self {
        Self { m, layer }
    }
}

impl LayerReader<'_, '_> {
    pub(super) fn name(&self, role: &str) -> String {
        format!("blk.{}.{role}", self.layer)
    }

    /// A block whose input is normed by `NORM.weight`.
    ///
    /// # Errors
    /// If that is missing or does not fit.
    pub fn block(&self, norm: &str, part: Part) -> Result<Block> {
        Ok(self.block_of(self.branch(norm, part)?))
    }

    /// A block whose input is not normed.
    pub fn plain_block(&self, part: Part) -> Block {
        self.block_of(Branch { norm: None, part, post: None, scale: 1.0 })
    }

    fn block_of(&self, branch: Branch) -> Block {
        Block { layer: self.layer, connection: None, branches: vec![branch], post: None, scale: None }
    }

    /// A branch of a block whose input is normed by `NORM.weight`.
    ///
    /// # Errors
    /// If that is missing or does not fit.
    pub fn branch(&self, norm: &str, part: Part) -> Result<Branch> {
        Ok(Branch { norm: Some(self.norm(norm)?), part, post: None, scale: 1.0 })
    }

    /// A vector.
    ///
    /// # Errors
    /// If it is missing or does not fit.
    pub fn vector(&self, name: &str, n: usize) -> Result<Tensor> {
        self.m.vector(&self.name(name), n)
    }

    /// A vector, if there is one.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn vector_if_there(&self, name: &str, n: usize) -> Result<Option<Tensor>> {
        self.m.vector_if_there(&self.name(name), n)
    }

    /// A norm of the residual stream's width by `NAME.weight`.
    ///
    /// # Errors
    /// If that is missing or does not fit.
    pub fn norm(&self, name: &str) -> Result<Norm> {
        self.m.norm(&self.name(name), self.m.n_embd)
    }

    /// `NAME.weight`, and `NAME.scale` and `NAME.bias` if there are any.
    pub(super) fn linear(&self, name: &str, cols: usize, rows: usize) -> Result<Linear> {
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
        self.gqa_of(heads, self.qkv(heads)?, rope.into())
    }

    /// The same of these queries, keys and values.
    pub(super) fn gqa_of(&self, heads: Heads, [q, k, v]: [Linear; 3], rope: Option<Rope>) -> Result<Gqa> {
        Ok(self.gqa_with(heads, rope, [q, k], Some(v), self.output(heads)?))
    }

    /// [`LayerReader::gqa`], where values are keys as they come from their product if there is no `attn_v`.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit; values that are as long as no key.
    pub fn gqa_of_keys(&self, heads: Heads, rope: impl Into<Option<Rope>>) -> Result<Gqa> {
        if self.has("attn_v.weight") || self.has("attn_qkv.weight") {
            return self.gqa(heads, rope);
        }
        if heads.k != heads.v {
            let what = format!("values that are the keys of blk.{}", self.layer);
            let expected = format!("values of {} elements, as keys have", heads.k);
            return Err(Error::unsupported(self.m.gguf().path(), what, expected, heads.v));
        }
        let linear = |name: &str, n: usize| self.linear(name, self.m.n_embd, n * heads.k);
        let [q, k] = [linear("attn_q", heads.n_head)?, linear("attn_k", heads.n_head_kv)?];
        Ok(self.gqa_with(heads, rope.into(), [q, k], None, self.output(heads)?))
    }

    /// Latent attention: `attn_q`, or `attn_q_a` and `attn_q_b`; `attn_kv_a_mqa`; `attn_k_b` and `attn_v_b`, or `attn_kv_b`.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn mla(&self, sizes: LatentSizes, rope: impl Into<Option<Rope>>) -> Result<Gqa> {
        let LatentSizes { n_head, rank, q_rank, nope, rot, v } = sizes;
        let (n_embd, k) = (self.m.n_embd, nope + rot);
        let per_head = |name: &str, cols: usize, rows: usize| {
            let each = self.m.take(&self.name(name), &[cols, rows, n_head])?;
            Ok(Tensor { rows: rows * n_head, ..each })
        };
        let up = if self.has("attn_kv_b.weight") {
            Up::Expanded(self.linear("attn_kv_b", rank, n_head * (nope + v))?)
        } else {
            Up::Absorbed([per_head("attn_k_b.weight", nope, rank)?, per_head("attn_v_b.weight", rank, v)?])
        };
        let (q, latent_q) = if let Some(q_rank) = q_rank {
            let norm = self.m.norm(&self.name("attn_q_a_norm"), q_rank)?;
            let down = self.linear("attn_q_a", n_embd, q_rank)?;
            (self.linear("attn_q_b", q_rank, n_head * k)?, Some((down, norm)))
        } else {
            (self.linear("attn_q", n_embd, n_head * k)?, None)
        };
        let norm = self.m.norm(&self.name("attn_kv_a_norm"), rank)?;
        let latent = Latent { rank, nope, rot, v, q: latent_q, norm, up };
        let rows = self.linear("attn_kv_a_mqa", n_embd, rank + rot)?;
        let heads = latent.heads(n_head);
        let (o, scale) = (self.linear("attn_output", n_head * v, n_embd)?, 1.0 / (k as f32).sqrt());
        Ok(Gqa { scale, latent: Some(latent), ..self.gqa_with(heads, rope.into(), [q, rows], None, o) })
    }

    fn gqa_with(&self, heads: Heads, rope: Option<Rope>, [q, k]: [Linear; 2], v: Option<Linear>, o: Linear) -> Gqa {
        Gqa {
            heads,
            q,
            k,
            v,
            o,
            latent: None,
            qk_norm: None,
            rotates_first: false,
            clamp: None,
            v_norm: None,
            rope,
            temperature: None,
            window: None,
            chunked: false,
            sinks: None,
            scale: 1.0 / (heads.k as f32).sqrt(),
            soft_cap: None,
            gate: None,
            indexer: None,
        }
    }

    fn output(&self, heads: Heads) -> Result<Linear> {
        self.linear("attn_output", heads.n_head * heads.v, self.m.n_embd)
    }

    /// Queries, keys and values: a matrix of each, or `attn_qkv`, which has the rows of one after another.
    fn qkv(&self, heads: Heads) -> Result<[Linear; 3]> {
        let Heads { n_head, n_head_kv, k, v } = heads;
        let (n_embd, rows) = (self.m.n_embd, [n_head * k, n_head_kv * k, n_head_kv * v]);
        if !self.has("attn_qkv.weight") {
            let linear = |name, i: usize| self.linear(name, n_embd, rows[i]);
            return Ok([linear("attn_q", 0)?, linear("attn_k", 1)?, linear("attn_v", 2)?]);
        }
        let all = self.linear("attn_qkv", n_embd, rows.iter().sum())?;
        if let Some(bias) = all.bias.filter(|bias| bias.ty.block_len() > 1) {
            let name = self.name("attn_qkv.bias");
            return Err(Error::unsupported(
                self.m.gguf().path(),
                format!("the type of tensor {name}"),
                "floats",
                bias.ty,
            ));
        }
        let mut start = 0;
        Ok(rows.map(|n| {
            let range = start..start + n;
            start += n;
            Linear { w: all.w.slice(range.clone()), bias: all.bias.map(|bias| bias.elements(range)), ..all }
        }))
    }

    /// `attn_gate`, with an output for each head or for each element of one.
    ///
    /// # Errors
    /// If it is missing or does not fit.
    pub fn gate(&self, heads: Heads, act: GateAct) -> Result<Gate> {
        let info = self.m.gguf().require(&self.name("attn_gate.weight"))?;
        let by_head = info.dims.get(1).is_none_or(|&rows| rows == heads.n_head as u64);
        let rows = if by_head { heads.n_head } else { heads.n_head * heads.v };
        Ok(Gate { w: self.linear("attn_gate", self.m.n_embd, rows)?, act })
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
        Ok(Some([norm("attn_q_norm", q)?, norm("attn_k_norm", k)?]))
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
        if self.is_moe() { Ok(Part::moe(self.moe(choice)?)) } else { self.dense() }
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
        Ok(Part::moe(Moe { shared: Some(self.shared()?), ..self.moe_by_bias(choice)? }))
    }

    /// [`LayerReader::moe`], with a selection bias and a shared expert where any layer has one.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn moe_by_bias_if_any(&self, choice: Choice) -> Result<Moe> {
        let biased = (0..self.m.n_layer).any(|layer| self.m.layer(layer).has_select_bias());
        let moe = if biased { self.moe_by_bias(choice)? } else { self.moe(choice)? };
        Ok(Moe { shared: self.shared_if_any()?, ..moe })
    }

    /// The expert that every token uses.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn shared(&self) -> Result<Shared> {
        Ok(Shared { ffn: self.gated("_shexp")?, gate: None })
    }

    /// The same, if any layer has one.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn shared_if_any(&self) -> Result<Option<Shared>> {
        let any = (0..self.m.n_layer).any(|layer| self.m.layer(layer).has("ffn_up_shexp.weight"));
        any.then(|| self.shared()).transpose()
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.m.gguf().tensor(&self.name(name)).is_some()
    }

    fn has_select_bias(&self) -> bool {
        self.has("exp_probs_b.bias") || self.has("exp_probs_b")
    }

    /// Experts without a shared one.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn moe(&self, choice: Choice) -> Result<Moe> {
        self.moe_of(choice, ExpertSet::find(self.m, self.layer, self.m.n_embd, true)?)
    }

    /// The same with these experts.
    pub(super) fn moe_of(&self, choice: Choice, experts: ExpertSet) -> Result<Moe> {
        let w = self.m.matrix(&self.name("ffn_gate_inp.weight"), self.m.n_embd, self.m.n_expert)?;
        let w = Linear { w, scale: None, bias: None };
        let router = Router { w, input: RouterInput::Normed, select_bias: None, by_token: None, choice };
        let scales = self.expert_scales()?;
        let biases = [None; 3];
        Ok(Moe { router, experts, act: Act::Silu, latent: None, weighs_input: false, scales, biases, shared: None })
    }

    /// [`LayerReader::moe`], where a bias decides which experts are chosen.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn moe_by_bias(&self, choice: Choice) -> Result<Moe> {
        self.biased(self.moe(choice)?)
    }

    /// The same layer, where a bias decides which experts are chosen.
    pub(super) fn biased(&self, moe: Moe) -> Result<Moe> {
        let name = if self.has("exp_probs_b") { "exp_probs_b" } else { "exp_probs_b.bias" };
        let select_bias = Some(self.m.vector(&self.name(name), self.m.n_expert)?);
        Ok(Moe { router: Router { select_bias, ..moe.router }, ..moe })
    }

    /// [`LayerReader::moe`], where the token says which experts it uses, by `ffn_gate_tid2eid`.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn moe_by_token(&self, choice: Choice) -> Result<Moe> {
        let moe = self.moe(choice)?;
        let name = self.name("ffn_gate_tid2eid.weight");
        let by_token = Some(self.m.numbers(&name, &[choice.n_expert_used, self.m.n_vocab()?])?);
        Ok(Moe { router: Router { by_token, ..moe.router }, ..moe })
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

    /// `ffn_gateX`, `ffn_upX`, `ffn_downX` for the suffix X, or gate and up as the rows of `ffn_upX`, twice
    /// as wide as `ffn_downX`. The hidden width is the tensors' own.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn gated(&self, suffix: &str) -> Result<Gated> {
        let name = |role: &str| self.name(&format!("ffn_{role}{suffix}.weight"));
        let (gguf, n_embd) = (self.m.gguf(), self.m.n_embd);
        let width = |name: &str| gguf.require(name).map(|info| info.dims.get(1).map_or(0, |&d| d as usize));
        if gguf.tensor(&name("gate")).is_none() && self.is_fused(&name("up"), &name("down")) {
            let n_ff = width(&name("up"))? / 2;
            let both = self.m.matrix(&name("up"), n_embd, 2 * n_ff)?;
            let (gate, up) = (both.slice(0..n_ff), both.slice(n_ff..2 * n_ff));
            let gate = Some(gate);
            return Ok(Gated { act: Act::Silu, gate, up, down: self.m.matrix(&name("down"), n_ff, n_embd)? });
        }
        let n_ff = width(&name("gate"))?;
        Ok(Gated {
            act: Act::Silu,
            gate: Some(self.m.matrix(&name("gate"), n_embd, n_ff)?),
            up: self.m.matrix(&name("up"), n_embd, n_ff)?,
            down: self.m.matrix(&name("down"), n_ff, n_embd)?,
        })
    }

    /// Whether the rows of `up` are twice as many as `down` has columns.
    fn is_fused(&self, up: &str, down: &str) -> bool {
        let dim = |name: &str, i: usize| self.m.gguf().tensor(name).and_then(|info| info.dims.get(i).copied());
        dim(up, 1).zip(dim(down, 0)).is_some_and(|(up, down)| up == down.saturating_mul(2))
    }
}
