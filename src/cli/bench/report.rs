//! What `hotset bench` measured, as text, JSON, CSV or Markdown. One row per test, printed as soon as it is there.

use hotset::{expert::Scope, human_bytes};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Form, Out, Stop};
use crate::cli::{
    csv,
    json::SCHEMA,
    width::{of_stdout, wrap},
};

/// Generates the row from one list, so that JSON and CSV have the same fields in the same order.
macro_rules! row {
    ($($field:ident: $ty:ty,)*) => {
        /// A test's results. `None`: nothing was there to measure, or the system does not tell.
        #[derive(Serialize)]
        pub struct Row { $(pub $field: $ty),* }

        impl Row {
            const COLUMNS: &[&str] = &[$(stringify!($field)),*];

            fn values(&self) -> Vec<Value> {
                vec![$(json!(self.$field)),*]
            }
        }
    };
}

row! {
    version: &'static str,
    model: String,
    arch: &'static str,
    model_bytes: u64,
    n_params: u64,
    n_layer: usize,
    n_expert: usize,
    n_expert_used: usize,
    expert_type: Option<String>,
    memory: String,
    budget_bytes: u64,
    smallest_bytes: u64,
    full_bytes: u64,
    peak_rss_bytes: Option<u64>,
    slots: usize,
    experts: usize,
    threads: usize,
    isa: String,
    kv: &'static str,
    io: &'static str,
    io_depth: usize,
    io_reason: Option<String>,
    policy: &'static str,
    prefetch: &'static str,
    prefetch_share: Option<f64>,
    vram_device: Option<String>,
    vram_slots: Option<usize>,
    vram_hit_rate: Option<f64>,
    vram_upload_bytes: Option<u64>,
    scope: &'static str,
    n_batch: usize,
    n_ctx: usize,
    tokens: &'static str,
    seed: Option<u64>,
    test: String,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    warmup: usize,
    reps: usize,
    median_tok_s: f64,
    mean_tok_s: f64,
    stddev_tok_s: Option<f64>,
    min_tok_s: f64,
    max_tok_s: f64,
    hit_rate: Option<f64>,
    late_rate: Option<f64>,
    demand_bytes_per_token: Option<f64>,
    prefetch_bytes_per_token: Option<f64>,
    bytes_read_per_token: Option<f64>,
    read_bytes_per_second: Option<f64>,
    probed_bytes_per_second: Option<f64>,
    read_share_of_probed: Option<f64>,
    weight_bytes_per_token: f64,
    context_bytes_per_token: Option<f64>,
    memory_bytes_per_second: Option<f64>,
    share_of_memory: Option<f64>,
    bound_tok_s: Option<f64>,
    share_of_bound: Option<f64>,
    prefetch_useful_per_token: Option<f64>,
    prefetch_wasted_per_token: Option<f64>,
    stall_ms_per_token: Option<f64>,
    stall_ms_p50: Option<f64>,
    stall_ms_p95: Option<f64>,
    stall_ms_p99: Option<f64>,
    layer_us: Option<f64>,
    layer_wait_us: Option<f64>,
    shared_us: Option<f64>,
    hand_out_us: Option<f64>,
    expert_us: Option<f64>,
    wake_us: Option<f64>,
    token_us: Option<f64>,
    read_latency_us: Option<f64>,
    read_mb_s: Option<f64>,
    samples_tok_s: Vec<f64>,
}

/// What several samples are together.
pub struct Rates {
    pub median: f64,
    pub mean: f64,
    /// `None` for fewer than two.
    pub stddev: Option<f64>,
    pub min: f64,
    pub max: f64,
}

impl Rates {
    /// Of at least one sample.
    pub fn new(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let mean = sorted.iter().sum::<f64>() / n as f64;
        let squares = sorted.iter().map(|s| (s - mean).powi(2)).sum::<f64>();
        Self {
            median: (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
            mean,
            stddev: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()),
            min: sorted[0],
            max: sorted[n - 1],
        }
    }
}

