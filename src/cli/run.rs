//! `hotset run`: a prompt in, text out, and what it took.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use hotset::{
    Error, Result,
    backend::cpu::Cpu,
    generate::{self, Event, Finish, Rules, Speaker},
    gguf::Gguf,
    human_bytes,
    new_file::NewFile,
    sampler::Sampler,
    session::Session,
    tokenizer::Tokenizer,
};

use super::{
    Ended, Stop,
    args::{OrAll, count_or_all, file_bytes, warn_of_budget},
    form::Form,
    hot::{self, Warm},
    interrupt::{INTERRUPTED, Interrupts},
    json,
    live::{self, Live},
    model_file,
    out::{Out, Progress, note, notes},
    outputs::{Force, Outputs},
    prompt::{Given, Source, stdin_has_text},
    shared::Running,
    stats::{Record, Snapshot, Stats},
    text::Limit,
};

/// Continue a prompt
///
/// The prompt is printed first, then what the model makes of it, token by token; statistics follow on standard error.
/// Control tokens in the prompt, such as <|im_start|>, are read as such. Ctrl-C ends the text, prints the statistics
/// and exits with 130; a second one exits at once.
///
/// An only argument is the model if it exists, ends in .gguf, has a / and no space, looks like name:tag, or if standard
/// input brings a prompt; else it is the prompt for the small model that comes with hotset. To be sure, use --model and
/// --prompt.
#[derive(clap::Args)]
pub struct Args {
    /// Model file (GGUF; of a split set any file)
    #[arg(value_name = "MODEL")]
    first: Option<OsString>,
    /// The text to continue; without one, standard input is read if it is no terminal
    #[arg(value_name = "PROMPT")]
    second: Option<OsString>,
    /// The model file, by an option
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The prompt, by an option
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<OsString>,
    /// Read the prompt from this file (- is standard input): without its last newline and a byte-order mark, and with
    /// lines that end in CR LF as if they ended in LF
    #[arg(short = 'f', long, visible_alias = "file", value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Read escapes in the prompt: \\n \\r \\t \\\\ \\' \\" and \\xNN
    #[arg(short, long)]
    escape: bool,
    /// Tokens to generate at most; -1: until the model ends its text or the context is full
    #[arg(
        short = 'n',
        long,
        visible_aliases = ["n-predict", "predict"],
        value_name = "TOKENS",
        default_value = "256",
        value_parser = count_or_all::<{ u32::MAX as usize }>,
        allow_negative_numbers = true
    )]
    max_tokens: OrAll,
    /// Go on after the model has ended its text
    #[arg(long)]
    ignore_eos: bool,
    /// Do not print the prompt
    #[arg(long, visible_alias = "no-display-prompt")]
    no_echo: bool,
    /// Write statistics to this file, as JSON; replaces a file that is there
    #[arg(long, value_name = "FILE")]
    stats_json: Option<PathBuf>,
    /// Show hits, reads and waiting while the text appears: in a panel at the foot of the terminal; where there is none, or
    /// it is too small, in a line a second
    #[arg(long, conflicts_with = "quiet")]
    stats_live: bool,
    #[command(flatten)]
    running: Running,
    #[command(flatten)]
    form: Form,
    /// Write how often each expert was used to this new file, the most used first, as --pin and --warm read it
    #[arg(long, value_name = "FILE")]
    save_hot: Option<PathBuf>,
    #[command(flatten)]
    force: Force,
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
    // Before anything is read.
    args.running.check()?;
    let source = args.given().source(stdin_has_text)?;
    let panel = args.stats_live && live::has_panel();
    let gguf = source.model.map_or_else(|| model_file::open(&model_file::find()?), model_file::open)?;
    let (json, save_hot) = outputs(args, &gguf)?;
    let ctx = args.running.ctx.filter(|n| *n > 0);
    let prompt = source.prompt.text(&Limit::of_prompt(&gguf, ctx)?, args.escape)?;
    introduce(args, &source, &gguf);
    let mut record = Record::new(&gguf);
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let tokens = tokenizer.encode(&prompt, true, true);
    if !args.running.quiet {
        notes(tokenizer.notes());
        notes(&tokenizer.prompt_notes(&prompt, &tokens));
    }
    let start = args.running.start(&gguf)?;
    let n_ctx = context(args, &gguf, tokens.len())?;
    let mut options = args.running.engine.options(&gguf, n_ctx)?;
    let constraint = args.form.constraint(&tokenizer, n_ctx)?.map(|(constraint, bytes)| {
        options.beside_bytes = options.beside_bytes.saturating_add(bytes);
        constraint
    });
    let config = args.running.sampling.config(options.n_ctx.unwrap_or(0));
    record.seed = Some(config.seed);
    warn_of_budget(&gguf, &options, args.running.quiet);
    let mut session = {
        let bar = Progress::bytes("loading", args.running.quiet);
        Session::open(gguf, &options, &mut |done, total| bar.set(done, total))?
    };
    args.running.begin(&start, &mut session)?;
    let mut watch = Watch::new(args, panel, &session)?;
    let mut text = Text { out: Out::new(), ends_line: true };
    let echo = if args.no_echo { Ok(()) } else { text.push(&prompt) };
    drop(prompt);
    let mut sampler = Sampler::with_bias(config, session.blueprint().n_vocab, args.form.logit_bias())?;
    sampler.constrain(constraint);
    let speaker = Speaker { tokenizer: &tokenizer, sampler: &mut sampler, session: &mut session };
    let end = match echo
        .and_then(|()| generate(args, &tokens, speaker, &mut text, &mut watch, &mut record))
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
    let stats = Stats::new(&session, &args.running.engine, record, end.name())?;
    start.remember(&session);
    if end == End::Context && !args.running.quiet {
        note(format_args!("the context of {} tokens is full: the text stops here", session.plan().n_ctx));
    }
    if !args.running.quiet {
        stats.print(args.running.verbose);
    }
    if let Some(mut file) = json {
        file.write(json::document(&stats).as_bytes())?;
        file.finish()?;
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
    args.running.pin.iter().for_each(|file| outputs.reads("the list of --pin", file));
    if let Warm::File(file) = &args.running.warm {
        outputs.reads("the list of --warm", file);
    }
    outputs.prints("the text");
    let json = args.stats_json.as_deref().map(|file| outputs.replace("--stats-json", file)).transpose()?;
    let save_hot = args.save_hot.as_deref().map(|file| outputs.create("--save-hot", file)).transpose()?;
    Ok((json, save_hot))
}

