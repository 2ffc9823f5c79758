//! `hotset trace`: records which experts a model uses, imports what others recorded, and sums a trace up.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard},
};

use clap::Subcommand;
use hotset::{
    Error, Result, arch,
    blueprint::Blueprint,
    expert::ExpertStore,
    gguf::Gguf,
    new_file::NewFile,
    sampler::{Sampler, SamplerConfig},
    session::{Options, Session},
    tokenizer::Tokenizer,
    trace::{
        LayerEvent, TraceSink, export,
        file::{Header, Prompt, TraceReader, TraceWriter, fnv1a},
        import,
        pairs::Pair,
        stats::{self, LayerStats},
    },
};

use super::{
    Ended, Stop,
    args::{Engine, Memory, asked_ctx, count, ctx, say_of_vram, warn_of_budget},
    hot, json, made, model_file,
    out::{Out, Progress, note, notes, printable},
    outputs::{Force, Outputs},
    text::{Limit, read_text},
};

/// Record which experts a model uses for each token
///
/// Each prompt is read and continued greedily. The trace can be read while it grows.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Model file (GGUF; of a split set any file)
    #[arg(required = true)]
    model: Option<PathBuf>,
    /// Texts, a prompt each (- is standard input)
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    prompts: Vec<PathBuf>,
    /// Where to write the trace (- is standard output)
    #[arg(short, long, value_name = "FILE", required = true)]
    out: Option<PathBuf>,
    #[command(flatten)]
    force: Force,
    /// Tokens to generate after each prompt
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 128)]
    max_tokens: usize,
    /// Run each text token by token as if it were generated, instead of continuing it
    #[arg(long)]
    teacher_forced: bool,
    /// Tokens of context, 0: the model's own; longer prompts are cut
    #[arg(short, long, visible_alias = "ctx-size", value_name = "TOKENS", default_value_t = 1024, value_parser = ctx)]
    ctx: usize,
    /// How many guessed experts of the next layer to keep, the best; 0: none. Default: three times those used
    #[arg(long, value_name = "RANKS")]
    lookahead: Option<usize>,
    #[command(flatten)]
    engine: Engine,
}

#[derive(Subcommand)]
enum Verb {
    /// Turn NumPy arrays of routing (.npz, .npy) into a trace
    Import {
        /// What hotset trace export wrote; or experts or ids (token, layer, k), with n_expert, prompt_start, probs,
        /// pred_mid_plus1 if there; a lone .npy is (layer, token, k)
        from: PathBuf,
        /// Where to write the trace (- is standard output)
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        force: Force,
        /// What an expert takes, for budgets and times
        #[arg(long, value_name = "SIZE")]
        expert_bytes: Option<Memory>,
    },
    /// Write the experts that a trace uses most, as hotset run --pin and --warm read them
    Hot {
        /// The trace
        trace: PathBuf,
        /// Where to write the list (- is standard output)
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        force: Force,
        /// Only so many of each layer, the most used
        #[arg(long, value_name = "EXPERTS", value_parser = count::<65_536>)]
        top: Option<usize>,
    },
    /// Write a trace as CSV or NumPy arrays, for notebooks
    Export {
        /// The trace
        trace: PathBuf,
        /// What to write: .csv (a line a choice) or .npz (all of it; hotset trace import takes it back). Standard output (-),
        /// pipes and devices get CSV
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        force: Force,
    },
    /// How even and how sticky the routing of a trace is
    Stats {
        /// The trace
        trace: PathBuf,
        /// All figures as JSON
        #[arg(long)]
        json: bool,
    },
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    match (&args.verb, &args.model, &args.out) {
        (Some(Verb::Import { from, out, force, expert_bytes }), ..) => {
            import(from, output(out, force, &[("the file to import", from.as_path())])?, *expert_bytes)
        }
        (Some(Verb::Hot { trace, out, force, top }), ..) => {
            let file = output(out, force, &[("the trace", trace.as_path())])?;
            hot::write(file, &hot::of_trace(trace)?.top(top.unwrap_or(usize::MAX)))?;
            Ok(ExitCode::SUCCESS)
        }
        (Some(Verb::Export { trace, out, force }), ..) => {
            export(trace, output(out, force, &[("the trace", trace.as_path())])?)
        }
        (Some(Verb::Stats { trace, json }), ..) => print_stats(trace, *json),
        (None, Some(model), Some(out)) => record(args, model, out),
        (None, ..) => unreachable!("clap asks for model and --out"),
    }
}

/// Begins the file of `--out`, which is none of `inputs`.
fn output(out: &Path, force: &Force, inputs: &[(&str, &Path)]) -> Result<NewFile> {
    let mut outputs = Outputs::new(force);
    inputs.iter().for_each(|(what, path)| outputs.reads(what, path));
    outputs.create("--out", out)
}

