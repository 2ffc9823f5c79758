//! Parts whose memory of a sequence does not grow with it: a gated delta rule, a selective state space, a short convolution.

use super::{Gate, GateAct, Gqa, Heads, LayerReader, Linear, Norm, Part, Reader, Rope, Tensor};
use crate::{
    Error, Result,
    gguf::{Array, Value},
};

/// Limits on what a file may claim.
const MAX_WIDTH: usize = 1 << 20;
pub(super) const MAX_KERNEL: usize = 256;

/// A causal convolution of each channel for itself: of its present input and some of the last ones.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// The last column is the present input's. (channels, inputs)
    pub w: Tensor,
    /// Added. (channels)
    pub bias: Option<Tensor>,
    /// From each input that it sees to the next: 1 where none is left out.
    pub dilation: usize,
}

/// Which key head a value head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyHeads {
    /// The first value heads read the first key head, the next ones the second.
    InRuns,
    /// Value head h reads key head h modulo their number.
    InTurn,
}

/// A gated delta rule (arXiv 2412.06464). Each value head has a memory S (k, v), and a token does `S = decay · S`, then
/// `S += k ⊗ rate · (v − Sᵀk)`, and gives `Sᵀq / √k`, of queries and keys of length 1. Where each element of a key has a decay
/// of its own (arXiv 2510.26692), that is the decay of a row of S.
#[derive(Clone, Debug)]
pub struct DeltaNet {
    /// Query and key heads.
    pub n_k: usize,
    /// Value heads; a multiple of `n_k`.
    pub n_v: usize,
    /// Elements of a query or key.
    pub k: usize,
    /// Elements of a value.
    pub v: usize,
    /// Which key head a value head reads.
    pub key_heads: KeyHeads,
    /// Queries, keys and values, of one product or of one each. (2 * n_k * k + n_v * v, n_embd) in all
    pub qkv: Vec<Linear>,
    /// Of each of these; their outputs go through SiLU.
    pub convs: Vec<Conv>,
    /// Rate and decay of each value head, before what becomes of them.
    pub rates: Rates,
    /// Added to the decay. As many as there are decays of a token.
    pub dt_bias: Tensor,
    /// Of each value head: the `a` of [`Decay`]. (n_v elements)
    pub a: Tensor,
    /// What makes decays of these.
    pub decay: Decay,
    /// Added to the square of a query's or key's length.
    pub eps: f32,
    /// Of each head's output, as wide as a value.
    pub norm: Norm,
    /// What the normed outputs are multiplied by. (n_v * v, n_embd)
    pub gate: LowRank,
    /// What that goes through first.
    pub gate_act: GateAct,
    /// (n_embd, n_v * v)
    pub o: Linear,
}

/// A product with one matrix, or with two, one after another.
#[derive(Clone, Copy, Debug)]
pub struct LowRank {
    /// (rank, inputs)
    pub down: Option<Linear>,
    /// (outputs, inputs or rank)
    pub up: Linear,
}

impl LowRank {
    /// Width between the two.
    pub fn rank(&self) -> usize {
        self.down.map_or(0, |down| down.w.rows)
    }

    fn tensors(&self, all: &mut Vec<Tensor>) {
        self.down.iter().chain([&self.up]).for_each(|linear| linear.tensors(all));
    }
}

impl From<Linear> for LowRank {
    fn from(up: Linear) -> Self {
        Self { down: None, up }
    }
}

/// What a memory is multiplied by, from the product `x` for it, its bias added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// `exp(a * softplus(x))`
    Softplus,
    /// `exp(bound * sigmoid(sign * a * x))`: no less than `exp(bound)`.
    Bounded {
        /// Below 0.
        bound: f32,
        /// 1, or -1 where a file has `a` below 0.
        sign: f32,
    },
}

/// Where rates and decays come from.
#[expect(clippy::large_enum_variant, reason = "a model has one per layer, and only while it is planned and loaded")]
#[derive(Clone, Copy, Debug)]
pub enum Rates {
    /// A product of each.
    Apart {
        /// (n_v, n_embd)
        rate: Linear,
        /// One for each value head, or for each element of its keys. (n_v or n_v * k, n_embd)
        decay: LowRank,
    },
    /// Of each key head, the rates of its value heads, then their decays. (2 * n_v, n_embd)
    Together(Linear),
}

