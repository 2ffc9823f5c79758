//! `hotset bench`: how fast prompts and tokens run, and what they cost in memory and reads.
//!
//! The tests are llama-bench's: `pp512` runs a prompt of 512 tokens, `tg128` decodes 128 tokens one by one, `@d1024`
//! does so after 1024 others, which do not count. The tokens are not sampled: they come from a seed or from a text, and
//! go on from repetition to repetition, so that no prompt is run again with its experts still in place.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use hotset::{
    Result, arch,
    blueprint::{Blueprint, ExpertSet},
    expert::{CacheStats, ExpertStore, Pace},
    gguf::Gguf,
    machine,
    quant::GgmlType,
    session::Options,
    session::Session,
    tokenizer::Tokenizer,
};

use super::{
    Ended, Stop,
    args::{Memory, Modes, count, file_bytes, kv_name, warn_of_budget},
    model_file,
    out::{Out, Progress, note},
    profile::Profile,
    text::{Limit, read_text},
};

mod bound;
mod report;

use bound::{Bounds, drive, path};
use report::{Rates, Report, Row};

/// Measure speed
///
/// Each test runs some warm-up tokens, then its repetitions; median, least, most and spread are over these. Reads, hits
/// and stalls are those of the repetitions. Several budgets, threads, depths and lengths give a row for each combination.
#[derive(clap::Args)]
pub struct Args {
    /// Model file (GGUF; of a split set any file); default: the small model that comes with hotset
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    file: Option<PathBuf>,
    /// The model file, by an option
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Prompt lengths, with commas between them; 0: no prompt test
    #[arg(short = 'p', long, value_name = "TOKENS", default_value = "512", value_delimiter = ',', value_parser = length)]
    prompt: Vec<usize>,
    /// Numbers of tokens to decode, with commas between them; 0: no decode test
    #[arg(short = 'n', long, value_name = "TOKENS", default_value = "128", value_delimiter = ',', value_parser = length)]
    decode: Vec<usize>,
    /// Tokens that are in the context before a test, with commas between several
    #[arg(short = 'd', long, value_name = "TOKENS", default_value = "0", value_delimiter = ',', value_parser = length)]
    depth: Vec<usize>,
    /// Repetitions of each test
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5, value_parser = count::<100_000>)]
    reps: usize,
    /// Tokens that run before the first repetition of each test. Under a budget take 64 or more: the experts in memory
    /// need so many to settle
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = length)]
    warmup: usize,
    /// Tokens of a prompt that runs once, before the first test: a long one reads every expert that there is room for, but for
    /// the last layer's, through which only its last token goes
    #[arg(long, value_name = "TOKENS", default_value_t = 0, value_parser = length)]
    warmup_prompt: usize,
    /// Where random tokens start
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Take the tokens from these texts in place of random ones (- is standard input): a repetition each in turn, each text
    /// going on where it was left, over and over. Experts that one prompt made hot are then cold for the next
    #[arg(long, value_name = "FILE", num_args = 1..)]
    text: Vec<PathBuf>,
    /// Seconds for which the drive is read alone, where experts miss, to compare with, and memory, a tenth of a second at most,
    /// after each repetition that decodes; 0: not at all. For what a token's rate could be, name a budget that holds all experts
    /// first, with --warmup-prompt 512
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    probe: Duration,
    /// Print JSON: an object with a row per test
    #[arg(long, conflicts_with_all = ["csv", "markdown"])]
    json: bool,
    /// Print comma-separated values: a line per test, with the fields of the JSON's rows
    #[arg(long, conflicts_with = "markdown")]
    csv: bool,
    /// Print a table in Markdown
    #[arg(long)]
    markdown: bool,
    /// Memory budgets, as in hotset run, with commas between them
    #[arg(
        long,
        value_name = "SIZE",
        value_delimiter = ',',
        default_value = "auto",
        allow_negative_numbers = true,
        help_heading = "Memory and speed"
    )]
    memory: Vec<Memory>,
    /// Numbers of threads that compute, with commas between them; default: as in hotset run
    #[arg(short = 't', long, value_name = "N", value_delimiter = ',', value_parser = count::<1024>, help_heading = "Memory and speed")]
    threads: Vec<usize>,
    #[command(flatten)]
    modes: Modes,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Aligned columns.
    Text,
    Json,
    Csv,
    Md,
}

