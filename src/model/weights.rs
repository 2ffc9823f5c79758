//! The dense weights: everything that every token touches. Read once into memory of our own, so that no pressure evicts
//! them; checked against the shapes that the forward pass will rely on.

use memmap2::MmapMut;

use super::{config::Config, dense::Dense, missing::refuse_missing};
use crate::{
    Error, Result,
    backend::Backend,
    gguf::{Gguf, Reader, TensorType},
    machine::{Filled, anonymous},
    quant::{FfnMats, GgmlType, QMat, QMatMut, dequantize_row},
};

/// A matrix of ours.
pub struct Mat {
    ty: GgmlType,
    rows: usize,
    cols: usize,
    data: MmapMut,
    interleaved: bool,
}

impl Mat {
    /// For the backend.
    pub fn view(&self) -> QMat<'_> {
        let data = &self.data[..self.bytes()];
        QMat { ty: self.ty, rows: self.rows, cols: self.cols, data, interleaved: self.interleaved }
    }
    /// Has the backend interleave its rows, if it likes them so.
    fn interleave(&mut self, b: &mut impl Backend) {
        if !self.interleaved {
            let n = self.bytes();
            let w = QMatMut { ty: self.ty, rows: self.rows, cols: self.cols, data: &mut self.data[..n] };
            self.interleaved = b.interleave(w);
        }
    }
    fn bytes(&self) -> usize {
        self.rows * (self.cols / self.ty.block_len() * self.ty.block_bytes())
    }
}

/// A gated feed-forward block that every token passes.
pub struct DenseFfn {
    gate: Mat,
    up: Mat,
    down: Mat,
}

impl DenseFfn {
    /// For the backend.
    pub fn view(&self) -> FfnMats<'_> {
        FfnMats { gate: self.gate.view(), up: self.up.view(), down: self.down.view() }
    }
}

/// The dense part of a MoE layer.
pub struct MoeWeights {
    /// Index among the MoE layers.
    pub index: usize,
    /// (n_expert, n_embd)
    pub router: Mat,
    /// The expert that every token uses, if the model has one.
    pub shared: Option<DenseFfn>,
    /// Its gate: sigmoid of the product with the input. (1, n_embd)
    pub shared_gate: Option<Mat>,
}

/// What follows the attention of a layer.
pub enum Ffn {
    /// One block for all tokens.
    Dense(DenseFfn),
    /// Routed experts.
    Moe(MoeWeights),
}

/// One layer.
pub struct Layer {
    /// (n_embd)
    pub attn_norm: Vec<f32>,
    /// (n_head * n_embd_head_k, n_embd)
    pub wq: Mat,
    /// (n_head_kv * n_embd_head_k, n_embd)
    pub wk: Mat,
    /// (n_head_kv * n_embd_head_v, n_embd)
    pub wv: Mat,
    /// (n_embd, n_head * n_embd_head_v)
    pub wo: Mat,
    /// Biases of the four, each of its matrix's rows, or empty.
    pub bias: [Vec<f32>; 4],
    /// Norm weights of queries and keys, as [`QkNorm`] says, or empty.
    pub q_norm: Vec<f32>,
    /// See `q_norm`.
    pub k_norm: Vec<f32>,
    /// (n_embd)
    pub ffn_norm: Vec<f32>,
    /// The rest.
    pub ffn: Ffn,
}

/// The model's dense weights.
pub struct Weights {
    /// In order.
    pub layers: Vec<Layer>,
    /// (n_embd)
    pub output_norm: Vec<f32>,
    /// (n_vocab, n_embd). The token embedding where the model ties the two.
    pub output: Mat,
    /// Where the token embedding is the output matrix.
    pub tied: bool,
    /// Divisors of the rotation's frequencies (n_rot / 2), or empty.
    pub rope_freqs: Vec<f32>,
}

/// Bytes of the dense tensors that [`Weights::load`] keeps in memory: all but the routed experts and an untied token
/// embedding, of which each token needs one row.
///
/// # Errors
/// Names the tensor that is missing.
pub fn resident_bytes(gguf: &Gguf, c: &Config) -> Result<u64> {
    let dense = Dense::find(&Reader::new(gguf), c)?;
    Ok(dense.resident().filter_map(|t| t.bytes).map(|b| b.next_multiple_of(4096)).sum())
}