/// Mamba 2 (arXiv 2405.21060). Each head has a memory S (state, head), and a token does `S = exp(dt · a) · S + B ⊗ dt · x`,
/// and gives `SᵀC + d · x`.
#[derive(Clone, Debug)]
pub struct Mamba2 {
    /// Heads.
    pub n_head: usize,
    /// Elements of a head.
    pub head: usize,
    /// Elements of B and C.
    pub state: usize,
    /// Groups of heads that share B and C; divides `n_head`.
    pub groups: usize,
    /// Gate, x, B of each group, C of each group, dt. (2 * inner + 2 * groups * state + n_head, n_embd)
    pub input: Linear,
    /// Of x, B and C; its outputs go through SiLU.
    pub conv: Conv,
    /// Added to dt, before softplus. (n_head)
    pub dt_bias: Tensor,
    /// Below 0. (n_head)
    pub a: Tensor,
    /// What of x goes past the memory. (n_head)
    pub d: Tensor,
    /// Weights of an RMS norm of each group's gated outputs. (groups, inner / groups)
    pub norm: Tensor,
    /// Added to the mean square.
    pub eps: f32,
    /// (n_embd, inner)
    pub o: Linear,
}

/// A short convolution between two gates (arXiv 2511.23404): `o · (c * conv(b * x))`.
#[derive(Clone, Copy, Debug)]
pub struct ShortConv {
    /// b, c, then x. (3 * n_embd, n_embd)
    pub input: Linear,
    /// Of b * x.
    pub conv: Conv,
    /// (n_embd, n_embd)
    pub o: Linear,
}

impl Conv {
    /// Channels.
    pub fn channels(&self) -> usize {
        self.w.rows
    }

    /// Inputs that it keeps, of all channels.
    pub fn floats(&self) -> usize {
        (self.w.cols - 1).saturating_mul(self.dilation).saturating_mul(self.w.rows)
    }

    pub(super) fn tensors(&self, all: &mut Vec<Tensor>) {
        all.push(self.w);
        all.extend(self.bias);
    }
}

impl DeltaNet {
    /// Floats of a sequence's memory.
    pub fn floats(&self) -> usize {
        let inputs = self.convs.iter().map(Conv::floats).fold(0, usize::saturating_add);
        inputs.saturating_add(self.n_v.saturating_mul(self.k).saturating_mul(self.v))
    }

    /// Queries, keys and values of a token: elements of all.
    pub fn channels(&self) -> usize {
        self.convs.iter().map(Conv::channels).sum()
    }

    /// Decays of a token: one for each value head, or for each element of its keys.
    pub fn decays(&self) -> usize {
        match &self.rates {
            Rates::Apart { decay, .. } => decay.up.w.rows,
            Rates::Together(_) => self.n_v,
        }
    }

    /// The widest row between the two matrices of a product.
    pub fn rank(&self) -> usize {
        let decay = if let Rates::Apart { decay, .. } = &self.rates { decay.rank() } else { 0 };
        decay.max(self.gate.rank())
    }

    pub(super) fn tensors(&self, all: &mut Vec<Tensor>) {
        self.qkv.iter().chain([&self.o]).for_each(|linear| linear.tensors(all));
        self.gate.tensors(all);
        match &self.rates {
            Rates::Apart { rate, decay } => {
                rate.tensors(all);
                decay.tensors(all);
            }
            Rates::Together(linear) => linear.tensors(all),
        }
        self.convs.iter().for_each(|conv| conv.tensors(all));
        self.norm.tensors(all);
        all.extend([self.dt_bias, self.a]);
    }
}

impl Mamba2 {
    /// Elements of all heads.
    pub fn inner(&self) -> usize {
        self.n_head * self.head
    }

    /// Floats of a sequence's memory.
    pub fn floats(&self) -> usize {
        self.conv.floats().saturating_add(self.inner().saturating_mul(self.state))
    }

    pub(super) fn tensors(&self, all: &mut Vec<Tensor>) {
        [&self.input, &self.o].into_iter().for_each(|linear| linear.tensors(all));
        self.conv.tensors(all);
        all.extend([self.dt_bias, self.a, self.d, self.norm]);
    }
}

impl ShortConv {
    pub(super) fn tensors(&self, all: &mut Vec<Tensor>) {
        [&self.input, &self.o].into_iter().for_each(|linear| linear.tensors(all));
        self.conv.tensors(all);
    }
}

