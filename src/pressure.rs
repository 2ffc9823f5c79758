//! How large a budget may stay while others need memory too: a larger cache that pushes the machine into reclaim is a
//! slower one, and one that takes the last of it is killed.
//!
//! What this process holds and what is still to be had make the *room*: it stays the same while the process fills its
//! budget, and shrinks by what others take. The budget must fit in the room beside a *reserve*, which is a fixed headroom
//! and what others have lately taken at their fastest, in a time that is longer than it takes to look again and to
//! give memory back. A process that grows by 400 MB/s, or by 60 MB at once, so finds the memory free that it asks for next.
//!
//! A second sign of need is time that tasks had to wait for memory (pressure stall information, Linux). Under need the
//! budget falls at once; after some calm seconds it rises again, in smaller steps, so that it does not swing.
//!
//! Must not know: slots, models, files. It is told figures and says a figure.

use std::time::{Duration, Instant};

/// What the machine says at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Memory that could still be had, in bytes.
    pub available_bytes: u64,
    /// Memory that this process has taken, in bytes.
    pub held_bytes: u64,
    /// Time so far in which tasks waited for memory, in microseconds; `None` if the system does not tell.
    pub stall_us: Option<u64>,
}

/// How often to look: a process that touches new memory at 2 GB/s takes 20 MB meanwhile.
const EVERY: Duration = Duration::from_millis(10);

/// How often to ask whether tasks waited: over shorter times the share says little.
const STALL_EVERY: Duration = Duration::from_millis(500);

/// Share of the time since the last look that tasks may wait for memory.
const STALLED: f64 = 0.1;

/// What others take is added up over so long at least, and over this many of the longest times between two looks.
const SPAN: Duration = Duration::from_millis(250);
const GAPS: u32 = 2;

/// A longer time between two looks was a pause, and says nothing about the next one.
const LONGEST_GAP: Duration = Duration::from_secs(1);

/// How fast the most that others took is forgotten: to a third in this time.
const FORGET: Duration = Duration::from_secs(10);

/// Calm that lets the budget rise again.
const CALM: Duration = Duration::from_secs(5);

/// Under stalls the budget falls by this share of what is above the least; it rises by half of it.
const STEP: u64 = 8;

/// See the module.
#[derive(Debug)]
pub struct Governor {
    budget: u64,
    least: u64,
    most: u64,
    headroom: u64,
    looked: Instant,
    others: Others,
    stalls: Stalls,
    calm_since: Instant,
}

/// What others took lately, in bytes.
#[derive(Debug, Default)]
struct Others {
    room: Option<u64>,
    /// The longest time between two looks, in seconds.
    gap: f64,
    /// Over the last span.
    recent: f64,
    /// The most that `recent` was.
    burst: f64,
}

impl Others {
    /// Takes note of the room, `passed` after the last time.
    fn note(&mut self, room: u64, passed: Duration) {
        let forget = |tau: f64, value: f64| value * (-passed.as_secs_f64() / tau).exp();
        let taken = self.room.replace(room).map_or(0.0, |before| before as f64 - room as f64);
        let counted = passed.min(LONGEST_GAP).as_secs_f64();
        let taken = if passed > LONGEST_GAP { taken * counted / passed.as_secs_f64() } else { taken };
        self.gap = forget(FORGET.as_secs_f64(), self.gap).max(counted);
        let span = SPAN.as_secs_f64().max(self.gap * f64::from(GAPS));
        // What is given back counts against it: two processes that take turns need no more than one.
        self.recent = (forget(span, self.recent) + taken).max(0.0);
        self.burst = forget(FORGET.as_secs_f64(), self.burst).max(self.recent);
    }
}

/// Time that tasks waited.
#[derive(Debug)]
struct Stalls {
    looked: Instant,
    us: Option<u64>,
}

impl Stalls {
    /// The share of the time since it was last asked in which tasks waited; `None` where that is not long ago.
    fn share(&mut self, us: Option<u64>, now: Instant) -> Option<f64> {
        let passed = now.duration_since(self.looked);
        if passed < STALL_EVERY {
            return None;
        }
        self.looked = now;
        let before = std::mem::replace(&mut self.us, us)?;
        Some(us?.saturating_sub(before) as f64 / passed.as_micros() as f64)
    }
}

