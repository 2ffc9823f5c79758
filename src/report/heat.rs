//! Figures of cells that are the darker the more (on a dark page: the brighter), as SVG.

use std::fmt::Write;

use super::{
    chart::WIDTH,
    html::{escape, key},
};

/// Shades, the least first: CSS has a colour for each of `c0` to `c8`.
pub const LEVELS: usize = 9;

const LEFT: f64 = 40.0;
const TOP: f64 = 22.0;
const BELOW: f64 = 36.0;

/// Height of all rows together at most, and of one.
const HEIGHT: f64 = 260.0;
const ROW: f64 = 16.0;

/// Cells overlap by this: where a row is no whole number of pixels, the page would shine through.
const SEAM: f64 = 0.3;

/// Rows and columns that are drawn at most; of more, each cell is the mean of several.
const MOST: (usize, usize) = (256, 384);

/// Cells that have their own text at most; with more, the page would become large.
const MOST_TEXTS: usize = 1 << 14;

/// What is drawn. Values of one row side by side; `None` is no cell.
pub struct Heat<'a> {
    /// For those who cannot see it.
    pub about: &'a str,
    /// (rows, columns)
    pub cells: Vec<Vec<Option<f64>>>,
    /// The shade of a value, below [`LEVELS`].
    pub level: fn(f64) -> usize,
    /// A value in words, for who points at its cell.
    pub words: fn(f64) -> String,
    /// What the columns are.
    pub x_name: &'a str,
    /// Under each column.
    pub x_labels: Vec<String>,
    /// What the rows are. They are numbered from 0.
    pub y_name: &'a str,
}

/// The source.
pub fn svg(heat: &Heat<'_>) -> String {
    let (n_row, n_column) = (heat.cells.len(), heat.cells.first().map_or(0, Vec::len));
    let cells = shrink(&heat.cells);
    let (rows, columns) = (cells.len(), cells.first().map_or(0, Vec::len));
    let height = (n_row as f64 * ROW).min(HEIGHT);
    let (h, w) = (height / rows.max(1) as f64, (WIDTH - 12.0 - LEFT) / columns.max(1) as f64);
    let bottom = TOP + height;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.1}\" role=\"img\" aria-label=\"{}\">\n",
        bottom + BELOW,
        escape(heat.about)
    );
    for level in 0..LEVELS {
        let mut path = String::new();
        for (i, row) in cells.iter().enumerate() {
            let is = |cell: &Option<f64>| cell.is_some_and(|v| (heat.level)(v).min(LEVELS - 1) == level);
            let mut at = 0;
            for run in row.chunk_by(|a, b| is(a) == is(b)) {
                if is(&run[0]) {
                    let (x, y, width) = (LEFT + at as f64 * w, TOP + i as f64 * h, run.len() as f64 * w + SEAM);
                    let _ = write!(path, "M{x:.1} {y:.1}h{width:.1}v{:.1}h-{width:.1}z", h + SEAM);
                }
                at += run.len();
            }
        }
        if !path.is_empty() {
            let _ = writeln!(svg, "<path class=\"c{level}\" d=\"{path}\"/>");
        }
    }
    if (rows, columns) == (n_row, n_column) && rows * columns <= MOST_TEXTS {
        svg += &texts(heat, (w, h));
    }
    // Labels as close as they stay readable: 14 units a row, 8 a character of a column.
    let every = round_up((14.0 * n_row as f64 / height.max(1.0)).ceil() as usize);
    for i in (0..n_row).step_by(every) {
        let y = TOP + (i as f64 + 0.5) * height / n_row as f64 + 4.0;
        let _ = writeln!(svg, "<text class=\"end\" x=\"{}\" y=\"{y:.1}\">{i}</text>", LEFT - 5.0);
    }
    let longest = heat.x_labels.iter().map(|l| l.chars().count()).max().unwrap_or(1) + 1;
    let column = (WIDTH - 12.0 - LEFT) / n_column.max(1) as f64;
    let every = round_up((8.0 * longest as f64 / column).ceil() as usize);
    for (i, label) in heat.x_labels.iter().enumerate().step_by(every) {
        let x = LEFT + (i as f64 + 0.5) * column;
        let _ = writeln!(svg, "<text class=\"mid\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>", bottom + 15.0, escape(label));
    }
    let _ = write!(
        svg,
        "<text class=\"name\" x=\"4\" y=\"12\">{}</text>\
         <text class=\"name end\" x=\"{}\" y=\"{:.1}\">{}</text></svg>",
        escape(heat.y_name),
        WIDTH - 12.0,
        bottom + BELOW - 5.0,
        escape(heat.x_name)
    );
    svg
}