/// Whether the dense tensors have the shapes and types that can be computed with, for those who do not load them.
///
/// # Errors
/// Names the tensor that is missing, or whose shape or type does not fit.
pub fn check_dense(gguf: &Gguf, c: &Config) -> Result<()> {
    Dense::find(&Reader::new(gguf), c)?.iter().try_for_each(|found| found.check(gguf).map(drop))
}

/// Weights of one type that a token touches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Touched {
    /// The type.
    pub ty: GgmlType,
    /// In all.
    pub bytes: f64,
    /// Of so many tensors.
    pub tensors: f64,
}

/// What a token touches of each type: what [`resident_bytes`] counts and its share of the routed experts. Types of which the
/// size is not known are left out.
pub fn touched(gguf: &Gguf, c: &Config) -> Vec<Touched> {
    let tied = gguf.tensor("output.weight").is_none();
    let mut types: Vec<Touched> = Vec::new();
    for t in gguf.tensors().iter().filter(|t| tied || t.name != "token_embd.weight") {
        let (TensorType::Ggml(ty), Some(bytes)) = (t.ty, t.bytes) else { continue };
        let share = if is_expert(&t.name) { c.n_expert_used as f64 / c.n_expert.max(1) as f64 } else { 1.0 };
        let at = types.iter().position(|known| known.ty == ty).unwrap_or_else(|| {
            types.push(Touched { ty, bytes: 0.0, tensors: 0.0 });
            types.len() - 1
        });
        types[at].bytes += bytes as f64 * share;
        types[at].tensors += 1.0;
    }
    types
}

/// True for the tensors of routed experts: `ffn_gate_exps`, `ffn_up_exps`, `ffn_down_exps`, `ffn_gate_up_exps`, and
/// the old `ffn_gate.7`.
pub fn is_expert(name: &str) -> bool {
    let Some((_, rest)) = name.strip_prefix("blk.").and_then(|r| r.split_once(".ffn_")) else { return false };
    let mut words = rest.split('.');
    let (role, next) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    role.ends_with("_exps") || (["gate", "up", "down"].contains(&role) && next.parse::<u16>().is_ok())
}

struct Loader<'a> {
    gguf: &'a Gguf,
    dense: Dense<'a>,
    progress: &'a mut dyn FnMut(u64),
}

impl Loader<'_> {
    fn mat(&mut self, name: &str) -> Result<Mat> {
        let found = self.dense.take(name).expect("Dense::find has found or refused it");
        let (ty, (rows, cols)) = (found.check(self.gguf)?, found.shape());
        let bytes = found.tensor.require_bytes(self.gguf.path_of(found.tensor))? as usize;
        let refused = |e| Error::request(format!("memory for tensor {name}"), format!("{bytes} bytes"), e);
        let mut data = anonymous(bytes, Filled::AtOnce).map_err(refused)?;
        self.gguf.read_tensor(found.tensor, &mut data[..bytes])?;
        (self.progress)(bytes as u64);
        Ok(Mat { ty, rows, cols, data, interleaved: false })
    }

    fn has(&self, name: &str) -> bool {
        self.dense.has(name)
    }

    /// A vector as F32; empty where the model has none of that name.
    fn vector(&mut self, name: &str) -> Result<Vec<f32>> {
        let Some(found) = self.dense.take(name) else { return Ok(Vec::new()) };
        let (ty, (_, n)) = (found.check(self.gguf)?, found.shape());
        let mut bytes = vec![0; found.tensor.require_bytes(self.gguf.path_of(found.tensor))? as usize];
        self.gguf.read_tensor(found.tensor, &mut bytes)?;
        (self.progress)(bytes.len() as u64);
        let mut values = vec![0.0; n];
        dequantize_row(ty, &bytes, &mut values);
        match wrong_vector(name, &values) {
            None => Ok(values),
            Some(why) => Err(Error::file(self.gguf.path_of(found.tensor), format!("tensor {name} {why}"))),
        }
    }

    fn ffn(&mut self, il: usize, suffix: &str) -> Result<DenseFfn> {
        let name = |role: &str| format!("blk.{il}.ffn_{role}{suffix}.weight");
        Ok(DenseFfn { gate: self.mat(&name("gate"))?, up: self.mat(&name("up"))?, down: self.mat(&name("down"))? })
    }

    fn layer(&mut self, c: &Config, il: usize) -> Result<Layer> {
        let name = |role: &str| format!("blk.{il}.{role}");
        let ffn = match c.moe_layers.binary_search(&il) {
            Err(_) => Ffn::Dense(self.ffn(il, "")?),
            Ok(index) => {
                let router = self.mat(&name("ffn_gate_inp.weight"))?;
                let shared = self.has(&name("ffn_gate_shexp.weight"));
                let shared = if shared { Some(self.ffn(il, "_shexp")?) } else { None };
                let gate = name("ffn_gate_inp_shexp.weight");
                let shared_gate = if self.has(&gate) { Some(self.mat(&gate)?) } else { None };
                Ffn::Moe(MoeWeights { index, router, shared, shared_gate })
            }
        };
        Ok(Layer {
            attn_norm: self.vector(&name("attn_norm.weight"))?,
            wq: self.mat(&name("attn_q.weight"))?,
            wk: self.mat(&name("attn_k.weight"))?,
            wv: self.mat(&name("attn_v.weight"))?,
            wo: self.mat(&name("attn_output.weight"))?,
            bias: [
                self.vector(&name("attn_q.bias"))?,
                self.vector(&name("attn_k.bias"))?,
                self.vector(&name("attn_v.bias"))?,
                self.vector(&name("attn_output.bias"))?,
            ],
            q_norm: self.vector(&name("attn_q_norm.weight"))?,
            k_norm: self.vector(&name("attn_k_norm.weight"))?,
            ffn_norm: self.vector(&name("ffn_norm.weight"))?,
            ffn,
        })
    }
}

