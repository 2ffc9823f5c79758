//! `hotset repack`: a model file whose experts are one read each.

use std::{ops::ControlFlow, path::PathBuf, process::ExitCode};

use hotset::{
    human_bytes,
    repack::{Report, Step, repack_to},
};

use super::{
    Ended,
    args::file_bytes,
    interrupt::Interrupts,
    model_file,
    out::{Out, Progress, note, plain},
    outputs::{Force, Outputs},
};

/// Write a copy of a model in which each expert is one read
///
/// The gate, up and down matrices of an expert lie side by side, from a multiple of 4096 bytes on. All else is the same,
/// and so is every token. hotset reads the new file as any other; llama.cpp does not load it.
///
/// Every tensor is read back from the drive and compared before the file takes its name. Nothing stays of a file that is
/// not finished. Needs the model's size in free space, and tens of MiB of memory. A pipe or a device gets the bytes as they
/// come, and is not read back.
#[derive(clap::Args)]
pub struct Args {
    /// Model file (GGUF; of a split set any file)
    model: PathBuf,
    /// The new file to write (- is standard output)
    out: PathBuf,
    #[command(flatten)]
    force: Force,
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    let gguf = model_file::open(&args.model)?;
    let mut outputs = Outputs::new(&args.force);
    outputs.reads_model(&gguf);
    let to_stdout = args.out.as_os_str() == "-";
    if !to_stdout {
        outputs.prints("what was done");
    }
    let out = outputs.create("repack", &args.out)?;
    let in_place = out.in_place();
    let interrupts = Interrupts::watch_all()?;
    let mut step = None;
    let mut bar = None;
    let report = repack_to(&gguf, out, &mut |now, done, total| {
        if step != Some(now) {
            step = Some(now);
            // The old bar goes before the new one comes.
            bar = None;
            bar = Some(Progress::bytes(if now == Step::Copy { "copying" } else { "checking" }, false));
        }
        bar.iter().for_each(|b| b.set(done, total));
        if interrupts.asked_to_stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    drop(bar);
    let Some(report) = report else {
        let number = interrupts.asked().unwrap_or(0);
        let left = if in_place { "what it got is of no use" } else { "nothing is left of it" };
        note(format_args!("{}: not finished, as signal {number} came; {left}", args.out.display()));
        // As shells have it.
        return Ok(ExitCode::from(128 + number));
    };
    let text = text(&report, args, file_bytes(&gguf));
    if to_stdout {
        text.lines().for_each(|line| plain(format_args!("{line}")));
    } else {
        Out::new().text(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report, args: &Args, source_bytes: u64) -> String {
    let Report { layers, experts, tensors, bytes, checked } = *report;
    let (new, old) = (human_bytes(bytes), human_bytes(source_bytes));
    let checked = if checked { "read back, every byte as in the source" } else { "written, and not read back" };
    format!(
        "{}: {new} ({bytes} bytes; the source has {old})\n\
         {experts} experts in {layers} layers, each one read from a multiple of 4096 bytes\n\
         {tensors} tensors {checked}\n\
         llama.cpp does not load this layout: keep the source if you need it there\n",
        args.out.display()
    )
}
