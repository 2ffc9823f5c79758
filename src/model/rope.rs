//! Angles of the rotary position embedding (Su et al., arXiv 2104.09864).

use super::config::Config;
use crate::backend::{RopeKind, Rotation};

/// The rotation of one model: frequencies computed once, in f64.
pub struct Rope {
    kind: RopeKind,
    head: usize,
    /// Radians a position, for each pair. (n_rot / 2)
    freqs: Vec<f64>,
    /// What cosines and sines are multiplied by.
    factor: f64,
}

impl Rope {
    /// `divisors` are the file's own per-pair factors, or empty.
    pub fn new(c: &Config, divisors: &[f32]) -> Self {
        let freq = |i: usize| {
            let base = f64::from(c.rope_freq_base).powf(-2.0 * i as f64 / c.n_rot as f64);
            base * f64::from(c.rope_freq_scale) / divisors.get(i).map_or(1.0, |&d| f64::from(d))
        };
        Self {
            kind: c.arch.rope,
            head: c.n_embd_head_k,
            freqs: (0..c.n_rot / 2).map(freq).collect(),
            factor: f64::from(c.rope_attn_factor),
        }
    }

    /// The rotation of `n` rows from position `pos` on, with its angles in `turns` (at least n, 2, n_rot / 2).
    pub fn rotation<'a>(&self, pos: usize, n: usize, turns: &'a mut [f32]) -> Rotation<'a> {
        let pairs = self.freqs.len();
        let turns = &mut turns[..n * 2 * pairs];
        for (i, turns) in turns.chunks_exact_mut(2 * pairs).enumerate() {
            let (cosines, sines) = turns.split_at_mut(pairs);
            for ((c, s), freq) in cosines.iter_mut().zip(sines).zip(&self.freqs) {
                let (sin, cos) = ((pos + i) as f64 * freq).sin_cos();
                (*c, *s) = ((self.factor * cos) as f32, (self.factor * sin) as f32);
            }
        }
        Rotation { kind: self.kind, head: self.head, pairs, turns }
    }
}
