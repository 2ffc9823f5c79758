//! What a run did, for people (a few lines on standard error) and for scripts (JSON).
//!
//! A rate without a denominator is `null`, and so is what the operating system does not tell.

use std::collections::BTreeMap;

use hotset::{
    Result,
    backend::cpu::Cpu,
    engine,
    expert::{CacheStats, PhaseStats, Scope, VramStats},
    gguf::Gguf,
    human_bytes, human_bytes_up, machine,
    plan::Plan,
    report::{Series, run::Layer, series::Point},
    session::Session,
};
use serde::Serialize;

use super::{
    args::{Engine, kv_name},
    made,
    out::{folded, note},
};

/// See the module. The fields are the JSON's keys.
#[derive(Serialize)]
pub struct Stats {
    version: &'static str,
    /// When the run ended, in UTC.
    date: String,
    machine: String,
    model: String,
    /// FNV-1a of its tensor table.
    model_id: String,
    stop: &'static str,
    /// Of the sampler; `None` where nothing is sampled.
    seed: Option<u64>,
    prompt_tokens: u64,
    generated_tokens: u64,
    prompt_tok_s: Option<f64>,
    decode_tok_s: Option<f64>,
    /// Over both phases, as are the next seven.
    hit: u64,
    late: u64,
    miss: u64,
    hit_rate: Option<f64>,
    bytes_read: u64,
    stall_ms: f64,
    prompt: Phase,
    decode: Phase,
    prefetches: u64,
    prefetch_bytes: u64,
    prefetch_useful: u64,
    prefetch_wasted: u64,
    /// Reads of pinned experts and of a warm start.
    warm_reads: u64,
    warm_bytes: u64,
    /// Those of these experts that were then asked for.
    warm_used: u64,
    /// Reads into slots that were free.
    fill_reads: u64,
    fill_bytes: u64,
    /// Those of these experts that were then asked for.
    fill_used: u64,
    /// Experts that never leave.
    pinned: usize,
    evictions: u64,
    failed_reads: u64,
    budget_bytes: u64,
    /// What the budget has become, where it follows the machine's need.
    budget_now_bytes: u64,
    peak_rss_bytes: Option<u64>,
    major_faults: Option<u64>,
    memory: Memory,
    n_ctx: usize,
    n_batch: usize,
    kv: &'static str,
    io: &'static str,
    io_depth: usize,
    /// Why this read path, where it was left open.
    io_reason: Option<String>,
    policy: &'static str,
    prefetch: &'static str,
    /// Share of the decoded tokens with prefetching, where that follows what it measures.
    prefetch_share: Option<f64>,
    /// The share of each prefetcher that it chose from, by name; none where there is no choice.
    prefetch_modes: BTreeMap<&'static str, f64>,
    scope: &'static str,
    isa: String,
    threads: usize,
    cores_allowed: usize,
    /// CPUs' worth of time that the cgroup gives.
    cpu_quota: Option<f64>,
    /// Experts in a device's memory; none without one.
    vram: Option<Device>,
    /// Decoding, by MoE layer.
    layers: Vec<Layer>,
    /// Decoding, by token.
    tokens: Series,
    #[serde(skip)]
    budget_set: bool,
}

/// The experts in a device's memory. The fields are the JSON's keys.
#[derive(Serialize)]
pub struct Device {
    /// Its name.
    pub device: String,
    /// Slots of all layers.
    pub slots: usize,
    pub slots_bytes: u64,
    /// Experts that were computed there, and others in events of few enough tokens.
    pub hit: u64,
    pub miss: u64,
    pub hit_rate: Option<f64>,
    /// Experts that were copied there.
    pub uploads: u64,
    pub upload_bytes: u64,
    pub evictions: u64,
}

impl Device {
    /// Of a session that uses one.
    pub fn of(session: &Session<Cpu>) -> Option<Self> {
        let (slots, (device, slots_bytes, upload_bytes)) = (session.vram()?, session.vram_device()?);
        let stats = slots.stats();
        let &VramStats { hit, miss, uploads, evictions } = stats;
        let hit_rate = stats.hit_rate();
        let slots = slots.n_slot();
        Some(Self { device, slots, slots_bytes, hit, miss, hit_rate, uploads, upload_bytes, evictions })
    }
}

