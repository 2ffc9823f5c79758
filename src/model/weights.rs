//! The dense weights: everything that every token touches. Read once into memory of our own, so that no pressure evicts
//! them; checked against the shapes that the forward pass will rely on.

use memmap2::MmapMut;

use super::{arch::QkNorm, config::Config};
use crate::{
    Error, Result,
    backend::Backend,
    gguf::{Gguf, TensorType},
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
pub fn resident_bytes(gguf: &Gguf) -> u64 {
    let tied = gguf.tensor("output.weight").is_none();
    let dense = gguf.tensors().iter().filter(|t| !is_expert(&t.name) && (tied || t.name != "token_embd.weight"));
    dense.filter_map(|t| t.bytes).map(|b| b.next_multiple_of(4096)).sum()
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
    progress: &'a mut dyn FnMut(u64),
}

impl Loader<'_> {
    fn mat(&mut self, name: &str, cols: usize, rows: usize) -> Result<Mat> {
        let tensor = self.gguf.require(name)?;
        // A single row may be stored as a vector.
        let ty = if rows == 1 && tensor.dims.len() == 1 {
            self.gguf.computable(tensor, &[cols])?
        } else {
            self.gguf.computable(tensor, &[cols, rows])?
        };
        let bytes = tensor.require_bytes(self.gguf.path_of(tensor))? as usize;
        let refused = |e| Error::request(format!("memory for tensor {name}"), format!("{bytes} bytes"), e);
        let mut data = anonymous(bytes, Filled::AtOnce).map_err(refused)?;
        self.gguf.read_tensor(tensor, &mut data[..bytes])?;
        (self.progress)(bytes as u64);
        Ok(Mat { ty, rows, cols, data, interleaved: false })
    }

    /// A vector of `n` as F32; empty where the tensor is absent.
    fn optional_vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        let Some(tensor) = self.gguf.tensor(name) else { return Ok(Vec::new()) };
        let ty = self.gguf.computable(tensor, &[n])?;
        let mut bytes = vec![0; tensor.require_bytes(self.gguf.path_of(tensor))? as usize];
        self.gguf.read_tensor(tensor, &mut bytes)?;
        (self.progress)(bytes.len() as u64);
        let mut values = vec![0.0; n];
        dequantize_row(ty, &bytes, &mut values);
        Ok(values)
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        self.gguf.require(name)?;
        self.optional_vector(name, n)
    }

    fn ffn(&mut self, block: usize, suffix: &str, n_embd: usize) -> Result<DenseFfn> {
        let name = |role: &str| format!("blk.{block}.ffn_{role}{suffix}.weight");
        let n_ff = self.gguf.require(&name("gate"))?.dims.get(1).map_or(0, |&d| d as usize);
        Ok(DenseFfn {
            gate: self.mat(&name("gate"), n_embd, n_ff)?,
            up: self.mat(&name("up"), n_embd, n_ff)?,
            down: self.mat(&name("down"), n_ff, n_embd)?,
        })
    }

    fn layer(&mut self, c: &Config, il: usize) -> Result<Layer> {
        let name = |role: &str| format!("blk.{il}.{role}");
        let (q, k, v) = (c.n_head * c.n_embd_head_k, c.n_head_kv * c.n_embd_head_k, c.n_head_kv * c.n_embd_head_v);
        let norms = match c.arch.qk_norm {
            QkNorm::Off => None,
            QkNorm::Head => Some((c.n_embd_head_k, c.n_embd_head_k)),
            QkNorm::Whole => Some((q, k)),
        };
        let (mut q_norm, mut k_norm) = (Vec::new(), Vec::new());
        if let Some((nq, nk)) = norms {
            q_norm = self.vector(&name("attn_q_norm.weight"), nq)?;
            k_norm = self.vector(&name("attn_k_norm.weight"), nk)?;
        }
        let ffn = match c.moe_layers.binary_search(&il) {
            Err(_) => Ffn::Dense(self.ffn(il, "", c.n_embd)?),
            Ok(index) => {
                let has = |part: &str| self.gguf.tensor(&name(&format!("ffn_{part}_shexp.weight"))).is_some();
                let shared = ["gate", "up", "down", "gate_inp"].into_iter().any(has);
                let gated = shared && c.arch.shared_gate;
                Ffn::Moe(MoeWeights {
                    index,
                    router: self.mat(&name("ffn_gate_inp.weight"), c.n_embd, c.n_expert)?,
                    shared: if shared { Some(self.ffn(il, "_shexp", c.n_embd)?) } else { None },
                    shared_gate: if gated {
                        Some(self.mat(&name("ffn_gate_inp_shexp.weight"), c.n_embd, 1)?)
                    } else {
                        None
                    },
                })
            }
        };
        Ok(Layer {
            attn_norm: self.vector(&name("attn_norm.weight"), c.n_embd)?,
            wq: self.mat(&name("attn_q.weight"), c.n_embd, q)?,
            wk: self.mat(&name("attn_k.weight"), c.n_embd, k)?,
            wv: self.mat(&name("attn_v.weight"), c.n_embd, v)?,
            wo: self.mat(&name("attn_output.weight"), c.n_head * c.n_embd_head_v, c.n_embd)?,
            bias: [
                self.optional_vector(&name("attn_q.bias"), q)?,
                self.optional_vector(&name("attn_k.bias"), k)?,
                self.optional_vector(&name("attn_v.bias"), v)?,
                self.optional_vector(&name("attn_output.bias"), c.n_embd)?,
            ],
            q_norm,
            k_norm,
            ffn_norm: self.vector(&name("ffn_norm.weight"), c.n_embd)?,
            ffn,
        })
    }
}

impl Weights {
    /// Reads the dense weights. `progress` is told the bytes of each tensor as it arrives.
    ///
    /// # Errors
    /// Names the tensor that is missing, or whose shape or type does not fit, or whose bytes cannot be read.
    pub fn load(gguf: &Gguf, c: &Config, progress: &mut dyn FnMut(u64)) -> Result<Self> {
        let mut loader = Loader { gguf, progress };
        let tied = gguf.tensor("output.weight").is_none();
        let head = if tied { "token_embd.weight" } else { "output.weight" };
        Ok(Self {
            layers: (0..c.n_layer).map(|il| loader.layer(c, il)).collect::<Result<_>>()?,
            output_norm: loader.vector("output_norm.weight", c.n_embd)?,
            output: loader.mat(head, c.n_embd, c.n_vocab)?,
            tied,
            rope_freqs: loader.optional_vector("rope_freqs.weight", c.n_rot / 2)?,
        })
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