impl Args {
    fn form(&self) -> Form {
        match (self.json, self.csv, self.markdown) {
            (true, ..) => Form::Json,
            (_, true, _) => Form::Csv,
            (.., true) => Form::Md,
            _ => Form::Text,
        }
    }
}

/// A length that an argument may ask for, 0 included.
fn length(text: &str) -> Result<usize, String> {
    let most = u32::MAX as usize;
    text.parse().ok().filter(|n| *n <= most).ok_or_else(|| format!("expected a number from 0 to {most}"))
}

/// A time that an argument may ask for, 0 included.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().ok().filter(|s| (0.0..=60.0).contains(s));
    number.map(Duration::from_secs_f64).ok_or_else(|| "expected a number from 0 to 60".to_owned())
}

/// Time for which memory is read after a repetition, at most.
const MEMORY_PROBE: Duration = Duration::from_millis(100);

/// One of the two kinds of work.
#[derive(Clone, Copy, PartialEq)]
enum Work {
    Prompt,
    Decode,
}

#[derive(Clone, Copy)]
struct Test {
    work: Work,
    tokens: usize,
    depth: usize,
}

impl Test {
    /// Every combination that was asked for.
    fn all(args: &Args) -> Vec<Test> {
        let works = [(Work::Prompt, &args.prompt), (Work::Decode, &args.decode)];
        let of_depth = |depth: usize| {
            let lists = works.into_iter().flat_map(|(work, list)| list.iter().map(move |&n| (work, n)));
            lists.filter(|&(_, n)| n > 0).map(move |(work, tokens)| Test { work, tokens, depth })
        };
        args.depth.iter().flat_map(|&depth| of_depth(depth)).collect()
    }

    /// llama-bench's name.
    fn name(self) -> String {
        let kind = if self.work == Work::Prompt { "pp" } else { "tg" };
        let depth = if self.depth > 0 { format!(" @ d{}", self.depth) } else { String::new() };
        format!("{kind}{}{depth}", self.tokens)
    }
}

/// The tokens to run.
enum Tokens {
    /// SplitMix64's state, and the vocabulary's size.
    Random(u64, usize),
    /// Texts, where we are in each, and which one's turn it is.
    Texts(Vec<(Vec<u32>, usize)>, usize),
}

impl Tokens {
    fn next(&mut self) -> u32 {
        match self {
            Tokens::Random(state, n_vocab) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((u128::from(z ^ (z >> 31)) * *n_vocab as u128) >> 64) as u32
            }
            Tokens::Texts(texts, turn) => {
                let n = texts.len();
                let (tokens, at) = &mut texts[*turn % n];
                let token = tokens[*at % tokens.len()];
                *at += 1;
                token
            }
        }
    }

    fn take(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.next()).collect()
    }

    /// The next text's turn.
    fn turn(&mut self) {
        if let Tokens::Texts(_, turn) = self {
            *turn += 1;
        }
    }
}

/// What the repetitions of a test did together.
#[derive(Default)]
struct Sums {
    tok_s: Vec<f64>,
    /// Bytes a second of a plain read of memory after each repetition.
    memory: Vec<f64>,
    tokens: u64,
    hit: u64,
    late: u64,
    miss: u64,
    demand_bytes: u64,
    prefetches: u64,
    prefetch_bytes: u64,
    prefetch_useful: u64,
    prefetch_wasted: u64,
    stall_ns: u64,
    seconds: f64,
    /// Nanoseconds that each decoded token waited for reads.
    token_stalls: Vec<u64>,
    /// Where decoding's time went.
    pace: Pace,
}

