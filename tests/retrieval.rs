//! The ring of past tokens against a naive model that keeps everything and compares token by token.

mod common;

use std::collections::HashMap;

use common::{
    dice::Dice,
    routing::{Event, Shape, decoding},
};
use hotset::{retrieval::Retrieval, trace::Phase};

/// All that tokens ever used, and similarities by token.
struct Naive {
    shape: Shape,
    n: usize,
    /// By (token, layer).
    used: HashMap<(usize, usize), Vec<u16>>,
    /// Tokens before the present batch, and in it.
    before: usize,
    batch: usize,
    similar: HashMap<usize, u32>,
    last: Option<usize>,
    /// (token, weight)
    matches: Vec<(usize, f64)>,
}

impl Naive {
    fn new(shape: Shape, n: usize) -> Self {
        Self {
            shape,
            n,
            used: HashMap::new(),
            before: 0,
            batch: 0,
            similar: HashMap::new(),
            last: None,
            matches: Vec::new(),
        }
    }

    fn present(&self) -> usize {
        self.before + self.batch - 1
    }

    fn observe(&mut self, event: &Event) {
        let layer = usize::from(event.layer);
        let rows: Vec<Vec<u16>> = event
            .routed
            .chunks_exact(event.borrow().n_used())
            .map(|row| row.iter().map(|r| r.id.expert).collect())
            .collect();
        let starts = self.last.is_none_or(|last| layer <= last);
        self.last = Some(layer);
        if starts {
            self.before += self.batch;
            self.batch = rows.len();
            let moved = self.similar.drain().map(|(token, s)| (token + 1, s)).collect();
            self.similar = if rows.len() == 1 { moved } else { HashMap::new() };
        }
        let first = self.before + self.batch - rows.len();
        for (i, row) in rows.iter().enumerate() {
            self.used.insert((first + i, layer), row.clone());
        }
        let alone = self.shape.layers == 1;
        if layer % 2 == 1 {
            return;
        }
        let present = self.present();
        let row = &rows[rows.len() - 1];
        let left = match (starts, alone) {
            (true, true) => 0.7,
            (true, false) => 0.8,
            (false, _) => 0.93 * 0.93,
        };
        let left = (left * 65536.0) as u32;
        for token in (present + 1).saturating_sub(self.n)..present {
            let s = self.similar.entry(token).or_default();
            let shared = self.used.get(&(token, layer)).map_or(0, |u| u.iter().filter(|e| row.contains(e)).count());
            *s = ((*s * left) >> 16) + 128 * shared as u32;
        }
        let oldest = (present + 1).saturating_sub(self.n);
        self.similar.retain(|&token, _| token >= oldest && token < present);
        self.find(row.len());
    }

    fn find(&mut self, n_used: usize) {
        let natural = 128.0 * n_used as f64 / if self.shape.layers == 1 { 2.5 } else { 1.7 };
        let most = self.similar.values().copied().max().unwrap_or(0);
        let least = most.saturating_sub((3.5 * natural) as u32).max(1);
        let mut all: Vec<(u32, usize)> =
            self.similar.iter().map(|(&t, &s)| (s, t)).filter(|(s, _)| *s >= least).collect();
        all.sort_by_key(|&(s, t)| std::cmp::Reverse((s, t)));
        all.truncate(12);
        let weight = |s: u32| (-(f64::from(most - s) * 8.0 / natural).floor() / 8.0).exp();
        let sum: f64 = all.iter().map(|&(s, _)| weight(s)).sum();
        self.matches = all.iter().map(|&(s, t)| (t, weight(s) / sum)).collect();
    }

    fn add(&self, to: &mut [f64], token: usize, layer: usize, weight: f64) {
        if let Some(used) = self.used.get(&(token, layer)) {
            used.iter().for_each(|&e| to[usize::from(e)] += weight);
        }
    }

    fn votes(&self, layer: usize) -> Vec<f64> {
        let mut votes = vec![0.0; self.shape.experts];
        let next = usize::from(layer <= self.last.unwrap());
        self.matches.iter().for_each(|&(token, weight)| self.add(&mut votes, token + next, layer, weight));
        votes
    }

    fn followed(&self, kernel: &[f32]) -> Vec<f64> {
        let mut followed = vec![0.0; self.shape.experts];
        for &(token, weight) in &self.matches {
            for (h, k) in (1..).zip(kernel) {
                self.add(&mut followed, token + h, self.last.unwrap(), weight * f64::from(*k));
            }
        }
        followed
    }
}

