//! The record of what a MoE layer did. The model emits it; prefetchers and policies learn from it; it is what a
//! trace stores ([`mod@file`]) and a simulator replays.
//!
//! Must not know: what reading an expert costs, clocks, threads.

use crate::id::ExpertId;

mod arrays;
pub mod export;
pub mod file;
pub mod foresight;
pub mod import;
pub mod pairs;
pub mod segment;
pub mod stats;

/// One routing choice: an expert and the share of the output that the router gave it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routed {
    /// The expert.
    pub id: ExpertId,
    /// Its weight in the sum, normalised and scaled as the architecture has it.
    pub weight: f32,
}

/// Whether a layer ran over a prompt or over one new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Many tokens at once, all known.
    Prompt,
    /// One token, just sampled.
    Decode,
}

/// What one MoE layer did for one batch of tokens (in decoding: for one token).
#[derive(Clone, Copy, Debug)]
pub struct LayerEvent<'a> {
    /// Prompt or decode.
    pub phase: Phase,
    /// Position in its sequence of the first token that goes through the layer.
    pub first_token: u32,
    /// Tokens that go through it: all of the batch, or fewer in a prompt's last layer ([`TraceSink::wants_every_token`]).
    pub n_tokens: u32,
    /// Which MoE layer.
    pub layer: u16,
    /// The choices, best first within a token. (n_tokens, n_expert_used)
    pub routed: &'a [Routed],
    /// The *next* MoE layer's router scores, estimated from this layer's input. (n_expert) when decoding and
    /// computed, else empty.
    pub lookahead: &'a [f32],
}

impl LayerEvent<'_> {
    /// Experts that each token uses.
    pub fn n_used(&self) -> usize {
        self.routed.len() / (self.n_tokens.max(1) as usize)
    }
}

/// Something that keeps or counts events.
pub trait TraceSink: Send {
    /// Takes note of one event.
    fn record(&mut self, event: LayerEvent<'_>);
    /// Whether every decode event should have the next layer's scores ([`LayerEvent::lookahead`]), whether a prefetcher wants
    /// them or not.
    fn wants_scores(&self) -> bool {
        false
    }
    /// Whether every layer should run over every token of a prompt, as a whole record needs it. Otherwise the last layer leaves
    /// out those whose logits nobody wants.
    fn wants_every_token(&self) -> bool {
        true
    }
}

/// Keeps nothing.
impl TraceSink for () {
    fn record(&mut self, _: LayerEvent<'_>) {}
    fn wants_every_token(&self) -> bool {
        false
    }
}
