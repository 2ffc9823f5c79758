//! Options and work that `simulate` and `report` share: a trace through every policy and cache size that is asked for.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hotset::{
    Error, Result,
    expert::{LayerHits, Scope},
    gpu, machine,
    prefetch::PrefetchKind,
    simulate::{
        self, Compute, Conditions, Detail, DeviceTier, Drive, Row, Setting, SimPolicy, SlotSpec,
        decompose::{self, Decomposition},
    },
    trace::file::Header,
};

use super::{
    Stop,
    args::{SCOPES, named},
    out::{Progress, note},
    profile::Profile,
};

/// What is simulated. The verb has a positional argument `trace`, without which these options mean nothing.
#[derive(clap::Args)]
pub struct Sweep {
    /// Slots a layer: numbers, or shares of the layer's experts. Default: twelve sizes, from the experts that a token
    /// uses to all
    #[arg(long, alias = "memory", requires = "trace", value_name = "LIST", value_delimiter = ',', value_parser = slot_spec)]
    slots: Vec<SlotSpec>,
    /// A second tier in a device's memory with so many slots a layer, or a share of its experts, as run --vram has it. The
    /// engine's own policies take part, the oracles do not
    #[arg(long, requires = "trace", value_name = "N", value_parser = slot_spec)]
    vram: Option<SlotSpec>,
    /// Computing of an expert on that device, in microseconds, beside the CPU. Default: as --expert-us
    #[arg(long, requires = "vram", value_name = "US", value_parser = micros)]
    vram_us: Option<f64>,
    /// Policies by name, `default` or `all`; besides the engine's own there are belady, belady-bypass, static-oracle, random
    #[arg(long, requires = "trace", value_name = "LIST", value_delimiter = ',', default_value = "all")]
    policy: Vec<String>,
    /// Slots: a pool for each layer, for each size of experts, one for all, or several of these in turn
    #[arg(long, requires = "trace", value_name = "LIST", value_delimiter = ',', default_value = "layer", value_parser = named(SCOPES, Scope::name))]
    scope: Vec<Scope>,
    /// Which experts are read before they are asked for
    #[arg(long, requires = "trace", value_name = "LIST", value_delimiter = ',', default_value = "off", value_parser = named(PrefetchKind::ALL, PrefetchKind::name))]
    prefetch: Vec<PrefetchKind>,
    /// Fill slots that are still free while the drive is idle, as hotset run --fill does
    #[arg(long, requires = "trace")]
    fill: bool,
    /// Take drive and computing as hotset bench measured them: the file is what its --json printed, with one decode test.
    /// Measure with --prefetch off and a budget at which experts miss
    #[arg(long, requires = "trace", value_name = "FILE")]
    profile: Option<PathBuf>,
    /// The drive: nvme, ufs4, sata, or LATENCY:RATE in microseconds and MB/s (80:3500), perhaps :N requests at a time; 1
    /// else. Default: the profile's, or nvme
    #[arg(long, requires = "trace", value_name = "DRIVE", value_parser = drive)]
    drive: Option<Drive>,
    /// Computing of a layer before its experts are known, in microseconds. Default of this and the next six: the profile's, or 0
    #[arg(long, requires = "trace", value_name = "US", value_parser = micros)]
    layer_us: Option<f64>,
    /// What that takes longer for each millisecond of waiting for the layer before it, in microseconds: threads may have
    /// gone to sleep, caches grown cold
    #[arg(long, requires = "trace", value_name = "US", value_parser = micros)]
    layer_wait_us: Option<f64>,
    /// Computing of a layer after that besides its experts (a shared one), in microseconds
    #[arg(long, requires = "trace", value_name = "US", value_parser = micros)]
    shared_us: Option<f64>,
    /// Computing of experts that are handed out together, however many, in microseconds
    #[arg(long, requires = "trace", value_name = "US", value_parser = micros)]
    hand_out_us: Option<f64>,
    /// Computing of each of them, in microseconds
    #[arg(long, requires = "trace", value_name = "US", value_parser = micros)]
    expert_us: Option<f64>,
    /// What that takes longer where it was waited for, in microseconds
    #[arg(long, requires = "trace", value_name = "US", value_parser = micros)]
    wake_us: Option<f64>,
    /// Computing of a decoded token outside its MoE layers (dense layers, output), in microseconds
    #[arg(long, requires = "trace", value_name = "US", value_parser = micros)]
    token_us: Option<f64>,
    /// Tokens at the start of the trace that run but do not count
    #[arg(long, requires = "trace", value_name = "TOKENS", default_value_t = 0)]
    warmup: u64,
}

