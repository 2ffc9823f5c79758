//! A replay's counters and virtual times equal the live run's, for every policy, budget, scope and prefetcher.
//!
//! The live run is a whole session on a model of four small layers, whose engine reads the file but takes the time that the
//! simulated drive says, and whose trace sink lets a constant time pass for each event. Hundreds of settings run on the model,
//! so it is no larger than it has to be, and computed by the reference, which costs least where nothing is optimised: what a
//! cache does depends on nothing but choices.

mod common;

use std::{
    collections::HashMap,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex},
};

use common::{
    dice::Dice,
    tiny::{self, Tiny},
};
use hotset::{
    arch,
    backend::{Backend, Reference},
    expert::{CacheStats, ExpertStore, LayerHits, Scope},
    gguf::Gguf,
    io::{Done, Extents, Files, IoEngine, Layout, Read, SimClock, SimIo},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
    session::{Options, Session},
    simulate::{self, Compute, Conditions, Detail, Drive, Setting, SimPolicy},
    trace::{
        LayerEvent, TraceSink,
        file::{Header, TraceWriter},
    },
};

const DRIVES: [Drive; 2] =
    [Drive { latency_ns: 3_000, bytes_per_us: 4, depth: 1 }, Drive { latency_ns: 9_000, bytes_per_us: 6, depth: 3 }];
const EVENT_NS: u64 = 20_000;

/// [`SimIo`]'s time, the file's bytes.
struct Filled {
    sim: SimIo,
    files: Files,
    reads: HashMap<usize, Extents>,
}

impl Filled {
    fn fill(&mut self, done: Option<Done>) -> Option<Done> {
        let mut done = done?;
        for (i, e) in self.reads.remove(&done.tag).unwrap().iter().enumerate() {
            self.files[usize::from(e.file)].1.read_exact_at(done.buf.part_mut(i), e.offset).unwrap();
        }
        Some(done)
    }
}

impl IoEngine for Filled {
    fn name(&self) -> &'static str {
        "filled"
    }
    fn depth(&self) -> usize {
        self.sim.depth()
    }
    fn layout(&self) -> Layout {
        Layout::Lines
    }
    fn submit(&mut self, read: Read) {
        self.reads.insert(read.tag, read.extents);
        self.sim.submit(read);
    }
    fn promote(&mut self, tag: usize) {
        self.sim.promote(tag);
    }
    fn wait(&mut self) -> Option<Done> {
        let done = self.sim.wait();
        self.fill(done)
    }
    fn poll(&mut self) -> Option<Done> {
        let done = self.sim.poll();
        self.fill(done)
    }
    fn now_ns(&self) -> u64 {
        self.sim.now_ns()
    }
}

/// Records, and computes for a constant time.
#[derive(Clone)]
struct Sink(Arc<Mutex<TraceWriter>>, SimClock);

impl TraceSink for Sink {
    fn record(&mut self, event: LayerEvent<'_>) {
        self.0.lock().unwrap().record(event);
        self.1.advance(EVENT_NS);
    }
    fn wants_scores(&self) -> bool {
        true
    }
}

const N_LAYER: usize = 4;
const N_EXPERT: u32 = 16;
const N_USED: u32 = 3;
const N_FF: u64 = 32;
const N_TOKENS: usize = 48;

/// Writes the model.
fn write_model(path: &Path) {
    let mut tiny = Tiny::new("qwen3moe");
    let layer: Vec<_> = tiny.tensors.iter().filter(|t| t.name.starts_with("blk.0.")).cloned().collect();
    tiny.tensors.retain(|t| !t.name.starts_with("blk."));
    tiny.set("qwen3moe.block_count", N_LAYER as u32);
    tiny.set("qwen3moe.expert_count", N_EXPERT);
    tiny.set("qwen3moe.expert_used_count", N_USED);
    tiny.set("qwen3moe.feed_forward_length", N_FF as u32);
    for il in 0..N_LAYER {
        for tensor in &layer {
            let mut dims = tensor.dims.clone();
            if tensor.name.contains("_exps") || tensor.name.contains("gate_inp") {
                *dims.last_mut().unwrap() = N_EXPERT.into();
            }
            dims.iter_mut().filter(|n| **n == tiny::N_FF).for_each(|n| *n = N_FF);
            tiny.add(&tensor.name.replace("blk.0.", &format!("blk.{il}.")), &dims);
        }
    }
    tiny.write(path);
}

