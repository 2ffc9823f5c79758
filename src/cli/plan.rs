//! `hotset plan`: what a model would do in which budget, here or on a machine that is not here. Needs the file's header only.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use hotset::{
    Error, Result, arch,
    backend::cpu::{Cpu, WeightRate},
    blueprint::{Blueprint, Touched},
    expert::{ExpertStore, Scope},
    gguf::Gguf,
    gpu, human_bytes, human_bytes_up,
    id::ExpertId,
    io::{
        Extents, IoKind, Layout,
        probe::{Limits, probe, steady},
    },
    machine,
    outlook::{Estimate, Rates, Token, decode, hit_rate},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    session::{Options, PlainReads, Vram, make_plan, plain_reads, planned_slots},
    simulate::{Compute, Conditions, DeviceTier, Drive, Setting, SimPolicy, replay},
    trace::file::TraceReader,
};
use serde::Serialize;

use super::{
    Ended,
    args::{VramSize, asked_ctx, ctx, file_bytes, kernels},
    json, model_file,
    out::{Out, Progress},
    state_notes::state_notes,
    sweep::drive,
    width::{of_stdout, wrap},
};

/// Predict speed at several memory budgets
///
/// The file's header is enough: a download may still be under way, or only the first megabytes be there. Expected rates come
/// with an error: without --trace, hit rates are bounded by what seven other models did.
#[derive(clap::Args)]
pub struct Args {
    /// Model file (GGUF; of a split set any file)
    file: PathBuf,
    /// Context, in tokens; 0: the model's own; default: that, at most 4096
    #[arg(short, long, visible_alias = "ctx-size", value_name = "TOKENS", value_parser = ctx)]
    ctx: Option<usize>,
    /// The drive: nvme, ufs4, sata, or LATENCY:RATE in microseconds and MB/s (80:3500). Default: the model's own is tried
    /// for two seconds; where its data is not there yet, nvme
    #[arg(long, value_name = "DRIVE", value_parser = drive)]
    drive: Option<Drive>,
    /// How fast weights are read from memory and multiplied with all cores, in GB/s: elsewhere about what memory gives.
    /// Default: the model's types are tried here
    #[arg(long, value_name = "GB/S", value_parser = rate)]
    memory_rate: Option<f64>,
    /// A graphics card's memory that holds experts too, as run --vram: 6GiB, or 40% of the model's files. What it computes is
    /// taken to be as fast as the CPU
    #[arg(long, value_name = "SIZE", default_value = "off")]
    vram: VramSize,
    /// A trace of this model (`hotset trace`): hit rates are simulated on it instead of guessed
    #[arg(long, value_name = "TRACE")]
    trace: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| (0.1..=100_000.0).contains(n));
    number.ok_or_else(|| "expected GB/s, 0.1 to 100000".to_owned())
}

/// How long the model's drive is tried to find the best way of reading, and then for its rate and for its latency.
const PROBE: Limits = Limits { time: Duration::from_millis(600), bytes: 4 << 30 };
const STEADY: Limits = Limits { time: Duration::from_millis(700), bytes: 4 << 30 };

/// What the page cache is tried with, and for how long: first to fill it, then for its rate.
const CACHED_BYTES: u64 = 32 << 20;
const CACHED: Limits = Limits { time: Duration::from_millis(250), bytes: 4 << 30 };

/// A type's rate is not tried if it is a smaller part of what a token touches.
const SMALL_PART: f64 = 0.02;

/// Bytes of weights per second where they cannot be tried: what two channels of DDR4 give.
const USUAL_RATE: f64 = 20e9;

/// Shares of the experts that get a row, in percent, besides the smallest budget.
const SHARES: [f64; 6] = [12.5, 25.0, 37.5, 50.0, 75.0, 100.0];

/// A budget is sensible from where decoding reaches this part of what it does with everything in memory.
const SENSIBLE: f64 = 0.8;

/// What a rate feels like, from so many tokens per second on. People read some five words per second, about seven tokens.
const VERDICTS: [(f64, &str); 4] = [(20.0, "fast"), (8.0, "good"), (3.0, "usable"), (0.0, "slow")];

fn verdict(tok_s: f64) -> &'static str {
    VERDICTS.iter().find(|(from, _)| tok_s >= *from).map_or("slow", |(_, word)| word)
}

