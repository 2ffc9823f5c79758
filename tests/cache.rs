//! The expert cache against a naive model of it, and its promises one by one: each wanted expert handed out once with
//! its own bytes, each read once, prefetches out of everybody's way, counters that add up.

mod common;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
};

use common::{
    dice::Dice,
    dice::no_hang,
    tiny::{Tensor, Tiny, stacked_experts},
};
use hotset::{
    expert::{ExpertCache, ExpertStore, Scope},
    gguf::Gguf,
    id::ExpertId,
    io::{Done, IoEngine, IoKind, Layout, Priority, Read, SimIo},
    policy::PolicyKind,
    prefetch::Reads,
    quant::{GgmlType, QMat},
    trace::{LayerEvent, Phase, Routed},
};

const N_LAYER: usize = 3;
const N_EXPERT: usize = 8;
const N_USED: usize = 2;
const N_EMBD: usize = 8;

/// What every element of a projection (gate 0, up 1, down 2) of an expert is.
fn code(id: ExpertId, role: usize) -> f32 {
    (1000 * (usize::from(id.layer) + 1) + 10 * usize::from(id.expert) + role) as f32
}

/// A file whose experts can be told apart by their bytes, wider from layer to layer.
fn store(folder: &Path) -> ExpertStore {
    let mut file = Tiny { meta: vec![("general.architecture".to_owned(), "test".into())], tensors: Vec::new() };
    for layer in 0..N_LAYER {
        let n_ff = 4 + layer;
        for (role, name) in ["gate", "up", "down"].iter().enumerate() {
            let [cols, rows] = if role == 2 { [n_ff, N_EMBD] } else { [N_EMBD, n_ff] };
            let ids = (0..N_EXPERT).map(|e| ExpertId { layer: layer as u16, expert: e as u16 });
            file.tensors.push(Tensor {
                name: format!("blk.{layer}.ffn_{name}_exps.weight"),
                dims: [cols, rows, N_EXPERT].map(|d| d as u64).to_vec(),
                ty: GgmlType::F32,
                bytes: ids.flat_map(|id| vec![code(id, role).to_le_bytes(); cols * rows]).flatten().collect(),
            });
        }
    }
    let path = folder.join("experts.gguf");
    file.write(&path);
    let gguf = Gguf::open(&path).unwrap();
    let sets: Vec<_> = (0..N_LAYER).map(|layer| stacked_experts(&gguf, layer)).collect();
    ExpertStore::new(&gguf, &sets).unwrap()
}

/// What an engine was told.
#[derive(Default)]
struct Log {
    /// (first byte of the expert, bytes, priority)
    submitted: Vec<(u64, u64, Priority)>,
    promoted: usize,
    in_flight: HashMap<usize, Priority>,
    most_prefetches: usize,
}

/// An engine that is listened to, and stays within the test's reach.
struct Probe<E> {
    inner: Arc<Mutex<E>>,
    log: Arc<Mutex<Log>>,
}

impl<E: IoEngine> Probe<E> {
    fn done(&self, done: Option<Done>) -> Option<Done> {
        let done = done?;
        self.log.lock().unwrap().in_flight.remove(&done.tag).expect("a tag comes back once");
        Some(done)
    }
}

impl<E: IoEngine> IoEngine for Probe<E> {
    fn name(&self) -> &'static str {
        self.inner.lock().unwrap().name()
    }
    fn depth(&self) -> usize {
        self.inner.lock().unwrap().depth()
    }
    fn layout(&self) -> Layout {
        self.inner.lock().unwrap().layout()
    }
    fn submit(&mut self, read: Read) {
        let mut log = self.log.lock().unwrap();
        log.submitted.push((read.extents[0].offset, read.extents.bytes(), read.priority));
        assert!(log.in_flight.insert(read.tag, read.priority).is_none(), "a slot is filled by one read at a time");
        let prefetches = log.in_flight.values().filter(|p| **p == Priority::Prefetch).count();
        log.most_prefetches = log.most_prefetches.max(prefetches);
        drop(log);
        self.inner.lock().unwrap().submit(read);
    }
    fn promote(&mut self, tag: usize) {
        let mut log = self.log.lock().unwrap();
        log.promoted += 1;
        *log.in_flight.get_mut(&tag).expect("only what is in flight is promoted") = Priority::Demand;
        drop(log);
        self.inner.lock().unwrap().promote(tag);
    }
    fn wait(&mut self) -> Option<Done> {
        let done = self.inner.lock().unwrap().wait();
        self.done(done)
    }
    fn poll(&mut self) -> Option<Done> {
        let done = self.inner.lock().unwrap().poll();
        self.done(done)
    }
    fn now_ns(&self) -> u64 {
        self.inner.lock().unwrap().now_ns()
    }
}

