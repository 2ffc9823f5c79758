//! Angles of the rotary position embedding (Su et al., arXiv 2104.09864).

use std::f64::consts::TAU;

use super::load::Loader;
use crate::{
    Result,
    blueprint::{self, Yarn},
};

/// The frequencies of one rotation, computed once, in f64.
pub struct Rope {
    /// Radians per position, for each pair. (n_rot / 2)
    freqs: Vec<f64>,
    /// Cosines and sines are multiplied by this.
    magnitude: f64,
}

impl Rope {
    /// `divisors` are the file's own per-pair factors (n_rot / 2), or empty.
    fn new(rope: &blueprint::Rope, divisors: &[f32]) -> Self {
        let scale = f64::from(rope.scale);
        let freq = |i: usize| {
            let base = f64::from(rope.base).powf(-2.0 * i as f64 / rope.n_rot as f64);
            let divisor = divisors.get(i).map_or(1.0, |&d| f64::from(d));
            match &rope.yarn {
                None => base * scale / divisor,
                Some(yarn) => {
                    let kept = kept(rope, yarn, i);
                    base / divisor * (kept + scale * (1.0 - kept))
                }
            }
        };
        Self { freqs: (0..rope.n_rot / 2).map(freq).collect(), magnitude: f64::from(rope.magnitude) }
    }

    /// With the divisors that the file has.
    pub fn load(loader: &mut Loader<'_>, rope: &blueprint::Rope) -> Result<Self> {
        let divisors = rope.divisors.map(|divisors| loader.divisors(&divisors)).transpose()?;
        Ok(Self::new(rope, &divisors.unwrap_or_default()))
    }

    /// Numbers for each row.
    pub fn width(&self) -> usize {
        2 * self.freqs.len()
    }

    /// Cosines and sines of `n` rows from position `pos` on, at the front of `turns`. (n, 2, n_rot / 2)
    pub fn angles(&self, pos: usize, n: usize, turns: &mut [f32]) {
        let pairs = self.freqs.len();
        for (i, turns) in turns[..n * 2 * pairs].chunks_exact_mut(2 * pairs).enumerate() {
            let (cosines, sines) = turns.split_at_mut(pairs);
            for ((c, s), freq) in cosines.iter_mut().zip(sines).zip(&self.freqs) {
                let (sin, cos) = ((pos + i) as f64 * freq).sin_cos();
                (*c, *s) = ((self.magnitude * cos) as f32, (self.magnitude * sin) as f32);
            }
        }
    }
}

/// How much of its frequency pair `i` keeps, from 0 to 1.
fn kept(rope: &blueprint::Rope, yarn: &Yarn, i: usize) -> f64 {
    let (n_rot, base, n_ctx) = (rope.n_rot as f64, f64::from(rope.base), yarn.n_ctx as f64);
    // The pair that turns so often within the context.
    let pair = |turns: f32| n_rot * (n_ctx / (f64::from(turns) * TAU)).ln() / (2.0 * base.ln());
    let low = pair(yarn.beta_fast).floor().max(0.0);
    let high = pair(yarn.beta_slow).ceil().min(n_rot - 1.0);
    1.0 - ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blueprint::RopeKind;

    #[test]
    fn yarn_keeps_what_turns_often_and_scales_what_turns_seldom() {
        let yarn = Yarn { n_ctx: 4096, beta_fast: 32.0, beta_slow: 1.0 };
        let plain = blueprint::Rope {
            kind: RopeKind::Halves,
            n_rot: 128,
            base: 10_000.0,
            scale: 0.25,
            divisors: None,
            long: None,
            yarn: None,
            magnitude: 1.0,
        };
        let freqs = |rope: &blueprint::Rope| Rope::new(rope, &[]).freqs;
        let (all, some) = (freqs(&plain), freqs(&blueprint::Rope { yarn: Some(yarn), ..plain }));
        let turns = |i: usize| 4.0 * all[i] * 4096.0 / TAU;
        for i in 0..64 {
            let kept = some[i] / all[i] / 4.0;
            match turns(i) {
                t if t > 40.0 => assert_eq!(kept, 1.0, "pair {i}"),
                t if t < 0.8 => assert_eq!(kept, 0.25, "pair {i}"),
                _ => assert!((0.25..=1.0).contains(&kept), "pair {i}: {kept}"),
            }
        }
        assert!(some.is_sorted_by(|a, b| a > b));
    }
}