/// See the module. The fields are the JSON's keys.
#[derive(Serialize)]
struct Outlook {
    /// Rates of another machine.
    #[serde(skip)]
    given: bool,
    model: String,
    /// Of what `--memory auto` would give here, in a word: see [`VERDICTS`]; `too big` where nothing would run.
    verdict: &'static str,
    n_ctx: usize,
    #[serde(skip)]
    state_notes: Vec<String>,
    threads: usize,
    weights_bytes_per_second: f64,
    weights_rate_is: String,
    drive_latency_us: f64,
    drive_mb_per_second: u64,
    drive_is: String,
    /// Reads from the page cache, where a run here would have all experts in it.
    page_cache_mb_per_second: Option<u64>,
    hit_rates_are: String,
    /// Slots of all layers in a device's memory.
    vram_slots: usize,
    /// Experts of all layers.
    #[serde(skip)]
    n_expert: usize,
    /// Weights that a token touches, and the routed experts' part of them.
    token_bytes: u64,
    token_expert_bytes: u64,
    available_bytes: Option<u64>,
    /// What `--memory auto` would take here.
    here_bytes: Option<u64>,
    /// Half of that, or the smallest budget.
    less: Option<Less>,
    smallest_bytes: u64,
    /// With one pool for all layers.
    one_pool_bytes: u64,
    /// From here on expected decoding reaches 80 % of what it does with everything in memory.
    sensible_bytes: u64,
    full_bytes: u64,
    rows: Vec<Row>,
}

/// A budget below the machine's, and what it does.
#[derive(Clone, Copy, Serialize)]
struct Less {
    budget_bytes: u64,
    tok_s: f64,
}

/// One budget.
#[derive(Serialize)]
struct Row {
    budget_bytes: u64,
    slots_per_layer: f64,
    hit_rate: Estimate,
    read_bytes_per_token: f64,
    decode_tok_s: Estimate,
    /// Where a run gets experts that have no slot: `drive`, `page cache`, or `none` are without.
    reads: &'static str,
    /// What one more GiB adds to the expected rate.
    next_gib_tok_s: f64,
    /// The budget that `--memory auto` would take on this machine.
    here: bool,
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    let outlook = Outlook::new(args, args.file.display().to_string())?;
    let columns = of_stdout();
    Out::new().text(&if args.json { json::document(&outlook) } else { wrap(&outlook.text(), columns, 0) })?;
    Ok(ExitCode::SUCCESS)
}

/// What a model will do here, of which only the header is there. `name` is what it is called.
///
/// # Errors
/// Why it does not run.
pub fn of_header(file: &Path, name: &str) -> Result<String> {
    let args = Args {
        file: file.to_owned(),
        ctx: None,
        drive: None,
        memory_rate: None,
        vram: VramSize::default(),
        trace: None,
        json: false,
    };
    Ok(Outlook::new(&args, name.to_owned())?.text())
}

/// A model, and all that decides what it does in a budget.
struct Case<'a> {
    gguf: &'a Gguf,
    blueprint: &'a Blueprint,
    store: &'a ExpertStore,
    args: &'a Args,
    token: Token,
    rates: Rates,
    /// Slots of each layer on a device, or empty.
    vram: Vec<usize>,
    /// Of a run on this machine, which reads through the page cache where that has room.
    page_cache: Option<Drive>,
}

