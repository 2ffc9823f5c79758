//! One text of a scheduler: where it stands, what it cost, whom to tell.

use super::kept::{Placed, Stop};
use crate::{
    Error, Result,
    backend::Backend,
    engine::{Engine, Timing},
    expert::CacheStats,
    generate::{Answer, Finish, Rules},
    model::Span,
    sampler::{Constraint, Sampler, SamplerConfig},
    tokenizer::Tokenizer,
    trace::Phase,
};

/// What a text is to be.
#[derive(Clone, Debug)]
pub struct Request {
    /// All of it.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplerConfig,
    /// What is added to the logits of some tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Which tokens may come, if not all. The text ends where it allows nothing but tokens that end a text.
    pub constraint: Option<Box<dyn Constraint>>,
    /// When the text ends.
    pub rules: Rules,
}

/// What comes of a text.
pub enum Event<'a> {
    /// It has a sequence.
    Placed {
        /// Tokens of the prompt that were computed before.
        reused: usize,
        /// Why not more of them, where a kept sequence had more in common with the prompt or none had anything.
        why: Option<&'a str>,
    },
    /// So many tokens of the prompt are through. Also comes while the text waits for another with the same beginning.
    Prompt {
        /// Tokens that are through.
        done: usize,
    },
    /// A token was chosen. Not called for a token that ends the text.
    Token {
        /// Its id.
        token: u32,
        /// The text that is certain now. Empty within a character, and where a stop string may have begun.
        text: &'a str,
        /// What the model gave, before any sampling option. (n_vocab)
        logits: &'a [f32],
    },
    /// The text that was held back when the end came.
    Rest(&'a str),
    /// There is no more.
    End(Result<Outcome>),
}

/// What is told of each [`Event`]; it answers whether to go on. What it answers to the last two does not count.
pub type OnEvent = dyn FnMut(Event<'_>) -> bool + Send;

/// How a text ended, and what it took.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Why.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Those that were computed before.
    pub reused: usize,
    /// Tokens of the text, without one that ends it.
    pub generated: usize,
    /// What it took.
    pub cost: Cost,
}

/// What an engine has spent, or one text of it.
///
/// Times are those of the steps that the text took part in. Of experts and bytes in a step a text counts its share by rows, so
/// that the sum over all texts is what was spent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Tokens and time.
    pub timing: Timing,
    /// Wanted experts that were in memory.
    pub hit: f64,
    /// Those that were being read already.
    pub late: f64,
    /// Those that had to be read.
    pub miss: f64,
    /// Bytes of experts that were read.
    pub bytes_read: f64,
    /// Nanoseconds in which the arithmetic waited for reads.
    pub stall_ns: f64,
}

impl Cost {
    pub(super) fn of<B: Backend>(engine: &Engine<B>) -> Self {
        let stats: &CacheStats = engine.stats();
        let total = stats.total();
        Self {
            timing: engine.timing(),
            hit: total.hit as f64,
            late: total.late as f64,
            miss: total.miss as f64,
            bytes_read: stats.bytes_read() as f64,
            stall_ns: total.stall_ns as f64,
        }
    }

    pub(super) fn since(&self, before: &Cost) -> Cost {
        let (t, b) = (&self.timing, &before.timing);
        let timing = Timing {
            prompt_tokens: t.prompt_tokens - b.prompt_tokens,
            prompt_ns: t.prompt_ns - b.prompt_ns,
            decode_tokens: t.decode_tokens - b.decode_tokens,
            decode_ns: t.decode_ns - b.decode_ns,
        };
        Cost {
            timing,
            hit: self.hit - before.hit,
            late: self.late - before.late,
            miss: self.miss - before.miss,
            bytes_read: self.bytes_read - before.bytes_read,
            stall_ns: self.stall_ns - before.stall_ns,
        }
    }

    /// Nanoseconds of both phases.
    pub(super) fn ns(&self) -> u64 {
        self.timing.prompt_ns + self.timing.decode_ns
    }

