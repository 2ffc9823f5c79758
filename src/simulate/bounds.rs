//! What no cache of a size can beat, from the trace alone.
//!
//! *Belady with bypass*: an expert may be used without taking a slot, so that after each event the slots hold those of
//! residents and used experts that are needed soonest. *Static oracle*: each pool holds the experts that its whole trace
//! uses most, for ever; each is read once, at its first use. Both count an expert once an event, as the cache does, and
//! neither reads ahead.

use std::sync::Arc;

use super::{Outcome, Setting, WarmUp, pool_of};
use crate::{
    Result,
    expert::{CacheStats, PhaseStats},
    policy::Future,
    trace::{LayerEvent, Phase, file::TraceReader},
};

const NEVER: u32 = u32::MAX;

/// The distinct experts of an event, as numbers in their pool.
fn distinct(event: LayerEvent<'_>, future: &Future, keys: &mut Vec<usize>) {
    keys.clear();
    keys.extend(event.routed.iter().map(|r| future.shape().key(r.id)));
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

/// See the module. `futures` are those of the scope's pools.
///
/// # Errors
/// A trace that cannot be read.
pub fn belady_bypass(trace: &mut TraceReader, setting: &Setting<'_>, futures: &[Arc<Future>]) -> Result<Outcome> {
    let Setting { scope, slots, .. } = *setting;
    let bytes = trace.header().expert_bytes.clone();
    let mut pools: Vec<Pool> = futures.iter().map(|f| Pool::new(f)).collect();
    let (mut outcome, mut keys, mut warmup) = (Outcome::default(), Vec::new(), WarmUp::new(setting.conditions.warmup));
    while let Some(event) = trace.next_event()? {
        let i = pool_of(scope, event.layer);
        distinct(event, &futures[i], &mut keys);
        let hit = pools[i].run(&futures[i], &keys, slots[i]);
        if warmup.is_over(event) {
            count(&mut outcome, event, hit, keys.len() as u64, bytes[usize::from(event.layer)]);
        }
    }
    warmup.finish()?;
    Ok(outcome)
}

/// The residents of a pool under Belady with bypass.
struct Pool {
    residents: Vec<usize>,
    resident: Vec<bool>,
    /// Uses that have passed. (experts of the pool)
    past: Vec<usize>,
}

impl Pool {
    fn new(future: &Future) -> Self {
        let n = future.shape().experts();
        Self { residents: Vec::new(), resident: vec![false; n], past: vec![0; n] }
    }

    /// One event; the hits.
    fn run(&mut self, future: &Future, keys: &[usize], slots: usize) -> u64 {
        let mut hit = 0;
        for &key in keys {
            self.past[key] += 1;
            hit += u64::from(self.resident[key]);
            if !self.resident[key] {
                self.resident[key] = true;
                self.residents.push(key);
            }
        }
        let next = |key: usize| future.uses()[key].get(self.past[key]).copied().unwrap_or(NEVER);
        while self.residents.len() > slots {
            let last = (0..self.residents.len()).max_by_key(|&i| next(self.residents[i])).expect("more than `slots`");
            self.resident[self.residents.swap_remove(last)] = false;
        }
        hit
    }
}

/// See the module. `futures` are those of the scope's pools.
///
/// # Errors
/// A trace that cannot be read.
pub fn static_oracle(trace: &mut TraceReader, setting: &Setting<'_>, futures: &[Arc<Future>]) -> Result<Outcome> {
    let Setting { scope, slots, .. } = *setting;
    let bytes = trace.header().expert_bytes.clone();
    // Whether a pool holds each expert.
    let held = |(future, &slots): (&Arc<Future>, &usize)| {
        let mut keys: Vec<usize> = (0..future.uses().len()).collect();
        keys.sort_by_key(|&key| std::cmp::Reverse(future.uses()[key].len()));
        let mut held = vec![false; keys.len()];
        keys.iter().take(slots).for_each(|&key| held[key] = true);
        held
    };
    let held: Vec<Vec<bool>> = futures.iter().zip(slots).map(held).collect();
    let mut seen: Vec<Vec<bool>> = held.iter().map(|h| vec![false; h.len()]).collect();
    let (mut outcome, mut keys, mut warmup) = (Outcome::default(), Vec::new(), WarmUp::new(setting.conditions.warmup));
    while let Some(event) = trace.next_event()? {
        let i = pool_of(scope, event.layer);
        distinct(event, &futures[i], &mut keys);
        let hit = keys.iter().filter(|&&key| held[i][key] && std::mem::replace(&mut seen[i][key], true)).count();
        if warmup.is_over(event) {
            count(&mut outcome, event, hit as u64, keys.len() as u64, bytes[usize::from(event.layer)]);
        }
    }
    warmup.finish()?;
    Ok(outcome)
}
