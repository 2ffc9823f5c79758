//! Guesses which experts a coming layer will ask for.
//!
//! Must not know: bytes, files, clocks, threads. Sees what a trace sees and nothing else, so that a replay can
//! reproduce it.

use crate::{id::ExpertId, trace::LayerEvent};

mod auto;
mod history;
mod lookahead;
mod lookahead2;

pub use auto::Auto;
pub use history::History;
pub use lookahead::Lookahead;
pub use lookahead2::Lookahead2;

/// Event in, guesses out.
pub trait Prefetcher: Send {
    /// The name that `--prefetch` takes and statistics print.
    fn name(&self) -> &'static str;
    /// For how many layers ahead scores are wanted, so that the model computes them: 0, 1 ([`LayerEvent::lookahead`]), 2
    /// (and [`LayerEvent::lookahead2`]).
    fn horizon(&self) -> u16;
    /// True where the next layer's absent experts may be read while a long prompt, which wants nearly all, is between two
    /// layers.
    fn reads_ahead(&self) -> bool {
        true
    }
    /// Learns from an event and appends its guesses, the likeliest first. So many of them, from the first on, are worth
    /// a read; the others are worth not being evicted for one.
    fn observe(&mut self, event: LayerEvent<'_>, guesses: &mut Vec<ExpertId>) -> usize;
    /// A decoded token took so long, from its first layer's event to the next token's. Told as data: no clock is seen here.
    fn token_took(&mut self, _ns: u64) {}
    /// Share of the decoded tokens for which guesses were made; `None` where that is no matter of choice.
    fn share_on(&self) -> Option<f64> {
        None
    }
}

/// Never guesses.
pub struct NoPrefetch;

impl Prefetcher for NoPrefetch {
    fn name(&self) -> &'static str {
        "off"
    }
    fn horizon(&self) -> u16 {
        0
    }
    fn reads_ahead(&self) -> bool {
        false
    }
    fn observe(&mut self, _: LayerEvent<'_>, _: &mut Vec<ExpertId>) -> usize {
        0
    }
}

/// The prefetchers that `--prefetch` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefetchKind {
    /// [`PrefetchKind::Lookahead`] while tokens are faster with it than without.
    Auto,
    /// The next layer's router on this layer's hidden state.
    Lookahead,
    /// The next two layers' routers on this layer's hidden state.
    Lookahead2,
    /// What followed this layer's experts before.
    History,
    /// None.
    Off,
}

impl PrefetchKind {
    /// Every kind, the default first.
    pub const ALL: &[PrefetchKind] = &[
        PrefetchKind::Auto,
        PrefetchKind::Lookahead,
        PrefetchKind::Lookahead2,
        PrefetchKind::History,
        PrefetchKind::Off,
    ];
    /// The name that [`Prefetcher::name`] gives.
    pub fn name(self) -> &'static str {
        match self {
            PrefetchKind::Auto => "auto",
            PrefetchKind::Lookahead => "lookahead",
            PrefetchKind::Lookahead2 => "lookahead-2",
            PrefetchKind::History => "history",
            PrefetchKind::Off => "off",
        }
    }
    /// What it comes to hold, bytes: of so many layers of `n_expert` experts, where a batch has `n_batch` tokens of
    /// `n_expert_used` choices. 0 for what does not grow with the model's layers.
    pub fn bytes(self, n_layer: usize, n_expert: usize, n_expert_used: usize, n_batch: usize) -> u64 {
        match self {
            PrefetchKind::History => History::bytes(n_layer, n_expert, n_expert_used, n_batch),
            _ => 0,
        }
    }
    /// A fresh prefetcher for a model that uses `n_expert_used` experts of `n_expert` a layer.
    pub fn build(self, n_expert: usize, n_expert_used: usize) -> Box<dyn Prefetcher> {
        match self {
            PrefetchKind::Auto => Box::new(Auto::new(n_expert, n_expert_used)),
            PrefetchKind::Lookahead => Box::new(Lookahead::new(n_expert, n_expert_used)),
            PrefetchKind::Lookahead2 => Box::new(Lookahead2::new(n_expert, n_expert_used)),
            PrefetchKind::History => Box::new(History::new(n_expert, n_expert_used)),
            PrefetchKind::Off => Box::new(NoPrefetch),
        }
    }
}
