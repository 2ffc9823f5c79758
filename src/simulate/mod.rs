//! What a cache of some size and policy would have done for a recorded run: the *live* [`ExpertCache`] and prefetcher,
//! replaying a trace over a simulated drive on a virtual clock. There is no second cache, so a replay's counters equal
//! those of the live run (`tests/replay.rs`).
//!
//! Two bounds beside the policies are no caches and are computed from the trace alone ([`bounds`]): Belady with bypass
//! and the static oracle.
//!
//! Memory: a chunk of the trace and the cache's index, however long the trace; the oracles hold its uses, 4 bytes each.
//! Must not know: models, arithmetic, terminals.

use std::{path::Path, sync::Arc};

use serde::Serialize;

use crate::{
    Error, Result,
    expert::{CacheStats, DeviceSlots, ExpertCache, ExpertStore, Experts, LayerHits, Pace, Scope, VramStats},
    id::ExpertId,
    io::{SimClock, SimIo},
    policy::{Belady, CachePolicy, CacheShape, Future, PolicyKind, Random, Window},
    prefetch::PrefetchKind,
    trace::{
        LayerEvent, Phase, TraceSink,
        file::{Header, TraceReader},
    },
};

pub mod bounds;
pub mod decompose;
pub mod quality;
pub mod reuse;
mod sizes;

pub use sizes::{SlotSpec, default_slots};

use self::{
    quality::{Quality, Recall},
    reuse::{Hits, Reuse},
};

/// What decides who leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimPolicy {
    /// One that the engine has.
    Live(PolicyKind),
    /// The optimum of the live cache, which knows the future.
    Belady,
    /// The optimum where an expert may be used without taking a slot.
    BeladyBypass,
    /// An oracle that knows so many tokens and counts beyond.
    Window(u32),
    /// The best choice of residents that never changes, made with knowledge of the whole trace.
    StaticOracle,
    /// A seeded die.
    Random,
}

/// What [`SimPolicy::Random`] starts from.
const SEED: u64 = 1;

impl SimPolicy {
    /// All of them, the engine's default first.
    pub fn all() -> Vec<SimPolicy> {
        let oracles = [SimPolicy::Belady, SimPolicy::BeladyBypass, SimPolicy::StaticOracle, SimPolicy::Random];
        PolicyKind::ALL.iter().map(|&kind| SimPolicy::Live(kind)).chain(oracles).collect()
    }
    /// The name that `--policy` takes.
    pub fn name(self) -> &'static str {
        match self {
            SimPolicy::Live(kind) => kind.name(),
            SimPolicy::Belady => "belady",
            SimPolicy::BeladyBypass => "belady-bypass",
            SimPolicy::Window(_) => "window",
            SimPolicy::StaticOracle => "static-oracle",
            SimPolicy::Random => "random",
        }
    }
    /// The policies of these names, each once: those of [`SimPolicy::name`], `default`, or `all`.
    ///
    /// # Errors
    /// A name that is none of them, and the names that are.
    pub fn choose(names: &[String]) -> Result<Vec<SimPolicy>, String> {
        let all = SimPolicy::all();
        let mut chosen: Vec<SimPolicy> = Vec::new();
        for name in names {
            let named = match name.as_str() {
                "all" => &all[..],
                "default" => &all[..1],
                name => match all.iter().position(|p| p.name() == name) {
                    Some(i) => &all[i..=i],
                    None => {
                        let known: Vec<_> = all.iter().map(|p| p.name()).collect();
                        return Err(format!("{name}: the policies are all, default, {}", known.join(", ")));
                    }
                },
            };
            named.iter().for_each(|policy| {
                if !chosen.contains(policy) {
                    chosen.push(*policy);
                }
            });
        }
        Ok(chosen)
    }
    /// Whether it has to see the trace before it runs.
    pub fn needs_future(self) -> bool {
        !matches!(self, SimPolicy::Live(_) | SimPolicy::Random)
    }
}

/// A drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drive {
    /// Before the first byte of each request.
    pub latency_ns: u64,
    /// Then so many bytes per microsecond (MB/s), one request's after another's.
    pub bytes_per_us: u64,
    /// Requests whose latencies run side by side.
    pub depth: usize,
}

impl Drive {
    /// The drive where nobody names one: what a good NVMe drive gives to reads of an expert's size.
    pub const NVME: Drive = Drive { latency_ns: 80_000, bytes_per_us: 3500, depth: 1 };
}

