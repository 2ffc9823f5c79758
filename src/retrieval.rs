//! Finds the past tokens that resemble the present one, by the experts that they used, and tells what those used next.
//!
//! Routing repeats where text does: a token that chose the same experts as this one so far will mostly be followed by the
//! same experts, in the layers to come and in the tokens to come. A ring holds the experts of the last [`MAX_TOKENS`]
//! tokens. The similarity of a past token is the number of experts that it shares with the present one, summed over the
//! layers so far (every second one, fading from layer to layer) and, with `CARRY`, over the tokens before both. The
//! [`MATCHES`] most similar ones vote, the more similar the heavier.
//!
//! That is nearest-neighbour prediction in the space of routing decisions; nothing is trained. `docs/policies.md` says what
//! each constant is worth. Policies ask what followed within some tokens ([`Retrieval::followed`]), prefetchers what a layer
//! will want when it comes next ([`Retrieval::votes`]).
//!
//! Similarities are whole numbers and all floating-point sums have one order, so a replay finds what the live run found.
//! Everything is allocated at construction. A past token's similarity lies at its own position of the ring, so that adding
//! up shared experts is plain arithmetic on whole slices, which compilers vectorise (SSE2, which every x86-64 CPU has, is
//! enough: compiled for AVX2 the same loops were no faster); from token to token similarities move on by one position, since
//! what resembled the token before precedes what may resemble this one. A layer adds its own share only, and only where the
//! ring holds tokens.
//!
//! Must not know: bytes of experts, files, clocks, threads, who is in memory.

mod saved;

use crate::trace::{LayerEvent, Routed};

/// Tokens in the ring at most. Mean share of the gap that `echo` wins on seven traces with 256, 1024, 2048 and 4096 tokens:
/// 34.2, 34.7, 34.9, 35.0 %.
pub const MAX_TOKENS: usize = 2048;

/// The same for a model with a single MoE layer, whose similarities tell less.
const MAX_TOKENS_OF_ONE_LAYER: usize = 1024;

/// Bytes of a ring at most, more or less; models with many experts get a shorter one.
const MAX_BYTES: usize = 9 << 20;

/// Past tokens that vote at most.
pub const MATCHES: usize = 12;

/// Of so many layers one compares: half of the work for .1 points of share.
const EVERY: usize = 2;

/// What is left of the similarity so far at the next layer that compares, in 2^-16.
const DECAY: u16 = (0.93 * 0.93 * 65536.0) as u16;

/// What is left of it at the next token's first layer, in 2^-16.
const CARRY: u16 = (0.8 * 65536.0) as u16;

/// The same for a model with a single MoE layer.
const CARRY_OF_ONE_LAYER: u16 = (0.7 * 65536.0) as u16;

/// log2 of the similarity of one shared expert.
const SHARED_BITS: u32 = 7;

/// Experts that a token may use without the similarity of one losing bits. Sums then stay below 2^15:
/// 32 · 2^7 / (1 - .93²) = 30,320.
const MAX_USED: usize = 32;

/// Matches are at most so many times e less heavy than the best.
const REACH: f32 = 3.5;

/// Steps of weights for each factor of e.
const STEPS: f32 = 8.0;

/// Steps from the best to the least match.
const STEPS_IN_REACH: usize = (REACH * STEPS) as usize;

/// e^(-1/8).
const STEP: f32 = 0.882_496_9;

/// Positions that are added up together.
const BLOCK: usize = 64;

/// A past token that resembles the present one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// Its position in the ring.
    position: usize,
    /// Tokens since then, 1 or more.
    pub age: usize,
    /// Its share of all votes: those of all matches add up to 1.
    pub weight: f32,
}

/// See the module.
pub struct Retrieval {
    n_layer: usize,
    n_expert: usize,
    /// Tokens in the ring, a multiple of [`BLOCK`]; 0: nothing is kept.
    n: usize,
    /// Of so many layers one compares.
    every: usize,
    /// Words of a set of experts.
    words: usize,
    /// 1 where the token at a position used the expert, else 0. (layers that compare, n_expert, n)
    uses: Vec<u8>,
    /// The experts that the token at a position used, a bit each. (n_layer, n, words)
    sets: Vec<u64>,
    /// Of the token at a position to the present one, whose own stays 0. (n)
    similar: Vec<u16>,
    /// The greatest similarity of each block. (n / [`BLOCK`])
    greatest: Vec<u16>,
    /// The most similar first, of equal ones the youngest. (up to [`MATCHES`])
    matches: Vec<Match>,
    /// Similarity and position of the best so far. (up to [`MATCHES`])
    best: Vec<(u16, usize)>,
    /// Weights by eighths of a factor of e.
    weights: [f32; STEPS_IN_REACH + 1],
    /// Of the present token: a batch's last one.
    position: usize,
    /// Positions that hold a token, from the first one on.
    filled: usize,
    /// Tokens that run together.
    batch: usize,
    /// The layer that was observed last.
    layer: Option<u16>,
}

