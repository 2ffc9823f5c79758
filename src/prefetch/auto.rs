//! Lookahead or nothing, whichever makes tokens faster (`auto`); or votes or both, if one of these is faster still
//! (`auto-votes`).
//!
//! Whether reading ahead wins, and by which guesses, cannot be told from hit rates: it takes processor time (scores,
//! submissions), delays demand reads, and evicts. In most public implementations it made decoding slower; on our M model
//! it lost a quarter with io_uring at half the file's memory, and won with other read paths. So this measures the one thing
//! that counts, the time of a token, in each of these modes, and goes by that: tokens come in windows, most of them in the
//! mode that is ahead, and now and then one in another mode, which is compared with its neighbours on both sides so that
//! neither a growing context nor a change of text is mistaken for the mode's doing. Trials of what keeps losing become rare.
//!
//! The state of the art is bandits over window lengths of hardware prefetchers (for instance Gerogiannis and Torrellas,
//! "Micro-Armed Bandit", MICRO 2023); a few arms and pairs of neighbours are enough here.
//!
//! `auto-votes` keeps and compares past tokens in every mode, so that votes have their past when their turn comes. That
//! takes memory and some microseconds per layer also where votes never win, so it is not the default.
//!
//! Deterministic in what it is told: on the simulated drive a replay switches where the live run did. On a real drive it
//! does not, since times differ.

use super::{PrefetchKind, Prefetcher, Reads};
use crate::{id::ExpertId, retrieval::Retrieval, trace::LayerEvent};

/// What it chooses from, the first one first; `auto` from the first two.
const MODES: [PrefetchKind; 4] = [PrefetchKind::Lookahead, PrefetchKind::Off, PrefetchKind::Votes, PrefetchKind::Both];

/// Tokens in a window: the mean time of fewer is mostly chance.
const WINDOW: usize = 12;

/// Tokens at a window's start that do not count: what the mode before has read or evicted still shows.
const SETTLE: usize = 2;

/// Windows between two trials of a mode, at first and at most.
const PAUSES: [u32; 2] = [2, 64];

/// How much the newest trial counts in the average of all.
const NEWEST: f32 = 0.5;

/// A mode must be ahead by so much (as a logarithm: 1 %) to take over.
const MARGIN: f32 = 0.01;

/// A mode and what is known of it.
struct Arm {
    guesser: Box<dyn Prefetcher>,
    /// How far it was ahead of the mode that rules in trials: ln(time of that / its own time).
    gain: Option<f32>,
    /// Windows since it should have been tried; below 0, those until then.
    due: i64,
    /// How many there are from one trial to the next.
    pause: u32,
    tokens: u64,
}

/// See the module.
pub struct Auto {
    kind: PrefetchKind,
    arms: Vec<Arm>,
    /// The mode that is ahead.
    ahead: usize,
    /// The one that is being tried instead.
    on_trial: Option<usize>,
    /// Times of the window's tokens. (up to WINDOW)
    window: Vec<u64>,
    /// Mean of the window before the trial.
    before: Option<f32>,
    /// What was tried last and its mean, while the window after it runs.
    tried: Option<(usize, f32)>,
}

impl Auto {
    /// `auto`, for a model that uses `n_expert_used` experts of `n_expert` a layer.
    pub fn of_two(n_expert: usize, n_expert_used: usize) -> Self {
        Self::new(PrefetchKind::Auto, &MODES[..2], n_expert, n_expert_used)
    }

    /// `auto-votes`, for such a model.
    pub fn of_four(n_expert: usize, n_expert_used: usize) -> Self {
        Self::new(PrefetchKind::AutoVotes, &MODES, n_expert, n_expert_used)
    }

    fn new(kind: PrefetchKind, modes: &[PrefetchKind], n_expert: usize, n_expert_used: usize) -> Self {
        let arm = |mode: &PrefetchKind| Arm {
            guesser: mode.build(n_expert, n_expert_used),
            gain: None,
            due: -i64::from(PAUSES[0]),
            pause: PAUSES[0],
            tokens: 0,
        };
        Self {
            kind,
            arms: modes.iter().map(arm).collect(),
            ahead: 0,
            on_trial: None,
            window: Vec::with_capacity(WINDOW),
            before: None,
            tried: None,
        }
    }

    /// The mode that runs.
    fn now(&self) -> usize {
        self.on_trial.unwrap_or(self.ahead)
    }

    /// A window is over: `mean` is the time of its tokens.
    fn close(&mut self, mean: f32) {
        if let Some(mode) = self.on_trial.take() {
            self.tried = Some((mode, mean));
            return;
        }
        self.arms.iter_mut().for_each(|arm| arm.due += 1);
        if let (Some(before), Some((mode, trial))) = (self.before.replace(mean), self.tried.take()) {
            self.judge(mode, ((before + mean) / 2.0 / trial).ln());
        }
        if self.before.is_some() {
            self.on_trial = self.next_trial();
        }
    }

    /// The mode that has been due the longest, of equal ones the first.
    fn next_trial(&self) -> Option<usize> {
        let due = |mode: &usize| *mode != self.ahead && self.arms[*mode].due >= 0;
        (0..self.arms.len()).filter(due).max_by_key(|&mode| (self.arms[mode].due, std::cmp::Reverse(mode)))
    }

    /// A trial was faster than its neighbours by so much, as a logarithm.
    fn judge(&mut self, mode: usize, newest: f32) {
        let arm = &mut self.arms[mode];
        let gain = arm.gain.map_or(newest, |gain| gain + NEWEST * (newest - gain));
        arm.gain = Some(gain);
        if gain > MARGIN {
            self.lead(mode, gain);
        } else {
            arm.pause = (2 * arm.pause).min(PAUSES[1]);
        }
        self.arms[mode].due = -i64::from(self.arms[mode].pause);
    }

    /// From now on `mode` rules, which was ahead by so much.
    fn lead(&mut self, mode: usize, gain: f32) {
        let last = std::mem::replace(&mut self.ahead, mode);
        for arm in &mut self.arms {
            arm.gain = arm.gain.map(|other| other - gain);
            // What has changed may suit the others, too.
            arm.pause = (arm.pause / 2).max(PAUSES[0]);
            arm.due = arm.due.max(-i64::from(arm.pause));
        }
        let last = &mut self.arms[last];
        (last.gain, last.pause, last.due) = (Some(-gain), PAUSES[0], -i64::from(PAUSES[0]));
        // The window that is over was in the other mode.
        self.before = None;
    }
}

impl Prefetcher for Auto {
    fn name(&self) -> &'static str {
        self.kind.name()
    }
    fn wants_scores(&self) -> bool {
        self.arms[self.now()].guesser.wants_scores()
    }
    fn wants_retrieval(&self) -> bool {
        self.kind.wants_retrieval()
    }
    fn observe(&mut self, event: LayerEvent<'_>, past: &Retrieval, guesses: &mut Vec<ExpertId>) -> Reads {
        let now = self.now();
        self.arms[now].guesser.observe(event, past, guesses)
    }
    fn token_took(&mut self, ns: u64) {
        let now = self.now();
        self.arms[now].tokens += 1;
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
    fn tokens_by_mode(&self) -> Vec<(&'static str, u64)> {
        self.arms.iter().map(|arm| (arm.guesser.name(), arm.tokens)).collect()
    }
}
