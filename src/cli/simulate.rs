//! `hotset simulate`: hit rates, bytes and predicted speed of every policy and cache size on a recorded run.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use hotset::{
    Result, human_bytes, machine,
    simulate::{
        Row,
        quality::{AHEAD, Recall, Source},
    },
    trace::file::{Header, TraceReader},
};

use super::{
    Ended, csv, decompose, json,
    out::{Out, note, printable},
    sweep::Sweep,
};

/// Replay a trace through caches of many sizes and policies
///
/// The engine's own cache runs over a simulated drive. Hit rates are of decoding: hits / wanted experts, an expert counted
/// once per layer and token, cold start included. Without prefetching they do not depend on the drive.
#[derive(clap::Args)]
pub struct Args {
    /// A trace that `hotset trace` recorded or imported
    trace: PathBuf,
    #[command(flatten)]
    sweep: Sweep,
    /// Say where the gap between LRU and Belady lies instead: what knowing the next tokens would win, and which reuse distances
    /// and layers miss
    #[arg(long, conflicts_with_all = ["policy", "csv"])]
    decompose: bool,
    /// Print JSON: an object with a row for each run
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print comma-separated values, with the fields of the JSON's rows
    #[arg(long)]
    csv: bool,
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    let header = TraceReader::open(&args.trace)?.header().clone();
    let start = Instant::now();
    let conditions = args.sweep.conditions()?;
    let (results, effort) = if args.decompose {
        let (parts, effort) = args.sweep.decompose(&args.trace, &header, conditions)?;
        (if args.json { json::rows(&parts) } else { decompose::text(&header, &parts) }, effort)
    } else {
        let (runs, effort) = args.sweep.run(&args.trace, &header, conditions)?;
        let rows: Vec<Row> = runs.into_iter().map(|(row, _)| row).collect();
        let results = match (args.json, args.csv) {
            (true, _) => json::rows(&rows),
            (_, true) => csv::table(&rows),
            _ => text(&header, &rows),
        };
        (results, effort)
    };
    let seconds = start.elapsed().as_secs_f64();
    if let Some(damage) = damage(&args.trace)? {
        note(format_args!("{}: {damage}", args.trace.display()));
    }
    Out::new().text(&results)?;
    let millions = effort.requests as f64 / 1e6;
    let a_core = millions / effort.busy.as_secs_f64().max(1e-9);
    let peak = machine::peak_rss_bytes().map_or(String::new(), |n| format!("; peak RSS {}", human_bytes(n)));
    note(format_args!(
        "{millions:.2} million layer-expert requests in {seconds:.2} s, {a_core:.2} million a second and core{peak}"
    ));
    Ok(ExitCode::SUCCESS)
}

/// Where a trace ends before its file does.
fn damage(trace: &Path) -> Result<Option<String>> {
    let mut trace = TraceReader::open(trace)?;
    while trace.next_event()?.is_some() {}
    Ok(trace.damage().map(str::to_owned))
}