impl Retrieval {
    /// For a model of `n_layer` MoE layers of `n_expert` experts.
    pub fn new(n_layer: usize, n_expert: usize) -> Self {
        Self::with_tokens(n_layer, n_expert, ring_tokens(n_layer, n_expert))
    }

    /// Remembers nothing, finds nothing and takes no memory: for those who want no retrieval.
    pub fn off() -> Self {
        Self::with_tokens(0, 0, 0)
    }

    /// [`Retrieval::new`] with a ring of `n` tokens, rounded up to whole blocks of 64.
    pub fn with_tokens(n_layer: usize, n_expert: usize, n: usize) -> Self {
        let (n, every, words) = (n.next_multiple_of(BLOCK), every(n_layer), n_expert.div_ceil(64));
        let mut weights = [1.0; STEPS_IN_REACH + 1];
        (0..STEPS_IN_REACH).for_each(|i| weights[i + 1] = weights[i] * STEP);
        Self {
            n_layer,
            n_expert,
            n,
            every,
            words,
            uses: vec![0; n_layer.div_ceil(every) * n_expert * n],
            sets: vec![0; n_layer * n * words],
            similar: vec![0; n],
            greatest: vec![0; n / BLOCK],
            matches: Vec::with_capacity(MATCHES),
            best: Vec::with_capacity(MATCHES + 1),
            weights,
            position: n.saturating_sub(1),
            filled: 0,
            batch: 0,
            layer: None,
        }
    }

    /// What [`Retrieval::new`] allocates, bytes.
    pub fn bytes(n_layer: usize, n_expert: usize) -> u64 {
        let n = ring_tokens(n_layer, n_expert);
        (n * token_bytes(n_layer, n_expert) + n * size_of::<u16>() + n / BLOCK * size_of::<u16>()) as u64
    }

    /// True if nothing is kept.
    pub fn is_off(&self) -> bool {
        self.n == 0
    }

    /// MoE layers; 0 if nothing is kept.
    pub fn n_layer(&self) -> usize {
        self.n_layer
    }

    /// Tokens that the ring holds at most.
    pub fn n_tokens(&self) -> usize {
        self.n
    }

    /// Takes note of a layer's choices and finds what resembles them: of a batch, what resembles its last token. Layers are
    /// observed in order; one that is not behind the last one starts the next token or batch. A layer may see fewer tokens
    /// of a batch than the first one did: the last ones.
    ///
    /// # Panics
    /// If the event is of no layer or expert of the model's.
    pub fn observe(&mut self, event: LayerEvent<'_>) {
        let n_used = event.n_used();
        if self.n == 0 || n_used == 0 {
            return;
        }
        let starts = self.layer.is_none_or(|last| event.layer <= last);
        let rows = event.routed.len() / n_used;
        self.layer = Some(event.layer);
        if starts {
            self.begin(rows);
        }
        let layer = usize::from(event.layer);
        // What the layer does not see of a batch, it has not used; the ring holds what it used long ago.
        for back in rows..self.batch.min(self.n) {
            self.forget(layer, self.before(back));
        }
        let kept = rows.min(self.n);
        for (back, row) in (0..kept).rev().zip(event.routed.chunks_exact(n_used).skip(rows - kept)) {
            let position = self.before(back);
            self.forget(layer, position);
            if back == 0 && layer.is_multiple_of(self.every) {
                self.compare(layer, row, starts);
                self.find(n_used);
            }
            self.keep(layer, position, row);
        }
    }

    /// The tokens that resemble the present one most, the best first; at most [`MATCHES`].
    pub fn matches(&self) -> &[Match] {
        &self.matches
    }

    /// The layer that was observed last.
    pub fn layer(&self) -> Option<u16> {
        self.layer
    }

