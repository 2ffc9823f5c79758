//! How often each expert was used, each use worth half as much after every half-life.
//!
//! Nothing is decayed: instead a new use weighs more from token to token, and all counts are scaled down together before
//! numbers grow too large. Only multiplication by powers of two and addition are involved, so counts are equal on every
//! machine. (The same device keeps the variable activities of SAT solvers: Eén and Sörensson, "An extensible SAT-solver",
//! 2003.)
//!
//! Time is counted in tokens: the first layer starts a new token, or a new batch of them, of which the last layer may see the
//! last tokens only.

use super::CacheShape;
use crate::trace::LayerEvent;

/// Weights above this are scaled down.
const LARGE: f64 = f64::from_bits((1023 + 256) << 52);
/// 1 / [`LARGE`], exactly.
const SMALL: f64 = f64::from_bits((1023 - 256) << 52);

/// Rows of a batch that count, the last ones: those before are forgotten at any half-life that is used. Keeps weights
/// below 2^(256 + 4096/16), far from infinity.
const MAX_ROWS: usize = 4096;

/// See the module.
pub struct Counts {
    /// A token's growth of the weight of a use: 2^(1 / half-life).
    growth: f64,
    /// Weight of a use before the present batch, now, and after it.
    weight: (f64, f64, f64),
    /// The weight before all tokens.
    start: f64,
    /// Rows of the present batch that count.
    batch: usize,
    /// The layer that was seen last.
    layer: Option<u16>,
    /// In units of the weight. (n_moe_layer, n_expert)
    counts: Vec<f64>,
}

impl Counts {
    /// All zero; `growth` is 2^(1 / half-life in tokens).
    pub fn new(shape: &CacheShape, growth: f64) -> Self {
        Self { growth, weight: (1.0, 1.0, 1.0), start: 1.0, batch: 0, layer: None, counts: vec![0.0; shape.experts()] }
    }

    /// By [`CacheShape::key`].
    pub fn all(&self) -> &[f64] {
        &self.counts
    }

    /// What makes a count of the layer that was counted last the share of tokens that use the expert, recent ones weighing more:
    /// 1 over the sum of the weights of all tokens.
    pub fn share(&self) -> f64 {
        (self.growth - 1.0) / (self.growth * (self.weight.1 - self.start))
    }

    /// Starts an event. Call [`Counts::row`] for each of its [`rows`] then.
    pub fn begin(&mut self, event: LayerEvent<'_>) {
        let rows = rows(event).len();
        if self.layer.is_none_or(|last| event.layer <= last) {
            (self.weight.0, self.batch) = (self.weight.2, rows);
            if self.weight.0 > LARGE {
                self.counts.iter_mut().for_each(|c| *c *= SMALL);
                self.weight.0 *= SMALL;
                self.start *= SMALL;
            }
            self.weight.2 = self.weight.0;
        }
        (self.layer, self.weight.1) = (Some(event.layer), self.weight.0);
        (rows..self.batch).for_each(|_| self.weight.1 *= self.growth);
    }

    /// Counts one token's experts.
    pub fn row(&mut self, keys: impl Iterator<Item = usize>) {
        self.weight.1 *= self.growth;
        self.weight.2 = self.weight.2.max(self.weight.1);
        keys.for_each(|key| self.counts[key] += self.weight.1);
    }
}

/// The choices of each token of an event that counts.
pub fn rows(event: LayerEvent<'_>) -> std::slice::ChunksExact<'_, crate::trace::Routed> {
    let n = event.n_used().max(1);
    let from = (event.routed.len() / n).saturating_sub(MAX_ROWS) * n;
    event.routed[from..].chunks_exact(n)
}
