//! Models of a few hundred KiB with an architecture's real metadata and tensors, to be bent and written. Their weights
//! are noise: good for "the same bits as before", not for comparing with another runtime.

use std::path::Path;

use hotset::blueprint::{ExpertSet, ExpertTensors};
use hotset::gguf::{Gguf, GgufWriter, Value};
use hotset::quant::GgmlType;

use super::samples::noise;

/// Width of the residual stream.
pub const N_EMBD: u64 = 32;
/// Width of an expert.
pub const N_FF: u64 = 64;
/// MoE layers.
pub const N_LAYER: usize = 2;
/// Experts a layer.
pub const N_EXPERT: usize = 8;
/// Experts used a token.
pub const N_USED: usize = 2;
/// Tokens.
pub const N_VOCAB: u64 = 40;
/// The longest context.
pub const N_CTX: u32 = 64;

/// The architectures that [`Tiny::new`] makes: all that hotset runs.
pub const ARCHS: [&str; 4] = ["qwen3moe", "llama", "olmoe", "qwen2moe"];

/// A tensor to be written.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub ty: GgmlType,
    pub bytes: Vec<u8>,
}

/// A whole file in memory.
#[derive(Clone)]
pub struct Tiny {
    pub meta: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

/// F32 noise in (-scale, scale) around `centre`.
fn floats(seed: u64, n: u64, centre: f32, scale: f32) -> Vec<u8> {
    let bytes = noise(seed, 2 * n);
    let halves = bytes.as_chunks::<2>().0.iter().map(|b| f32::from(i16::from_le_bytes(*b)) / 32768.0);
    halves.flat_map(|x| (centre + scale * x).to_le_bytes()).collect()
}

/// The stacked experts of layer `layer` in a file that need not have anything else.
pub fn stacked_experts(gguf: &Gguf, layer: usize) -> ExpertSet {
    let tensors = ["gate", "up", "down"].map(|role| {
        let index = gguf.index_of(&format!("blk.{layer}.ffn_{role}_exps.weight")).unwrap();
        let info = &gguf.tensors()[index];
        let [cols, rows] = [0, 1].map(|i| info.dims[i] as usize);
        let ty = info.ggml_type(gguf.path()).unwrap();
        hotset::blueprint::Tensor { index, start: 0, ty, rows, cols, bytes: info.bytes.unwrap(), groups: None }
    });
    let n_expert = gguf.tensors()[tensors[0].index].dims[2] as usize;
    ExpertSet { layer, n_expert, n_ff: tensors[0].rows, gated: true, tensors: ExpertTensors::Stacked(tensors.to_vec()) }
}

impl Tiny {
    /// A good model of an architecture that hotset runs.
    pub fn new(arch: &str) -> Tiny {
        let mut meta: Vec<(String, Value)> = vec![("general.architecture".to_owned(), arch.into())];
        let mut number = |key: &str, value: u32| meta.push((format!("{arch}.{key}"), value.into()));
        number("block_count", N_LAYER as u32);
        number("context_length", N_CTX);
        number("embedding_length", N_EMBD as u32);
        number("feed_forward_length", N_FF as u32);
        number("attention.head_count", 2);
        number("attention.head_count_kv", 1);
        number("attention.key_length", 16);
        number("attention.value_length", 16);
        number("expert_count", N_EXPERT as u32);
        number("expert_used_count", N_USED as u32);
        meta.push((format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-5f32.into()));
        meta.push((format!("{arch}.rope.freq_base"), 10_000f32.into()));
        let mut tiny = Tiny { meta, tensors: Vec::new() };
        tiny.add("token_embd.weight", &[N_EMBD, N_VOCAB]);
        tiny.add("output_norm.weight", &[N_EMBD]);
        tiny.add("output.weight", &[N_EMBD, N_VOCAB]);
        for il in 0..N_LAYER {
            let mut add = |role: &str, dims: &[u64]| tiny.add(&format!("blk.{il}.{role}"), dims);
            add("attn_norm.weight", &[N_EMBD]);
            add("attn_q.weight", &[N_EMBD, 32]);
            add("attn_k.weight", &[N_EMBD, 16]);
            add("attn_v.weight", &[N_EMBD, 16]);
            add("attn_output.weight", &[32, N_EMBD]);
            match arch {
                "qwen3moe" => {
                    add("attn_q_norm.weight", &[16]);
                    add("attn_k_norm.weight", &[16]);
                }
                "olmoe" => {
                    add("attn_q_norm.weight", &[32]);
                    add("attn_k_norm.weight", &[16]);
                }
                "qwen2moe" => {
                    add("attn_q.bias", &[32]);
                    add("ffn_gate_inp_shexp.weight", &[N_EMBD]);
                    add("ffn_gate_shexp.weight", &[N_EMBD, 96]);
                    add("ffn_up_shexp.weight", &[N_EMBD, 96]);
                    add("ffn_down_shexp.weight", &[96, N_EMBD]);
                }
                _ => {}
            }
            add("ffn_norm.weight", &[N_EMBD]);
            add("ffn_gate_inp.weight", &[N_EMBD, N_EXPERT as u64]);
            add("ffn_gate_exps.weight", &[N_EMBD, N_FF, N_EXPERT as u64]);
            add("ffn_up_exps.weight", &[N_EMBD, N_FF, N_EXPERT as u64]);
            add("ffn_down_exps.weight", &[N_FF, N_EMBD, N_EXPERT as u64]);
        }
        tiny
    }

