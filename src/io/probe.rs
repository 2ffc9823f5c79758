//! How fast a drive reads experts on each read path, found out in some tenths of a second on the model's own files.
//!
//! What the page cache holds of the sample is dropped before each turn, and after it, so that the figures are the
//! drive's and the sample takes no memory from anybody.
//!
//! Must not know: experts, budgets. It is told which reads to choose from and what they may cost.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Extents, Files, IoBuf, IoEngine, IoKind, Priority, Read};

/// What is tried, with how many reads in flight, the cheapest first. A ring has no threads, and one that is no fuller than
/// the drive needs lets a demand read through sooner: at 25 % of memory 6 in flight decoded 5 % faster than 16 on a drive
/// that gave both the same rate. `pread` copies: on reads of 864 KiB it took 420 ms of processor time a GB, the others
/// about 100 (`benches/RESULTS.tsv`).
const CANDIDATES: [(IoKind, usize); 4] =
    [(IoKind::Uring, 6), (IoKind::Uring, 16), (IoKind::Direct, 4), (IoKind::Pread, 4)];

/// A cheaper path is chosen if it is so near the fastest: turns differ by about as much.
const NEAR: f64 = 0.9;

/// What a probe's rate of `pread` counts. A probe finds pages free for it; where the page cache has no room for all experts, which
/// is when one asks, each page is first taken from somebody. In a cgroup of a quarter of the file it decoded 12.3 tokens per second
/// and the others 22 to 25, though a probe had 1.66 GB/s for it and 1.33 to 1.81 for them.
const PREAD_COUNTS: f64 = 0.5;

/// Turns of each candidate, of which the best counts: what else the machine does makes reads slower, never faster.
const TURNS: u32 = 2;

/// Memory for reads in flight, at most, but for the least number of them.
const BUFFER_BYTES: usize = 16 << 20;

/// What a probe may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time in all. Reads in flight at its end are waited for.
    pub time: Duration,
    /// Bytes in all.
    pub bytes: u64,
}

/// What one read path reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// [`IoKind::name`].
    pub io: String,
    /// Reads in flight.
    pub depth: usize,
    /// Bytes a nanosecond.
    pub gb_s: f64,
}

/// What was found out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Of the paths that work.
    pub rates: Vec<Rate>,
    /// Why the others do not.
    pub refused: Vec<String>,
}

impl Rates {
    /// The path and depth to take where memory is short: the cheapest of those near the fastest. `None` where none works.
    pub fn best(&self) -> Option<(IoKind, usize)> {
        let worth = |r: &Rate| if r.io == IoKind::Pread.name() { PREAD_COUNTS * r.gb_s } else { r.gb_s };
        let most = self.rates.iter().map(worth).fold(0.0, f64::max);
        let near = |&(kind, depth): &(IoKind, usize)| {
            self.rates.iter().any(|r| r.io == kind.name() && r.depth == depth && worth(r) >= NEAR * most)
        };
        CANDIDATES.into_iter().find(near)
    }
}

impl std::fmt::Display for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rates = self.rates.iter().map(|r| format!("{} {} {:.2} GB/s", r.io, r.depth, r.gb_s));
        write!(f, "{}", rates.chain(self.refused.iter().cloned()).collect::<Vec<_>>().join(", "))
    }
}

/// A candidate with its buffers.
struct Runner {
    kind: IoKind,
    depth: usize,
    engine: Box<dyn IoEngine>,
    idle: Vec<IoBuf>,
    best: f64,
}

/// Reads random ones of `reads`, whose parts have at most `parts` bytes, on every path. A read that fails takes its path
/// out.
pub fn probe(files: &Files, reads: &[Extents], parts: &[usize], limits: Limits) -> Rates {
    let (mut found, mut runners) = (Rates::default(), Vec::new());
    let in_flight = (BUFFER_BYTES / parts.iter().sum::<usize>().max(1)).clamp(2, 8);
    for (kind, depth) in CANDIDATES {
        match runner(files, kind, depth, parts, in_flight) {
            Ok(runner) => runners.push(runner),
            Err(e) => found.refused.push(format!("{} {depth} refused ({e})", kind.name())),
        }
    }
    let n_turns = TURNS * CANDIDATES.len() as u32;
    let start = Instant::now();
    let mut dice = 1;
    for _ in 0..TURNS {
        runners.retain_mut(|runner| {
            // The first turn of each is had in any case.
            if runner.best > 0.0 && start.elapsed() > limits.time {
                return true;
            }
            let sample = sample(reads, limits.bytes / u64::from(n_turns), &mut dice);
            let result = runner.turn(files, &sample, limits.time / n_turns);
            if let Err(e) = &result {
                found.refused.push(format!("{} {} failed ({e})", runner.kind.name(), runner.depth));
            }
            result.is_ok()
        });
    }
    found.rates.extend(runners.iter().map(|r| Rate { io: r.kind.name().to_owned(), depth: r.depth, gb_s: r.best }));
    found
}