/// `Box<dyn IoEngine>` as an engine of its own, for [`Probe`].
struct Boxed(Box<dyn IoEngine>);

impl IoEngine for Boxed {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn depth(&self) -> usize {
        self.0.depth()
    }
    fn layout(&self) -> Layout {
        self.0.layout()
    }
    fn submit(&mut self, read: Read) {
        self.0.submit(read);
    }
    fn promote(&mut self, tag: usize) {
        self.0.promote(tag);
    }
    fn wait(&mut self) -> Option<Done> {
        self.0.wait()
    }
    fn poll(&mut self) -> Option<Done> {
        self.0.poll()
    }
    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Engine {
    Sim,
    Threads(IoKind, usize),
}

impl Engine {
    fn is_allowed(self) -> bool {
        !matches!(self, Engine::Threads(kind, _) if !common::read_paths().contains(&kind))
    }
}

/// A cache under observation.
struct Bench {
    cache: ExpertCache,
    log: Arc<Mutex<Log>>,
    sim: Option<Arc<Mutex<SimIo>>>,
    /// Expert by its first byte in the file.
    ids: HashMap<u64, ExpertId>,
    folder: tempfile::TempDir,
}

/// A request of the simulated disk takes this long, whatever its size.
const LATENCY_NS: u64 = 1000;

impl Bench {
    fn new(engine: Engine, scope: Scope, slots: &[usize]) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let log = Arc::new(Mutex::new(Log::default()));
        let ids = every_id().map(|id| (store.extents(id)[0].offset, id)).collect();
        let (sim, io): (_, Box<dyn IoEngine>) = match engine {
            Engine::Sim => {
                let inner = Arc::new(Mutex::new(SimIo::new(LATENCY_NS, u64::MAX)));
                (Some(inner.clone()), Box::new(Probe { inner, log: log.clone() }))
            }
            Engine::Threads(kind, threads) => {
                let inner = Arc::new(Mutex::new(Boxed(kind.build(store.files().clone(), threads).unwrap())));
                (None, Box::new(Probe { inner, log: log.clone() }))
            }
        };
        let cache = ExpertCache::new(store, scope, slots, PolicyKind::Lru, io).unwrap();
        Bench { cache, log, sim, ids, folder }
    }

    fn advance(&self, ns: u64) {
        if let Some(sim) = &self.sim {
            sim.lock().unwrap().advance(ns);
        }
    }

    /// Experts whose reads were submitted from the `from`-th on, with how.
    fn submitted(&self, from: usize) -> Vec<(ExpertId, Priority)> {
        let log = self.log.lock().unwrap();
        log.submitted[from..].iter().map(|(at, _, priority)| (self.ids[at], *priority)).collect()
    }

    fn residents(&self) -> Vec<ExpertId> {
        every_id().filter(|&id| self.cache.is_resident(id)).collect()
    }

    /// Runs the rest of an event: every distinct expert is handed out once, and shows its own bytes.
    fn drain(&mut self, routed: &[Routed]) {
        let (mut all, mut ready) = (Vec::new(), Vec::new());
        loop {
            self.cache.next_ready(&mut ready).unwrap();
            if ready.is_empty() {
                break;
            }
            if self.sim.is_none() {
                ready.iter().for_each(|&id| shows_its_own_bytes(&self.cache, id));
            }
            all.extend_from_slice(&ready);
        }
        all.sort_unstable();
        assert_eq!(all, distinct(routed));
    }

    fn run(&mut self, event: LayerEvent<'_>) {
        self.cache.request(event);
        self.drain(event.routed);
    }

