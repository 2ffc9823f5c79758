//! Free slots fill while the drive is idle: which experts come first, what is left alone, and what it wins.

mod common;

use common::{
    dice::Dice,
    routing::{Shape, decoding, header, write},
};
use hotset::{
    expert::{Allowance, CacheStats, ExpertCache, ExpertStore, Scope},
    id::ExpertId,
    io::{Done, Extents, IoEngine, Layout, Read, ReadError, SimClock, SimIo},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    simulate::{self, Compute, Conditions, Drive, Setting, SimPolicy},
    trace::{LayerEvent, Phase, Routed},
};

const N_LAYER: usize = 3;
const N_EXPERT: usize = 8;
const LATENCY_NS: u64 = 1000;

fn id(layer: u16, expert: u16) -> ExpertId {
    ExpertId { layer, expert }
}

/// A cache whose free slots fill, on a drive that takes a microsecond a read.
fn cache(scope: Scope, slots: &[usize], policy: PolicyKind) -> (ExpertCache, SimClock) {
    let sim = SimIo::new(LATENCY_NS, u64::MAX);
    let clock = sim.clock();
    let store = ExpertStore::unfiled(&[1000; N_LAYER], N_EXPERT);
    let mut cache = ExpertCache::new(store, scope, slots, policy, Box::new(sim)).unwrap();
    cache.fill_free_slots(true);
    (cache, clock)
}

fn run(cache: &mut ExpertCache, phase: Phase, layer: u16, experts: &[u16]) {
    let routed: Vec<_> = experts.iter().map(|&e| Routed { id: id(layer, e), weight: 0.5 }).collect();
    let (first_token, n_tokens) = (0, 1);
    cache.request(LayerEvent { phase, first_token, n_tokens, layer, routed: &routed, lookahead: &[] });
    let mut ready = Vec::new();
    while {
        cache.next_ready(&mut ready).unwrap();
        !ready.is_empty()
    } {}
}

fn decode(cache: &mut ExpertCache, layer: u16, experts: &[u16]) {
    run(cache, Phase::Decode, layer, experts);
}

#[test]
fn slots_fill_a_few_at_a_time_and_nobody_loses_one() {
    for &policy in PolicyKind::ALL {
        for (scope, slots) in [(Scope::Layer, vec![6; N_LAYER]), (Scope::Global, vec![6 * N_LAYER])] {
            let (mut cache, clock) = cache(scope, &slots, policy);
            run(&mut cache, Phase::Prompt, 0, &[1, 2]);
            assert_eq!(cache.stats().fill_reads, 0, "a prompt brings its own");
            decode(&mut cache, 0, &[1, 2]);
            assert_eq!(cache.stats().fill_reads, 2, "the others wait, so that a demand read need not");
            for _ in 0..20 {
                clock.advance(5 * LATENCY_NS);
                decode(&mut cache, 0, &[1, 2]);
            }
            let stats = *cache.stats();
            let (used, all) = (2, 6 * N_LAYER as u64);
            assert_eq!((stats.fill_reads, stats.fill_bytes), (all - used, 1000 * (all - used)), "{}", policy.name());
            assert_eq!((stats.evictions, stats.prefetches, stats.prefetch_wasted), (0, 0, 0));
            assert_eq!(stats.bytes_read(), 1000 * all);
            let resident = |layer| (0..N_EXPERT as u16).filter(|&e| cache.is_resident(id(layer, e))).count();
            // In one pool the layer that has begun is ahead by its two.
            let expected = if scope == Scope::Layer { [6, 6, 6] } else { [8, 5, 5] };
            assert_eq!([0, 1, 2].map(resident), expected, "the layers in turn");
            // What nobody has used is used now, or leaves before what somebody has.
            decode(&mut cache, 1, &[0, 1]);
            assert_eq!((cache.stats().fill_used, cache.stats().decode.miss), (2, stats.decode.miss));
            decode(&mut cache, 0, &[6, 7]);
            assert!(cache.is_resident(id(0, 1)) && cache.is_resident(id(0, 2)), "{}", policy.name());
            assert_eq!(cache.stats().prefetch_wasted, 0, "no guess of a prefetcher's");
        }
    }
}

#[test]
fn nothing_fills_unasked() {
    let (mut cache, clock) = cache(Scope::Layer, &[6; N_LAYER], PolicyKind::default());
    cache.fill_free_slots(false);
    for _ in 0..20 {
        decode(&mut cache, 0, &[1, 2]);
        clock.advance(5 * LATENCY_NS);
    }
    assert_eq!(cache.stats().fill_reads, 0);
}

/// Slots that come back find the experts that left when they were given up, those that are worth most first.
#[test]
fn the_most_valuable_come_first() {
    for policy in [PolicyKind::LfuAdaptive, PolicyKind::LfuDecay, PolicyKind::Echo, PolicyKind::Lru] {
        let (mut cache, clock) = cache(Scope::Layer, &[4; N_LAYER], policy);
        cache.fill_free_slots(false);
        // Of layer 1 expert 5 is used most, then 7.
        for token in 0..40 {
            decode(&mut cache, 1, if token % 3 == 0 { &[7, 2] } else { &[5, 2] });
        }
        decode(&mut cache, 1, &[0, 1]);
        cache.resize(&[1; N_LAYER]);
        decode(&mut cache, 1, &[3]);
        assert!(!cache.is_resident(id(1, 5)) && !cache.is_resident(id(1, 7)), "{}", policy.name());
        cache.resize(&[4, 3, 4]);
        cache.fill_free_slots(true);
        for _ in 0..10 {
            decode(&mut cache, 0, &[0, 1, 2, 3]);
            clock.advance(5 * LATENCY_NS);
        }
        assert!(cache.is_resident(id(1, 5)) && cache.is_resident(id(1, 2)), "{}", policy.name());
    }
}

