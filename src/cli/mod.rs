//! The command line: one verb a file, over the library's public door.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 done (also when the reader of a pipe
//! left), 1 an error, 2 wrong usage, 130 interrupted.

mod args;
mod bench;
mod csv;
mod decompose;
mod hot;
mod inspect;
mod interrupt;
mod live;
mod logits;
mod made;
mod model_file;
mod out;
mod outputs;
mod perplexity;
mod plan;
mod profile;
mod repack;
mod report;
mod run;
mod simulate;
mod stats;
mod sweep;
mod text;
mod tokenize;
mod trace;

use std::{io::ErrorKind, path::Path, process::ExitCode};

use clap::{Parser, Subcommand};
use hotset::{Error, new_file::STDOUT};

/// Runs Mixture-of-Experts models (GGUF) inside a memory budget, reading experts from disk as they are needed.
#[derive(Parser)]
#[command(name = "hotset", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Run(run::Args),
    Bench(bench::Args),
    Inspect(inspect::Args),
    Plan(plan::Args),
    Repack(repack::Args),
    Perplexity(perplexity::Args),
    Logits(logits::Args),
    Tokenize(tokenize::Args),
    Trace(trace::Args),
    Simulate(simulate::Args),
    Report(report::Args),
}

/// Why a verb ended before its end.
enum Stop {
    /// Nobody reads standard output any more: a clean end.
    Pipe,
    /// What went wrong.
    Error(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match &error {
            // An output file may be standard output, too.
            Error::Io { path, source, .. } if path == Path::new(STDOUT) && source.kind() == ErrorKind::BrokenPipe => {
                Stop::Pipe
            }
            _ => Stop::Error(error),
        }
    }
}

/// What a verb gives back.
type Ended = Result<ExitCode, Stop>;

/// Parses the arguments and runs the verb.
pub fn main() -> ExitCode {
    let ended = match Cli::parse().verb {
        Verb::Run(args) => run::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Plan(args) => plan::run(&args),
        Verb::Repack(args) => repack::run(&args),
        Verb::Perplexity(args) => perplexity::run(&args),
        Verb::Logits(args) => logits::run(&args),
        Verb::Tokenize(args) => tokenize::run(&args),
        Verb::Trace(args) => trace::run(&args),
        Verb::Simulate(args) => simulate::run(&args),
        Verb::Report(args) => report::run(&args),
    };
    match ended {
        Ok(code) => code,
        Err(Stop::Pipe) => ExitCode::SUCCESS,
        Err(Stop::Error(error)) => {
            out::note(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}
