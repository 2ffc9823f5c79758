//! A session that remembers its tokens, so that a prompt that begins like them is not computed again.

use std::borrow::Borrow;

use super::{Event, Finish, Generation, OnEvent, Rules, Speaker};
use crate::{Error, backend::Backend, sampler::Sampler, session::Session, tokenizer::Tokenizer};

/// See the module.
pub struct KeptSession<B: Backend> {
    session: Session<B>,
    /// What the session holds, then what is left of a prompt that is not through.
    tokens: Vec<u32>,
}

/// How a prompt was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Why the text ended.
    pub finish: Finish,
    /// Tokens of the prompt that were there already.
    pub reused: usize,
    /// Tokens of the answer, without one that ends it.
    pub generated: usize,
}

impl<B: Backend> KeptSession<B> {
    /// Of a session without a token yet.
    pub fn new(session: Session<B>) -> Self {
        Self { session, tokens: Vec::new() }
    }

    /// The session, to look at.
    pub fn session(&self) -> &Session<B> {
        &self.session
    }

    /// Sets another budget, see [`Engine::set_memory`](crate::engine::Engine::set_memory).
    ///
    /// # Errors
    /// As that.
    pub fn set_memory(&mut self, memory_bytes: u64) -> crate::Result<()> {
        self.session.set_memory(memory_bytes)
    }

    /// Forgets all tokens; the experts stay where they are.
    pub fn reset(&mut self) {
        self.tokens.clear();
        self.session.reset();
    }

    /// The session.
    pub fn into_session(self) -> Session<B> {
        self.session
    }

    /// Tokens at the beginning of `prompt` that need not be computed again. The last one is: its logits are wanted. None where a
    /// part of the model cannot go back that far.
    pub fn reusable(&self, prompt: &[u32]) -> usize {
        let held = &self.tokens[..self.session.n_past().min(self.tokens.len())];
        let common = held.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let common = common.min(prompt.len().saturating_sub(1));
        if self.session.sequence().check_rewind(common).is_ok() { common } else { 0 }
    }

    /// Answers `prompt`, a whole conversation, as [`generate()`](super::generate()) does. `sampler` is a new one. What was computed stays, also
    /// after an error.
    ///
    /// # Errors
    /// As [`generate()`](super::generate()); also a prompt that leaves no room in the context.
    pub fn answer<E: From<Error>>(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        sampler: &mut Sampler,
        rules: &Rules,
        on: &mut OnEvent<'_, B, E>,
    ) -> Result<Answered, E> {
        let (mut generation, reused) = self.begin(prompt, sampler, rules)?;
        while let Some(event) = self.step(&mut generation, tokenizer, sampler)? {
            let may_end = event.may_end();
            if !on(&self.session, event)? && may_end {
                generation.cancel();
            }
        }
        let finish = generation.finish().expect("the last step gives the reason");
        Ok(Answered { finish, reused, generated: generation.generated() })
    }

    /// Goes back to where `prompt` and what the session holds part, for an answer step by step. Also gives how many tokens of
    /// the prompt are there already.
    ///
    /// # Errors
    /// A prompt that leaves no room in the context.
    pub fn begin<R: Borrow<Rules>>(
        &mut self,
        prompt: &[u32],
        sampler: &mut Sampler,
        rules: R,
    ) -> crate::Result<(Generation<R>, usize)> {
        let n_ctx = self.session.plan().n_ctx;
        if prompt.len() > n_ctx {
            let sentence = format!("the prompt has {} tokens, and the context holds {n_ctx}", prompt.len());
            return Err(Error::invalid(sentence));
        }
        let reused = self.reusable(prompt);
        self.session.truncate(reused)?;
        self.tokens.truncate(reused);
        self.tokens.extend_from_slice(&prompt[reused..]);
        prompt[..reused].iter().for_each(|&token| sampler.accept(token));
        Ok((Generation::new(prompt[reused..].to_vec(), rules), reused))
    }

    /// The next step of an answer that [`KeptSession::begin`] began, unless another was begun since; see [`Generation::step`].
    ///
    /// # Errors
    /// As that.
    pub fn step<'g, R: Borrow<Rules>>(
        &mut self,
        generation: &'g mut Generation<R>,
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
    ) -> crate::Result<Option<Event<'g>>> {
        let chosen = generation.chosen();
        let event = generation.step(&mut Speaker { session: &mut self.session, tokenizer, sampler })?;
        self.tokens.extend(chosen);
        Ok(event)
    }
}
