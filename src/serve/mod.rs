//! `hotset serve`: one model behind HTTP, in the forms that OpenAI's and Anthropic's clients speak.
//!
//! One thread owns the model (`engine.rs`); connections live on another. Between them is a bounded queue. All that the server keeps
//! beside the engine is bounded, and counted in the budget: [`Limits::bytes`].

mod anthropic;
mod engine;
mod error;
mod fields;
mod form;
mod generation;
mod http;
mod logprobs;
mod metrics;
mod openai;
mod reply;
mod responses;
mod state;

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, mpsc, watch};

use self::state::State;
use crate::{Error, Result, converse::Converser, engine::Engine, sampler::SamplerConfig};

/// Time that requests have to end once the server has been asked to.
const GRACE: Duration = Duration::from_secs(10);

/// Time between two looks at whether the server has been asked to end.
const LOOK: Duration = Duration::from_millis(50);

/// How much the server takes of requests, by the context.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of context.
    pub n_ctx: usize,
    /// Requests that wait.
    pub queue: usize,
    /// Requests that are answered at once.
    pub parallel: usize,
}

/// The runtime, its threads and buffers of connections.
const RUNTIME_BYTES: u64 = 3 << 20;

/// Bytes of a body for each token of the context: of text, and of what is around it.
const BODY_BYTES_PER_TOKEN: usize = 16;

/// Bodies may have so many bytes in any case, and never more.
const BODY_BYTES: (usize, usize) = (256 << 10, 4 << 20);

/// Bodies that may be held at once.
const BODIES: usize = 2;

/// What reading one takes beside it: its values, the prompt, its tokens.
const READING: u64 = 6;

impl Limits {
    /// Bytes of a body at most.
    pub fn max_body(&self) -> usize {
        self.n_ctx.saturating_mul(BODY_BYTES_PER_TOKEN).clamp(BODY_BYTES.0, BODY_BYTES.1)
    }

    /// What the server keeps at most beside the engine and its scheduler.
    pub fn bytes(&self) -> u64 {
        let waiting = (self.queue as u64 + 1) * self.n_ctx as u64 * size_of::<u32>() as u64;
        let probabilities = self.parallel as u64 * logprobs::MAX_ENTRIES as u64 * size_of::<(u32, f32)>() as u64;
        RUNTIME_BYTES + self.max_body() as u64 * (BODIES as u64 + READING) + waiting + probabilities
    }
}

/// What a server is made of.
pub struct Config {
    /// Where it listens.
    pub listener: TcpListener,
    /// The model's tokenizer and template.
    pub converser: Converser,
    /// The name of the model in replies.
    pub model: String,
    /// What requests need not say.
    pub sampling: SamplerConfig,
    /// What clients have to show, if anything.
    pub api_key: Option<String>,
    /// As the budget was made for.
    pub limits: Limits,
    /// Whether the budget has [`Vocabulary::bytes`](crate::constrain::Vocabulary::bytes) for answers whose form is enforced; else they are refused.
    pub forms: bool,
    /// Expert slots go back to the system after so long without a request.
    pub idle_release: Option<Duration>,
    /// Where lines about requests go.
    pub log: Arc<Log>,
}

/// Serves on this thread and another until `stop` says so, and returns the engine. Requests that are being answered then have
/// ten seconds to end; the others, and what has not ended by then, get an error that says why.
///
/// # Errors
/// Where the system refuses the listener or the thread.
pub fn serve(engine: Engine, config: Config, stop: impl Fn() -> bool + Send + 'static) -> Result<Engine> {
    let Config { listener, converser, model, sampling, api_key, limits, forms, idle_release, log } = config;
    let converser = Arc::new(converser);
    let (jobs, queue) = mpsc::channel(limits.queue);
    let metrics = Arc::new(metrics::Metrics::default());
    let max_body = limits.max_body();
    let state = Arc::new(State {
        converser: converser.clone(),
        model,
        sampling,
        n_ctx: limits.n_ctx,
        forms,
        api_key,
        jobs,
        metrics: metrics.clone(),
        max_body,
        bodies: Arc::new(Semaphore::new(BODIES * max_body.div_ceil(http::BODY_GRAIN))),
        reading: Semaphore::new(1),
        closing: AtomicBool::new(false),
        serial: AtomicU64::new(0),
    });
    let refused = |e: std::io::Error| Error::invalid(format!("cannot serve: {e}"));
    listener.set_nonblocking(true).map_err(refused)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    let runtime = runtime.map_err(refused)?;
    let ended = Arc::new(AtomicBool::new(false));
    let flag = ended.clone();
    let connections = std::thread::Builder::new().name("connections".to_owned());
    let connections = connections.spawn(move || {
        runtime.block_on(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            let (close, closing) = watch::channel(false);
            let serving = tokio::spawn(http::accept(listener, state.clone(), closing));
            while !stop() {
                tokio::time::sleep(LOOK).await;
            }
            state.closing.store(true, Relaxed);
            let _ = close.send(true);
            let deadline = Instant::now() + GRACE;
            while !serving.is_finished() && Instant::now() < deadline {
                tokio::time::sleep(LOOK).await;
            }
            // What has not ended fails now, and is told so.
            flag.store(true, Relaxed);
            let _ = tokio::time::timeout(GRACE, serving).await;
        });
    });
    let connections = connections.map_err(refused)?;
    // Ends when the connections' thread has, which holds the only other end of the queue.
    let shared = engine::Shared { metrics, ended, log, idle_release };
    let engine = engine::run(engine, &converser.tokenizer, queue, &shared);
    let _ = connections.join();
    Ok(engine)
}

/// A listener on `host` and `port`, and where it is: port 0 is any free one.
///
/// # Errors
/// One sentence: what is wrong with the address, or that it is taken.
pub fn listen(host: &str, port: u16) -> Result<(TcpListener, SocketAddr)> {
    let refused = |e: std::io::Error| Error::invalid(format!("cannot listen on {host}, port {port}: {e}"));
    let listener = TcpListener::bind((host, port)).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    Ok((listener, address))
}

pub use engine::Log;
pub use http::url;