impl Case<'_> {
    fn plan(&self, scope: Scope, memory_bytes: u64) -> Result<hotset::plan::Plan> {
        let memory_bytes = Some(memory_bytes);
        let n_ctx = self.args.ctx.map(|n| asked_ctx(n, self.blueprint.n_ctx_train));
        let options = Options { n_ctx, memory_bytes, scope: Some(scope), ..Options::default() };
        make_plan(self.gguf, self.blueprint, self.store, &options, Layout::Lines)
    }

    /// Slots of each layer in a budget; without one, all that make sense.
    fn slots(&self, memory_bytes: u64) -> Result<(Vec<usize>, hotset::plan::Plan)> {
        let plan = self.plan(Scope::Layer, memory_bytes)?;
        Ok((plan.slots.clone(), plan))
    }

    fn row(&self, budget_bytes: u64) -> Result<(Row, f64)> {
        let (slots, plan) = self.slots(budget_bytes)?;
        let (reads, drive) = match (plain_reads(&plan, self.store), self.page_cache) {
            (Some(PlainReads::AllHaveSlots), _) => ("none", self.rates.drive),
            (Some(PlainReads::FitThePageCache), Some(page_cache)) => ("page cache", page_cache),
            _ => ("drive", self.rates.drive),
        };
        let mean = |slots: &[usize]| slots.iter().sum::<usize>() as f64 / slots.len().max(1) as f64;
        let per_layer = mean(&slots);
        let hit_rate = match &self.args.trace {
            Some(trace) => {
                let tier = DeviceTier { slots: &self.vram, max_rows: gpu::MAX_ROWS, expert_ns: 0 };
                let setting = Setting {
                    policy: SimPolicy::Live(PolicyKind::default()),
                    scope: Scope::Layer,
                    slots: &slots,
                    fill: false,
                    prefetch: PrefetchKind::Off,
                    vram: (!self.vram.is_empty()).then_some(tier),
                    conditions: Conditions { drive, compute: Compute::default(), warmup: 0 },
                };
                let outcome = replay(trace, &setting, None)?;
                let decode = outcome.stats.decode;
                // What the device has is wanted, too, and not read.
                let wanted = outcome.decode_tokens * (slots.len() * self.blueprint.n_expert_used()) as u64;
                let hits = if wanted == 0 { 0.0 } else { 1.0 - (decode.late + decode.miss) as f64 / wanted as f64 };
                Estimate { low: hits, expected: hits, high: hits }
            }
            None => hit_rate(per_layer + mean(&self.vram), self.blueprint.n_expert, self.blueprint.n_expert_used()),
        };
        let decode_tok_s = decode(self.token, Rates { drive, ..self.rates }, hit_rate);
        let row = Row {
            budget_bytes,
            slots_per_layer: per_layer,
            hit_rate,
            read_bytes_per_token: self.token.experts * (1.0 - hit_rate.expected),
            decode_tok_s,
            reads,
            next_gib_tok_s: 0.0,
            here: false,
        };
        Ok((row, decode_tok_s.expected))
    }
}

impl Outlook {
    fn new(args: &Args, model: String) -> Result<Self> {
        let gguf = model_file::open_header(&args.file)?;
        let blueprint = arch::blueprint(&gguf)?;
        let store = ExpertStore::new(&gguf, blueprint.experts())?;
        if let Some(trace) = &args.trace {
            fits(trace, &blueprint)?;
        }
        let expert_bytes: u64 = store.layers().iter().map(|l| l.expert_bytes()).sum();
        let experts = (expert_bytes * blueprint.n_expert_used() as u64) as f64;
        let n_layer = store.layers().len();
        let token = Token {
            touched: blueprint.resident_bytes() as f64 + experts,
            experts,
            n_layer: n_layer as f64,
            n_expert_used: blueprint.n_expert_used() as f64,
        };
        let threads = machine::cores().threads();
        let (weights, weights_rate_is) = match args.memory_rate {
            Some(gb_s) => (gb_s * 1e9, "given".to_owned()),
            None => weights_rate(blueprint.touched(), threads)?,
        };
        let ((drive, drive_is), page_cache) = drive_of(args, &gguf, &store);
        let rates = Rates { weights, drive };
        let vram = device_slots(args.vram, &gguf, &blueprint, &store)?;
        let case = Case { gguf: &gguf, blueprint: &blueprint, store: &store, args, token, rates, vram, page_cache };

        let (_, whole) = case.slots(u64::MAX)?;
        let (smallest, full) = (whole.smallest_bytes, whole.full_bytes);
        let at = |percent: f64| smallest + ((full - smallest) as f64 * least_share(percent, &blueprint)) as u64;
        let mut budgets: Vec<u64> = SHARES.iter().map(|&percent| at(percent)).collect();
        budgets.push(smallest);
        let available = machine::available_bytes();
        let here = available.map(|n| n / 5 * 4).map(|n| n.min(full)).filter(|&n| n >= smallest);
        budgets.extend(here);
        budgets.sort_unstable();
        budgets.dedup();

        // Only replaying a trace takes its time.
        let (progress, all) = (Progress::runs("planning", args.trace.is_none()), budgets.len() as u64);
        let (mut rows, mut sensible) = (Vec::new(), full);
        let (_, best) = case.row(full)?;
        for (done, budget) in (1..).zip(budgets) {
            let (mut row, rate) = case.row(budget)?;
            row.next_gib_tok_s = case.row((budget + (1 << 30)).min(full))?.1 - rate;
            row.here = Some(budget) == here;
            if rate >= SENSIBLE * best {
                sensible = sensible.min(budget);
            }
            rows.push(row);
            progress.set(done, all);
        }
        drop(progress);
        let less = here.map(|here| rounded_down(here / 2).max(smallest)).filter(|&less| Some(less) < here);
        let less = less.map(|budget_bytes| Ok(Less { budget_bytes, tok_s: case.row(budget_bytes)?.1 })).transpose()?;
        Ok(Outlook {
            given: args.drive.is_some() || args.memory_rate.is_some(),
            model,
            verdict: here.map(|here| case.row(here)).transpose()?.map_or("too big", |(_, tok_s)| verdict(tok_s)),
            n_ctx: whole.n_ctx,
            state_notes: state_notes(&blueprint),
            threads,
            weights_bytes_per_second: weights,
            weights_rate_is,
            drive_latency_us: drive.latency_ns as f64 / 1e3,
            drive_mb_per_second: drive.bytes_per_us,
            drive_is,
            page_cache_mb_per_second: page_cache.map(|drive: Drive| drive.bytes_per_us),
            hit_rates_are: match &args.trace {
                Some(trace) => format!("simulated on {}, cold start included", trace.display()),
                None => "between those of long mixed text and of one topic on other models".to_owned(),
            },
            vram_slots: case.vram.iter().sum(),
            n_expert: blueprint.n_expert * n_layer,
            token_bytes: token.touched as u64,
            token_expert_bytes: token.experts as u64,
            available_bytes: available,
            here_bytes: here,
            less,
            smallest_bytes: smallest,
            one_pool_bytes: case.plan(Scope::Global, u64::MAX)?.smallest_bytes,
            sensible_bytes: sensible,
            full_bytes: full,
            rows,
        })
    }

