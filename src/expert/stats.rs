//! What the cache counted. Plain numbers; no clock of its own.

use crate::trace::Phase;

/// Counters of one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhaseStats {
    /// Layer events.
    pub events: u64,
    /// Wanted experts that were in a slot.
    pub hit: u64,
    /// Wanted experts whose read was in flight already.
    pub late: u64,
    /// Wanted experts that had to be read.
    pub miss: u64,
    /// Bytes of demand reads.
    pub demand_bytes: u64,
    /// Time in which the control thread did nothing but wait for a read.
    pub stall_ns: u64,
}

impl PhaseStats {
    fn since(&self, before: &PhaseStats) -> PhaseStats {
        PhaseStats {
            events: self.events - before.events,
            hit: self.hit - before.hit,
            late: self.late - before.late,
            miss: self.miss - before.miss,
            demand_bytes: self.demand_bytes - before.demand_bytes,
            stall_ns: self.stall_ns - before.stall_ns,
        }
    }
    /// Share of wanted experts that were in a slot, 0 to 1; `None` before the first request.
    pub fn hit_rate(&self) -> Option<f64> {
        let all = self.hit + self.late + self.miss;
        (all > 0).then(|| self.hit as f64 / all as f64)
    }
}

/// What one layer's decoded tokens found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerHits {
    /// Wanted experts that were in a slot.
    pub hit: u64,
    /// Wanted experts whose read was in flight already.
    pub late: u64,
    /// Wanted experts that had to be read.
    pub miss: u64,
}

impl LayerHits {
    /// What came after `before`, an earlier state of the same run.
    pub fn since(&self, before: &LayerHits) -> LayerHits {
        LayerHits { hit: self.hit - before.hit, late: self.late - before.late, miss: self.miss - before.miss }
    }
    /// Share of wanted experts that were in a slot, 0 to 1; `None` before the first request.
    pub fn hit_rate(&self) -> Option<f64> {
        let all = self.hit + self.late + self.miss;
        (all > 0).then(|| self.hit as f64 / all as f64)
    }
}

/// Counters since the cache was made. An expert counts once per layer event, however many rows want it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// While prompts ran.
    pub prompt: PhaseStats,
    /// While tokens were generated.
    pub decode: PhaseStats,
    /// Prefetch reads submitted.
    pub prefetches: u64,
    /// Bytes of prefetch reads.
    pub prefetch_bytes: u64,
    /// Prefetched experts that were then asked for.
    pub prefetch_useful: u64,
    /// Prefetched experts that were evicted before anybody asked for them.
    pub prefetch_wasted: u64,
    /// Reads of pinned experts, and of a warm start.
    pub warm_reads: u64,
    /// Their bytes.
    pub warm_bytes: u64,
    /// Those of these experts that were then asked for.
    pub warm_used: u64,
    /// Reads into slots that were free, while the drive was idle.
    pub fill_reads: u64,
    /// Their bytes.
    pub fill_bytes: u64,
    /// Those of these experts that were then asked for.
    pub fill_used: u64,
    /// Experts that lost their slot to another.
    pub evictions: u64,
    /// Reads that failed, prefetches included.
    pub failed_reads: u64,
}

impl CacheStats {
    /// What came after `before`, an earlier state of the same run.
    pub fn since(&self, before: &CacheStats) -> CacheStats {
        CacheStats {
            prompt: self.prompt.since(&before.prompt),
            decode: self.decode.since(&before.decode),
            prefetches: self.prefetches - before.prefetches,
            prefetch_bytes: self.prefetch_bytes - before.prefetch_bytes,
            prefetch_useful: self.prefetch_useful - before.prefetch_useful,
            prefetch_wasted: self.prefetch_wasted - before.prefetch_wasted,
            warm_reads: self.warm_reads - before.warm_reads,
            warm_bytes: self.warm_bytes - before.warm_bytes,
            warm_used: self.warm_used - before.warm_used,
            fill_reads: self.fill_reads - before.fill_reads,
            fill_bytes: self.fill_bytes - before.fill_bytes,
            fill_used: self.fill_used - before.fill_used,
            evictions: self.evictions - before.evictions,
            failed_reads: self.failed_reads - before.failed_reads,
        }
    }
    /// The counters of `phase`.
    pub fn of(&self, phase: Phase) -> &PhaseStats {
        match phase {
            Phase::Prompt => &self.prompt,
            Phase::Decode => &self.decode,
        }
    }
    pub(super) fn of_mut(&mut self, phase: Phase) -> &mut PhaseStats {
        match phase {
            Phase::Prompt => &mut self.prompt,
            Phase::Decode => &mut self.decode,
        }
    }
    /// Both phases together.
    pub fn total(&self) -> PhaseStats {
        let (p, d) = (&self.prompt, &self.decode);
        PhaseStats {
            events: p.events + d.events,
            hit: p.hit + d.hit,
            late: p.late + d.late,
            miss: p.miss + d.miss,
            demand_bytes: p.demand_bytes + d.demand_bytes,
            stall_ns: p.stall_ns + d.stall_ns,
        }
    }
    /// Bytes of all reads.
    pub fn bytes_read(&self) -> u64 {
        self.prompt.demand_bytes + self.decode.demand_bytes + self.prefetch_bytes + self.warm_bytes + self.fill_bytes
    }
}
