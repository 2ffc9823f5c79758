//! The panel's lines, from plain numbers.

use hotset::expert::LayerHits;

use super::Sample;

/// Of the panel.
pub const LINES: usize = 4;

/// A layer's hit rate, from none to all; a dot where it was not asked.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What happened between two moments.
pub struct View {
    pub what: String,
    pub done: usize,
    pub of: usize,
    /// Tokens that were computed in between.
    pub tokens: u64,
    pub hit: u64,
    pub late: u64,
    pub miss: u64,
    pub bytes: u64,
    pub seconds: f64,
    pub stall_seconds: f64,
    /// (n_moe_layer)
    pub layers: Vec<LayerHits>,
}

impl View {
    /// `done` of `of` tokens of `what` are through.
    pub fn between(old: &Sample, new: &Sample, what: &str, done: usize, of: usize) -> Self {
        let (a, b) = (old.cache.total(), new.cache.total());
        let tokens = |s: &Sample| s.timing.prompt_tokens + s.timing.decode_tokens;
        let layer = |(a, b): (&LayerHits, &LayerHits)| LayerHits {
            hit: b.hit - a.hit,
            late: b.late - a.late,
            miss: b.miss - a.miss,
        };
        Self {
            what: what.to_owned(),
            done,
            of,
            tokens: tokens(new) - tokens(old),
            hit: b.hit - a.hit,
            late: b.late - a.late,
            miss: b.miss - a.miss,
            bytes: new.cache.bytes_read() - old.cache.bytes_read(),
            seconds: (new.at - old.at).as_secs_f64(),
            stall_seconds: (b.stall_ns - a.stall_ns) as f64 / 1e9,
            layers: old.layers.iter().zip(&new.layers).map(layer).collect(),
        }
    }

    fn speed(&self) -> String {
        let (what, done, of) = (&self.what, self.done, self.of);
        format!("{what} {done} of {of}, {:.1} tok/s", self.tokens as f64 / self.seconds.max(1e-9))
    }

    fn experts(&self) -> String {
        let all = self.hit + self.late + self.miss;
        if all == 0 {
            return "experts  none asked for".to_owned();
        }
        let share = |n: u64| n as f64 * 100.0 / all as f64;
        format!(
            "experts  {:.1} % hit, {:.1} % late, {:.1} % missed",
            share(self.hit),
            share(self.late),
            share(self.miss)
        )
    }

    fn drive(&self) -> String {
        let seconds = self.seconds.max(1e-9);
        format!(
            "read     {:.2} GB/s, waiting {:.1} % of the time",
            self.bytes as f64 / 1e9 / seconds,
            self.stall_seconds * 100.0 / seconds
        )
    }

    /// Hit rates, several layers a bar where there are more than `most`.
    fn heat(&self, most: usize) -> String {
        let group = self.layers.len().div_ceil(most.max(1)).max(1);
        let bar = |layers: &[LayerHits]| {
            let sum = |of: fn(&LayerHits) -> u64| layers.iter().map(of).sum();
            let all = LayerHits { hit: sum(|l| l.hit), late: sum(|l| l.late), miss: sum(|l| l.miss) };
            all.hit_rate().map_or('·', |rate| BARS[((rate * BARS.len() as f64) as usize).min(BARS.len() - 1)])
        };
        self.layers.chunks(group).map(bar).collect()
    }

    /// The panel, for a terminal so wide.
    pub fn lines(&self, columns: usize) -> [String; LINES] {
        let (speed, name) = (self.speed(), "hits     ");
        let rule = "─".repeat(columns.saturating_sub(speed.chars().count() + 4));
        let heat = format!("{name}{} by layer", self.heat(columns.saturating_sub(name.len() + " by layer".len())));
        let lines = [format!("── {speed} {rule}"), self.experts(), self.drive(), heat];
        lines.map(|line| line.chars().take(columns).collect())
    }

    /// All of it in one line.
    pub fn line(&self) -> String {
        let flat = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("live     {}; {}; {}", self.speed(), flat(self.experts()), flat(self.drive()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        let layer = |hit, late, miss| LayerHits { hit, late, miss };
        View {
            what: "decode".to_owned(),
            done: 120,
            of: 400,
            tokens: 50,
            hit: 300,
            late: 20,
            miss: 80,
            bytes: 1_500_000_000,
            seconds: 0.5,
            stall_seconds: 0.1,
            layers: vec![layer(0, 0, 9), layer(5, 5, 0), layer(9, 0, 0), layer(0, 0, 0)],
        }
    }

    #[test]
    fn the_panel_says_what_happened_and_fits() {
        let lines = view().lines(60);
        assert_eq!(
            lines,
            [
                "── decode 120 of 400, 100.0 tok/s ──────────────────────────",
                "experts  75.0 % hit, 5.0 % late, 20.0 % missed",
                "read     3.00 GB/s, waiting 20.0 % of the time",
                "hits     ▁▅█· by layer",
            ]
        );
        let many = View { layers: vec![LayerHits { hit: 1, late: 0, miss: 0 }; 500], ..view() };
        for columns in [0, 1, 40, 80, 200] {
            assert!(many.lines(columns).iter().all(|line| line.chars().count() <= columns), "{columns}");
        }
        assert_eq!(many.lines(40)[3].chars().filter(|c| *c == '█').count(), 500usize.div_ceil(500usize.div_ceil(22)));
        assert_eq!(
            view().line(),
            "live     decode 120 of 400, 100.0 tok/s; experts 75.0 % hit, 5.0 % late, 20.0 % missed; read 3.00 GB/s, \
             waiting 20.0 % of the time"
        );
    }

    #[test]
    fn nothing_is_not_a_number() {
        let idle = View { tokens: 0, hit: 0, late: 0, miss: 0, bytes: 0, seconds: 0.0, stall_seconds: 0.0, ..view() };
        assert_eq!(idle.lines(80)[1..3], ["experts  none asked for", "read     0.00 GB/s, waiting 0.0 % of the time"]);
    }
}
