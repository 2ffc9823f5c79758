//! What the server counts, as Prometheus reads it.

use std::{
    fmt::Write,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::engine::Outcome;
use crate::{
    backend::cpu::Cpu,
    expert::{CacheStats, LayerHits},
    machine,
    session::Session,
};

/// Upper ends of the histogram of times to the first token. Seconds
const FIRST_TOKEN: [f64; 8] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// See the module.
#[derive(Default)]
pub struct Metrics {
    /// Replies by class of status: 2xx, 4xx, 5xx.
    replies: [AtomicU64; 3],
    queued: AtomicU64,
    running: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    /// Of each bucket, and above all.
    first_tokens: [AtomicU64; FIRST_TOKEN.len() + 1],
    first_token_ns: AtomicU64,
    engine: Mutex<Engine>,
}

/// What the engine counted when it was last looked at.
#[derive(Default)]
struct Engine {
    cache: CacheStats,
    layers: Vec<LayerHits>,
    budget: u64,
    /// Name and bytes.
    parts: Vec<(&'static str, u64)>,
    context: (usize, usize),
}

impl Metrics {
    /// A reply goes out.
    pub fn replied(&self, status: u16) {
        let class = match status {
            ..400 => 0,
            400..500 => 1,
            _ => 2,
        };
        self.replies[class].fetch_add(1, Relaxed);
    }

    /// A request waits.
    pub fn enqueued(&self) {
        self.queued.fetch_add(1, Relaxed);
    }

    /// A request waits no longer.
    pub fn dequeued(&self) {
        self.queued.fetch_sub(1, Relaxed);
    }

    /// A request is being answered, or no longer.
    pub fn running(&self, on: bool) {
        self.running.store(u64::from(on), Relaxed);
    }

    /// The first token of an answer took so long from when the engine took the request.
    pub fn first_token(&self, time: Duration) {
        let bucket = FIRST_TOKEN.iter().position(|&end| time.as_secs_f64() <= end).unwrap_or(FIRST_TOKEN.len());
        self.first_tokens[bucket].fetch_add(1, Relaxed);
        self.first_token_ns.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// An answer is complete.
    pub fn answered(&self, outcome: &Outcome) {
        self.prompt_tokens.fetch_add(outcome.prompt as u64, Relaxed);
        self.cached_tokens.fetch_add(outcome.reused as u64, Relaxed);
        self.generated_tokens.fetch_add(outcome.generated as u64, Relaxed);
    }

    /// Looks at what the engine counts.
    pub fn look(&self, session: &Session<Cpu>) {
        let plan = session.plan();
        let parts = vec![
            ("dense", plan.dense_bytes),
            ("kv", plan.kv_bytes),
            ("scratch", plan.scratch_bytes),
            ("slots", plan.slots_bytes),
            ("process", plan.process_bytes),
        ];
        *self.engine.lock().expect("nobody panics while holding it") = Engine {
            cache: *session.stats(),
            layers: session.layer_stats().to_vec(),
            budget: session.memory_bytes(),
            parts,
            context: (session.n_past(), plan.n_ctx),
        };
    }

    /// The text of `/metrics`.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut put = |name: &str, kind: &str, help: &str, rows: &[(String, f64)]| {
            let _ = writeln!(out, "# HELP hotset_{name} {help}\n# TYPE hotset_{name} {kind}");
            for (labels, value) in rows {
                let _ = writeln!(out, "hotset_{name}{labels} {value}");
            }
        };
        let one = |value: f64| vec![(String::new(), value)];
        let count = |counter: &AtomicU64| one(counter.load(Relaxed) as f64);
        let replies = ["2xx", "4xx", "5xx"].iter().zip(&self.replies);
        let replies: Vec<_> =
            replies.map(|(class, n)| (format!("{{status=\"{class}\"}}"), n.load(Relaxed) as f64)).collect();
        put("replies_total", "counter", "Replies by class of status.", &replies);
        put("requests_queued", "gauge", "Requests that wait.", &count(&self.queued));
        put("requests_running", "gauge", "Requests that are being answered.", &count(&self.running));
        put("prompt_tokens_total", "counter", "Tokens of prompts.", &count(&self.prompt_tokens));
        put(
            "cached_tokens_total",
            "counter",
            "Tokens of prompts that were there already.",
            &count(&self.cached_tokens),
        );
        put("generated_tokens_total", "counter", "Tokens of answers.", &count(&self.generated_tokens));
        let engine = self.engine.lock().expect("nobody panics while holding it");
        let experts = engine.layers.iter().enumerate().flat_map(|(layer, l)| {
            [("hit", l.hit), ("late", l.late), ("miss", l.miss)]
                .map(|(kind, n)| (format!("{{layer=\"{layer}\",kind=\"{kind}\"}}"), n as f64))
        });
        let experts: Vec<_> = experts.collect();
        put("decode_experts_total", "counter", "Experts that decoding wanted, by MoE layer.", &experts);
        let total = engine.cache.total();
        put("read_bytes_total", "counter", "Bytes of experts that were read.", &one(engine.cache.bytes_read() as f64));
        put(
            "stall_seconds_total",
            "counter",
            "Time that arithmetic waited for reads.",
            &one(total.stall_ns as f64 / 1e9),
        );
        put("memory_budget_bytes", "gauge", "The memory budget.", &one(engine.budget as f64));
        let parts: Vec<_> = engine.parts.iter().map(|(part, n)| (format!("{{part=\"{part}\"}}"), *n as f64)).collect();
        put("memory_bytes", "gauge", "The budget by part.", &parts);
        if let Some(rss) = machine::rss_bytes() {
            put("resident_bytes", "gauge", "What the process holds.", &one(rss as f64));
        }
        put("context_tokens", "gauge", "Tokens that are kept.", &one(engine.context.0 as f64));
        put("context_size_tokens", "gauge", "Tokens that can be kept.", &one(engine.context.1 as f64));
        drop(engine);
        self.put_first_tokens(&mut out);
        out
    }

    fn put_first_tokens(&self, out: &mut String) {
        let _ =
            writeln!(out, "# HELP hotset_first_token_seconds Time to the first token, without waiting in the queue.");
        let _ = writeln!(out, "# TYPE hotset_first_token_seconds histogram");
        let mut sum = 0;
        for (i, counter) in self.first_tokens.iter().enumerate() {
            sum += counter.load(Relaxed);
            let end = FIRST_TOKEN.get(i).map_or("+Inf".to_owned(), f64::to_string);
            let _ = writeln!(out, "hotset_first_token_seconds_bucket{{le=\"{end}\"}} {sum}");
        }
        let seconds = self.first_token_ns.load(Relaxed) as f64 / 1e9;
        let _ = writeln!(out, "hotset_first_token_seconds_sum {seconds}\nhotset_first_token_seconds_count {sum}");
    }
}
