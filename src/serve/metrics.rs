//! What the server counts, as Prometheus reads it.

use std::{
    collections::VecDeque,
    fmt::Write,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    engine::Engine,
    expert::{CacheStats, LayerHits},
    machine,
    scheduler::Outcome,
};

/// Requests that the page lists.
const LAST: usize = 8;

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
    engine: Mutex<Seen>,
    /// Somebody wants to see the engine as it is now.
    watched: AtomicBool,
    last: Mutex<VecDeque<Answered>>,
}

/// What the engine counted when it was last looked at.
#[derive(Default)]
struct Seen {
    cache: CacheStats,
    /// When, and the bytes a second that were read since the look before.
    at: Option<Instant>,
    bytes_per_second: f64,
    /// For each MoE layer a digit per expert: 0 is not in memory; 1 to 9 is, by how often it was used.
    residency: Vec<String>,
    layers: Vec<LayerHits>,
    budget: u64,
    /// Name and bytes.
    parts: Vec<(&'static str, u64)>,
    context: (usize, usize),
    parallel: usize,
}

/// An answered request, for the page.
pub struct Answered {
    id: String,
    prompt: usize,
    cached: usize,
    generated: usize,
    tokens_per_second: Option<f64>,
    hit_rate: Option<f64>,
}

impl Answered {
    /// What came of a request.
    pub fn of(id: &str, outcome: &Outcome) -> Self {
        let (t, cost) = (outcome.cost.timing, &outcome.cost);
        let all = cost.hit + cost.late + cost.miss;
        Self {
            id: id.to_owned(),
            prompt: outcome.prompt,
            cached: outcome.reused,
            generated: outcome.generated,
            tokens_per_second: (t.decode_ns > 0).then(|| t.decode_tokens as f64 / (t.decode_ns as f64 / 1e9)),
            hit_rate: (all > 0.0).then_some(cost.hit / all),
        }
    }
}

/// See [`Seen::residency`].
fn residency(engine: &Engine) -> Vec<String> {
    let experts = engine.blueprint();
    let (n_layer, n_expert) = (engine.layer_stats().len(), experts.n_expert);
    let mut uses = vec![0u32; n_layer * n_expert];
    let hot = engine.hot();
    hot.iter().for_each(|hot| uses[usize::from(hot.id.layer) * n_expert + usize::from(hot.id.expert)] = hot.uses);
    let most = uses.iter().copied().max().unwrap_or(0).max(1);
    // Uses differ by orders of magnitude.
    let level = |n: u32| 1 + (8.0 * f64::from(n).ln_1p() / f64::from(most).ln_1p()) as u32;
    let digit = |layer: usize, expert: usize| match engine.is_resident(layer, expert) {
        true => char::from_digit(level(uses[layer * n_expert + expert]).min(9), 10).unwrap_or('9'),
        false => '0',
    };
    (0..n_layer).map(|layer| (0..n_expert).map(|expert| digit(layer, expert)).collect()).collect()
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

    /// So many requests are being answered.
    pub fn running(&self, n: usize) {
        self.running.store(n as u64, Relaxed);
    }

    /// Whether somebody has asked for [`Metrics::state`] since the engine was looked at.
    pub fn is_watched(&self) -> bool {
        self.watched.load(Relaxed)
    }

    /// The first token of an answer took so long from when the engine took the request.
    pub fn first_token(&self, time: Duration) {
        let bucket = FIRST_TOKEN.iter().position(|&end| time.as_secs_f64() <= end).unwrap_or(FIRST_TOKEN.len());
        self.first_tokens[bucket].fetch_add(1, Relaxed);
        self.first_token_ns.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// An answer is complete.
    pub fn answered(&self, answered: Answered) {
        self.prompt_tokens.fetch_add(answered.prompt as u64, Relaxed);
        self.cached_tokens.fetch_add(answered.cached as u64, Relaxed);
        self.generated_tokens.fetch_add(answered.generated as u64, Relaxed);
        let mut last = self.last.lock().expect("nobody panics while holding it");
        last.truncate(LAST - 1);
        last.push_front(answered);
    }

    /// Looks at what the engine counts.
    pub fn look(&self, engine: &Engine) {
        let plan = engine.plan();
        let parts = vec![
            ("dense", plan.dense_bytes),
            ("kv", plan.kv_bytes),
            ("scratch", plan.scratch_bytes),
            ("slots", plan.slots_bytes),
            ("process", plan.process_bytes),
        ];
        let (cache, now, residency) = (*engine.stats(), Instant::now(), residency(engine));
        let kept = engine.sequences().iter().map(|sequence| sequence.len()).sum();
        let mut seen = self.engine.lock().expect("nobody panics while holding it");
        let since = seen.at.map_or(0.0, |at| now.duration_since(at).as_secs_f64());
        let read = cache.bytes_read() - seen.cache.bytes_read();
        *seen = Seen {
            cache,
            at: Some(now),
            bytes_per_second: if since > 0.0 { read as f64 / since } else { 0.0 },
            residency,
            layers: engine.layer_stats().to_vec(),
            budget: engine.memory_bytes(),
            parts,
            context: (kept, plan.n_ctx * plan.parallel),
            parallel: plan.parallel,
        };
        self.watched.store(false, Relaxed);
    }

    /// What the page shows, as of the engine's last step or the one before.
    pub fn state(&self, model: &str) -> Value {
        self.watched.store(true, Relaxed);
        let running = self.running.load(Relaxed);
        let last = self.last.lock().expect("nobody panics while holding it");
        let requests = last.iter().map(|r| {
            json!({
                "what": r.id, "prompt_tokens": r.prompt, "cached_tokens": r.cached, "generated_tokens": r.generated,
                "tok_s": r.tokens_per_second, "hit_rate": r.hit_rate,
            })
        });
        let requests: Vec<_> = requests.collect();
        drop(last);
        let seen = self.engine.lock().expect("nobody panics while holding it");
        let memory: Vec<_> = seen.parts.iter().map(|(part, n)| json!({"part": part, "bytes": n})).collect();
        let total = seen.cache.total();
        json!({
            "model": model,
            "running": running,
            "queued": self.queued.load(Relaxed),
            "parallel": seen.parallel,
            "budget_bytes": seen.budget,
            "rss_bytes": machine::rss_bytes(),
            "memory": memory,
            "residency": seen.residency,
            "hit_rate": total.hit_rate(),
            "bytes_read": seen.cache.bytes_read(),
            // What was read until the last look says nothing of an engine that rests.
            "bytes_per_second": if running > 0 { seen.bytes_per_second } else { 0.0 },
            "stall_ms": total.stall_ns as f64 / 1e6,
            "context_tokens": seen.context.0,
            "context_size_tokens": seen.context.1,
            "requests": requests,
        })
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
