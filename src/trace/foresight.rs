//! How well lookahead scores foretell a layer's choices, rank by rank, and those of them that were not in memory.
//!
//! Must not know: caches; who asks says what was in memory.

use super::{LayerEvent, Phase};

/// What the ranks of one or more layers' guesses found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foresight {
    /// Tokens and layers that had guesses.
    guessed: u64,
    wanted: u64,
    absent: u64,
    /// Choices that stood at each rank; those of them that were not in memory.
    found: Vec<(u64, u64)>,
}

impl Foresight {
    /// That looks at the best `ranks` guesses.
    pub fn new(ranks: usize) -> Self {
        Self { found: vec![(0, 0); ranks], ..Self::default() }
    }

    /// A token's choices, its guesses, best first, and which experts are not in memory.
    pub fn add(&mut self, event: LayerEvent<'_>, guesses: &[u16], absent: impl Fn(u16) -> bool) {
        self.guessed += 1;
        for expert in event.routed.iter().map(|r| r.id.expert) {
            let (rank, absent) = (guesses.iter().position(|&g| g == expert), u64::from(absent(expert)));
            self.wanted += 1;
            self.absent += absent;
            if let Some(found) = rank.and_then(|rank| self.found.get_mut(rank)) {
                *found = (found.0 + 1, found.1 + absent);
            }
        }
    }

    /// Share of the choices that were among the best `ranks` guesses; `None` without guesses.
    pub fn recall(&self, ranks: usize) -> Option<f64> {
        let found: u64 = self.found.iter().take(ranks).map(|f| f.0).sum();
        (self.wanted > 0).then(|| found as f64 / self.wanted as f64)
    }

    /// The same of those choices that were not in memory; `None` where all were.
    pub fn absent_recall(&self, ranks: usize) -> Option<f64> {
        let found: u64 = self.found.iter().take(ranks).map(|f| f.1).sum();
        (self.absent > 0).then(|| found as f64 / self.absent as f64)
    }

    /// Share of the guesses of each rank, the best first, that were right.
    pub fn by_rank(&self) -> Vec<f64> {
        self.found.iter().map(|f| f.0 as f64 / self.guessed.max(1) as f64).collect()
    }
}

/// The last event's lookahead, ranked, for the layer that it is of.
#[derive(Clone, Debug, Default)]
pub struct Guesses {
    layer: Option<u16>,
    ranked: Vec<u16>,
}

impl Guesses {
    /// The guesses for this event, best first; `None` if the event before it made none for it.
    pub fn of(&self, event: LayerEvent<'_>) -> Option<&[u16]> {
        (event.phase == Phase::Decode && self.layer == Some(event.layer)).then_some(&self.ranked)
    }

    /// Ranks what this event foretells. Experts without a score have no rank.
    pub fn learn(&mut self, event: LayerEvent<'_>) {
        let scores = event.lookahead;
        self.layer = (!scores.is_empty()).then_some(event.layer + 1);
        self.ranked.clear();
        self.ranked.extend((0..scores.len() as u16).filter(|&e| scores[usize::from(e)] > f32::NEG_INFINITY));
        let score = |e: u16| scores[usize::from(e)];
        self.ranked.sort_unstable_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
    }
}