/// Bytes a nanosecond that one path gives when it is kept busy for `limits.time`, reading random ones of `reads`. The first
/// half does not count: drives and their caches take some tenths of a second to get going. Asks nobody to forget pages, so
/// that of a path through the page cache this is no figure of the drive.
///
/// # Errors
/// If the path does not work here, a read fails, or there is too little time for one.
pub fn steady(
    files: &Files,
    reads: &[Extents],
    parts: &[usize],
    (kind, depth): (IoKind, usize),
    limits: Limits,
) -> std::io::Result<f64> {
    let in_flight = (BUFFER_BYTES / parts.iter().sum::<usize>().max(1)).clamp(2, depth.max(2));
    let mut runner = runner(files, kind, depth, parts, in_flight)?;
    let (mut dice, mut submitted, mut from, mut counted) = (1, 0, None, 0);
    let mut rate = 0.0;
    let mut in_flight = Vec::new();
    let start = Instant::now();
    loop {
        while start.elapsed() < limits.time && submitted < limits.bytes {
            let (Some(&extents), Some(buf)) = (sample(reads, 1, &mut dice).first(), runner.idle.pop()) else { break };
            submitted += extents.bytes();
            let tag = in_flight.iter().position(Option::is_none).unwrap_or(in_flight.len());
            if tag == in_flight.len() {
                in_flight.push(None);
            }
            in_flight[tag] = Some(extents);
            runner.engine.submit(Read { tag, extents, buf, priority: Priority::Demand });
        }
        let Some(done) = runner.engine.wait() else { break };
        runner.idle.push(done.buf);
        let extents = in_flight[done.tag].take().expect("a tag comes back once");
        done.result.map_err(|e| e.source)?;
        let now = start.elapsed();
        match from {
            // What comes in after time is up was read with less and less in flight.
            Some(from) if now <= limits.time => {
                counted += extents.bytes();
                rate = counted as f64 / (now - from).as_nanos().max(1) as f64;
            }
            None if now >= limits.time / 2 => from = Some(now),
            _ => {}
        }
    }
    if rate > 0.0 { Ok(rate) } else { Err(std::io::Error::other("too little time for a read")) }
}

fn runner(files: &Files, kind: IoKind, depth: usize, parts: &[usize], in_flight: usize) -> std::io::Result<Runner> {
    let engine = kind.build(files.clone(), depth)?;
    let mut idle = IoBuf::many(engine.layout(), parts, in_flight)?;
    // Slots are memory that is there, not pages that the first read has to get.
    for buf in &mut idle {
        (0..parts.len()).for_each(|i| buf.part_mut(i).fill(0));
    }
    Ok(Runner { kind, depth, engine, idle, best: 0.0 })
}

/// Random ones of `reads`, at least one, of `bytes` together.
fn sample(reads: &[Extents], bytes: u64, dice: &mut u64) -> Vec<Extents> {
    let (mut list, mut sum) = (Vec::new(), 0);
    while list.is_empty() || (sum < bytes && list.len() < 4096) {
        // Knuth's MMIX generator; its upper bits are the random ones.
        *dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let Some(&read) = reads.get((*dice >> 33) as usize % reads.len().max(1)) else { break };
        sum += read.bytes();
        list.push(read);
    }
    list
}

impl Runner {
    /// Reads from `sample` until time is up, and keeps the rate if it is the best so far.
    fn turn(&mut self, files: &Files, sample: &[Extents], time: Duration) -> std::io::Result<()> {
        sample.iter().for_each(|extents| forget_pages(files, extents));
        let start = Instant::now();
        let (mut bytes, mut list, mut result) = (0, sample.iter().enumerate(), Ok(()));
        loop {
            while start.elapsed() < time && !self.idle.is_empty() {
                let (Some((tag, &extents)), Some(buf)) = (list.next(), self.idle.pop()) else { break };
                self.engine.submit(Read { tag, extents, buf, priority: Priority::Demand });
            }
            let Some(done) = self.engine.wait() else { break };
            self.idle.push(done.buf);
            bytes += sample[done.tag].bytes();
            result = result.and(done.result.map_err(|e| e.source));
        }
        let rate = bytes as f64 / start.elapsed().as_nanos() as f64;
        self.best = self.best.max(rate);
        sample.iter().for_each(|extents| forget_pages(files, extents));
        result
    }
}