fn close(found: &[f32], right: &[f64], what: &str) {
    for (expert, (a, b)) in found.iter().zip(right).enumerate() {
        assert!((f64::from(*a) - b).abs() < 1e-5, "{what}, expert {expert}: {a}, not {b}");
    }
}

/// Decoded tokens with a prompt's batches between them, whose last layer sees fewer tokens.
fn events(dice: &mut Dice, shape: Shape) -> Vec<Event> {
    let all = decoding(dice, shape);
    let mut tokens = all.chunks(shape.layers);
    let mut events = Vec::new();
    while tokens.len() > 0 {
        let n = if dice.below(20) == 0 { 1 + dice.below(90) } else { 1 };
        let batch: Vec<_> = tokens.by_ref().take(n).collect();
        for layer in 0..shape.layers {
            let last = layer > 0 && layer + 1 == shape.layers;
            let rows = &batch[if last { batch.len() / 2 } else { 0 }..];
            let routed: Vec<_> = rows.iter().flat_map(|token| token[layer].routed.clone()).collect();
            let phase = if batch.len() > 1 { Phase::Prompt } else { Phase::Decode };
            events.push(Event { phase, n_tokens: rows.len() as u32, routed, ..batch[0][layer].clone() });
        }
    }
    events
}

#[test]
fn matches_votes_and_followers_are_those_of_the_naive_model() {
    let kernel = [0.5, 0.25, 0.125];
    for seed in 0..12 {
        let mut dice = Dice(seed);
        let (layers, experts) = ([1, 2, 5][seed as usize % 3], 6 + dice.below(120));
        let shape = Shape { layers, experts, used: 1 + dice.below(5), tokens: 400 };
        let n = [64, 128][dice.below(2)];
        let (mut naive, mut ring) = (Naive::new(shape, n), Retrieval::with_tokens(layers, experts, n));
        let mut found = vec![0.0; experts];
        let mut most = 0;
        for (i, event) in events(&mut dice, shape).iter().enumerate() {
            naive.observe(event);
            ring.observe(event.borrow());
            let what = format!("seed {seed}, {shape:?}, ring of {n}, event {i}");
            let ages: Vec<usize> = ring.matches().iter().map(|m| m.age).collect();
            let right: Vec<usize> = naive.matches.iter().map(|(token, _)| naive.present() - token).collect();
            assert_eq!(ages, right, "{what}");
            most = most.max(ages.len());
            for layer in 0..layers {
                ring.votes(layer as u16, &mut found);
                close(&found, &naive.votes(layer), &format!("{what}, votes for layer {layer}"));
            }
            ring.followed(&kernel, &mut found);
            close(&found, &naive.followed(&kernel), &format!("{what}, followers"));
        }
        assert_eq!(most, 12, "seed {seed}: as many matches as vote");
    }
}

/// A text that repeats is foretold in all layers, any distance ahead.
#[test]
fn a_repeated_sequence_is_foretold() {
    let (shape, period) = (Shape { layers: 4, experts: 64, used: 4, tokens: 50 }, 50);
    let once = decoding(&mut Dice(3), shape);
    let mut ring = Retrieval::new(shape.layers, shape.experts);
    once.iter().for_each(|event| ring.observe(event.borrow()));
    let mut votes = vec![0.0; shape.experts];
    let (mut named, mut all) = (0, 0);
    for (i, event) in once.iter().enumerate() {
        ring.observe(event.borrow());
        for ahead in 1..=shape.layers {
            let Some(coming) = once.get(i + ahead) else { continue };
            ring.votes(coming.layer, &mut votes);
            let rank = |e: u16| votes.iter().filter(|v| **v > votes[usize::from(e)]).count();
            named += coming.routed.iter().filter(|r| rank(r.id.expert) < shape.used).count();
            all += coming.routed.len();
        }
    }
    assert!(named * 100 > all * 95, "{named} of {all} with a period of {period}");
}

