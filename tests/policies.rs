//! Each policy against a naive model of it that keeps whole histories; none beats Belady, and Belady is what an
//! exhaustive search finds; golden miss counts.

mod common;

use std::{collections::HashMap, path::Path};

use common::{
    dice::Dice,
    routing::{Event, Shape, decoding, header, write},
};
use hotset::{
    expert::Scope,
    id::ExpertId,
    policy::{CacheShape, PolicyKind},
    prefetch::PrefetchKind,
    retrieval::Retrieval,
    simulate::{self, Compute, Conditions, Drive, Outcome, Setting, SimPolicy},
    trace::Phase,
};

/// A slow and plain statement of what a policy is.
trait Naive {
    /// A new event, and all that its tokens use, a list for each.
    fn observe(&mut self, event: &Event, rows: &[Vec<ExpertId>]);
    fn insert(&mut self, _: ExpertId) {}
    fn touch(&mut self, id: ExpertId);
    /// Smaller leaves first.
    fn value(&self, id: ExpertId) -> (f64, f64);
    fn evicted(&mut self, _: ExpertId) {}
}

#[derive(Default)]
struct Lru {
    time: f64,
    last: HashMap<ExpertId, f64>,
}

impl Naive for Lru {
    fn observe(&mut self, _: &Event, _: &[Vec<ExpertId>]) {}
    fn touch(&mut self, id: ExpertId) {
        self.time += 1.0;
        self.last.insert(id, self.time);
    }
    fn value(&self, id: ExpertId) -> (f64, f64) {
        (0.0, self.last.get(&id).copied().unwrap_or(0.0))
    }
}

/// Decayed counts as sums over all that ever happened.
struct Decay {
    growths: Vec<f64>,
    /// (token's number within its layer, layer, experts)
    history: Vec<(i32, u16, Vec<ExpertId>)>,
    tokens: HashMap<u16, i32>,
    errors: Vec<f64>,
    n_expert: u16,
    lru: Lru,
}

impl Decay {
    fn new(half_lives: &[f64], n_expert: usize) -> Self {
        Self {
            growths: half_lives.iter().map(|h| 2f64.powf(1.0 / h)).collect(),
            history: Vec::new(),
            tokens: HashMap::new(),
            errors: vec![0.0; half_lives.len()],
            n_expert: n_expert as u16,
            lru: Lru::default(),
        }
    }
    /// Rounded, so that equal histories give equal numbers in whatever order they are added.
    fn count(&self, i: usize, id: ExpertId) -> f64 {
        let uses = self.history.iter().filter(|(_, _, experts)| experts.contains(&id));
        let sum: f64 = uses.map(|(at, ..)| self.growths[i].powi(*at)).sum();
        if sum == 0.0 { 0.0 } else { (sum.ln() * 1e9).round() }
    }
}

impl Naive for Decay {
    fn observe(&mut self, event: &Event, rows: &[Vec<ExpertId>]) {
        let layer = event.layer;
        for row in rows {
            for i in 0..self.growths.len() {
                let count = |expert| self.count(i, ExpertId { layer, expert });
                let larger = |id: &ExpertId| (0..self.n_expert).filter(|&e| count(e) > count(id.expert)).count();
                let wrong: usize = row.iter().map(larger).sum();
                self.errors[i] = self.errors[i] * 0.98 + wrong as f64;
            }
            let token = self.tokens.entry(layer).or_default();
            *token += 1;
            self.history.push((*token, layer, row.clone()));
        }
    }
    fn touch(&mut self, id: ExpertId) {
        self.lru.touch(id);
    }
    fn value(&self, id: ExpertId) -> (f64, f64) {
        let best = (0..self.errors.len()).min_by(|&a, &b| self.errors[a].total_cmp(&self.errors[b])).unwrap();
        (self.count(best, id), self.lru.value(id).1)
    }
}

#[derive(Default)]
struct Lfuda {
    counts: HashMap<ExpertId, f64>,
    values: HashMap<ExpertId, f64>,
    age: f64,
    lru: Lru,
}

