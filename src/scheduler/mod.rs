//! Several texts at once on one engine: each step takes one token of every sequence that decodes and a chunk of the prompts, so
//! that an expert that was read serves all of them. What was computed of a prompt is kept, and the next prompt that begins alike
//! starts from there.
//!
//! A text is the one that it would be alone, bit for bit, whatever runs beside it.
//!
//! Must not know: HTTP, templates, clocks (what a step took is the engine's to say), where the text goes.

mod chunk;
mod kept;
mod task;

pub use chunk::{LEAST_CHUNK, STALL_NS};
pub use task::{Cost, Event, OnEvent, Outcome, Request};

use self::{
    chunk::Chunks,
    kept::{Kept, Stop},
    task::Task,
};
use crate::{
    Error, Result,
    backend::{Backend, cpu::Cpu},
    blueprint::Blueprint,
    engine::Engine,
    model::{Batch, Sequence, Span, Want},
    quant::GgmlType,
    sampler::Sampler,
    tokenizer::Tokenizer,
    trace::Phase,
};

/// See the module.
pub struct Scheduler<B: Backend = Cpu> {
    engine: Engine<B>,
    kept: Kept,
    /// At most one for each sequence, in the order in which they came.
    tasks: Vec<Task>,
    chunks: Chunks,
    started: u64,
}

/// Rows of a batch that belong to one task.
#[derive(Clone, Copy)]
struct Part {
    task: usize,
    n: usize,
}

impl<B: Backend> Scheduler<B> {
    /// On an engine whose sequences are empty.
    pub fn new(engine: Engine<B>) -> Self {
        let kept = Kept::new(&engine);
        Self { engine, kept, tasks: Vec::new(), chunks: Chunks::default(), started: 0 }
    }

    /// What it takes beside the engine: checkpoints of sequences that cannot be rewound, samplers, prompts.
    ///
    /// # Errors
    /// As [`Sequence::checkpoint_bytes`].
    pub fn bytes(m: &Blueprint, kv: GgmlType, n_ctx: usize, parallel: usize) -> Result<u64> {
        let checkpoint = Sequence::checkpoint_bytes(m, kv, n_ctx, 1)?;
        let kept = if checkpoint > 0 { kept::CHECKPOINTS as u64 * (checkpoint + 4 * n_ctx as u64) } else { 0 };
        let task = Sampler::bytes(m.n_vocab) + size_of::<u32>() as u64 * n_ctx as u64;
        Ok(kept.saturating_add(task).saturating_mul(parallel as u64))
    }

    /// The engine, to look at.
    pub fn engine(&self) -> &Engine<B> {
        &self.engine
    }

    /// The engine, for its budget and its experts; the sequences are the scheduler's.
    pub fn engine_mut(&mut self) -> &mut Engine<B> {
        &mut self.engine
    }

    /// The engine, with what its sequences hold.
    pub fn into_engine(self) -> Engine<B> {
        self.engine
    }

    /// Texts that are being made.
    pub fn running(&self) -> usize {
        self.tasks.len()
    }

    /// Whether another text can be begun.
    pub fn has_room(&self) -> bool {
        self.tasks.len() < self.kept.len()
    }

    /// Begins a text. `on` is told of all that comes of it, and answers whether to go on; the last thing is [`Event::End`].
    ///
    /// # Errors
    /// A prompt without tokens, with tokens that do not exist, or longer than a context; wrong sampling options. There is no event
    /// then.
    ///
    /// # Panics
    /// Without [`Scheduler::has_room`].
    pub fn start(&mut self, request: Request, on: Box<OnEvent>) -> Result<()> {
        assert!(self.has_room(), "a sequence is free");
        let (n, n_ctx) = (request.prompt.len(), self.engine.plan().n_ctx);
        if n == 0 {
            return Err(Error::invalid("the prompt has no tokens"));
        }
        if n > n_ctx {
            return Err(Error::invalid(format!("the prompt has {n} tokens, and the context holds {n_ctx}")));
        }
        self.engine.check_tokens(&request.prompt)?;
        let sampler = Sampler::with_bias(request.sampling, self.engine.blueprint().n_vocab, &request.logit_bias)?;
        self.started += 1;
        let mut task = Task::new(self.started, request, sampler, on);
        task.follows = self.kept.leader(&self.engine, &self.tasks, &task.prompt);
        if let Some((leader, common)) = task.follows {
            let leader = self.tasks.iter_mut().find(|task| task.id == leader).expect("it runs");
            leader.stops.extend(self.kept.needs_checkpoints().then_some((common, Stop::Parted)));
        }
        self.tasks.push(task);
        Ok(())
    }