    /// The counters against what the engine was told.
    fn counters_add_up(&self, wanted: u64) {
        let (stats, log) = (self.cache.stats(), self.log.lock().unwrap());
        let total = stats.total();
        assert_eq!(total.hit + total.late + total.miss, wanted);
        let of = |priority| {
            let reads = log.submitted.iter().filter(move |(_, _, p)| *p == priority);
            reads.fold((0, 0), |(n, sum), (_, bytes, _)| (n + 1, sum + bytes))
        };
        assert_eq!(of(Priority::Demand), (total.miss, total.demand_bytes));
        assert_eq!(of(Priority::Prefetch), (stats.prefetches, stats.prefetch_bytes));
        assert_eq!(stats.bytes_read(), total.demand_bytes + stats.prefetch_bytes);
        assert!(stats.prefetch_useful + stats.prefetch_wasted <= stats.prefetches);
        assert_eq!(stats.failed_reads, 0);
    }
}

fn every_id() -> impl Iterator<Item = ExpertId> {
    (0..N_LAYER as u16).flat_map(|layer| (0..N_EXPERT as u16).map(move |expert| ExpertId { layer, expert }))
}

fn id(layer: usize, expert: usize) -> ExpertId {
    ExpertId { layer: layer as u16, expert: expert as u16 }
}

fn shows_its_own_bytes(cache: &ExpertCache, id: ExpertId) {
    let mats = cache.get(id);
    for (role, mat) in [mats.gate.unwrap(), mats.up, mats.down].into_iter().enumerate() {
        let QMat { data, rows, cols, .. } = mat;
        assert_eq!(data.len(), 4 * rows * cols);
        let right = code(id, role).to_le_bytes();
        assert!(data.as_chunks::<4>().0.iter().all(|x| *x == right), "{id}: another expert's bytes");
    }
}

fn distinct(routed: &[Routed]) -> Vec<ExpertId> {
    let mut ids: Vec<_> = routed.iter().map(|r| r.id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn routed(layer: usize, experts: &[usize]) -> Vec<Routed> {
    experts.iter().map(|&e| Routed { id: id(layer, e), weight: 0.5 }).collect()
}

fn event(phase: Phase, routed: &[Routed]) -> LayerEvent<'_> {
    let n_tokens = if phase == Phase::Prompt { (routed.len() / N_USED).max(1) as u32 } else { 1 };
    LayerEvent { phase, first_token: 0, n_tokens, layer: routed[0].id.layer, routed, lookahead: &[] }
}

/// Rows of [`N_USED`] experts each: one, or up to a dozen for a prompt.
fn random_rows(dice: &mut Dice, layer: usize, phase: Phase) -> Vec<Routed> {
    let rows = if phase == Phase::Decode { 1 } else { 1 + dice.below(12) };
    (0..rows).flat_map(|_| routed(layer, &dice.choose(N_USED, N_EXPERT))).collect()
}

fn random_phase(dice: &mut Dice) -> Phase {
    if dice.below(5) == 0 { Phase::Prompt } else { Phase::Decode }
}

/// The same cache as a few lists: what is resident in each pool, the oldest first.
struct Naive {
    pools: Vec<(usize, Vec<ExpertId>)>,
    hits: u64,
    misses: u64,
}

impl Naive {
    fn new(slots: &[usize]) -> Naive {
        Naive { pools: slots.iter().map(|&n| (n, Vec::new())).collect(), hits: 0, misses: 0 }
    }

    fn run(&mut self, event: LayerEvent<'_>) {
        let n_pool = self.pools.len();
        let pool = if n_pool == 1 { 0 } else { usize::from(event.layer) };
        let (slots, residents) = &mut self.pools[pool];
        let rows = |id: ExpertId| event.routed.iter().filter(|r| r.id == id).count();
        let first = |id: ExpertId| event.routed.iter().position(|r| r.id == id);
        let mut wanted = distinct(event.routed);
        match event.phase {
            Phase::Decode => wanted.sort_by_key(|&id| first(id)),
            Phase::Prompt => wanted.sort_by_key(|&id| (rows(id), id)),
        }
        let (present, absent): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|id| residents.contains(id));
        self.hits += present.len() as u64;
        self.misses += absent.len() as u64;
        residents.retain(|id| !present.contains(id));
        residents.extend(present);
        for id in absent {
            if residents.len() == *slots {
                let shared = event.phase == Phase::Prompt && n_pool == 1;
                residents.remove(if shared { Self::victim_in_prompt(residents, *slots, event.layer) } else { 0 });
            }
            residents.push(id);
        }
    }

    /// In a prompt a layer that holds its share of the one pool, or eight slots, makes room among its own.
    fn victim_in_prompt(residents: &[ExpertId], slots: usize, layer: u16) -> usize {
        let held = |layer: u16| residents.iter().filter(|id| id.layer == layer).count();
        let share = (slots / N_LAYER).max(1);
        let own = residents.iter().position(|id| id.layer == layer);
        let rich = residents.iter().position(|id| id.layer != layer && held(id.layer) > share);
        let first = if held(layer) >= share.max(8) { own } else { rich.or(own) };
        first.unwrap_or(0)
    }

    fn residents(&self) -> Vec<ExpertId> {
        let mut all: Vec<_> = self.pools.iter().flat_map(|(_, list)| list).copied().collect();
        all.sort_unstable();
        all
    }
}