/// A ring that was saved and restored goes on as the first one does after a prompt, which similarities do not outlive.
#[test]
fn what_is_saved_is_restored() {
    for seed in 0..6 {
        let mut dice = Dice(seed);
        let (layers, experts) = ([1, 2, 5][seed as usize % 3], 6 + dice.below(120));
        let tokens = [40, 300][seed as usize % 2];
        let shape = Shape { layers, experts, used: 1 + dice.below(5), tokens };
        let mut first = Retrieval::with_tokens(layers, experts, 128);
        events(&mut dice, shape).iter().for_each(|event| first.observe(event.borrow()));
        let bytes = first.to_bytes();
        assert!(bytes.len() as u64 <= Retrieval::max_saved_bytes(layers, experts));
        let mut second = Retrieval::with_tokens(layers, experts, 128);
        // What it held is forgotten.
        events(&mut dice, shape).iter().for_each(|event| second.observe(event.borrow()));
        second.restore(&bytes).unwrap();
        assert_eq!(second.to_bytes(), bytes, "seed {seed}");
        let mut prompt: Vec<_> = decoding(&mut dice, Shape { tokens: 1, ..shape });
        prompt.iter_mut().for_each(|event| {
            event.routed.extend(event.routed.clone());
            (event.phase, event.n_tokens) = (Phase::Prompt, 2);
        });
        for event in prompt.iter().chain(&decoding(&mut dice, Shape { tokens: 60, ..shape })) {
            first.observe(event.borrow());
            second.observe(event.borrow());
            let found = |ring: &Retrieval| ring.matches().iter().map(|m| (m.age, m.weight)).collect::<Vec<_>>();
            assert_eq!(found(&first), found(&second), "seed {seed}");
        }
        assert!(!first.matches().is_empty());
        // A shorter ring takes the latest.
        let mut short = Retrieval::with_tokens(layers, experts, 64);
        short.restore(&bytes).unwrap();
        let saved = short.to_bytes();
        assert_eq!(saved.len(), 24 + (bytes.len() - 24) * tokens.min(64) / tokens.min(128));
        assert_eq!(saved[20..saved.len() - 4], bytes[bytes.len() - saved.len() + 20..bytes.len() - 4]);
    }
}

/// Bytes that were saved by none, or were damaged since, are refused and change nothing.
#[test]
fn what_is_damaged_is_refused() {
    let shape = Shape { layers: 2, experts: 20, used: 3, tokens: 5 };
    let ring = || {
        let mut ring = Retrieval::new(2, 20);
        decoding(&mut Dice(1), shape).iter().for_each(|event| ring.observe(event.borrow()));
        ring
    };
    let bytes = ring().to_bytes();
    let mut holds = ring();
    for i in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[i] ^= 1 << (i % 8);
        assert!(holds.restore(&flipped).is_err(), "byte {i}");
        assert!(holds.restore(&bytes[..i]).is_err(), "cut at {i}");
    }
    assert!(holds.restore(&[&bytes[..], &[0]].concat()).is_err());
    assert_eq!(holds.to_bytes(), bytes);
    for (layers, experts) in [(2, 21), (3, 20), (1, 20)] {
        assert!(Retrieval::new(layers, experts).restore(&bytes).is_err(), "{layers} layers of {experts}");
    }
    // Sound, but for an expert that there is none of.
    let mut unknown = bytes[..bytes.len() - 4].to_vec();
    unknown[20 + 7] = 0x80;
    unknown.extend(crc32fast::hash(&unknown).to_le_bytes());
    assert_eq!(holds.restore(&unknown), Err("it names an expert that the model does not have"));
}

#[test]
fn rings_are_bounded_and_off_is_nothing() {
    let mib = |layers, experts| Retrieval::bytes(layers, experts) as f64 / f64::from(1 << 20);
    // DeepSeek-V2-Lite, Qwen3-30B, Kimi-Linear, DeepSeek-V3.
    for (layers, experts, n) in [(26, 64, 2048), (48, 128, 2048), (26, 256, 2048), (58, 256, 960), (1, 64, 1024)] {
        assert_eq!(Retrieval::new(layers, experts).n_tokens(), n, "{layers} layers of {experts}");
        assert!(mib(layers, experts) < 9.1, "{layers} layers of {experts}: {} MiB", mib(layers, experts));
    }
    let mut off = Retrieval::off();
    decoding(&mut Dice(1), Shape { layers: 2, experts: 8, used: 2, tokens: 9 })
        .iter()
        .for_each(|e| off.observe(e.borrow()));
    assert!(off.is_off() && off.matches().is_empty());
}