/// The columns for people, and how wide they are as text. [`FIRST`] has them in the order of their weight.
const TABLE: [(&str, usize); 17] = [
    ("budget", 16),
    ("threads", 7),
    ("test", 14),
    ("tok/s", 8),
    ("stddev", 7),
    ("min", 8),
    ("max", 8),
    ("hits", 7),
    ("late", 6),
    ("read/token", 10),
    ("read/s", 10),
    ("of drive", 8),
    ("of memory", 9),
    ("of bound", 8),
    ("stall/token", 11),
    ("p50/p95/p99", 17),
    ("peak RSS", 10),
];

/// Which columns a narrow terminal shows: as many as fit, from the first on, in the order of [`TABLE`].
const FIRST: [&str; TABLE.len()] = [
    "test",
    "tok/s",
    "budget",
    "hits",
    "read/token",
    "stall/token",
    "peak RSS",
    "threads",
    "of memory",
    "stddev",
    "min",
    "max",
    "of bound",
    "late",
    "read/s",
    "of drive",
    "p50/p95/p99",
];

/// Space between two columns.
const GAP: usize = 2;

/// Indices in [`TABLE`] of the columns that fit.
fn fitting(columns: Option<usize>) -> Vec<usize> {
    let mut room = columns.map_or(usize::MAX, |n| n + GAP);
    let at = |name: &str| TABLE.iter().position(|(n, _)| *n == name).expect("FIRST has the names of TABLE");
    let mut kept: Vec<usize> = FIRST
        .iter()
        .map(|name| at(name))
        .map_while(|i| {
            room = room.checked_sub(TABLE[i].1 + GAP)?;
            Some(i)
        })
        .collect();
    kept.sort_unstable();
    kept
}

fn cells(row: &Row) -> [String; TABLE.len()] {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let budget = human_bytes(row.budget_bytes);
    let stalls = row.stall_ms_p50.zip(row.stall_ms_p95).zip(row.stall_ms_p99).map(|((a, b), c)| [a, b, c]);
    [
        if row.memory.ends_with('%') { format!("{} {budget}", row.memory) } else { budget },
        row.threads.to_string(),
        row.test.clone(),
        format!("{:.2}", row.median_tok_s),
        or_none(row.stddev_tok_s.map(|s| format!("{s:.2}"))),
        format!("{:.2}", row.min_tok_s),
        format!("{:.2}", row.max_tok_s),
        or_none(row.hit_rate.map(|h| format!("{:.1} %", h * 100.0))),
        or_none(row.late_rate.map(|h| format!("{:.1} %", h * 100.0))),
        or_none(row.bytes_read_per_token.map(|b| human_bytes(b as u64))),
        or_none(row.read_bytes_per_second.map(|b| human_bytes(b as u64))),
        or_none(row.read_share_of_probed.map(|s| format!("{:.0} %", s * 100.0))),
        or_none(row.share_of_memory.map(|s| format!("{:.0} %", s * 100.0))),
        or_none(row.share_of_bound.map(|s| format!("{:.0} %", s * 100.0))),
        or_none(row.stall_ms_per_token.map(|ms| format!("{ms:.2} ms"))),
        or_none(stalls.map(|[p50, p95, p99]| format!("{p50:.1}/{p95:.1}/{p99:.1} ms"))),
        or_none(row.peak_rss_bytes.map(human_bytes)),
    ]
}

/// What holds for all rows, in front of the table.
fn heading(row: &Row) -> [String; 2] {
    let experts = row.expert_type.as_deref().unwrap_or("no");
    [
        format!(
            "{}: {}, {:.2} G parameters, {}; {} layers, {} experts of {} in use, {experts} experts",
            row.model,
            row.arch,
            row.n_params as f64 / 1e9,
            human_bytes(row.model_bytes),
            row.n_layer,
            row.n_expert_used,
            row.n_expert,
        ),
        format!(
            "hotset {}: {}, KV cache {}, reads {} {} at a time, policy {}, {}, prefetch {}; {} tokens, {} to warm up",
            row.version,
            row.isa,
            row.kv,
            row.io,
            row.io_depth,
            row.policy,
            Scope::of_slots(row.scope),
            row.prefetch,
            row.tokens,
            row.warmup,
        ),
    ]
}