    /// Sets `votes` to the share of the matches' weight that used each expert of `layer` when it came next: in the same
    /// token, if `layer` is yet to come for the present one, else in the token after that. All are 0 without matches. A share is
    /// about the probability that the layer will want the expert. (n_expert)
    ///
    /// # Panics
    /// If there is no such layer, or `votes` is shorter than the experts of a layer.
    pub fn votes(&self, layer: u16, votes: &mut [f32]) {
        votes.fill(0.0);
        let same_token = self.layer.is_some_and(|now| layer > now);
        for m in &self.matches {
            match same_token {
                // Of the present batch no token has come that far.
                true if m.age < self.batch => {}
                true => self.add(layer, m.position, m.weight, votes),
                false => self.add(layer, m.position + 1, m.weight, votes),
            }
        }
    }

    /// Sets `followed` to what the matched tokens' successors used in the layer that was observed last: each match adds its
    /// weight times `kernel[h - 1]` for each expert that the h-th token after it used, as far as that token has come. (n_expert)
    ///
    /// # Panics
    /// If `followed` is shorter than the experts of a layer.
    pub fn followed(&self, kernel: &[f32], followed: &mut [f32]) {
        followed.fill(0.0);
        let Some(layer) = self.layer else { return };
        for m in &self.matches {
            for (h, k) in (1..=m.age).zip(kernel) {
                self.add(layer, m.position + h, m.weight * k, followed);
            }
        }
    }

    /// Makes room for the next token, or the next `rows` of them.
    fn begin(&mut self, rows: usize) {
        self.filled = self.n.min(self.filled + rows);
        if rows == 1 {
            let held = self.blocks() * BLOCK;
            self.similar[..held].rotate_right(1);
        } else {
            // Nothing is known of the token before the last.
            self.similar.fill(0);
        }
        self.batch = rows;
        self.position = (self.position + rows) % self.n;
    }

    /// Blocks that hold tokens.
    fn blocks(&self) -> usize {
        self.filled.div_ceil(BLOCK)
    }

    /// The position of the token so many before the present one, at most all of the ring.
    fn before(&self, back: usize) -> usize {
        if back > self.position { self.position + self.n - back } else { self.position - back }
    }

    /// Adds `weight` for each expert that the token at a position used in a layer.
    fn add(&self, layer: u16, position: usize, weight: f32, to: &mut [f32]) {
        let position = if position >= self.n { position - self.n } else { position };
        let first = (usize::from(layer) * self.n + position) * self.words;
        for (&word, to) in self.sets[first..first + self.words].iter().zip(to.chunks_mut(64)) {
            let mut left = word;
            while left != 0 {
                to[left.trailing_zeros() as usize] += weight;
                left &= left - 1;
            }
        }
    }

    /// Takes what a token of long ago did at a position.
    fn forget(&mut self, layer: usize, position: usize) {
        let first = (layer * self.n + position) * self.words;
        for i in 0..self.words {
            let word = std::mem::take(&mut self.sets[first + i]);
            if layer.is_multiple_of(self.every) {
                for e in experts(word) {
                    let at = self.place(layer, i * 64 + e) + position;
                    self.uses[at] = 0;
                }
            }
        }
    }

    fn keep(&mut self, layer: usize, position: usize, row: &[Routed]) {
        let first = (layer * self.n + position) * self.words;
        for r in row {
            let expert = usize::from(r.id.expert);
            self.sets[first + expert / 64] |= 1 << (expert % 64);
            if layer.is_multiple_of(self.every) {
                let at = self.place(layer, expert) + position;
                self.uses[at] = 1;
            }
        }
    }

    /// Where an expert's row of [`Retrieval::uses`] begins, in a layer that compares.
    fn place(&self, layer: usize, expert: usize) -> usize {
        (layer / self.every * self.n_expert + expert) * self.n
    }

    /// Lets similarities fade and adds the experts that each token shares with `row`.
    fn compare(&mut self, layer: usize, row: &[Routed], starts: bool) {
        let left = match starts {
            true if self.n_layer == 1 => CARRY_OF_ONE_LAYER,
            true => CARRY,
            false => DECAY,
        };
        let (held, first) = (self.blocks(), self.place(layer, 0));
        let bits = shared_bits(row.len());
        let (similar, _) = self.similar.as_chunks_mut::<BLOCK>();
        for (i, (similar, greatest)) in similar[..held].iter_mut().zip(&mut self.greatest).enumerate() {
            let mut shared = [0u8; BLOCK];
            for r in row {
                let at = first + usize::from(r.id.expert) * self.n + i * BLOCK;
                let uses = self.uses[at..].first_chunk::<BLOCK>().expect("rows are whole blocks");
                shared.iter_mut().zip(uses).for_each(|(s, u)| *s = s.wrapping_add(*u));
            }
            *greatest = add_shared(similar, &shared, left, bits);
        }
    }

