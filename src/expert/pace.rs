//! Where a decoded token's time goes, in the terms that the simulator has: computing of a layer before and after its
//! experts are known, of a hand-out and each expert in it, of a token besides, and what reads take.
//!
//! The control thread's time is cut without gaps at the calls that it makes anyway, so that what is found here adds up to
//! the token, and a replay that is given it back takes as long as the run did. Cutting needs a clock reading or two a call.
//! On the simulator's clock it finds what the simulator was given (`tests/replay.rs`).
//!
//! Must not know: clocks (times are told), what is computed, drives.

use crate::trace::{LayerEvent, Phase};

/// Times of one kind: how many and how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    n: u64,
    ns: u64,
}

impl Times {
    fn add(&mut self, ns: u64) {
        self.n += 1;
        self.ns += ns;
    }
    fn since(&self, before: &Times) -> Times {
        Times { n: self.n - before.n, ns: self.ns - before.ns }
    }
    /// `None` of none.
    pub fn mean_ns(&self) -> Option<f64> {
        (self.n > 0).then(|| self.ns as f64 / self.n as f64)
    }
}

/// Times that grow with a size, as the sums that a straight line through them (least squares) needs. Exact, so that
/// earlier sums can be taken from later ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    n: u128,
    x: u128,
    ns: u128,
    xx: u128,
    x_ns: u128,
}

impl Line {
    fn add(&mut self, x: u64, ns: u64) {
        let (x, ns) = (u128::from(x), u128::from(ns));
        self.n += 1;
        self.x += x;
        self.ns += ns;
        self.xx += x * x;
        self.x_ns += x * ns;
    }
    fn since(&self, before: &Line) -> Line {
        Line {
            n: self.n - before.n,
            x: self.x - before.x,
            ns: self.ns - before.ns,
            xx: self.xx - before.xx,
            x_ns: self.x_ns - before.x_ns,
        }
    }
    /// The mean size and time; `None` of none.
    fn mean(&self) -> Option<(f64, f64)> {
        (self.n > 0).then(|| (self.x as f64 / self.n as f64, self.ns as f64 / self.n as f64))
    }
    /// [`Line::fit`] of times that size only adds to: flat where there is but one size, or none has any.
    pub fn fit_added(&self) -> Option<(f64, f64)> {
        let (_, ns) = self.mean()?;
        if self.n * self.xx == self.x * self.x { Some((ns, 0.0)) } else { self.fit() }
    }
    /// Nanoseconds at size 0 and for each 1 of size, neither below 0: the line goes through the origin where it would be,
    /// and where there is but one size. `None` of none.
    pub fn fit(&self) -> Option<(f64, f64)> {
        let (n, x, ns) = (self.n as f64, self.x as f64, self.ns as f64);
        if self.x == 0 {
            return None;
        }
        let spread = (self.n * self.xx - self.x * self.x) as f64;
        let slope = ((self.n * self.x_ns) as f64 - (self.x * self.ns) as f64) / spread;
        let at_0 = (ns - slope * x) / n;
        if spread == 0.0 || at_0 < 0.0 {
            return Some((0.0, ns / x));
        }
        Some(if slope < 0.0 { (ns / n, 0.0) } else { (at_0, slope) })
    }
    /// Nanoseconds for each 1 of size, of all together; `None` of none, or where none has any.
    pub fn per_size(&self) -> Option<f64> {
        (self.x > 0).then(|| self.ns as f64 / self.x as f64)
    }
    /// How far the times lie above a line in the mean; `None` of none.
    fn above(&self, (at_0, slope): (f64, f64)) -> Option<f64> {
        self.mean().map(|(x, ns)| ns - slope * x - at_0)
    }
}

/// See the module. Of decoding, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// From a layer's last expert to the next layer's reads, after so many nanoseconds of waiting for that layer's.
    pub layers: Line,
    /// From a token's last expert to the next token's first reads, after as many for its last layer's.
    pub tokens: Line,
    /// From a layer's reads to its first expert.
    pub shared: Times,
    /// Of so many experts at once that were at hand.
    pub hand_outs: Line,
    /// Of so many experts at once that the control thread had slept for.
    woken: Line,
    /// From a layer's reads to the end of the last one, of so many bytes, where nothing else was read and somebody waited.
    pub reads: Line,
}

impl Pace {
    /// What came after `before`, an earlier state of the same run.
    pub fn since(&self, before: &Pace) -> Pace {
        Pace {
            layers: self.layers.since(&before.layers),
            tokens: self.tokens.since(&before.tokens),
            shared: self.shared.since(&before.shared),
            hand_outs: self.hand_outs.since(&before.hand_outs),
            woken: self.woken.since(&before.woken),
            reads: self.reads.since(&before.reads),
        }
    }
    /// What a token takes outside its MoE layers, its first layer's attention not counted; `None` without two in a row.
    pub fn token_ns(&self) -> Option<f64> {
        Some(self.tokens.above(self.layers.fit_added().unwrap_or_default())?.max(0.0))
    }
    /// What a hand-out takes longer after a wait than without; `None` without both kinds.
    pub fn wake_ns(&self) -> Option<f64> {
        Some(self.woken.above(self.hand_outs.fit()?)?.max(0.0))
    }
}