fn random_slots(dice: &mut Dice, scope: Scope) -> Vec<usize> {
    match scope {
        Scope::Layer => (0..N_LAYER).map(|_| N_USED + dice.below(N_EXPERT - N_USED + 1)).collect(),
        Scope::Size => panic!("all layers differ in size"),
        Scope::Global => vec![N_USED + dice.below(N_LAYER * N_EXPERT - N_USED + 1)],
    }
}

/// With one reader, reads end in their order and so do evictions: the naive model holds for every event. With several,
/// which expert of a prompt leaves first is up to the disk, so there are only single tokens.
fn same_as_naive(engine: Engine, scope: Scope, seed: u64, prompts: bool) {
    if !engine.is_allowed() {
        return;
    }
    let mut dice = Dice(seed);
    let slots = random_slots(&mut dice, scope);
    let (mut bench, mut naive) = (Bench::new(engine, scope, &slots), Naive::new(&slots));
    let mut wanted = 0;
    for i in 0..200 {
        let phase = if prompts { random_phase(&mut dice) } else { Phase::Decode };
        let rows = random_rows(&mut dice, i % N_LAYER, phase);
        let from = bench.log.lock().unwrap().submitted.len();
        bench.run(event(phase, &rows));
        naive.run(event(phase, &rows));
        wanted += distinct(&rows).len() as u64;
        let what = format!("seed {seed}, event {i}, {} slots {slots:?}", scope.name());
        let total = bench.cache.stats().total();
        assert_eq!((total.hit, total.late, total.miss), (naive.hits, 0, naive.misses), "{what}");
        assert_eq!(bench.residents(), naive.residents(), "{what}");
        let mut read: Vec<_> = bench.submitted(from).into_iter().map(|(id, _)| id).collect();
        let n = read.len();
        read.sort_unstable();
        read.dedup();
        assert_eq!(read.len(), n, "{what}: an expert was read twice in one event");
    }
    bench.counters_add_up(wanted);
    assert!(bench.cache.stats().total().miss > 0);
}

#[test]
fn behaves_as_a_naive_lru() {
    no_hang(|| {
        for scope in [Scope::Layer, Scope::Global] {
            for seed in 0..20 {
                same_as_naive(Engine::Sim, scope, seed, true);
            }
            for seed in 0..6 {
                same_as_naive(Engine::Threads(IoKind::Pread, 1), scope, 100 + seed, true);
                same_as_naive(Engine::Threads(IoKind::Mapped, 1), scope, 200 + seed, true);
                same_as_naive(Engine::Threads(IoKind::Pread, 3), scope, 300 + seed, false);
                same_as_naive(Engine::Threads(IoKind::Direct, 2), scope, 400 + seed, false);
                same_as_naive(Engine::Threads(IoKind::Uring, 4), scope, 500 + seed, false);
            }
        }
    });
}

