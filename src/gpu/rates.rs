//! What a device's parts of an expert's way take, apart: for whoever wants to know where a token's time goes.

use std::time::{Duration, Instant};

use super::{Ffns, Job, Place, Shape, Step};
use crate::{
    Result,
    backend::{Backend, Pair, Rows, cpu::Cpu},
};

/// Runs of a step within one submission: enough that starting it is lost in them.
const REPEATS: usize = 64;

/// Submissions of each kind; the fastest counts.
const TRIES: usize = 5;

/// Experts that lie in memory: more than a device's cache holds.
const EXPERTS: usize = 96;

/// A part and what it takes.
#[derive(Clone, Debug)]
pub struct Rate {
    /// What runs.
    pub what: &'static str,
    /// One run of it.
    pub time: Duration,
    /// Bytes of weights that it reads.
    pub bytes: u64,
}

/// Times `used` experts of a row: each step in a submission of many, a whole batch as decoding runs it, and one that does nothing.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If `used` is beyond the limits that `ffns` was made with.
pub fn rates(ffns: &mut Ffns, shape: &Shape, used: usize) -> Result<Vec<Rate>> {
    let slots = ffns.device().allocate(EXPERTS as u64 * shape.slot_bytes(), Place::Device)?;
    let mut rows = Rows::new(1, shape.n_embd);
    rows.start(1).iter_mut().enumerate().for_each(|(i, x)| *x = (i % 17) as f32 - 8.0);
    Cpu::new(1)?.prepare(&mut rows);
    let pairs: Vec<_> = (0..used as u32).map(|out| Pair { row: 0, out, scale: 1.0 }).collect();
    let mut next = 0;
    let mut jobs = || -> Vec<Job<'_>> {
        let job = |(i, pair)| {
            let slot = (next + i) % EXPERTS;
            let address = slots.address + slot as u64 * shape.slot_bytes();
            Job { address, scale: [1.0; 3], pairs: std::slice::from_ref(pair) }
        };
        let jobs = pairs.iter().enumerate().map(job).collect();
        next += used;
        jobs
    };
    let mut out = vec![0.0; used * shape.n_embd];
    let mut rates = Vec::new();
    let (mut start, mut all) = (Duration::MAX, Duration::MAX);
    for _ in 0..REPEATS {
        let jobs = jobs();
        let began = Instant::now();
        ffns.start(shape, &rows, &jobs)?;
        start = start.min(began.elapsed());
        ffns.finish(&mut out)?;
        all = all.min(began.elapsed());
    }
    let bytes = used as u64 * shape.slot_bytes();
    rates.push(Rate { what: "a batch: written and submitted", time: start, bytes: 0 });
    rates.push(Rate { what: "a batch: until its rows are back", time: all, bytes });
    let steps = ffns.plan(shape, &rows, &jobs());
    rates.push(Rate { what: "nothing, submitted and waited for", time: time(ffns, &[])?, bytes: 0 });
    rates.push(Rate { what: "its steps, one after another", time: each(ffns, &steps)?, bytes });
    let runs: Vec<_> = steps.iter().filter(|step| matches!(step, Step::Run { .. })).collect();
    let names = ["gate and up", "activation", "down"];
    if runs.len() == names.len() {
        let weights = [bytes / 3 * 2, 0, bytes / 3];
        for ((what, run), bytes) in names.into_iter().zip(runs).zip(weights) {
            rates.push(Rate { what, time: each(ffns, &[*run, Step::Barrier])?, bytes });
        }
    }
    ffns.device().free(slots);
    Ok(rates)
}

/// One of many runs of the steps.
fn each(ffns: &mut Ffns, steps: &[Step]) -> Result<Duration> {
    let once = time(ffns, steps)?;
    let many: Vec<_> = (0..=REPEATS).flat_map(|_| steps.iter().copied().chain([Step::Barrier])).collect();
    Ok(time(ffns, &many)?.saturating_sub(once) / REPEATS as u32)
}

fn time(ffns: &mut Ffns, steps: &[Step]) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let began = Instant::now();
        ffns.device().submit(steps)?;
        ffns.device().wait()?;
        best = best.min(began.elapsed());
    }
    Ok(best)
}