impl Sums {
    fn add(&mut self, tokens: usize, seconds: f64, before: &CacheStats, after: &CacheStats) {
        let (b, a) = (before.total(), after.total());
        self.tok_s.push(tokens as f64 / seconds);
        self.seconds += seconds;
        self.tokens += tokens as u64;
        self.hit += a.hit - b.hit;
        self.late += a.late - b.late;
        self.miss += a.miss - b.miss;
        self.demand_bytes += a.demand_bytes - b.demand_bytes;
        self.prefetches += after.prefetches - before.prefetches;
        self.prefetch_bytes += after.prefetch_bytes - before.prefetch_bytes;
        self.prefetch_useful += after.prefetch_useful - before.prefetch_useful;
        self.prefetch_wasted += after.prefetch_wasted - before.prefetch_wasted;
        self.stall_ns += a.stall_ns - b.stall_ns;
    }

    /// The rate of what a token reads, `token_bytes`, as a share of a plain read's.
    fn share_of_memory(&self, token_bytes: f64) -> Option<f64> {
        let shares: Vec<_> = self.tok_s.iter().zip(&self.memory).map(|(t, rate)| t * token_bytes / rate).collect();
        median(&shares)
    }

    /// Bytes that a token needed and did not find in memory, whoever asked for them first.
    fn needed_bytes(&self) -> Option<f64> {
        let a_guess = if self.prefetches > 0 { self.prefetch_bytes as f64 / self.prefetches as f64 } else { 0.0 };
        let all = self.demand_bytes as f64 + a_guess * self.prefetch_useful as f64;
        (self.tokens > 0).then(|| all / self.tokens as f64)
    }
}