/// What computing takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compute {
    /// Of each layer event before its experts are known (attention): only prefetches are under way.
    pub layer_ns: u64,
    /// Of each decoded layer event besides, for each millisecond of waiting in the event before it, as measured: threads
    /// may have gone to sleep, caches grown cold.
    pub layer_wait_ns: u64,
    /// Of each layer event after that (a shared expert), while its reads are under way.
    pub shared_ns: u64,
    /// Of each hand-out of experts, however many: the threads are called together.
    pub hand_out_ns: u64,
    /// Of each expert in it.
    pub expert_ns: u64,
    /// Of each hand-out that had to be waited for: the threads are woken up.
    pub wake_ns: u64,
    /// Of each decoded token outside its MoE layers (dense layers, output): before the first of these.
    pub token_ns: u64,
}

impl Compute {
    fn layer(&self, waited_ns: u64) -> u64 {
        self.layer_ns + (u128::from(self.layer_wait_ns) * u128::from(waited_ns) / 1_000_000) as u64
    }
    fn hand_out(&self, experts: usize, after_a_wait: bool) -> u64 {
        self.hand_out_ns + experts as u64 * self.expert_ns + if after_a_wait { self.wake_ns } else { 0 }
    }
}

/// What the runs of a sweep have in common.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Where experts are read from.
    pub drive: Drive,
    /// What computing takes.
    pub compute: Compute,
    /// Tokens at the start, prompts' and decoded ones, that run but do not count.
    pub warmup: u64,
}

/// A second tier of experts, in a device's memory: those that have a slot there are computed on it, beside the CPU.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTier<'a> {
    /// Slots of each MoE layer.
    pub slots: &'a [usize],
    /// Events of more rows are none of the device's.
    pub max_rows: usize,
    /// Of each expert that it computes. One follows another, while the CPU goes on.
    pub expert_ns: u64,
}

/// One run of the simulator.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// Who leaves.
    pub policy: SimPolicy,
    /// How slots are shared.
    pub scope: Scope,
    /// Slots of each pool, as [`ExpertStore::pools`] numbers them.
    pub slots: &'a [usize],
    /// What is read ahead.
    pub prefetch: PrefetchKind,
    /// Whether free slots fill while the drive is idle: what the bounds cannot do.
    pub fill: bool,
    /// A device's slots, for policies that the engine has.
    pub vram: Option<DeviceTier<'a>>,
    /// Drive, computing, warm-up.
    pub conditions: Conditions,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What the cache counted.
    pub stats: CacheStats,
    /// What the device's slots counted; 0 without a device.
    pub vram: VramStats,
    /// Tokens that were decoded.
    pub decode_tokens: u64,
    /// Virtual time in decoding; 0 for what is no cache.
    pub decode_ns: u64,
    /// Virtual time in prompts; 0 for what is no cache.
    pub prompt_ns: u64,
}

/// Lets the clock pass for each event where the live engine computes: after the reads were submitted.
struct Computing(SimClock, u64);

impl TraceSink for Computing {
    fn record(&mut self, _: LayerEvent<'_>) {
        self.0.advance(self.1);
    }
}

/// Tells which events count: all after the warm-up.
struct WarmUp {
    tokens: u64,
    seen: u64,
    over: bool,
}

impl WarmUp {
    fn new(tokens: u64) -> Self {
        Self { tokens, seen: 0, over: tokens == 0 }
    }

    /// Whether the trace's next event counts.
    fn is_over(&mut self, event: LayerEvent<'_>) -> bool {
        if event.layer == 0 {
            self.over = self.seen >= self.tokens;
            self.seen += u64::from(event.n_tokens);
        }
        self.over
    }

    fn finish(self) -> Result<()> {
        if self.over {
            return Ok(());
        }
        Err(Error::request("the warm-up", format!("fewer tokens than the trace's {}", self.seen), self.tokens))
    }
}

/// Replays a trace.
///
/// `future` is that of [`future`], needed where [`SimPolicy::needs_future`].
///
/// # Errors
/// A trace that cannot be read, memory that is refused.
pub fn replay(trace: &Path, setting: &Setting<'_>, future: Option<&Arc<Future>>) -> Result<Outcome> {
    replay_in_detail(trace, setting, future).map(|(outcome, _)| outcome)
}

/// What a replay had counted at some time.
type Before = (CacheStats, VramStats, Vec<LayerHits>, Pace);

