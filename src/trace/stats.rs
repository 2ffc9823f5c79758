//! What a trace says about a model's routing: how even, how sticky, how much of it a cache has to hold, how well the layer
//! before foretells it.
//!
//! Memory: counts for each expert and pair of experts, and the last 16 tokens' choices. Must not know: caches.

use std::path::Path;

use serde::Serialize;

use super::{
    LayerEvent, Phase,
    file::TraceReader,
    foresight::{Foresight, Guesses, Rank, Scores},
    pairs::{Pair, Pairs},
    segment::Segments,
};
use crate::Result;

/// Distances, in tokens, at which overlap is measured.
pub const DISTANCES: [usize; 5] = [1, 2, 4, 8, 16];

/// Of one MoE layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerStats {
    /// Entropy of the experts' popularity, in bits; log2(n_expert) is even.
    pub entropy_bits: f64,
    /// The most and the least used expert's uses over the mean. The former less 1 is MaxVio (arXiv 2408.15664).
    pub load: (f64, f64),
    /// Standard deviation of the experts' uses over their mean; 0 is even.
    pub load_cv: f64,
    /// Gini coefficient of the experts' uses: 0 is even, 1 one expert for all.
    pub load_gini: f64,
    /// Experts that were used at all.
    pub used: usize,
    /// Share of uses that the most popular quarter of the experts gets.
    pub top_quarter: f64,
    /// Of a token's experts, the share that the last 1, 2, 4, 8, 16 tokens together used too.
    pub overlap: [f64; 5],
    /// Mean number of distinct experts in 16 tokens.
    pub working_set_16: f64,
    /// SRP of segments of 16 tokens (see [`super::segment`]), and the experts that it names over those used.
    pub srp_16: Option<(f64, f64)>,
    /// SCH of segments of 16 tokens with as many slots as a token uses experts, and with twice as many.
    pub sch_16: Option<[f64; 2]>,
    /// The pairs of experts that most tokens use together, at most four; none where a layer has more than 512 experts.
    pub pairs: Vec<Pair>,
    /// Share of all co-activations that the most frequent hundredth of the pairs gets; even is 0.01.
    pub pairs_top_hundredth: Option<f64>,
    /// Of a token's experts, the share among the best `n_expert_used` of the previous layer's lookahead; `None` without.
    pub lookahead_recall: Option<f64>,
    /// The same among twice as many.
    pub lookahead_recall_2: Option<f64>,
    /// Share of the lookahead's guesses of each rank, the best first, that were used; empty without.
    pub lookahead_by_rank: Vec<f64>,
}

/// Of the whole.
#[derive(Clone, Debug, Serialize)]
pub struct TraceStats {
    /// Events, prompts' included.
    pub events: u64,
    /// Decoded tokens: all the figures below are of these.
    pub decode_tokens: u64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// By MoE layer.
    pub layers: Vec<LayerStats>,
    /// Why the trace ends early, if it does.
    pub damage: Option<String>,
}

/// Most frequent pairs that are named.
const NAMED_PAIRS: usize = 4;

/// What is gathered of a layer.
struct Tally {
    n_used: usize,
    uses: Vec<u64>,
    /// Token number of each expert's last use, from 1; 0: none.
    last: Vec<u64>,
    tokens: u64,
    wanted: u64,
    /// Uses whose last one was at most so many tokens ago.
    again: [u64; 5],
    distinct: u64,
    windows: u64,
    segments: Segments,
    pairs: Pairs,
    ahead: Foresight,
}