/// Asks the system to drop what it caches of these bytes. It may not; then the path that profits looks fast, and is.
fn forget_pages(files: &Files, extents: &Extents) {
    #[cfg(target_os = "linux")]
    for e in extents.iter() {
        let len = std::num::NonZeroU64::new(e.len as u64);
        let _ = rustix::fs::fadvise(&files[e.file as usize].1, e.offset, len, rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (files, extents);
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Arc};

    use super::*;
    use crate::io::Extent;

    fn rates(list: &[(&str, usize, f64)]) -> Rates {
        let rates = list.iter().map(|&(io, depth, gb_s)| Rate { io: io.to_owned(), depth, gb_s }).collect();
        Rates { rates, refused: vec!["mapped refused (no)".to_owned()] }
    }

    #[test]
    fn the_cheapest_of_those_near_the_fastest_is_taken() {
        for (list, best) in [
            (&[("pread", 4, 1.0), ("direct", 4, 2.0), ("uring", 6, 1.9)][..], Some((IoKind::Uring, 6))),
            (&[("uring", 16, 2.0), ("direct", 4, 2.0), ("uring", 6, 1.7)], Some((IoKind::Uring, 16))),
            (&[("pread", 4, 1.0), ("direct", 4, 2.0), ("uring", 6, 1.7)], Some((IoKind::Direct, 4))),
            (&[("pread", 4, 9.0), ("direct", 4, 2.0), ("uring", 6, 2.0)], Some((IoKind::Pread, 4))),
            (
                &[("uring", 6, 1.33), ("uring", 16, 1.25), ("direct", 4, 1.69), ("pread", 4, 2.03)],
                Some((IoKind::Direct, 4)),
            ),
            (&[("pread", 4, 0.3)], Some((IoKind::Pread, 4))),
            (&[("tape", 4, 9.0), ("direct", 4, 9.0)], Some((IoKind::Direct, 4))),
            (&[], None),
        ] {
            assert_eq!(rates(list).best(), best, "{list:?}");
        }
        assert_eq!(rates(&[("pread", 4, 0.3)]).to_string(), "pread 4 0.30 GB/s, mapped refused (no)");
    }

    #[test]
    fn a_probe_keeps_its_limits_and_finds_every_path_that_works() {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        std::fs::write(file.path(), vec![7; 4 << 20]).unwrap();
        let files: Files = [(file.path().to_owned(), Arc::new(File::open(file.path()).unwrap()))].into_iter().collect();
        let at = |i: u64| Extents::new(&[Extent { file: 0, offset: i * 100_001, len: 100_000 }]);
        let reads: Vec<_> = (0..40).map(at).collect();
        let limits = Limits { time: Duration::from_millis(60), bytes: 3 << 20 };
        let start = Instant::now();
        let found = probe(&files, &reads, &[100_000], limits);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert_eq!(found.rates.len() + found.refused.len(), CANDIDATES.len(), "{found:?}");
        assert!(found.rates.iter().all(|r| r.gb_s > 0.0) && found.best().is_some(), "{found:?}");
        // Beyond the end of the file nothing works.
        let beyond = [Extents::new(&[Extent { file: 0, offset: 8 << 20, len: 100_000 }])];
        let found = probe(&files, &beyond, &[100_000], limits);
        assert_eq!((found.rates.len(), found.refused.len(), found.best()), (0, CANDIDATES.len(), None));
        assert_eq!(probe(&files, &[], &[100_000], limits).rates.len(), CANDIDATES.len() - found_refused(&files));
        let alone = |reads, time| {
            let limits = Limits { time, bytes: u64::MAX };
            steady(&files, reads, &[100_000], (IoKind::Pread, 2), limits)
        };
        assert!(alone(&reads, limits.time).unwrap() > 0.0);
        assert!(alone(&beyond, limits.time).is_err() && alone(&[], limits.time).is_err());
        assert!(alone(&reads, Duration::ZERO).is_err());
    }

    fn found_refused(files: &Files) -> usize {
        CANDIDATES.iter().filter(|(kind, _)| kind.build(files.clone(), 1).is_err()).count()
    }
}
