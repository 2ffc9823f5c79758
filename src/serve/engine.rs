//! The thread that owns the model: takes one request after the other from a bounded queue and answers it token by token.
//!
//! What a conversation computed stays in the session, and the next request reuses as many of its first tokens as are the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::metrics::Metrics;
use crate::{
    Error, Result,
    backend::cpu::Cpu,
    expert::CacheStats,
    generate::{Answered, Event, Finish, KeptSession, Rules},
    sampler::{Sampler, SamplerConfig},
    session::{Session, Timing},
    tokenizer::Tokenizer,
};

/// A request as the engine needs it.
pub struct Job {
    /// All of it; not empty.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplerConfig,
    /// When the answer ends.
    pub rules: Rules,
    /// Where the answer goes. Unbounded, since an answer has no more pieces than the context has tokens.
    pub updates: mpsc::UnboundedSender<Update>,
    /// Nobody waits for the answer any more.
    pub cancelled: Arc<AtomicBool>,
}

/// What comes of a job.
#[expect(clippy::large_enum_variant, reason = "a request has one end, and boxing it saves nothing")]
#[derive(Debug)]
pub enum Update {
    /// A piece of the answer.
    Text(String),
    /// The end.
    Done(Outcome),
    /// It cannot be answered, in one sentence.
    Failed(String),
}

/// How a job ended, and what it took.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Why.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Those that were computed before.
    pub reused: usize,
    /// Tokens of the answer.
    pub generated: usize,
    took: Took,
}

/// What a session counts, or the difference between two moments.
#[derive(Clone, Copy, Debug)]
struct Took {
    timing: Timing,
    cache: CacheStats,
}

impl Took {
    fn of(session: &Session<Cpu>) -> Self {
        Self { timing: session.timing(), cache: *session.stats() }
    }

    fn since(&self, before: &Took) -> Took {
        let (t, o) = (&self.timing, &before.timing);
        let timing = Timing {
            prompt_tokens: t.prompt_tokens - o.prompt_tokens,
            prompt_ns: t.prompt_ns - o.prompt_ns,
            decode_tokens: t.decode_tokens - o.decode_tokens,
            decode_ns: t.decode_ns - o.decode_ns,
        };
        Took { timing, cache: self.cache.since(&before.cache) }
    }
}

impl Outcome {
    /// `timings` of a reply: llama-server's names, and what was read for this request.
    pub fn timings(&self) -> Value {
        let Took { timing: t, cache } = self.took;
        let e = cache.total();
        let rate = |n: u64, ns: u64| (ns > 0).then(|| n as f64 / (ns as f64 / 1e9));
        json!({
            "cache_n": self.reused,
            "prompt_n": t.prompt_tokens,
            "prompt_ms": t.prompt_ns as f64 / 1e6,
            "prompt_per_second": rate(t.prompt_tokens, t.prompt_ns),
            "predicted_n": t.decode_tokens,
            "predicted_ms": t.decode_ns as f64 / 1e6,
            "predicted_per_second": rate(t.decode_tokens, t.decode_ns),
            "hit": e.hit,
            "late": e.late,
            "miss": e.miss,
            "bytes_read": cache.bytes_read(),
            "stall_ms": e.stall_ns as f64 / 1e6,
        })
    }
}

/// Answers jobs until the queue is closed, and returns the session. Once `ended`, jobs fail.
pub fn run(
    session: Session<Cpu>,
    tokenizer: &Tokenizer,
    mut jobs: mpsc::Receiver<Job>,
    metrics: &Metrics,
    ended: &AtomicBool,
) -> Session<Cpu> {
    let mut kept = KeptSession::new(session);
    metrics.look(kept.session());
    while let Some(job) = jobs.blocking_recv() {
        metrics.dequeued();
        if ended.load(Relaxed) {
            let _ = job.updates.send(Update::Failed("the server is shutting down".to_owned()));
            continue;
        }
        if job.cancelled.load(Relaxed) {
            continue;
        }
        metrics.running(true);
        let update = match answer(&mut kept, tokenizer, &job, metrics, ended) {
            Ok(_) if ended.load(Relaxed) => Update::Failed("the server is shutting down".to_owned()),
            Ok(outcome) => Update::Done(outcome),
            Err(e) => Update::Failed(e.to_string()),
        };
        metrics.running(false);
        metrics.look(kept.session());
        if let Update::Done(outcome) = &update {
            metrics.answered(outcome);
        }
        let _ = job.updates.send(update); // it may have left just now
    }
    kept.into_session()
}

fn answer(
    kept: &mut KeptSession<Cpu>,
    tokenizer: &Tokenizer,
    job: &Job,
    metrics: &Metrics,
    ended: &AtomicBool,
) -> Result<Outcome> {
    let mut sampler = Sampler::new(job.sampling, kept.session().blueprint().n_vocab)?;
    let before = Took::of(kept.session());
    let begun = Instant::now();
    let mut first = None;
    let answered = kept.answer(tokenizer, &job.prompt, &mut sampler, &job.rules, &mut |_, event| {
        let sent = match event {
            Event::Token { text, .. } | Event::Rest(text) => {
                first.get_or_insert_with(|| begun.elapsed());
                text.is_empty() || job.updates.send(Update::Text(text.to_owned())).is_ok()
            }
            Event::Prompt { .. } | Event::Decoded => true,
        };
        Ok::<_, Error>(sent && !job.cancelled.load(Relaxed) && !ended.load(Relaxed))
    })?;
    if let Some(first) = first {
        metrics.first_token(first);
    }
    let Answered { finish, reused, generated } = answered;
    let took = Took::of(kept.session()).since(&before);
    Ok(Outcome { finish, prompt: job.prompt.len(), reused, generated, took })
}