/// One run to do.
struct Job {
    policy: SimPolicy,
    scope: Scope,
    slots: Vec<usize>,
    prefetch: PrefetchKind,
    fill: bool,
    /// Slots of each layer on the device.
    vram: Option<Vec<usize>>,
}

/// A run's row, and what decoding found in each MoE layer: nothing for the bounds that are no caches.
pub type Run = (Row, Vec<LayerHits>);

/// What simulating took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Effort {
    /// Experts that layers asked for, of all runs together.
    pub requests: u64,
    /// Of all threads together.
    pub busy: Duration,
}

impl Effort {
    fn add(&mut self, other: Effort) {
        self.requests += other.requests;
        self.busy += other.busy;
    }
}

impl Sweep {
    /// The file of `--profile`.
    pub fn profile(&self) -> Option<&Path> {
        self.profile.as_deref()
    }

    /// Runs all of it on all cores: by scope, prefetcher, slots and policy, in the order of the options.
    ///
    /// # Errors
    /// Options that leave nothing to run, a trace that cannot be read.
    pub fn run(&self, trace: &Path, header: &Header, conditions: Conditions) -> Result<(Vec<Run>, Effort), Stop> {
        let jobs = self.jobs(header, &self.policies()?)?;
        let (runs, effort) = self.work(trace, header, conditions, &jobs)?;
        let (mut rows, layers): (Vec<Row>, Vec<_>) = runs.into_iter().map(|(row, detail)| (row, detail.layers)).unzip();
        simulate::compare(&mut rows);
        Ok((rows.into_iter().zip(layers).collect(), effort))
    }

    /// Where the gap between LRU and Belady lies, by scope, prefetcher and slots.
    ///
    /// # Errors
    /// As [`Sweep::run`].
    pub fn decompose(
        &self,
        trace: &Path,
        header: &Header,
        conditions: Conditions,
    ) -> Result<(Vec<Decomposition>, Effort), Stop> {
        let policies = decompose::policies();
        let (runs, effort) = self.work(trace, header, conditions, &self.jobs(header, &policies)?)?;
        Ok((runs.chunks(policies.len()).filter_map(decompose::decompose).collect(), effort))
    }

    /// Drive, computing and warm-up of all runs.
    ///
    /// # Errors
    /// A profile that cannot be read, or that saw no reads where no drive is named.
    pub fn conditions(&self) -> Result<Conditions, Stop> {
        let profile = self.profile.as_deref().map(Profile::read).transpose()?;
        let measured = profile.as_ref().map_or(Compute::default(), Profile::compute);
        let drive = match (self.drive, profile) {
            (Some(drive), _) => drive,
            (None, None) => Drive::NVME,
            (None, Some(profile)) => profile.drive().ok_or_else(|| {
                let file = self.profile.as_deref().unwrap_or(Path::new(""));
                Error::file(
                    file,
                    "no expert was read in this profile: measure with a smaller budget, or name a --drive",
                )
            })?,
        };
        let or = |us: Option<f64>, ns| us.map_or(ns, nanoseconds);
        let compute = Compute {
            layer_ns: or(self.layer_us, measured.layer_ns),
            layer_wait_ns: or(self.layer_wait_us, measured.layer_wait_ns),
            shared_ns: or(self.shared_us, measured.shared_ns),
            hand_out_ns: or(self.hand_out_us, measured.hand_out_ns),
            expert_ns: or(self.expert_us, measured.expert_ns),
            wake_ns: or(self.wake_us, measured.wake_ns),
            token_ns: or(self.token_us, measured.token_ns),
        };
        Ok(Conditions { drive, compute, warmup: self.warmup })
    }

    /// Policies to run.
    fn policies(&self) -> Result<Vec<SimPolicy>, Stop> {
        let mut policies = SimPolicy::choose(&self.policy).map_err(|e| Stop::usage(format!("--policy {e}")))?;
        if self.vram.is_some() {
            policies.retain(|policy| matches!(policy, SimPolicy::Live(_)));
            if policies.is_empty() {
                return Err(Stop::usage("--vram: needs one of the engine's own policies".to_owned()));
            }
        }
        Ok(policies)
    }

    fn jobs(&self, header: &Header, policies: &[SimPolicy]) -> Result<Vec<Job>, Stop> {
        let counts = self.counts(header)?;
        let vram =
            self.vram.as_ref().map(|spec| vec![spec.count(header.n_expert).min(header.n_expert); header.n_layer]);
        let mut jobs = Vec::new();
        for &scope in &self.scope {
            for &prefetch in &self.prefetch {
                for &n in &counts {
                    let slots = simulate::slots(scope, n, header);
                    jobs.extend(policies.iter().map(|&policy| Job {
                        policy,
                        scope,
                        slots: slots.clone(),
                        prefetch,
                        fill: self.fill,
                        vram: vram.clone(),
                    }));
                }
            }
        }
        Ok(jobs)
    }