    fn add(&mut self, step: &Cost, span: &Span, rows: usize) {
        let n = span.rows.len();
        match span.phase {
            Phase::Prompt => {
                self.timing.prompt_tokens += n as u64;
                self.timing.prompt_ns += step.ns();
            }
            Phase::Decode => {
                self.timing.decode_tokens += n as u64;
                self.timing.decode_ns += step.ns();
            }
        }
        let share = n as f64 / rows as f64;
        self.hit += share * step.hit;
        self.late += share * step.late;
        self.miss += share * step.miss;
        self.bytes_read += share * step.bytes_read;
        self.stall_ns += share * step.stall_ns;
    }
}

/// See the module.
pub(super) struct Task {
    pub id: u64,
    pub prompt: Vec<u32>,
    /// `None`: it waits for one.
    pub seq: Option<usize>,
    /// The text, by id, whose prompt begins alike, and with how many tokens: it computes them for this one, too.
    pub follows: Option<(u64, usize)>,
    /// Lengths of the prompt at which the sequence is to be kept as it is.
    pub stops: Vec<(usize, Stop)>,
    /// The chosen token that has to go through the model; `None` while the prompt is not through.
    pub next: Option<u32>,
    pub ended: bool,
    reused: usize,
    sampler: Sampler,
    answer: Answer<Rules>,
    cost: Cost,
    max_tokens: Option<usize>,
    on: Box<OnEvent>,
}

impl Task {
    pub fn new(id: u64, request: Request, mut sampler: Sampler, on: Box<OnEvent>) -> Self {
        let Request { prompt, rules, constraint, .. } = request;
        sampler.constrain(constraint);
        prompt.iter().for_each(|&token| sampler.accept(token));
        Self {
            id,
            prompt,
            seq: None,
            follows: None,
            stops: Vec::new(),
            next: None,
            ended: false,
            reused: 0,
            sampler,
            max_tokens: rules.max_tokens,
            answer: Answer::new(rules),
            cost: Cost::default(),
            on,
        }
    }

    /// Whether the prompt is not through.
    pub fn in_prompt(&self) -> bool {
        self.next.is_none()
    }

    /// It has a sequence now.
    pub fn placed(&mut self, placed: Placed) {
        let Placed { seq, reused, stops, why } = placed;
        self.seq = Some(seq);
        self.reused = reused;
        self.stops.extend(stops);
        let on = (self.on)(Event::Placed { reused, why: why.as_deref() });
        self.go_on(on);
    }

    /// So much of the prompt is there.
    pub fn tell_prompt(&mut self, done: usize) {
        if !self.ended {
            let on = (self.on)(Event::Prompt { done });
            self.go_on(on);
        }
    }

    fn go_on(&mut self, on: bool) {
        if !on && !self.ended {
            self.end(Finish::Cancelled);
        }
    }

    /// A step with `rows` rows in all cost so much.
    pub fn spent(&mut self, step: &Cost, span: &Span, rows: usize) {
        self.cost.add(step, span, rows);
    }

    /// Chooses the next token. `full`: the sequence has no room for it.
    pub fn choose(&mut self, tokenizer: &Tokenizer, logits: &[f32], full: bool) {
        if self.max_tokens == Some(0) {
            return self.end(Finish::Length);
        }
        let token = match self.sampler.choose(logits) {
            Ok(token) => token,
            Err(error) => return self.fail(error),
        };
        let (text, finish) = self.answer.push(tokenizer, token);
        if let Some(finish @ Finish::End(_)) = finish {
            return self.end(finish);
        }
        self.sampler.accept(token);
        if !(self.on)(Event::Token { token, text, logits }) {
            return self.end(Finish::Cancelled);
        }
        match finish {
            Some(finish) => self.end(finish),
            None if full => self.end(Finish::Context),
            None => self.next = Some(token),
        }
    }

    fn end(&mut self, finish: Finish) {
        self.ended = true;
        let _ = (self.on)(Event::Rest(self.answer.finish()));
        let (prompt, reused, generated) = (self.prompt.len(), self.reused, self.answer.generated());
        let outcome = Outcome { finish, prompt, reused, generated, cost: self.cost };
        let _ = (self.on)(Event::End(Ok(outcome)));
    }

    pub fn fail(&mut self, error: Error) {
        if !self.ended {
            self.ended = true;
            let _ = (self.on)(Event::End(Err(error)));
        }
    }
}
