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
    /// Shape to start from; the options below change it
    #[arg(long, value_enum, default_value_t = Preset::Mid)]
    preset: Preset,
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
}

impl Arch {
    fn name(self) -> &'static str {
        match self {
            Arch::Qwen3moe => "qwen3moe",
            Arch::Llama => "llama",
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
    let shape = Shape::new(args.preset, &args.shape);
    shape.check()?;
    for (layers, _) in &args.ltype {
        if layers.is_empty() || *layers.end() >= shape.layers {
            let got = format!("{}-{}", layers.start(), layers.end());
            return Err(Error::request("--ltype", format!("layers from 0 to {}", shape.layers - 1), got));
        }
    }
    let start = Instant::now();
    let tensors = tensors(args, &shape);
    let mut header = GgufWriter::new(&args.out, args.force)?;
    metadata(args, &shape, &mut header)?;
    for t in &tensors {
        header.tensor(&t.name, &t.dims, t.ty)?;
    }
    let sizes: Vec<u64> = tensors.iter().map(bytes).collect();
    let total = sizes.iter().sum();
    let style = ProgressStyle::with_template("{bytes} of {total_bytes} {wide_bar} {bytes_per_sec}, {eta} left");
    let bar = ProgressBar::new(total).with_style(style.expect("the template is sound"));

    let mut filler = Filler::new(args, &shape, &tensors);
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
    fn new(args: &'a Args, s: &Shape, tensors: &[Tensor]) -> Self {
        let mut rng = Rng::new(args.seed.wrapping_add(77));
        let mut u: Vec<f32> = (0..s.embd).map(|_| rng.normal()).collect();
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
        let seed = name.bytes().fold(self.args.seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let mut rng = Rng::new(seed);
        (0..n).map(|_| 1.0 + 0.05 * rng.normal()).collect()
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
mod tests {
    use hotset::{
        expert::{ExpertStore, Scope},
        gguf::Gguf,
        io::Layout,
        session::{Options, Session, make_plan},
        tokenizer::Tokenizer,
    };

    use super::*;

    fn small(out: &std::path::Path, more: &[&str]) -> Args {
        let common = "synth --layers 2 --embd 256 --experts 6 --used 2 --ff 256 --heads 4 --kv-heads 2 --head-dim 64";
        let words = common.split(' ').chain(["--vocab", "300", out.to_str().unwrap()]).chain(more.iter().copied());
        Args::try_parse_from(words).unwrap()
    }

    /// Decodes some tokens and returns the spread of each one's logits.
    fn spreads(path: &std::path::Path) -> Vec<f32> {
        let options = Options { threads: Some(1), n_ctx: Some(8), ..Options::default() };
        let mut session = Session::open(Gguf::open(path).unwrap(), &options, &mut |_, _| {}).unwrap();
        let mut decode = |token| {
            let logits = session.decode(token).unwrap();
            assert!(logits.iter().all(|l| l.is_finite()), "token {token}");
            let mean = logits.iter().sum::<f32>() / logits.len() as f32;
            (logits.iter().map(|l| (l - mean).powi(2)).sum::<f32>() / logits.len() as f32).sqrt()
        };
        (0..6).map(|i| decode(i * 37)).collect()
    }

    #[test]
    fn a_model_of_every_type_decodes() {
        let folder = tempfile::tempdir().unwrap();
        for ty in GgmlType::ALL.iter().filter(|ty| ty.is_computable()) {
            for arch in ["qwen3moe", "llama"] {
                let path = folder.path().join(format!("{arch}-{ty}.gguf"));
                let ty = ty.name();
                write(&small(&path, &["--etype", ty, "--atype", ty, "--otype", ty, "--arch", arch])).unwrap();
                for spread in spreads(&path) {
                    assert!((0.3..3.0).contains(&spread), "{arch} {ty}: logits of spread {spread}");
                }
            }
        }
    }

    #[test]
    fn forty_eight_layers_do_not_explode() {
        let folder = tempfile::tempdir().unwrap();
        for skew in ["-1", "0", "0.6"] {
            let path = folder.path().join(format!("deep{skew}.gguf"));
            write(&small(&path, &["--layers", "48", "--router-skew", skew])).unwrap();
            for spread in spreads(&path) {
                assert!((0.3..3.0).contains(&spread), "skew {skew}: logits of spread {spread}");
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_file_and_no_file_is_replaced_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let path = |n: u32| folder.path().join(format!("{n}.gguf"));
        for (n, seed) in [(1, "5"), (2, "5"), (3, "6")] {
            write(&small(&path(n), &["--seed", seed])).unwrap();
        }
        let read = |n| std::fs::read(path(n)).unwrap();
        assert!(read(1) == read(2) && read(1) != read(3));
        assert!(write(&small(&path(1), &[])).is_err());
        assert!(write(&small(&path(1), &["--force"])).is_ok());
    }

    #[test]
    fn text_survives_the_vocabulary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.gguf");
        write(&small(&path, &[])).unwrap();
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        let text = "the thing, över there\n";
        let mut bytes = Vec::new();
        for token in tokenizer.encode(text, false, false) {
            tokenizer.append_bytes(token, true, &mut bytes);
        }
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
    }

    /// Each layer's experts count with their own size, in every scope, and no budget changes a bit.
    #[test]
    fn mixed_types_are_budgeted_by_each_layer_s_own_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mixed.gguf");
        let types = "--layers 7 --experts 8 --etype IQ3_XXS --dtype IQ4_XS --ltype 0-2=Q6_K --router-skew 0";
        write(&small(&path, &types.split(' ').collect::<Vec<_>>())).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let blueprint = hotset::arch::blueprint(&gguf).unwrap();
        let store = ExpertStore::new(&gguf, blueprint.experts()).unwrap();
        let rows = |ty: GgmlType| 256 * ty.row_bytes(256).unwrap();
        let large = 3 * rows(GgmlType::Q6_K);
        let little = 2 * rows(GgmlType::IQ3_XXS) + rows(GgmlType::IQ4_XS);
        let sizes: Vec<_> = store.layers().iter().map(|layer| layer.expert_bytes()).collect();
        assert_eq!(sizes, [large, large, large, little, little, little, little]);
        assert_eq!(store.pools(Scope::Size), [0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(store.layers()[3].types(), [GgmlType::IQ3_XXS, GgmlType::IQ3_XXS, GgmlType::IQ4_XS].map(Some));

        let options = |scope, memory_bytes| Options {
            threads: Some(1),
            n_ctx: Some(16),
            n_batch: Some(4),
            process_bytes: Some(0),
            scope: Some(scope),
            memory_bytes: Some(memory_bytes),
            ..Options::default()
        };
        let bits = |scope, memory_bytes| -> Vec<u32> {
            let gguf = Gguf::open(&path).unwrap();
            let mut session = Session::open(gguf, &options(scope, memory_bytes), &mut |_, _| {}).unwrap();
            let mut logits = session.feed(&[3, 1, 4, 1, 5, 9], &mut |_| {}).unwrap().to_vec();
            for token in [2, 6, 5] {
                logits.extend_from_slice(session.decode(token).unwrap());
            }
            logits.iter().map(|x| x.to_bits()).collect()
        };
        let plan = |scope, memory_bytes| {
            make_plan(&gguf, &blueprint, &store, &options(scope, memory_bytes), Layout::Lines).unwrap()
        };
        let everything = bits(Scope::Layer, u64::MAX);
        for scope in [Scope::Layer, Scope::Size, Scope::Global] {
            let full = plan(scope, u64::MAX);
            let (smallest, fixed) = (full.smallest_bytes, full.dense_bytes + full.kv_bytes + full.scratch_bytes);
            // A pool of all layers has slots of the largest expert; the others cost what their experts are, but for alignment.
            let all = if matches!(scope, Scope::Global) { 7 * 8 * large } else { 8 * (3 * large + 4 * little) };
            let slots = full.full_bytes - fixed;
            assert!((all..all + all / 50).contains(&slots), "{scope:?}: {slots} bytes of slots for {all} of experts");
            for memory_bytes in [smallest, (smallest + full.full_bytes) / 2] {
                let plan = plan(scope, memory_bytes);
                let parts = [plan.dense_bytes, plan.kv_bytes, plan.scratch_bytes, plan.slots_bytes];
                assert!(parts.iter().sum::<u64>() <= memory_bytes, "{scope:?}: {parts:?}");
                assert!(bits(scope, memory_bytes) == everything, "{scope:?} in {memory_bytes} bytes");
            }
        }
    }

    #[test]
    fn layers_of_another_type_are_some_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("no.gguf");
        for layers in ["0-2", "2", "1-0"] {
            let ltype = format!("{layers}=Q6_K");
            assert!(write(&small(&path, &["--ltype", &ltype])).is_err(), "{layers} of two layers");
        }
        for text in ["Q6_K", "0=Q9", "x=Q6_K", "0-=Q6_K"] {
            assert!(layers_and_type(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for more in [["--used", "7"], ["--kv-heads", "3"], ["--vocab", "100"], ["--ff", "100"]] {
            let path = folder.path().join("no.gguf");
            assert!(write(&small(&path, &more)).is_err(), "{more:?}");
            assert!(!path.exists());
        }
        assert!(computable("Q8_1").is_err());
    }
}
