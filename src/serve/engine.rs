//! The thread that owns the model: takes requests from a bounded queue as sequences come free, and runs a scheduler over them.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    sync::mpsc::{self, error::TryRecvError},
    time::timeout,
};

use super::metrics::{Answered, Metrics};
use crate::{
    engine::Engine,
    generate::Finish,
    human_bytes,
    sampler::log_probs,
    scheduler::{Event, OnEvent, Outcome, Request, Scheduler},
    tokenizer::Tokenizer,
};

/// A request as the engine needs it.
pub struct Job {
    /// Its id in the reply, for the log.
    pub id: String,
    /// What the text is to be.
    pub request: Request,
    /// How many of the most likely tokens are wanted beside each chosen one, if probabilities are.
    pub logprobs: Option<usize>,
    /// Where the answer goes. Unbounded, since an answer has no more pieces than the context has tokens.
    pub updates: mpsc::UnboundedSender<Update>,
    /// Nobody waits for the answer any more.
    pub cancelled: Arc<AtomicBool>,
    /// When it came into the queue.
    pub queued: Instant,
}

/// What comes of a job.
#[derive(Debug)]
pub enum Update {
    /// A piece of the answer, which may be empty, and how likely its token was where that was asked for.
    Text(String, Option<Probs>),
    /// The end.
    Done(Outcome),
    /// It cannot be answered, in one sentence.
    Failed(String),
}

/// How likely a token was, and the likeliest there were. Logarithms
#[derive(Clone, Debug)]
pub struct Probs {
    /// The chosen one.
    pub token: u32,
    /// Its own.
    pub logprob: f32,
    /// Best first.
    pub top: Vec<(u32, f32)>,
}

/// `timings` of a reply: llama-server's names, and what was read for this request.
pub fn timings(outcome: &Outcome) -> Value {
    let cost = &outcome.cost;
    let t = cost.timing;
    let rate = |n: u64, ns: u64| (ns > 0).then(|| n as f64 / (ns as f64 / 1e9));
    json!({
        "cache_n": outcome.reused,
        "prompt_n": t.prompt_tokens,
        "prompt_ms": t.prompt_ns as f64 / 1e6,
        "prompt_per_second": rate(t.prompt_tokens, t.prompt_ns),
        "predicted_n": t.decode_tokens,
        "predicted_ms": t.decode_ns as f64 / 1e6,
        "predicted_per_second": rate(t.decode_tokens, t.decode_ns),
        "hit": cost.hit.round() as u64,
        "late": cost.late.round() as u64,
        "miss": cost.miss.round() as u64,
        "bytes_read": cost.bytes_read.round() as u64,
        "stall_ms": cost.stall_ns / 1e6,
    })
}

/// Where lines about requests go.
pub type Log = dyn Fn(fmt::Arguments<'_>) + Send + Sync;

/// What the thread shares with those that serve connections.
pub struct Shared {
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Jobs fail from now on.
    pub ended: Arc<AtomicBool>,
    /// Lines about requests.
    pub log: Arc<Log>,
    /// Expert slots go back to the system after so long without a request.
    pub idle_release: Option<Duration>,
}

/// What requests that are not answered are told once the server ends.
pub const SHUTTING_DOWN: &str = "the server is shutting down";

/// Answers jobs until the queue is closed, and returns the engine. Once ended, jobs fail.
pub fn run(engine: Engine, tokenizer: &Tokenizer, mut jobs: mpsc::Receiver<Job>, shared: &Shared) -> Engine {
    let mut scheduler = Scheduler::new(engine);
    shared.metrics.look(scheduler.engine());
    loop {
        while scheduler.has_room() {
            let job = match (scheduler.running(), jobs.try_recv()) {
                (_, Ok(job)) => job,
                (0, Err(TryRecvError::Disconnected)) => return scheduler.into_engine(),
                (0, Err(TryRecvError::Empty)) => match idle(&mut scheduler, &mut jobs, shared) {
                    Some(job) => job,
                    None => return scheduler.into_engine(),
                },
                (_, Err(_)) => break,
            };
            begin(&mut scheduler, job, shared);
        }
        if shared.ended.load(Relaxed) {
            scheduler.fail_all(SHUTTING_DOWN);
        }
        scheduler.step(tokenizer);
        shared.metrics.running(scheduler.running());
        if scheduler.running() == 0 || shared.metrics.is_watched() {
            shared.metrics.look(scheduler.engine());
        }
    }
}

/// Waits for a job. `None` if none will come.
fn idle(scheduler: &mut Scheduler, jobs: &mut mpsc::Receiver<Job>, shared: &Shared) -> Option<Job> {
    let Some(limit) = shared.idle_release else { return jobs.blocking_recv() };
    // A runtime for nothing but this wait; where the system refuses one, slots stay.
    let Ok(clock) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
        return jobs.blocking_recv();
    };
    if let Ok(job) = clock.block_on(async { timeout(limit, jobs.recv()).await }) {
        return job;
    }
    let released = scheduler.engine_mut().release_slots();
    (shared.log)(format_args!("idle released={}", human_bytes(released).replace(' ', "")));
    shared.metrics.look(scheduler.engine());
    let job = jobs.blocking_recv();
    scheduler.engine_mut().reclaim_slots();
    job
}