impl Naive for Lfuda {
    fn observe(&mut self, _: &Event, _: &[Vec<ExpertId>]) {}
    fn insert(&mut self, id: ExpertId) {
        self.values.insert(id, self.counts.get(&id).copied().unwrap_or(0.0) + self.age);
    }
    fn touch(&mut self, id: ExpertId) {
        *self.counts.entry(id).or_default() += 1.0;
        self.values.insert(id, self.counts[&id] + self.age);
        self.lru.touch(id);
    }
    fn value(&self, id: ExpertId) -> (f64, f64) {
        (self.values[&id], self.lru.value(id).1)
    }
    fn evicted(&mut self, id: ExpertId) {
        self.age = self.age.max(self.values[&id]);
    }
}

/// Two lists, the oldest first.
#[derive(Default)]
struct Slru {
    fresh: Vec<ExpertId>,
    probation: Vec<ExpertId>,
    protected: Vec<ExpertId>,
    slots: usize,
}

impl Naive for Slru {
    fn observe(&mut self, _: &Event, _: &[Vec<ExpertId>]) {}
    fn insert(&mut self, id: ExpertId) {
        self.fresh.push(id);
    }
    fn touch(&mut self, id: ExpertId) {
        let again = self.probation.contains(&id) || self.protected.contains(&id);
        for list in [&mut self.fresh, &mut self.probation, &mut self.protected] {
            list.retain(|x| *x != id);
        }
        if again {
            self.protected.push(id)
        } else {
            self.probation.push(id)
        }
        if self.protected.len() > self.slots * 4 / 5 {
            self.probation.push(self.protected.remove(0));
        }
    }
    fn value(&self, id: ExpertId) -> (f64, f64) {
        let at = |list: &[ExpertId]| list.iter().position(|x| *x == id).map(|i| i as f64);
        at(&self.protected).map_or_else(|| (0.0, at(&self.probation).unwrap()), |i| (1.0, i))
    }
    fn evicted(&mut self, id: ExpertId) {
        self.probation.retain(|x| *x != id);
        self.protected.retain(|x| *x != id);
    }
}

/// Values in double precision, as sums over all that ever happened; what resembles the present is the ring's to say.
struct Echo {
    n_layer: usize,
    n_expert: u16,
    past: Retrieval,
    /// By layer, what each token used.
    history: HashMap<u16, Vec<Vec<ExpertId>>>,
    values: [HashMap<ExpertId, f64>; 2],
    errors: [f64; 2],
    layer: u16,
    lru: Lru,
}

impl Echo {
    fn new(shape: &CacheShape) -> Self {
        Self {
            n_layer: shape.n_layer(),
            n_expert: shape.n_expert as u16,
            past: Retrieval::new(shape.n_layer(), shape.n_expert),
            history: HashMap::new(),
            values: Default::default(),
            errors: [0.0; 2],
            layer: 0,
            lru: Lru::default(),
        }
    }
    /// The share of the layer's tokens that used the expert, a use counting half after every half-life.
    fn share(&self, id: ExpertId, half_life: f64) -> f64 {
        let tokens = &self.history[&id.layer];
        let weight = |ago: usize| 0.5f64.powf(ago as f64 / half_life);
        let all: f64 = (0..tokens.len()).map(weight).sum();
        let uses = tokens.iter().rev().enumerate().filter(|(_, used)| used.contains(&id));
        uses.map(|(ago, _)| weight(ago)).sum::<f64>() / all
    }
    fn followed(&self, id: ExpertId) -> f64 {
        let tokens = &self.history[&id.layer];
        let kernel = |h: usize| if h == 1 { 0.3 } else { 0.0 } + 0.6 * 0.2 * 0.8f64.powi(h as i32 - 1);
        let at = |m: &hotset::retrieval::Match, h: usize| tokens.len() - 1 - m.age + h;
        let uses = self.past.matches().iter().flat_map(|m| (1..=m.age.min(8)).map(move |h| (m, h)));
        uses.filter(|(m, h)| tokens[at(m, *h)].contains(&id)).map(|(m, h)| f64::from(m.weight) * kernel(h)).sum()
    }
}