/// Prints rows.
pub struct Report {
    form: Form,
    out: Out,
    rows: usize,
    /// Of the terminal, if it is one.
    columns: Option<usize>,
    /// Indices in [`TABLE`] of what is shown as text.
    shown: Vec<usize>,
}

impl Report {
    pub fn new(form: Form, out: Out) -> Self {
        let columns = of_stdout();
        Self { form, out, rows: 0, columns, shown: fitting(columns) }
    }

    pub fn row(&mut self, row: &Row) -> Result<(), Stop> {
        let first = self.rows == 0;
        self.rows += 1;
        let text = match self.form {
            Form::Text => {
                let head = || {
                    let heading = heading(row).map(|l| wrap(&l, self.columns, 2) + "\n").concat();
                    heading + &self.text_line(&TABLE.map(|(name, _)| name.to_owned()))
                };
                (if first { head() } else { String::new() }) + &self.text_line(&cells(row))
            }
            Form::Md => (if first { md_head(row) } else { String::new() }) + &md_line(&cells(row)),
            Form::Csv => {
                let names = || Row::COLUMNS.iter().map(|&name| json!(name)).collect::<Vec<_>>();
                (if first { csv::line(&names()) } else { String::new() }) + &csv::line(&row.values())
            }
            Form::Json => {
                let object = serde_json::to_string_pretty(row).expect("the row's keys are strings");
                (if first { json_head() } else { ",\n".to_owned() }) + &object
            }
        };
        self.out.text(&text)
    }

    pub fn finish(mut self) -> Result<(), Stop> {
        let left_out = TABLE.len() - self.shown.len();
        match (self.form, self.rows) {
            (Form::Json, 0) => self.out.text(&(json_head() + "]\n}\n")),
            (Form::Json, _) => self.out.text("\n]\n}\n"),
            (Form::Text, 1..) if left_out > 0 => {
                let text =
                    format!("{left_out} more columns need a wider terminal; --json, --csv and --markdown have all");
                self.out.text(&(wrap(&text, self.columns, 0) + "\n"))
            }
            _ => Ok(()),
        }
    }

    fn text_line(&self, cells: &[String; TABLE.len()]) -> String {
        let cell = |&i: &usize| format!("{:>width$}", cells[i], width = TABLE[i].1);
        self.shown.iter().map(cell).collect::<Vec<_>>().join(&" ".repeat(GAP)) + "\n"
    }
}

/// What stands before the rows: they come one by one, so that the document is written by hand.
fn json_head() -> String {
    format!("{{\n\"schema\": {SCHEMA},\n\"rows\": [\n")
}

/// The heading and the table's first lines.
fn md_head(row: &Row) -> String {
    let heading = heading(row).map(|l| l + "\n\n").concat();
    heading + &md_line(&TABLE.map(|(name, _)| name.to_owned())) + &"|---".repeat(TABLE.len()) + "|\n"
}

fn md_line(cells: &[String; TABLE.len()]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_of_100_columns_has_the_columns_that_matter_most() {
        let width = |shown: &[usize]| shown.iter().map(|&i| TABLE[i].1 + GAP).sum::<usize>() - GAP;
        assert_eq!(fitting(None).len(), TABLE.len());
        let shown = fitting(Some(100));
        assert!(width(&shown) <= 100 && shown.is_sorted());
        assert!(
            ["test", "tok/s", "budget", "hits", "peak RSS"]
                .iter()
                .all(|name| shown.iter().any(|&i| TABLE[i].0 == *name))
        );
        assert!((40..300).all(|columns| width(&fitting(Some(columns))) <= columns));
    }

    #[test]
    fn rates_are_those_of_the_samples() {
        let r = Rates::new(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((r.median, r.mean, r.min, r.max), (2.5, 2.5, 1.0, 4.0));
        assert!((r.stddev.unwrap() - (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!(Rates::new(&[7.0]).stddev.is_none());
    }
}
