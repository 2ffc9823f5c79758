//! What `hotset bench` measured, as text, JSON, CSV or Markdown. One row a test, printed as soon as it is there.

use hotset::{expert::Scope, human_bytes};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Form, Out, Stop};
use crate::cli::csv;

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
    beside_bytes: u64,
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

/// The columns for people, and how wide they are as text.
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
}

impl Report {
    pub fn new(form: Form, out: Out) -> Self {
        Self { form, out, rows: 0 }
    }

    pub fn row(&mut self, row: &Row) -> Result<(), Stop> {
        let first = self.rows == 0;
        self.rows += 1;
        let text = match self.form {
            Form::Text => (if first { head(row, "", text_line) } else { String::new() }) + &text_line(&cells(row)),
            Form::Md => (if first { head(row, "\n", md_line) } else { String::new() }) + &md_line(&cells(row)),
            Form::Csv => {
                let names = || Row::COLUMNS.iter().map(|&name| json!(name)).collect::<Vec<_>>();
                (if first { csv::line(&names()) } else { String::new() }) + &csv::line(&row.values())
            }
            Form::Json => {
                let object = serde_json::to_string_pretty(row).expect("the row's keys are strings");
                (if first { "[\n" } else { ",\n" }).to_owned() + &object
            }
        };
        self.out.text(&text)
    }

    pub fn finish(mut self) -> Result<(), Stop> {
        match (self.form, self.rows) {
            (Form::Json, 0) => self.out.text("[]\n"),
            (Form::Json, _) => self.out.text("\n]\n"),
            _ => Ok(()),
        }
    }
}

/// The heading and the table's first lines.
fn head(row: &Row, after: &str, line: fn(&[String; TABLE.len()]) -> String) -> String {
    let heading = heading(row).map(|l| l + "\n" + after).concat();
    let rule = if after.is_empty() { String::new() } else { "|---".repeat(TABLE.len()) + "|\n" };
    heading + &line(&TABLE.map(|(name, _)| name.to_owned())) + &rule
}

fn text_line(cells: &[String; TABLE.len()]) -> String {
    let padded: Vec<_> = cells.iter().zip(TABLE).map(|(cell, (_, width))| format!("{cell:>width$}")).collect();
    padded.join("  ") + "\n"
}

fn md_line(cells: &[String; TABLE.len()]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_samples() {
        let r = Rates::new(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((r.median, r.mean, r.min, r.max), (2.5, 2.5, 1.0, 4.0));
        assert!((r.stddev.unwrap() - (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!(Rates::new(&[7.0]).stddev.is_none());
    }
}