impl Naive for Echo {
    fn observe(&mut self, event: &Event, rows: &[Vec<ExpertId>]) {
        self.layer = event.layer;
        self.past.observe(event.borrow());
        let now = rows.last().unwrap();
        let ids = (0..self.n_expert).map(|expert| ExpertId { layer: event.layer, expert });
        for (values, error) in self.values.iter().zip(&mut self.errors) {
            let value = |id: &ExpertId| values.get(id).copied().unwrap_or(0.0);
            // Rounding must not make a difference of what is none.
            let larger = |id: &ExpertId| ids.clone().filter(|other| value(other) > value(id) + 1e-7).count();
            *error = *error * 0.995 + now.iter().map(larger).sum::<usize>() as f64;
        }
        self.history.entry(event.layer).or_default().extend_from_slice(rows);
        for id in ids {
            let (used, followed) = (f64::from(u8::from(now.contains(&id))), self.followed(id));
            let [c16, c64, c512] = [16.0, 64.0, 512.0].map(|half_life| self.share(id, half_life));
            self.values[0].insert(id, followed + 0.06 * used + 0.2 * c16 + 0.1 * c64 + 0.1 * c512);
            self.values[1].insert(id, 0.1 * (followed + 0.06 * used) + 0.2 * c64 + 0.8 * c512);
        }
    }
    fn touch(&mut self, id: ExpertId) {
        self.lru.touch(id);
    }
    fn value(&self, id: ExpertId) -> (f64, f64) {
        let values = &self.values[usize::from(self.errors[1] < self.errors[0])];
        let n_layer = self.n_layer;
        let until = (usize::from(id.layer) + n_layer - usize::from(self.layer) + n_layer - 1) % n_layer + 1;
        let value = values.get(&id).copied().unwrap_or(0.0) * 0.7f64.powf(until as f64 / n_layer as f64);
        ((value * 1e6).round(), self.lru.value(id).1)
    }
}

/// A naive policy for each pool.
struct PerPool {
    pool_of: Vec<usize>,
    pools: Vec<Box<dyn Naive>>,
}

impl PerPool {
    fn new(shape: &CacheShape, one: impl Fn(usize) -> Box<dyn Naive>) -> Self {
        Self { pool_of: shape.pool_of.clone(), pools: shape.slots.iter().map(|&slots| one(slots)).collect() }
    }
    fn of(&mut self, layer: u16) -> &mut dyn Naive {
        &mut *self.pools[self.pool_of[usize::from(layer)]]
    }
}

impl Naive for PerPool {
    fn observe(&mut self, event: &Event, rows: &[Vec<ExpertId>]) {
        self.of(event.layer).observe(event, rows);
    }
    fn insert(&mut self, id: ExpertId) {
        self.of(id.layer).insert(id);
    }
    fn touch(&mut self, id: ExpertId) {
        self.of(id.layer).touch(id);
    }
    fn value(&self, id: ExpertId) -> (f64, f64) {
        self.pools[self.pool_of[usize::from(id.layer)]].value(id)
    }
    fn evicted(&mut self, id: ExpertId) {
        self.of(id.layer).evicted(id);
    }
}

fn naive(kind: PolicyKind, shape: &CacheShape) -> Box<dyn Naive> {
    match kind {
        PolicyKind::Echo => Box::new(Echo::new(shape)),
        _ => Box::new(PerPool::new(shape, |slots| naive_pool(kind, shape.n_expert, slots))),
    }
}

fn naive_pool(kind: PolicyKind, n_expert: usize, slots: usize) -> Box<dyn Naive> {
    match kind {
        PolicyKind::Echo => unreachable!("it sees all pools"),
        PolicyKind::LfuAdaptive => Box::new(Decay::new(&[16.0, 32.0, 128.0], n_expert)),
        PolicyKind::LfuDecay => Box::new(Decay::new(&[16.0], n_expert)),
        PolicyKind::Lfuda => Box::<Lfuda>::default(),
        PolicyKind::Lru => Box::<Lru>::default(),
        PolicyKind::Slru => Box::new(Slru { slots, ..Slru::default() }),
    }
}