    /// Slots a layer, ascending.
    fn counts(&self, header: &Header) -> Result<Vec<usize>> {
        let (used, n_expert) = (header.n_expert_used, header.n_expert);
        if self.slots.is_empty() {
            return Ok(simulate::default_slots(used, n_expert));
        }
        let mut counts: Vec<usize> = self.slots.iter().map(|s| s.count(n_expert)).collect();
        counts.sort_unstable();
        counts.dedup();
        let few: Vec<_> = counts.iter().filter(|n| **n < used).map(usize::to_string).collect();
        counts.retain(|n| *n >= used);
        if counts.is_empty() {
            let few = few.join(", ");
            return Err(Error::invalid(format!("--slots {few}: a token uses {used} experts of a layer at once")));
        }
        if !few.is_empty() {
            note(format_args!("left out {} slots per layer: a token uses {used} experts at once", few.join(", ")));
        }
        Ok(counts)
    }

    /// Runs the jobs on all cores; runs in the jobs' order.
    fn work(
        &self,
        trace: &Path,
        header: &Header,
        conditions: Conditions,
        jobs: &[Job],
    ) -> Result<(Vec<(Row, Detail)>, Effort)> {
        let needed = jobs.iter().any(|j| j.policy.needs_future());
        let future = needed.then(|| simulate::future(trace)).transpose()?;
        let threads = machine::cores().threads().min(jobs.len());
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(jobs.len())));
        let bar = Progress::runs("simulating", false);
        let expert_ns = self.vram_us.map_or(conditions.compute.expert_ns, nanoseconds);
        let one = |job: &Job| {
            let vram = job.vram.as_deref().map(|slots| DeviceTier { slots, max_rows: gpu::MAX_ROWS, expert_ns });
            let setting = Setting {
                policy: job.policy,
                scope: job.scope,
                slots: &job.slots,
                fill: job.fill,
                prefetch: job.prefetch,
                vram,
                conditions,
            };
            let start = Instant::now();
            let (outcome, detail) = simulate::replay_in_detail(trace, &setting, future.as_ref())?;
            let total = outcome.stats.total();
            let effort = Effort { requests: total.hit + total.late + total.miss, busy: start.elapsed() };
            let row = Row::new(&setting, header, &outcome, detail.foresight.clone());
            Ok(((row, detail), effort))
        };
        std::thread::scope(|s| {
            for _ in 0..threads {
                s.spawn(|| {
                    while let Some((i, job)) = {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        jobs.get(i).map(|job| (i, job))
                    } {
                        let run: Result<((Row, Detail), Effort)> = one(job);
                        let mut done = done.lock().expect("no thread panics while it holds the runs");
                        done.push((i, run));
                        bar.set(done.len() as u64, jobs.len() as u64);
                    }
                });
            }
        });
        let mut runs = done.into_inner().expect("no thread panicked");
        runs.sort_by_key(|(i, _)| *i);
        let (mut all, mut effort) = (Vec::with_capacity(runs.len()), Effort::default());
        for (_, run) in runs {
            let (run, one) = run?;
            all.push(run);
            effort.add(one);
        }
        Ok((all, effort))
    }
}

/// What good drives of the kind give to reads of an expert's size.
pub fn drive(text: &str) -> Result<Drive, String> {
    let (latency_us, bytes_per_us, depth) = match text {
        "nvme" => return Ok(Drive::NVME),
        "ufs4" => (120, 2800, 1),
        "sata" => (120, 520, 1),
        _ => {
            let wrong = || "expected nvme, ufs4, sata, or microseconds:MB/s such as 80:3500, or 80:3500:4".to_owned();
            let (a, b) = text.split_once(':').ok_or_else(wrong)?;
            let (b, depth) = b.split_once(':').unwrap_or((b, "1"));
            let number = |t: &str| t.parse::<u64>().ok().filter(|n| *n <= 1_000_000_000);
            (
                number(a).ok_or_else(wrong)?,
                number(b).filter(|n| *n > 0).ok_or_else(wrong)?,
                number(depth).filter(|n| (1..=1024).contains(n)).ok_or_else(wrong)? as usize,
            )
        }
    };
    Ok(Drive { latency_ns: latency_us * 1000, bytes_per_us, depth })
}

fn slot_spec(text: &str) -> Result<SlotSpec, &'static str> {
    text.parse().map_err(|_| "expected a number, or a share such as 25%")
}

/// Of microseconds.
fn nanoseconds(us: f64) -> u64 {
    (us * 1e3).round() as u64
}

fn micros(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| (0.0..=1e9).contains(n));
    number.ok_or_else(|| "expected microseconds, 0 or more".to_owned())
}
