//! How large a budget may stay while others need memory too: a larger cache that pushes the machine into reclaim is a
//! slower one.
//!
//! Two signs of need: time that tasks had to wait for memory (pressure stall information, Linux), and what is left to be
//! had. Under need the budget falls at once, by an eighth or by what is missing; after some calm seconds it rises again,
//! in smaller steps, so that it does not swing.
//!
//! Must not know: slots, models, files. It is told figures and says a figure.

use std::time::{Duration, Instant};

/// What the machine says at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Memory that could still be had, in bytes.
    pub available_bytes: u64,
    /// Time so far in which tasks waited for memory, in microseconds; `None` if the system does not tell.
    pub stall_us: Option<u64>,
}

/// How often to look.
const EVERY: Duration = Duration::from_millis(500);

/// Share of the time since the last look that tasks may wait for memory.
const STALLED: f64 = 0.1;

/// Calm that lets the budget rise again.
const CALM: Duration = Duration::from_secs(5);

/// The budget falls by this share of what is above the least, and rises by half of it.
const STEP: u64 = 8;

/// See the module.
#[derive(Debug)]
pub struct Governor {
    budget: u64,
    least: u64,
    most: u64,
    headroom: u64,
    looked: Instant,
    stall_us: Option<u64>,
    calm_since: Instant,
}

impl Governor {
    /// A budget between `least` and `most` bytes that starts at `most` and leaves `headroom` bytes to others.
    pub fn new(least: u64, most: u64, headroom: u64, now: Instant) -> Self {
        Self { budget: most, least, most, headroom, looked: now, stall_us: None, calm_since: now }
    }

    /// The budget as it was last said, in bytes.
    pub fn budget_bytes(&self) -> u64 {
        self.budget
    }

    /// The new budget if it is to change. Calls `read` only when it is time to look.
    pub fn check(&mut self, now: Instant, read: impl FnOnce() -> Option<Reading>) -> Option<u64> {
        let passed = now.duration_since(self.looked);
        if passed < EVERY {
            return None;
        }
        self.looked = now;
        let reading = read()?;
        let waited = match (std::mem::replace(&mut self.stall_us, reading.stall_us), reading.stall_us) {
            (Some(before), Some(after)) => after.saturating_sub(before) as f64 / passed.as_micros() as f64,
            _ => 0.0,
        };
        let missing = self.headroom.saturating_sub(reading.available_bytes);
        let step = (self.most - self.least) / STEP;
        let before = self.budget;
        if waited > STALLED || missing > 0 {
            self.calm_since = now;
            let by = if waited > STALLED { step.max(missing) } else { missing };
            self.budget = self.budget.saturating_sub(by).max(self.least);
        } else if now.duration_since(self.calm_since) >= CALM && reading.available_bytes > self.headroom + step / 2 {
            self.calm_since = now;
            self.budget = (self.budget + step / 2).min(self.most);
        }
        (self.budget != before).then_some(self.budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Runs a governor over readings half a second apart.
    fn budgets(readings: &[(u64, u64)]) -> Vec<u64> {
        let start = Instant::now();
        let mut g = Governor::new(100 * MIB, 900 * MIB, 64 * MIB, start);
        let mut now = start;
        readings
            .iter()
            .map(|&(available, stall)| {
                now += EVERY;
                g.check(now, || Some(Reading { available_bytes: available * MIB, stall_us: Some(stall) }));
                g.budget_bytes() / MIB
            })
            .collect()
    }

    #[test]
    fn stalls_and_missing_memory_take_and_calm_gives_back() {
        // Waiting 20 % of the time: an eighth of 800 MiB each. The first reading only tells where the count stands.
        assert_eq!(budgets(&[(1000, 0), (1000, 100_000), (1000, 200_000), (1000, 210_000)]), [900, 800, 700, 700]);
        // Available memory 30 MiB short of the headroom.
        assert_eq!(budgets(&[(34, 0), (64, 0)]), [870, 870]);
        // Never below the least.
        let squeezed: Vec<_> = (0..20).map(|i| (0, i * 400_000)).collect();
        assert_eq!(budgets(&squeezed).last(), Some(&100));
        // 5 calm seconds give back half a step, and no more than there was.
        let mut readings = vec![(1000, 0), (1000, 100_000)];
        readings.extend([(1000, 100_000); 30]);
        let got = budgets(&readings);
        assert_eq!((got[1], got[10], got[11], got[21], got[31]), (800, 800, 850, 900, 900));
        // Calm, but with too little left for a step.
        let mut readings = vec![(34, 0)];
        readings.extend([(70, 0); 30]);
        assert_eq!(budgets(&readings).last(), Some(&870));
    }

    #[test]
    fn it_looks_twice_a_second_at_most() {
        let start = Instant::now();
        let mut g = Governor::new(1, 2, 0, start);
        assert_eq!(g.check(start + EVERY / 2, || unreachable!("too early")), None);
    }
}
