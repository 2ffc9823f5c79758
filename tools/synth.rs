//! Writes MoE models of a given architecture and shape, with random weights in any type that hotset computes with.
//!
//! Such a model talks nonsense, and costs what a real one of its shape costs: the same bytes per token, the same
//! arithmetic, and experts as popular as `--router-skew` says. Tensor by tensor, from a pool of random blocks, so that
//! 17 GB take minutes and a few hundred MB of memory:
//!
//! ```sh
//! cargo run --release --example synth -- mid-s.gguf --preset mid --router-skew 0.6
//! cargo run --release --example synth -- big-q4_0.gguf --preset big --etype Q4_0 --atype Q4_0 --router-skew -1
//! cargo run --release --example synth -- mixed.gguf --etype IQ3_XXS --dtype IQ4_XS --ltype 0-2=Q6_K
//! cargo run --release --example synth -- v4.gguf --arch deepseek4 --layers 6 --etype MXFP4 --atype Q8_0
//! ```
//!
//! Experts get popular in this way: the token embedding has a *persistent direction* u that all tokens share, which the
//! layers never lose. A router that sees u prefers the same experts at every token; how much, the skew decides.

use std::{ops::RangeInclusive, path::PathBuf, process::ExitCode, time::Instant};

use clap::{Parser, ValueEnum};
use hotset::{
    Error, Result,
    gguf::{GgufWriter, TensorWriter},
    human_bytes,
    quant::GgmlType,
};
use indicatif::{ProgressBar, ProgressStyle};

#[path = "synth/blocks.rs"]
mod blocks;
#[path = "synth/published.rs"]
mod published;
#[path = "synth/vocab.rs"]
mod vocab;

use blocks::{Pool, Rng, write_float};

/// Write a synthetic MoE model (GGUF) with random weights
#[derive(Parser)]
#[command(name = "synth", args_override_self = true)]
struct Args {
    /// Where to write it
    out: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    /// Architecture
    #[arg(long, value_enum, default_value_t = Arch::Qwen3moe)]
    arch: Arch,
    /// Shape to start from (default: mid), of qwen3moe and llama: the others have one of their own
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    #[command(flatten)]
    shape: Overrides,
    /// Type of the experts
    #[arg(long, value_name = "TYPE", default_value = "Q4_K", value_parser = computable)]
    etype: GgmlType,
    /// Type of the experts' down matrices; default: that of the others
    #[arg(long, value_name = "TYPE", value_parser = computable)]
    dtype: Option<GgmlType>,
    /// Type of all matrices of the experts of some layers, as 0-2=Q6_K; may be given again
    #[arg(long, value_name = "LAYERS=TYPE", value_parser = layers_and_type)]
    ltype: Vec<(RangeInclusive<usize>, GgmlType)>,
    /// Type of the attention matrices
    #[arg(long, value_name = "TYPE", default_value = "Q4_K", value_parser = computable)]
    atype: GgmlType,
    /// Type of the output matrix
    #[arg(long, value_name = "TYPE", default_value = "Q6_K", value_parser = computable)]
    otype: GgmlType,
    /// Below 0: plain random routers, which see the persistent direction: mild, random popularity. 0: routers blind to
    /// it, near uniform, the worst case. 0.6 to 1.2: popularity like Zipf's law
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    router_skew: f32,
    /// Spread of the part of router scores that depends on the token
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    router_noise: f32,
    /// Share of the embedding's variance along the persistent direction
    #[arg(long, value_name = "X", default_value_t = 0.5)]
    dir_share: f32,
    /// The same seed and options give the same file
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Arch {
    /// Qwen3-30B-A3B's family: norms of queries and keys
    Qwen3moe,
    /// Mixtral's family
    Llama,
    /// DeepSeek-V2-Lite: latent attention
    Deepseek2,
    /// DeepSeek-V4-Flash: attention over compressed blocks
    Deepseek4,
    /// LFM2-8B-A1B: short convolutions
    Lfm2moe,
    /// Qwen3.8-Flash-Next: a table of n-grams
    Qwen4exp,
}

impl Arch {
    fn name(self) -> &'static str {
        match self {
            Arch::Qwen3moe => "qwen3moe",
            Arch::Llama => "llama",
            Arch::Deepseek2 => "deepseek2",
            Arch::Deepseek4 => "deepseek4",
            Arch::Lfm2moe => "lfm2moe",
            Arch::Qwen4exp => "qwen4exp",
        }
    }