/// Runs events as the cache does and compares every victim.
fn same_victims(kind: PolicyKind, shape: &CacheShape, events: &[Event]) {
    let (mut policy, mut naive) = (kind.build(shape), naive(kind, shape));
    let mut past =
        if policy.wants_retrieval() { Retrieval::new(shape.n_layer(), shape.n_expert) } else { Retrieval::off() };
    let mut residents: Vec<Vec<ExpertId>> = vec![Vec::new(); shape.slots.len()];
    let mut evictions = 0;
    for (i, event) in events.iter().enumerate() {
        let pool = shape.pool(event.layer);
        let (slots, residents) = (shape.slots[pool], &mut residents[pool]);
        past.observe(event.borrow());
        policy.observe(event.borrow(), &past);
        let ids: Vec<ExpertId> = event.routed.iter().map(|r| r.id).collect();
        let n_used = event.borrow().n_used();
        naive.observe(event, &ids.chunks(n_used).map(<[_]>::to_vec).collect::<Vec<_>>());
        let mut wanted: Vec<_> = Vec::new();
        event.routed.iter().for_each(|r| {
            if !wanted.contains(r) {
                wanted.push(*r)
            }
        });
        let (here, absent): (Vec<_>, Vec<_>) = wanted.iter().partition(|r| residents.contains(&r.id));
        for r in here {
            policy.touch(r);
            naive.touch(r.id);
        }
        for r in absent {
            if residents.len() == slots {
                let keep = |id: ExpertId| ids.contains(&id);
                let victim = policy.evict(&shape.layers(pool), &keep).expect("somebody is not wanted");
                let all = residents.iter().filter(|id| !keep(**id)).copied();
                let right = all.min_by(|&a, &b| naive.value(a).partial_cmp(&naive.value(b)).unwrap()).unwrap();
                assert_eq!(victim, right, "{}, {shape:?}, event {i}", kind.name());
                naive.evicted(victim);
                residents.retain(|id| *id != victim);
                evictions += 1;
            }
            residents.push(r.id);
            policy.insert(r.id);
            naive.insert(r.id);
            policy.touch(r);
            naive.touch(r.id);
        }
    }
    assert!(evictions > 5, "{}, {shape:?}: {evictions} evictions", kind.name());
}

/// Makes batches of three of the tokens up to the `until`-th.
fn with_prompts(events: Vec<Event>, layers: usize, until: usize) -> Vec<Event> {
    let (prompt, decode) = events.split_at(until * layers);
    let mut all = Vec::new();
    for tokens in prompt.chunks(3 * layers) {
        for layer in 0..layers {
            let rows = tokens.iter().skip(layer).step_by(layers);
            let routed: Vec<_> = rows.clone().flat_map(|e| e.routed.clone()).collect();
            let n_tokens = rows.count() as u32;
            all.push(Event { phase: Phase::Prompt, n_tokens, routed, ..tokens[layer].clone() });
        }
    }
    all.extend_from_slice(decode);
    all
}

#[test]
fn policies_choose_the_victims_of_their_naive_models() {
    for seed in 0..6 {
        let mut dice = Dice(seed);
        let shape = Shape { layers: 2, experts: 12, used: 2, tokens: 90 };
        let events = with_prompts(decoding(&mut dice, shape), 2, 21);
        for &kind in PolicyKind::ALL {
            for slots in [6, 8] {
                let shape = |pool_of, slots| CacheShape { n_expert: 12, pool_of, slots };
                same_victims(kind, &shape(vec![0, 1], vec![slots + 1, slots]), &events);
                same_victims(kind, &shape(vec![0, 0], vec![2 * slots - 3]), &events);
            }
        }
    }
}