impl Reader<'_> {
    /// Which layers have a recurrent part: as the file lists them, or all but each `interval`-th, which the file may know
    /// better. (n_layer)
    ///
    /// # Errors
    /// A key that does not make sense.
    pub fn recurrent_layers(&self, interval: usize) -> Result<Vec<bool>> {
        let (meta, key) = (self.gguf().meta(), self.key("attention.recurrent_layers"));
        let interval = self.count_or("full_attention_interval", interval, MAX_WIDTH)?;
        let listed = match meta.get(&key) {
            None => return Ok((0..self.n_layer).map(|layer| !(layer + 1).is_multiple_of(interval)).collect()),
            Some(Value::Array(Array::Bool(list))) => list.clone(),
            Some(_) => meta.u32s(&key)?.unwrap_or_default().iter().map(|&is| is != 0).collect(),
        };
        if listed.len() != self.n_block {
            let expected = format!("a list of {} layers", self.n_block);
            return Err(Error::format(meta.path(), key, expected, listed.len()));
        }
        Ok(listed[..self.n_layer].to_vec())
    }

    /// A number that has to be a multiple of another one.
    fn multiple(&self, short: &str, of: usize) -> Result<usize> {
        let n = self.count(short, MAX_WIDTH)?;
        if n.is_multiple_of(of) {
            return Ok(n);
        }
        Err(Error::format(self.gguf().path(), self.key(short), format!("a multiple of {of}"), n))
    }
}

impl LayerReader<'_, '_> {
    /// A convolution by `NAME.weight`, and `NAME.bias` if there is one.
    pub(super) fn conv(&self, name: &str, kernel: usize, channels: usize) -> Result<Conv> {
        let name = self.name(name);
        let (weight, shape) = (format!("{name}.weight"), [kernel, 1, channels, 1]);
        // Some files have its matrix with dimensions of 1.
        let w = match self.m.gguf().require(&weight)?.dims.len() {
            n @ (3 | 4) => Tensor { rows: channels, ..self.m.take(&weight, &shape[..n])? },
            _ => self.m.take(&weight, &[kernel, channels])?,
        };
        Ok(Conv { w, bias: self.m.vector_if_there(&format!("{name}.bias"), channels)?, dilation: 1 })
    }

    /// A gated delta rule with `attn_qkv` and `attn_gate`, or `attn_qkv_gate` with the rows of both, `ssm_conv1d`, `ssm_out`,
    /// and `ssm_ba`, or `ssm_beta` and `ssm_alpha`, or `ssm_beta_alpha` with the rows of both.
    ///
    /// # Errors
    /// A key that does not make sense; a tensor that is missing or does not fit.
    pub fn delta_net(&self, key_heads: KeyHeads, gate_act: GateAct) -> Result<Part> {
        let (m, n_embd) = (self.m, self.m.n_embd);
        let n_k = m.count("ssm.group_count", MAX_WIDTH)?;
        let n_v = m.multiple("ssm.time_step_rank", n_k)?;
        let (inner, k) = (m.multiple("ssm.inner_size", n_v)?, m.count("ssm.state_size", MAX_WIDTH)?);
        let kernel = m.count("ssm.conv_kernel", MAX_KERNEL)?;
        let channels = 2 * n_k * k + inner;
        let rates = if self.has("ssm_ba.weight") {
            Rates::Together(self.linear("ssm_ba", n_embd, 2 * n_v)?)
        } else {
            let [rate, decay] = self.both(["ssm_beta", "ssm_alpha"], "ssm_beta_alpha", [n_v, n_v])?;
            Rates::Apart { rate, decay: decay.into() }
        };
        let [qkv, gate] = self.both(["attn_qkv", "attn_gate"], "attn_qkv_gate", [channels, inner])?;
        let norm = m.norm(&self.name("ssm_norm"), inner / n_v)?;
        Ok(Part::DeltaNet(DeltaNet {
            n_k,
            n_v,
            k,
            v: inner / n_v,
            key_heads,
            qkv: vec![qkv],
            convs: vec![self.conv("ssm_conv1d", kernel, channels)?],
            rates,
            dt_bias: m.vector(&self.name("ssm_dt.bias"), n_v)?,
            a: m.vector(&self.name("ssm_a"), n_v)?,
            decay: Decay::Softplus,
            eps: norm.eps,
            norm,
            gate: gate.into(),
            gate_act,
            o: self.linear("ssm_out", inner, n_embd)?,
        }))
    }

