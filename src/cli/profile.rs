//! What `hotset bench` measured of a drive and of computing, for `simulate` and `report`.

use std::path::Path;

use hotset::{
    Error, Result,
    expert::Pace,
    simulate::{Compute, Drive},
};
use serde::Deserialize;

use super::text::{Limit, read_text};

/// A row of `bench --json`, as far as it is a profile. `None`: not measured.
#[derive(Debug, Default, Deserialize, PartialEq)]
pub struct Profile {
    pub test: String,
    pub io_depth: usize,
    pub layer_us: Option<f64>,
    /// For each millisecond of waiting.
    pub layer_wait_us: Option<f64>,
    pub shared_us: Option<f64>,
    pub hand_out_us: Option<f64>,
    pub expert_us: Option<f64>,
    pub wake_us: Option<f64>,
    pub token_us: Option<f64>,
    pub read_latency_us: Option<f64>,
    pub read_mb_s: Option<f64>,
}

/// The document.
#[derive(Deserialize)]
struct Rows {
    rows: Vec<Profile>,
}

impl Profile {
    /// Of the repetitions of a test with so many reads in flight.
    pub fn of(pace: &Pace, test: String, io_depth: usize) -> Self {
        let us = |ns: f64| ns / 1e3;
        let (layers, hand_outs) = (pace.layers.fit_added(), pace.hand_outs.fit());
        // Reads whose times do not grow with their size are too much alike to tell a latency from a rate.
        let grown = pace.reads.fit().filter(|(_, a_byte)| *a_byte > 0.0);
        let reads = grown.or(pace.reads.per_size().map(|a_byte| (0.0, a_byte)));
        Self {
            test,
            io_depth,
            layer_us: layers.map(|(at_0, _)| us(at_0)),
            layer_wait_us: layers.map(|(_, each)| each * 1e3),
            shared_us: pace.shared.mean_ns().map(us),
            hand_out_us: hand_outs.map(|(at_0, _)| us(at_0)),
            expert_us: hand_outs.map(|(_, each)| us(each)),
            wake_us: pace.wake_ns().map(us),
            token_us: pace.token_ns().map(us),
            read_latency_us: reads.map(|(at_0, _)| us(at_0)),
            read_mb_s: reads.map(|(_, a_byte)| 1e3 / a_byte).filter(|rate| rate.is_finite()),
        }
    }

    /// That of the one test in the file that decoded.
    ///
    /// # Errors
    /// A file that is not what bench writes as JSON, or has another number of such tests.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong =
            |why: String| Error::file(path, format!("this is no profile, as hotset bench --json prints it: {why}"));
        let Rows { rows } =
            serde_json::from_str(&read_text(path, &Limit::of_texts())?).map_err(|e| wrong(e.to_string()))?;
        let mut decoded: Vec<Self> = rows.into_iter().filter(|row| row.layer_us.is_some()).collect();
        let Some(profile) = decoded.pop().filter(|_| decoded.is_empty()) else {
            let n = if decoded.is_empty() { "none".to_owned() } else { format!("{}", decoded.len() + 1) };
            let wanted = "a profile has one test that decoded tokens (bench -p 0, one budget, one -n)";
            return Err(Error::file(path, format!("{wanted}, and this has {n}")));
        };
        let all = [profile.layer_us, profile.layer_wait_us, profile.shared_us, profile.hand_out_us, profile.expert_us];
        let others = [profile.wake_us, profile.token_us, profile.read_latency_us, profile.read_mb_s];
        let all = all.into_iter().chain(others);
        match all.flatten().find(|us| !(0.0..=1e9).contains(us)) {
            Some(us) => Err(wrong(format!("{us}, which is no time"))),
            None => Ok(profile),
        }
    }

    pub fn compute(&self) -> Compute {
        let ns = |us: Option<f64>| (us.unwrap_or(0.0) * 1e3).round() as u64;
        Compute {
            layer_ns: ns(self.layer_us),
            layer_wait_ns: ns(self.layer_wait_us),
            shared_ns: ns(self.shared_us),
            hand_out_ns: ns(self.hand_out_us),
            expert_ns: ns(self.expert_us),
            wake_ns: ns(self.wake_us),
            token_ns: ns(self.token_us),
        }
    }

    /// `None` where it saw no reads.
    pub fn drive(&self) -> Option<Drive> {
        let (latency_us, mb_s) = self.read_latency_us.zip(self.read_mb_s)?;
        let bytes_per_us = mb_s.round().max(1.0) as u64;
        Some(Drive { latency_ns: (latency_us * 1e3).round() as u64, bytes_per_us, depth: self.io_depth.max(1) })
    }
}