impl Args {
    fn given(&self) -> Given<'_> {
        Given {
            positional: [self.first.as_deref(), self.second.as_deref()],
            model: self.model.as_deref(),
            prompt: self.prompt.as_deref(),
            prompt_file: self.prompt_file.as_deref(),
        }
    }
}

/// Says what a reader of the text would not expect of it: a model that was not named, chat without its template.
fn introduce(args: &Args, source: &Source<'_>, gguf: &Gguf) {
    let size = human_bytes(file_bytes(gguf));
    let is_word = args.first.as_deref().is_some_and(|only| !only.to_string_lossy().contains(char::is_whitespace));
    if source.only && is_word {
        let only = args.first.as_deref().unwrap_or_default().display();
        note(format_args!(
            "there is no file \"{only}\", so it is the prompt, and the bundled model answers ({}, {size})",
            gguf.path().display()
        ));
    } else if source.model.is_none() && !args.running.quiet {
        note(format_args!("the bundled model answers ({}, {size})", gguf.path().display()));
    }
    if !args.running.quiet && gguf.meta().get("tokenizer.chat_template").is_some() {
        note(format_args!(
            "the model has a chat template, which run does not apply (hotset chat does): the prompt is continued as plain text"
        ));
    }
}

/// Tokens beside the prompt that a context has room for where nobody says how many will come.
const ENDLESS_TOKENS: usize = 4096;

/// Tokens of context: as asked for, or as many as the run needs and the model can.
fn context(args: &Args, gguf: &Gguf, n_prompt: usize) -> Result<usize> {
    let beside = args.max_tokens.0.unwrap_or(ENDLESS_TOKENS);
    let n_ctx = args.running.n_ctx(gguf, n_prompt.saturating_add(beside))?;
    if n_prompt > n_ctx {
        let which = if args.running.ctx.is_some() {
            "the context (--ctx)"
        } else {
            "the context that the model was trained for"
        };
        return Err(Error::invalid(format!("the prompt has {n_prompt} tokens, and {which} holds {n_ctx}")));
    }
    Ok(n_ctx)
}

/// Runs the prompt and then token after token, which it counts. Returns why there are no more.
fn generate(
    args: &Args,
    prompt: &[u32],
    speaker: Speaker<'_, Cpu>,
    text: &mut Text,
    watch: &mut Watch,
    record: &mut Record,
) -> Result<End, Stop> {
    let rules = Rules { max_tokens: args.max_tokens.0, ignore_end: args.ignore_eos, ..Rules::default() };
    let plan = speaker.session.plan();
    // The last token that there is room for needs no room for another.
    let expected = args.max_tokens.0.unwrap_or(usize::MAX).min(plan.n_ctx + 1 - prompt.len());
    let bar = Progress::tokens("prompt", args.running.quiet || args.stats_live || prompt.len() <= plan.n_batch);
    let mut before = None;
    let finish = generate::generate(speaker, prompt, &rules, &mut |session, event| {
        match event {
            Event::Prompt { done, of } => {
                bar.set(done as u64, of as u64);
                return Ok(!watch.passed(session, "prompt", done, of));
            }
            Event::Token { text: piece, .. } => {
                record.generated += 1;
                text.push(piece)?;
                before = Some(Snapshot::of(session));
                return Ok(!watch.passed(session, "decode", record.generated as usize, expected));
            }
            Event::Decoded => {
                if let Some(before) = before.take() {
                    record.tokens.push(Snapshot::of(session).since(&before));
                }
            }
            Event::Rest(piece) => text.push(piece)?,
        }
        Ok::<_, Stop>(true)
    })?;
    Ok(match finish {
        Finish::End(_) | Finish::Stop(_) => End::Model,
        Finish::Length => End::Length,
        Finish::Context => End::Context,
        Finish::Cancelled => End::Interrupted,
    })
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
