//! One sequence of tokens on one model within one budget: the door that a program uses. All that is not about the sequence is
//! its [`Engine`]'s.
//!
//! Must not know: text, sampling, terminals.

use std::ops::{Deref, DerefMut};

use crate::{
    Error, Result,
    backend::{Backend, cpu::Cpu},
    engine::Engine,
    gguf::Gguf,
    gpu::Device,
    io::{Files, IoEngine},
    model::{Batch, Sequence, Span, Want},
    trace::{Phase, TraceSink},
};

pub use crate::engine::{Options, PlainReads, Timing, Vram, make_plan, plain_reads, planned_slots};

/// See the module. Generic over the arithmetic, so that tests can run the reference beside the fast one.
pub struct Session<B: Backend = Cpu>(Engine<B>);

/// An engine with one sequence: how it runs, what it counted, its budget.
impl<B: Backend> Deref for Session<B> {
    type Target = Engine<B>;
    fn deref(&self) -> &Engine<B> {
        &self.0
    }
}

impl<B: Backend> DerefMut for Session<B> {
    fn deref_mut(&mut self) -> &mut Engine<B> {
        &mut self.0
    }
}

fn one(options: &Options) -> Options {
    Options { parallel: 1, ..options.clone() }
}

impl Session<Cpu> {
    /// Plans, loads the dense weights and makes the slots. `progress` is told (bytes done, bytes in all).
    ///
    /// # Errors
    /// Whatever is wrong with the file, the budget or the options, in one sentence.
    pub fn open(gguf: Gguf, options: &Options, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        Engine::open(gguf, &one(options), progress).map(Self)
    }
}

impl<B: Backend> Session<B> {
    /// [`Session::open`] with arithmetic and a trace of the caller's choice.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn with_backend(
        gguf: Gguf,
        options: &Options,
        backend: B,
        trace: Box<dyn TraceSink>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        Engine::with_backend(gguf, &one(options), backend, trace, progress).map(Self)
    }

    /// [`Session::with_backend`] with a device of the caller's choice where [`Options::vram`] asks for one.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn with_device(
        gguf: Gguf,
        options: &Options,
        backend: B,
        trace: Box<dyn TraceSink>,
        device: Box<dyn Device>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        Engine::with_device(gguf, &one(options), backend, trace, device, progress).map(Self)
    }

    /// [`Session::with_backend`] with a read engine of the caller's choice, made on the model's files.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn with_engine(
        gguf: Gguf,
        options: &Options,
        backend: B,
        trace: Box<dyn TraceSink>,
        engine: impl FnOnce(Files) -> Result<Box<dyn IoEngine>>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        Engine::with_engine(gguf, &one(options), backend, trace, engine, progress).map(Self)
    }

    /// Runs prompt tokens in batches and returns the last one's logits (n_vocab). `progress` is told the tokens done.
    ///
    /// # Errors
    /// A token beyond the vocabulary, a context that is full, a read that failed. The sequence is as before the call
    /// then, so that the call can be repeated.
    pub fn feed(&mut self, tokens: &[u32], progress: &mut dyn FnMut(usize)) -> Result<&[f32]> {
        self.check(tokens)?;
        let n_batch = self.plan().n_batch;
        // A batch leaves no trace when it fails, but those before it do.
        let before = if tokens.len() > n_batch { Some(self.0.sequence_mut(0).checkpoint()?) } else { None };
        for (i, batch) in tokens.chunks(n_batch).enumerate() {
            let done = i * n_batch + batch.len();
            let want = if done == tokens.len() { Want::Last } else { Want::Nothing };
            if let Err(e) = self.run(batch, Phase::Prompt, want) {
                let restore = |before| self.0.sequence_mut(0).restore(before);
                before.as_ref().map_or(Ok(()), restore).expect("the tokens before the prompt are as they were");
                return Err(e);
            }
            progress(done);
        }
        Ok(self.logits())
    }

    /// Runs at most a batch of prompt tokens for the sequence's state alone, without logits.
    ///
    /// # Errors
    /// As [`Session::feed`]; also with more tokens than a batch has.
    pub fn fill(&mut self, tokens: &[u32]) -> Result<()> {
        self.check(tokens)?;
        self.run(tokens, Phase::Prompt, Want::Nothing)
    }

    /// Runs at most a batch of prompt tokens and returns the logits of each. (tokens, n_vocab)
    ///
    /// # Errors
    /// As [`Session::feed`]; also without [`Options::all_logits`], or with more tokens than a batch has.
    pub fn feed_all(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.check(tokens)?;
        let room = self.plan().n_logits.min(self.plan().n_batch);
        if tokens.len() > room {
            return Err(Error::invalid(format!("a batch holds {room} tokens with logits, not {}", tokens.len())));
        }
        self.run(tokens, Phase::Prompt, Want::All)?;
        Ok(&self.0.logits()[..tokens.len() * self.blueprint().n_vocab])
    }

    /// Runs one token and returns its logits. (n_vocab)
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn decode(&mut self, token: u32) -> Result<&[f32]> {
        self.check(&[token])?;
        self.run(&[token], Phase::Decode, Want::Last)?;
        Ok(self.logits())
    }

    fn run(&mut self, tokens: &[u32], phase: Phase, want: Want) -> Result<()> {
        let first_pos = self.n_past() as u32;
        let span = Span { seq: 0, first_pos, rows: 0..tokens.len(), phase, want };
        self.0.step(&Batch { tokens, spans: &[span] })
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::invalid("the prompt has no tokens"));
        }
        self.check_tokens(tokens)?;
        self.check_room(self.sequence(), tokens.len())
    }

    /// The sequence.
    pub fn sequence(&self) -> &Sequence {
        &self.sequences()[0]
    }
    /// The sequence, to be rewound or restored.
    pub fn sequence_mut(&mut self) -> &mut Sequence {
        self.0.sequence_mut(0)
    }
    /// The logits of the last call that gave any. (n_vocab)
    pub fn logits(&self) -> &[f32] {
        &self.0.logits()[..self.blueprint().n_vocab]
    }
    /// Forgets the tokens from position `len` on, if there are any; the experts stay where they are.
    ///
    /// # Errors
    /// If a part of the model cannot go back that far, see [`Sequence::rewind`]; nothing is forgotten then.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        let len = len.min(self.n_past());
        self.sequence_mut().rewind(len)
    }
    /// Forgets the sequence; the experts stay where they are.
    pub fn reset(&mut self) {
        self.sequence_mut().clear();
    }
    /// Tokens in the sequence.
    pub fn n_past(&self) -> usize {
        self.sequence().len()
    }
}
