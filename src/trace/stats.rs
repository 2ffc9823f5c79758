//! What a trace says about a model's routing: how even, how sticky, how much of it a cache has to hold.
//!
//! Memory: a count for each expert and the last 16 tokens' choices. Must not know: caches.

use std::path::Path;

use serde::Serialize;

use super::{Phase, file::TraceReader};
use crate::Result;

/// Distances, in tokens, at which overlap is measured.
pub const DISTANCES: [usize; 5] = [1, 2, 4, 8, 16];

/// Of one MoE layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerStats {
    /// Entropy of the experts' popularity, in bits; log2(n_expert) is even.
    pub entropy_bits: f64,
    /// The most and the least used expert's uses over the mean.
    pub load: (f64, f64),
    /// Experts that were used at all.
    pub used: usize,
    /// Share of uses that the most popular quarter of the experts gets.
    pub top_quarter: f64,
    /// Of a token's experts, the share that the last 1, 2, 4, 8, 16 tokens together used too.
    pub overlap: [f64; 5],
    /// Mean number of distinct experts in 16 tokens.
    pub working_set_16: f64,
    /// Of a token's experts, the share among the best `n_expert_used` of the previous layer's lookahead; `None` without.
    pub lookahead_recall: Option<f64>,
    /// The same among twice as many.
    pub lookahead_recall_2: Option<f64>,
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

/// What is gathered of a layer.
struct Tally {
    uses: Vec<u64>,
    /// Token number of each expert's last use, from 1; 0: none.
    last: Vec<u64>,
    tokens: u64,
    wanted: u64,
    /// Uses whose last one was at most so many tokens ago.
    again: [u64; 5],
    distinct: u64,
    windows: u64,
    ahead: (u64, u64, u64),
}

/// Reads a trace through.
///
/// # Errors
/// A trace that cannot be read.
pub fn stats(path: &Path) -> Result<TraceStats> {
    let mut trace = TraceReader::open(path)?;
    let (n_layer, n_expert, used) = (trace.header().n_layer, trace.header().n_expert, trace.header().n_expert_used);
    let empty = || Tally {
        uses: vec![0; n_expert],
        last: vec![0; n_expert],
        tokens: 0,
        wanted: 0,
        again: [0; 5],
        distinct: 0,
        windows: 0,
        ahead: (0, 0, 0),
    };
    let mut layers: Vec<Tally> = (0..n_layer).map(|_| empty()).collect();
    let (mut events, mut prompt_tokens, mut decode_tokens) = (0, 0, 0);
    // The experts that the last event's lookahead put first, and the layer that they are of.
    let (mut guesses, mut guessed): (Vec<u16>, Option<usize>) = (Vec::with_capacity(n_expert), None);
    while let Some(event) = trace.next_event()? {
        events += 1;
        let layer = usize::from(event.layer);
        if event.phase == Phase::Prompt {
            prompt_tokens += u64::from(layer == 0) * u64::from(event.n_tokens);
            continue;
        }
        decode_tokens += u64::from(layer == 0);
        let tally = &mut layers[layer];
        if guessed == Some(layer) {
            let place = |e: u16| guesses.iter().position(|&g| g == e).unwrap_or(usize::MAX);
            tally.ahead.0 += event.routed.len() as u64;
            tally.ahead.1 += event.routed.iter().filter(|r| place(r.id.expert) < used).count() as u64;
            tally.ahead.2 += event.routed.iter().filter(|r| place(r.id.expert) < 2 * used).count() as u64;
        }
        tally.add(event.routed.iter().map(|r| usize::from(r.id.expert)));
        guessed = (!event.lookahead.is_empty()).then_some(layer + 1);
        guesses.clear();
        guesses.extend(0..event.lookahead.len() as u16);
        let score = |e: u16| event.lookahead[usize::from(e)];
        guesses.sort_unstable_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
    }
    let damage = trace.damage().map(str::to_owned);
    let layers = layers.iter().map(Tally::finish).collect();
    Ok(TraceStats { events, decode_tokens, prompt_tokens, layers, damage })
}

impl Tally {
    fn add(&mut self, experts: impl Iterator<Item = usize>) {
        self.tokens += 1;
        for e in experts {
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
    }

    fn finish(&self) -> LayerStats {
        let (n, all) = (self.uses.len(), self.wanted.max(1) as f64);
        let entropy = |u: &u64| if *u == 0 { 0.0 } else { -(*u as f64 / all) * (*u as f64 / all).log2() };
        let mut sorted = self.uses.clone();
        sorted.sort_unstable();
        let over_mean = |u: u64| u as f64 * n as f64 / all;
        let (asked, first, second) = self.ahead;
        let recall = |right: u64| (asked > 0).then(|| right as f64 / asked as f64);
        LayerStats {
            entropy_bits: self.uses.iter().map(entropy).sum(),
            load: (over_mean(sorted[n - 1]), over_mean(sorted[0])),
            used: self.uses.iter().filter(|u| **u > 0).count(),
            top_quarter: sorted[n - n.div_ceil(4)..].iter().sum::<u64>() as f64 / all,
            overlap: self.again.map(|a| a as f64 / all),
            working_set_16: if self.windows == 0 { 0.0 } else { self.distinct as f64 / self.windows as f64 },
            lookahead_recall: recall(first),
            lookahead_recall_2: recall(second),
        }
    }
}
