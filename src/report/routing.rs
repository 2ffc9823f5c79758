//! What a trace's decoded tokens use, expert by expert, and how good the lookahead's ranks are.

use std::path::Path;

use serde::Serialize;

use crate::{
    Result,
    trace::{Phase, file::TraceReader},
};

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Routing {
    /// Decoded tokens.
    pub decode_tokens: u64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// How often decoding used each expert. (n_moe_layer, n_expert)
    pub uses: Vec<Vec<u64>>,
    /// By rank, best first; empty where the trace has no scores.
    pub ranks: Vec<Rank>,
    /// Why the trace ends early, if it does.
    pub damage: Option<String>,
}

/// A rank of the lookahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rank {
    /// Times that an expert had this rank.
    pub guesses: u64,
    /// Of these, how often the next layer then used the expert.
    pub right: u64,
    /// right / guesses.
    pub precision: f64,
    /// Of all experts that the guessed layers used, the share that had this rank or a better one.
    pub recall: f64,
}

/// Reads a trace through.
///
/// # Errors
/// A trace that cannot be read.
pub fn routing(path: &Path) -> Result<Routing> {
    let mut trace = TraceReader::open(path)?;
    let (n_layer, n_expert) = (trace.header().n_layer, trace.header().n_expert);
    let mut uses: Vec<Vec<u64>> = vec![Vec::new(); n_layer];
    let (mut decode_tokens, mut prompt_tokens) = (0, 0);
    let mut ahead = Ahead::default();
    while let Some(event) = trace.next_event()? {
        let layer = usize::from(event.layer);
        if event.phase == Phase::Prompt {
            prompt_tokens += u64::from(layer == 0) * u64::from(event.n_tokens);
            ahead.guessed = None;
            continue;
        }
        decode_tokens += u64::from(layer == 0) * u64::from(event.n_tokens);
        // As events ask for it, so that a header alone takes no memory.
        uses[layer].resize(n_expert, 0);
        event.routed.iter().for_each(|r| uses[layer][usize::from(r.id.expert)] += 1);
        let used = || event.routed.iter().map(|r| r.id.expert);
        if ahead.guessed == Some(layer) {
            ahead.count(used);
        }
        ahead.guess(layer + 1, event.lookahead);
    }
    uses.iter_mut().for_each(|layer| layer.resize(n_expert, 0));
    let damage = trace.damage().map(str::to_owned);
    Ok(Routing { decode_tokens, prompt_tokens, uses, ranks: ahead.finish(), damage })
}

/// The last event's guess, and what guesses came to.
#[derive(Default)]
struct Ahead {
    /// The layer that `order` is of.
    guessed: Option<usize>,
    /// Best first, those with a score.
    order: Vec<u16>,
    ranks: Vec<Rank>,
    /// Experts that guessed layers used.
    wanted: u64,
}

impl Ahead {
    fn guess(&mut self, layer: usize, scores: &[f32]) {
        self.guessed = (!scores.is_empty()).then_some(layer);
        let score = |e: u16| scores[usize::from(e)];
        self.order.clear();
        self.order.extend((0..scores.len() as u16).filter(|&e| score(e) > f32::NEG_INFINITY));
        self.order.sort_unstable_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
    }

    fn count<I: Iterator<Item = u16>>(&mut self, used: impl Fn() -> I) {
        self.wanted += used().count() as u64;
        self.ranks.resize(self.ranks.len().max(self.order.len()), Rank::default());
        for (rank, expert) in self.ranks.iter_mut().zip(&self.order) {
            rank.guesses += 1;
            rank.right += u64::from(used().any(|e| e == *expert));
        }
    }

    fn finish(mut self) -> Vec<Rank> {
        let mut found = 0;
        for rank in &mut self.ranks {
            found += rank.right;
            rank.precision = rank.right as f64 / rank.guesses as f64;
            rank.recall = found as f64 / self.wanted.max(1) as f64;
        }
        self.ranks
    }
}