/// The budget changes now and then: the cache behaves as a naive one that loses its oldest residents at once.
fn resizing_is_as_naive(engine: Engine, scope: Scope, seed: u64) {
    let mut dice = Dice(seed);
    let slots = random_slots(&mut dice, scope);
    let (mut bench, mut naive) = (Bench::new(engine, scope, &slots), Naive::new(&slots));
    for i in 0..200 {
        if dice.below(8) == 0 {
            let new: Vec<_> = slots.iter().map(|&n| N_USED + dice.below(n - N_USED + 1)).collect();
            bench.cache.resize(&new);
            assert_eq!(bench.cache.n_slot(), new.iter().sum::<usize>(), "nothing is in use between events");
            for ((slots, residents), n) in naive.pools.iter_mut().zip(new) {
                *slots = n;
                residents.drain(..residents.len().saturating_sub(n));
            }
        }
        let rows = random_rows(&mut dice, i % N_LAYER, Phase::Decode);
        bench.run(event(Phase::Decode, &rows));
        naive.run(event(Phase::Decode, &rows));
        assert_eq!(bench.residents(), naive.residents(), "seed {seed}, event {i}, {} slots", scope.name());
    }
    bench.cache.resize(&vec![usize::MAX; slots.len()]);
    assert_eq!(bench.cache.n_slot(), slots.iter().sum::<usize>(), "all slots are back");
}

#[test]
fn a_cache_that_is_resized_loses_the_oldest_and_nothing_else() {
    no_hang(|| {
        for scope in [Scope::Layer, Scope::Global] {
            for seed in 0..10 {
                resizing_is_as_naive(Engine::Sim, scope, 400 + seed);
                resizing_is_as_naive(Engine::Threads(IoKind::Pread, 2), scope, 500 + seed);
                resizing_is_as_naive(Engine::Threads(IoKind::Mapped, 2), scope, 600 + seed);
            }
        }
    });
}

/// Random guesses between random events, on every engine.
fn prefetch_keeps_its_place(engine: Engine, scope: Scope, seed: u64) {
    if !engine.is_allowed() {
        return;
    }
    let mut dice = Dice(seed);
    let slots = random_slots(&mut dice, scope);
    let mut bench = Bench::new(engine, scope, &slots);
    let mut wanted = 0;
    for i in 0..200 {
        let (layer, phase) = (i % N_LAYER, random_phase(&mut dice));
        let rows = random_rows(&mut dice, layer, phase);
        wanted += distinct(&rows).len() as u64;
        bench.cache.request(event(phase, &rows));

        let guesses: Vec<_> = dice.choose(4, N_EXPERT).iter().map(|&e| id((layer + 1) % N_LAYER, e)).collect();
        let kept: Vec<_> = bench.residents().into_iter().filter(|id| guesses.contains(id)).collect();
        let from = bench.log.lock().unwrap().submitted.len();
        bench.cache.prefetch(&guesses, Reads::now(usize::MAX));
        let reads = bench.submitted(from);
        assert!(reads.iter().all(|(id, p)| *p == Priority::Prefetch && guesses.contains(id)));
        assert!(kept.iter().all(|&id| bench.cache.is_resident(id)), "a guess made another guess leave");

        bench.advance(dice.next() % (4 * LATENCY_NS));
        bench.drain(&rows);
        bench.counters_add_up(wanted);
    }
    assert!(bench.log.lock().unwrap().most_prefetches <= 8);
    // A pool of no more slots than experts used has no room for guesses while an event runs.
    if slots.iter().all(|&n| n > N_USED + 1) {
        let stats = bench.cache.stats();
        assert!(stats.prefetches > 0 && stats.prefetch_useful > 0 && stats.prefetch_wasted > 0, "{slots:?} {stats:?}");
    }
}

#[test]
fn prefetch_never_stands_in_the_way() {
    no_hang(|| {
        for scope in [Scope::Layer, Scope::Global] {
            for seed in 0..30 {
                prefetch_keeps_its_place(Engine::Sim, scope, seed);
            }
            for seed in 0..5 {
                prefetch_keeps_its_place(Engine::Threads(IoKind::Pread, 3), scope, 100 + seed);
                prefetch_keeps_its_place(Engine::Threads(IoKind::Mapped, 2), scope, 200 + seed);
                prefetch_keeps_its_place(Engine::Threads(IoKind::Direct, 2), scope, 300 + seed);
                prefetch_keeps_its_place(Engine::Threads(IoKind::Uring, 4), scope, 400 + seed);
            }
        }
    });
}