/// The median, if there is any sample.
fn median(samples: &[f64]) -> Option<f64> {
    (!samples.is_empty()).then(|| Rates::new(samples).median)
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    let path = args.model.clone().or(args.file.clone()).map_or_else(model_file::find, Ok)?;
    let tests = Test::all(args);
    let mut report = Report::new(args.form(), Out::new());
    let threads: Vec<_> = if args.threads.is_empty() { vec![None] } else { args.threads.iter().map(Some).collect() };
    let (mut failed, mut bounds) = (false, Bounds::default());
    for threads in threads {
        for &budget in &args.memory {
            let gguf = model_file::open(&path)?;
            // In a sweep the budgets that are too small cost their rows, not the others'.
            match setup(args, gguf, &tests, (budget, threads.copied()), &mut bounds, &mut report) {
                Err(Stop::Error(error)) if args.memory.len() > 1 => note(format_args!("{error}")),
                ended => {
                    ended?;
                    continue;
                }
            }
            failed = true;
        }
    }
    report.finish()?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs all tests within one budget on so many threads.
fn setup(
    args: &Args,
    gguf: Gguf,
    tests: &[Test],
    (memory, threads): (Memory, Option<usize>),
    bounds: &mut Bounds,
    report: &mut Report,
) -> Result<(), Stop> {
    let mut tokens = source(args, &gguf)?;
    let blueprint = arch::blueprint(&gguf)?;
    let facts = Facts::new(&gguf, &blueprint, memory)?;
    let store = ExpertStore::new(&gguf, blueprint.experts())?;
    let n_ctx = tests.iter().map(|t| t.depth + t.tokens).max().unwrap_or(0);
    let n_ctx = n_ctx.max(args.warmup).max(args.warmup_prompt).max(1);
    let memory_bytes = memory.bytes(facts.model_bytes);
    let options = Options { memory_bytes, threads, ..args.modes.options(n_ctx)? };
    warn_of_budget(&gguf, &options, false);
    // What an earlier setup held does not count.
    let (mut peak_is_ours, mut peak) = (machine::reset_peak_rss(), None);
    let mut session = {
        let bar = Progress::bytes("loading", false);
        Session::open(gguf, &options, &mut |done, total| bar.set(done, total))?
    };
    if args.warmup_prompt > 0 {
        session.feed(&tokens.take(args.warmup_prompt), &mut |_| {})?;
    }
    for &test in tests {
        let sums = measure(args, test, &mut session, &mut tokens)?;
        if peak_is_ours {
            peak = peak.max(machine::peak_rss_bytes());
        }
        let needed = sums.needed_bytes();
        let mut row = row(args, test, &session, &facts, sums, peak)?;
        if row.bytes_read_per_token > Some(0.0) {
            if !args.probe.is_zero() {
                row.probed_bytes_per_second = drive(row.io, row.io_depth, &store, args.probe);
            }
            if test.work == Work::Decode && row.read_mb_s.is_none() {
                // Nobody waited, so that the run's reads have no times of their own.
                let probed = row.probed_bytes_per_second;
                let alone = || path(row.io, row.io_depth, &store, args.probe).or(row.read_bytes_per_second);
                row.read_mb_s = probed.or_else(alone).map(|rate| rate / 1e6);
                row.read_latency_us = row.read_mb_s.map(|_| 0.0);
            }
            // Its buffers are not the session's.
            peak_is_ours &= machine::reset_peak_rss();
        }
        bounds.complete(&mut row, needed);
        report.row(&row)?;
    }
    Ok(())
}

fn source(args: &Args, gguf: &Gguf) -> Result<Tokens> {
    if args.text.is_empty() {
        return Ok(Tokens::Random(args.seed, arch::blueprint(gguf)?.n_vocab));
    }
    let tokenizer = Tokenizer::from_gguf(gguf)?;
    let text = |file: &PathBuf| {
        let tokens = tokenizer.encode(&read_text(file, &Limit::of_texts())?, true, false);
        if tokens.is_empty() {
            return Err(hotset::Error::file(file, "the text is empty"));
        }
        Ok((tokens, 0))
    };
    Ok(Tokens::Texts(args.text.iter().map(text).collect::<Result<_>>()?, 0))
}

/// The warm-up of `test`, then its repetitions.
fn measure(args: &Args, test: Test, session: &mut Session, tokens: &mut Tokens) -> Result<Sums> {
    if args.warmup > 0 {
        session.reset();
        work(test.work, session, &tokens.take(args.warmup), &mut Vec::new())?;
    }
    let n_stall = if test.work == Work::Decode { args.reps * test.tokens } else { 0 };
    let pace = *session.pace();
    let mut sums = Sums { token_stalls: Vec::with_capacity(n_stall), ..Sums::default() };
    let bar = Progress::tokens("bench", false);
    for i in 0..args.reps {
        session.reset();
        tokens.turn();
        let depth = tokens.take(test.depth);
        for batch in depth.chunks(session.plan().n_batch) {
            session.fill(batch)?;
        }
        let list = tokens.take(test.tokens);
        let (before, start) = (*session.stats(), Instant::now());
        work(test.work, session, &list, &mut sums.token_stalls)?;
        sums.add(list.len(), start.elapsed().as_secs_f64(), &before, session.stats());
        if test.work == Work::Decode && !args.probe.is_zero() {
            sums.memory.extend(session.memory_rate(args.probe.min(MEMORY_PROBE)));
        }
        bar.set(((i + 1) * test.tokens) as u64, (args.reps * test.tokens) as u64);
    }
    sums.pace = session.pace().since(&pace);
    Ok(sums)
}

/// Runs the tokens; of decoded ones, each one's stall goes to `stalls`.
fn work(work: Work, session: &mut Session, tokens: &[u32], stalls: &mut Vec<u64>) -> Result<()> {
    if work == Work::Prompt {
        return session.feed(tokens, &mut |_| {}).map(drop);
    }
    for &token in tokens {
        let before = session.stats().decode.stall_ns;
        session.decode(token)?;
        stalls.push(session.stats().decode.stall_ns - before);
    }
    Ok(())
}

/// The `percent`-th percentile of an ordered list in milliseconds (nearest rank); `None` of nothing.
fn percentile_ms(ordered: &[u64], percent: usize) -> Option<f64> {
    let rank = (ordered.len() * percent).div_ceil(100).max(1);
    ordered.get(rank - 1).map(|&ns| ns as f64 / 1e6)
}

/// What a row says of the model and the budget, read before the session takes the file.
struct Facts {
    model_bytes: u64,
    n_params: u64,
    /// Of the weights that a token touches.
    token_bytes: f64,
    expert_type: Option<String>,
    memory: String,
}

impl Facts {
    fn new(gguf: &Gguf, blueprint: &Blueprint, memory: Memory) -> Result<Self> {
        let mut types: Vec<(GgmlType, u64)> = Vec::new();
        for t in blueprint.experts().flat_map(ExpertSet::tensors) {
            match types.iter_mut().find(|(ty, _)| *ty == t.ty) {
                Some((_, sum)) => *sum += t.bytes,
                None => types.push((t.ty, t.bytes)),
            }
        }
        Ok(Self {
            model_bytes: file_bytes(gguf),
            n_params: gguf.tensors().iter().map(|t| t.dims.iter().product::<u64>()).sum(),
            token_bytes: blueprint.touched().iter().map(|of_type| of_type.bytes).sum(),
            expert_type: types.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(ty, _)| ty.to_string()),
            memory: memory.to_string(),
        })
    }
}

