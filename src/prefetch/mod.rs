//! Guesses which experts a coming layer will ask for.
//!
//! Must not know: bytes, files, clocks, threads. Sees what a trace sees and nothing else, so that a replay can
//! reproduce it.

use crate::{id::ExpertId, retrieval::Retrieval, trace::LayerEvent};

mod auto;
mod both;
mod history;
mod lookahead;
mod votes;

pub use auto::Auto;
pub use both::Both;
pub use history::History;
pub use lookahead::Lookahead;
pub use votes::Votes;

/// How many guesses are worth a read, from the first on; the others are worth not being evicted for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// At once.
    pub now: usize,
    /// Of those behind them: while the drive has little else to do.
    pub idle: usize,
}

impl Reads {
    /// So many at once, and no others.
    pub fn now(now: usize) -> Self {
        Self { now, idle: 0 }
    }
}

/// Event in, guesses out.
pub trait Prefetcher: Send {
    /// The name that `--prefetch` takes and statistics print.
    fn name(&self) -> &'static str;
    /// Whether the next layer's scores are wanted ([`LayerEvent::lookahead`]), so that the model computes them.
    fn wants_scores(&self) -> bool;
    /// True where the next layer's absent experts may be read while a long prompt, which wants nearly all, is between two
    /// layers.
    fn reads_ahead(&self) -> bool {
        true
    }
    /// Whether [`Prefetcher::observe`] should be told of the tokens that resemble the present one.
    fn wants_retrieval(&self) -> bool {
        false
    }
    /// Learns from an event and appends its guesses, of each layer the likeliest first. Returns how many of them are worth a
    /// read. `past` has observed the event already; it is off unless somebody wants it.
    fn observe(&mut self, event: LayerEvent<'_>, past: &Retrieval, guesses: &mut Vec<ExpertId>) -> Reads;
    /// A decoded token took so long, from its first layer's event to the next token's. Told as data: no clock is seen here.
    fn token_took(&mut self, _ns: u64) {}
    /// For how many decoded tokens each of several prefetchers ran, by name; empty where there is no choice.
    fn tokens_by_mode(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Never guesses.
pub struct NoPrefetch;

impl Prefetcher for NoPrefetch {
    fn name(&self) -> &'static str {
        "off"
    }
    fn wants_scores(&self) -> bool {
        false
    }
    fn reads_ahead(&self) -> bool {
        false
    }
    fn observe(&mut self, _: LayerEvent<'_>, _: &Retrieval, _: &mut Vec<ExpertId>) -> Reads {
        Reads::default()
    }
}

/// The prefetchers that `--prefetch` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefetchKind {
    /// [`PrefetchKind::Lookahead`] or [`PrefetchKind::Off`], whichever makes tokens faster.
    Auto,
    /// The same choice with [`PrefetchKind::Votes`] and [`PrefetchKind::Both`] beside them.
    AutoVotes,
    /// The next layer's router on this layer's hidden state.
    Lookahead,
    /// What the past tokens that resemble this one used in the layers to come.
    Votes,
    /// [`PrefetchKind::Lookahead`] and [`PrefetchKind::Votes`] together.
    Both,
    /// What followed this layer's experts before.
    History,
    /// None.
    Off,
}

impl PrefetchKind {
    /// Every kind, the default first.
    pub const ALL: &[PrefetchKind] = &[
        PrefetchKind::Auto,
        PrefetchKind::AutoVotes,
        PrefetchKind::Lookahead,
        PrefetchKind::Votes,
        PrefetchKind::Both,
        PrefetchKind::History,
        PrefetchKind::Off,
    ];
    /// The name that [`Prefetcher::name`] gives.
    pub fn name(self) -> &'static str {
        match self {
            PrefetchKind::Auto => "auto",
            PrefetchKind::AutoVotes => "auto-votes",
            PrefetchKind::Lookahead => "lookahead",
            PrefetchKind::Votes => "votes",
            PrefetchKind::Both => "both",
            PrefetchKind::History => "history",
            PrefetchKind::Off => "off",
        }
    }
    /// Whether it wants to know the tokens that resemble the present one.
    pub fn wants_retrieval(self) -> bool {
        matches!(self, PrefetchKind::AutoVotes | PrefetchKind::Votes | PrefetchKind::Both)
    }
    /// What it comes to hold beside the tokens that resemble the present one, bytes: of so many layers of `n_expert` experts,
    /// where a batch has `n_batch` tokens of `n_expert_used` choices. 0 for what does not grow with the model's layers.
    pub fn bytes(self, n_layer: usize, n_expert: usize, n_expert_used: usize, n_batch: usize) -> u64 {
        match self {
            PrefetchKind::History => History::bytes(n_layer, n_expert, n_expert_used, n_batch),
            _ => 0,
        }
    }
    /// A fresh prefetcher for a model that uses `n_expert_used` experts of `n_expert` a layer.
    pub fn build(self, n_expert: usize, n_expert_used: usize) -> Box<dyn Prefetcher> {
        match self {
            PrefetchKind::Auto => Box::new(Auto::of_two(n_expert, n_expert_used)),
            PrefetchKind::AutoVotes => Box::new(Auto::of_four(n_expert, n_expert_used)),
            PrefetchKind::Lookahead => Box::new(Lookahead::new(n_expert, n_expert_used)),
            PrefetchKind::Votes => Box::new(Votes::new(n_expert, n_expert_used)),
            PrefetchKind::Both => Box::new(Both::new(n_expert, n_expert_used)),
            PrefetchKind::History => Box::new(History::new(n_expert, n_expert_used)),
            PrefetchKind::Off => Box::new(NoPrefetch),
        }
    }
}
