//! Chooses the next token from the logits. Knows no tokenizer and no model.
//!
//! The steps and their order are llama.cpp's defaults: biases, penalties, top-k, top-p, min-p, temperature, then one draw
//! by a generator of our own, so that a seed and the same logits give the same tokens in every release. A [`Constraint`]
//! takes the tokens that it forbids away before all of them. After [`Sampler::new`] nothing is allocated, but for a constraint.

use std::fmt;

use crate::{Error, Result};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Above 1 flattens the distribution, below 1 sharpens it; 0 always takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens stay; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability stay; 1: all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the most likely one stay; 0: all.
    pub min_p: f32,
    /// Divides the logits of recent tokens where positive, multiplies where negative; 1: no penalty.
    pub repeat_penalty: f32,
    /// Taken off the logits of recent tokens, once however often they came; 0: no penalty.
    pub presence_penalty: f32,
    /// Taken off the logits of recent tokens, once for each time; 0: no penalty.
    pub frequency_penalty: f32,
    /// How many accepted tokens count as recent; 0: none.
    pub repeat_last_n: usize,
    /// Same seed, same logits: same tokens.
    pub seed: u64,
}

/// Longest memory of recent tokens: a limit on what a request can make us allocate.
const MAX_REPEAT_LAST_N: usize = 1 << 20;

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplerConfig {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every option.
    ///
    /// # Errors
    /// A sentence with the option, its range and the value.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, what: &str, range: &str, got: f32| {
            if ok { Ok(()) } else { Err(Error::invalid(format!("{what} must be {range}, not {got}"))) }
        };
        check((0.0..=100.0).contains(&self.temperature), "temperature", "from 0 to 100", self.temperature)?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", "above 0 and at most 1", self.top_p)?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", "from 0 to 1", self.min_p)?;
        let penalty = self.repeat_penalty;
        check(penalty > 0.0 && penalty <= 100.0, "repeat_penalty", "above 0 and at most 100", penalty)?;
        for (what, got) in [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            check((-2.0..=2.0).contains(&got), what, "from -2 to 2", got)?;
        }
        if self.repeat_last_n > MAX_REPEAT_LAST_N {
            let got = self.repeat_last_n;
            return Err(Error::invalid(format!("repeat_last_n must be from 0 to {MAX_REPEAT_LAST_N}, not {got}")));
        }
        Ok(())
    }

    /// Whether recent tokens count.
    fn penalises(&self) -> bool {
        let any = self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        any && self.repeat_last_n > 0
    }
}

/// Which tokens may come next, by the tokens that came: a grammar, say.
pub trait Constraint: Send + fmt::Debug {
    /// The tokens that may come next, at least one: bit `id % 32` of word `id / 32`. What has no bit is forbidden.
    ///
    /// # Errors
    /// Where there is none, or finding out takes more than the constraint's limits.
    fn allowed(&mut self) -> Result<&[u32]>;
    /// `token`, which was allowed, has come.
    ///
    /// # Errors
    /// As [`Constraint::allowed`].
    fn push(&mut self, token: u32) -> Result<()>;
    /// The same, with what has come so far; the two go on by themselves.
    fn boxed_clone(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}

/// One token that may still be drawn.
#[derive(Clone, Copy)]
struct Candidate {
    logit: f32,
    id: u32,
}

/// A sampler and its memory of recent tokens.
pub struct Sampler {
    config: SamplerConfig,
    rng: Xoshiro256,
    n_vocab: usize,
    /// The last accepted tokens; `next` is the oldest once it is full.
    recent: Vec<u32>, // at most repeat_last_n
    next: usize,
    counts: Vec<u32>,           // n_vocab, or empty without a penalty: occurrences in `recent`
    bias: Vec<(u32, f32)>,      // what is added to some logits, by id
    changed: Vec<f32>,          // n_vocab, or empty without penalty, bias and constraint
    candidates: Vec<Candidate>, // at most n_vocab
    weights: Vec<f32>,          // one for each candidate
    constraint: Option<Box<dyn Constraint>>,
}

impl Sampler {
    /// A sampler over logits of `n_vocab` tokens.
    ///
    /// # Errors
    /// As [`SamplerConfig::validate`], and for an empty vocabulary or one that ids cannot number.
    pub fn new(config: SamplerConfig, n_vocab: usize) -> Result<Self> {
        Self::with_bias(config, n_vocab, &[])
    }

