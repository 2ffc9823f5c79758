//! The record of a live run that `hotset run --stats-json` writes, as far as a report needs it.
//!
//! A key that is missing, or counts that contradict each other, are an error: no figure is guessed.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::series::Series;
use crate::{Error, Result, input};

/// A record's bytes at most; [`super::series::MAX_POINTS`] points take under 1 MiB.
const MAX_BYTES: u64 = 16 << 20;

/// MoE layers at most, as for traces.
const MAX_LAYERS: usize = 1 << 14;

/// See the module. Other keys of the record are passed over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Of the program.
    pub version: String,
    /// When it ended, in UTC.
    pub date: String,
    /// What it ran on.
    pub machine: String,
    /// The model's file.
    pub model: String,
    /// What tells the model from others of its name.
    pub model_id: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Of prompt and decoding.
    pub bytes_read: u64,
    /// Prefetch reads.
    pub prefetches: u64,
    /// Prefetched and then asked for.
    pub prefetch_useful: u64,
    /// Prefetched and evicted unused.
    pub prefetch_wasted: u64,
    /// What it was given.
    pub budget_bytes: u64,
    /// What it took; `None` where the system does not tell.
    pub peak_rss_bytes: Option<u64>,
    /// Read path.
    pub io: String,
    /// Reads in flight at most.
    pub io_depth: usize,
    /// Why this read path, where it was left open, with what was found about the drive.
    pub io_reason: Option<String>,
    /// Eviction policy.
    pub policy: String,
    /// Prefetcher.
    pub prefetch: String,
    /// How slots are shared.
    pub scope: String,
    /// Instruction set.
    pub isa: String,
    /// Threads that compute.
    pub threads: usize,
    /// Decoding.
    pub decode: Decode,
    /// Decoding, by MoE layer.
    pub layers: Vec<Layer>,
    /// Decoding, by token.
    pub tokens: Series,
}

/// Totals of decoding.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decode {
    /// Tokens that came of it.
    pub tokens: u64,
    /// Time that it took.
    pub seconds: f64,
    /// Wanted experts that were in a slot.
    pub hit: u64,
    /// Wanted experts whose read was in flight.
    pub late: u64,
    /// Wanted experts that had to be read.
    pub miss: u64,
    /// Time in which it did nothing but wait for a read.
    pub stall_ms: f64,
}

/// One MoE layer's counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// As in [`Decode`].
    pub hit: u64,
    /// As in [`Decode`].
    pub late: u64,
    /// As in [`Decode`].
    pub miss: u64,
}

impl Run {
    /// Reads a record.
    ///
    /// # Errors
    /// What is no such record, or contradicts itself.
    pub fn read(path: &Path) -> Result<Self> {
        let text = input::read(path, MAX_BYTES)?;
        let wrong = |e| Error::format(path, "the run's record", "what hotset run --stats-json writes", e);
        let run: Run = serde_json::from_slice(&text).map_err(wrong)?;
        run.check(path)?;
        Ok(run)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let whole = (self.decode.hit, self.decode.late, self.decode.miss, self.decode.tokens);
        let sum = self.tokens.total();
        let by_token = (sum.hit, sum.late, sum.miss, self.tokens.tokens());
        if by_token != whole {
            let what = "the tokens' sum of (hit, late, miss, tokens)";
            return Err(Error::format(path, what, format!("{whole:?}"), format!("{by_token:?}")));
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(Error::format(path, "layers", format!("at most {MAX_LAYERS}"), self.layers.len()));
        }
        let add = |of: fn(&Layer) -> u64| self.layers.iter().map(of).fold(0, u64::saturating_add);
        let by_layer = (add(|l| l.hit), add(|l| l.late), add(|l| l.miss));
        if by_layer != (whole.0, whole.1, whole.2) {
            let what = "the layers' sum of (hit, late, miss)";
            return Err(Error::format(
                path,
                what,
                format!("{:?}", (whole.0, whole.1, whole.2)),
                format!("{by_layer:?}"),
            ));
        }
        Ok(())
    }
}
