//! `hotset simulate`: hit rates, bytes and predicted speed of every policy and cache size on a recorded run.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use clap::ValueEnum;
use hotset::{
    Error, Result,
    expert::Scope,
    machine,
    policy::{Future, PolicyKind},
    prefetch::PrefetchKind,
    simulate::{self, Compute, Drive, Row, Setting, SimPolicy, SlotSpec},
    trace::file::{Header, TraceReader},
};

use super::{
    Ended,
    args::{SCOPES, named},
    out::{Out, Progress, note},
};

/// Replay a trace through caches of many sizes and policies
///
/// The engine's own cache runs over a simulated drive. Hit rates are of decoding: hits / wanted experts, an expert counted
/// once a layer and token, cold start included. Without prefetching they do not depend on the drive.
#[derive(clap::Args)]
pub struct Args {
    /// A trace that `hotset trace` recorded or imported
    trace: PathBuf,
    /// Slots a layer: numbers, or shares of the layer's experts
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "6.25%,12.5%,18.75%,25%,31.25%,37.5%,43.75%,50%,62.5%,75%,87.5%,100%",
        value_parser = |text: &str| text.parse::<SlotSpec>().map_err(|_| "expected a number, or a share such as 25%")
    )]
    slots: Vec<SlotSpec>,
    /// Policies by name, `default` or `all`; besides the engine's own there are belady, belady-bypass, static-oracle, random
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "all")]
    policy: Vec<String>,
    /// Slots: a pool for each layer, one for all, or both in turn
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "layer", value_parser = named(SCOPES, Scope::name))]
    scope: Vec<Scope>,
    /// Which experts are read before they are asked for
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "off", value_parser = named(PrefetchKind::ALL, PrefetchKind::name))]
    prefetch: Vec<PrefetchKind>,
    /// The drive: nvme, ufs4, sata, or LATENCY:RATE in microseconds and MB/s (80:3500)
    #[arg(long, value_name = "DRIVE", default_value = "nvme", value_parser = drive)]
    drive: Drive,
    /// Computing of a layer before its experts are known, in microseconds
    #[arg(long, value_name = "US", default_value_t = 0.0, value_parser = micros)]
    layer_us: f64,
    /// Computing of a layer after that besides its experts (a shared one), in microseconds
    #[arg(long, value_name = "US", default_value_t = 0.0, value_parser = micros)]
    shared_us: f64,
    /// Computing of an expert, in microseconds
    #[arg(long, value_name = "US", default_value_t = 0.0, value_parser = micros)]
    expert_us: f64,
    /// How to write the results
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Text,
    Json,
    Csv,
}

/// What good drives of the kind give to reads of an expert's size.
fn drive(text: &str) -> Result<Drive, String> {
    let (latency_us, bytes_per_us) = match text {
        "nvme" => (80, 3500),
        "ufs4" => (120, 2800),
        "sata" => (120, 520),
        _ => {
            let wrong = || "expected nvme, ufs4, sata, or microseconds:MB/s such as 80:3500".to_owned();
            let (a, b) = text.split_once(':').ok_or_else(wrong)?;
            let number = |t: &str| t.parse::<u64>().ok().filter(|n| *n <= 1_000_000_000);
            (number(a).ok_or_else(wrong)?, number(b).filter(|n| *n > 0).ok_or_else(wrong)?)
        }
    };
    Ok(Drive { latency_ns: latency_us * 1000, bytes_per_us })
}

fn micros(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| (0.0..=1e9).contains(n));
    number.ok_or_else(|| "expected microseconds, 0 or more".to_owned())
}

impl Args {
    fn compute(&self) -> Compute {
        let ns = |us: f64| (us * 1e3) as u64;
        Compute { layer_ns: ns(self.layer_us), shared_ns: ns(self.shared_us), expert_ns: ns(self.expert_us) }
    }
}

