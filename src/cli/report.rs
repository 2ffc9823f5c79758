//! `hotset report`: what a trace and a live run show, as a page, as curves in the terminal, as JSON.

use std::{path::PathBuf, process::ExitCode};

use hotset::{
    report::{Made, Report, Run, Traced},
    trace::file::TraceReader,
};

use super::{
    Ended, json, made,
    out::Out,
    outputs::{Force, Outputs},
    sweep::Sweep,
};

/// Show what a trace and a live run say: miss-ratio curves, heat maps, a timeline
///
/// Prints miss-ratio curves of every policy, and with --html writes a page that needs no network and no scripts. A trace
/// is what `hotset trace` records or imports; a run's record is what `hotset run --stats-json` writes.
#[derive(clap::Args)]
pub struct Args {
    /// A trace, to be simulated at many sizes
    #[arg(required_unless_present = "run")]
    trace: Option<PathBuf>,
    /// The record of a live run, for its timeline
    #[arg(long, value_name = "FILE")]
    run: Option<PathBuf>,
    /// Write the page to this new file (- is standard output)
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print all numbers of the page as JSON
    #[arg(long, conflicts_with = "plot")]
    json: bool,
    /// Print miss-ratio curves, a letter per policy, and a sentence on the run. The default without --html
    #[arg(long)]
    plot: bool,
    #[command(flatten)]
    sweep: Sweep,
    #[command(flatten)]
    force: Force,
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    // Begun before the work, which would be lost on a path that cannot be written.
    let mut outputs = Outputs::new(&args.force);
    args.trace.iter().for_each(|file| outputs.reads("the trace", file));
    args.run.iter().for_each(|file| outputs.reads("the record of the run", file));
    args.sweep.profile().into_iter().for_each(|file| outputs.reads("the profile", file));
    if args.html.is_none() || args.json || args.plot {
        outputs.prints("the report");
    }
    let page = args.html.as_deref().map(|file| outputs.create("--html", file)).transpose()?;
    let run = args.run.as_deref().map(Run::read).transpose()?;
    let trace = match &args.trace {
        Some(path) => {
            let header = TraceReader::open(path)?.header().clone();
            let conditions = args.sweep.conditions()?;
            let (runs, _) = args.sweep.run(path, &header, conditions)?;
            Some(Traced::new(path, conditions, runs)?)
        }
        None => None,
    };
    let report = Report {
        made: Made { version: made::VERSION.to_owned(), date: made::now(), machine: made::machine() },
        trace,
        run,
    };
    let has_page = page.is_some();
    if let Some(mut page) = page {
        page.write(report.html().as_bytes())?;
        page.finish()?;
    }
    let text = match (args.json, args.plot || !has_page) {
        (true, _) => json::document(&report),
        (false, true) => report.text(),
        (false, false) => String::new(),
    };
    Out::new().text(&text)?;
    Ok(ExitCode::SUCCESS)
}
