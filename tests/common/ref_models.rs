//! The F32 reference models: a few MB of seeded random weights each, with a real architecture's metadata, rebuilt
//! from `tests/data/ref/specs.json` bit for bit. llama.cpp ran the same files; what it answered lies beside the specs.
//!
//! To add a model, copy its entry of the specs and its three `.npy` files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use hotset::gguf::{Array, GgufWriter, Value};
use hotset::npy::Npy;
use hotset::quant::GgmlType;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::numpy_rng::{Rng, numpy_exp};

/// Tokens in every model's vocabulary.
pub const N_VOCAB: usize = 272;

/// One entry of specs.json.
#[derive(serde::Deserialize)]
pub struct Spec {
    /// `general.architecture`.
    pub arch: String,
    kv: Ordered,
    /// Name and dims, the row length first.
    pub tensors: Vec<(String, Vec<u64>)>,
    /// Part of a tensor's name, kind of its elements and their scale; the first that fits comes before the usual rules.
    #[serde(default)]
    init: Vec<(String, String, f32)>,
    seed: u32,
    /// Of the whole file, in hexadecimal.
    pub sha256: String,
    /// Length of the file.
    pub bytes: u64,
}

impl Spec {
    /// Metadata of the architecture, in the file's order.
    pub fn meta(&self) -> Vec<(String, Value)> {
        self.kv.0.iter().map(|(key, value)| (format!("{}.{key}", self.arch), from_json(value))).collect()
    }
}

