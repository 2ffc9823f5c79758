//! What all requests share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::{Semaphore, mpsc};

use super::{engine::Job, metrics::Metrics};
use crate::{converse::Converser, sampler::SamplerConfig};

/// See the module.
pub struct State {
    /// The model's tokenizer and template.
    pub converser: Arc<Converser>,
    /// The name of the model in replies.
    pub model: String,
    /// What requests need not say.
    pub sampling: SamplerConfig,
    /// Tokens of context.
    pub n_ctx: usize,
    /// Whether the form of an answer can be enforced within the budget.
    pub forms: bool,
    /// What clients have to show, if anything.
    pub api_key: Option<String>,
    /// The queue of the engine.
    pub jobs: mpsc::Sender<Job>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Bytes of a body at most.
    pub max_body: usize,
    /// Bytes of all bodies that are held.
    pub bodies: Arc<Semaphore>,
    /// Requests are read one at a time: what reading takes is in the budget once.
    pub reading: Semaphore,
    /// No new request is taken.
    pub closing: AtomicBool,
    /// Requests so far.
    pub serial: AtomicU64,
}

impl State {
    /// Now.
    pub fn unix_seconds(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }

    /// Another one for each request, and most likely for each run of the server.
    pub fn id(&self, prefix: &str) -> String {
        let n = self.serial.fetch_add(1, Relaxed);
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        format!("{prefix}{nanos:016x}{n:04x}")
    }
}
