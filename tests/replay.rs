//! A replay's counters and virtual times equal the live run's, for every policy, budget, scope and prefetcher.
//!
//! The live run is a whole session on a real model, whose engine reads the file but takes the time that the simulated
//! drive says, and whose trace sink lets a constant time pass for each event.

mod common;

use std::{
    collections::HashMap,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use common::ref_models::{golden, ref_model};
use hotset::{
    arch,
    backend::cpu::Cpu,
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
    fn horizon(&self) -> u16 {
        2
    }
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
        lookahead2_ranks: (2 * c.n_expert_used()).min(c.n_expert),
        prompts: Vec::new(),
    }
}

/// What a live run counted, where its time went, the slots that it had, and when it ended. The layers' counts add up.
fn live(model: &Path, trace: &Path, drive: Drive, options: Options) -> (CacheStats, Detail, Vec<usize>, u64) {
    let gguf = Gguf::open(model).unwrap();
    let sim = SimIo::new(drive.latency_ns, drive.bytes_per_us).with_depth(drive.depth);
    let clock = sim.clock();
    if trace.exists() {
        std::fs::remove_file(trace).unwrap();
    }
    let sink = Sink(Arc::new(Mutex::new(TraceWriter::create(trace, header(&gguf)).unwrap())), clock.clone());
    let engine = |files| Ok(Box::new(Filled { sim, files, reads: HashMap::new() }) as Box<dyn IoEngine>);
    let cpu = Cpu::new(1).unwrap();
    let mut session =
        Session::with_engine(gguf, &options, cpu, Box::new(sink.clone()), engine, &mut |_, _| {}).unwrap();
    let tokens: Vec<u32> = golden("qwen3moe", "tokens").i32s().unwrap().iter().map(|&t| t as u32).collect();
    session.feed(&tokens[..8], &mut |_| {}).unwrap();
    for _ in 0..2 {
        tokens[8..].iter().take(session.plan().n_ctx - 8).for_each(|&t| drop(session.decode(t).unwrap().to_vec()));
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

/// Budgets in which every prefetcher has room for what it learns.
fn budgets(model: &Path, options: Options) -> [u64; 3] {
    let options = Options { prefetch: PrefetchKind::History, ..options };
    let session = Session::open(Gguf::open(model).unwrap(), &options, &mut |_, _| {}).unwrap();
    let (least, full) = (session.plan().smallest_bytes, session.plan().full_bytes);
    [least, least + (full - least) / 4, least + (full - least) / 2]
}

#[test]
fn a_replay_equals_the_live_run() {
    let model: PathBuf = ref_model("qwen3moe");
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("run.trace");
    let (mut stalls, mut late, mut prefetches) = (0, 0, HashMap::new());
    for scope in [Scope::Layer, Scope::Size, Scope::Global] {
        let base = Options {
            n_ctx: Some(64),
            process_bytes: Some(0),
            kv: GgmlType::F32,
            scope: Some(scope),
            n_batch: Some(4),
            ..Options::default()
        };
        // Echo holds the most beside its slots.
        for memory in budgets(&model, Options { policy: PolicyKind::Echo, ..base }) {
            for &policy in PolicyKind::ALL {
                for (&prefetch, drive) in PrefetchKind::ALL.iter().flat_map(|kind| DRIVES.map(|drive| (kind, drive))) {
                    let options = Options { memory_bytes: Some(memory), policy, prefetch, ..base };
                    let (stats, lived, slots, end_ns) = live(&model, &trace, drive, options);
                    let compute = Compute { shared_ns: EVENT_NS, ..Compute::default() };
                    let policy = SimPolicy::Live(policy);
                    let setting = Setting {
                        policy,
                        scope,
                        slots: &slots,
                        transient: 0,
                        prefetch,
                        conditions: Conditions { drive, compute, warmup: 0 },
                    };
                    let (replayed, detail) = simulate::replay_in_detail(&trace, &setting, None).unwrap();
                    let what =
                        format!("{} {} {} in {memory} on {drive:?}", scope.name(), policy.name(), prefetch.name());
                    assert_eq!(replayed.stats, stats, "{what}");
                    assert_eq!(detail.layers, lived.layers, "{what}: layer by layer");
                    assert_eq!(detail.pace, lived.pace, "{what}: where time went");
                    assert_eq!(replayed.prompt_ns + replayed.decode_ns, end_ns, "{what}: the end");
                    stalls += u64::from(stats.decode.stall_ns > 0);
                    late += stats.decode.late;
                    *prefetches.entry(prefetch.name()).or_insert(0) += stats.prefetches;
                }
            }
        }
    }
    assert!(stalls > 30 && late > 0, "nothing happened: {stalls} {late}");
    for (name, n) in prefetches {
        assert_eq!(n == 0, name == "off", "{name} read {n} ahead");
    }
}
