//! How much of what a replayed run wanted was foretold, and how much of what was not in memory: by the trace's scores, which
//! no cache changes, and by the prefetcher that ran.
//!
//! A control stands beside them: each layer's own choices, offered as its guesses. It finds all of them, or the measure is
//! wrong.
//!
//! Must not know: clocks, how prefetchers guess.

use serde::Serialize;

use crate::{
    id::ExpertId,
    trace::{
        LayerEvent, Phase,
        file::Header,
        foresight::{Foresight, Guesses, List, OwnChoices, Scores},
    },
};

/// Layers that guesses reach ahead, at most.
pub const AHEAD: usize = 2;

/// Ranks that are looked at: so many for each expert that a token uses.
const RANKS: usize = 3;

/// See the module.
#[derive(Clone, Debug)]
pub struct Quality {
    own: Foresight,
    /// Of the next layer.
    scores: (Guesses<Scores>, Foresight),
    /// By horizon, from 1.
    prefetch: [(Guesses<List>, Foresight); AHEAD],
}

impl Quality {
    /// Of a trace with such a header.
    pub fn new(header: &Header) -> Self {
        let (most, used) = (header.n_expert, header.n_expert_used);
        let ranks = (RANKS * used).min(most);
        Self {
            own: Foresight::new(most),
            scores: (Guesses::new(1), Foresight::new(header.lookahead_ranks.min(ranks))),
            prefetch: std::array::from_fn(|i| (Guesses::new(1 + i as u16), Foresight::new(ranks))),
        }
    }

    /// An event, those of its choices that were not in a slot, and what the prefetcher then guessed.
    pub fn add(&mut self, event: LayerEvent<'_>, absent: &[ExpertId], guessed: &[ExpertId]) {
        if event.phase != Phase::Decode {
            return;
        }
        let absent = |expert| absent.iter().any(|id| id.expert == expert);
        self.own.add(event, &OwnChoices(event), absent);
        let (guesses, found) = &mut self.scores;
        if let Some(scores) = guesses.of(event) {
            found.add(event, scores, absent);
        }
        guesses.learn(event, |kept| kept.set(event.lookahead));
        for ((guesses, found), layer) in self.prefetch.iter_mut().zip(event.layer + 1..) {
            if let Some(list) = guesses.of(event) {
                found.add(event, list, absent);
            }
            guesses.learn(event, |kept| kept.set(guessed.iter().filter(|id| id.layer == layer).map(|id| id.expert)));
        }
    }

    /// What each source of guesses found; none that made no guesses.
    pub fn recall(&self) -> Vec<Recall> {
        let own = std::iter::once((Source::Own, 0, &self.own));
        let scores = std::iter::once((Source::Scores, 1, &self.scores.1));
        let prefetch = (1..).zip(&self.prefetch).map(|(horizon, (_, found))| (Source::Prefetch, horizon, found));
        let all = own.chain(scores).chain(prefetch).filter(|(.., found)| found.wanted() > 0);
        all.map(|(by, horizon, found)| Recall::new(by, horizon, found)).collect()
    }
}

/// Who guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Nobody: the control.
    Own,
    /// The trace's scores.
    Scores,
    /// The prefetcher that ran.
    Prefetch,
}

impl Source {
    /// As JSON and CSV have it.
    pub fn name(self) -> &'static str {
        match self {
            Source::Own => "own",
            Source::Scores => "scores",
            Source::Prefetch => "prefetch",
        }
    }
}

/// What guesses were worth while decoding. The fields are the JSON's keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recall {
    /// Who guessed.
    pub by: Source,
    /// Layers ahead; 0 for the control.
    pub horizon: usize,
    /// Choices of the layers and tokens that were guessed at.
    pub wanted: u64,
    /// Those of them that were not in a slot when asked for (late or miss).
    pub absent: u64,
    /// Share of `wanted` that stood at rank 1, at rank 1 or 2, and so on.
    pub recall: Vec<f64>,
    /// The same share of `absent`; empty where nothing was.
    pub recall_on_misses: Vec<f64>,
}

impl Recall {
    fn new(by: Source, horizon: usize, found: &Foresight) -> Self {
        let ranks = 1..=found.ranks().len();
        Self {
            by,
            horizon,
            wanted: found.wanted(),
            absent: found.absent(),
            recall: ranks.clone().filter_map(|n| found.recall(n)).collect(),
            recall_on_misses: ranks.filter_map(|n| found.absent_recall(n)).collect(),
        }
    }
}