/// Whatever the slots, in a prompt and in decoding; a warm start reads nothing either.
#[test]
fn a_cache_that_keeps_nothing_reads_at_each_use() {
    let mut bench = Bench::new(Engine::Sim, Scope::Layer, &[4, 4, 4]);
    bench.cache.keep_nothing();
    let rows = routed(1, &[3, 5]);
    for phase in [Phase::Prompt, Phase::Decode, Phase::Decode] {
        bench.run(event(phase, &rows));
        assert_eq!(bench.residents(), []);
    }
    let list = bench.cache.hot();
    bench.cache.warm(&list);
    let stats = bench.cache.stats();
    assert_eq!((stats.total().hit, stats.total().miss, stats.warm_reads), (0, 6, 0));
    assert_eq!((bench.submitted(0).len(), bench.cache.policy_name()), (6, "none"));
    bench.counters_add_up(6);
}

#[test]
fn a_prefetch_that_becomes_demand_is_read_once_and_counted_late() {
    let mut bench = Bench::new(Engine::Sim, Scope::Layer, &[4, 4, 4]);
    bench.cache.prefetch(&[id(1, 3)], Reads::now(usize::MAX));
    let rows = routed(1, &[3, 5]);
    bench.run(event(Phase::Decode, &rows));
    let stats = bench.cache.stats();
    assert_eq!((stats.decode.hit, stats.decode.late, stats.decode.miss), (0, 1, 1));
    assert_eq!((stats.prefetches, stats.prefetch_useful, stats.prefetch_wasted), (1, 1, 0));
    assert_eq!(bench.log.lock().unwrap().promoted, 1);
    assert_eq!(bench.submitted(0), [(id(1, 3), Priority::Prefetch), (id(1, 5), Priority::Demand)]);
    assert_eq!(stats.decode.stall_ns, 2 * LATENCY_NS, "one request after the other");
}

#[test]
fn a_prefetch_in_time_is_a_hit_without_a_stall() {
    let mut bench = Bench::new(Engine::Sim, Scope::Layer, &[4, 4, 4]);
    bench.cache.prefetch(&[id(1, 3), id(1, 5)], Reads::now(usize::MAX));
    bench.advance(2 * LATENCY_NS);
    let rows = routed(1, &[3, 5]);
    bench.run(event(Phase::Decode, &rows));
    bench.run(event(Phase::Decode, &rows));
    let stats = bench.cache.stats();
    assert_eq!((stats.decode.hit, stats.decode.late, stats.decode.miss, stats.decode.stall_ns), (4, 0, 0, 0));
    assert_eq!((stats.prefetches, stats.prefetch_useful), (2, 2), "useful once, however often it is used");
}

#[test]
fn a_prefetch_that_nobody_asks_for_is_wasted_when_it_leaves() {
    let mut bench = Bench::new(Engine::Sim, Scope::Layer, &[2, 2, 2]);
    bench.cache.prefetch(&[id(0, 7)], Reads::now(usize::MAX));
    bench.advance(LATENCY_NS);
    let rows = routed(0, &[1, 2]);
    bench.run(event(Phase::Decode, &rows));
    let stats = bench.cache.stats();
    assert_eq!((stats.prefetches, stats.prefetch_useful, stats.prefetch_wasted, stats.evictions), (1, 0, 1, 1));
    assert_eq!(bench.residents(), [id(0, 1), id(0, 2)]);
}

/// Two wanted experts in the only two slots: guesses of the same pool find no room, not even by evicting each other.
#[test]
fn guesses_wait_where_all_slots_are_wanted() {
    let mut bench = Bench::new(Engine::Sim, Scope::Global, &[2]);
    let rows = routed(0, &[1, 2]);
    bench.cache.request(event(Phase::Decode, &rows));
    bench.cache.prefetch(&[id(1, 0), id(1, 1)], Reads::now(usize::MAX));
    assert_eq!(bench.cache.stats().prefetches, 0);
    bench.drain(&rows);
    // The event is through: its experts may leave, but the first guess is not evicted for the third.
    bench.cache.prefetch(&[id(1, 0), id(1, 1), id(1, 2)], Reads::now(usize::MAX));
    bench.advance(9 * LATENCY_NS);
    let rows = routed(1, &[0, 1]);
    bench.run(event(Phase::Decode, &rows));
    assert_eq!((bench.cache.stats().prefetches, bench.cache.stats().decode.hit), (2, 2));
}