fn begin(scheduler: &mut Scheduler, job: Job, shared: &Shared) {
    shared.metrics.dequeued();
    if job.cancelled.load(Relaxed) {
        return;
    }
    let Job { request, updates, .. } = job;
    if shared.ended.load(Relaxed) {
        let _ = updates.send(Update::Failed(SHUTTING_DOWN.to_owned()));
        return;
    }
    let teller = Teller {
        id: job.id,
        logprobs: job.logprobs,
        updates: updates.clone(),
        cancelled: job.cancelled,
        queued: job.queued,
        begun: Instant::now(),
        first: None,
        why: None,
        metrics: shared.metrics.clone(),
        log: shared.log.clone(),
    };
    if let Err(error) = scheduler.start(request, teller.on_event()) {
        let _ = updates.send(Update::Failed(error.to_string()));
    }
    shared.metrics.running(scheduler.running());
}

/// Tells a client, the metrics and the log of an answer.
struct Teller {
    id: String,
    logprobs: Option<usize>,
    updates: mpsc::UnboundedSender<Update>,
    cancelled: Arc<AtomicBool>,
    queued: Instant,
    begun: Instant,
    /// Until the first token.
    first: Option<Duration>,
    /// Why no more of the prompt was there.
    why: Option<String>,
    metrics: Arc<Metrics>,
    log: Arc<Log>,
}

impl Teller {
    fn on_event(mut self) -> Box<OnEvent> {
        Box::new(move |event| self.tell(event) && !self.cancelled.load(Relaxed))
    }

    /// Whether somebody listens.
    fn tell(&mut self, event: Event<'_>) -> bool {
        match event {
            Event::Placed { why, .. } => self.why = why.map(str::to_owned),
            Event::Prompt { .. } => {}
            Event::Token { token, text, logits } => {
                if self.first.is_none() {
                    let first = self.begun.elapsed();
                    self.first = Some(first);
                    self.metrics.first_token(first);
                }
                let probs = self.logprobs.map(|n| {
                    let (logprob, top) = log_probs(logits, token, n);
                    Probs { token, logprob, top }
                });
                return (text.is_empty() && probs.is_none()) || self.send(Update::Text(text.to_owned(), probs));
            }
            Event::Rest(text) => return text.is_empty() || self.send(Update::Text(text.to_owned(), None)),
            Event::End(Ok(outcome)) => {
                self.metrics.answered(Answered::of(&self.id, &outcome));
                self.log_end(&outcome);
                return self.send(Update::Done(outcome));
            }
            Event::End(Err(error)) => {
                (self.log)(format_args!("request={} failed={:?}", self.id, error.to_string()));
                return self.send(Update::Failed(error.to_string()));
            }
        }
        true
    }

    fn send(&self, update: Update) -> bool {
        self.updates.send(update).is_ok() // it may have left just now
    }

    fn log_end(&self, outcome: &Outcome) {
        let finish = match outcome.finish {
            Finish::End(_) => "end",
            Finish::Stop(_) => "stop",
            Finish::Length => "length",
            Finish::Context => "context",
            Finish::Cancelled => "cancelled",
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (queued, first) = (ms(self.begun.duration_since(self.queued)), self.first.map_or(0.0, ms));
        let why = self.why.as_ref().map_or(String::new(), |why| format!(" not_reused={why:?}"));
        let cost = &outcome.cost;
        (self.log)(format_args!(
            "request={} finish={finish} prompt={} reused={} generated={} queued_ms={queued:.0} first_ms={first:.0} \
             all_ms={:.0} hit={:.0} late={:.0} miss={:.0} bytes_read={:.0} stall_ms={:.0}{why}",
            self.id,
            outcome.prompt,
            outcome.reused,
            outcome.generated,
            ms(self.queued.elapsed()),
            cost.hit,
            cost.late,
            cost.miss,
            cost.bytes_read,
            cost.stall_ns / 1e6
        ));
    }
}
