//! `hotset serve`: a model behind HTTP.

use std::{process::ExitCode, sync::Arc, time::Duration};

use hotset::{
    arch,
    constrain::Vocabulary,
    engine::{Engine, Options, make_plan},
    expert::ExpertStore,
    gguf::Gguf,
    human_bytes,
    io::Layout,
    scheduler::Scheduler,
    serve::{self, Config, Limits, Log},
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
/// Paths: / (a page to chat on), /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /v1/messages/count_tokens,
/// /v1/models, /tokenize, /health, /metrics, /state. Up to --parallel requests are answered at once, and an expert that is read
/// serves all of them; what a conversation computed is kept, so that its next turn costs its own tokens only. All that the server
/// keeps is within --memory. Sampling options are what requests need not say. A line on standard error tells of each request.
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
    /// Requests that are answered at once, each with a context of its own; others wait [default: up to 4, while those
    /// beside the first take an eighth of the budget at most]
    #[arg(long, value_name = "N", value_parser = count::<256>)]
    parallel: Option<usize>,
    /// Requests that may wait; others get 429
    #[arg(long, value_name = "N", default_value = "16", value_parser = count::<1024>)]
    queue: usize,
    /// Give the memory of expert slots back to the system after so long without a request, until the next: 90s, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    idle_release: Option<Duration>,
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
    let plain = running.engine.options(&gguf, n_ctx)?;
    let beside = |parallel: usize, form_bytes: u64| -> hotset::Result<(Limits, Options)> {
        let limits = Limits { n_ctx, queue: args.queue, parallel };
        let kept = Scheduler::<hotset::backend::cpu::Cpu>::bytes(&arch::blueprint(&gguf)?, plain.kv, n_ctx, parallel)?;
        let beside_bytes = limits.bytes().saturating_add(kept).saturating_add(form_bytes);
        Ok((limits, Options { parallel, beside_bytes, ..plain.clone() }))
    };
    let parallel = match args.parallel {
        Some(parallel) => parallel,
        None => default_parallel(&gguf, |parallel| Ok(beside(parallel, 0)?.1))?,
    };
    let form_bytes = Vocabulary::bytes(converser.tokenizer.n_vocab(), n_ctx, parallel);
    let forms = has_room(&gguf, &beside(parallel, 0)?.1, &beside(parallel, form_bytes)?.1);
    let (limits, options) = beside(parallel, if forms { form_bytes } else { 0 })?;
    warn_of_budget(&gguf, &options, running.quiet);
    let mut engine = {
        let bar = Progress::bytes("loading", running.quiet);
        Engine::open(gguf, &options, &mut |done, total| bar.set(done, total))?
    };
    running.begin(&start, &mut engine)?;
    if running.verbose {
        note(format_args!(
            "requests may take {} of what the program has of the budget",
            human_bytes(options.beside_bytes)
        ));
    }
    let interrupts = Interrupts::watch_all()?;
    let sampling = running.sampling.config(n_ctx);
    let (api_key, idle_release) = (args.api_key.clone(), args.idle_release);
    let log: Arc<Log> = if running.quiet { Arc::new(|_| {}) } else { Arc::new(note) };
    let config = Config { listener, converser, model, sampling, api_key, limits, forms, idle_release, log };
    if !running.quiet {
        let (n, kv) = (limits.parallel, human_bytes(engine.plan().kv_bytes));
        let requests = if n == 1 { "request is answered" } else { "requests are answered" };
        note(format_args!("{n} {requests} at once (--parallel), in contexts of {n_ctx} tokens that take {kv}"));
        if !forms {
            let needed = human_bytes(form_bytes.saturating_mul(SHARE));
            note(format_args!(
                "the budget is too small for response_format and forced tool_choice, which are refused: they need {needed}"
            ));
        }
        note(format_args!("listening on {}", serve::url(address)));
    }
    let engine = serve::serve(engine, config, move || interrupts.asked_to_stop())?;
    start.remember(&engine);
    Ok(ExitCode::SUCCESS)
}

/// Requests at once where nobody says: so many as leave the rest of the budget to the model.
fn default_parallel(gguf: &Gguf, options: impl Fn(usize) -> hotset::Result<Options>) -> hotset::Result<usize> {
    let blueprint = arch::blueprint(gguf)?;
    let store = ExpertStore::new(gguf, blueprint.experts())?;
    // (bytes of contexts and requests, budget)
    let taken = |parallel: usize| -> hotset::Result<(u64, u64)> {
        let options = options(parallel)?;
        let plan = make_plan(gguf, &blueprint, &store, &options, Layout::Lines)?;
        Ok((plan.kv_bytes.saturating_add(options.beside_bytes), plan.budget_bytes))
    };
    // A budget that is too small even for one is refused when the model is opened.
    let Ok((one, _)) = taken(1) else { return Ok(1) };
    let fits = |parallel: &usize| taken(*parallel).is_ok_and(|(all, budget)| all - one <= budget / SHARE);
    Ok([4, 3, 2].into_iter().find(fits).unwrap_or(1))
}

/// Whether the budget has room for what enforcing the form of answers takes, which is the difference of the two.
fn has_room(gguf: &Gguf, without: &Options, with: &Options) -> bool {
    let budget = |options: &Options| -> hotset::Result<u64> {
        let blueprint = arch::blueprint(gguf)?;
        let store = ExpertStore::new(gguf, blueprint.experts())?;
        Ok(make_plan(gguf, &blueprint, &store, options, Layout::Lines)?.budget_bytes)
    };
    let (Ok(before), Ok(after)) = (budget(without), budget(with)) else { return false };
    // A budget that nobody named grows with what is asked for, as far as there is memory.
    let taken = (with.beside_bytes - without.beside_bytes).saturating_sub(after.saturating_sub(before));
    taken <= after / SHARE
}

/// The part of the budget that requests beside the first take unasked, and that enforcing forms may take.
const SHARE: u64 = 8;

/// A time of at least a second, with its unit.
fn time(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match &text[split..] {
        "s" => Some(1),
        "m" | "min" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let seconds = factor.and_then(|factor: u64| text[..split].parse::<u64>().ok()?.checked_mul(factor));
    let seconds = seconds.filter(|seconds| (1..=MAX_IDLE_SECONDS).contains(seconds));
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a time from 1s to 8760h, such as 90s, 10m or 2h".to_owned())
}

/// A year.
const MAX_IDLE_SECONDS: u64 = 8760 * 3600;
