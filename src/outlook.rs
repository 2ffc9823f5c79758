//! How fast a model should decode in a budget, from its shape and a few rates: an estimate with its error, made before
//! anything is bought or downloaded.
//!
//! **Hits.** Without a trace of the model, two curves bound what the default policy reached on the traces of seven models
//! (`docs/policies.md`): the lower one is that of long mixed text (DeepSeek-V2-Lite, M), the upper one that of one topic on
//! models with many small experts (Qwen3-30B, Gemma-4; first uses left out). Both start at what the experts of the token
//! before are worth and end at 1, and are laid over the slots between "as many as a token uses" and "all".
//!
//! **Time.** A token computes for as long as the bytes that it touches take to be read and multiplied, and some time more a
//! layer ([`LAYER_SECONDS`]). It reads for as long as the drive gives the bytes that are missing, and waits for the drive
//! once in each layer that misses anything, since a layer's reads are asked for together. Perfect overlap takes the longer
//! of the two, none takes the sum; on our machines the shorter one counted for [`VISIBLE`] (10 layers of Qwen3-30B's shape,
//! 25 and 50 % of the experts, `benches/RESULTS.tsv`).
//!
//! Must not know: files, clocks.

use serde::Serialize;

use crate::simulate::Drive;

/// Part of the shorter of computing and reading that does not hide behind the longer.
pub const VISIBLE: f64 = 0.45;

/// What a layer takes besides its products: attention at short context, norms, the router's top k, hand-outs to threads.
pub const LAYER_SECONDS: f64 = 30e-6;

/// What may be wrong with computing: machines with neighbours gave between this and 1 over it of their median.
const COMPUTE_ERROR: f64 = 0.8;

/// Hits with as many slots as a token uses experts, then the way from there to 1 at shares of the other slots.
struct Curve {
    start: f64,
    way: [(f64, f64); 6],
}

/// Long mixed text, few large experts.
const LOW: Curve =
    Curve { start: 0.27, way: [(0.0, 0.0), (0.15, 0.32), (0.43, 0.66), (0.72, 0.88), (0.9, 0.97), (1.0, 1.0)] };

/// One topic, many small experts.
const HIGH: Curve =
    Curve { start: 0.46, way: [(0.0, 0.0), (0.08, 0.42), (0.21, 0.75), (0.48, 0.95), (0.75, 0.99), (1.0, 1.0)] };

impl Curve {
    fn at(&self, x: f64) -> f64 {
        let x = x.clamp(0.0, 1.0);
        let i = self.way[1..].iter().position(|&(to, _)| x <= to).unwrap_or(self.way.len() - 2);
        let ((x0, y0), (x1, y1)) = (self.way[i], self.way[i + 1]);
        let way = y0 + (y1 - y0) * (x - x0) / (x1 - x0);
        self.start + (1.0 - self.start) * way
    }
}

/// A figure with its error: low, expected, high.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Nearly all cases lie above.
    pub low: f64,
    /// In between.
    pub expected: f64,
    /// Nearly all cases lie below.
    pub high: f64,
}

/// Share of wanted experts that the cache holds, for `slots` a layer of `n_expert`, of which a token uses `n_expert_used`.
pub fn hit_rate(slots: f64, n_expert: usize, n_expert_used: usize) -> Estimate {
    let (all, used) = (n_expert as f64, n_expert_used as f64);
    if slots >= all || all <= used {
        return Estimate { low: 1.0, expected: 1.0, high: 1.0 };
    }
    let x = (slots - used) / (all - used);
    let (low, high) = (LOW.at(x), HIGH.at(x));
    Estimate { low, expected: (low + high) / 2.0, high }
}

/// What a machine gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Bytes of weights a second that are read from memory and multiplied, with all compute threads.
    pub weights: f64,
    /// Of the drive.
    pub drive: Drive,
}

/// What a token takes of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token {
    /// Bytes of weights that it touches.
    pub touched: f64,
    /// Of these, bytes of routed experts.
    pub experts: f64,
    /// Layers that have experts.
    pub n_layer: f64,
    /// Experts that each of them uses.
    pub n_expert_used: f64,
}