/// What the verb keeps while it runs.
#[derive(Clone)]
pub struct Record {
    model_id: String,
    /// The sampler's.
    pub seed: Option<u64>,
    /// The budget was set while the session ran.
    pub budget_set: bool,
    /// Tokens so far.
    pub generated: u64,
    /// Decoding so far.
    pub tokens: Series,
}

impl Record {
    /// Nothing yet, of a model.
    pub fn new(gguf: &Gguf) -> Self {
        Self { model_id: made::model_id(gguf), seed: None, budget_set: false, generated: 0, tokens: Series::default() }
    }
}

/// Where a session stands between two tokens.
pub struct Snapshot {
    cache: CacheStats,
    decode_ns: u64,
}

impl Snapshot {
    /// Now.
    pub fn of(session: &Session<Cpu>) -> Self {
        Self { cache: *session.stats(), decode_ns: session.timing().decode_ns }
    }

    /// What decoding took since `before`.
    pub fn since(&self, before: &Self) -> Point {
        let (new, old) = (&self.cache.decode, &before.cache.decode);
        Point {
            hit: new.hit - old.hit,
            late: new.late - old.late,
            miss: new.miss - old.miss,
            bytes: self.cache.bytes_read() - before.cache.bytes_read(),
            stall_ns: new.stall_ns - old.stall_ns,
            time_ns: self.decode_ns - before.decode_ns,
        }
    }
}

#[derive(Serialize)]
struct Phase {
    tokens: u64,
    seconds: f64,
    tok_s: Option<f64>,
    events: u64,
    hit: u64,
    late: u64,
    miss: u64,
    hit_rate: Option<f64>,
    demand_bytes: u64,
    stall_ms: f64,
}

#[derive(Serialize)]
struct Memory {
    dense_bytes: u64,
    kv_bytes: u64,
    scratch_bytes: u64,
    slots_bytes: u64,
    process_bytes: u64,
    smallest_bytes: u64,
    full_bytes: u64,
    /// Of each layer, or of the one pool.
    slots: Vec<usize>,
}

impl Memory {
    fn new(plan: &Plan) -> Self {
        Self {
            dense_bytes: plan.dense_bytes,
            kv_bytes: plan.kv_bytes,
            scratch_bytes: plan.scratch_bytes,
            slots_bytes: plan.slots_bytes,
            process_bytes: plan.process_bytes,
            smallest_bytes: plan.smallest_bytes,
            full_bytes: plan.full_bytes,
            slots: plan.slots.clone(),
        }
    }
}

impl Phase {
    fn new(p: &PhaseStats, tokens: u64, ns: u64) -> Self {
        let seconds = ns as f64 / 1e9;
        Self {
            tokens,
            seconds,
            tok_s: (tokens > 0 && ns > 0).then(|| tokens as f64 / seconds),
            events: p.events,
            hit: p.hit,
            late: p.late,
            miss: p.miss,
            hit_rate: p.hit_rate(),
            demand_bytes: p.demand_bytes,
            stall_ms: p.stall_ns as f64 / 1e6,
        }
    }

    fn line(&self, name: &str) {
        let all = (self.hit + self.late + self.miss).max(1) as f64;
        let share = |n: u64| format!("{n} ({:.1} %)", n as f64 * 100.0 / all);
        let rate = self.tok_s.map_or("no rate".to_owned(), |r| format!("{r:.1} tok/s"));
        line(format_args!(
            "{name}   {} tokens in {:.2} s, {rate}; experts: {} hit, {} late, {} missed",
            self.tokens,
            self.seconds,
            share(self.hit),
            share(self.late),
            share(self.miss),
        ));
    }

    /// As in "24.1 tok/s (80 tokens)".
    fn rate(&self) -> Option<String> {
        let s = if self.tokens == 1 { "" } else { "s" };
        self.tok_s.map(|rate| format!("{} tok/s ({} token{s})", rounded(rate), self.tokens))
    }
}