    /// Bytes that a sampler takes at most, but for its recent tokens and biases.
    pub fn bytes(n_vocab: usize) -> u64 {
        let each = size_of::<u32>() + size_of::<f32>() + size_of::<Candidate>() + size_of::<f32>();
        (each as u64).saturating_mul(n_vocab as u64)
    }

    /// One that adds a number to the logits of some tokens before all else; -∞ forbids a token. Of two for a token the first counts.
    ///
    /// # Errors
    /// As [`Sampler::new`]; for a bias of a token that does not exist, or that is NaN or +∞.
    pub fn with_bias(config: SamplerConfig, n_vocab: usize, bias: &[(u32, f32)]) -> Result<Self> {
        config.validate()?;
        if let Some((token, bias)) =
            bias.iter().find(|(id, b)| *id as usize >= n_vocab || b.is_nan() || *b == f32::INFINITY)
        {
            return Err(Error::invalid(format!(
                "logit_bias must be of tokens below {n_vocab} and finite or -infinite, not {bias} for {token}"
            )));
        }
        if n_vocab == 0 || n_vocab >= u32::MAX as usize {
            return Err(Error::invalid(format!("a sampler needs a vocabulary of 1 to {} tokens", u32::MAX - 1)));
        }
        let mut bias = bias.to_vec();
        bias.sort_by_key(|(id, _)| *id);
        bias.dedup_by_key(|(id, _)| *id);
        let penalises = config.penalises();
        let draws = config.temperature > 0.0;
        Ok(Self {
            rng: Xoshiro256::new(config.seed),
            n_vocab,
            recent: Vec::with_capacity(if penalises { config.repeat_last_n } else { 0 }),
            next: 0,
            counts: vec![0; if penalises { n_vocab } else { 0 }],
            changed: vec![0.0; if penalises || !bias.is_empty() { n_vocab } else { 0 }],
            bias,
            candidates: Vec::with_capacity(if draws { n_vocab } else { 0 }),
            weights: Vec::with_capacity(if draws { n_vocab } else { 0 }),
            constraint: None,
            config,
        })
    }

    /// From now on only tokens that the constraint allows are [chosen](Self::choose). `None`: all.
    pub fn constrain(&mut self, constraint: Option<Box<dyn Constraint>>) {
        self.constraint = constraint;
    }

    /// The options.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Counts `token` (of the prompt, or just sampled) as recent. Ids outside the vocabulary are ignored.
    pub fn accept(&mut self, token: u32) {
        if self.counts.is_empty() || token as usize >= self.n_vocab {
            return;
        }
        self.counts[token as usize] += 1;
        if self.recent.len() < self.config.repeat_last_n {
            self.recent.push(token);
            return;
        }
        let oldest = std::mem::replace(&mut self.recent[self.next], token);
        self.counts[oldest as usize] -= 1;
        self.next = (self.next + 1) % self.recent.len();
    }

    /// Forgets recent tokens and the constraint, and starts the seed's sequence again.
    pub fn reset(&mut self) {
        self.constraint = None;
        self.recent.clear();
        self.next = 0;
        self.counts.fill(0);
        self.rng = Xoshiro256::new(self.config.seed);
    }

    /// The next token that the constraint allows, which is told of it; without a constraint as [`Sampler::sample`]. The caller
    /// [`accept`](Self::accept)s it if it is used.
    ///
    /// # Errors
    /// What the constraint says.
    ///
    /// # Panics
    /// As [`Sampler::sample`].
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        let Some(mut constraint) = self.constraint.take() else { return Ok(self.sample(logits)) };
        let chosen = self.constrained(constraint.as_mut(), logits);
        self.constraint = Some(constraint);
        chosen
    }

    fn constrained(&mut self, constraint: &mut dyn Constraint, logits: &[f32]) -> Result<u32> {
        let allowed = constraint.allowed()?;
        let mut token = self.sample_of(logits, Some(allowed));
        if !allows(allowed, token) {
            // The biases forbid all that is allowed, and the constraint is stronger.
            let first = (0..self.n_vocab as u32).find(|&id| allows(allowed, id));
            token = first.ok_or_else(|| Error::invalid("the grammar allows no token of the model"))?;
        }
        constraint.push(token)?;
        Ok(token)
    }