/// Says once that each pool may use fewer slots than it has.
struct Short(Option<Vec<usize>>);

impl Allowance for Short {
    fn check(&mut self) -> Option<Vec<usize>> {
        self.0.take()
    }
}

#[test]
fn a_machine_that_is_short_of_memory_is_left_alone() {
    let (cache, clock) = cache(Scope::Layer, &[6; N_LAYER], PolicyKind::default());
    let mut experts = hotset::expert::Experts::new(cache, PrefetchKind::Off.build(N_EXPERT, 2), Box::new(()));
    experts.follow(Some(Box::new(Short(Some(vec![5; N_LAYER])))));
    let routed = [Routed { id: id(0, 1), weight: 1.0 }];
    for first_token in 0..20 {
        let (phase, lookahead) = (Phase::Decode, &[][..]);
        experts.request(LayerEvent { phase, first_token, n_tokens: 1, layer: 0, routed: &routed, lookahead });
        let mut ready = Vec::new();
        while {
            experts.next_ready(&mut ready).unwrap();
            !ready.is_empty()
        } {}
        clock.advance(5 * LATENCY_NS);
    }
    assert_eq!((experts.stats().fill_reads, experts.cache().n_slot()), (0, 5 * N_LAYER));
}

/// A drive that fails to read anything of the last layer.
struct Failing(SimIo, Vec<(usize, Extents)>);

impl Failing {
    fn fail(&self, done: Option<Done>) -> Option<Done> {
        let mut done = done?;
        let (_, extents) = self.1.iter().rev().find(|(tag, _)| *tag == done.tag).unwrap();
        if extents[0].len == LAST_BYTES {
            done.result = Err(ReadError { extent: extents[0], source: std::io::Error::other("a bad block") });
        }
        Some(done)
    }
}

impl IoEngine for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }
    fn depth(&self) -> usize {
        self.0.depth()
    }
    fn layout(&self) -> Layout {
        self.0.layout()
    }
    fn submit(&mut self, read: Read) {
        self.1.push((read.tag, read.extents));
        self.0.submit(read);
    }
    fn promote(&mut self, tag: usize) {
        self.0.promote(tag);
    }
    fn wait(&mut self) -> Option<Done> {
        let done = self.0.wait();
        self.fail(done)
    }
    fn poll(&mut self) -> Option<Done> {
        let done = self.0.poll();
        self.fail(done)
    }
    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }
}

const LAST_BYTES: usize = 2000;

#[test]
fn a_read_that_fails_is_the_last_one() {
    let sim = SimIo::new(LATENCY_NS, u64::MAX);
    let clock = sim.clock();
    let store = ExpertStore::unfiled(&[1000, 1000, LAST_BYTES as u64], N_EXPERT);
    let io = Box::new(Failing(sim, Vec::new()));
    let mut cache = ExpertCache::new(store, Scope::Layer, &[6; N_LAYER], PolicyKind::default(), io).unwrap();
    cache.fill_free_slots(true);
    for _ in 0..30 {
        decode(&mut cache, 0, &[1, 2]);
        clock.advance(5 * LATENCY_NS);
    }
    let stats = *cache.stats();
    assert!((1..=2).contains(&stats.failed_reads) && stats.fill_reads < 6, "{stats:?}");
    assert_eq!(stats.decode.miss, 2, "tokens are none the wiser");
}

/// In three quarters of the experts, on a drive with time to spare, the second 64 tokens hit as later ones do.
#[test]
fn a_cold_start_is_soon_over() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("a.trace");
    let shape = Shape { layers: 6, experts: 128, used: 2, tokens: 1200 };
    write(&trace, header(shape), &decoding(&mut Dice(6), shape));
    let stats = |fill: bool, warmup: u64| -> CacheStats {
        let compute = Compute { layer_ns: 400_000, ..Compute::default() };
        let setting = Setting {
            policy: SimPolicy::Live(PolicyKind::default()),
            scope: Scope::Layer,
            slots: &[96; 6],
            prefetch: PrefetchKind::Off,
            fill,
            vram: None,
            conditions: Conditions {
                drive: Drive { latency_ns: 80_000, bytes_per_us: 3500, depth: 1 },
                compute,
                warmup,
            },
        };
        simulate::replay(&trace, &setting, None).unwrap().stats
    };
    let between = |fill: bool, from: u64, to: u64| {
        let (a, b) = (stats(fill, from).decode, stats(fill, to).decode);
        let (hit, all) = (a.hit - b.hit, a.hit + a.late + a.miss - b.hit - b.late - b.miss);
        hit as f64 / all as f64
    };
    let (early, cold, late) = (between(true, 64, 128), between(false, 64, 128), between(true, 900, 1199));
    assert!(cold < 0.9 * late, "without, it takes longer: {cold} {late}");
    assert!(early > 0.95 * late, "{early} {late}");
}