fn export(trace: &Path, out: NewFile) -> Ended {
    let to = out.path().to_owned();
    let done = export::export_to(trace, out)?;
    let s = if done.prompts == 1 { "" } else { "s" };
    note(format_args!("{}: {} tokens of {} prompt{s}", to.display(), done.tokens, done.prompts));
    Ok(ExitCode::SUCCESS)
}

fn import(from: &Path, out: NewFile, expert_bytes: Option<Memory>) -> Ended {
    let bytes = match expert_bytes {
        Some(Memory::Bytes(n)) => n,
        Some(other) => return Err(Stop::usage(format!("--expert-bytes {other}: give a size, such as 3MiB"))),
        None => 0,
    };
    let to = out.path().to_owned();
    let done = import::import_to(from, out, bytes)?;
    note(format_args!("{}: {} tokens, {} events", to.display(), done.tokens, done.events));
    Ok(ExitCode::SUCCESS)
}

/// The writer, shared by the session that records and us who ask whether that went well.
#[derive(Clone)]
struct Recorder(Arc<Mutex<TraceWriter>>);

impl Recorder {
    fn writer(&self) -> MutexGuard<'_, TraceWriter> {
        self.0.lock().expect("nobody panics while writing")
    }
}

impl TraceSink for Recorder {
    fn record(&mut self, event: LayerEvent<'_>) {
        self.writer().record(event);
    }
    fn wants_scores(&self) -> bool {
        self.writer().wants_scores()
    }
}

fn record(args: &Args, model: &Path, out: &Path) -> Ended {
    let gguf = model_file::open(model)?;
    let blueprint = arch::blueprint(&gguf)?;
    let n_ctx = asked_ctx(args.ctx, blueprint.n_ctx_train).min(blueprint.n_ctx_train);
    let generated = if args.teacher_forced { 0 } else { args.max_tokens };
    let Some(room) = n_ctx.checked_sub(generated).filter(|room| *room > 0) else {
        return Err(Error::invalid(format!(
            "--max-tokens {generated} leaves no room for a prompt in a context of {n_ctx} tokens"
        ))
        .into());
    };
    let prompts = prompts(args, &gguf, room)?;
    let header = header(args, &gguf, &blueprint, &prompts)?;
    let mut outputs = Outputs::new(&args.force);
    outputs.reads_model(&gguf);
    args.prompts.iter().for_each(|file| outputs.reads("a prompt", file));
    let recorder = Recorder(Arc::new(Mutex::new(TraceWriter::to(outputs.create("--out", out)?, header)?)));
    let options = args.engine.options(&gguf, n_ctx)?;
    warn_of_budget(&gguf, &options, false);
    let mut session = open(gguf, &options, recorder.clone())?;
    // Not before, so that a model that does not run replaces nothing.
    recorder.writer().flush()?;
    let total: usize = prompts.iter().map(|(_, tokens)| tokens.len() + generated).sum();
    let bar = Progress::tokens("tracing", false);
    let mut done = 0;
    for (_, tokens) in &prompts {
        session.reset();
        if args.teacher_forced {
            for &token in tokens {
                session.decode(token)?;
                done += 1;
                bar.set(done as u64, total as u64);
            }
        } else {
            generate(&mut session, tokens, generated)?;
            done += tokens.len() + generated;
            bar.set(done as u64, total as u64);
        }
        recorder.writer().flush()?;
    }
    drop(bar);
    note(format_args!("{}: {} prompts, {done} tokens", out.display(), prompts.len()));
    Ok(ExitCode::SUCCESS)
}

fn open(gguf: Gguf, options: &Options, recorder: Recorder) -> Result<Session> {
    let backend = options.cpu()?;
    let bar = Progress::bytes("loading", false);
    let progress = &mut |done, total| bar.set(done, total);
    let mut session = Session::with_backend(gguf, options, backend, Box::new(recorder), progress)?;
    say_of_vram(&mut session, false);
    Ok(session)
}

/// Reads a prompt and continues it greedily.
fn generate(session: &mut Session, prompt: &[u32], tokens: usize) -> Result<()> {
    let mut sampler = Sampler::new(SamplerConfig::greedy(), session.blueprint().n_vocab)?;
    let mut token = sampler.sample(session.feed(prompt, &mut |_| {})?);
    for _ in 0..tokens {
        token = sampler.sample(session.decode(token)?);
    }
    Ok(())
}

/// Each file with its tokens, `room` at most.
fn prompts(args: &Args, gguf: &Gguf, room: usize) -> Result<Vec<(PathBuf, Vec<u32>)>> {
    let tokenizer = Tokenizer::from_gguf(gguf)?;
    notes(tokenizer.notes());
    let read = |path: &PathBuf| {
        let text = read_text(path, &Limit::of_texts())?;
        let mut tokens = tokenizer.encode(&text, true, false);
        notes(&tokenizer.prompt_notes(&text, &tokens));
        if tokens.is_empty() {
            return Err(Error::file(path, "the prompt is empty"));
        }
        tokens.truncate(room);
        Ok((path.clone(), tokens))
    };
    args.prompts.iter().map(read).collect()
}

