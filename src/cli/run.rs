//! `hotset run`: a prompt in, text out, and what it took.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
};

use hotset::{
    Error, Result,
    gguf::Gguf,
    model::Config,
    new_file::NewFile,
    sampler::{Sampler, SamplerConfig},
    session::Session,
    tokenizer::{StreamDecoder, Tokenizer},
};

use super::{
    Ended, Stop,
    args::{Engine, count},
    hot::{self, Start, Warm},
    interrupt::{INTERRUPTED, Interrupts},
    live::{self, Live},
    model_file,
    out::{Out, Progress, note, notes},
    outputs::{Force, Outputs},
    stats::{self, Record, Snapshot, Stats},
    text::{Limit, read_text},
};

/// Continue a prompt
///
/// The prompt is printed first, then what the model makes of it, token by token; statistics follow on standard error.
/// Control tokens in the prompt, such as <|im_start|>, are read as such. Ctrl-C ends the text, prints the statistics
/// and exits with 130; a second one exits at once.
#[derive(clap::Args)]
pub struct Args {
    /// Model file (GGUF; of a split set any file). An only argument is the model if it names a file or ends in .gguf,
    /// else the prompt for the small model that comes with hotset
    model: Option<OsString>,
    /// The text to continue; without one, standard input is read if it is no terminal
    prompt: Option<String>,
    /// Read the prompt from this file (- is standard input), without its last newline
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Tokens to generate at most
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 256)]
    max_tokens: usize,
    /// Tokens of context; default: what prompt and --max-tokens need, at most what the model was trained for
    #[arg(long, value_name = "TOKENS", value_parser = count::<{ u32::MAX as usize }>)]
    ctx: Option<usize>,
    /// Go on after the model has ended its text
    #[arg(long)]
    ignore_eos: bool,
    /// Do not print the prompt
    #[arg(long)]
    no_echo: bool,
    /// Write statistics to this file, as JSON; replaces a file that is there
    #[arg(long, value_name = "FILE")]
    stats_json: Option<PathBuf>,
    /// Show hits, reads and waiting while the text appears: in a panel at the foot of the terminal; where standard error
    /// is none, in a line a second
    #[arg(long, conflicts_with = "quiet")]
    stats_live: bool,
    /// Print how the budget is split
    #[arg(short, long)]
    verbose: bool,
    /// Print nothing but the text
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    engine: Engine,
    /// Keep the experts that this file lists in memory: lines of MoE layer (from 0) and expert
    #[arg(long, value_name = "FILE", help_heading = "Memory and speed")]
    pin: Option<PathBuf>,
    /// Read the experts that the last run of this model used most before they are asked for, while the drive is idle
    /// (auto), those of a file as --pin has it, or none (off)
    #[arg(long, value_name = "auto|off|FILE", default_value = "auto", help_heading = "Memory and speed")]
    warm: Warm,
    /// Write how often each expert was used to this new file, the most used first, as --pin and --warm read it
    #[arg(long, value_name = "FILE")]
    save_hot: Option<PathBuf>,
    #[command(flatten)]
    force: Force,
}

/// How tokens are chosen. The defaults are llama.cpp's, but for the seed.
#[derive(clap::Args)]
#[command(next_help_heading = "Choice of tokens")]
struct Sampling {
    /// Temperature; 0: always the most likely token
    #[arg(long, value_name = "T", default_value_t = SamplerConfig::default().temperature, allow_negative_numbers = true)]
    temp: f32,
    /// Only so many of the likeliest tokens; 0: all
    #[arg(long, value_name = "N", default_value_t = SamplerConfig::default().top_k)]
    top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1: all
    #[arg(long, value_name = "P", default_value_t = SamplerConfig::default().top_p, allow_negative_numbers = true)]
    top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest; 0: all
    #[arg(long, value_name = "P", default_value_t = SamplerConfig::default().min_p, allow_negative_numbers = true)]
    min_p: f32,
    /// Makes tokens that came lately less likely if above 1
    #[arg(long, value_name = "X", default_value_t = SamplerConfig::default().repeat_penalty, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// How many tokens are lately
    #[arg(long, value_name = "N", default_value_t = SamplerConfig::default().repeat_last_n)]
    repeat_last_n: usize,
    /// The same seed, prompt and options give the same text, whatever the budget
    #[arg(long, value_name = "N", default_value_t = SamplerConfig::default().seed)]
    seed: u64,
}

impl Sampling {
    fn config(&self) -> SamplerConfig {
        SamplerConfig {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            seed: self.seed,
        }
    }
}

/// Why the text ended.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// The model ended it.
    Model,
    /// `--max-tokens`.
    Length,
    /// No room for another token.
    Context,
    /// Ctrl-C.
    Interrupted,
    /// Nobody reads it.
    Closed,
}

