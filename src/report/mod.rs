//! What a trace and a live run say about a model's experts, gathered for people: as one page without scripts
//! ([`Report::html`]), as curves in plain text ([`Report::text`]), and as JSON (serde).
//!
//! [`simulate`](crate::simulate) and [`session`](crate::session) make the numbers; nothing is computed here but sums,
//! shares and ranks. `docs/report.md` says what each figure means.
//!
//! Must not know: sessions, clocks, terminals. All text from files is hostile until `html` has escaped it.

mod axis;
mod chart;
mod curves;
mod heat;
mod html;
mod page;
pub mod routing;
pub mod run;
pub mod series;
mod text;
mod timeline;

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;

use crate::{
    Error, Result,
    expert::{LayerHits, Scope},
    simulate::{Conditions, Row},
    trace::file::{Header, TraceReader, fnv1a},
};

pub use self::{routing::Routing, run::Run, series::Series};

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How it came about.
    pub made: Made,
    /// Of a recorded run.
    pub trace: Option<Traced>,
    /// Of a live one.
    pub run: Option<Run>,
}

/// Who made a report, where and when.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// Of the program.
    pub version: String,
    /// In UTC.
    pub date: String,
    /// What it ran on.
    pub machine: String,
}

/// A trace, what it says itself, and what was simulated on it.
#[derive(Clone, Debug, Serialize)]
pub struct Traced {
    /// The file.
    pub file: String,
    /// FNV-1a of the file's bytes.
    pub hash: String,
    /// What it says of itself.
    pub header: Header,
    /// What its tokens use.
    pub routing: Routing,
    /// Before the first byte of each simulated read, in microseconds.
    pub drive_latency_us: f64,
    /// Bytes of simulated reads in a microsecond (MB/s).
    pub drive_bytes_per_us: u64,
    /// Simulated reads whose latencies run side by side.
    pub drive_depth: usize,
    /// What computing takes of each layer event before its experts are known, what that takes longer for each
    /// millisecond of waiting for the one before, what it takes after that, for each hand-out of experts, for
    /// each expert in it, for a hand-out after a wait, and for each decoded token besides.
    pub compute_us: [f64; 7],
    /// Tokens at the start that do not count.
    pub warmup: u64,
    /// A row for each policy, size, scope and prefetcher.
    pub curves: Vec<Row>,
    /// Layer by layer, for the policies that are caches; one for each such row of `curves`.
    pub layers: Vec<LayerCounts>,
}

/// What decoding found in each MoE layer in one of the [`Traced::curves`].
#[derive(Clone, Debug, Serialize)]
pub struct LayerCounts {
    /// As in [`Row`].
    pub policy: &'static str,
    /// As in [`Row`].
    pub scope: &'static str,
    /// As in [`Row`].
    pub prefetch: &'static str,
    /// As in [`Row`].
    pub slots_per_layer: usize,
    /// (n_moe_layer)
    pub hit: Vec<u64>,
    /// (n_moe_layer)
    pub late: Vec<u64>,
    /// (n_moe_layer)
    pub miss: Vec<u64>,
}

impl Traced {
    /// Puts together what was simulated on the trace at `path`, which is read through once more.
    ///
    /// # Errors
    /// A trace that cannot be read.
    pub fn new(path: &Path, conditions: Conditions, runs: Vec<(Row, Vec<LayerHits>)>) -> Result<Self> {
        let Conditions { drive, compute, warmup } = conditions;
        let header = TraceReader::open(path)?.header().clone();
        let column = |layers: &[LayerHits], of: fn(&LayerHits) -> u64| layers.iter().map(of).collect();
        let layers = runs.iter().filter(|(_, layers)| !layers.is_empty()).map(|(row, layers)| LayerCounts {
            policy: row.policy,
            scope: row.scope,
            prefetch: row.prefetch,
            slots_per_layer: row.slots_per_layer,
            hit: column(layers, |l| l.hit),
            late: column(layers, |l| l.late),
            miss: column(layers, |l| l.miss),
        });
        Ok(Self {
            file: path.display().to_string(),
            hash: hash(path)?,
            routing: routing::routing(path)?,
            drive_latency_us: drive.latency_ns as f64 / 1e3,
            drive_bytes_per_us: drive.bytes_per_us,
            drive_depth: drive.depth,
            compute_us: [
                compute.layer_ns,
                compute.layer_wait_ns,
                compute.shared_ns,
                compute.hand_out_ns,
                compute.expert_ns,
                compute.wake_ns,
                compute.token_ns,
            ]
            .map(|ns| ns as f64 / 1e3),
            warmup,
            layers: layers.collect(),
            curves: runs.into_iter().map(|(row, _)| row).collect(),
            header,
        })
    }

    /// The curves that belong into one figure: by (scope, prefetcher), each policy's rows by size.
    fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for row in &self.curves {
            let key = (row.scope, row.prefetch);
            let i = groups.iter().position(|g| (g.scope, g.prefetch) == key).unwrap_or_else(|| {
                groups.push(Group { scope: key.0, prefetch: key.1, policies: Vec::new() });
                groups.len() - 1
            });
            let policies = &mut groups[i].policies;
            match policies.iter_mut().find(|(name, _)| *name == row.policy) {
                Some((_, rows)) => rows.push(row),
                None => policies.push((row.policy, vec![row])),
            }
        }
        groups
    }
}

/// One figure's curves.
#[derive(Clone)]
struct Group<'a> {
    scope: &'static str,
    prefetch: &'static str,
    policies: Vec<(&'static str, Vec<&'a Row>)>,
}

impl Group<'_> {
    /// What its figures have in common.
    fn title(&self) -> String {
        let one_pool = self.scope == Scope::Global.name();
        let scope = if one_pool { "one pool for all layers" } else { Scope::of_slots(self.scope) };
        format!("{scope}, prefetch {}", self.prefetch)
    }

    /// Rows by slots a layer of the policy, to compare others with.
    fn by_slots(&self, policy: &str) -> BTreeMap<usize, &Row> {
        let rows = self.policies.iter().find(|(name, _)| *name == policy);
        rows.into_iter().flat_map(|(_, rows)| rows.iter().map(|r| (r.slots_per_layer, *r))).collect()
    }
}

fn hash(path: &Path) -> Result<String> {
    use std::io::Read;
    let file = crate::input::open(path)?;
    let mut failed = None;
    let bytes = std::io::BufReader::new(file).bytes().map_while(|b| b.map_err(|e| failed = Some(e)).ok());
    let hash = fnv1a(bytes);
    failed.map_or(Ok(hash), |e| Err(Error::io(path, "read", e)))
}

/// Miss ratio, 0 to 1; `None` where nothing was asked for.
fn miss_ratio(row: &Row) -> Option<f64> {
    row.hit_rate.map(|rate| 1.0 - rate)
}
