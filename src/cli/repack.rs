//! `hotset repack`: a model file whose experts are one read each.

use std::{
    ops::ControlFlow,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hotset::{
    Error, Result,
    gguf::Gguf,
    human_bytes,
    repack::{Report, Step, repack},
};
use signal_hook::consts::TERM_SIGNALS;

use super::{
    Ended,
    args::file_bytes,
    out::{Out, Progress, note},
};

/// Write a copy of a model in which each expert is one read
///
/// The gate, up and down matrices of an expert lie side by side, from a multiple of 4096 bytes on. All else is the same,
/// and so is every token. hotset reads the new file as any other; llama.cpp does not load it.
///
/// Every tensor is read back from the drive and compared before the file takes its name. Nothing is replaced, and
/// nothing stays of a file that is not finished. Needs the model's size in free space, and tens of MiB of memory.
#[derive(clap::Args)]
pub struct Args {
    /// Model file (GGUF; of a split set any file)
    model: PathBuf,
    /// The file to write, which must not be there yet
    out: PathBuf,
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    let gguf = Gguf::open(&args.model)?;
    let signal = watch_signals()?;
    let mut step = None;
    let mut bar = None;
    let report = repack(&gguf, &args.out, &mut |now, done, total| {
        if step != Some(now) {
            step = Some(now);
            // The old bar goes before the new one comes.
            bar = None;
            bar = Some(Progress::bytes(if now == Step::Copy { "copying" } else { "checking" }, false));
        }
        bar.iter().for_each(|b| b.set(done, total));
        if signal.load(Ordering::Relaxed) == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    drop(bar);
    let Some(report) = report else {
        let number = signal.load(Ordering::Relaxed);
        note(format_args!("{}: not finished, as signal {number} came; nothing is left of it", args.out.display()));
        // As shells have it.
        return Ok(ExitCode::from(128 + number as u8));
    };
    Out::new().text(&text(&report, args, file_bytes(&gguf)))?;
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report, args: &Args, source_bytes: u64) -> String {
    let Report { layers, experts, tensors, bytes } = *report;
    let (new, old) = (human_bytes(bytes), human_bytes(source_bytes));
    format!(
        "{}: {new} ({bytes} bytes; the source has {old})\n\
         {experts} experts in {layers} layers, each one read from a multiple of 4096 bytes\n\
         {tensors} tensors read back, every byte as in the source\n\
         llama.cpp does not load this layout: keep the source if you need it there\n",
        args.out.display()
    )
}

/// Holds the number of the last signal that asked for an end, or 0. Those that whoever started us had ignored (`nohup`)
/// stay ignored.
fn watch_signals() -> Result<Arc<AtomicUsize>> {
    let last = Arc::new(AtomicUsize::new(0));
    let signals = TERM_SIGNALS.iter().copied();
    #[cfg(unix)]
    let signals = signals.chain([signal_hook::consts::SIGHUP]);
    let ignored = ignored_signals();
    for signal in signals.filter(|s| ignored >> (s - 1) & 1 == 0) {
        signal_hook::flag::register_usize(signal, last.clone(), signal as usize)
            .map_err(|e| Error::request("a handler for signals", "it to be installed", e))?;
    }
    Ok(last)
}

/// Bit `n - 1` for signal `n`; none where the system does not say.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0)
}
