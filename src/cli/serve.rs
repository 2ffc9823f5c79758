//! `hotset serve`: a model behind HTTP.

use std::{path::PathBuf, process::ExitCode};

use hotset::{
    arch,
    converse::Converser,
    gguf::Gguf,
    human_bytes,
    serve::{self, Config, Limits},
    session::{Options, Session},
};

use super::{
    Ended, Stop,
    args::{Engine, asked_ctx, count, ctx, file_bytes, warn_of_budget},
    hot::{Start, Warm},
    interrupt::Interrupts,
    model_file,
    out::{Progress, note, notes},
    sampling::Sampling,
    stats,
    text::{Limit, read_text},
};

/// Serve a model to OpenAI's and Anthropic's clients
///
/// Paths: /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /v1/messages/count_tokens, /v1/models, /tokenize,
/// /health, /metrics. Requests are answered one after the other; what a conversation computed is kept, so that its next turn
/// costs its own tokens only. All that the server keeps is within --memory. Sampling options are what requests need not say.
/// Ctrl-C ends the server once the requests that are being answered have ended, at the latest after ten seconds.
#[derive(clap::Args)]
pub struct Args {
    /// Model file (GGUF; of a split set any file), or OWNER/REPO:QUANT of one that was downloaded; without, the small model
    /// that comes with hotset
    #[arg(value_name = "MODEL")]
    first: Option<PathBuf>,
    /// The model file, by an option
    #[arg(short, long, value_name = "FILE", conflicts_with = "first")]
    model: Option<PathBuf>,
    /// Address to listen on: 127.0.0.1 is reached from this machine alone, 0.0.0.0 from everywhere
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0: any free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// What clients have to send as their API key
    #[arg(long, value_name = "KEY", env = "HOTSET_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Requests that may wait; others get 429
    #[arg(long, value_name = "N", default_value = "16", value_parser = count::<1024>)]
    queue: usize,
    /// Name of the model in replies; default: that of its file
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    /// Read the chat template (Jinja) from this file instead of the model's
    #[arg(long, visible_alias = "chat-template-file", value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Tokens of context; 0: as many as the model was trained for. Default: 4096, at most what the model was trained for
    #[arg(short, long, visible_alias = "ctx-size", value_name = "TOKENS", value_parser = ctx)]
    ctx: Option<usize>,
    /// Print how the budget is split
    #[arg(short, long)]
    verbose: bool,
    /// Print nothing but errors
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
}

/// Tokens of context where nobody says.
const DEFAULT_CTX: usize = 4096;

/// The verb.
pub fn run(args: &Args) -> Ended {
    args.sampling.config(0).validate().map_err(|e| Stop::usage(e.to_string()))?;
    if args.api_key.as_deref() == Some("") {
        return Err(Stop::usage("--api-key is empty: without the option, no key is asked for"));
    }
    let named = args.first.as_deref().or(args.model.as_deref());
    let gguf = named.map_or_else(|| model_file::open(&model_file::find()?), model_file::open)?;
    let template = args.chat_template.as_deref().map(|file| read_text(file, &Limit::of_texts())).transpose()?;
    let converser = Converser::new(&gguf, template.as_deref())?;
    // Before the model is loaded, which takes its time.
    let (listener, address) = serve::listen(&args.host, args.port)?;
    if !args.quiet {
        introduce(named.is_none(), &gguf, &converser);
    }
    let file_name = gguf.path().file_stem().map(|name| name.to_string_lossy().into_owned());
    let model = args.alias.clone().or(file_name).unwrap_or_else(|| "model".to_owned());
    let start = Start::read(&gguf, args.pin.as_deref(), &args.warm)?;
    let most = arch::blueprint(&gguf)?.n_ctx_train;
    let n_ctx = args.ctx.map_or(DEFAULT_CTX.min(most), |n| asked_ctx(n, most));
    let limits = Limits { n_ctx, queue: args.queue };
    let options = Options { beside_bytes: limits.bytes(), ..args.engine.options(&gguf, n_ctx)? };
    warn_of_budget(&gguf, &options, args.quiet);
    let mut session = {
        let bar = Progress::bytes("loading", args.quiet);
        Session::open(gguf, &options, &mut |done, total| bar.set(done, total))?
    };
    start.apply(&mut session)?;
    if args.verbose {
        stats::print_plan(&session);
        note(format_args!("requests may take {} of what the program has of the budget", human_bytes(limits.bytes())));
    }
    let interrupts = Interrupts::watch_all()?;
    let sampling = args.sampling.config(n_ctx);
    let api_key = args.api_key.clone();
    let config = Config { listener, converser, model, sampling, api_key, limits };
    if !args.quiet {
        note(format_args!("listening on {}", serve::url(address)));
    }
    let session = serve::serve(session, config, move || interrupts.asked_to_stop())?;
    start.remember(&session);
    Ok(ExitCode::SUCCESS)
}

/// Says what answers, and what is odd about it.
fn introduce(bundled: bool, gguf: &Gguf, converser: &Converser) {
    if bundled {
        let (path, size) = (gguf.path().display(), human_bytes(file_bytes(gguf)));
        note(format_args!("the bundled model answers ({path}, {size}): a small one, to try things with"));
    }
    if converser.template.is_plain() {
        note(format_args!("the model has no chat template: messages are continued as plain lines of text"));
    }
    notes(converser.tokenizer.notes());
}
