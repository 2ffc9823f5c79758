//! Where no budget was asked for: follows the machine's need for memory, layer by layer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use crate::{
    expert::Allowance,
    machine::MemoryWatch,
    plan::Plan,
    pressure::{Governor, Reading},
};

/// Share of what is free at the start that stays free for others, whatever they do: a tenth. A budget that nobody asked
/// for leaves a fifth.
const HEADROOM: u64 = 10;

/// Tells the experts how many slots the machine has room for.
pub struct Follow {
    governor: Governor,
    watch: MemoryWatch,
    plan: Plan,
    /// The budget now, for the session to say.
    budget: Arc<AtomicU64>,
}

impl Follow {
    /// Between the least that `plan` works with and its budget. `None` where the system does not say what is free.
    pub fn new(plan: Plan, budget: Arc<AtomicU64>) -> Option<Self> {
        let mut watch = MemoryWatch::new()?;
        let headroom = watch.available_bytes()? / HEADROOM;
        let governor = Governor::new(plan.least_bytes(), plan.budget_bytes, headroom, Instant::now());
        Some(Self { governor, watch, plan, budget })
    }
}

impl Allowance for Follow {
    fn check(&mut self) -> Option<Vec<usize>> {
        let read = || {
            // In this order: what is taken in between counts twice, and is not missed.
            let available_bytes = self.watch.available_bytes()?;
            let held_bytes = self.watch.anonymous_bytes()?;
            Some(Reading { available_bytes, held_bytes, stall_us: self.watch.stall_us() })
        };
        let budget = self.governor.check(Instant::now(), read)?;
        self.budget.store(budget, Relaxed);
        Some(self.plan.slots_within(budget).expect("the governor stays between the plan's limits"))
    }
}
