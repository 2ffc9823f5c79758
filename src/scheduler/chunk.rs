//! How many tokens of a prompt a step takes while other texts decode, and so how long these wait.
//!
//! A step of n rows takes about a + b·n: a grows with what has to be read, since many rows want nearly every expert, and b with
//! the arithmetic. Where a is long, short chunks would read the experts again and again and help nobody.

/// The time that decoding may wait for a step with a prompt in it, nanoseconds.
pub const STALL_NS: u64 = 500_000_000;

/// A chunk of so many rows is not made smaller, whatever it takes: what it wants is most of what a longer one wants, of experts.
pub const LEAST_CHUNK: usize = 32;

/// What an older step counts beside the one after it.
const FORGET: f64 = 0.8;

/// See the module: sums of a weighted least-squares line through (rows, nanoseconds).
#[derive(Default)]
pub(super) struct Chunks {
    weight: f64,
    n: f64,
    t: f64,
    nn: f64,
    nt: f64,
    /// Of the longest step so far: what has not been tried is not trusted beyond twice as much.
    longest: usize,
}

impl Chunks {
    /// A step of `rows` rows took so long.
    pub fn took(&mut self, rows: usize, ns: u64) {
        let (n, t) = (rows as f64, ns as f64);
        for (sum, new) in
            [(&mut self.weight, 1.0), (&mut self.n, n), (&mut self.t, t), (&mut self.nn, n * n), (&mut self.nt, n * t)]
        {
            *sum = *sum * FORGET + new;
        }
        self.longest = self.longest.max(rows);
    }

    /// Rows of a step that is to take [`STALL_NS`]. Where what is fixed takes more of that than the rest, the rows take as long as
    /// that does: a step is then up to twice as long as the shortest there could be, and the prompt through in the fewest steps.
    pub fn most(&self) -> usize {
        if self.weight == 0.0 {
            return LEAST_CHUNK;
        }
        // Steps of one length say nothing of the line: a longer one does.
        let Some((fixed, each)) = self.line() else { return (1.5 * self.n / self.weight) as usize };
        let most = (STALL_NS as f64 - fixed).max(fixed) / each;
        (most as usize).clamp(LEAST_CHUNK, (2 * self.longest).max(LEAST_CHUNK))
    }

    /// (a, b), neither below zero. `None` while that is unknown.
    fn line(&self) -> Option<(f64, f64)> {
        let (n, t) = (self.n / self.weight, self.t / self.weight);
        let spread = self.nn / self.weight - n * n;
        if spread < 1.0 {
            return None;
        }
        let each = (self.nt / self.weight - n * t) / spread;
        let fixed = t - each * n;
        Some(if fixed < 0.0 { (0.0, (t / n).max(1.0)) } else { (fixed, each.max(1.0)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chunk, and what it takes, once it has settled.
    fn settled(time: impl Fn(usize) -> u64) -> (usize, u64) {
        let mut chunks = Chunks::default();
        for _ in 0..60 {
            let rows = chunks.most().min(4096);
            chunks.took(rows, time(rows));
        }
        let rows = chunks.most().min(4096);
        (rows, time(rows))
    }

    #[test]
    fn a_chunk_takes_as_long_as_others_may_wait() {
        // Arithmetic alone, fast and slow.
        let (rows, ns) = settled(|n| n as u64 * 1_000_000);
        assert!((STALL_NS * 8 / 10..=STALL_NS * 11 / 10).contains(&ns), "{rows}: {ns}");
        assert!(settled(|n| n as u64 * 50_000_000).0 <= LEAST_CHUNK * 3 / 2);
        assert_eq!(settled(|n| n as u64 * 1000).0, 4096);
    }

    #[test]
    fn reads_that_any_chunk_waits_for_make_it_longer() {
        let time = |n: usize| 4_000_000_000 + n as u64 * 10_000_000;
        let (rows, ns) = settled(time);
        assert!(rows > 4 * LEAST_CHUNK, "{rows}");
        assert!(ns <= 2 * time(LEAST_CHUNK) * 11 / 10, "{ns}");
    }

    #[test]
    fn a_machine_that_slows_down_is_followed() {
        let mut chunks = Chunks::default();
        (0..30).for_each(|_| chunks.took(chunks.most(), chunks.most() as u64 * 1_000_000));
        let before = chunks.most();
        (0..30).for_each(|_| chunks.took(chunks.most(), chunks.most() as u64 * 4_000_000));
        assert!(chunks.most() < before / 2, "{before}: {}", chunks.most());
    }
}