/// A JSON object in its own order, which is the order of the metadata.
struct Ordered(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Ordered;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// All models there are, by name.
pub fn specs() -> BTreeMap<String, Spec> {
    let path = data_folder().join("specs.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The model's file, built on first use and kept for later runs and other test binaries.
pub fn ref_model(name: &str) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let spec = specs().remove(name).unwrap_or_else(|| panic!("{name} is not in tests/data/ref/specs.json"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ref");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{name}.f32.gguf"));
    // A panic of another test while building leaves nothing half-done behind: the rename comes last.
    let _one = BUILDING.lock().unwrap_or_else(|e| e.into_inner());
    if path.metadata().map_or(0, |m| m.len()) != spec.bytes {
        build(name, &spec, &path);
    }
    path
}

/// llama.cpp's tokens (48), logits (48 × 272) or experts (MoE layers × 48 × used) for a model.
pub fn golden(name: &str, what: &str) -> Npy {
    Npy::read(&data_folder().join(format!("{name}.f32.{what}.npy"))).unwrap()
}

fn data_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ref")
}

/// Writes the model to `path`, replacing what is there in one step.
pub fn build(name: &str, spec: &Spec, path: &Path) {
    let mut w = GgufWriter::new(path, true).unwrap();
    w.meta("general.architecture", spec.arch.as_str()).unwrap();
    w.meta("general.name", name).unwrap();
    for (key, value) in spec.meta() {
        w.meta(&key, value).unwrap();
    }
    write_vocabulary(&mut w);
    for (tensor, dims) in &spec.tensors {
        w.tensor(tensor, dims, type_of(tensor)).unwrap();
    }
    let tied = !spec.tensors.iter().any(|(n, _)| n == "output.weight");
    let mut out = w.start().unwrap();
    for (tensor, dims) in &spec.tensors {
        let values = weights(tensor, dims, spec, tied);
        let bytes: Vec<u8> = match type_of(tensor) {
            GgmlType::I32 => values.iter().flat_map(|&x| (x as i32).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        out.write_tensor(tensor, &bytes).unwrap();
    }
    out.finish().unwrap();
}

/// Numbers of experts are whole.
pub fn type_of(tensor: &str) -> GgmlType {
    if tensor.contains("tid2eid") { GgmlType::I32 } else { GgmlType::F32 }
}

/// As the gguf package for Python picks types: integers are u32 alone and i32 in arrays.
fn from_json(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Bool(b) => Value::Bool(*b),
        Json::String(s) => Value::String(s.clone()),
        Json::Object(o) => {
            Value::Array(Array::U64(o["u64"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()))
        }
        Json::Number(n) if n.is_f64() => Value::F32(n.as_f64().unwrap() as f32),
        Json::Number(n) => Value::U32(n.as_u64().unwrap().try_into().unwrap()),
        Json::Array(a) if a.iter().all(Json::is_boolean) => {
            Value::Array(Array::Bool(a.iter().map(|b| b.as_bool().unwrap()).collect()))
        }
        Json::Array(a) if a.iter().all(Json::is_i64) => {
            Value::Array(Array::I32(a.iter().map(|n| n.as_i64().unwrap().try_into().unwrap()).collect()))
        }
        Json::Array(a) => Value::Array(Array::F32(a.iter().map(|n| n.as_f64().unwrap() as f32).collect())),
        Json::Null => panic!("specs.json: no metadata type for null"),
    }
}

/// Byte-level BPE: 256 bytes in GPT-2's order, ten merges, unused padding, three specials.
fn write_vocabulary(w: &mut GgufWriter) {
    const MERGES: [(&str, &str); 10] = [
        ("t", "h"),
        ("h", "e"),
        ("i", "n"),
        ("e", "r"),
        ("a", "n"),
        ("th", "e"),
        ("Ġ", "the"),
        ("Ġ", "a"),
        ("o", "u"),
        ("in", "g"),
    ];
    const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let (normal, control, unused) = (1i32, 3, 5);

    let mut chars: BTreeMap<u32, char> =
        (33..=126).chain(161..=172).chain(174..=255).map(|b| (b, char_of(b))).collect();
    for (k, b) in (0..256).filter(|b| !chars.contains_key(b)).collect::<Vec<u32>>().into_iter().enumerate() {
        chars.insert(b, char_of(256 + k as u32));
    }
    let mut tokens: Vec<String> = chars.values().map(char::to_string).collect();
    tokens.extend(MERGES.map(|(a, b)| format!("{a}{b}")));
    let mut types = vec![normal; tokens.len()];
    let n_unused = N_VOCAB - tokens.len() - SPECIALS.len();
    tokens.extend((0..n_unused).map(|i| format!("[PAD{i}]")));
    types.resize(tokens.len(), unused);
    let first_special = tokens.len() as u32;
    tokens.extend(SPECIALS.map(str::to_owned));
    types.resize(tokens.len(), control);

    w.meta("tokenizer.ggml.model", "gpt2").unwrap();
    w.meta("tokenizer.ggml.pre", "qwen2").unwrap();
    w.meta("tokenizer.ggml.tokens", tokens).unwrap();
    w.meta("tokenizer.ggml.token_type", types).unwrap();
    w.meta("tokenizer.ggml.merges", MERGES.map(|(a, b)| format!("{a} {b}")).to_vec()).unwrap();
    w.meta("tokenizer.ggml.bos_token_id", first_special).unwrap();
    w.meta("tokenizer.ggml.eos_token_id", first_special + 2).unwrap();
    w.meta("tokenizer.ggml.add_bos_token", false).unwrap();
}

fn char_of(code: u32) -> char {
    char::from_u32(code).expect("below the surrogates")
}

/// A tensor's elements. The generator is seeded by its name, so that order and neighbours do not matter; draws are
/// rounded to f32 before they are scaled, and scaled in f32.
fn weights(name: &str, dims: &[u64], spec: &Spec, tied: bool) -> Vec<f32> {
    let mut rng = Rng::new(&[spec.seed, crc32(name.as_bytes())]);
    let n: u64 = dims.iter().product();
    let draws = (0..n).map(|_| rng.standard_normal() as f32);
    let by = |factor: f32| move |r: f32| factor * r;
    let root = (dims[0] as f64).sqrt() as f32;
    let fits = |part: &str| part.strip_prefix('^').map_or_else(|| name.contains(part), |start| name.starts_with(start));
    if let Some((_, kind, scale)) = spec.init.iter().find(|(part, ..)| fits(part)) {
        let scale = *scale;
        match kind.as_str() {
            "matrix" => draws.map(|r| scale * r / root).collect(),
            "normal" => draws.map(by(scale)).collect(),
            "around1" => draws.map(|r| 1.0 + scale * r).collect(),
            "shift" => draws.map(|r| scale + 0.7 * r).collect(),
            "exp" => draws.map(|r| numpy_exp(scale * r)).collect(),
            "negexp" => draws.map(|r| -numpy_exp(scale * r)).collect(),
            "scaled" => draws.map(|r| scale * numpy_exp(0.2 * r)).collect(),
            "ramp" => {
                let step = f64::from(scale) / (n - 1) as f64;
                let at = |i: u64| if i + 1 == n { scale } else { (i as f64 * step) as f32 };
                (0..n).map(|i| 1.0 + at(i)).collect()
            }
            "choice" => {
                draws.for_each(drop);
                distinct(&mut rng, dims, scale as usize)
            }
            "first" => (0..n).map(|i| if (i as f32) < scale { 1.0 } else { 1e30 }).collect(),
            other => panic!("{name}: the rule {other} is not ported"),
        }
    } else if name.contains("norm") && name.ends_with(".weight") {
        draws.map(|r| 1.0 + 0.1 * r).collect()
    } else if name.contains("ssm_a") {
        draws.map(|r| -numpy_exp(0.3 * r)).collect()
    } else if name.ends_with("exp_probs_b.bias") {
        draws.map(by(0.05)).collect()
    } else if name.ends_with(".bias") {
        draws.map(by(0.1)).collect()
    } else if name.contains("sinks") {
        draws.collect()
    } else if name.contains("token_embd") {
        draws.map(by(if tied { 0.2 } else { 1.0 })).collect()
    } else if name.contains("ssm_conv1d") {
        draws.map(by(0.5)).collect()
    } else if name.contains("shortconv.conv") {
        draws.map(by(0.6)).collect()
    } else {
        let gain = if name.contains("ffn_gate_inp") {
            2.0
        } else if name == "output.weight" {
            3.0
        } else {
            1.0
        };
        draws.map(|r| gain * r / root).collect()
    }
}

/// Rows of different numbers below `n`: the order of as many draws.
fn distinct(rng: &mut Rng, dims: &[u64], n: usize) -> Vec<f32> {
    let row = |_| {
        let draws: Vec<f64> = (0..n).map(|_| rng.random()).collect();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| draws[a].total_cmp(&draws[b]));
        order.into_iter().take(dims[0] as usize).map(|i| i as f32).collect::<Vec<_>>()
    };
    (0..dims[1]).flat_map(row).collect()
}

/// zlib's CRC-32.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    })
}
