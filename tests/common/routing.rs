//! Made-up routing: some experts more popular than others, a share of the previous token's experts used again, and a
//! change of taste now and then, as models have it.

use std::path::Path;

use hotset::{
    id::ExpertId,
    trace::{
        LayerEvent, Phase, Routed, TraceSink,
        file::{Header, Prompt, TraceWriter},
    },
};

use super::dice::Dice;

/// Shape of made-up routing.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub layers: usize,
    pub experts: usize,
    pub used: usize,
    pub tokens: usize,
}

/// An event that owns its choices.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub phase: Phase,
    pub first_token: u32,
    pub n_tokens: u32,
    pub layer: u16,
    pub routed: Vec<Routed>,
    pub lookahead: Vec<f32>,
}

impl Event {
    pub fn borrow(&self) -> LayerEvent<'_> {
        LayerEvent {
            phase: self.phase,
            first_token: self.first_token,
            n_tokens: self.n_tokens,
            layer: self.layer,
            routed: &self.routed,
            lookahead: &self.lookahead,
        }
    }
    pub fn own(event: LayerEvent<'_>) -> Event {
        Event {
            phase: event.phase,
            first_token: event.first_token,
            n_tokens: event.n_tokens,
            layer: event.layer,
            routed: event.routed.to_vec(),
            lookahead: event.lookahead.to_vec(),
        }
    }
}

pub fn header(shape: Shape) -> Header {
    Header {
        model: "made-up".to_owned(),
        model_id: String::new(),
        source: "a seed".to_owned(),
        n_layer: shape.layers,
        n_expert: shape.experts,
        n_expert_used: shape.used,
        expert_bytes: vec![1000; shape.layers],
        weights: false,
        lookahead: String::new(),
        lookahead_ranks: 0,
        prompts: vec![Prompt { name: "none".to_owned(), tokens: shape.tokens, hash: String::new() }],
    }
}

/// Decode events, layer by layer within a token.
pub fn decoding(dice: &mut Dice, shape: Shape) -> Vec<Event> {
    let Shape { layers, experts, used, tokens } = shape;
    let mut last = vec![Vec::new(); layers];
    let mut taste = vec![0; layers];
    let mut events = Vec::new();
    for token in 0..tokens {
        for layer in 0..layers {
            if dice.below(40) == 0 {
                taste[layer] = dice.below(experts);
            }
            let mut chosen: Vec<usize> = last[layer].iter().copied().filter(|_| dice.below(3) == 0).collect();
            while chosen.len() < used {
                let expert = (dice.below(experts).min(dice.below(experts)) + taste[layer]) % experts;
                if !chosen.contains(&expert) {
                    chosen.push(expert);
                }
            }
            let routed =
                |&expert: &usize| Routed { id: ExpertId { layer: layer as u16, expert: expert as u16 }, weight: 0.0 };
            events.push(Event {
                phase: Phase::Decode,
                first_token: token as u32,
                n_tokens: 1,
                layer: layer as u16,
                routed: chosen.iter().map(routed).collect(),
                lookahead: Vec::new(),
            });
            last[layer] = chosen;
        }
    }
    events
}

pub fn write(path: &Path, header: Header, events: &[Event]) {
    if path.exists() {
        std::fs::remove_file(path).unwrap();
    }
    let mut writer = TraceWriter::create(path, header).unwrap();
    events.iter().for_each(|e| writer.record(e.borrow()));
    writer.flush().unwrap();
}