/// What [`replay_in_detail`] tells beside the outcome; nothing for the bounds that are no caches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Detail {
    /// What decoding found in each layer. (n_moe_layer or 0)
    pub layers: Vec<LayerHits>,
    /// Where decoding's time went.
    pub pace: Pace,
    /// What guesses were worth; the first is the control.
    pub foresight: Vec<Recall>,
    /// What decoding hit, by how long ago each expert was used before; see [`reuse::name`].
    pub reuse: [Hits; reuse::BINS],
}

/// [`replay`], and more about it.
///
/// # Errors
/// As [`replay`].
pub fn replay_in_detail(
    trace: &Path,
    setting: &Setting<'_>,
    future: Option<&Arc<Future>>,
) -> Result<(Outcome, Detail)> {
    let mut trace = TraceReader::open(trace)?;
    let no_cache = |outcome| (outcome, Detail::default());
    match setting.policy {
        SimPolicy::BeladyBypass => {
            return bounds::belady_bypass(&mut trace, setting, known(future)).map(no_cache);
        }
        SimPolicy::StaticOracle => {
            return bounds::static_oracle(&mut trace, setting, known(future)).map(no_cache);
        }
        SimPolicy::Live(_) | SimPolicy::Belady | SimPolicy::Window(_) | SimPolicy::Random => {}
    }
    let build = |shape: &CacheShape| -> Box<dyn CachePolicy> {
        match setting.policy {
            SimPolicy::Live(kind) => kind.build(shape),
            SimPolicy::Random => Box::new(Random::new(shape, SEED)),
            SimPolicy::Window(tokens) => Box::new(Window::new(shape, known(future).clone(), tokens)),
            _ => Box::new(Belady::new(shape, known(future).clone())),
        }
    };
    through_cache(&mut trace, setting, build)
}

/// [`replay`] with a policy of the caller's in the place of [`Setting::policy`].
///
/// # Errors
/// As [`replay`].
pub fn replay_with(
    trace: &Path,
    setting: &Setting<'_>,
    build: impl FnOnce(&CacheShape) -> Box<dyn CachePolicy>,
) -> Result<Outcome> {
    through_cache(&mut TraceReader::open(trace)?, setting, build).map(|(outcome, _)| outcome)
}

/// The live cache with this policy, event after event.
fn through_cache(
    trace: &mut TraceReader,
    setting: &Setting<'_>,
    build: impl FnOnce(&CacheShape) -> Box<dyn CachePolicy>,
) -> Result<(Outcome, Detail)> {
    let header = trace.header();
    let store = store(header);
    let prefetcher = setting.prefetch.build(header.n_expert, header.n_expert_used);
    let (mut quality, mut reuse) = (Quality::new(header), Reuse::new(header.n_layer, header.n_expert));
    let Conditions { drive: Drive { latency_ns, bytes_per_us, depth }, compute, warmup } = setting.conditions;
    let io = SimIo::new(latency_ns, bytes_per_us).with_depth(depth);
    let clock = io.clock();
    let cache = ExpertCache::with_policy(store, setting.scope, setting.slots, build, Box::new(io))?;
    let mut experts = Experts::new(cache, prefetcher, Box::new(Computing(clock.clone(), compute.shared_ns)));
    experts.fill_free_slots(setting.fill);
    if let (Some(tier), SimPolicy::Live(kind)) = (setting.vram, setting.policy) {
        experts.use_vram(DeviceSlots::new(tier.slots, header.n_expert, kind, tier.max_rows));
    }
    let device_ns = setting.vram.map_or(0, |tier| tier.expert_ns);
    let vram_stats = |experts: &Experts| experts.vram().map_or(VramStats::default(), |slots| *slots.stats());
    let (mut outcome, mut warmup) = (Outcome::default(), WarmUp::new(warmup));
    // What it had counted when the warm-up was over.
    let mut before: Option<Before> = None;
    let mut ready: Vec<ExpertId> = Vec::new();
    let mut waited = 0; // in the decoded event before
    while let Some(event) = trace.next_event()? {
        let (start, counts) = (clock.now_ns(), warmup.is_over(event));
        if counts && before.is_none() {
            before =
                Some((*experts.stats(), vram_stats(&experts), experts.cache().by_layer().to_vec(), *experts.pace()));
        }
        if event.phase == Phase::Decode && event.layer == 0 {
            clock.advance(compute.token_ns);
        }
        clock.advance(compute.layer(waited));
        let stalls = experts.stats().decode.stall_ns;
        experts.request(event);
        let device_done = clock.now_ns() + device_ns * experts.vram().map_or(0, |slots| slots.hits().len() as u64);
        reuse.add(event, experts.cache().absent(), counts);
        if counts {
            quality.add(event, experts.cache().absent(), experts.guesses());
        }
        loop {
            let before = experts.stats().total().stall_ns;
            experts.next_ready(&mut ready)?;
            if ready.is_empty() {
                break;
            }
            for &id in &ready {
                experts.promote(id);
            }
            clock.advance(compute.hand_out(ready.len(), experts.stats().total().stall_ns > before));
        }
        clock.advance(device_done.saturating_sub(clock.now_ns()));
        waited = experts.stats().decode.stall_ns - stalls;
        let ns = clock.now_ns() - start;
        if !counts {
            continue;
        }
        if event.phase == Phase::Prompt {
            outcome.prompt_ns += ns;
        } else {
            outcome.decode_ns += ns;
            outcome.decode_tokens += u64::from(event.layer == 0) * u64::from(event.n_tokens);
        }
    }
    warmup.finish()?;
    let mut layers = experts.cache().by_layer().to_vec();
    let (stats, vram, layers_before, pace) =
        before.unwrap_or_else(|| (CacheStats::default(), VramStats::default(), layers.clone(), Pace::default()));
    layers.iter_mut().zip(&layers_before).for_each(|(layer, before)| *layer = layer.since(before));
    outcome.stats = experts.stats().since(&stats);
    outcome.vram = vram_stats(&experts).since(&vram);
    let (pace, foresight) = (experts.pace().since(&pace), quality.recall());
    Ok((outcome, Detail { layers, pace, foresight, reuse: reuse.bins() }))
}