    /// What most people want to know.
    fn sentence(&self) -> String {
        let b = human_bytes;
        let machine = if self.given { "On this machine, with the rates that were given" } else { "On this machine" };
        let Some(here) = self.rows.iter().find(|row| row.here) else {
            let free = self.available_bytes.map_or("unknown".to_owned(), b);
            let [least, layers] = [self.one_pool_bytes, self.smallest_bytes].map(human_bytes_up);
            return format!(
                "{machine}: too little memory is free, {free}; the model takes {least} at least, and {layers} with slots for \
                 each layer."
            );
        };
        let (tok_s, budget) = (here.decode_tok_s.expected, b(here.budget_bytes));
        let free = self.available_bytes.map_or(budget.clone(), b);
        let whole = if here.budget_bytes == self.full_bytes { "; all of it fits" } else { "" };
        let less =
            self.less.map_or(String::new(), |less| format!("; {} gives {:.0}", b(less.budget_bytes), less.tok_s));
        format!(
            "{machine}: {}, about {tok_s:.0} tok/s in {budget} of the {free} that are free{whole}{less}.",
            self.verdict
        )
    }

    fn text(&self) -> String {
        let mut text = self.sentence() + "\n\n";
        let _ = writeln!(
            text,
            "{}: a token touches {}, {} of them experts; context of {} tokens",
            self.model,
            human_bytes(self.token_bytes),
            human_bytes(self.token_expert_bytes),
            self.n_ctx
        );
        self.state_notes.iter().for_each(|note| text += &format!("{note}\n"));
        let cached = self.page_cache_mb_per_second.map_or(String::new(), |mb_s| format!("; page cache {mb_s} MB/s"));
        let _ = writeln!(
            text,
            "weights {:.1} GB/s ({}; {} thread{})\ndrive {} MB/s after {:.0} µs ({}){cached}\nhit rates are {}",
            self.weights_bytes_per_second / 1e9,
            self.weights_rate_is,
            self.threads,
            if self.threads == 1 { "" } else { "s" },
            self.drive_mb_per_second,
            self.drive_latency_us,
            self.drive_is,
            self.hit_rates_are
        );
        if self.vram_slots > 0 {
            let (slots, all) = (self.vram_slots, self.n_expert);
            let _ = writeln!(
                text,
                "a card's memory holds {slots} of the {all} experts, which count as hits; it is taken to be as fast as the CPU"
            );
        }
        let _ = writeln!(
            text,
            "\n{:>10}  {:>11}  {:>15}  {:>10}  {:>10}  {:>19}  {:>10}",
            "budget", "slots/layer", "hits", "read/token", "from", "decode, tok/s", "1 GiB more"
        );
        for row in &self.rows {
            text += &row.line();
        }
        if self.here_bytes.is_some() {
            text += "* what --memory auto takes here, now\n";
        }
        let _ = writeln!(
            text,
            "\nsmallest {} ({} with one pool for all layers); sensible from {} on ({:.0} % of the rate with everything in \
             memory); all of it {}",
            human_bytes_up(self.smallest_bytes),
            human_bytes_up(self.one_pool_bytes),
            human_bytes_up(self.sensible_bytes),
            100.0 * SENSIBLE,
            human_bytes_up(self.full_bytes)
        );
        let _ = writeln!(
            text,
            "the cliff: a cache for all layers in one that holds less than {} hits nothing under LRU; hotset's pools per layer \
             have none",
            human_bytes(self.token_expert_bytes)
        );
        text
    }
}