/// A scope's and prefetcher's tables: the first one's rows, then what else there is to say of them.
fn text(header: &Header, rows: &[Row]) -> String {
    let (model, used) = (printable(&header.model), header.n_expert_used);
    let mut text = format!("{model}: {} MoE layers, {used} of {} experts\n", header.n_layer, header.n_expert);
    text += &foresight(rows);
    let mut groups: Vec<_> = rows.iter().map(|r| (r.scope, r.prefetch)).collect();
    groups.dedup();
    for (scope, prefetch) in groups {
        let of: Vec<&Row> = rows.iter().filter(|r| (r.scope, r.prefetch) == (scope, prefetch)).collect();
        text += &format!("\nslots per {scope}, prefetch {prefetch}\n{:14}", "per layer");
        let mut slots: Vec<_> = of.iter().map(|r| r.slots_per_layer).collect();
        slots.dedup();
        slots.iter().for_each(|n| text += &format!("{n:>8}"));
        text += &format!("\n{:14}", "share");
        slots.iter().for_each(|&n| text += &format!("{:>7.1}%", n as f64 * 100.0 / header.n_expert as f64));
        let tier = of.iter().find(|row| row.vram_slots_per_layer > 0);
        if let Some(row) = tier {
            let n = row.vram_slots_per_layer;
            text +=
                &format!("\n{n} slots per layer in a device's memory; hit rates in memory are of the other experts\n");
        }
        text += &table("hit rate in the device's memory in %", &of, |row| tier.and(row.vram_hit_rate));
        text += &table("decode hit rate in %", &of, |row| row.hit_rate);
        if of.iter().all(|row| row.hit_rate.is_none()) {
            text += "\nnothing counts: no token was decoded in the trace\n";
        }
        for horizon in 1..=AHEAD {
            let best = format!("'s best {used} guesses {} ahead name, in %", layers(horizon));
            let misses = |by| move |row: &Row| at(row, by, horizon, |r| &r.recall_on_misses, used);
            let choices = |row: &Row| at(row, Source::Prefetch, horizon, |r| &r.recall, used);
            text += &table(&format!("misses that the trace{best}"), &of, misses(Source::Scores));
            text += &table(&format!("choices that the prefetcher{best}"), &of, choices);
            text += &table(&format!("misses that the prefetcher{best}"), &of, misses(Source::Prefetch));
        }
        text += &table("prefetched experts that were asked for in %", &of, |row| row.useful_share);
        text +=
            &table("prefetched experts that were still on their way when asked for in %", &of, |row| row.late_share);
        text += &table("prefetched experts that left unused in %", &of, |row| row.wasted_share);
    }
    text
}

/// A title, then a line a policy, a column a number of slots; nothing where no run has a figure.
fn table(title: &str, rows: &[&Row], figure: impl Fn(&Row) -> Option<f64>) -> String {
    let mut policies: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| figure(row).is_some()) {
        if !policies.contains(&row.policy) {
            policies.push(row.policy);
        }
    }
    if policies.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{title}\n");
    for policy in policies {
        text += &format!("{policy:14}");
        for row in rows.iter().filter(|r| r.policy == policy) {
            text += &figure(row).map_or("       -".to_owned(), |share| format!("{:>8.2}", share * 100.0));
        }
        text.push('\n');
    }
    text
}

fn layers(n: usize) -> String {
    if n == 1 { "1 layer".to_owned() } else { format!("{n} layers") }
}

/// What the best `ranks` guesses of a source named, of choices or of misses.
fn at(row: &Row, by: Source, horizon: usize, shares: fn(&Recall) -> &Vec<f64>, ranks: usize) -> Option<f64> {
    let found = row.foresight.iter().find(|r| (r.by, r.horizon) == (by, horizon))?;
    let shares = shares(found);
    shares.get(ranks.min(shares.len()).checked_sub(1)?).copied()
}

/// What the trace's scores name of all choices, which no cache changes, and the control, the worst of all rows.
fn foresight(rows: &[Row]) -> String {
    let mut text = String::new();
    let Some(row) = rows.iter().find(|row| !row.foresight.is_empty()) else { return text };
    for found in row.foresight.iter().filter(|found| found.by == Source::Scores) {
        let shares: Vec<_> = found.recall.iter().map(|share| format!("{:.1}", share * 100.0)).collect();
        text += &format!(
            "named by the best 1, 2, .. guesses {} ahead, in %: {}\n",
            layers(found.horizon),
            shares.join(" ")
        );
    }
    let own = rows.iter().flat_map(|row| &row.foresight).filter(|found| found.by == Source::Own);
    let least = own.flat_map(|found| [found.recall.last(), found.recall_on_misses.last()]).flatten();
    let least = least.copied().fold(1.0, f64::min);
    text + &format!("control, a layer's own choices as its guesses (must be 100): {}\n", least * 100.0)
}