/// What the control thread was last told to do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    /// Nothing that counts.
    Elsewhere,
    /// It asked for a layer's experts.
    Asked,
    /// It computes so many experts, perhaps after a wait.
    HandOut(u64, bool),
    /// It is through with a layer.
    Through,
}

/// Cuts a run's time into its [`Pace`].
#[derive(Debug)]
pub(super) struct Pacer {
    pace: Pace,
    at: At,
    /// Up to here time has been told what it was.
    mark: u64,
    token: u32,
    /// Nanoseconds that the event waited.
    stall: u64,
    /// Bytes of the event's reads, if they are the only ones in flight, and when they were submitted.
    reads: Option<(u64, u64)>,
    /// The end of the last wait, if its experts are the last that were handed out.
    waited: Option<u64>,
}

impl Pacer {
    pub(super) fn new() -> Self {
        Self { pace: Pace::default(), at: At::Elsewhere, mark: 0, token: 0, stall: 0, reads: None, waited: None }
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// An event's reads, of `alone` bytes if no others are in flight, have been submitted.
    pub(super) fn requested(&mut self, event: LayerEvent<'_>, alone: Option<u64>, now: u64) {
        if event.phase == Phase::Prompt {
            self.at = At::Elsewhere;
            return;
        }
        if self.at == At::Through {
            match event.layer {
                0 if event.first_token == self.token + 1 => self.pace.tokens.add(self.stall, now - self.mark),
                1.. if event.first_token == self.token => self.pace.layers.add(self.stall, now - self.mark),
                _ => {}
            }
        }
        (self.at, self.mark, self.token) = (At::Asked, now, event.first_token);
        self.reads = alone.filter(|bytes| *bytes > 0).map(|bytes| (bytes, now));
        (self.waited, self.stall) = (None, 0);
    }

    /// The next experts are asked for.
    pub(super) fn asked(&mut self, now: u64) {
        let ns = now - self.mark;
        match self.at {
            At::Elsewhere | At::Through => return,
            At::Asked => self.pace.shared.add(ns),
            At::HandOut(n, false) => self.pace.hand_outs.add(n, ns),
            At::HandOut(n, true) => self.pace.woken.add(n, ns),
        }
        self.mark = now;
    }

    /// So many experts were handed out after a wait of `stall` nanoseconds. What this took besides is the next section's.
    pub(super) fn handed_out(&mut self, n: usize, stall: u64, now: u64) {
        if self.at == At::Elsewhere {
            return;
        }
        self.mark += stall;
        self.stall += stall;
        if n > 0 {
            self.at = At::HandOut(n as u64, stall > 0);
            self.waited = (stall > 0).then_some(now);
            return;
        }
        self.at = At::Through;
        if let (Some((bytes, start)), Some(end)) = (self.reads.take(), self.waited) {
            self.pace.reads.add(bytes, end - start);
        }
    }

    /// A read failed; the event is over.
    pub(super) fn failed(&mut self) {
        self.at = At::Elsewhere;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(u64, u64)]) -> Line {
        let mut line = Line::default();
        points.iter().for_each(|&(x, ns)| line.add(x, ns));
        line
    }

    #[test]
    fn a_line_is_found_and_never_falls_below_zero() {
        assert_eq!(line(&[(1, 12), (3, 16), (5, 20)]).fit(), Some((10.0, 2.0)));
        assert_eq!(line(&[(4, 8), (4, 12)]).fit(), Some((0.0, 2.5)), "one size");
        assert_eq!(line(&[(2, 1), (4, 5)]).fit(), Some((0.0, 1.0)), "through the origin");
        assert_eq!(line(&[(2, 5), (4, 1)]).fit(), Some((3.0, 0.0)), "flat");
        assert_eq!(line(&[]).fit(), None);
        assert_eq!(line(&[(1, 12), (3, 16), (5, 20)]).fit_added(), Some((10.0, 2.0)));
        assert_eq!(line(&[(4, 8), (4, 12)]).fit_added(), Some((10.0, 0.0)), "one size");
        assert_eq!(line(&[(0, 8), (0, 12)]).fit_added(), Some((10.0, 0.0)), "no size");
        assert_eq!(line(&[]).fit_added(), None);
        assert_eq!(line(&[(1, 15), (3, 19)]).above((10.0, 2.0)), Some(3.0));
    }

    #[test]
    fn sums_before_are_taken_off() {
        let (first, second) = ([(1, 100), (7, 3)], [(1, 12), (3, 16)]);
        let both = line(&[first, second].concat());
        assert_eq!(both.since(&line(&first)), line(&second));
    }
}