impl Row {
    /// At most 100 columns, as the headings have them.
    fn line(&self) -> String {
        let (hit, tok_s) = (self.hit_rate, self.decode_tok_s);
        format!(
            "{:>10}{} {:>11.1}  {:>15}  {:>10}  {:>10}  {:>19}  {:>10}\n",
            human_bytes(self.budget_bytes),
            if self.here { "*" } else { " " },
            self.slots_per_layer,
            format!("{:.1} % ({:.0}-{:.0})", 100.0 * hit.expected, 100.0 * hit.low, 100.0 * hit.high),
            human_bytes(self.read_bytes_per_token as u64),
            if self.reads == "none" { "-" } else { self.reads },
            format!("{} ({}-{})", figure(tok_s.expected), figure(tok_s.low), figure(tok_s.high)),
            if self.next_gib_tok_s > 0.0 { format!("+{}", figure(self.next_gib_tok_s)) } else { "-".to_owned() },
        )
    }
}

/// Slots of each layer on the device that `--vram` asks for.
fn device_slots(size: VramSize, gguf: &Gguf, blueprint: &Blueprint, store: &ExpertStore) -> Result<Vec<usize>> {
    let bytes = match size.into() {
        Vram::Off => return Ok(Vec::new()),
        Vram::Bytes(bytes) => bytes,
        Vram::Percent(percent) => (file_bytes(gguf) as f64 * percent / 100.0) as u64,
        Vram::Auto => gpu::open(gpu::Choice::Best)?.free_bytes(),
    };
    planned_slots(blueprint, store, bytes)
}