/// Weights are scaled down every 4096 tokens at a half-life of 16; the order must not notice.
#[test]
fn counts_survive_long_runs() {
    let shape = CacheShape { n_expert: 8, pool_of: vec![0], slots: vec![4] };
    let events = decoding(&mut Dice(5), Shape { layers: 1, experts: 8, used: 2, tokens: 9000 });
    let run = |events: &[Event]| {
        let mut policy = PolicyKind::LfuDecay.build(&shape);
        (0..8).for_each(|expert| policy.insert(ExpertId { layer: 0, expert }));
        for event in events {
            policy.observe(event.borrow(), &Retrieval::off());
            event.routed.iter().for_each(|r| policy.touch(*r));
        }
        std::iter::from_fn(|| policy.evict(&[0], &|_| false)).collect::<Vec<_>>()
    };
    // What happened 600 tokens ago counts 2^-37: it decides nothing but exact ties.
    assert_eq!(run(&events), run(&events[8400..]));
}

fn setting(policy: SimPolicy, scope: Scope, slots: &[usize]) -> Setting<'_> {
    let drive = Drive { latency_ns: 1000, bytes_per_us: 1000, depth: 1 };
    Setting {
        policy,
        scope,
        slots,
        fill: false,
        prefetch: PrefetchKind::Off,
        vram: None,
        conditions: Conditions { drive, compute: Compute::default(), warmup: 0 },
    }
}

fn outcome(trace: &Path, policy: SimPolicy, scope: Scope, slots: &[usize]) -> Outcome {
    let future = simulate::future(trace).unwrap();
    simulate::replay(trace, &setting(policy, scope, slots), Some(&future)).unwrap()
}

#[test]
fn belady_is_never_beaten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.trace");
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let experts = 4 + dice.below(20);
        let used = 1 + dice.below(3);
        let shape = Shape { layers: 1 + dice.below(3), experts, used, tokens: 20 + dice.below(100) };
        write(&path, header(shape), &decoding(&mut dice, shape));
        for scope in [Scope::Layer, Scope::Global] {
            let slots = simulate::slots(scope, used + dice.below(experts - used + 1), &header(shape));
            let misses = |policy| outcome(&path, policy, scope, &slots).stats.decode.miss;
            let (belady, bypass) = (misses(SimPolicy::Belady), misses(SimPolicy::BeladyBypass));
            assert!(bypass <= belady, "seed {seed}: bypass can only help");
            for policy in SimPolicy::all() {
                // The static oracle may bypass.
                let bound = if policy == SimPolicy::StaticOracle { bypass } else { belady };
                let what = format!("seed {seed}, {shape:?}, {} slots {slots:?}, {}", scope.name(), policy.name());
                assert!(policy == SimPolicy::BeladyBypass || misses(policy) >= bound, "{what}");
            }
        }
    }
}

/// The fewest misses by trying every choice of victims. Sets of experts are bit masks.
fn fewest_misses(events: &[u32], slots: usize, bypass: bool) -> u64 {
    let mut best: HashMap<u32, u64> = HashMap::from([(0, 0)]);
    for &wanted in events {
        let mut next: HashMap<u32, u64> = HashMap::new();
        for (&held, &misses) in &best {
            let misses = misses + u64::from((wanted & !held).count_ones());
            let all = held | wanted;
            let mut kept = all;
            loop {
                let fits = kept.count_ones() as usize <= slots && (bypass || kept & wanted == wanted);
                if fits {
                    let m = next.entry(kept).or_insert(u64::MAX);
                    *m = misses.min(*m);
                }
                if kept == 0 {
                    break;
                }
                kept = (kept - 1) & all;
            }
        }
        best = next;
    }
    *best.values().min().unwrap()
}