    /// Runs one batch for all texts. Events come from here. Without a text, nothing happens.
    pub fn step(&mut self, tokenizer: &Tokenizer) {
        self.place();
        self.ask_on();
        let parts = self.parts();
        if parts.is_empty() {
            return;
        }
        if let Err(error) = self.run(&parts, tokenizer) {
            if parts.len() == 1 {
                self.tasks[parts[0].task].fail(error);
            } else {
                // Whose it is shows when each runs alone.
                for part in parts {
                    if let Err(error) = self.run(&[part], tokenizer) {
                        self.tasks[part.task].fail(error);
                    }
                }
            }
        }
        self.sweep();
    }

    /// Ends every text.
    pub fn fail_all(&mut self, why: &str) {
        self.tasks.iter_mut().for_each(|task| task.fail(Error::invalid(why)));
        self.sweep();
    }

    /// Gives each text a sequence that waits for none.
    fn place(&mut self) {
        for i in 0..self.tasks.len() {
            let (before, rest) = self.tasks.split_at_mut(i);
            let task = &mut rest[0];
            let waits = |(leader, common): (u64, usize)| {
                let leader = before.iter().find(|task| task.id == leader)?;
                // Without a sequence it has computed nothing yet.
                let done = leader.seq.map_or(0, |seq| self.engine.sequences()[seq].len());
                (leader.in_prompt() && done < common).then_some(())
            };
            if task.seq.is_some() || task.follows.and_then(waits).is_some() {
                continue;
            }
            let placed = self.kept.place(&mut self.engine, &task.prompt, task.id);
            task.placed(placed);
        }
    }

    /// Ends the texts that nobody waits for any more.
    fn ask_on(&mut self) {
        for task in self.tasks.iter_mut().filter(|task| task.in_prompt()) {
            let done = task.seq.map_or(0, |seq| self.engine.sequences()[seq].len());
            task.tell_prompt(done);
        }
        self.sweep();
    }

    fn sweep(&mut self) {
        let kept = &mut self.kept;
        self.tasks.retain(|task| {
            if let Some(seq) = task.seq.filter(|_| task.ended) {
                kept.release(seq);
            }
            !task.ended
        });
    }

    /// What the next batch is made of: a token of each text that decodes, then of prompts as much as others may wait for.
    fn parts(&self) -> Vec<Part> {
        let decoding = self.tasks.iter().enumerate().filter(|(_, task)| !task.in_prompt());
        let mut parts: Vec<_> = decoding.map(|(task, _)| Part { task, n: 1 }).collect();
        let n_batch = self.engine.plan().n_batch;
        let most = if parts.is_empty() { n_batch } else { self.chunks.most().min(n_batch) };
        // A batch has room for a token of each sequence, so one is left for the prompts.
        let mut room = most.max(parts.len() + 1).min(n_batch) - parts.len();
        for (i, task) in self.tasks.iter().enumerate().filter(|(_, task)| task.in_prompt()) {
            let Some(seq) = task.seq else { continue };
            let done = self.engine.sequences()[seq].len();
            let stop = task.stops.iter().map(|(at, _)| *at).filter(|at| *at > done).min().unwrap_or(usize::MAX);
            let n = (task.prompt.len().min(stop) - done).min(room);
            if n > 0 {
                parts.push(Part { task: i, n });
                room -= n;
            }
        }
        parts
    }

    /// Runs these parts as a batch, and moves their texts on.
    fn run(&mut self, parts: &[Part], tokenizer: &Tokenizer) -> Result<()> {
        let (mut tokens, mut spans) = (Vec::new(), Vec::new());
        for part in parts {
            let task = &self.tasks[part.task];
            let seq = task.seq.expect("only what has a sequence is part of a batch");
            let (pos, start) = (self.engine.sequences()[seq].len(), tokens.len());
            let last = match task.next {
                Some(token) => {
                    tokens.push(token);
                    true
                }
                None => {
                    tokens.extend_from_slice(&task.prompt[pos..pos + part.n]);
                    pos + part.n == task.prompt.len()
                }
            };
            let phase = if task.next.is_some() { Phase::Decode } else { Phase::Prompt };
            let want = if last { Want::Last } else { Want::Nothing };
            spans.push(Span { seq, first_pos: pos as u32, rows: start..tokens.len(), phase, want });
        }
        let before = Cost::of(&self.engine);
        self.engine.step(&Batch { tokens: &tokens, spans: &spans })?;
        let cost = Cost::of(&self.engine).since(&before);
        if spans.iter().any(|span| span.phase == Phase::Prompt) {
            self.chunks.took(tokens.len(), cost.ns());
        }
        let mut row = 0;
        for (part, span) in parts.iter().zip(&spans) {
            let task = &mut self.tasks[part.task];
            task.spent(&cost, span, tokens.len());
            self.kept.reached(&mut self.engine, span.seq, &task.stops);
            if span.want == Want::Last {
                let n_vocab = self.engine.blueprint().n_vocab;
                let logits = &self.engine.logits()[row * n_vocab..(row + 1) * n_vocab];
                row += 1;
                let full = self.engine.sequences()[span.seq].len() == self.engine.plan().n_ctx;
                task.choose(tokenizer, logits, full);
            }
        }
        Ok(())
    }
}
