//! An eviction policy of one's own, on a recorded trace, beside the engine's: `cargo run --release --example policy -- [TRACE]`.
//!
//! It keeps what was used in both of the last two tokens, and of the rest what was used last.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use hotset::{
    Result,
    expert::Scope,
    id::ExpertId,
    policy::{CachePolicy, CacheShape, PolicyKind, Random},
    prefetch::PrefetchKind,
    simulate::{Compute, Conditions, Drive, Outcome, Setting, SimPolicy, replay_with, slots},
    trace::{Routed, file::TraceReader},
};

const TRACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/trace/made-up.trace");

struct Twice {
    shape: CacheShape,
    resident: Vec<bool>,
    /// The last use of each expert, and the one before. (experts)
    used: Vec<[u64; 2]>,
    now: u64,
}

impl CachePolicy for Twice {
    fn name(&self) -> &'static str {
        "twice"
    }
    fn insert(&mut self, id: ExpertId) {
        let key = self.shape.key(id);
        self.resident[key] = true;
    }
    fn touch(&mut self, routed: Routed) {
        let key = self.shape.key(routed.id);
        self.now += 1;
        self.used[key] = [self.now, self.used[key][0]];
    }
    fn evict(&mut self, layers: &[u16], keep: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let keys = 0..self.shape.experts();
        let ids = keys.filter(|&key| self.resident[key]).map(|key| self.shape.id(key));
        let victim = ids
            .filter(|id| layers.contains(&id.layer) && !keep(*id))
            .min_by_key(|id| self.used[self.shape.key(*id)].iter().sum::<u64>())?;
        self.remove(victim);
        Some(victim)
    }
    fn remove(&mut self, id: ExpertId) {
        let key = self.shape.key(id);
        self.resident[key] = false;
    }
}

fn main() -> Result<()> {
    let trace = std::env::args().nth(1).unwrap_or(TRACE.to_owned());
    let trace = trace.as_ref();
    let header = TraceReader::open(trace)?.header().clone();
    let drive = Drive { latency_ns: 100_000, bytes_per_us: 2_000, depth: 4 };
    let slots = slots(Scope::Layer, header.n_expert.div_ceil(2), &header);
    let setting = Setting {
        policy: SimPolicy::Live(PolicyKind::Lru), // what `replay_with` is given takes its place
        scope: Scope::Layer,
        slots: &slots,
        prefetch: PrefetchKind::Off,
        fill: false,
        vram: None,
        conditions: Conditions { drive, compute: Compute::default(), warmup: 0 },
    };
    let twice = |shape: &CacheShape| -> Box<dyn CachePolicy> {
        let n = shape.experts();
        Box::new(Twice { shape: shape.clone(), resident: vec![false; n], used: vec![[0; 2]; n], now: 0 })
    };
    let random = |shape: &CacheShape| -> Box<dyn CachePolicy> { Box::new(Random::new(shape, 1)) };
    let lru = |shape: &CacheShape| PolicyKind::Lru.build(shape);
    report("twice", replay_with(trace, &setting, twice)?);
    report("lru", replay_with(trace, &setting, lru)?);
    report("random", replay_with(trace, &setting, random)?);
    Ok(())
}

fn report(name: &str, outcome: Outcome) {
    let decode = outcome.stats.decode;
    let uses = decode.hit + decode.late + decode.miss;
    println!("{name:6} {:5.1} % of uses hit", 100.0 * decode.hit as f64 / uses as f64);
}
