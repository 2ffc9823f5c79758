//! The command line: one verb a file, over the library's public door.
//!
//! Results go to standard output, everything else to standard error. The exit codes are in [`AFTER_HELP`].

mod args;
mod bench;
mod chat;
mod csv;
mod decompose;
mod habits;
mod hot;
mod hub;
mod inspect;
mod interrupt;
mod json;
mod list;
mod live;
mod logits;
mod made;
mod manual;
mod model_file;
mod out;
mod outputs;
mod perplexity;
mod plan;
mod profile;
mod prompt;
mod pull;
mod repack;
mod report;
mod run;
mod sampling;
#[cfg(feature = "serve")]
mod serve;
mod shared;
mod simulate;
mod state_notes;
mod stats;
mod sweep;
mod text;
mod tokenize;
mod trace;
mod width;

use std::{io::ErrorKind, path::Path, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use hotset::{Error, new_file::STDOUT};

/// Runs Mixture-of-Experts models (GGUF) inside a memory budget, reading experts from disk as they are needed.
#[derive(Parser)]
#[command(name = "hotset", version, long_version = made::LONG_VERSION.as_str(), max_term_width = 100, args_override_self = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// What holds for all verbs.
const AFTER_HELP: &str = "\
Results go to standard output, everything else to standard error. Of an option that is given twice the last one counts,
but for options that take lists.

Environment:
  HOTSET_MODEL       the model that run, chat, serve and bench use where none is named
  HOTSET_API_KEY     the key that clients of serve have to send
  HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE, HF_HOME
                     the hub of pull, who asks, and where downloads are [default: ~/.cache/huggingface/hub]
  HOTSET_ISA         instruction set for the arithmetic: scalar, avx2, avxvnni, avx512vnni; neon, dotprod, i8mm
  HOTSET_INTERLEAVE  off: rows of a matrix are never interleaved in memory [default: what suits the CPU]
  XDG_CACHE_HOME     warm starts, drive rates and the bundled model are kept in its folder hotset [default: ~/.cache]
  COLUMNS            width of tables and statistics [default: the terminal's]

Exit codes:
  0    done (also when the reader of a pipe has left)
  1    a file, the model, the budget or the machine does not allow it
  2    the command line is wrong
  130  interrupted (Ctrl-C)";

#[derive(Subcommand)]
enum Verb {
    Run(run::Args),
    Chat(chat::Args),
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    Bench(bench::Args),
    Inspect(inspect::Args),
    Plan(plan::Args),
    Pull(pull::Args),
    List(list::Args),
    Remove(list::RemoveArgs),
    Repack(repack::Args),
    Perplexity(perplexity::Args),
    Logits(logits::Args),
    Tokenize(tokenize::Args),
    Trace(trace::Args),
    Simulate(simulate::Args),
    Report(report::Args),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}

/// Why a verb ended before its end.
enum Stop {
    /// Nobody reads standard output any more: a clean end.
    Pipe,
    /// What is wrong with the command line, whatever the files and the machine.
    Usage(String),
    /// What went wrong.
    Error(Error),
}

impl Stop {
    /// A [`Stop::Usage`].
    fn usage(sentence: impl Into<String>) -> Self {
        Stop::Usage(sentence.into())
    }
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

/// Exit code of wrong usage.
const USAGE: u8 = 2;

/// Parses the arguments and runs the verb.
pub fn main() -> ExitCode {
    let parsed = habits::translated(std::env::args_os().collect()).map(Cli::try_parse_from);
    let ended = match parsed {
        Ok(Ok(cli)) => run(cli.verb),
        Ok(Err(error)) => Err(Stop::Usage(match sentence(&error) {
            Some(sentence) => sentence,
            // Help that was asked for, or is of use where nothing was.
            None => error.exit(),
        })),
        Err(sentence) => Err(Stop::Usage(sentence)),
    };
    match ended {
        Ok(code) => code,
        Err(Stop::Pipe) => ExitCode::SUCCESS,
        Err(Stop::Usage(sentence)) => {
            out::note(format_args!("{sentence}"));
            ExitCode::from(USAGE)
        }
        Err(Stop::Error(error)) => {
            out::note(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Ended {
    match verb {
        Verb::Run(args) => run::run(&args),
        Verb::Chat(args) => chat::run(&args),
        #[cfg(feature = "serve")]
        Verb::Serve(args) => serve::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Plan(args) => plan::run(&args),
        Verb::Pull(args) => pull::run(&args),
        Verb::List(args) => list::run(&args),
        Verb::Remove(args) => list::remove(&args),
        Verb::Repack(args) => repack::run(&args),
        Verb::Perplexity(args) => perplexity::run(&args),
        Verb::Logits(args) => logits::run(&args),
        Verb::Tokenize(args) => tokenize::run(&args),
        Verb::Trace(args) => trace::run(&args),
        Verb::Simulate(args) => simulate::run(&args),
        Verb::Report(args) => report::run(&args),
        Verb::Completions(args) => manual::completions(&args, &mut Cli::command()),
        Verb::Man(args) => manual::man(&args, Cli::command()),
    }
}

/// What clap found wrong, in one line; `None` where it is help or the version.
fn sentence(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return None;
    }
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if let (ErrorKind::ValueValidation, Some(arg), Some(value), Some(source)) = (
        error.kind(),
        context(ContextKind::InvalidArg),
        context(ContextKind::InvalidValue),
        std::error::Error::source(error),
    ) {
        let name = arg.split(' ').next().unwrap_or(arg);
        return Some(format!("{name} {value}: {source}"));
    }
    if let (ErrorKind::UnknownArgument, Some(arg)) = (error.kind(), context(ContextKind::InvalidArg)) {
        if !arg.starts_with('-') {
            return Some(format!("{arg} is one argument too many (a text of several words needs quotes; see --help)"));
        }
        let meant = context(ContextKind::SuggestedArg).map_or(String::new(), |meant| format!("did you mean {meant}? "));
        return Some(format!("{arg}: there is no such option ({meant}see --help)"));
    }
    let text = error.to_string();
    let told = text.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let words: Vec<_> = told.flat_map(str::split_whitespace).collect();
    Some(words.join(" ").trim_start_matches("error: ").to_owned() + " (see --help)")
}
