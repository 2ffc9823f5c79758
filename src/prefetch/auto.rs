//! Lookahead while it pays, nothing while it does not.
//!
//! Whether reading ahead wins cannot be told from hit rates: it takes processor time (scores, submissions), delays demand
//! reads, and evicts. In most public implementations it made decoding slower; on our M model it lost a quarter with
//! io_uring at half the file's memory, and won with other read paths. So this measures the one thing that counts, the
//! time of a token, with and without, and goes by that: tokens come in windows, most of them in the mode that is ahead,
//! and now and then one in the other mode, which is compared with its neighbours on both sides so that neither a growing
//! context nor a change of text is mistaken for the mode's doing. Trials of what keeps losing become rare.
//!
//! The state of the art is bandits over window lengths of hardware prefetchers (for instance Gerogiannis and Torrellas,
//! "Micro-Armed Bandit", MICRO 2023); two arms and pairs of neighbours are enough here.
//!
//! Deterministic in what it is told: on the simulated drive a replay switches where the live run did. On a real drive it
//! does not, since times differ.

use super::{Lookahead, Prefetcher};
use crate::{id::ExpertId, trace::LayerEvent};

/// Tokens in a window: the mean time of fewer is mostly chance.
const WINDOW: usize = 12;

/// Tokens at a window's start that do not count: what the mode before has read or evicted still shows.
const SETTLE: usize = 2;

/// Windows between two trials, at first and at most.
const PAUSES: [u32; 2] = [2, 64];

/// How much the newest trial counts in the average of all.
const NEWEST: f32 = 0.5;

/// A mode must be ahead by so much (as a logarithm: 1 %) to take over.
const MARGIN: f32 = 0.01;

/// See the module.
pub struct Auto {
    lookahead: Lookahead,
    /// The mode that is ahead, and whether it is on trial for being so.
    ahead: bool,
    on_trial: bool,
    /// Times of the window's tokens. (up to WINDOW)
    window: Vec<u64>,
    /// Mean of the window before the trial, and of the trial.
    before: Option<f32>,
    trial: Option<f32>,
    /// How far the mode that is not ahead was ahead in trials: ln(time of the other / its time).
    gain: Option<f32>,
    /// Windows until the next trial; how many there were from the last one to that.
    left: u32,
    pause: u32,
    tokens: u64,
    tokens_on: u64,
}

impl Auto {
    /// For a model that uses `n_expert_used` experts of `n_expert` a layer.
    pub fn new(n_expert: usize, n_expert_used: usize) -> Self {
        Self {
            lookahead: Lookahead::new(n_expert, n_expert_used),
            ahead: true,
            on_trial: false,
            window: Vec::with_capacity(WINDOW),
            before: None,
            trial: None,
            gain: None,
            left: PAUSES[0],
            pause: PAUSES[0],
            tokens: 0,
            tokens_on: 0,
        }
    }

    fn is_on(&self) -> bool {
        self.ahead != self.on_trial
    }

    /// A window is over: `mean` is the time of its tokens.
    fn close(&mut self, mean: f32) {
        if self.on_trial {
            (self.trial, self.on_trial) = (Some(mean), false);
            return;
        }
        if let (Some(before), Some(trial)) = (self.before, self.trial.take()) {
            self.judge(((before + mean) / 2.0 / trial).ln());
        }
        self.before = Some(mean);
        self.left = self.left.saturating_sub(1);
        self.on_trial = self.left == 0;
        if self.on_trial {
            self.left = self.pause;
        }
    }

    /// A trial was faster than its neighbours by so much, as a logarithm.
    fn judge(&mut self, newest: f32) {
        let gain = self.gain.map_or(newest, |gain| gain + NEWEST * (newest - gain));
        if gain > MARGIN {
            self.ahead = !self.ahead;
            // Its neighbours were in the other mode.
            (self.gain, self.before) = (Some(-gain), None);
            self.pause = PAUSES[0];
        } else {
            self.gain = Some(gain);
            self.pause = (2 * self.pause).min(PAUSES[1]);
        }
        self.left = self.pause;
    }
}

impl Prefetcher for Auto {
    fn name(&self) -> &'static str {
        "auto"
    }
    fn horizon(&self) -> u16 {
        u16::from(self.is_on())
    }
    fn observe(&mut self, event: LayerEvent<'_>, guesses: &mut Vec<ExpertId>) -> usize {
        if self.is_on() { self.lookahead.observe(event, guesses) } else { 0 }
    }
    fn token_took(&mut self, ns: u64) {
        self.tokens += 1;
        self.tokens_on += u64::from(self.is_on());
        self.window.push(ns);
        if self.window.len() == WINDOW {
            // All but the slowest: one neighbour's hiccup is no reason.
            let counted = &mut self.window[SETTLE..];
            counted.sort_unstable();
            let counted = &counted[..WINDOW - SETTLE - 1];
            let mean = counted.iter().sum::<u64>() as f32 / counted.len() as f32;
            self.window.clear();
            self.close(mean.max(1.0));
        }
    }
    fn share_on(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.tokens_on as f64 / self.tokens as f64)
    }
}