    /// What a file holds.
    pub fn read(path: &Path) -> Tiny {
        let gguf = Gguf::open(path).unwrap();
        let meta = gguf.meta().iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
        let tensors = gguf.tensors().iter().map(|t| {
            let mut bytes = vec![0; t.bytes.unwrap() as usize];
            gguf.read_tensor(t, &mut bytes).unwrap();
            Tensor { name: t.name.clone(), dims: t.dims.clone(), ty: t.ggml_type(path).unwrap(), bytes }
        });
        Tiny { meta, tensors: tensors.collect() }
    }

    /// Adds a tensor of noise.
    pub fn add(&mut self, name: &str, dims: &[u64]) {
        let (n, seed) = (dims.iter().product(), self.tensors.len() as u64);
        let (centre, scale) = if name.contains("norm") { (1.0, 0.1) } else { (0.0, 2.0 / (dims[0] as f32).sqrt()) };
        let bytes = floats(seed, n, centre, scale);
        self.tensors.push(Tensor { name: name.to_owned(), dims: dims.to_vec(), ty: GgmlType::F32, bytes });
    }

    /// The tensor of that name.
    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// Takes a tensor out.
    pub fn take(&mut self, name: &str) -> Tensor {
        let at = self.tensors.iter().position(|t| t.name == name).unwrap_or_else(|| panic!("no tensor {name}"));
        self.tensors.remove(at)
    }

    /// Sets a key, new or old.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.meta.retain(|(k, _)| k != key);
        self.meta.push((key.to_owned(), value.into()));
    }

    /// The same model with a matrix of each expert alone, `blk.N.ffn_gate.E.weight`, as the first Mixtral files have it.
    pub fn old_layout(mut self) -> Tiny {
        for il in 0..N_LAYER {
            for role in ["gate", "up", "down"] {
                let stacked = self.take(&format!("blk.{il}.ffn_{role}_exps.weight"));
                let experts = stacked.bytes.chunks(stacked.bytes.len() / N_EXPERT).enumerate();
                self.tensors.extend(experts.map(|(e, bytes)| Tensor {
                    name: format!("blk.{il}.ffn_{role}.{e}.weight"),
                    dims: stacked.dims[..2].to_vec(),
                    ty: stacked.ty,
                    bytes: bytes.to_vec(),
                }));
            }
        }
        self
    }

    /// The same model with gate and up of each expert in one tensor, in the layers `which`.
    pub fn fused_layout(mut self, which: std::ops::Range<usize>) -> Tiny {
        for il in which {
            let [gate, up] = ["gate", "up"].map(|role| self.take(&format!("blk.{il}.ffn_{role}_exps.weight")));
            let n = gate.bytes.len() / N_EXPERT;
            let pairs = gate.bytes.chunks(n).zip(up.bytes.chunks(n));
            self.tensors.push(Tensor {
                name: format!("blk.{il}.ffn_gate_up_exps.weight"),
                dims: vec![N_EMBD, 2 * N_FF, N_EXPERT as u64],
                ty: gate.ty,
                bytes: pairs.flat_map(|(gate, up)| [gate, up].concat()).collect(),
            });
        }
        self
    }

    /// Writes the file, replacing what is there.
    pub fn write(&self, path: &Path) {
        let mut w = GgufWriter::new(path, true).unwrap();
        for (key, value) in &self.meta {
            w.meta(key, value.clone()).unwrap();
        }
        for t in &self.tensors {
            w.tensor(&t.name, &t.dims, t.ty).unwrap();
        }
        let mut out = w.start().unwrap();
        for t in &self.tensors {
            out.write_tensor(&t.name, &t.bytes).unwrap();
        }
        out.finish().unwrap();
    }

    /// Writes the tensors into `n` files of a split set in `folder`, and returns the first's path.
    pub fn write_split(&self, folder: &Path, n: usize) -> std::path::PathBuf {
        let path = |i: usize| folder.join(format!("model-{:05}-of-{n:05}.gguf", i + 1));
        let each = self.tensors.len().div_ceil(n);
        for (i, tensors) in self.tensors.chunks(each).enumerate() {
            let mut part =
                Tiny { meta: if i == 0 { self.meta.clone() } else { Vec::new() }, tensors: tensors.to_vec() };
            part.set("split.no", i as u16);
            part.set("split.count", n as u16);
            part.set("split.tensors.count", self.tensors.len() as i32);
            part.write(&path(i));
        }
        path(0)
    }
}