    /// What makes headers of the published shape, if there is one.
    fn published(self) -> Option<fn(&published::Choices) -> published::Header> {
        match self {
            Arch::Qwen3moe | Arch::Llama => None,
            Arch::Deepseek2 => Some(published::deepseek2),
            Arch::Deepseek4 => Some(published::deepseek4),
            Arch::Lfm2moe => Some(published::lfm2moe),
            Arch::Qwen4exp => Some(published::qwen4exp),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Preset {
    /// Qwen3-30B-A3B: 48 layers
    Big,
    /// The same with 10 layers
    Mid,
}

#[derive(clap::Args, Default)]
#[command(next_help_heading = "Shape")]
struct Overrides {
    /// Layers
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Width of the residual stream
    #[arg(long, value_name = "N")]
    embd: Option<usize>,
    /// Experts a layer
    #[arg(long, value_name = "N")]
    experts: Option<usize>,
    /// Experts used a token
    #[arg(long, value_name = "N")]
    used: Option<usize>,
    /// Width of an expert
    #[arg(long, value_name = "N")]
    ff: Option<usize>,
    /// Query heads
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Key/value heads
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Elements of a head
    #[arg(long, value_name = "N")]
    head_dim: Option<usize>,
    /// Entries of the vocabulary
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// Rows of a table of n-grams for each of its 16 heads
    #[arg(long, value_name = "N")]
    table_rows: Option<u64>,
}

impl Overrides {
    /// Those that a published shape does not take.
    fn strange(&self) -> bool {
        [self.embd, self.experts, self.used, self.ff, self.heads, self.kv_heads, self.head_dim]
            .iter()
            .any(Option::is_some)
    }
}

struct Shape {
    layers: usize,
    embd: usize,
    experts: usize,
    used: usize,
    ff: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
}

impl Shape {
    fn new(preset: Preset, o: &Overrides) -> Self {
        let layers = match preset {
            Preset::Big => 48,
            Preset::Mid => 10,
        };
        Self {
            layers: o.layers.unwrap_or(layers),
            embd: o.embd.unwrap_or(2048),
            experts: o.experts.unwrap_or(128),
            used: o.used.unwrap_or(8),
            ff: o.ff.unwrap_or(768),
            heads: o.heads.unwrap_or(32),
            kv_heads: o.kv_heads.unwrap_or(4),
            head_dim: o.head_dim.unwrap_or(128),
            vocab: o.vocab.unwrap_or(151_936),
        }
    }

    /// What neither the writer nor the loader could say as well.
    fn check(&self) -> Result<()> {
        let least = vocab::LEAST;
        if self.vocab < least {
            return Err(Error::request(
                "--vocab",
                format!("at least {least}, for bytes and control tokens"),
                self.vocab,
            ));
        }
        if !(1..=self.experts).contains(&self.used) {
            return Err(Error::request("--used", format!("1 to {}, the experts there are", self.experts), self.used));
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::request("--kv-heads", format!("a divisor of {} heads", self.heads), self.kv_heads));
        }
        Ok(())
    }
}

/// What a tensor is filled with.
#[derive(Clone, Copy)]
enum Fill {
    /// Random blocks with values of this spread.
    Random(f32),
    /// About 1.
    Norm,
    /// Rows of spread 1 that share the persistent direction.
    Embedding,
    /// The router of this layer.
    Router(usize),
    /// About 0, in F32.
    Little,
    /// Below 0, in F32: what decays are made of.
    Decay,
    /// Different numbers of experts for each token, of so many.
    Experts(u64),
}

struct Tensor {
    name: String,
    dims: Vec<u64>,
    ty: GgmlType,
    fill: Fill,
}

fn computable(name: &str) -> Result<GgmlType, String> {
    let all = || GgmlType::ALL.iter().copied().filter(|ty| ty.is_computable());
    all().find(|ty| ty.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
        let names: Vec<_> = all().map(GgmlType::name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

fn layers_and_type(text: &str) -> Result<(RangeInclusive<usize>, GgmlType), String> {
    let expected = || "expected layers and a type, as 0-2=Q6_K or 7=Q6_K".to_owned();
    let (layers, ty) = text.split_once('=').ok_or_else(expected)?;
    let (first, last) = layers.split_once('-').unwrap_or((layers, layers));
    let number = |text: &str| text.parse::<usize>().map_err(|_| expected());
    Ok((number(first)?..=number(last)?, computable(ty)?))
}

fn main() -> ExitCode {
    match write(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("synth: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the model that `args` ask for.
fn write(args: &Args) -> Result<()> {
    if let Some(make) = args.arch.published() {
        return write_published(args, make);
    }
    let shape = Shape::new(args.preset.unwrap_or(Preset::Mid), &args.shape);
    shape.check()?;
    if args.shape.table_rows.is_some() {
        return Err(Error::request("--table-rows", "an architecture with a table of n-grams", args.arch.name()));
    }
    for (layers, _) in &args.ltype {
        if layers.is_empty() || *layers.end() >= shape.layers {
            let got = format!("{}-{}", layers.start(), layers.end());
            return Err(Error::request("--ltype", format!("layers from 0 to {}", shape.layers - 1), got));
        }
    }
    let tensors = tensors(args, &shape);
    let mut header = GgufWriter::new(&args.out, args.force)?;
    metadata(args, &shape, &mut header)?;
    write_tensors(args, shape.embd, &tensors, header)
}

/// Writes a model of a published shape.
fn write_published(args: &Args, make: fn(&published::Choices) -> published::Header) -> Result<()> {
    let Overrides { layers, vocab, table_rows, .. } = args.shape;
    let arch = args.arch.name();
    if args.shape.strange() || !args.ltype.is_empty() || args.preset.is_some() {
        return Err(Error::request(
            "the shape",
            format!("only --layers and --vocab for {arch}, and --table-rows where it has a table of n-grams"),
            "other options",
        ));
    }
    if let Some(n) = vocab.filter(|&n| n < vocab::LEAST) {
        return Err(Error::request("--vocab", format!("at least {}", vocab::LEAST), n));
    }
    if let Some(n) = layers.filter(|&n| n < 4) {
        return Err(Error::request("--layers", "at least 4, so that there is one of each kind", n));
    }
    if table_rows.is_some() && args.arch != Arch::Qwen4exp {
        return Err(Error::request("--table-rows", "an architecture with a table of n-grams", arch));
    }
    let table_rows = table_rows.unwrap_or(TABLE_ROWS);
    if table_rows < 17 {
        return Err(Error::request("--table-rows", "at least 17", table_rows));
    }
    let types = [args.etype, args.dtype.unwrap_or(args.etype), args.atype, args.otype];
    let model = make(&published::Choices { layers, vocab, table_rows, types });
    let mut header = GgufWriter::new(&args.out, args.force)?;
    for (key, value) in &model.meta {
        header.meta(key, value.clone())?;
    }
    header.meta("general.name", format!("synth {arch}"))?;
    header.meta("general.quantization_version", 2u32)?;
    vocab::write(model.vocab, &mut header)?;
    let tensor = |(name, dims, ty): &(String, Vec<u64>, GgmlType)| {
        let fill = fill_of(name, dims, *ty, &model);
        Tensor { name: name.clone(), dims: dims.clone(), ty: *ty, fill }
    };
    let tensors: Vec<_> = model.tensors.iter().map(tensor).collect();
    let n_embd = tensors[0].dims[0] as usize;
    write_tensors(args, n_embd, &tensors, header)
}

/// Rows of Qwen3.8-Flash-Next's table for each head: 51 billion parameters.
const TABLE_ROWS: u64 = 12_450_000;

/// What a tensor of a published shape is filled with.
fn fill_of(name: &str, dims: &[u64], ty: GgmlType, model: &published::Header) -> Fill {
    let layer = || name.split('.').nth(1).and_then(|n| n.parse().ok()).expect("a layer's tensor");
    let root = (dims[0] as f32).sqrt();
    match name {
        "token_embd.weight" => Fill::Embedding,
        "per_layer_token_embd.weight" => Fill::Random(1.0),
        _ if ty == GgmlType::I32 => Fill::Experts(model.experts_per_layer()),
        _ if name.contains("norm") || name.ends_with("_scale.weight") => Fill::Norm,
        _ if name.ends_with("ffn_gate_inp.weight") => Fill::Router(layer()),
        _ if name.ends_with("ssm_a") => Fill::Decay,
        _ if dims.len() == 1 => Fill::Little,
        // Less than the rest, or the persistent direction would drown.
        _ if ["attn_output", "attn_output_b", "ssm_out", "shortconv.out_proj"].iter().any(|out| name.contains(out)) => {
            Fill::Random(0.3 / root)
        }
        _ => Fill::Random(1.0 / root),
    }
}

/// Writes tensors behind a header that has its keys.
fn write_tensors(args: &Args, n_embd: usize, tensors: &[Tensor], mut header: GgufWriter) -> Result<()> {
    let start = Instant::now();
    for t in tensors {
        header.tensor(&t.name, &t.dims, t.ty)?;
    }
    let sizes: Vec<u64> = tensors.iter().map(bytes).collect();
    let total = sizes.iter().sum();
    let style = ProgressStyle::with_template("{bytes} of {total_bytes} {wide_bar} {bytes_per_sec}, {eta} left");
    let bar = ProgressBar::new(total).with_style(style.expect("the template is sound"));

    let mut filler = Filler::new(args, n_embd, tensors);
    let mut out = header.start()?;
    for (tensor, bytes) in tensors.iter().zip(sizes) {
        out.begin(&tensor.name)?;
        filler.fill(tensor, &mut out)?;
        bar.inc(bytes);
    }
    out.finish()?;
    bar.finish_and_clear();
    let took = start.elapsed().as_secs_f64();
    eprintln!("{}: {} of weights in {took:.1} s", args.out.display(), human_bytes(total));
    Ok(())
}

fn bytes(t: &Tensor) -> u64 {
    let row = t.ty.row_bytes(t.dims[0]).expect("the writer has taken the tensor");
    t.dims[1..].iter().product::<u64>() * row
}

fn metadata(args: &Args, s: &Shape, out: &mut GgufWriter) -> Result<()> {
    let arch = args.arch.name();
    let key = |k: &str| format!("{arch}.{k}");
    // Qwen3-30B-A3B names the width of a dense block that it does not have; llama has one width only.
    let ff = if args.arch == Arch::Llama { s.ff } else { 3 * s.embd };
    out.meta("general.architecture", arch)?;
    out.meta("general.name", format!("synth {arch} {}x{}", s.layers, s.experts))?;
    out.meta("general.quantization_version", 2u32)?;
    for (k, n) in [
        ("block_count", s.layers),
        ("context_length", 32_768),
        ("embedding_length", s.embd),
        ("feed_forward_length", ff),
        ("attention.head_count", s.heads),
        ("attention.head_count_kv", s.kv_heads),
        ("attention.key_length", s.head_dim),
        ("attention.value_length", s.head_dim),
        ("rope.dimension_count", s.head_dim),
        ("expert_count", s.experts),
        ("expert_used_count", s.used),
        ("expert_feed_forward_length", s.ff),
        ("vocab_size", s.vocab),
    ] {
        out.meta(&key(k), n as u32)?;
    }
    out.meta(&key("rope.freq_base"), 1e6f32)?;
    out.meta(&key("attention.layer_norm_rms_epsilon"), 1e-6f32)?;
    vocab::write(s.vocab, out)
}

fn tensors(args: &Args, s: &Shape) -> Vec<Tensor> {
    let mut all = Vec::new();
    let mut add = |name: String, dims: &[usize], ty, fill| {
        all.push(Tensor { name, dims: dims.iter().map(|&d| d as u64).collect(), ty, fill });
    };
    let fan_in = |n: usize| Fill::Random(1.0 / (n as f32).sqrt());
    let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    add("token_embd.weight".into(), &[s.embd, s.vocab], GgmlType::F16, Fill::Embedding);
    add("output_norm.weight".into(), &[s.embd], GgmlType::F32, Fill::Norm);
    add("output.weight".into(), &[s.embd, s.vocab], args.otype, fan_in(s.embd));
    for il in 0..s.layers {
        let name = |role: &str| format!("blk.{il}.{role}.weight");
        add(name("attn_norm"), &[s.embd], GgmlType::F32, Fill::Norm);
        add(name("attn_q"), &[s.embd, q], args.atype, fan_in(s.embd));
        add(name("attn_k"), &[s.embd, kv], args.atype, fan_in(s.embd));
        add(name("attn_v"), &[s.embd, kv], args.atype, fan_in(s.embd));
        // Less than the rest, or the persistent direction would drown.
        add(name("attn_output"), &[q, s.embd], args.atype, Fill::Random(0.3 / (q as f32).sqrt()));
        if args.arch == Arch::Qwen3moe {
            add(name("attn_q_norm"), &[s.head_dim], GgmlType::F32, Fill::Norm);
            add(name("attn_k_norm"), &[s.head_dim], GgmlType::F32, Fill::Norm);
        }
        add(name("ffn_norm"), &[s.embd], GgmlType::F32, Fill::Norm);
        add(name("ffn_gate_inp"), &[s.embd, s.experts], GgmlType::F32, Fill::Router(il));
        let layer_type = args.ltype.iter().rev().find(|(layers, _)| layers.contains(&il)).map(|(_, ty)| *ty);
        let up_type = layer_type.unwrap_or(args.etype);
        let down_type = layer_type.or(args.dtype).unwrap_or(args.etype);
        add(name("ffn_gate_exps"), &[s.embd, s.ff, s.experts], up_type, fan_in(s.embd));
        add(name("ffn_up_exps"), &[s.embd, s.ff, s.experts], up_type, fan_in(s.embd));
        add(name("ffn_down_exps"), &[s.ff, s.embd, s.experts], down_type, fan_in(s.ff));
    }
    all
}

/// Bytes of a pool of random blocks: beyond any cache, so that repetitions help nobody.
const POOL_BYTES: u64 = 64 << 20;

/// Rows of the embedding that are drawn; the others are the same, turned.
const EMBEDDING_ROWS: usize = 4096;

/// Bytes of a matrix that come from one place of the pool at most.
const PIECE_BYTES: u64 = 8 << 20;

/// Makes the bytes of tensors.
struct Filler<'a> {
    args: &'a Args,
    /// The persistent direction, of length 1. (n_embd)
    u: Vec<f32>,
    pools: Vec<(GgmlType, Pool)>,
}

impl<'a> Filler<'a> {
    fn new(args: &'a Args, n_embd: usize, tensors: &[Tensor]) -> Self {
        let mut rng = Rng::new(args.seed.wrapping_add(77));
        let mut u: Vec<f32> = (0..n_embd).map(|_| rng.normal()).collect();
        let length = u.iter().map(|x| x * x).sum::<f32>().sqrt();
        u.iter_mut().for_each(|x| *x /= length);
        let mut largest: Vec<(GgmlType, u64)> = Vec::new();
        for t in tensors.iter().filter(|t| matches!(t.fill, Fill::Random(_))) {
            match largest.iter_mut().find(|(ty, _)| *ty == t.ty) {
                Some((_, n)) => *n = bytes(t).max(*n),
                None => largest.push((t.ty, bytes(t))),
            }
        }
        let pools = largest.into_iter().map(|(ty, n)| {
            let rng = Rng::new(args.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(ty.id())));
            (ty, Pool::new(ty, n.min(POOL_BYTES) as usize, rng).expect("the arguments let computable types in only"))
        });
        Self { args, u, pools: pools.collect() }
    }

    fn fill(&mut self, t: &Tensor, out: &mut TensorWriter) -> Result<()> {
        match t.fill {
            Fill::Random(sigma) => self.random(t, sigma, out),
            Fill::Norm => out.write(&f32s(&self.norm(&t.name, t.dims[0] as usize))),
            Fill::Embedding => self.embedding(t.dims[1] as usize, out),
            Fill::Router(layer) => out.write(&f32s(&self.router(layer, t.dims[1] as usize))),
            Fill::Little => out.write(&f32s(&self.drawn(&t.name, t.dims[0] as usize, |x| 0.1 * x))),
            Fill::Decay => out.write(&f32s(&self.drawn(&t.name, t.dims[0] as usize, |x| -(0.3 * x).exp()))),
            Fill::Experts(n) => self.experts(t, n as usize, out),
        }
    }

    /// Each expert, and each part of a large matrix, is another place of the pool.
    fn random(&mut self, t: &Tensor, sigma: f32, out: &mut TensorWriter) -> Result<()> {
        let (_, pool) = self.pools.iter_mut().find(|(ty, _)| *ty == t.ty).expect("there is a pool for every type");
        pool.scaled(sigma);
        let block = t.ty.block_bytes() as u64;
        let piece = match t.dims.get(2) {
            Some(experts) => bytes(t) / experts,
            None => PIECE_BYTES / block * block,
        };
        let mut left = bytes(t);
        while left > 0 {
            let n = left.min(piece);
            pool.pieces(n as usize, |bytes| out.write(bytes))?;
            left -= n;
        }
        Ok(())
    }

    fn norm(&self, name: &str, n: usize) -> Vec<f32> {
        self.drawn(name, n, |x| 1.0 + 0.05 * x)
    }

    /// Numbers made of draws that the tensor's name decides.
    fn drawn(&self, name: &str, n: usize, of: impl Fn(f32) -> f32) -> Vec<f32> {
        let mut rng = self.rng(name);
        (0..n).map(|_| of(rng.normal())).collect()
    }

    fn rng(&self, name: &str) -> Rng {
        Rng::new(name.bytes().fold(self.args.seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)))
    }

    /// Rows of different numbers below `n_expert`.
    fn experts(&self, t: &Tensor, n_expert: usize, out: &mut TensorWriter) -> Result<()> {
        let (mut rng, used) = (self.rng(&t.name), t.dims[0] as usize);
        let mut ids: Vec<i32> = (0..n_expert as i32).collect();
        for _ in 0..t.dims[1] {
            (0..used).for_each(|i| ids.swap(i, i + rng.below(n_expert - i)));
            out.write(ids[..used].iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>().as_slice())?;
        }
        Ok(())
    }

    fn embedding(&self, n_vocab: usize, out: &mut TensorWriter) -> Result<()> {
        let n_embd = self.u.len();
        let mut rng = Rng::new(self.args.seed.wrapping_add(5));
        let own = (1.0 - self.args.dir_share).sqrt();
        let drawn: Vec<f32> = (0..EMBEDDING_ROWS.min(n_vocab) * n_embd).map(|_| rng.normal() * own).collect();
        let along = (n_embd as f32 * self.args.dir_share).sqrt();
        let mut row = vec![0; n_embd * 2];
        for token in 0..n_vocab {
            let base = &drawn[token % EMBEDDING_ROWS * n_embd..][..n_embd];
            let turn = token / EMBEDDING_ROWS * 37 + 1;
            for (i, out) in row.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                write_float(GgmlType::F16, base[(i + turn) % n_embd] + along * self.u[i], out);
            }
            out.write(&row)?;
        }
        Ok(())
    }

    /// Random rows; with a skew of 0 or more they are blind to u, and see as much of it as Zipf's law asks for. A
    /// normalised input has about sqrt(n_embd) times its cosine along u. (n_expert, n_embd)
    fn router(&self, layer: usize, n_expert: usize) -> Vec<f32> {
        let (skew, n_embd) = (self.args.router_skew, self.u.len());
        let mut rng = Rng::new(self.args.seed.wrapping_mul(1_000_003).wrapping_add(1 << 32 | layer as u64));
        let unit = 1.0 / (n_embd as f32).sqrt();
        let mut rows: Vec<f32> = (0..n_expert * n_embd).map(|_| rng.normal() * self.args.router_noise * unit).collect();
        if skew < 0.0 {
            return rows;
        }
        let mut ranks: Vec<usize> = (1..=n_expert).collect();
        for i in (1..n_expert).rev() {
            ranks.swap(i, rng.below(i + 1));
        }
        let log_mean = (1..=n_expert).map(|r| (r as f32).ln()).sum::<f32>() / n_expert as f32;
        for (row, rank) in rows.chunks_exact_mut(n_embd).zip(ranks) {
            let seen: f32 = row.iter().zip(&self.u).map(|(w, u)| w * u).sum();
            let wanted = skew * (log_mean - (rank as f32).ln()) * unit;
            for (w, u) in row.iter_mut().zip(&self.u) {
                *w += (wanted - seen) * u;
            }
        }
        rows
    }
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[cfg(test)]
#[path = "synth/tests.rs"]
mod tests;