impl Governor {
    /// A budget between `least` and `most` bytes that starts at `most` and leaves at least `headroom` bytes to others.
    pub fn new(least: u64, most: u64, headroom: u64, now: Instant) -> Self {
        let (others, stalls) = (Others::default(), Stalls { looked: now, us: None });
        Self { budget: most, least, most, headroom, looked: now, others, stalls, calm_since: now }
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
        let reading = read()?;
        self.looked = now;
        let room = reading.available_bytes.saturating_add(reading.held_bytes);
        self.others.note(room, passed);
        let stalled = self.stalls.share(reading.stall_us, now).is_some_and(|share| share > STALLED);

        let fits = room.saturating_sub(self.headroom).saturating_sub(self.others.burst as u64);
        let (before, step) = (self.budget, (self.most - self.least) / STEP);
        if stalled || fits < self.budget {
            self.calm_since = now;
            let by = if stalled { step } else { 0 };
            self.budget = self.budget.saturating_sub(by).min(fits).max(self.least);
        } else if now.duration_since(self.calm_since) >= CALM && fits - self.budget > step / 2 {
            self.calm_since = now;
            self.budget = (self.budget + step / 2).min(self.most);
        }
        (self.budget != before).then_some(self.budget)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Runs a governor over readings half a second apart: (memory to be had beside a full budget of 900 MiB in MiB, time
    /// that tasks waited so far in µs).
    fn budgets(readings: &[(u64, u64)]) -> Vec<u64> {
        let start = Instant::now();
        let mut g = Governor::new(100 * MIB, 900 * MIB, 64 * MIB, start);
        let mut now = start;
        readings
            .iter()
            .map(|&(beside, stall)| {
                now += STALL_EVERY;
                let held_bytes = g.budget_bytes();
                let available_bytes = (900 + beside) * MIB - held_bytes;
                g.check(now, || Some(Reading { available_bytes, held_bytes, stall_us: Some(stall) }));
                g.budget_bytes() / MIB
            })
            .collect()
    }

    #[test]
    fn stalls_and_missing_memory_take_and_calm_gives_back() {
        // Waiting 20 % of the time: an eighth of 800 MiB each. The first reading only tells where the count stands.
        assert_eq!(budgets(&[(1000, 0), (1000, 100_000), (1000, 200_000), (1000, 210_000)]), [900, 800, 700, 700]);
        // 30 MiB short of the headroom, and no more taken: so much, once.
        assert_eq!(budgets(&[(34, 0), (34, 0)]), [870, 870]);
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
    fn what_others_took_at_once_is_kept_free_for_the_next_time_and_forgotten() {
        // 100 MiB within half a second: as much again beside the headroom.
        let got = budgets(&[(200, 0), (100, 0)]);
        assert_eq!(got, [900, 900 + 100 - 64 - 100]);
        // Taken and given back again and again is no growth.
        let swings = [(100, 0), (70, 0)].repeat(8);
        assert_eq!(budgets(&swings).last(), Some(&(900 + 70 - 64 - 30)));
        let mut readings = vec![(200, 0), (100, 0)];
        readings.extend([(130, 0); 240]);
        assert_eq!(budgets(&readings).last(), Some(&900), "the room for the whole budget beside the headroom is there");
    }

    #[test]
    fn filling_the_budget_is_nobody_elses_growth() {
        let start = Instant::now();
        let mut g = Governor::new(100 * MIB, 800 * MIB, 100 * MIB, start);
        for i in 1..=100 {
            let held_bytes = i * 8 * MIB;
            let reading = Reading { available_bytes: 1000 * MIB - held_bytes, held_bytes, stall_us: None };
            assert_eq!(g.check(start + EVERY * i as u32, || Some(reading)), None);
        }
    }

    #[test]
    fn it_looks_a_hundred_times_a_second_at_most() {
        let start = Instant::now();
        let mut g = Governor::new(1, 2, 0, start);
        assert_eq!(g.check(start + EVERY / 2, || unreachable!("too early")), None);
    }

    #[test]
    fn after_a_pause_the_rate_counts_and_not_the_sum() {
        let start = Instant::now();
        let mut g = Governor::new(100 * MIB, 900 * MIB, 64 * MIB, start);
        let mut look = |seconds, beside| {
            let reading = Reading { available_bytes: beside * MIB, held_bytes: g.budget_bytes(), stall_us: None };
            g.check(start + Duration::from_secs(seconds), || Some(reading));
            g.budget_bytes() / MIB
        };
        assert_eq!(look(1, 1000), 900);
        // 800 MiB in 100 seconds: 8 a second.
        assert_eq!(look(101, 200), 900);
    }

    /// A machine with a neighbour that grows to `grown`, in steps that are touched at 2 GB/s; looks come at random times
    /// up to `gap` apart. The least that was free.
    fn least_free(rate: f64, step: f64, gap: f64, grown: f64, jitters: &[f64]) -> f64 {
        const MB: f64 = 1e6;
        let (all, budget) = (1000.0 * MB, 800.0 * MB);
        let start = Instant::now();
        let mut g = Governor::new((200.0 * MB) as u64, budget as u64, (50.0 * MB) as u64, start);
        // Calm before, with a look now and then.
        let begin = 0.5;
        let neighbour = |t: f64| {
            let steps = ((t - begin) * rate / step).max(0.0);
            let within = (steps.fract() * step / rate * 2000.0 * MB).min(step);
            (steps.floor() * step + within).min(grown)
        };
        let (mut t, mut least, mut i) = (0.0, f64::INFINITY, 0);
        while t < begin + grown / rate + 1.0 {
            // The memory runs out, if it does, just before the look.
            let free = all - neighbour(t) - g.budget_bytes() as f64;
            least = least.min(free);
            let reading =
                Reading { available_bytes: free.max(0.0) as u64, held_bytes: g.budget_bytes(), stall_us: None };
            g.check(start + Duration::from_secs_f64(t), || Some(reading));
            t += (gap * jitters[i % jitters.len()]).max(EVERY.as_secs_f64());
            i += 1;
        }
        least
    }

    proptest! {
        #[test]
        fn a_neighbour_of_up_to_400_mb_a_second_finds_memory(
            rate in prop_oneof![Just(25e6), Just(200e6), Just(400e6), 5e6..400e6f64],
            step in prop_oneof![Just(5e6), Just(60e6), 1e6..60e6],
            gap in prop_oneof![Just(0.2), 0.01..0.2f64],
            grown in 100e6..450e6f64,
            jitters in prop::collection::vec(0.05..1.0f64, 1..40),
        ) {
            let free = least_free(rate, step, gap, grown, &jitters);
            prop_assert!(free > 10e6, "{free}");
        }
    }
}