/// Reads a trace through.
///
/// # Errors
/// A trace that cannot be read.
pub fn stats(path: &Path) -> Result<TraceStats> {
    let mut trace = TraceReader::open(path)?;
    let (n_layer, n_expert, used) = (trace.header().n_layer, trace.header().n_expert, trace.header().n_expert_used);
    let ranks = trace.header().lookahead_ranks.min(3 * used);
    let empty = || Tally::new(n_expert, used, ranks);
    // Made when a layer first runs: a header may claim many.
    let mut layers: Vec<Option<Tally>> = (0..n_layer).map(|_| None).collect();
    let (mut events, mut prompt_tokens, mut decode_tokens) = (0, 0, 0);
    let mut guesses = Guesses::<Scores>::new(1);
    while let Some(event) = trace.next_event()? {
        events += 1;
        let layer = usize::from(event.layer);
        let tally = layers[layer].get_or_insert_with(empty);
        if event.phase == Phase::Prompt || event.first_token == 0 {
            tally.segments.restart();
        }
        if event.phase == Phase::Prompt {
            prompt_tokens += u64::from(layer == 0) * u64::from(event.n_tokens);
            continue;
        }
        decode_tokens += u64::from(layer == 0);
        if let Some(guesses) = guesses.of(event) {
            tally.ahead.add(event, guesses, |_| false);
        }
        guesses.learn(event, |kept| kept.set(event.lookahead));
        tally.add(event);
    }
    let damage = trace.damage().map(str::to_owned);
    let layers = layers.into_iter().map(|tally| tally.unwrap_or_else(empty).finish()).collect();
    Ok(TraceStats { events, decode_tokens, prompt_tokens, layers, damage })
}

impl Tally {
    fn new(n_expert: usize, n_used: usize, ranks: usize) -> Self {
        Self {
            n_used,
            uses: vec![0; n_expert],
            last: vec![0; n_expert],
            tokens: 0,
            wanted: 0,
            again: [0; 5],
            distinct: 0,
            windows: 0,
            segments: Segments::new(n_expert, n_used),
            pairs: Pairs::default(),
            ahead: Foresight::new(ranks),
        }
    }

    fn add(&mut self, event: LayerEvent<'_>) {
        let experts: Vec<usize> = event.routed.iter().map(|r| usize::from(r.id.expert)).collect();
        self.tokens += 1;
        for &e in &experts {
            self.wanted += 1;
            self.uses[e] += 1;
            let ago = (self.tokens - self.last[e]) as usize;
            for (again, distance) in self.again.iter_mut().zip(DISTANCES) {
                *again += u64::from(self.last[e] > 0 && ago <= distance);
            }
            self.last[e] = self.tokens;
        }
        if self.tokens >= 16 {
            self.windows += 1;
            self.distinct += self.last.iter().filter(|&&l| l + 16 > self.tokens && l > 0).count() as u64;
        }
        self.pairs.add(&experts, self.uses.len());
        self.segments.add(experts);
    }

    fn finish(&self) -> LayerStats {
        let (n, all) = (self.uses.len(), self.wanted.max(1) as f64);
        let entropy = |u: &u64| if *u == 0 { 0.0 } else { -(*u as f64 / all) * (*u as f64 / all).log2() };
        let mut sorted = self.uses.clone();
        sorted.sort_unstable();
        let over_mean = |u: u64| u as f64 * n as f64 / all;
        let mean = self.wanted as f64 / n as f64;
        let variance = self.uses.iter().map(|&u| (u as f64 - mean).powi(2)).sum::<f64>() / n as f64;
        let ranked = sorted.iter().enumerate().map(|(i, &u)| (2.0 * i as f64 + 1.0 - n as f64) * u as f64).sum::<f64>();
        LayerStats {
            entropy_bits: self.uses.iter().map(entropy).sum(),
            load: (over_mean(sorted[n - 1]), over_mean(sorted[0])),
            load_cv: if self.wanted == 0 { 0.0 } else { variance.sqrt() / mean },
            load_gini: ranked / (n as f64 * all),
            used: self.uses.iter().filter(|u| **u > 0).count(),
            top_quarter: sorted[n - n.div_ceil(4)..].iter().sum::<u64>() as f64 / all,
            overlap: self.again.map(|a| a as f64 / all),
            working_set_16: if self.windows == 0 { 0.0 } else { self.distinct as f64 / self.windows as f64 },
            srp_16: self.segments.srp(),
            sch_16: self.segments.sch(),
            pairs: self.pairs.top(NAMED_PAIRS, self.tokens, &self.uses),
            pairs_top_hundredth: self.pairs.top_hundredth(),
            lookahead_recall: self.ahead.recall(self.n_used),
            lookahead_recall_2: self.ahead.recall(2 * self.n_used),
            lookahead_by_rank: self.ahead.ranks().iter().map(Rank::precision).collect(),
        }
    }
}
