//! How well guesses foretell a layer's choices, rank by rank, and those of them that were not in memory.
//!
//! Must not know: caches; who asks says what was in memory.

use super::{LayerEvent, Phase};

/// Guesses of one event's experts, the best being of rank 0.
pub trait Ranking {
    /// Experts that have a rank.
    fn named(&self) -> usize;
    /// The expert's rank, if it has one.
    fn rank(&self, expert: u16) -> Option<usize>;
}

/// What the ranks of one or more layers' guesses found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foresight {
    wanted: u64,
    absent: u64,
    ranks: Vec<Rank>,
}

/// What one rank's guesses came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rank {
    /// Times that an expert had this rank.
    pub guesses: u64,
    /// Of these, how often the layer then chose the expert.
    pub right: u64,
    /// Of these, how often the expert was not in memory.
    pub absent: u64,
}

impl Rank {
    /// right / guesses; 0 without guesses.
    pub fn precision(&self) -> f64 {
        self.right as f64 / self.guesses.max(1) as f64
    }
}

impl Foresight {
    /// That looks at the best `ranks` guesses.
    pub fn new(ranks: usize) -> Self {
        Self { ranks: vec![Rank::default(); ranks], ..Self::default() }
    }

    /// A token's choices, the guesses of them, and which experts are not in memory.
    pub fn add(&mut self, event: LayerEvent<'_>, guesses: &impl Ranking, absent: impl Fn(u16) -> bool) {
        self.ranks.iter_mut().take(guesses.named()).for_each(|rank| rank.guesses += 1);
        for expert in event.routed.iter().map(|r| r.id.expert) {
            let absent = u64::from(absent(expert));
            self.wanted += 1;
            self.absent += absent;
            if let Some(rank) = guesses.rank(expert).and_then(|rank| self.ranks.get_mut(rank)) {
                rank.right += 1;
                rank.absent += absent;
            }
        }
    }

    /// Choices that were guessed at, right or wrong.
    pub fn wanted(&self) -> u64 {
        self.wanted
    }

    /// Those of them that were not in memory.
    pub fn absent(&self) -> u64 {
        self.absent
    }

    /// Those that were ever given, the best first.
    pub fn ranks(&self) -> &[Rank] {
        let given = self.ranks.iter().take_while(|rank| rank.guesses > 0).count();
        &self.ranks[..given]
    }

    /// Share of the choices that were among the best `ranks` guesses; `None` without guesses.
    pub fn recall(&self, ranks: usize) -> Option<f64> {
        let found: u64 = self.ranks.iter().take(ranks).map(|rank| rank.right).sum();
        (self.wanted > 0).then(|| found as f64 / self.wanted as f64)
    }

    /// The same of those choices that were not in memory; `None` where all were.
    pub fn absent_recall(&self, ranks: usize) -> Option<f64> {
        let found: u64 = self.ranks.iter().take(ranks).map(|rank| rank.absent).sum();
        (self.absent > 0).then(|| found as f64 / self.absent as f64)
    }
}

/// An event's own choices, the best first, as guesses of themselves: they find all of it, or the measure is wrong.
#[derive(Clone, Copy, Debug)]
pub struct OwnChoices<'a>(pub LayerEvent<'a>);

impl Ranking for OwnChoices<'_> {
    fn named(&self) -> usize {
        self.0.routed.len()
    }
    fn rank(&self, expert: u16) -> Option<usize> {
        self.0.routed.iter().position(|r| r.id.expert == expert)
    }
}

/// What events say of later layers, kept until these run.
#[derive(Clone, Debug)]
pub struct Guesses<R> {
    horizon: u16,
    /// Whose choices they are of (a token's position and a layer), each where that layer's number leaves it. (horizon)
    last: Vec<(Option<(u32, u16)>, R)>,
}

impl<R: Ranking + Default + Clone> Guesses<R> {
    /// Of layers that are `horizon` ahead, one or more.
    pub fn new(horizon: u16) -> Self {
        Self { horizon, last: vec![(None, R::default()); usize::from(horizon)] }
    }

    /// The guesses for this event; `None` if no event of its token made any for it.
    pub fn of(&self, event: LayerEvent<'_>) -> Option<&R> {
        let (of, guesses) = &self.last[usize::from(event.layer % self.horizon)];
        (event.phase == Phase::Decode && *of == Some((event.first_token, event.layer))).then_some(guesses)
    }

    /// Keeps what this event foretells: `fill` puts it in the place of older guesses.
    pub fn learn(&mut self, event: LayerEvent<'_>, fill: impl FnOnce(&mut R)) {
        let (of, guesses) = &mut self.last[usize::from(event.layer % self.horizon)];
        fill(guesses);
        *of = (guesses.named() > 0).then_some((event.first_token, event.layer + self.horizon));
    }
}

/// Experts, the best first.
#[derive(Clone, Debug, Default)]
pub struct List(Vec<u16>);

impl List {
    /// Becomes this list.
    pub fn set(&mut self, experts: impl Iterator<Item = u16>) {
        self.0.clear();
        self.0.extend(experts);
    }
}

impl Ranking for List {
    fn named(&self) -> usize {
        self.0.len()
    }
    fn rank(&self, expert: u16) -> Option<usize> {
        self.0.iter().position(|&e| e == expert)
    }
}

/// A score for each expert, or none at all. (n_expert or 0)
#[derive(Clone, Debug, Default)]
pub struct Scores {
    of: Vec<f32>,
    named: usize,
}

impl Scores {
    /// Becomes these scores.
    pub fn set(&mut self, scores: &[f32]) {
        self.of.clear();
        self.of.extend_from_slice(scores);
        self.named = count(scores, |s| s > f32::NEG_INFINITY);
    }
}

/// By score; of equal ones the lower number ranks higher. Experts without a score (negative infinity) have no rank.
impl Ranking for Scores {
    fn named(&self) -> usize {
        self.named
    }
    fn rank(&self, expert: u16) -> Option<usize> {
        let expert = usize::from(expert);
        let score = *self.of.get(expert).filter(|s| **s > f32::NEG_INFINITY)?;
        // Over all of them both times, as equal ones are rare: a number that no vector divides would cost more.
        let equal_before =
            if count(&self.of, |s| s == score) == 1 { 0 } else { count(&self.of[..expert], |s| s == score) };
        Some(count(&self.of, |s| s > score) + equal_before)
    }
}

/// How many are so. A sum of `u32` is vectorised, `filter().count()` is not: 14 ns for 128 scores, 35 with it.
fn count(scores: &[f32], so: impl Fn(f32) -> bool) -> usize {
    scores.iter().map(|s| u32::from(so(*s))).sum::<u32>() as usize
}