fn header(args: &Args, gguf: &Gguf, blueprint: &Blueprint, prompts: &[(PathBuf, Vec<u32>)]) -> Result<Header> {
    let store = ExpertStore::new(gguf, blueprint.experts())?;
    let ranks = args.lookahead.unwrap_or(3 * blueprint.n_expert_used()).min(blueprint.n_expert);
    let prompt = |(path, tokens): &(PathBuf, Vec<u32>)| Prompt {
        name: path.display().to_string(),
        tokens: tokens.len(),
        hash: fnv1a(tokens.iter().flat_map(|t| t.to_le_bytes())),
    };
    let what = if args.teacher_forced { "text run token by token" } else { "prompts continued greedily" };
    let lookahead = "the next layer's router on the residual stream before this layer's experts";
    Ok(Header {
        model: gguf.path().file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        model_id: made::model_id(gguf),
        source: format!("hotset {}, {what}", env!("CARGO_PKG_VERSION")),
        n_layer: blueprint.n_moe(),
        n_expert: blueprint.n_expert,
        n_expert_used: blueprint.n_expert_used(),
        expert_bytes: store.layers().iter().map(|l| l.expert_bytes()).collect(),
        weights: true,
        lookahead: if ranks > 0 { lookahead.to_owned() } else { String::new() },
        lookahead_ranks: ranks,
        prompts: prompts.iter().map(prompt).collect(),
    })
}

fn print_stats(path: &Path, as_json: bool) -> Ended {
    let header = TraceReader::open(path)?.header().clone();
    let stats = stats::stats(path)?;
    if let Some(damage) = &stats.damage {
        note(format_args!("{}: {damage}", path.display()));
    }
    let mut out = Out::new();
    if as_json {
        let value = serde_json::json!({ "header": header, "stats": stats });
        out.text(&json::document(&value))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!(
        "{} ({})\n{} MoE layers, {} of {} experts; {} events, {} prompt tokens, {} decoded tokens, {} prompts\n\n",
        printable(&header.model),
        printable(&header.source),
        header.n_layer,
        header.n_expert_used,
        header.n_expert,
        stats.events,
        stats.prompt_tokens,
        stats.decode_tokens,
        header.prompts.len()
    );
    text += "layer  entropy  used  load max/min  top 1/4   overlap with last 1/2/4/8/16 tokens  set of 16  lookahead\n";
    for (i, l) in stats.layers.iter().enumerate() {
        let overlap = l.overlap.map(|o| format!("{o:.3}")).join(" ");
        let recall = l.lookahead_recall.map_or("-".to_owned(), |r| format!("{r:.3}"));
        let (max, min) = l.load;
        text += &format!(
            "{i:>5}  {:>7.2}  {:>4}  {max:>6.2} / {min:<4.2} {:>7.3}       {overlap}       {:>8.1}      {recall:>5}\n",
            l.entropy_bits, l.used, l.top_quarter, l.working_set_16
        );
    }
    text += &balance(&stats.layers);
    out.text(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// How even the load is, how well few experts serve 16 tokens, which experts go together, and what ranks are worth.
fn balance(layers: &[LayerStats]) -> String {
    let mut text =
        "\nlayer  load cv   gini  SRP(16), names  SCH(16) k, 2k  top pair, share, lift    pairs' top 1/100\n"
            .to_owned();
    let or_dash = |figure: Option<String>| figure.unwrap_or_else(|| "-".to_owned());
    for (i, l) in layers.iter().enumerate() {
        let srp = or_dash(l.srp_16.map(|(f1, names)| format!("{f1:.3}  {names:.2} k")));
        let sch = or_dash(l.sch_16.map(|[k, k2]| format!("{k:.3}  {k2:.3}")));
        let named = |p: &Pair| format!("{} + {}, {:.3}, {:.1}", p.experts.0, p.experts.1, p.share, p.lift);
        let pair = or_dash(l.pairs.first().map(named));
        let top = or_dash(l.pairs_top_hundredth.map(|t| format!("{t:.3}")));
        let (cv, gini) = (l.load_cv, l.load_gini);
        text += &format!("{i:>5}  {cv:>7.2}  {gini:>5.3}  {srp:>14}  {sch:>13}  {pair:<24}  {top:>16}\n");
    }
    let guessed: Vec<_> = layers.iter().map(|l| &l.lookahead_by_rank).filter(|ranks| !ranks.is_empty()).collect();
    // A rank that a layer's guesses never had counts as 0 there.
    let ranks = guessed.iter().map(|ranks| ranks.len()).max().unwrap_or(0);
    let mean = |rank: usize| guessed.iter().filter_map(|l| l.get(rank)).sum::<f64>() / guessed.len() as f64;
    let list: Vec<_> = (0..ranks).map(|rank| format!("{:.2}", mean(rank))).collect();
    if !list.is_empty() {
        let list = list.join(" ");
        text += &format!("\nlookahead: share of each rank's guesses that were used, the best first\n  {list}\n");
    }
    text
}
