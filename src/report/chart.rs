//! Figures of curves and of stacked columns over two axes, as SVG. Sizes are in units of a figure [`WIDTH`] wide, which a
//! phone shows at about a pixel each.

use std::fmt::Write;

use super::{axis::Axis, html::escape};

/// Of a figure.
pub const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 270.0;
const LEFT: f64 = 40.0;
const RIGHT: f64 = WIDTH - 12.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = HEIGHT - 36.0;

/// The pixels that an x axis has.
pub const X: (f64, f64) = (LEFT, RIGHT);
/// The pixels that a y axis has, from the bottom up.
pub const Y: (f64, f64) = (BOTTOM, TOP);

/// A figure being drawn.
pub struct Chart {
    x: Axis,
    y: Axis,
    svg: String,
}

impl Chart {
    /// Axes with their ticks and names. `about` is for those who cannot see it.
    pub fn new(about: &str, x: Axis, x_name: &str, y: Axis, y_name: &str) -> Self {
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n", escape(about));
        for (py, label) in y.ticks() {
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{py:.1}\" x2=\"{RIGHT}\" y2=\"{py:.1}\"/>\
                 <text class=\"end\" x=\"{}\" y=\"{:.1}\">{label}</text>",
                LEFT - 5.0,
                py + 4.0
            );
        }
        for (px, label) in x.ticks() {
            let _ = writeln!(
                svg,
                "<line class=\"tick\" x1=\"{px:.1}\" y1=\"{BOTTOM}\" x2=\"{px:.1}\" y2=\"{}\"/>\
                 <text class=\"mid\" x=\"{px:.1}\" y=\"{}\">{label}</text>",
                BOTTOM + 4.0,
                BOTTOM + 16.0
            );
        }
        let _ = writeln!(
            svg,
            "<text class=\"name\" x=\"4\" y=\"12\">{}</text><text class=\"name end\" x=\"{RIGHT}\" y=\"{}\">{}</text>",
            escape(y_name),
            HEIGHT - 5.0,
            escape(x_name)
        );
        Self { x, y, svg }
    }

    /// A curve through points; a gap where a value is missing.
    pub fn line(&mut self, class: &str, points: &[(f64, Option<f64>)]) {
        for part in points.split(|(_, y)| y.is_none()).filter(|part| !part.is_empty()) {
            let at = |(x, y): &(f64, Option<f64>)| {
                format!("{:.1},{:.1}", self.x.at(*x), self.y.at(y.expect("split at what is missing")))
            };
            let path = part.iter().map(at).collect::<Vec<_>>().join(" ");
            // A lone point would not show.
            let path = if part.len() == 1 { format!("{path} {path}") } else { path };
            let _ = writeln!(self.svg, "<polyline class=\"l {class}\" points=\"{path}\"/>");
        }
    }

    /// A dot on a point of a curve and, with a line from it, the curve's name where curves seldom are: in the `row` from the
    /// top of the right half.
    pub fn name(&mut self, class: &str, (x, y): (f64, f64), name: &str, row: usize) {
        let (x, y, name) = (self.x.at(x), self.y.at(y), escape(name));
        let (to_x, to_y) = (WIDTH * 0.56, TOP + 46.0 + 20.0 * row as f64);
        let _ = writeln!(
            self.svg,
            "<line class=\"lead {class}\" x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>\
             <circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>\
             <text class=\"on {class}\" x=\"{to_x:.1}\" y=\"{to_y:.1}\">{name}</text>",
            to_x - 4.0,
            to_y - 4.0
        );
    }

    /// What is shown while a pointer is over this point.
    pub fn hover(&mut self, (x, y): (f64, f64), text: &str) {
        let _ = writeln!(
            self.svg,
            "<circle class=\"over\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{}</title></circle>",
            self.x.at(x),
            self.y.at(y),
            escape(text)
        );
    }

    /// Shades what lies left of `x` and says why at the top of its edge.
    pub fn cliff(&mut self, x: f64, why: &[&str]) {
        let px = self.x.at(x);
        let _ = writeln!(
            self.svg,
            "<rect class=\"off\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>\
             <line class=\"cliff\" x1=\"{px:.1}\" y1=\"{TOP}\" x2=\"{px:.1}\" y2=\"{BOTTOM}\"/>",
            px - LEFT,
            BOTTOM - TOP
        );
        for (i, line) in why.iter().enumerate() {
            let y = TOP + 11.0 + 13.0 * i as f64;
            // On the side that has the room.
            let (class, x) = if px < WIDTH / 2.0 { ("on", px + 5.0) } else { ("on end", px - 5.0) };
            let _ = writeln!(self.svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(line));
        }
    }

    /// Columns on top of each other: each of `parts` has a class and, for each column, a height. Column i reaches from
    /// `edges[i]` to `edges[i + 1]`, and shows the text `i` while a pointer is over it.
    pub fn stack(&mut self, edges: &[f64], parts: &[(&str, Vec<f64>)], texts: impl Iterator<Item = String>) {
        let mut base = vec![0.0; edges.len().saturating_sub(1)];
        for (class, heights) in parts {
            let (mut up, mut down) = (String::new(), Vec::new());
            for (i, height) in heights.iter().enumerate() {
                let (from, to) = (self.x.at(edges[i]), self.x.at(edges[i + 1]));
                let (low, high) = (self.y.at(base[i]), self.y.at(base[i] + height));
                let _ = write!(up, "{from:.1},{high:.1} {to:.1},{high:.1} ");
                down.push(format!("{to:.1},{low:.1} {from:.1},{low:.1} "));
                base[i] += height;
            }
            let down: String = down.into_iter().rev().collect();
            let _ = writeln!(self.svg, "<polygon class=\"{class}\" points=\"{}\"/>", (up + &down).trim_end());
        }
        for (edge, text) in edges.windows(2).zip(texts) {
            let (from, to) = (self.x.at(edge[0]), self.x.at(edge[1]));
            let _ = writeln!(
                self.svg,
                "<rect class=\"over\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                to - from,
                BOTTOM - TOP,
                escape(&text)
            );
        }
    }

    /// The source.
    pub fn finish(self) -> String {
        let bottom = format!("<line class=\"axis\" x1=\"{LEFT}\" y1=\"{BOTTOM}\" x2=\"{RIGHT}\" y2=\"{BOTTOM}\"/>");
        self.svg + &bottom + "</svg>"
    }
}