#[test]
fn belady_is_what_an_exhaustive_search_finds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.trace");
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let shape = Shape { layers: 1, experts: 7, used: 1 + dice.below(3), tokens: 25 };
        let events = decoding(&mut dice, shape);
        write(&path, header(shape), &events);
        let masks: Vec<u32> = events.iter().map(|e| e.routed.iter().map(|r| 1 << r.id.expert).sum()).collect();
        for slots in shape.used..6 {
            for (policy, bypass) in [(SimPolicy::Belady, false), (SimPolicy::BeladyBypass, true)] {
                let misses = outcome(&path, policy, Scope::Layer, &[slots]).stats.decode.miss;
                assert_eq!(misses, fewest_misses(&masks, slots, bypass), "seed {seed}, {slots} slots, {bypass}");
            }
        }
    }
}

/// `docs/traces.md` goes through this by hand.
#[test]
fn a_toy_trace_that_can_be_checked_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy.trace");
    let shape = Shape { layers: 1, experts: 4, used: 1, tokens: 8 };
    let mut events = decoding(&mut Dice(0), shape);
    for (event, expert) in events.iter_mut().zip([0, 1, 0, 2, 0, 3, 1, 0]) {
        event.routed[0].id.expert = expert;
    }
    write(&path, header(shape), &events);
    let hits = |policy| {
        let counts = outcome(&path, policy, Scope::Layer, &[2]).stats.decode;
        assert_eq!(counts.hit + counts.miss, 8);
        counts.hit
    };
    let live = |kind| hits(SimPolicy::Live(kind));
    assert_eq!((live(PolicyKind::Lru), live(PolicyKind::LfuDecay), live(PolicyKind::LfuAdaptive)), (2, 3, 3));
    assert_eq!((hits(SimPolicy::Belady), hits(SimPolicy::BeladyBypass), hits(SimPolicy::StaticOracle)), (3, 4, 4));
    // A read takes 1 µs, and its 1000 bytes another: 2 µs a miss, all of it stall.
    let lru = outcome(&path, SimPolicy::Live(PolicyKind::Lru), Scope::Layer, &[2]);
    assert_eq!((lru.stats.decode.stall_ns, lru.decode_ns, lru.decode_tokens), (6 * 2000, 6 * 2000, 8));
}

/// A changed figure here is a changed policy: say so in its header and in docs/policies.md.
#[test]
fn golden_miss_counts() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/trace/made-up.trace");
    let shape = Shape { layers: 3, experts: 32, used: 4, tokens: 300 };
    let folder = tempfile::tempdir().unwrap();
    let again = folder.path().join("again.trace");
    write(&again, header(shape), &decoding(&mut Dice(2026), shape));
    if std::env::var_os("HOTSET_BLESS").is_some() {
        std::fs::copy(&again, &path).unwrap();
    }
    assert!(std::fs::read(&again).unwrap() == std::fs::read(&path).unwrap(), "the stored trace is that of the seed");
    let misses = |policy: SimPolicy| {
        let of = |scope, n| outcome(&path, policy, scope, &simulate::slots(scope, n, &header(shape))).stats.decode.miss;
        [of(Scope::Layer, 4), of(Scope::Layer, 8), of(Scope::Layer, 16), of(Scope::Global, 8)]
    };
    let found: Vec<_> = SimPolicy::all().into_iter().map(|p| (p.name(), misses(p))).collect();
    assert_eq!(found, GOLDEN);
}

/// Misses with 4, 8 and 16 slots per layer and with 24 in one pool, of 3600 requests.
const GOLDEN: [(&str, [u64; 4]); 10] = [
    ("lfu-adaptive", [2103, 1688, 980, 2280]),
    ("echo", [2103, 1685, 973, 1683]),
    ("lfu-decay", [2103, 1688, 981, 2279]),
    ("lfuda", [2103, 1709, 986, 1786]),
    ("lru", [2103, 1727, 1006, 1812]),
    ("slru", [2103, 1698, 977, 2571]),
    ("belady", [2103, 1182, 521, 1052]),
    ("belady-bypass", [1634, 1063, 496, 1016]),
    ("static-oracle", [2899, 2309, 1333, 2309]),
    ("random", [2103, 1739, 1051, 1990]),
];