/// All slots hold guesses in flight when an event wants others, and the guesses arrive before anybody waits.
#[test]
fn wanted_experts_take_the_slots_of_guesses_that_arrive_meanwhile() {
    let mut bench = Bench::new(Engine::Sim, Scope::Layer, &[2, 2, 2]);
    bench.cache.prefetch(&[id(1, 0), id(1, 1)], Reads::now(usize::MAX));
    let rows = routed(1, &[2, 3]);
    bench.cache.request(event(Phase::Decode, &rows));
    bench.advance(5 * LATENCY_NS);
    bench.drain(&rows);
    assert_eq!(bench.residents(), [id(1, 2), id(1, 3)]);
    assert_eq!(bench.cache.stats().prefetch_wasted, 2);
}

/// The second guess is not worth a read, and keeps its slot all the same.
#[test]
fn guesses_beyond_those_read_are_kept() {
    let mut bench = Bench::new(Engine::Sim, Scope::Layer, &[2, 2, 2]);
    let rows = routed(1, &[3, 5]);
    bench.run(event(Phase::Decode, &rows));
    bench.cache.prefetch(&[id(1, 0), id(1, 3), id(1, 7)], Reads::now(1));
    bench.advance(LATENCY_NS);
    bench.run(event(Phase::Decode, &routed(0, &[0])));
    assert_eq!(bench.cache.stats().prefetches, 1);
    assert_eq!(bench.residents(), [id(0, 0), id(1, 0), id(1, 3)]);
}

/// Far guesses: none beside many other reads, and only a few.
#[test]
fn guesses_for_an_idle_drive_wait_until_it_is() {
    let mut bench = Bench::new(Engine::Sim, Scope::Layer, &[8, 8, 8]);
    let far: Vec<_> = (0..6).map(|e| id(2, e)).collect();
    let idle = |now| Reads { now, idle: usize::MAX };
    let rows = routed(0, &[0, 1]);
    bench.cache.request(event(Phase::Decode, &rows));
    // Two demanded reads and one guess leave room for one more.
    bench.cache.prefetch(&[&[id(1, 0)], &far[..]].concat(), idle(1));
    assert_eq!(bench.submitted(2), [(id(1, 0), Priority::Prefetch), (id(2, 0), Priority::Prefetch)]);
    bench.cache.prefetch(&far, idle(0));
    bench.cache.prefetch(&[&[id(1, 1), id(1, 2)], &far[..]].concat(), idle(2));
    assert_eq!(
        bench.submitted(4),
        [(id(1, 1), Priority::Prefetch), (id(1, 2), Priority::Prefetch)],
        "near ones do not wait"
    );
    bench.advance(9 * LATENCY_NS);
    bench.drain(&rows);
    // Nothing is on its way.
    bench.run(event(Phase::Decode, &rows));
    bench.cache.prefetch(&far, idle(0));
    assert_eq!(bench.submitted(6), [1, 2, 3, 4].map(|e| (id(2, e), Priority::Prefetch)));
}

#[test]
fn demand_goes_before_prefetches_that_wait() {
    let mut bench = Bench::new(Engine::Sim, Scope::Layer, &[8, 8, 8]);
    bench.cache.prefetch(&[id(1, 0), id(1, 1), id(1, 2)], Reads::now(usize::MAX));
    // The drive is busy with the first guess; the demand read comes next, the other guesses after it.
    bench.advance(LATENCY_NS / 2);
    let rows = routed(0, &[0]);
    bench.run(event(Phase::Decode, &rows));
    assert_eq!(bench.cache.stats().decode.stall_ns, 2 * LATENCY_NS - LATENCY_NS / 2);
    assert_eq!(bench.residents(), [id(0, 0), id(1, 0)]);
}