fn header(gguf: &Gguf) -> Header {
    let c = arch::blueprint(gguf).unwrap();
    let store = ExpertStore::new(gguf, c.experts()).unwrap();
    Header {
        model: "reference".to_owned(),
        model_id: String::new(),
        source: "a test".to_owned(),
        n_layer: c.n_moe(),
        n_expert: c.n_expert,
        n_expert_used: c.n_expert_used(),
        expert_bytes: store.layers().iter().map(|l| l.expert_bytes()).collect(),
        weights: true,
        lookahead: "the engine's".to_owned(),
        lookahead_ranks: (2 * c.n_expert_used()).min(c.n_expert),
        prompts: Vec::new(),
    }
}

/// What a live run counted, where its time went, the slots that it had, and when it ended. The layers' counts add up.
fn live(
    backend: impl Backend,
    model: &Path,
    trace: &Path,
    drive: Drive,
    options: Options,
) -> (CacheStats, Detail, Vec<usize>, u64) {
    let gguf = Gguf::open(model).unwrap();
    let sim = SimIo::new(drive.latency_ns, drive.bytes_per_us).with_depth(drive.depth);
    let clock = sim.clock();
    if trace.exists() {
        std::fs::remove_file(trace).unwrap();
    }
    let sink = Sink(Arc::new(Mutex::new(TraceWriter::create(trace, header(&gguf)).unwrap())), clock.clone());
    let engine = |files| Ok(Box::new(Filled { sim, files, reads: HashMap::new() }) as Box<dyn IoEngine>);
    let mut session =
        Session::with_engine(gguf, &options, backend, Box::new(sink.clone()), engine, &mut |_, _| {}).unwrap();
    let mut dice = Dice(8);
    let tokens: Vec<u32> = (0..N_TOKENS).map(|_| dice.below(tiny::N_VOCAB as usize) as u32).collect();
    // A prompt that leaves slots free, and one of several batches.
    for prompt in [2, 8] {
        session.feed(&tokens[..prompt], &mut |_| {}).unwrap();
        tokens[prompt..].iter().for_each(|&t| drop(session.decode(t).unwrap().to_vec()));
        session.reset();
    }
    sink.0.lock().unwrap().flush().unwrap();
    let (stats, layers) = (*session.stats(), session.layer_stats().to_vec());
    let sum = |of: fn(&LayerHits) -> u64| layers.iter().map(of).sum::<u64>();
    let sums = (sum(|l| l.hit), sum(|l| l.late), sum(|l| l.miss));
    assert_eq!(sums, (stats.decode.hit, stats.decode.late, stats.decode.miss));
    let detail = Detail { layers, pace: *session.pace(), ..Detail::default() };
    (stats, detail, session.plan().slots.clone(), clock.now_ns())
}

/// Budgets in which every policy and prefetcher has room for what it learns, with a backend that takes what it takes.
fn budgets<B: Backend>(model: &Path, options: Options, backend: impl Fn() -> B) -> [u64; 3] {
    let plans = PrefetchKind::ALL.iter().map(|&prefetch| {
        let options = Options { prefetch, policy: PolicyKind::Echo, ..options.clone() };
        let gguf = Gguf::open(model).unwrap();
        let session = Session::with_backend(gguf, &options, backend(), Box::new(()), &mut |_, _| {}).unwrap();
        (session.plan().smallest_bytes, session.plan().full_bytes)
    });
    let (least, full) = plans.max().unwrap();
    [least, least + (full - least) / 4, least + (full - least) / 4 * 3]
}

/// What has happened in all runs.
#[derive(Default)]
struct Seen {
    stalls: u64,
    late: u64,
    filled: u64,
    prefetches: HashMap<&'static str, u64>,
}