/// Three digits, or all before the point.
fn figure(rate: f64) -> String {
    if rate < 100.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

/// Whole GiB, or MiB below one.
fn rounded_down(bytes: u64) -> u64 {
    let unit = if bytes < 1 << 30 { 1 << 20 } else { 1 << 30 };
    bytes / unit * unit
}

/// Which part of the way from the smallest to the full budget has slots for so many percent of the experts.
fn least_share(percent: f64, blueprint: &Blueprint) -> f64 {
    let (all, used) = (blueprint.n_expert as f64, blueprint.n_expert_used() as f64);
    if all <= used { 1.0 } else { ((all * percent / 100.0 - used) / (all - used)).clamp(0.0, 1.0) }
}

/// Refuses a trace of a model of another shape.
fn fits(trace: &Path, c: &Blueprint) -> Result<()> {
    let reader = TraceReader::open(trace)?;
    let h = reader.header();
    let shape =
        |layers: usize, experts: usize, used: usize| format!("{layers} MoE layers, {used} of {experts} experts");
    let expected = shape(c.n_moe(), c.n_expert, c.n_expert_used());
    let got = shape(h.n_layer, h.n_expert, h.n_expert_used);
    let told = || Error::file(trace, format!("the trace is of another model, with {got}; this one has {expected}"));
    if expected == got { Ok(()) } else { Err(told()) }
}

/// The drive that is asked for; else what the model's own gives, and what the page cache does; else a usual one. With what
/// it is in words.
fn drive_of(args: &Args, gguf: &Gguf, store: &ExpertStore) -> ((Drive, String), Option<Drive>) {
    if let Some(drive) = args.drive {
        return ((drive, "given".to_owned()), None);
    }
    let usual = |why: &str| (drive("nvme").expect("a known name"), format!("a usual NVMe: {why}"));
    let end = |shard: usize| {
        let ends = gguf.tensors().iter().filter(|t| t.shard == shard).map(|t| t.offset + t.bytes.unwrap_or(0));
        ends.max().unwrap_or(0)
    };
    if gguf.shards().iter().enumerate().any(|(i, shard)| end(i) > shard.len) {
        return (usual("the file's data is not there yet"), None);
    }
    let n_layer = store.layers().len();
    let ids = (0..n_layer as u16)
        .flat_map(|layer| (0..store.n_expert() as u16).map(move |expert| ExpertId { layer, expert }));
    let reads: Vec<_> = ids.map(|id| store.extents(id)).collect();
    let own = own_drive(store, &reads).unwrap_or_else(|| usual("the model's own could not be tried"));
    (own, page_cache(store, &reads))
}

/// The drive that the model lies on, as a run would read it.
fn own_drive(store: &ExpertStore, reads: &[Extents]) -> Option<(Drive, String)> {
    let parts = store.slot_parts(0..store.layers().len());
    let found = probe(store.files(), reads, &parts, PROBE);
    let (kind, depth) = found.best()?;
    let steady = |how| steady(store.files(), reads, &parts, how, STEADY).ok();
    if kind == IoKind::Pread {
        // What the page cache holds is no figure of the drive: only the probe drops it before it reads.
        let rate = found.rates.iter().find(|r| r.io == kind.name() && r.depth == depth)?;
        let drive = Drive { latency_ns: 0, bytes_per_us: ((rate.gb_s * 1e3) as u64).max(1), depth: 1 };
        return Some((drive, format!("the model's own, tried with {} {depth}", kind.name())));
    }
    let together = steady((kind, depth))?;
    // A read alone takes its latency and its bytes.
    let mean = reads.iter().map(|r| r.bytes() as f64).sum::<f64>() / reads.len().max(1) as f64;
    let alone = steady((kind, 1)).unwrap_or(together).min(together);
    let latency_ns = (mean / alone - mean / together).round() as u64;
    let drive = Drive { latency_ns, bytes_per_us: ((together * 1e3) as u64).max(1), depth: 1 };
    Some((drive, format!("the model's own, tried with {} {depth} and 1", kind.name())))
}

/// Reads of experts that the page cache holds.
fn page_cache(store: &ExpertStore, reads: &[Extents]) -> Option<Drive> {
    let mut bytes = 0;
    let few: Vec<_> = reads.iter().copied().take_while(|r| (bytes < CACHED_BYTES, bytes += r.bytes()).0).collect();
    let parts = store.slot_parts(0..store.layers().len());
    let how = (IoKind::Pread, IoKind::Pread.default_depth());
    let rate = || steady(store.files(), &few, &parts, how, CACHED).ok();
    rate()?;
    Some(Drive { latency_ns: 0, bytes_per_us: ((rate()? * 1e3) as u64).max(1), depth: 1 })
}

/// Bytes a second of a mixture of types, and how that came about.
fn weights_rate(mut types: Vec<Touched>, threads: usize) -> Result<(f64, String)> {
    let free = machine::available_bytes().unwrap_or(u64::MAX);
    let (mut cpu, Some(mut rate)) = (Cpu::with(kernels()?, threads)?, WeightRate::new(free)) else {
        let why = format!("a guess: {} free are too few to measure with; --memory-rate sets it", human_bytes(free));
        return Ok((USUAL_RATE, why));
    };
    let all: f64 = types.iter().map(|t| t.bytes).sum();
    types.retain(|t| t.bytes >= SMALL_PART * all);
    types.sort_by(|a, b| b.bytes.total_cmp(&a.bytes));
    let (mut bytes, mut seconds, mut names) = (0.0, 0.0, Vec::new());
    for t in types {
        // The experts' parts of a tensor are handed out together.
        let Some(per_second) = rate.of(&mut cpu, t.ty, (t.bytes / t.tensors) as usize) else { continue };
        (bytes, seconds) = (bytes + t.bytes, seconds + t.bytes / per_second);
        names.push(format!("{} {:.1}", t.ty, per_second / 1e9));
    }
    Ok((bytes / f64::max(seconds, 1e-9), format!("measured here: {}", names.join(", "))))
}
