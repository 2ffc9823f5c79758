//! Reading ahead of a long prompt: slots roll from layer to layer and come back, nothing is read twice, time is won.

mod common;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use common::{
    dice::Dice,
    tiny::{Tensor, Tiny, stacked_experts},
};
use hotset::{
    expert::{Allowance, ExpertCache, ExpertStore, Experts, Scope},
    gguf::Gguf,
    id::ExpertId,
    io::{Done, IoEngine, Layout, Priority, Read, SimClock, SimIo},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
    trace::{LayerEvent, Phase, Routed, TraceSink},
};

const N_LAYER: usize = 4;
const N_EXPERT: usize = 16;
const N_USED: usize = 2;
const SLOTS: usize = 6;
const N_EMBD: usize = 8;
/// Of each layer's experts.
const N_FF: [usize; N_LAYER] = [10; N_LAYER];
/// 3 matrices of 10 x 8 floats: 960 bytes at one a microsecond, and a tenth before the first.
const READ_NS: u64 = 960_100;
/// Tokens of a chunk that wants nearly all experts: twelve choices for each.
const LONG: usize = 96;
const ATTENTION_NS: u64 = 2 * READ_NS;

/// Every read: where it starts, and how urgent it is.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(u64, Priority)>>>);

struct Listened(SimIo, Log);

