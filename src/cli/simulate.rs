//! `hotset simulate`: hit rates, bytes and predicted speed of every policy and cache size on a recorded run.

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;
use hotset::{
    simulate::Row,
    trace::file::{Header, TraceReader},
};

use super::{Ended, out::Out, sweep::Sweep};

/// Replay a trace through caches of many sizes and policies
///
/// The engine's own cache runs over a simulated drive. Hit rates are of decoding: hits / wanted experts, an expert counted
/// once a layer and token, cold start included. Without prefetching they do not depend on the drive.
#[derive(clap::Args)]
pub struct Args {
    /// A trace that `hotset trace` recorded or imported
    trace: PathBuf,
    #[command(flatten)]
    sweep: Sweep,
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

/// The verb.
pub fn run(args: &Args) -> Ended {
    let header = TraceReader::open(&args.trace)?.header().clone();
    let rows: Vec<Row> = args.sweep.run(&args.trace, &header)?.into_iter().map(|(row, _)| row).collect();
    let mut out = Out::new();
    out.text(&match args.output {
        Format::Json => serde_json::to_string_pretty(&rows).expect("rows are plain numbers") + "\n",
        Format::Csv => csv(&rows),
        Format::Text => text(&header, &rows),
    })?;
    Ok(ExitCode::SUCCESS)
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
