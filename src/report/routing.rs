//! What a trace's decoded tokens use, expert by expert, and how good the lookahead's ranks are.

use std::path::Path;

use serde::Serialize;

use crate::{
    Result,
    trace::{
        Phase,
        file::TraceReader,
        foresight::{self, Foresight, Guesses, Scores},
    },
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
    let (mut ahead, mut guesses) = (Foresight::new(trace.header().lookahead_ranks), Guesses::<Scores>::new(1));
    while let Some(event) = trace.next_event()? {
        let layer = usize::from(event.layer);
        if event.phase == Phase::Prompt {
            prompt_tokens += u64::from(layer == 0) * u64::from(event.n_tokens);
            continue;
        }
        decode_tokens += u64::from(layer == 0) * u64::from(event.n_tokens);
        // As events ask for it, so that a header alone takes no memory.
        uses[layer].resize(n_expert, 0);
        event.routed.iter().for_each(|r| uses[layer][usize::from(r.id.expert)] += 1);
        if let Some(guesses) = guesses.of(event) {
            ahead.add(event, guesses, |_| false);
        }
        guesses.learn(event, |scores| scores.set(event.lookahead));
    }
    uses.iter_mut().for_each(|layer| layer.resize(n_expert, 0));
    let damage = trace.damage().map(str::to_owned);
    Ok(Routing { decode_tokens, prompt_tokens, uses, ranks: ranks(&ahead), damage })
}

/// The foresight's ranks as the page has them.
fn ranks(ahead: &Foresight) -> Vec<Rank> {
    let rank = |(i, rank): (usize, &foresight::Rank)| Rank {
        guesses: rank.guesses,
        right: rank.right,
        precision: rank.precision(),
        recall: ahead.recall(i + 1).unwrap_or(0.0),
    };
    ahead.ranks().iter().enumerate().map(rank).collect()
}