/// Why no model has such a vector, if none has.
fn wrong_vector(name: &str, values: &[f32]) -> Option<String> {
    if let Some(i) = values.iter().position(|x| !x.is_finite()) {
        return Some(format!("has {} as its element {i}: the file is damaged or was wrongly quantised", values[i]));
    }
    if name == "rope_freqs.weight"
        && let Some(x) = values.iter().find(|&&x| x <= 0.0)
    {
        return Some(format!("has {x}, and frequencies are divided by it: only numbers above 0 make sense"));
    }
    None
}

impl Weights {
    /// Reads the dense weights. `progress` is told the bytes of each tensor as it arrives.
    ///
    /// # Errors
    /// Names the tensor that is missing, or whose shape or type does not fit, or whose bytes cannot be read, or are not there
    /// yet, or are no numbers.
    pub fn load(gguf: &Gguf, c: &Config, progress: &mut dyn FnMut(u64)) -> Result<Self> {
        refuse_missing(gguf)?;
        let mut loader = Loader { gguf, dense: Dense::find(&Reader::new(gguf), c)?, progress };
        let tied = !loader.has("output.weight");
        let weights = Self {
            layers: (0..c.n_layer).map(|il| loader.layer(c, il)).collect::<Result<_>>()?,
            output_norm: loader.vector("output_norm.weight")?,
            output: loader.mat(if tied { "token_embd.weight" } else { "output.weight" })?,
            tied,
            rope_freqs: loader.vector("rope_freqs.weight")?,
        };
        // A row of it is read for each token.
        loader.dense.take("token_embd.weight");
        let left = loader.dense.iter().next().map(|found| &found.tensor.name);
        assert_eq!(left, None, "what the model needs is loaded");
        Ok(weights)
    }

    /// The bytes of the attention's and the output's matrices, most of the dense weights.
    pub fn bytes(&self) -> Vec<&[u8]> {
        let layers = self.layers.iter().flat_map(|l| [&l.wq, &l.wk, &l.wv, &l.wo]);
        layers.chain([&self.output]).map(|mat| mat.view().data).collect()
    }

    /// Has the backend interleave the rows of all matrices that it likes so.
    pub fn interleave(&mut self, b: &mut impl Backend) {
        for layer in &mut self.layers {
            for mat in [&mut layer.wq, &mut layer.wk, &mut layer.wv, &mut layer.wo] {
                mat.interleave(b);
            }
            let ffn = match &mut layer.ffn {
                Ffn::Dense(ffn) => Some(ffn),
                Ffn::Moe(moe) => {
                    moe.router.interleave(b);
                    moe.shared.as_mut()
                }
            };
            if let Some(DenseFfn { gate, up, down }) = ffn {
                [gate, up, down].into_iter().for_each(|mat| mat.interleave(b));
            }
        }
        self.output.interleave(b);
    }
}
