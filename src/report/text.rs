//! Miss-ratio curves in plain text, for terminals and logs: a letter a policy. Names from files lose their control
//! characters: a terminal would obey them.

use super::{Group, Report, Traced, miss_ratio, timeline};
use crate::simulate::Row;

/// Characters of a plot without its axes.
const COLUMNS: usize = 72;
const ROWS: usize = 21;

impl Report {
    /// See the module: a plot for each scope and prefetcher of the trace, and a sentence on the run.
    pub fn text(&self) -> String {
        let plots = self.trace.iter().flat_map(|t| t.groups().iter().map(|g| plot(t, g)).collect::<Vec<_>>());
        let run = self.run.as_ref().map(|run| timeline::summary(run) + "\n");
        plots.chain(run).collect()
    }
}

fn plot(trace: &Traced, group: &Group<'_>) -> String {
    let mean = |rows: &[&Row]| rows.iter().filter_map(|r| miss_ratio(r)).sum::<f64>() / rows.len() as f64;
    let mut policies: Vec<_> = group.policies.iter().collect();
    policies.sort_by(|(_, a), (_, b)| mean(b).total_cmp(&mean(a)));
    let ratios = || policies.iter().flat_map(|(_, rows)| rows.iter().filter_map(|r| miss_ratio(r)));
    // A round top: the next twentieth.
    let top = ((ratios().fold(0.0, f64::max) * 20.0).ceil() / 20.0).max(0.05);
    let mut grid = vec![[' '; COLUMNS]; ROWS];
    for (letter, (_, rows)) in ('a'..='z').cycle().zip(&policies) {
        for (column, ratio) in (0..COLUMNS).filter_map(|c| Some((c, at(rows, c as f64 / (COLUMNS - 1) as f64)?))) {
            let row = ((1.0 - ratio / top) * (ROWS - 1) as f64).round();
            grid[(row as usize).min(ROWS - 1)][column] = letter;
        }
    }
    let header = &trace.header;
    let model: String = header.model.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let mut out = format!(
        "{}: {} MoE layers, {} of {} experts; {}\nmiss ratio\n",
        model,
        header.n_layer,
        header.n_expert_used,
        header.n_expert,
        group.title()
    );
    for (i, row) in grid.iter().enumerate() {
        let label = if i % 4 == 0 {
            format!("{:5.1} %", top * 100.0 * (1.0 - i as f64 / (ROWS - 1) as f64))
        } else {
            " ".repeat(7)
        };
        out += &format!("{label} |{}\n", row.iter().collect::<String>().trim_end());
    }
    out += &format!("{:7} +{}\n", "", "-".repeat(COLUMNS));
    let quarter = (COLUMNS - 1) as f64 / 4.0;
    let mut labels = vec![' '; 8 + COLUMNS + 8];
    for (i, text) in ["0", "25", "50", "75", "100 % of slots"].iter().enumerate() {
        let end = if i == 4 { 8 + COLUMNS + 1 } else { 10 + (i as f64 * quarter).round() as usize };
        text.chars().rev().enumerate().for_each(|(back, c)| labels[end - 1 - back] = c);
    }
    out += labels.iter().collect::<String>().trim_end();
    out.push('\n');
    let key: Vec<String> =
        ('a'..='z').cycle().zip(&policies).map(|(letter, (name, _))| format!("{letter} {name}")).collect();
    out += &format!(
        "{}\nWhere curves meet, the last of these is drawn. They begin at {} slots, one token's experts.\n\n",
        key.join("   "),
        header.n_expert_used
    );
    out
}

/// The miss ratio between two sizes, on a straight line; `None` below the smallest and above the largest.
fn at(rows: &[&Row], share: f64) -> Option<f64> {
    let right = rows.iter().position(|r| r.share >= share - 1e-9)?;
    if right == 0 {
        // The smallest size itself, if it lies within this column.
        let near = rows[0].share - share < 1.0 / (COLUMNS - 1) as f64;
        return if near { miss_ratio(rows[0]) } else { None };
    }
    let (a, b) = (rows[right - 1], rows[right]);
    let part = (share - a.share) / (b.share - a.share);
    Some(miss_ratio(a)? * (1.0 - part) + miss_ratio(b)? * part)
}