impl Seen {
    /// Runs on the model in the options' way and replays what was recorded: all counters and times are equal.
    fn check(&mut self, backend: impl Backend, folder: &Path, drive: Drive, options: Options) {
        let trace = folder.join("run.trace");
        let (stats, lived, slots, end_ns) = live(backend, &folder.join("m.gguf"), &trace, drive, options.clone());
        let (policy, prefetch) = (SimPolicy::Live(options.policy), options.prefetch);
        let scope = options.scope.expect("a replay is told of it");
        let setting = Setting {
            policy,
            scope,
            slots: &slots,
            fill: options.fill,
            prefetch,
            vram: None,
            conditions: Conditions { drive, compute: Compute { shared_ns: EVENT_NS, ..Compute::default() }, warmup: 0 },
        };
        let (replayed, detail) = simulate::replay_in_detail(&trace, &setting, None).unwrap();
        let what = format!(
            "{} {} {} in {:?} on {drive:?}, fill {}",
            scope.name(),
            policy.name(),
            prefetch.name(),
            options.memory_bytes,
            options.fill
        );
        assert_eq!(replayed.stats, stats, "{what}");
        assert_eq!(detail.layers, lived.layers, "{what}: layer by layer");
        assert_eq!(detail.pace, lived.pace, "{what}: where time went");
        assert_eq!(replayed.prompt_ns + replayed.decode_ns, end_ns, "{what}: the end");
        self.stalls += u64::from(stats.decode.stall_ns > 0);
        self.late += stats.decode.late;
        assert!(options.fill || stats.fill_reads == 0, "{what}: nothing is filled unasked");
        self.filled += stats.fill_reads;
        *self.prefetches.entry(prefetch.name()).or_insert(0) += stats.prefetches;
    }

    fn happened(self) {
        assert!(self.stalls > 3 && self.late > 0, "nothing happened: {} {}", self.stalls, self.late);
        assert!(self.filled > 0, "free slots fill");
        for (name, n) in self.prefetches {
            assert_eq!(n == 0, name == "off", "{name} read {n} ahead");
        }
    }
}

/// How all run that are compared.
fn base(scope: Scope) -> Options {
    Options {
        n_ctx: Some(N_TOKENS),
        process_bytes: Some(0),
        kv: GgmlType::F32,
        scope: Some(scope),
        n_batch: Some(4),
        ..Options::default()
    }
}

/// The model, in a folder of its own.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_model(&folder.path().join("m.gguf"));
    folder
}

/// Every policy with every prefetcher in every scope. Budgets and drives take turns, so that each pair of policy and
/// prefetcher runs in each budget and on each drive, too, as does each pair of either and scope. Free slots fill in every other
/// run.
#[test]
fn a_replay_equals_the_live_run() {
    let folder = folder();
    let scopes = [Scope::Layer, Scope::Size, Scope::Global];
    let budgets = scopes.map(|scope| budgets(&folder.path().join("m.gguf"), base(scope), || Reference));
    let mut seen = Seen::default();
    for (i, &policy) in PolicyKind::ALL.iter().enumerate() {
        for (j, &prefetch) in PrefetchKind::ALL.iter().enumerate() {
            for (k, &scope) in scopes.iter().enumerate() {
                let memory = budgets[k][(i + j + k) % 3];
                let fill = (i + j + k / 2) % 2 == 1;
                let options = Options { memory_bytes: Some(memory), policy, prefetch, fill, ..base(scope) };
                seen.check(Reference, folder.path(), DRIVES[(i + j / 3 + k) % 2], options);
            }
        }
    }
    assert!(seen.stalls > 30, "they wait for the drive: {}", seen.stalls);
    seen.happened();
}

/// The same in seconds for what finds past tokens alike: eviction and prefetching by the same matches.
#[test]
fn a_replay_finds_the_past_tokens_that_the_live_run_found() {
    let folder = folder();
    let mut seen = Seen::default();
    for scope in [Scope::Layer, Scope::Size, Scope::Global] {
        let [_, small, large] = budgets(&folder.path().join("m.gguf"), base(scope), || Reference);
        for prefetch in [PrefetchKind::Off, PrefetchKind::Votes, PrefetchKind::Both, PrefetchKind::AutoVotes] {
            let (policy, fill) = (PolicyKind::Echo, matches!(prefetch, PrefetchKind::Off | PrefetchKind::Votes));
            let memory = if fill { large } else { small };
            let options = Options { memory_bytes: Some(memory), policy, prefetch, fill, ..base(scope) };
            seen.check(Reference, folder.path(), DRIVES[0], options);
        }
    }
    let [memory, ..] = budgets(&folder.path().join("m.gguf"), base(Scope::Layer), || common::isa::cpu(1));
    let options = Options { memory_bytes: Some(memory), policy: PolicyKind::Echo, ..base(Scope::Layer) };
    seen.check(common::isa::cpu(1), folder.path(), DRIVES[0], options);
    seen.happened();
}