/// The file is empty for a while: an error, then an event that is over, then everything as before.
#[test]
fn after_a_failed_read_the_event_is_over_and_the_next_one_works() {
    no_hang(|| {
        let mut bench = Bench::new(Engine::Threads(IoKind::Pread, 2), Scope::Layer, &[2, 2, 2]);
        let path = bench.folder.path().join("experts.gguf");
        let bytes = std::fs::read(&path).unwrap();
        let (rows, others, elsewhere) = (routed(1, &[3, 5]), routed(1, &[0, 1]), routed(0, &[2, 7]));
        bench.run(event(Phase::Decode, &elsewhere));
        for round in 1..=10 {
            std::fs::write(&path, []).unwrap();
            bench.cache.request(event(Phase::Decode, &rows));
            let mut ready = Vec::new();
            let error = bench.cache.next_ready(&mut ready).unwrap_err().to_string();
            assert!(error.starts_with(path.to_str().unwrap()) && error.contains("of blk.1"), "{error}");
            bench.cache.next_ready(&mut ready).unwrap();
            assert!(ready.is_empty());
            // The other read fails while events that need no file go on.
            while !bench.log.lock().unwrap().in_flight.is_empty() {
                bench.run(event(Phase::Decode, &elsewhere));
            }
            assert_eq!(bench.cache.stats().failed_reads, 2 * round);
            std::fs::write(&path, &bytes).unwrap();
            bench.run(event(Phase::Decode, &rows));
            bench.run(event(Phase::Decode, &others));
        }
        assert_eq!(bench.residents(), [id(0, 2), id(0, 7), id(1, 0), id(1, 1)]);
    });
}

/// A prompt that wants every expert of a layer through two slots: each is read once, whatever is resident before.
#[test]
fn an_expert_is_reordered_once_while_it_has_its_slot_when_it_is_wanted_again() {
    for (kind, least) in [(IoKind::Pread, 6), (IoKind::Mapped, 0)] {
        let engine = Engine::Threads(kind, 2);
        if !engine.is_allowed() {
            continue;
        }
        let mut bench = Bench::new(engine, Scope::Layer, &[2, 2, 2]);
        // How many matrices are offered; downs are left as they are.
        let mut offered = |experts: &[usize]| {
            let rows = routed(1, experts);
            let (mut n, mut ready) = (0, Vec::new());
            bench.cache.request(event(Phase::Decode, &rows));
            loop {
                bench.cache.next_ready(&mut ready).unwrap();
                if ready.is_empty() {
                    return n;
                }
                bench.cache.reorder_kept(&ready, |w| {
                    n += 1;
                    let is_down = w.rows == N_EMBD;
                    w.data.iter_mut().filter(|_| !is_down).for_each(|byte| *byte = !*byte);
                    !is_down
                });
                for &id in &ready {
                    let mats = bench.cache.get(id);
                    let flags = [mats.gate.unwrap(), mats.up, mats.down].map(|w| w.interleaved);
                    assert!(flags == [false; 3] || flags == [true, true, false], "{flags:?}");
                    if !flags[0] {
                        shows_its_own_bytes(&bench.cache, id);
                    } else {
                        assert_eq!(mats.gate.unwrap().data[..4], code(id, 0).to_le_bytes().map(|byte| !byte));
                    }
                }
            }
        };
        assert_eq!([offered(&[3, 5]), offered(&[3, 5]), offered(&[3, 5])], [0, least, 0], "{kind:?}");
        assert_eq!(offered(&[0, 5]), 0, "3 has lost its slot to 0");
        assert_eq!([offered(&[3, 5]), offered(&[3, 5])], [0, least / 2], "3 is as in the file again");
    }
}

#[test]
fn a_prompt_larger_than_the_slots_reads_each_expert_once() {
    for kind in common::read_paths() {
        let mut bench = Bench::new(Engine::Threads(*kind, 3), Scope::Layer, &[2, 3, 5]);
        for layer in (0..N_LAYER).cycle().take(4 * N_LAYER) {
            let rows = routed(layer, &[0, 1, 2, 3, 4, 5, 6, 7, 6, 7]);
            let resident = bench.residents().iter().filter(|id| usize::from(id.layer) == layer).count();
            let from = bench.log.lock().unwrap().submitted.len();
            bench.run(event(Phase::Prompt, &rows));
            assert_eq!(bench.submitted(from).len(), N_EXPERT - resident);
        }
    }
}

/// The experts that most rows of a prompt used are the ones that decoding finds.
#[test]
fn a_prompt_leaves_its_most_used_experts_behind() {
    let mut bench = Bench::new(Engine::Sim, Scope::Layer, &[2, 2, 2]);
    let rows = routed(0, &[5, 1, 5, 3, 5, 3, 2, 3]);
    bench.run(event(Phase::Prompt, &rows));
    assert_eq!(bench.residents(), [id(0, 3), id(0, 5)]);
}