impl End {
    /// The word in the JSON.
    fn name(self) -> &'static str {
        match self {
            End::Model => "end",
            End::Length => "length",
            End::Context => "context",
            End::Interrupted => "interrupted",
            End::Closed => "closed",
        }
    }
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    args.sampling.config().validate()?;
    let (model, prompt) = positionals(args)?;
    let panel = args.stats_live && live::has_panel()?;
    let gguf = Gguf::open(&model.map_or_else(model_file::find, Ok)?)?;
    let (json, save_hot) = outputs(args, &gguf)?;
    let mut record = Record::new(&gguf);
    let prompt = text_of(prompt, args.prompt_file.as_deref(), &Limit::of_prompt(&gguf, args.ctx)?)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let tokens = tokenizer.encode(&prompt, true, true);
    if !args.quiet {
        notes(tokenizer.notes());
        notes(&tokenizer.prompt_notes(&prompt, &tokens));
    }
    let start = Start::read(&gguf, args.pin.as_deref(), &args.warm)?;
    let options = args.engine.options(&gguf, context(args, &gguf, tokens.len())?)?;
    let mut session = {
        let bar = Progress::bytes("loading", args.quiet);
        Session::open(gguf, &options, &mut |done, total| bar.set(done, total))?
    };
    start.apply(&mut session)?;
    if args.verbose {
        stats::print_plan(&session);
    }
    let mut watch = Watch::new(args, panel, &session)?;
    let mut text = Text { out: Out::new(), ends_line: true };
    let echo = if args.no_echo { Ok(()) } else { text.push(&prompt) };
    drop(prompt);
    let end = match echo
        .and_then(|()| generate(args, &tokenizer, &tokens, &mut session, &mut text, &mut watch, &mut record))
        .and_then(|end| text.finish().map(|()| end))
    {
        Ok(end) => end,
        Err(Stop::Pipe) => End::Closed,
        Err(stop) => {
            let _ = text.finish(); // what went wrong is worth more than whether this worked
            return Err(stop);
        }
    };
    drop(watch); // before anything is printed below the text
    let stats = Stats::new(&session, &args.engine, record, end.name())?;
    start.remember(&session);
    if end == End::Context && !args.quiet {
        note(format_args!("the context of {} tokens is full: the text stops here", session.plan().n_ctx));
    }
    if !args.quiet {
        stats.print();
    }
    if let Some(mut json) = json {
        json.write(format!("{:#}\n", serde_json::json!(stats)).as_bytes())?;
        json.finish()?;
    }
    if let Some(file) = save_hot {
        hot::write(file, &session.hot())?;
    }
    Ok(if end == End::Interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// The files for statistics and hot experts, begun before the run, which would be lost on a path that cannot be written.
fn outputs(args: &Args, gguf: &Gguf) -> Result<(Option<NewFile>, Option<NewFile>)> {
    let mut outputs = Outputs::new(&args.force);
    outputs.reads_model(gguf);
    args.prompt_file.iter().for_each(|file| outputs.reads("the prompt", file));
    args.pin.iter().for_each(|file| outputs.reads("the list of --pin", file));
    if let Warm::File(file) = &args.warm {
        outputs.reads("the list of --warm", file);
    }
    outputs.prints("the text");
    let json = args.stats_json.as_deref().map(|file| outputs.replace("--stats-json", file)).transpose()?;
    let save_hot = args.save_hot.as_deref().map(|file| outputs.create("--save-hot", file)).transpose()?;
    Ok((json, save_hot))
}

/// The model and the prompt, where they are named: see [`Args::model`].
fn positionals(args: &Args) -> Result<(Option<PathBuf>, Option<&str>)> {
    let names_model = |given: &OsString| {
        let path = Path::new(given);
        args.prompt_file.is_some() || path.is_file() || path.extension().is_some_and(|e| e == "gguf")
    };
    match (&args.model, &args.prompt) {
        (Some(only), None) if !names_model(only) => match only.to_str() {
            Some(text) => Ok((None, Some(text))),
            None => Err(Error::request("the prompt", "UTF-8", format!("{only:?}"))),
        },
        (model, prompt) => Ok((model.as_ref().map(PathBuf::from), prompt.as_deref())),
    }
}

/// The text of the prompt.
fn text_of(prompt: Option<&str>, file: Option<&Path>, limit: &Limit) -> Result<String> {
    let text = match (prompt, file) {
        (Some(_), Some(file)) => {
            let got = format!("also --prompt-file {}", file.display());
            return Err(Error::request("the prompt", "one on the command line or one in a file", got));
        }
        (Some(prompt), None) => prompt.to_owned(),
        (None, Some(file)) => without_newline(read_text(file, limit)?),
        (None, None) if !io::stdin().is_terminal() => without_newline(read_text(Path::new("-"), limit)?),
        (None, None) => {
            return Err(Error::request(
                "the prompt",
                "a text after the model, --prompt-file, or standard input",
                "none",
            ));
        }
    };
    if text.is_empty() { Err(Error::request("the prompt", "a text", "an empty one")) } else { Ok(text) }
}

/// Editors end files with a newline that nobody means; after it models start another paragraph.
fn without_newline(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

/// Tokens of context: as asked for, or as many as the run needs and the model can.
fn context(args: &Args, gguf: &Gguf, n_prompt: usize) -> Result<usize> {
    let most = Config::new(gguf)?.n_ctx_train;
    let (n_ctx, limit) = match args.ctx {
        Some(n) => (n, "--ctx"),
        None => (n_prompt.saturating_add(args.max_tokens).min(most), "the context that the model was trained for"),
    };
    if n_prompt > n_ctx {
        return Err(Error::request("the prompt", format!("at most {n_ctx} tokens ({limit})"), n_prompt));
    }
    Ok(n_ctx)
}

/// Runs the prompt and then token after token, which it counts. Returns why there are no more.
fn generate(
    args: &Args,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    session: &mut Session,
    text: &mut Text,
    watch: &mut Watch,
    record: &mut Record,
) -> Result<End, Stop> {
    let mut sampler = Sampler::new(args.sampling.config(), session.config().n_vocab)?;
    prompt.iter().for_each(|&token| sampler.accept(token));
    let mut decoder = StreamDecoder::continuing();

    let Some(mut logits) = feed(session, prompt, args.quiet || args.stats_live, watch)? else {
        return Ok(End::Interrupted);
    };
    if args.max_tokens == 0 {
        return Ok(End::Length);
    }
    let mut before = None;
    let end = loop {
        let token = sampler.sample(logits);
        if let Some(before) = before.take() {
            record.tokens.push(Snapshot::of(session).since(&before));
        }
        if tokenizer.is_end_of_generation(token) && !args.ignore_eos {
            break End::Model;
        }
        record.generated += 1;
        sampler.accept(token);
        text.push(decoder.push(tokenizer, token))?;
        if watch.passed(session, "decode", record.generated as usize, args.max_tokens) {
            break End::Interrupted;
        }
        if record.generated == args.max_tokens as u64 {
            break End::Length;
        }
        if session.n_past() == session.plan().n_ctx {
            break End::Context;
        }
        before = Some(Snapshot::of(session));
        logits = session.decode(token)?;
    };
    text.push(decoder.finish())?;
    Ok(end)
}

/// Runs the prompt; `None` if it was interrupted.
fn feed<'s>(
    session: &'s mut Session,
    prompt: &[u32],
    quiet: bool,
    watch: &mut Watch,
) -> Result<Option<&'s [f32]>, Stop> {
    let n_batch = session.plan().n_batch;
    let bar = Progress::tokens("prompt", quiet || prompt.len() <= n_batch);
    let last = (prompt.len() - 1) / n_batch * n_batch;
    for (i, batch) in prompt[..last].chunks(n_batch).enumerate() {
        session.fill(batch)?;
        bar.set(((i + 1) * n_batch) as u64, prompt.len() as u64);
        if watch.passed(session, "prompt", (i + 1) * n_batch, prompt.len()) {
            return Ok(None);
        }
    }
    Ok(Some(session.feed(&prompt[last..], &mut |_| {})?))
}

/// What looks on while the model runs.
struct Watch {
    interrupts: Interrupts,
    live: Option<Live>,
}

impl Watch {
    fn new(args: &Args, panel: bool, session: &Session) -> Result<Self> {
        let interrupts = Interrupts::watch(panel.then_some(live::RESTORE))?;
        Ok(Self { interrupts, live: args.stats_live.then(|| Live::new(panel, session)) })
    }

    /// `done` of `of` tokens of `what` are through. True if that is enough.
    fn passed(&mut self, session: &Session, what: &str, done: usize, of: usize) -> bool {
        if let Some(live) = &mut self.live {
            live.tick(session, &self.interrupts, what, done, of);
        }
        self.interrupts.asked_to_stop()
    }
}

/// The text on standard output.
struct Text {
    out: Out,
    ends_line: bool,
}

impl Text {
    fn push(&mut self, text: &str) -> Result<(), Stop> {
        if !text.is_empty() {
            self.ends_line = text.ends_with('\n');
            self.out.generated(text)?;
        }
        Ok(())
    }

    /// Ends the last line.
    fn finish(&mut self) -> Result<(), Stop> {
        if self.ends_line { Ok(()) } else { self.push("\n") }
    }
}