/// Tokens a second with that share of hits. The lower bound overlaps nothing, the upper one everything, latencies too:
/// reads that were foreseen wait for nobody.
pub fn decode(token: Token, rates: Rates, hits: Estimate) -> Estimate {
    let compute = token.touched / rates.weights + token.n_layer * LAYER_SECONDS;
    let moved = |hits: f64| token.experts * (1.0 - hits) / (rates.drive.bytes_per_us as f64 * 1e6);
    let waits = |hits: f64| {
        let missing = 1.0 - hits.powf(token.n_expert_used);
        token.n_layer * missing * rates.drive.latency_ns as f64 / 1e9
    };
    let seconds = |compute: f64, read: f64, visible: f64| compute.max(read) + visible * compute.min(read);
    Estimate {
        low: 1.0 / seconds(compute / COMPUTE_ERROR, moved(hits.low) + waits(hits.low), 1.0),
        expected: 1.0 / seconds(compute, moved(hits.expected) + waits(hits.expected), VISIBLE),
        high: 1.0 / seconds(compute * COMPUTE_ERROR, moved(hits.high), 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_rise_and_end_at_all_hits() {
        for curve in [LOW, HIGH] {
            let at: Vec<f64> = (0..=100).map(|i| curve.at(f64::from(i) / 100.0)).collect();
            assert!(at.is_sorted() && at[0] == curve.start && (at[100] - 1.0).abs() < 1e-12, "{at:?}");
        }
        for slots in 8..=128 {
            let e = hit_rate(f64::from(slots), 128, 8);
            assert!(e.low <= e.expected && e.expected <= e.high && e.high <= 1.0, "{slots}: {e:?}");
        }
    }

    /// Default policy, from `docs/policies.md`: M, DeepSeek-V2-Lite, OLMoE, and Qwen3-30B and Gemma-4, whose traces are so
    /// short that first uses alone keep them below 91.7 %.
    #[test]
    fn the_bounds_hold_what_the_traces_showed() {
        let short = 0.917;
        for (n_expert, used, slots, hits) in [
            (48, 6, 12.0, 0.5257),
            (48, 6, 24.0, 0.7750),
            (48, 6, 36.0, 0.9220),
            (64, 6, 16.0, 0.5023),
            (64, 6, 32.0, 0.7403),
            (64, 6, 48.0, 0.9050),
            (64, 8, 16.0, 0.6216),
            (64, 8, 32.0, 0.8254),
            (64, 8, 48.0, 0.9401),
            (128, 6, 16.0, 0.6467 / short),
            (128, 6, 32.0, 0.8208 / short),
            (128, 6, 16.0, 0.6360 / short),
            (128, 6, 32.0, 0.7919 / short),
        ] {
            let e = hit_rate(slots, n_expert, used);
            let inside = e.low - 0.04 <= hits && hits <= e.high + 0.04;
            assert!(inside, "{slots} of {n_expert}: {hits} is not within 4 points of {e:?}");
        }
    }

    /// The two budgets that [`VISIBLE`] was fitted on, by hit rates as they were measured.
    #[test]
    fn measured_rates_lie_within_the_error() {
        let drive = Drive { latency_ns: 0, bytes_per_us: 1980, depth: 1 };
        let token = Token { touched: 573e6, experts: 80.0 * 2_654_208.0, n_layer: 10.0, n_expert_used: 8.0 };
        let rates = Rates { weights: 573e6 * 66.1, drive };
        for (hits, measured) in [(0.628, 22.2), (0.900, 48.9)] {
            let e = decode(token, rates, Estimate { low: hits, expected: hits, high: hits });
            assert!((e.expected / measured - 1.0).abs() < 0.05, "{e:?} against {measured}");
            assert!(e.low < measured && measured < e.high, "{e:?} against {measured}");
        }
    }

    #[test]
    fn a_layer_waits_once_for_all_that_it_misses() {
        let token = Token { touched: 1.0, experts: 1.0, n_layer: 3.0, n_expert_used: 2.0 };
        let drive = Drive { latency_ns: 1_000_000, bytes_per_us: 1000, depth: 1 };
        let rates = Rates { weights: 1e9, drive };
        let at = |hits| decode(token, rates, Estimate { low: hits, expected: hits, high: hits });
        let slowest = 1.0 / at(0.0).expected;
        assert!((slowest / (3.0 * 1e-3 + VISIBLE * 3.0 * LAYER_SECONDS) - 1.0).abs() < 1e-3, "{slowest}");
        let half = 1.0 / at(0.5f64.sqrt()).expected;
        assert!((half / (1.5 * 1e-3 + VISIBLE * 3.0 * LAYER_SECONDS) - 1.0).abs() < 1e-3, "{half}");
        assert!(at(1.0).high > at(1.0).expected && at(1.0).expected > at(1.0).low);
    }
}