/// A text for each cell, `w` by `h`, which shows while a pointer is over it.
fn texts(heat: &Heat<'_>, (w, h): (f64, f64)) -> String {
    let mut svg = String::new();
    for (i, row) in heat.cells.iter().enumerate() {
        for (j, value) in row.iter().enumerate().filter_map(|(j, cell)| Some((j, (*cell)?))) {
            let (x, y) = (LEFT + j as f64 * w, TOP + i as f64 * h);
            let column = format!("{} {}", heat.x_name, heat.x_labels[j]);
            let text = escape(&format!("layer {i}, {column}: {}", (heat.words)(value)));
            let _ = writeln!(
                svg,
                "<path class=\"over\" d=\"M{x:.1} {y:.1}h{w:.1}v{h:.1}h-{w:.1}z\"><title>{text}</title></path>"
            );
        }
    }
    svg
}

/// The shades with what they mean, the least first.
pub fn scale(names: &[&str; LEVELS]) -> String {
    let classes = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"];
    key("area", classes.into_iter().zip(names.iter().copied()))
}

/// 1, 2, 5, 10, 20, …: the first that is `n` or more.
fn round_up(n: usize) -> usize {
    let powers = std::iter::successors(Some(1usize), |p| p.checked_mul(10));
    powers.flat_map(|p| [p, p.saturating_mul(2), p.saturating_mul(5)]).find(|&step| step >= n).unwrap_or(n)
}

/// Means over blocks of cells, so that there are at most [`MOST`].
fn shrink(cells: &[Vec<Option<f64>>]) -> Vec<Vec<Option<f64>>> {
    let n_column = cells.first().map_or(0, Vec::len);
    let (rows, columns) = (cells.len().div_ceil(MOST.0).max(1), n_column.div_ceil(MOST.1).max(1));
    let mean = |block: &[Vec<Option<f64>>], from: usize| {
        let values = block.iter().flat_map(|row| &row[from..(from + columns).min(n_column)]).flatten();
        let (n, sum) = values.fold((0, 0.0), |(n, sum), v| (n + 1, sum + v));
        (n > 0).then(|| sum / f64::from(n))
    };
    let block = |block: &[Vec<Option<f64>>]| (0..n_column).step_by(columns).map(|from| mean(block, from)).collect();
    cells.chunks(rows).map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_grids_are_means_of_blocks() {
        let cells: Vec<Vec<Option<f64>>> = (0..MOST.0 + 1).map(|i| vec![Some(i as f64); 2 * MOST.1]).collect();
        let small = shrink(&cells);
        assert_eq!((small.len(), small[0].len()), (MOST.0 / 2 + 1, MOST.1));
        assert_eq!((small[0][0], small[1][5], small[MOST.0 / 2][0]), (Some(0.5), Some(2.5), Some(MOST.0 as f64)));
        let some = [vec![None, Some(1.0)], vec![None, None]];
        assert_eq!(shrink(&some), some, "what fits stays");
        let svg = |cells| {
            let labels = vec![String::new(); 3];
            let level = |v: f64| v as usize;
            let words = |v: f64| format!("<{v}>");
            svg(&Heat { about: "", cells, level, words, x_name: "slots", x_labels: labels, y_name: "" })
        };
        let picture = svg(vec![vec![Some(1.0), Some(1.0), None], vec![Some(8.0), Some(99.0), Some(8.0)]]);
        assert_eq!(picture.matches("class=\"c1\" d=\"M").count(), 1);
        let shades = picture.lines().filter(|line| line.contains("class=\"c"));
        assert_eq!(
            shades.map(|line| line.matches("h-").count()).sum::<usize>(),
            2,
            "neighbours of one shade are one piece"
        );
        assert_eq!(picture.matches("<title>").count(), 5, "{picture}");
        assert!(picture.contains("<title>layer 1, slots : &lt;99&gt;</title>"), "{picture}");
        assert!(svg(Vec::new()).ends_with("</svg>"));
    }

    #[test]
    fn steps_of_labels_are_round() {
        assert_eq!([1, 2, 3, 6, 11, 21, 51].map(round_up), [1, 2, 5, 10, 20, 50, 100]);
    }
}