    /// Finds the matches.
    fn find(&mut self, n_used: usize) {
        self.matches.clear();
        self.best.clear();
        let greatest = &self.greatest[..self.blocks()];
        let most = greatest.iter().copied().max().unwrap_or(0);
        let natural = natural(n_used, self.n_layer, self.every);
        let mut least = most.saturating_sub((REACH * natural) as u16).max(1);
        for span in youngest_first(self.position, greatest.len()) {
            if greatest[span.start / BLOCK] < least {
                continue;
            }
            for (i, &s) in self.similar[span.clone()].iter().enumerate().rev() {
                if s < least {
                    continue;
                }
                let position = span.start + i;
                let at = self.best.partition_point(|&(other, _)| other >= s);
                self.best.insert(at, (s, position));
                self.best.truncate(MATCHES);
                if self.best.len() == MATCHES {
                    least = self.best[MATCHES - 1].0 + 1;
                }
            }
        }
        let step = |s: u16| (f32::from(most - s) * STEPS / natural) as usize;
        let weights =
            self.best.iter().map(|&(s, position)| (position, self.weights[step(s).min(self.weights.len() - 1)]));
        let sum: f32 = weights.clone().map(|(_, weight)| weight).sum();
        let now = self.position;
        let age = |position| if position > now { now + self.n - position } else { now - position };
        self.matches.extend(weights.map(|(position, weight)| Match {
            position,
            age: age(position),
            weight: weight / sum,
        }));
    }
}

/// Of so many layers one compares.
fn every(n_layer: usize) -> usize {
    if n_layer > 1 { EVERY } else { 1 }
}

/// Bytes that the ring takes for each token, of all layers.
fn token_bytes(n_layer: usize, n_expert: usize) -> usize {
    n_layer.div_ceil(every(n_layer)) * n_expert + n_layer * n_expert.div_ceil(64) * size_of::<u64>()
}

/// Tokens of such a model's ring: whole blocks, one at least.
fn ring_tokens(n_layer: usize, n_expert: usize) -> usize {
    let most = if n_layer > 1 { MAX_TOKENS } else { MAX_TOKENS_OF_ONE_LAYER };
    let fit = MAX_BYTES / token_bytes(n_layer, n_expert).max(1);
    (fit.min(most) / BLOCK).max(1) * BLOCK
}

/// log2 of the similarity of one shared expert, where a token uses so many.
fn shared_bits(n_used: usize) -> u32 {
    SHARED_BITS.saturating_sub(n_used.div_ceil(MAX_USED).next_power_of_two().ilog2())
}

/// Similarity that makes a match e times as heavy.
fn natural(n_used: usize, n_layer: usize, every: usize) -> f32 {
    let all = (n_used << shared_bits(n_used)) as f32;
    if n_layer == 1 { all / 2.5 } else { all / (0.85 * every as f32) }
}

/// One block's similarities after fading, with the shared experts on top; the greatest of them.
fn add_shared(similar: &mut [u16; BLOCK], shared: &[u8; BLOCK], left: u16, bits: u32) -> u16 {
    let mut greatest = 0i16;
    for (s, &n) in similar.iter_mut().zip(shared) {
        *s = ((u32::from(*s) * u32::from(left)) >> 16) as u16 + (u16::from(n) << bits);
        // Signed, since baseline x86-64 has no unsigned maximum; values are below 2^15.
        greatest = greatest.max(*s as i16);
    }
    greatest as u16
}

/// The positions of a ring's first `blocks` blocks but for the present token's, in spans within blocks, from the youngest
/// token to the oldest when each span is walked backwards.
fn youngest_first(present: usize, blocks: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let own = present / BLOCK;
    let younger = (0..=own).rev().map(move |b| b * BLOCK..present.min((b + 1) * BLOCK));
    let older = (own..blocks).rev().map(move |b| (present + 1).max(b * BLOCK)..(b + 1) * BLOCK);
    younger.chain(older).filter(|span| !span.is_empty())
}

/// The set bits of a word, ascending.
fn experts(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}
