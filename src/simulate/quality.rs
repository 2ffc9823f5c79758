//! How much of what a replayed run wanted its trace's scores foretold, and how much of what was not in memory: the most
//! that a prefetcher which goes by these scores can read in time.
//!
//! Horizon 0 is a control: each layer's own choices, offered as its guesses. It finds all of them, or the measure is wrong.
//! Of a layer that nothing foretold (the first, without scores) only the control says something.
//!
//! Must not know: clocks, prefetchers.

use serde::Serialize;

use crate::{
    id::ExpertId,
    trace::{
        LayerEvent, Phase,
        file::Header,
        foresight::{Foresight, Guesses, OwnChoices},
    },
};

/// Ranks that are looked at: so many for each expert that a token uses.
const RANKS: usize = 3;

/// Horizons: the control and those for which a trace may have scores.
pub const HORIZONS: usize = 2;

/// See the module.
#[derive(Clone, Debug)]
pub struct Quality {
    found: [Foresight; HORIZONS],
    /// From horizon 1 on.
    guesses: [Guesses; HORIZONS - 1],
}

impl Quality {
    /// Of a trace with such a header.
    pub fn new(header: &Header) -> Self {
        let ranks = header.lookahead_ranks.min(RANKS * header.n_expert_used);
        // As many choices as an event may have.
        let found = std::array::from_fn(|horizon| Foresight::new(if horizon == 0 { header.n_expert } else { ranks }));
        Self { found, guesses: std::array::from_fn(|i| Guesses::new(1 + i as u16)) }
    }

    /// An event, and those of its choices that were not in a slot.
    pub fn add(&mut self, event: LayerEvent<'_>, absent: &[ExpertId]) {
        if event.phase != Phase::Decode {
            return;
        }
        let absent = |expert| absent.iter().any(|id| id.expert == expert);
        let [control, found @ ..] = &mut self.found;
        control.add(event, &OwnChoices(event), absent);
        for (found, guesses) in found.iter_mut().zip(&mut self.guesses) {
            if let Some(scores) = guesses.of(event) {
                found.add(event, scores, absent);
            }
            guesses.learn(event);
        }
    }

    /// What each horizon found; none for one without guesses.
    pub fn recall(&self) -> Vec<Recall> {
        let recall = |(horizon, found): (usize, &Foresight)| {
            let ranks = 1..=found.ranks().len();
            Recall {
                horizon,
                wanted: found.wanted(),
                absent: found.absent(),
                recall: ranks.clone().filter_map(|n| found.recall(n)).collect(),
                recall_on_misses: ranks.filter_map(|n| found.absent_recall(n)).collect(),
            }
        };
        self.found.iter().enumerate().map(recall).filter(|r| r.wanted > 0).collect()
    }
}

/// What the guesses of one horizon were worth while decoding. The fields are the JSON's keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recall {
    /// Layers ahead; 0 is the control.
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