    /// Two matrices of so many rows, or one with the rows of both.
    fn both(&self, apart: [&str; 2], together: &str, rows: [usize; 2]) -> Result<[Linear; 2]> {
        let n_embd = self.m.n_embd;
        if !self.has(&format!("{together}.weight")) {
            return Ok([self.linear(apart[0], n_embd, rows[0])?, self.linear(apart[1], n_embd, rows[1])?]);
        }
        let all = self.linear(together, n_embd, rows[0] + rows[1])?;
        if all.bias.is_some() {
            let name = self.name(&format!("{together}.bias"));
            return Err(Error::unsupported(self.m.gguf().path(), name, "no bias of fused matrices", "one"));
        }
        let part = |range| Linear { w: all.w.slice(range), ..all };
        Ok([part(0..rows[0]), part(rows[0]..rows[0] + rows[1])])
    }

    /// Mamba 2 with `ssm_in`, `ssm_conv1d`, `ssm_dt.bias`, `ssm_a`, `ssm_d`, `ssm_norm`, `ssm_out`.
    ///
    /// # Errors
    /// A key that does not make sense; a tensor that is missing or does not fit.
    pub fn mamba2(&self) -> Result<Part> {
        let (m, n_embd) = (self.m, self.m.n_embd);
        let groups = m.count("ssm.group_count", MAX_WIDTH)?;
        let n_head = m.multiple("ssm.time_step_rank", groups)?;
        let (inner, state) = (m.multiple("ssm.inner_size", n_head)?, m.count("ssm.state_size", MAX_WIDTH)?);
        let kernel = m.count("ssm.conv_kernel", MAX_KERNEL)?;
        let channels = inner + 2 * groups * state;
        let column = |name: &str| m.take(&self.name(name), &[1, n_head]);
        Ok(Part::Mamba2(Mamba2 {
            n_head,
            head: inner / n_head,
            state,
            groups,
            input: self.linear("ssm_in", n_embd, inner + channels + n_head)?,
            conv: self.conv("ssm_conv1d", kernel, channels)?,
            dt_bias: m.vector(&self.name("ssm_dt.bias"), n_head)?,
            a: column("ssm_a")?,
            d: column("ssm_d")?,
            norm: m.take(&self.name("ssm_norm.weight"), &[inner / groups, groups])?,
            eps: m.plain_norm(inner / groups)?.eps,
            o: self.linear("ssm_out", inner, n_embd)?,
        }))
    }

    /// A short convolution with `shortconv.in_proj`, `shortconv.conv` and `shortconv.out_proj`.
    ///
    /// # Errors
    /// A key that does not make sense; a tensor that is missing or does not fit.
    pub fn short_conv(&self) -> Result<Part> {
        let n_embd = self.m.n_embd;
        Ok(Part::ShortConv(ShortConv {
            input: self.linear("shortconv.in_proj", n_embd, 3 * n_embd)?,
            conv: self.conv("shortconv.conv", self.m.count("shortconv.l_cache", MAX_KERNEL)?, n_embd)?,
            o: self.linear("shortconv.out_proj", n_embd, n_embd)?,
        }))
    }

    /// Attention whose `attn_q` has, of each head, the rows of its query and then those of a gate on its result.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn gqa_with_gated_queries(&self, heads: Heads, rope: Rope) -> Result<Gqa> {
        let Heads { n_head, n_head_kv, k, v } = heads;
        let (n_embd, both) = (self.m.n_embd, self.linear("attn_q", self.m.n_embd, n_head * (k + v))?);
        if both.bias.is_some() {
            let name = self.name("attn_q.bias");
            return Err(Error::unsupported(self.m.gguf().path(), name, "no bias of queries and gates", "one"));
        }
        let rows = |range| Linear { w: both.w.each(range, k + v), ..both };
        let keys = self.linear("attn_k", n_embd, n_head_kv * k)?;
        let values = self.linear("attn_v", n_embd, n_head_kv * v)?;
        Ok(Gqa {
            gate: Some(Gate { w: rows(k..k + v), act: GateAct::Sigmoid }),
            qk_norm: self.head_norms(heads)?,
            ..self.gqa_of(heads, [rows(0..k), keys, values], Some(rope))?
        })
    }
}
