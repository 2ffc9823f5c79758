//! What no cache of a size can beat, from the trace alone.
//!
//! *Belady with bypass*: an expert may be used without taking a slot, so that after each event the slots hold those of
//! residents and used experts that are needed soonest. *Static oracle*: each pool holds the experts that its whole trace
//! uses most, for ever; each is read once, at its first use. Both count an expert once an event, as the cache does, and
//! neither reads ahead.

use super::{Outcome, Setting, WarmUp, store};
use crate::{
    Result,
    expert::{CacheStats, PhaseStats},
    policy::{Future, NEVER},
    trace::{LayerEvent, Phase, file::TraceReader},
};

/// The distinct experts of an event, as numbers among those of all layers.
fn distinct(event: LayerEvent<'_>, n_expert: usize, keys: &mut Vec<usize>) {
    keys.clear();
    keys.extend(event.routed.iter().map(|r| usize::from(r.id.layer) * n_expert + usize::from(r.id.expert)));
    keys.sort_unstable();
    keys.dedup();
}

fn count(outcome: &mut Outcome, event: LayerEvent<'_>, hit: u64, wanted: u64, expert_bytes: u64) {
    let CacheStats { prompt, decode, .. } = &mut outcome.stats;
    let counts: &mut PhaseStats = if event.phase == Phase::Decode { decode } else { prompt };
    counts.events += 1;
    counts.hit += hit;
    counts.miss += wanted - hit;
    counts.demand_bytes += (wanted - hit) * expert_bytes;
    if event.phase == Phase::Decode && event.layer == 0 {
        outcome.decode_tokens += u64::from(event.n_tokens);
    }
}

/// See the module.
///
/// # Errors
/// A trace that cannot be read.
pub fn belady_bypass(trace: &mut TraceReader, setting: &Setting<'_>, future: &Future) -> Result<Outcome> {
    let (slots, pool_of) = (setting.slots, store(trace.header()).pools(setting.scope));
    let (bytes, n_expert) = (trace.header().expert_bytes.clone(), trace.header().n_expert);
    let mut residents = Residents::new(future, slots.len());
    let (mut outcome, mut keys, mut warmup) = (Outcome::default(), Vec::new(), WarmUp::new(setting.conditions.warmup));
    while let Some(event) = trace.next_event()? {
        let i = pool_of[usize::from(event.layer)];
        distinct(event, n_expert, &mut keys);
        let hit = residents.run(future, &keys, i, slots[i]);
        if warmup.is_over(event) {
            count(&mut outcome, event, hit, keys.len() as u64, bytes[usize::from(event.layer)]);
        }
    }
    warmup.finish()?;
    Ok(outcome)
}

/// Who is resident under Belady with bypass.
struct Residents {
    /// (pools, residents)
    pools: Vec<Vec<usize>>,
    /// (n_moe_layer, n_expert)
    resident: Vec<bool>,
    /// Uses that have passed. (n_moe_layer, n_expert)
    past: Vec<usize>,
}

impl Residents {
    fn new(future: &Future, n_pool: usize) -> Self {
        let n = future.uses().len();
        Self { pools: vec![Vec::new(); n_pool], resident: vec![false; n], past: vec![0; n] }
    }

    /// One event in a pool of so many slots; the hits.
    fn run(&mut self, future: &Future, keys: &[usize], pool: usize, slots: usize) -> u64 {
        let pool = &mut self.pools[pool];
        let mut hit = 0;
        for &key in keys {
            self.past[key] += 1;
            hit += u64::from(self.resident[key]);
            if !self.resident[key] {
                self.resident[key] = true;
                pool.push(key);
            }
        }
        let next = |key: usize| future.uses()[key].get(self.past[key]).copied().unwrap_or(NEVER);
        while pool.len() > slots {
            let last = (0..pool.len()).max_by_key(|&i| next(pool[i])).expect("more than `slots`");
            self.resident[pool.swap_remove(last)] = false;
        }
        hit
    }
}

/// See the module.
///
/// # Errors
/// A trace that cannot be read.
pub fn static_oracle(trace: &mut TraceReader, setting: &Setting<'_>, future: &Future) -> Result<Outcome> {
    let (slots, pool_of) = (setting.slots, store(trace.header()).pools(setting.scope));
    let (bytes, n_expert) = (trace.header().expert_bytes.clone(), trace.header().n_expert);
    let mut by_uses: Vec<usize> = (0..future.uses().len()).collect();
    by_uses.sort_by_key(|&key| std::cmp::Reverse(future.uses()[key].len()));
    let mut room = slots.to_vec();
    // Whether a pool holds each expert.
    let mut held = vec![false; by_uses.len()];
    for key in by_uses {
        let room = &mut room[pool_of[key / n_expert]];
        held[key] = *room > 0;
        *room = room.saturating_sub(1);
    }
    let mut seen = vec![false; held.len()];
    let (mut outcome, mut keys, mut warmup) = (Outcome::default(), Vec::new(), WarmUp::new(setting.conditions.warmup));
    while let Some(event) = trace.next_event()? {
        distinct(event, n_expert, &mut keys);
        let hit = keys.iter().filter(|&&key| held[key] && std::mem::replace(&mut seen[key], true)).count();
        if warmup.is_over(event) {
            count(&mut outcome, event, hit as u64, keys.len() as u64, bytes[usize::from(event.layer)]);
        }
    }
    warmup.finish()?;
    Ok(outcome)
}
