//! Rotary position embedding (Su et al., arXiv 2104.09864).

use super::{arch::RopeKind, config::Config};

/// The rotation of one model: frequencies computed once, in f64.
pub struct Rope {
    kind: RopeKind,
    head: usize,
    /// Radians a position, for each pair. (n_rot / 2)
    freqs: Vec<f64>,
    /// Cosine and sine of the current position. (n_rot / 2)
    turn: Vec<(f32, f32)>,
}

impl Rope {
    /// `divisors` are the file's own per-pair factors, or empty.
    pub fn new(c: &Config, divisors: &[f32]) -> Self {
        let pairs = c.n_rot / 2;
        let freq = |i: usize| {
            let base = f64::from(c.rope_freq_base).powf(-2.0 * i as f64 / c.n_rot as f64);
            base * f64::from(c.rope_freq_scale) / divisors.get(i).map_or(1.0, |&d| f64::from(d))
        };
        let freqs = (0..pairs).map(freq).collect();
        Self { kind: c.arch.rope, head: c.n_embd_head_k, freqs, turn: vec![(1.0, 0.0); pairs] }
    }

    /// Computes the angles of position `pos` for the following [`Rope::apply`].
    pub fn seek(&mut self, pos: usize) {
        for (turn, freq) in self.turn.iter_mut().zip(&self.freqs) {
            let (sin, cos) = (pos as f64 * freq).sin_cos();
            *turn = (cos as f32, sin as f32);
        }
    }

    /// Turns every head of `x`. (heads, head)
    pub fn apply(&self, x: &mut [f32]) {
        let pairs = self.turn.len();
        for head in x.chunks_exact_mut(self.head) {
            match self.kind {
                RopeKind::Interleaved => {
                    for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(&self.turn) {
                        *pair = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
                    }
                }
                RopeKind::Halves => {
                    let (low, high) = head.split_at_mut(pairs);
                    for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(&self.turn) {
                        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                    }
                }
            }
        }
    }
}
