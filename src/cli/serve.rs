//! `hotset serve`: a model behind HTTP.

use std::process::ExitCode;

use hotset::{
    human_bytes,
    serve::{self, Config, Limits},
    session::{Options, Session},
};

use super::{
    Ended, Stop,
    args::{count, warn_of_budget},
    interrupt::Interrupts,
    out::{Progress, note},
    shared::{DEFAULT_CTX, Running, Talker},
};

/// Serve a model to OpenAI's and Anthropic's clients
///
/// Paths: /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /v1/messages/count_tokens, /v1/models, /tokenize,
/// /health, /metrics. Requests are answered one after the other; what a conversation computed is kept, so that its next turn
/// costs its own tokens only. All that the server keeps is within --memory. Sampling options are what requests need not say.
/// Ctrl-C ends the server once the requests that are being answered have ended, at the latest after ten seconds.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    talker: Talker,
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
    #[command(flatten)]
    running: Running,
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    let running = &args.running;
    running.check()?;
    if args.api_key.as_deref() == Some("") {
        return Err(Stop::usage("--api-key is empty: without the option, no key is asked for"));
    }
    let (gguf, converser) = args.talker.open()?;
    // Before the model is loaded, which takes its time.
    let (listener, address) = serve::listen(&args.host, args.port)?;
    if !running.quiet {
        args.talker.introduce(&gguf, &converser);
    }
    let file_name = gguf.path().file_stem().map(|name| name.to_string_lossy().into_owned());
    let model = args.alias.clone().or(file_name).unwrap_or_else(|| "model".to_owned());
    let start = running.start(&gguf)?;
    let n_ctx = running.n_ctx(&gguf, DEFAULT_CTX)?;
    let limits = Limits { n_ctx, queue: args.queue };
    let options = Options { beside_bytes: limits.bytes(), ..running.engine.options(&gguf, n_ctx)? };
    warn_of_budget(&gguf, &options, running.quiet);
    let mut session = {
        let bar = Progress::bytes("loading", running.quiet);
        Session::open(gguf, &options, &mut |done, total| bar.set(done, total))?
    };
    running.begin(&start, &mut session)?;
    if running.verbose {
        note(format_args!("requests may take {} of what the program has of the budget", human_bytes(limits.bytes())));
    }
    let interrupts = Interrupts::watch_all()?;
    let sampling = running.sampling.config(n_ctx);
    let api_key = args.api_key.clone();
    let config = Config { listener, converser, model, sampling, api_key, limits };
    if !running.quiet {
        note(format_args!("listening on {}", serve::url(address)));
    }
    let session = serve::serve(session, config, move || interrupts.asked_to_stop())?;
    start.remember(&session);
    Ok(ExitCode::SUCCESS)
}