fn known(future: Option<&Arc<Future>>) -> &Arc<Future> {
    future.expect("a policy that needs the future is given it")
}

/// When each expert is used, for the oracles.
///
/// # Errors
/// A trace that cannot be read.
pub fn future(trace: &Path) -> Result<Arc<Future>> {
    let mut trace = TraceReader::open(trace)?;
    let mut future = Future::new(trace.header().n_layer, trace.header().n_expert);
    while let Some(event) = trace.next_event()? {
        future.push(event);
    }
    Ok(Arc::new(future))
}

/// The pools' slots for `per_layer` slots of each layer, at most all experts.
pub fn slots(scope: Scope, per_layer: usize, header: &Header) -> Vec<usize> {
    let each = per_layer.min(header.n_expert);
    let pool_of = store(header).pools(scope);
    let mut slots = vec![0; pool_of.iter().max().map_or(0, |last| last + 1)];
    pool_of.into_iter().for_each(|pool| slots[pool] += each);
    slots
}

fn store(header: &Header) -> ExpertStore {
    ExpertStore::unfiled(&header.expert_bytes, header.n_expert)
}

/// A row of results. The fields are the JSON's keys.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// [`SimPolicy::name`].
    pub policy: &'static str,
    /// [`Scope::name`].
    pub scope: &'static str,
    /// [`PrefetchKind::name`].
    pub prefetch: &'static str,
    /// Slots of a layer; with one pool for all, its slots divided by the layers.
    pub slots_per_layer: usize,
    /// The same as a share of the experts, 0 to 1.
    pub share: f64,
    /// Bytes of all slots; `None` where the trace does not know what an expert takes.
    pub budget_bytes: Option<u64>,
    /// Decoded tokens.
    pub tokens: u64,
    /// Slots of a layer in a device's memory; 0 without one.
    pub vram_slots_per_layer: usize,
    /// Computed on the device, both phases, an expert once per event; `hit`, `late` and `miss` are of the others.
    pub vram_hit: u64,
    /// vram_hit / what the events that the device takes part in wanted.
    pub vram_hit_rate: Option<f64>,
    /// Copied to the device.
    pub vram_uploads: u64,
    /// While decoding, as are the next four.
    pub hit: u64,
    /// Asked for while the read was in flight.
    pub late: u64,
    /// Had to be read.
    pub miss: u64,
    /// hit / (hit + late + miss).
    pub hit_rate: Option<f64>,
    /// Of the way from LRU to Belady, how much this policy goes; `None` unless both are among the rows.
    pub gap_won: Option<f64>,
    /// The hit rate of prompts.
    pub prompt_hit_rate: Option<f64>,
    /// Bytes of demand reads, both phases.
    pub demand_bytes: u64,
    /// Prefetch reads.
    pub prefetches: u64,
    /// Bytes of prefetch reads.
    pub prefetch_bytes: u64,
    /// Prefetched and then asked for, there or still in flight.
    pub prefetch_useful: u64,
    /// Those of them that were still in flight, both phases.
    pub prefetch_late: u64,
    /// Prefetched and evicted unused. What is neither useful nor wasted was still there, unused, at the end.
    pub prefetch_wasted: u64,
    /// Reads into free slots, with [`Setting::fill`].
    pub fill_reads: u64,
    /// Those of these experts that were then asked for.
    pub fill_used: u64,
    /// prefetch_useful / prefetches, as are the next two of theirs.
    pub useful_share: Option<f64>,
    /// Part of `useful_share`.
    pub late_share: Option<f64>,
    /// Beside `useful_share`.
    pub wasted_share: Option<f64>,
    /// What guesses were worth; the first is the control. Empty for what is no cache.
    pub foresight: Vec<Recall>,
    /// Virtual time in which decoding did nothing but wait; `None` where no time passes.
    pub stall_ms: Option<f64>,
    /// Decoded tokens a second of virtual time; `None` where no time passes.
    pub tok_s: Option<f64>,
}