    /// The next token. The caller [`accept`](Self::accept)s it if it is used. A constraint does not count.
    ///
    /// NaN counts as -∞. Where nothing is above -∞, the lowest id is the answer.
    ///
    /// # Panics
    /// If there are not `n_vocab` logits: the model and the sampler would disagree about the vocabulary.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        self.sample_of(logits, None)
    }

    fn sample_of(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> u32 {
        assert_eq!(logits.len(), self.n_vocab, "a sampler is built for its model's vocabulary");
        // Out of `self` while it is read, so that candidates may be written.
        let changed = self.change(logits, allowed);
        let logits = changed.as_deref().unwrap_or(logits);
        let token = if self.config.temperature == 0.0 || self.config.top_k == 1 {
            most_likely(logits)
        } else {
            self.drawn(logits)
        };
        self.changed = changed.unwrap_or_default();
        token
    }

    /// The logits of what is allowed, with biases and penalties; `None` where they are as they were.
    fn change(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Option<Vec<f32>> {
        if self.changed.is_empty() && allowed.is_none() {
            return None;
        }
        let mut all = std::mem::take(&mut self.changed);
        all.clear();
        all.extend_from_slice(logits);
        for &(token, bias) in &self.bias {
            all[token as usize] += bias;
        }
        let SamplerConfig { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.config;
        for &token in &self.recent {
            // From what it was each time, so that a token that came twice is not penalised twice.
            let logit = logits[token as usize] + self.bias_of(token);
            let repeated = if logit > 0.0 { logit / repeat_penalty } else { logit * repeat_penalty };
            let count = self.counts[token as usize] as f32;
            all[token as usize] = repeated - (count * frequency_penalty + presence_penalty);
        }
        if let Some(allowed) = allowed {
            for (id, logit) in (0..).zip(&mut all) {
                if !allows(allowed, id) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Some(all)
    }

    fn bias_of(&self, token: u32) -> f32 {
        self.bias.binary_search_by_key(&token, |(id, _)| *id).map_or(0.0, |at| self.bias[at].1)
    }

    /// One draw from what the steps leave.
    fn drawn(&mut self, logits: &[f32]) -> u32 {
        match self.config.top_k {
            0 => self.gather_all(logits),
            k => self.gather_top(k, logits),
        }
        if self.candidates.is_empty() {
            return 0;
        }
        let best = self.bring_best_first();
        self.keep_top_p(best);
        self.keep_min_p(best);
        self.draw(best)
    }

    /// Every token above -∞, in the order of ids.
    fn gather_all(&mut self, logits: &[f32]) {
        self.candidates.clear();
        let all = (0..).zip(logits).map(|(id, &logit)| Candidate { logit, id });
        self.candidates.extend(all.filter(|c| c.logit > f32::NEG_INFINITY));
    }

    /// The `k` best tokens above -∞, best first.
    ///
    /// One pass: a token has to beat the worst of the best `k` so far, which nearly no block has one for. Of
    /// 152,000 tokens that takes 45 µs, where selecting among all takes 700.
    fn gather_top(&mut self, k: usize, logits: &[f32]) {
        self.candidates.clear();
        let mut floor = f32::NEG_INFINITY;
        for (block, first) in logits.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
            if !any_above(block, floor) {
                continue;
            }
            let all = (first..).zip(block).map(|(id, &logit)| Candidate { logit, id });
            // An equal one comes after the `k` that set the floor.
            self.candidates.extend(all.filter(|c| c.logit > floor));
            if self.candidates.len() >= k.saturating_add(4 * BLOCK) {
                self.candidates.select_nth_unstable_by(k - 1, by_rank);
                self.candidates.truncate(k);
                floor = self.candidates[k - 1].logit;
            }
        }
        self.candidates.sort_unstable_by(by_rank);
        self.candidates.truncate(k);
    }

    /// Swaps the best candidate to the front; its logit.
    fn bring_best_first(&mut self) -> f32 {
        let ranks = |&a: &usize, &b: &usize| by_rank(&self.candidates[a], &self.candidates[b]);
        let best = (0..self.candidates.len()).min_by(ranks).expect("the vocabulary is not empty");
        self.candidates.swap(0, best);
        self.candidates[0].logit
    }

    /// Leaves the shortest run of the best whose probabilities reach `top_p`.
    ///
    /// Sorts only as far as it must: with no top-k before it, a full sort of 150,000 candidates takes 15 ms.
    fn keep_top_p(&mut self, best: f32) {
        if self.config.top_p >= 1.0 {
            return;
        }
        let total: f64 = self.candidates.iter().map(|c| f64::from(weight(c.logit, best, 1.0))).sum();
        let enough = f64::from(self.config.top_p) * total;
        let (mut reached, mut sorted, mut step) = (0.0, 0, 256);
        while sorted < self.candidates.len() {
            let rest = &mut self.candidates[sorted..];
            let n = rest.len().min(step);
            if n < rest.len() {
                rest.select_nth_unstable_by(n - 1, by_rank);
            }
            rest[..n].sort_unstable_by(by_rank);
            for (i, candidate) in rest[..n].iter().enumerate() {
                reached += f64::from(weight(candidate.logit, best, 1.0));
                if reached >= enough {
                    self.candidates.truncate(sorted + i + 1);
                    return;
                }
            }
            sorted += n;
            step *= 4;
        }
    }

    /// Leaves the candidates whose probability is at least `min_p` times that of the best.
    fn keep_min_p(&mut self, best: f32) {
        let min_p = self.config.min_p;
        if min_p > 0.0 {
            self.candidates.retain(|c| weight(c.logit, best, 1.0) >= min_p);
        }
    }

    /// One candidate, by its weight at the temperature.
    fn draw(&mut self, best: f32) -> u32 {
        self.weights.clear();
        self.weights.extend(self.candidates.iter().map(|c| weight(c.logit, best, self.config.temperature)));
        let total: f64 = self.weights.iter().map(|&w| f64::from(w)).sum();
        let mut left = self.rng.unit() * total;
        for (candidate, &weight) in self.candidates.iter().zip(&self.weights) {
            left -= f64::from(weight);
            if left < 0.0 {
                return candidate.id;
            }
        }
        self.candidates[0].id // rounding left a crumb
    }
}

/// Whether a constraint's words have the bit of this token.
fn allows(words: &[u32], token: u32) -> bool {
    words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

/// How likely a token is, as a logarithm, by the logits alone, without any option; and the `n` most likely tokens, best first.
pub fn log_probs(logits: &[f32], token: u32, n: usize) -> (f32, Vec<(u32, f32)>) {
    let best = logits.iter().copied().filter(|x| !x.is_nan()).fold(f32::NEG_INFINITY, f32::max);
    let total: f64 =
        logits.iter().map(|&x| f64::from(weight(if x.is_nan() { f32::NEG_INFINITY } else { x }, best, 1.0))).sum();
    let of =
        |logit: f32| if logit == best { -total.ln() as f32 } else { (f64::from(logit - best) - total.ln()) as f32 };
    let mut top: Vec<Candidate> = Vec::with_capacity(n + 1);
    for (id, &logit) in (0..).zip(logits) {
        let enters = n > 0 && !logit.is_nan() && (top.len() < n || logit > top[n - 1].logit);
        if enters {
            let new = Candidate { logit, id };
            top.insert(top.partition_point(|c| by_rank(c, &new).is_lt()), new);
            top.truncate(n);
        }
    }
    (of(logits[token as usize]), top.into_iter().map(|c| (c.id, of(c.logit))).collect())
}

/// Logits that are compared together.
const BLOCK: usize = 64;

/// True if anything in the block is larger. Not by its maximum, which the compiler does not make lanes of.
fn any_above(block: &[f32], floor: f32) -> bool {
    block.iter().fold(false, |any, &x| any | (x > floor))
}

/// The largest logit; the lowest id among equals, and 0 where nothing is above -∞.
fn most_likely(logits: &[f32]) -> u32 {
    let (mut best, mut at) = (f32::NEG_INFINITY, 0);
    for (block, first) in logits.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        if any_above(block, best) {
            for (id, &logit) in (first..).zip(block) {
                if logit > best {
                    (best, at) = (logit, id);
                }
            }
        }
    }
    at
}

/// A probability over that of the best, at this temperature. Equals count alike, also where both are +∞.
fn weight(logit: f32, best: f32, temperature: f32) -> f32 {
    if logit == best { 1.0 } else { ((logit - best) / temperature).exp() }
}

/// Best logit first, then lowest id. Logits are never NaN here.
fn by_rank(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.partial_cmp(&a.logit).expect("NaN became -∞").then(a.id.cmp(&b.id))
}

/// xoshiro256++ by Blackman and Vigna (2019), seeded by splitmix64 as they recommend.
struct Xoshiro256([u64; 4]);

impl Xoshiro256 {
    fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in [0, 1), with all 53 bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