/// Three digits, or all before the point.
fn rounded(rate: f64) -> String {
    let decimals = match rate {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{rate:.decimals$}")
}

/// Width of the names at the beginning of a line.
pub const LABEL: usize = 9;

/// A line of statistics, broken where the terminal ends.
fn line(text: std::fmt::Arguments<'_>) {
    folded(text, LABEL);
}

impl Stats {
    /// Takes stock of `session`, which stopped because of `stop`.
    ///
    /// # Errors
    /// None that [`Session::open`] would not have met: kernels are chosen once more, for their name.
    pub fn new(session: &Session<Cpu>, engine: &Engine, record: Record, stop: &'static str) -> Result<Self> {
        let (cache, timing, plan) = (session.stats(), session.timing(), session.plan());
        let total = cache.total();
        let prompt = Phase::new(&cache.prompt, timing.prompt_tokens, timing.prompt_ns);
        let decode = Phase::new(&cache.decode, timing.decode_tokens, timing.decode_ns);
        let (io, policy, prefetch) = session.modes();
        let cores = machine::cores();
        Ok(Self {
            version: made::VERSION,
            date: made::now(),
            machine: made::machine(),
            model_id: record.model_id,
            model: session.path().display().to_string(),
            stop,
            seed: record.seed,
            prompt_tokens: timing.prompt_tokens,
            generated_tokens: record.generated,
            prompt_tok_s: prompt.tok_s,
            decode_tok_s: decode.tok_s,
            hit: total.hit,
            late: total.late,
            miss: total.miss,
            hit_rate: total.hit_rate(),
            bytes_read: cache.bytes_read(),
            stall_ms: total.stall_ns as f64 / 1e6,
            prompt,
            decode,
            prefetches: cache.prefetches,
            prefetch_bytes: cache.prefetch_bytes,
            prefetch_useful: cache.prefetch_useful,
            prefetch_wasted: cache.prefetch_wasted,
            warm_reads: cache.warm_reads,
            warm_bytes: cache.warm_bytes,
            warm_used: cache.warm_used,
            fill_reads: cache.fill_reads,
            fill_bytes: cache.fill_bytes,
            fill_used: cache.fill_used,
            pinned: session.n_pinned(),
            evictions: cache.evictions,
            failed_reads: cache.failed_reads,
            budget_bytes: plan.budget_bytes,
            budget_now_bytes: session.memory_bytes(),
            peak_rss_bytes: machine::peak_rss_bytes(),
            major_faults: machine::major_faults(),
            memory: Memory::new(plan),
            n_ctx: plan.n_ctx,
            n_batch: plan.n_batch,
            kv: kv_name(engine.modes.kv),
            io,
            io_depth: session.io_depth(),
            io_reason: session.io_reason().map(str::to_owned),
            policy,
            prefetch,
            prefetch_share: session.prefetch_share(),
            prefetch_modes: session.prefetch_modes().into_iter().collect(),
            scope: plan.scope.name(),
            isa: session.isa(),
            threads: session.threads(),
            cores_allowed: cores.allowed,
            cpu_quota: cores.quota,
            vram: Device::of(session),
            layers: session.layer_stats().iter().map(|l| Layer { hit: l.hit, late: l.late, miss: l.miss }).collect(),
            tokens: record.tokens,
            budget_set: record.budget_set,
        })
    }

    /// The lines for people: two, or all of it. A third one where the promise was not kept.
    pub fn print(&self, verbose: bool) {
        if verbose {
            self.print_all()
        } else {
            self.print_short()
        }
        if let Some(peak) = self.peak_rss_bytes.filter(|peak| *peak > self.budget_bytes) {
            note(format_args!(
                "the process took {} at its peak, which is more than the budget of {}",
                human_bytes(peak),
                human_bytes(self.budget_bytes)
            ));
        }
    }

    fn print_short(&self) {
        let seed = self.seed.map(|seed| format!("seed {seed}"));
        let rates = [self.decode.rate(), self.prompt.rate().map(|rate| format!("prompt {rate}")), seed];
        line(format_args!("{}", rates.into_iter().flatten().collect::<Vec<_>>().join("; ")));
        let hits = match self.hit_rate {
            Some(rate) => format!("{:.0} % of expert reads from memory; ", 100.0 * rate),
            None => String::new(),
        };
        let budget = human_bytes(self.budget_bytes);
        let memory = match self.peak_rss_bytes {
            Some(peak) => format!("{} of {budget}", human_bytes(peak)),
            None => format!("a budget of {budget}"),
        };
        line(format_args!("{hits}{memory}{}", self.given_back()));
    }

    /// What became of a budget that follows the machine's need.
    fn given_back(&self) -> String {
        match self.budget_now_bytes {
            n if n < self.budget_bytes && self.budget_set => format!(", now {}", human_bytes(n)),
            n if n < self.budget_bytes => {
                format!(", now {}, because the machine is short of memory", human_bytes(n))
            }
            _ => String::new(),
        }
    }

    fn print_all(&self) {
        self.prompt.line("prompt");
        if self.decode.tokens > 0 {
            self.decode.line("decode");
        }
        line(format_args!(
            "read     {}, {:.1} ms stalled; {} prefetched, {} of them used, {} wasted",
            human_bytes(self.bytes_read),
            self.stall_ms,
            self.prefetches,
            self.prefetch_useful,
            self.prefetch_wasted,
        ));
        if self.warm_reads > 0 || self.pinned > 0 {
            line(format_args!(
                "kept     {} pinned; {} experts ({}) read before they were asked for, {} of them used",
                self.pinned,
                self.warm_reads,
                human_bytes(self.warm_bytes),
                self.warm_used,
            ));
        }
        if self.fill_reads > 0 {
            line(format_args!(
                "filled   {} experts ({}) read into free slots, {} of them used",
                self.fill_reads,
                human_bytes(self.fill_bytes),
                self.fill_used,
            ));
        }
        if let Some(vram) = &self.vram {
            line(format_args!(
                "vram     {}: {} slots ({}), {} of {} experts computed there, {} ({}) copied up",
                vram.device,
                vram.slots,
                human_bytes(vram.slots_bytes),
                vram.hit,
                vram.hit + vram.miss,
                vram.uploads,
                human_bytes(vram.upload_bytes),
            ));
        }
        let peak = self.peak_rss_bytes.map_or("not known here".to_owned(), human_bytes);
        let (budget, now) = (human_bytes(self.budget_bytes), self.given_back());
        line(format_args!("memory   budget {budget}{now}, peak RSS {peak}"));
        let modes = self.prefetch_modes();
        line(format_args!(
            "ran      reads {} {} at a time, policy {}, {}, prefetch {}{modes}; {} on {} thread{} ({})",
            self.io,
            self.io_depth,
            self.policy,
            Scope::of_slots(self.scope),
            self.prefetch,
            self.isa,
            self.threads,
            if self.threads == 1 { "" } else { "s" },
            machine::Cores { allowed: self.cores_allowed, quota: self.cpu_quota },
        ));
        if let Some(reason) = &self.io_reason {
            line(format_args!("         reads {}: {reason}", self.io));
        }
        if let Some(seed) = self.seed {
            line(format_args!("seed     {seed}"));
        }
    }

    /// Which prefetchers ran, where there was a choice.
    fn prefetch_modes(&self) -> String {
        let ran = self.prefetch_modes.iter().filter(|(_, share)| **share > 0.0);
        let shares: Vec<_> = ran.map(|(name, share)| format!("{name} {:.0} %", 100.0 * share)).collect();
        if shares.is_empty() { String::new() } else { format!(" ({} of tokens)", shares.join(", ")) }
    }
}

/// How the budget is split, for `--verbose`.
pub fn print_plan(engine: &engine::Engine) {
    let plan = engine.plan();
    let b = human_bytes;
    line(format_args!("model    {}", engine.path().display()));
    line(format_args!(
        "budget   {}: dense weights {}, KV cache {}, scratch {}, expert slots {}, the program {}",
        b(plan.budget_bytes),
        b(plan.dense_bytes),
        b(plan.kv_bytes),
        b(plan.scratch_bytes),
        b(plan.slots_bytes),
        b(plan.process_bytes)
    ));
    line(format_args!(
        "range    smallest budget {}, full budget {}",
        human_bytes_up(plan.smallest_bytes),
        human_bytes_up(plan.full_bytes)
    ));
    let slots: Vec<_> = plan.slots.iter().map(usize::to_string).collect();
    line(format_args!(
        "slots    {} ({}), of {} experts per layer in {} layers",
        slots.join(" "),
        Scope::of_slots(plan.scope.name()),
        engine.blueprint().n_expert,
        engine.blueprint().n_moe()
    ));
    line(format_args!("context  {} tokens, batches of {}; {}", plan.n_ctx, plan.n_batch, engine.backend()));
    for unread in &engine.blueprint().unread {
        line(format_args!("not used {}: {}", unread.name, unread.reason));
    }
}