impl Row {
    /// Of a run on a trace of that shape.
    pub fn new(setting: &Setting<'_>, header: &Header, outcome: &Outcome, foresight: Vec<Recall>) -> Self {
        let Header { expert_bytes, n_expert, n_layer, .. } = header;
        let total: usize = setting.slots.iter().sum();
        let per_layer = total / (*n_layer).max(1);
        let (stats, decode) = (&outcome.stats, &outcome.stats.decode);
        // Nothing else is in flight when a layer asks: demand reads are waited for.
        let late = stats.total().late;
        let of_prefetches = |n: u64| (stats.prefetches > 0).then(|| n as f64 / stats.prefetches as f64);
        let largest = expert_bytes.iter().copied().max().unwrap_or(0);
        let pool_of = store(header).pools(setting.scope);
        let slot_bytes = |pool: usize| {
            let members = pool_of.iter().zip(expert_bytes).filter(|(of, _)| **of == pool);
            members.map(|(_, bytes)| *bytes).max().unwrap_or(0)
        };
        let budget = setting.slots.iter().enumerate().map(|(pool, &n)| n as u64 * slot_bytes(pool)).sum();
        Self {
            policy: setting.policy.name(),
            scope: setting.scope.name(),
            prefetch: setting.prefetch.name(),
            slots_per_layer: per_layer,
            share: per_layer as f64 / *n_expert as f64,
            budget_bytes: (largest > 0).then_some(budget),
            tokens: outcome.decode_tokens,
            vram_slots_per_layer: setting.vram.map_or(0, |tier| tier.slots.iter().sum::<usize>() / (*n_layer).max(1)),
            vram_hit: outcome.vram.hit,
            vram_hit_rate: outcome.vram.hit_rate(),
            vram_uploads: outcome.vram.uploads,
            hit: decode.hit,
            late: decode.late,
            miss: decode.miss,
            hit_rate: decode.hit_rate(),
            gap_won: None,
            prompt_hit_rate: stats.prompt.hit_rate(),
            demand_bytes: stats.total().demand_bytes,
            prefetches: stats.prefetches,
            prefetch_bytes: stats.prefetch_bytes,
            prefetch_useful: stats.prefetch_useful,
            prefetch_late: late,
            prefetch_wasted: stats.prefetch_wasted,
            fill_reads: stats.fill_reads,
            fill_used: stats.fill_used,
            useful_share: of_prefetches(stats.prefetch_useful),
            late_share: of_prefetches(late),
            wasted_share: of_prefetches(stats.prefetch_wasted),
            foresight,
            stall_ms: (outcome.decode_ns > 0).then(|| decode.stall_ns as f64 / 1e6),
            tok_s: (outcome.decode_ns > 0).then(|| outcome.decode_tokens as f64 * 1e9 / outcome.decode_ns as f64),
        }
    }
}

/// Fills in [`Row::gap_won`] where the rows have LRU and Belady of the same scope, slots and prefetcher.
pub fn compare(rows: &mut [Row]) {
    let find = |rows: &[Row], like: &Row, policy: &str| {
        let same = |r: &&Row| {
            (r.policy, r.scope, r.prefetch, r.slots_per_layer)
                == (policy, like.scope, like.prefetch, like.slots_per_layer)
        };
        rows.iter().find(same).and_then(|r| r.hit_rate)
    };
    for i in 0..rows.len() {
        let (lru, belady) = (find(rows, &rows[i], "lru"), find(rows, &rows[i], "belady"));
        if let (Some(rate), Some(lru), Some(belady)) = (rows[i].hit_rate, lru, belady)
            && belady > lru
        {
            rows[i].gap_won = Some((rate - lru) / (belady - lru));
        }
    }
}
