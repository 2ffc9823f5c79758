//! A range of values along a side of a figure, with ticks at round numbers.

/// Ticks at most, of the two ends too.
const MOST_TICKS: usize = 7;

/// Values `lo..=hi` on pixels `from..=to`; `to` may be the smaller one, as heights are.
#[derive(Clone, Debug)]
pub struct Axis {
    lo: f64,
    hi: f64,
    from: f64,
    to: f64,
    step: f64,
}

impl Axis {
    /// From 0 or `lo`, whichever is less, to the first tick at or above `hi`.
    pub fn new(lo: f64, hi: f64, from: f64, to: f64) -> Self {
        let (lo, hi) = (lo.min(0.0), if hi > lo.min(0.0) { hi } else { lo.min(0.0) + 1.0 });
        let step = round_step((hi - lo) / (MOST_TICKS - 1) as f64);
        Self { lo, hi: (hi / step).ceil() * step, from, to, step }
    }

    /// Exactly `lo..=hi`, with ticks inside it.
    pub fn exact(lo: f64, hi: f64, from: f64, to: f64) -> Self {
        let hi = if hi > lo { hi } else { lo + 1.0 };
        Self { lo, hi, from, to, step: round_step((hi - lo) / (MOST_TICKS - 1) as f64) }
    }

    /// Ticks only at whole numbers.
    pub fn whole(mut self) -> Self {
        self.step = self.step.max(1.0);
        self
    }

    /// The pixel of a value; beyond the ends, that of the end.
    pub fn at(&self, value: f64) -> f64 {
        let share = ((value - self.lo) / (self.hi - self.lo)).clamp(0.0, 1.0);
        self.from + share * (self.to - self.from)
    }

    /// (pixel, label) of each tick.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let (first, last) = ((self.lo / self.step).ceil() as i64, (self.hi / self.step + 1e-9).floor() as i64);
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        let label = |value: f64| match value {
            v if v >= 10_000.0 => format!("{}k", v / 1000.0),
            v => format!("{v:.decimals$}").replacen('-', "−", 1),
        };
        (first..=last).map(|i| i as f64 * self.step).map(|v| (self.at(v), label(v))).collect()
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= least * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::Axis;

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        let labels = |axis: Axis| axis.ticks().into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" ");
        assert_eq!(labels(Axis::new(0.0, 57.0, 0.0, 1.0)), "0 10 20 30 40 50 60");
        assert_eq!(labels(Axis::new(-1.2, 15.0, 0.0, 1.0)), "0 5 10 15");
        assert_eq!(labels(Axis::new(-6.0, 15.0, 0.0, 1.0)), "−5 0 5 10 15");
        assert_eq!(labels(Axis::new(0.0, 0.034, 0.0, 1.0)), "0.00 0.01 0.02 0.03 0.04");
        assert_eq!(labels(Axis::new(0.0, 0.0, 0.0, 1.0)), "0.0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(labels(Axis::exact(0.0, 3.0, 0.0, 1.0).whole()), "0 1 2 3");
        assert_eq!(labels(Axis::exact(0.0, 49_628.0, 0.0, 1.0)), "0 10k 20k 30k 40k");
        assert_eq!((Axis::new(0.0, 10.0, 100.0, 0.0).at(10.0), Axis::new(0.0, 10.0, 100.0, 0.0).at(99.0)), (0.0, 0.0));
    }
}