impl IoEngine for Listened {
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
        self.1.0.lock().unwrap().push((read.extents[0].offset, read.priority));
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

/// Keeps nothing, but every layer runs over every token.
struct Whole;

impl TraceSink for Whole {
    fn record(&mut self, _: LayerEvent<'_>) {}
}

struct World {
    experts: Experts,
    clock: SimClock,
    log: Log,
    dice: Dice,
    token: u32,
    /// Tokens of a prompt that go through the last layer, at most.
    last: usize,
}

fn world(prefetch: PrefetchKind, n_ff: [usize; N_LAYER], policy: PolicyKind) -> World {
    world_of(prefetch, n_ff, policy, Box::new(Whole))
}

fn world_of(prefetch: PrefetchKind, n_ff: [usize; N_LAYER], policy: PolicyKind, trace: Box<dyn TraceSink>) -> World {
    let mut file = Tiny { meta: vec![("general.architecture".to_owned(), "test".into())], tensors: Vec::new() };
    for (layer, n_ff) in n_ff.into_iter().enumerate() {
        for name in ["gate", "up", "down"] {
            let [cols, rows] = if name == "down" { [n_ff, N_EMBD] } else { [N_EMBD, n_ff] };
            file.tensors.push(Tensor {
                name: format!("blk.{layer}.ffn_{name}_exps.weight"),
                dims: [cols, rows, N_EXPERT].map(|d| d as u64).to_vec(),
                ty: GgmlType::F32,
                bytes: vec![0; 4 * cols * rows * N_EXPERT],
            });
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("experts.gguf");
    file.write(&path);
    let gguf = Gguf::open(&path).unwrap();
    let sets: Vec<_> = (0..N_LAYER).map(|layer| stacked_experts(&gguf, layer)).collect();
    let store = ExpertStore::new(&gguf, &sets).unwrap();

    let (sim, log) = (SimIo::new(100, 1), Log::default());
    let clock = sim.clock();
    let io = Box::new(Listened(sim, log.clone()));
    let cache = ExpertCache::new(store, Scope::Layer, &[SLOTS; N_LAYER], policy, io).unwrap();
    let experts = Experts::new(cache, prefetch.build(N_EXPERT, N_USED), trace);
    World { experts, clock, log, dice: Dice(7), token: 0, last: usize::MAX }
}

impl World {
    fn residents(&self, layer: usize) -> usize {
        let id = |e| ExpertId { layer: layer as u16, expert: e as u16 };
        (0..N_EXPERT).filter(|&e| self.experts.cache().is_resident(id(e))).count()
    }

    /// All layers over `n_tokens` tokens. How often each (layer, expert) was read since the layer before was through.
    fn pass(&mut self, phase: Phase, n_tokens: usize) -> HashMap<(usize, u64), usize> {
        let mut reads = HashMap::new();
        let mut seen = self.log.0.lock().unwrap().len();
        for layer in 0..N_LAYER {
            self.clock.advance(ATTENTION_NS);
            let few = phase == Phase::Prompt && layer == N_LAYER - 1;
            let n = if few { n_tokens.min(self.last) } else { n_tokens };
            if n == 0 {
                continue;
            }
            let mut routed = Vec::new();
            for _ in 0..n {
                routed.extend(
                    self.dice
                        .choose(N_USED, N_EXPERT)
                        .into_iter()
                        .map(|e| Routed { id: ExpertId { layer: layer as u16, expert: e as u16 }, weight: 0.5 }),
                );
            }
            let layer_event = LayerEvent {
                phase,
                first_token: self.token + (n_tokens - n) as u32,
                n_tokens: n as u32,
                layer: layer as u16,
                routed: &routed,
                lookahead: &[],
            };
            self.experts.request(layer_event);
            let (mut ready, mut got) = (Vec::new(), Vec::new());
            loop {
                let before = self.log.0.lock().unwrap().len();
                self.experts.next_ready(&mut ready).unwrap();
                // What the last call starts is the next layer's.
                let until = if ready.is_empty() { before } else { self.log.0.lock().unwrap().len() };
                for (offset, _) in &self.log.0.lock().unwrap()[seen..until] {
                    *reads.entry((layer, *offset)).or_insert(0) += 1;
                }
                seen = until;
                if ready.is_empty() {
                    break;
                }
                got.extend(ready.iter().map(|id| id.expert));
            }
            got.sort_unstable();
            let mut wanted: Vec<u16> = routed.iter().map(|r| r.id.expert).collect();
            wanted.sort_unstable();
            wanted.dedup();
            assert_eq!(got, wanted, "every wanted expert once, nothing else");
        }
        self.token += n_tokens as u32;
        reads
    }

    fn ahead(&self) -> usize {
        self.log.0.lock().unwrap().iter().filter(|(_, p)| *p == Priority::Ahead).count()
    }
}

#[test]
fn nothing_is_read_twice_and_slots_come_back() {
    for &policy in PolicyKind::ALL {
        let mut world = world(PrefetchKind::Lookahead, N_FF, policy);
        for round in 0..20 {
            let reads = world.pass(Phase::Prompt, LONG);
            assert!(reads.values().all(|&n| n == 1), "{policy:?}: {reads:?}");
            assert!((0..N_LAYER).map(|l| world.residents(l)).sum::<usize>() <= SLOTS * N_LAYER);
            assert!(world.ahead() > round * (N_LAYER - 1), "{policy:?}: read ahead in each chunk");
            // Another chunk may follow, or a short one, or decoding.
            for _ in 0..world.dice.below(3) {
                let (phase, n) = if world.dice.below(2) == 0 { (Phase::Prompt, 5) } else { (Phase::Decode, 1) };
                world.pass(phase, n);
                for layer in 0..N_LAYER {
                    assert!(world.residents(layer) <= SLOTS, "{policy:?}: layer {layer} has only its own slots");
                }
            }
        }
    }
}

#[test]
fn nothing_is_read_ahead_for_a_last_layer_of_few_tokens() {
    // None of a chunk's tokens go through it, or only the last one.
    for last in [0, 1] {
        let mut world = world_of(PrefetchKind::Lookahead, N_FF, PolicyKind::default(), Box::new(()));
        world.last = last;
        let of_last =
            |e| world.experts.cache().store().extents(ExpertId { layer: N_LAYER as u16 - 1, expert: e })[0].offset;
        let of_last: Vec<u64> = (0..N_EXPERT as u16).map(of_last).collect();
        for round in 0..20 {
            let reads = world.pass(Phase::Prompt, LONG);
            assert!(reads.values().all(|&n| n == 1), "{reads:?}");
            assert!(world.ahead() > round * (N_LAYER - 2), "read ahead in each chunk");
            if world.dice.below(2) == 0 {
                world.pass(Phase::Decode, 1);
                for layer in 0..N_LAYER {
                    assert!(world.residents(layer) <= SLOTS, "layer {layer} has only its own slots");
                }
            }
        }
        let log = world.log.0.lock().unwrap();
        assert!(log.iter().all(|(offset, p)| *p != Priority::Ahead || !of_last.contains(offset)), "for the last layer");
    }
}

#[test]
fn the_drive_works_during_attention() {
    let stall = |prefetch| {
        let mut world = world(prefetch, N_FF, PolicyKind::default());
        (0..10).for_each(|_| drop(world.pass(Phase::Prompt, LONG)));
        (world.experts.stats().prompt.stall_ns, world.ahead())
    };
    let ((with, ahead), (without, none)) = (stall(PrefetchKind::Lookahead), stall(PrefetchKind::Off));
    assert_eq!(none, 0, "off is off");
    // Each read moved into attention's time is one read's time less to wait for.
    let reads_ns = ahead as u64 * READ_NS;
    assert!(with < without, "{with} of {without} ns");
    assert!(without - with <= reads_ns, "{with} of {without} ns, {ahead} reads");
}

#[test]
fn layers_of_different_sizes_lend_nothing() {
    let mut world = world(PrefetchKind::Lookahead, [10, 10, 11, 10], PolicyKind::default());
    (0..5).for_each(|_| drop(world.pass(Phase::Prompt, LONG)));
    assert_eq!(world.ahead(), 0);
}

/// Says other numbers of slots at every third question.
struct Whims(Dice, Arc<Mutex<[usize; N_LAYER]>>);

impl Allowance for Whims {
    fn check(&mut self) -> Option<Vec<usize>> {
        if self.0.below(3) > 0 {
            return None;
        }
        let slots = [(); N_LAYER].map(|()| 1 + self.0.below(SLOTS));
        *self.1.lock().unwrap() = slots;
        Some(slots.to_vec())
    }
}

#[test]
fn slots_may_be_given_back_while_they_roll() {
    for &policy in PolicyKind::ALL {
        let mut world = world(PrefetchKind::Lookahead, N_FF, policy);
        let said = Arc::new(Mutex::new([SLOTS; N_LAYER]));
        world.experts.follow(Some(Box::new(Whims(Dice(11), said.clone()))));
        for _ in 0..100 {
            for _ in 0..world.dice.below(3) {
                world.pass(Phase::Prompt, LONG);
                assert!(world.experts.cache().n_slot() <= SLOTS * N_LAYER);
            }
            let (phase, n) = if world.dice.below(2) == 0 { (Phase::Prompt, 5) } else { (Phase::Decode, 1) };
            world.pass(phase, n);
            let slots = *said.lock().unwrap();
            assert_eq!(world.experts.cache().n_slot(), slots.iter().sum::<usize>(), "{policy:?}: nothing is in use");
            for (layer, n) in slots.into_iter().enumerate() {
                assert!(world.residents(layer) <= n, "{policy:?}: layer {layer} has only its own slots");
            }
        }
        assert!(world.ahead() > 0, "{policy:?}: slots rolled");
    }
}
