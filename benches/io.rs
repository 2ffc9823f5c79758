//! Bytes a second of every read path on expert-sized random reads: `cargo bench --bench io -- MODEL.gguf`.
//!
//! The pages that a path reads are dropped from the page cache before (`POSIX_FADV_DONTNEED`) unless `--warm` is given. Paths
//! take turns, `--rounds` times, and each is reported by its median, since a drive in the cloud has good and bad seconds.
//! `cpu` is the processor time that a GB took, of all threads: what reading takes from computing.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Parser;
use hotset::{
    Error, Result, arch,
    expert::ExpertStore,
    gguf::Gguf,
    id::ExpertId,
    io::{Extents, Files, IoBuf, IoKind, Priority, Read},
};

#[derive(Parser)]
struct Args {
    /// Model file
    model: PathBuf,
    /// Read paths with their depth, such as uring/8; default: all
    #[arg(long, value_delimiter = ',')]
    paths: Vec<String>,
    /// Turns of each path
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds of a turn
    #[arg(long, default_value_t = 300)]
    turn: u64,
    /// Experts in flight
    #[arg(long, default_value_t = 8)]
    in_flight: usize,
    /// Leave the page cache as it is
    #[arg(long)]
    warm: bool,
    /// What cargo says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

const PATHS: &[&str] = &[
    "pread/1", "pread/2", "pread/4", "pread/8", "mapped/2", "mapped/4", "direct/1", "direct/2", "direct/4", "direct/8",
    "uring/1", "uring/2", "uring/4", "uring/8", "uring/16", "uring/32",
];

/// One turn's figures.
struct Turn {
    gb_s: f64,
    cpu_ms_per_gb: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let gguf = Gguf::open(&args.model)?;
    let blueprint = arch::blueprint(&gguf)?;
    let store = ExpertStore::new(&gguf, blueprint.experts())?;
    let n = (store.layers().len(), store.n_expert());
    let ids = |i: usize| ExpertId { layer: (i / n.1) as u16, expert: (i % n.1) as u16 };
    let extents: Vec<_> = (0..n.0 * n.1).map(|i| store.extents(ids(i))).collect();
    let parts = store.slot_parts(0..n.0);
    let all = PATHS.iter().map(|p| (*p).to_owned()).collect();
    let paths: Vec<String> = if args.paths.is_empty() { all } else { args.paths.clone() };
    let mut turns: Vec<Vec<Turn>> = paths.iter().map(|_| Vec::new()).collect();
    let mut dice = 1;
    for _ in 0..args.rounds {
        for (path, turns) in paths.iter().zip(&mut turns) {
            turns.push(turn(&args, path, store.files(), &extents, &parts, &mut dice)?);
        }
    }
    eprintln!(
        "{}: {} experts of {} bytes in parts {parts:?}, {} in flight",
        args.model.display(),
        extents.len(),
        extents[0].bytes(),
        args.in_flight
    );
    eprintln!("path\tmedian GB/s\tmin\tmax\tcpu ms/GB");
    for (path, turns) in paths.iter().zip(&mut turns) {
        turns.sort_by(|a, b| a.gb_s.total_cmp(&b.gb_s));
        let median = &turns[turns.len() / 2];
        let (min, max) = (turns[0].gb_s, turns[turns.len() - 1].gb_s);
        eprintln!("{path}\t{:.2}\t{min:.2}\t{max:.2}\t{:.0}", median.gb_s, median.cpu_ms_per_gb);
    }
    Ok(())
}

/// Reads random experts through `path` for a while.
fn turn(args: &Args, path: &str, files: &Files, all: &[Extents], parts: &[usize], dice: &mut u64) -> Result<Turn> {
    let wrong = || Error::request("a read path", "NAME/DEPTH", path);
    let (name, depth) = path.split_once('/').ok_or_else(wrong)?;
    let kind = *IoKind::ALL.iter().find(|k| k.name() == name).ok_or_else(wrong)?;
    let depth = depth.parse().map_err(|_| wrong())?;
    let refused = |e| Error::request(path, "it to start", e);
    let mut engine = kind.build(files.clone(), depth).map_err(refused)?;
    let mut bufs = IoBuf::many(engine.layout(), parts, args.in_flight).map_err(refused)?;
    // Slots are touched before: in a run they are filled again and again.
    for (tag, buf) in bufs.drain(..).enumerate() {
        engine.submit(Read { tag, extents: all[0], buf, priority: Priority::Demand });
    }
    let mut idle: Vec<_> = std::iter::from_fn(|| engine.wait()).map(|done| (done.tag, done.buf)).collect();
    // Which ones are read is settled and cold before the clock starts.
    let list: Vec<_> = (0..all.len()).map(|_| all[next(dice) as usize % all.len()]).collect();
    if !args.warm {
        files.iter().for_each(|(_, file)| drop_pages(file));
    }
    let (start, cpu, end) = (Instant::now(), cpu(), Duration::from_millis(args.turn));
    let (mut bytes, mut next) = (0, list.iter());
    loop {
        while start.elapsed() < end {
            let Some((tag, buf)) = idle.pop() else { break };
            let Some(&extents) = next.next() else { break };
            engine.submit(Read { tag, extents, buf, priority: Priority::Demand });
        }
        let Some(done) = engine.wait() else { break };
        done.result.map_err(|e| Error::request(path, "a read", e.source))?;
        idle.push((done.tag, done.buf));
        bytes += parts.iter().sum::<usize>();
    }
    let gb = bytes as f64 / 1e9;
    Ok(Turn { gb_s: gb / start.elapsed().as_secs_f64(), cpu_ms_per_gb: (self::cpu() - cpu) * 1e3 / gb })
}

/// Seconds of processor time of this process, all threads.
fn cpu() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

fn drop_pages(file: &std::fs::File) {
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).expect("advice on a file");
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

fn next(dice: &mut u64) -> u64 {
    *dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *dice >> 33
}