fn row(args: &Args, test: Test, session: &Session, facts: &Facts, mut sums: Sums, peak: Option<u64>) -> Result<Row> {
    sums.token_stalls.sort_unstable();
    let stall = |percent| percentile_ms(&sums.token_stalls, percent);
    let (plan, blueprint) = (session.plan(), session.blueprint());
    let (io, policy, prefetch) = session.modes();
    let rates = Rates::new(&sums.tok_s);
    let requests = sums.hit + sums.late + sums.miss;
    let share = |n: u64| (requests > 0).then(|| n as f64 / requests as f64);
    let profile = Profile::of(&sums.pace, test.name(), session.io_depth());
    let a_token = |n: u64| (sums.tokens > 0).then(|| n as f64 / sums.tokens as f64);
    // The keys and values of all tokens before it, and its own.
    let context = test.depth as f64 + (test.tokens + 1) as f64 / 2.0;
    let context_bytes = (test.work == Work::Decode).then(|| context * plan.kv_bytes as f64 / plan.n_ctx as f64);
    Ok(Row {
        version: env!("CARGO_PKG_VERSION"),
        model: session.path().display().to_string(),
        arch: blueprint.arch,
        model_bytes: facts.model_bytes,
        n_params: facts.n_params,
        n_layer: blueprint.n_layer,
        n_expert: blueprint.n_expert,
        n_expert_used: blueprint.n_expert_used(),
        expert_type: facts.expert_type.clone(),
        memory: facts.memory.clone(),
        budget_bytes: plan.budget_bytes,
        smallest_bytes: plan.smallest_bytes,
        full_bytes: plan.full_bytes,
        peak_rss_bytes: peak,
        slots: plan.slots.iter().sum(),
        experts: blueprint.n_expert * blueprint.n_moe(),
        threads: session.threads(),
        isa: session.isa(),
        kv: kv_name(args.modes.kv),
        io,
        io_depth: session.io_depth(),
        io_reason: session.io_reason().map(str::to_owned),
        policy,
        prefetch,
        prefetch_share: session.prefetch_share(),
        scope: plan.scope.name(),
        n_batch: plan.n_batch,
        n_ctx: plan.n_ctx,
        tokens: if args.text.is_empty() { "random" } else { "text" },
        seed: args.text.is_empty().then_some(args.seed),
        test: test.name(),
        n_prompt: if test.work == Work::Prompt { test.tokens } else { 0 },
        n_gen: if test.work == Work::Decode { test.tokens } else { 0 },
        n_depth: test.depth,
        warmup: args.warmup,
        reps: args.reps,
        median_tok_s: rates.median,
        mean_tok_s: rates.mean,
        stddev_tok_s: rates.stddev,
        min_tok_s: rates.min,
        max_tok_s: rates.max,
        hit_rate: share(sums.hit),
        late_rate: share(sums.late),
        demand_bytes_per_token: a_token(sums.demand_bytes),
        prefetch_bytes_per_token: a_token(sums.prefetch_bytes),
        bytes_read_per_token: a_token(sums.demand_bytes + sums.prefetch_bytes),
        read_bytes_per_second: (sums.seconds > 0.0)
            .then(|| (sums.demand_bytes + sums.prefetch_bytes) as f64 / sums.seconds),
        probed_bytes_per_second: None,
        read_share_of_probed: None,
        weight_bytes_per_token: facts.token_bytes,
        context_bytes_per_token: context_bytes,
        memory_bytes_per_second: median(&sums.memory),
        share_of_memory: sums.share_of_memory(facts.token_bytes + context_bytes.unwrap_or(0.0)),
        bound_tok_s: None,
        share_of_bound: None,
        prefetch_useful_per_token: a_token(sums.prefetch_useful),
        prefetch_wasted_per_token: a_token(sums.prefetch_wasted),
        stall_ms_per_token: a_token(sums.stall_ns).map(|ns| ns / 1e6),
        stall_ms_p50: stall(50),
        stall_ms_p95: stall(95),
        stall_ms_p99: stall(99),
        layer_us: profile.layer_us,
        layer_wait_us: profile.layer_wait_us,
        shared_us: profile.shared_us,
        hand_out_us: profile.hand_out_us,
        expert_us: profile.expert_us,
        wake_us: profile.wake_us,
        token_us: profile.token_us,
        read_latency_us: profile.read_latency_us,
        read_mb_s: profile.read_mb_s,
        samples_tok_s: sums.tok_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_tokens_go_on_and_texts_take_turns() {
        let (mut a, mut b) = (Tokens::Random(3, 1000), Tokens::Random(3, 1000));
        let first = a.take(64);
        assert_eq!(first, b.take(64));
        assert_ne!(first, a.take(64));
        assert!(first.iter().all(|&t| t < 1000) && first.iter().any(|&t| t >= 500));
        let mut tokens = Tokens::Texts(vec![(vec![1, 2, 3], 0), (vec![7, 8], 0)], 0);
        let mut turn = |n| (tokens.take(n), tokens.turn()).0;
        assert_eq!([turn(2), turn(3), turn(2), turn(1)], [vec![1, 2], vec![7, 8, 7], vec![3, 1], vec![8]]);
    }

    #[test]
    fn the_share_of_memory_is_the_median_of_each_repetition_beside_its_own_read() {
        let sums = Sums { tok_s: vec![10.0, 20.0, 30.0], memory: vec![100.0, 400.0, 300.0], ..Sums::default() };
        assert_eq!(sums.share_of_memory(8.0), Some(0.8));
        assert_eq!(Sums { memory: vec![], ..sums }.share_of_memory(8.0), None);
    }

    #[test]
    fn percentiles_are_of_nearest_rank() {
        let ms: Vec<u64> = (1..=200).map(|n| n * 1_000_000).collect();
        assert_eq!([50, 95, 99].map(|p| percentile_ms(&ms, p)), [Some(100.0), Some(190.0), Some(198.0)]);
        assert_eq!((percentile_ms(&ms[..1], 99), percentile_ms(&[], 50)), (Some(1.0), None));
    }

    #[test]
    fn tests_have_llama_benchs_names() {
        let name = |work, depth| Test { work, tokens: 64, depth }.name();
        assert_eq!((name(Work::Prompt, 0), name(Work::Decode, 512)), ("pp64".into(), "tg64 @ d512".into()));
    }
}