/// One run to do.
struct Job {
    policy: SimPolicy,
    scope: Scope,
    slots: Vec<usize>,
    prefetch: PrefetchKind,
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    let header = TraceReader::open(&args.trace)?.header().clone();
    let jobs = jobs(args, &header)?;
    let mut rows = work(args, &header, &jobs)?;
    simulate::compare(&mut rows);
    let mut out = Out::new();
    out.text(&match args.output {
        Format::Json => serde_json::to_string_pretty(&rows).expect("rows are plain numbers") + "\n",
        Format::Csv => csv(&rows),
        Format::Text => text(&header, &rows),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn policies(names: &[String]) -> Result<Vec<SimPolicy>> {
    let all = SimPolicy::all();
    let mut chosen = Vec::new();
    for name in names {
        match name.as_str() {
            "all" => chosen.extend(&all),
            "default" => chosen.push(SimPolicy::Live(PolicyKind::default())),
            name => match all.iter().find(|p| p.name() == name) {
                Some(&policy) => chosen.push(policy),
                None => {
                    let known: Vec<_> = all.iter().map(|p| p.name()).collect();
                    return Err(Error::request("--policy", format!("all, default, {}", known.join(", ")), name));
                }
            },
        }
    }
    let mut unique = Vec::new();
    chosen.into_iter().for_each(|p| {
        if !unique.contains(&p) {
            unique.push(p)
        }
    });
    Ok(unique)
}

fn jobs(args: &Args, header: &Header) -> Result<Vec<Job>> {
    let policies = policies(&args.policy)?;
    let mut counts: Vec<usize> = args.slots.iter().map(|s| s.count(header.n_expert)).collect();
    counts.sort_unstable();
    counts.dedup();
    let used = header.n_expert_used;
    let few: Vec<_> = counts.iter().filter(|n| **n < used).map(usize::to_string).collect();
    if !few.is_empty() {
        note(format_args!("left out {} slots a layer: a token uses {used} experts at once", few.join(", ")));
    }
    counts.retain(|n| *n >= used);
    if counts.is_empty() {
        return Err(Error::request(
            "--slots",
            format!("at least {used}, the experts that a token uses"),
            few.join(", "),
        ));
    }
    let mut jobs = Vec::new();
    for &scope in &args.scope {
        for &prefetch in &args.prefetch {
            for &n in &counts {
                let slots = simulate::slots(scope, n, header.n_layer, header.n_expert);
                jobs.extend(policies.iter().map(|&policy| Job { policy, scope, slots: slots.clone(), prefetch }));
            }
        }
    }
    Ok(jobs)
}

/// Runs the jobs on all cores; rows in the jobs' order.
fn work(args: &Args, header: &Header, jobs: &[Job]) -> Result<Vec<Row>> {
    let futures = |scope| -> Result<Vec<Arc<Future>>> {
        let needed = jobs.iter().any(|j| j.scope == scope && j.policy.needs_future());
        if needed { simulate::futures(&args.trace, scope) } else { Ok(Vec::new()) }
    };
    let (layer, global) = (futures(Scope::Layer)?, futures(Scope::Global)?);
    let threads = machine::cores().threads().min(jobs.len());
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(jobs.len())));
    let bar = Progress::runs("simulating", false);
    let one = |trace: &Path, job: &Job| {
        let setting = Setting {
            policy: job.policy,
            scope: job.scope,
            slots: &job.slots,
            prefetch: job.prefetch,
            drive: args.drive,
            compute: args.compute(),
        };
        let futures = if job.scope == Scope::Layer { &layer } else { &global };
        let outcome = simulate::replay(trace, &setting, futures)?;
        Ok(Row::new(&setting, &header.expert_bytes, header.n_expert, &outcome))
    };
    std::thread::scope(|s| {
        for _ in 0..threads {
            s.spawn(|| {
                while let Some((i, job)) = {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(i).map(|job| (i, job))
                } {
                    let row: Result<Row> = one(&args.trace, job);
                    let mut done = done.lock().expect("no thread panics while it holds the rows");
                    done.push((i, row));
                    bar.set(done.len() as u64, jobs.len() as u64);
                }
            });
        }
    });
    let mut rows = done.into_inner().expect("no thread panicked");
    rows.sort_by_key(|(i, _)| *i);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// The JSON's keys and values in their order. No value has a comma or a quote within.
fn csv(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let json = serde_json::to_string(row).expect("rows are plain numbers");
        let fields = json.trim_matches(['{', '}']).split(',').filter_map(|field| field.split_once(':'));
        let (keys, values): (Vec<_>, Vec<_>) =
            fields.map(|(k, v)| (k.trim_matches('"'), if v == "null" { "" } else { v.trim_matches('"') })).unzip();
        if text.is_empty() {
            text = keys.join(",") + "\n";
        }
        text += &(values.join(",") + "\n");
    }
    text
}

/// A table for each scope and prefetcher: a row a policy, a column a number of slots, hit rates in percent.
fn text(header: &Header, rows: &[Row]) -> String {
    let mut text = format!(
        "{}: {} MoE layers, {} of {} experts; decode hit rate in %\n",
        header.model, header.n_layer, header.n_expert_used, header.n_expert
    );
    let mut groups: Vec<_> = rows.iter().map(|r| (r.scope, r.prefetch)).collect();
    groups.dedup();
    for (scope, prefetch) in groups {
        let of = |r: &&Row| (r.scope, r.prefetch) == (scope, prefetch);
        let mut slots: Vec<_> = rows.iter().filter(of).map(|r| r.slots_per_layer).collect();
        slots.dedup();
        let mut policies: Vec<&str> = Vec::new();
        rows.iter().filter(of).for_each(|r| {
            if !policies.contains(&r.policy) {
                policies.push(r.policy)
            }
        });
        text += &format!("\nslots per {scope}, prefetch {prefetch}\n{:14}", "slots a layer");
        slots.iter().for_each(|n| text += &format!("{n:>8}"));
        text += &format!("\n{:14}", "share");
        slots.iter().for_each(|&n| text += &format!("{:>7.1}%", n as f64 * 100.0 / header.n_expert as f64));
        for policy in policies {
            text += &format!("\n{policy:14}");
            for row in rows.iter().filter(of).filter(|r| r.policy == policy) {
                text += &row.hit_rate.map_or("       -".to_owned(), |rate| format!("{:>8.2}", rate * 100.0));
            }
        }
        text.push('\n');
    }
    text
}
