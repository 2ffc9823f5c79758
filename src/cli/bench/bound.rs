//! What a row is measured against: the drive's own rate, and the rate of a token whose reads hide behind its arithmetic.
//!
//! A token that computes for `t` with every expert in memory, and needs `b` bytes of experts that were not there, takes at
//! least `max(t, b / d)` on a drive of `d` bytes per second. `t` is that of the last row before it that had all in memory, and
//! the drive is read right after each row: machines with neighbours change within minutes.

use std::time::Duration;

use hotset::{
    expert::ExpertStore,
    id::ExpertId,
    io::{
        Extents, IoKind,
        probe::{Limits, steady},
    },
};

use super::report::Row;

/// Hits of a row in memory, at least. The others were experts that no token had asked for before.
const IN_MEMORY: f64 = 0.95;

/// What is known so far of the model in memory.
#[derive(Default)]
pub struct Bounds {
    /// (test, threads, seconds a token without stalls) of rows in memory.
    in_memory: Vec<(String, usize, f64)>,
}

/// Bytes a second that the drive gives on a path past the page cache with an expert a read, from reading for `time`; `None`
/// where it cannot be probed.
pub fn drive(io: &str, depth: usize, store: &ExpertStore, time: Duration) -> Option<f64> {
    // What comes from the page cache may be faster than any drive.
    let past_it = [IoKind::Direct, IoKind::Uring].iter().any(|kind| kind.name() == io);
    if past_it { path(io, depth, store, time) } else { None }
}

/// Bytes a second that a read path gives, from wherever it has them.
pub fn path(io: &str, depth: usize, store: &ExpertStore, time: Duration) -> Option<f64> {
    let kind = *IoKind::ALL.iter().find(|kind| kind.name() == io)?;
    let n_layer = store.layers().len();
    let id = |layer, expert| ExpertId { layer: layer as u16, expert: expert as u16 };
    let ids = (0..n_layer).flat_map(|l| (0..store.n_expert()).map(move |e| id(l, e)));
    let reads: Vec<Extents> = ids.map(|id| store.extents(id)).collect();
    let limits = Limits { time, bytes: u64::MAX };
    let rate = steady(store.files(), &reads, &store.slot_parts(0..n_layer), (kind, depth), limits);
    rate.ok().map(|gb_s| gb_s * 1e9)
}

impl Bounds {
    /// Completes a row whose token needed `needed_bytes` that were not in memory.
    pub fn complete(&mut self, row: &mut Row, needed_bytes: Option<f64>) {
        row.read_share_of_probed =
            row.read_bytes_per_second.zip(row.probed_bytes_per_second).map(|(read, drive)| read / drive);
        if row.hit_rate.is_some_and(|hits| hits >= IN_MEMORY) && row.slots == row.experts {
            let stall = row.stall_ms_per_token.unwrap_or(0.0) / 1e3;
            // Not one over the mean rate: beside a slow repetition's stalls that could be less than nothing.
            let seconds = row.samples_tok_s.iter().map(|rate| 1.0 / rate).sum::<f64>() / row.samples_tok_s.len() as f64;
            self.in_memory.push((row.test.clone(), row.threads, seconds - stall));
            return;
        }
        let same = |(test, threads, _): &&(String, usize, f64)| *test == row.test && *threads == row.threads;
        let Some(&(.., seconds)) = self.in_memory.iter().rfind(same) else { return };
        let Some((needed, drive)) = needed_bytes.zip(row.probed_bytes_per_second) else { return };
        let bound = 1.0 / seconds.max(needed / drive);
        (row.bound_tok_s, row.share_of_bound) = (Some(bound), Some(row.median_tok_s / bound));
    }
}
