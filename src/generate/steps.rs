//! The decode loop one step at a time, for those who want to be asked for the next piece of text instead of being called with it:
//! an iterator, a loop that looks after other things in between. [`super::generate()`] is this, step after step.

use std::borrow::Borrow;

use super::{Answer, Event, Finish, Rules, Speaker};
use crate::{Error, backend::Backend};

/// A prompt and the text that comes of it, so far.
pub struct Generation<R: Borrow<Rules>> {
    prompt: Vec<u32>,
    /// Tokens of the prompt that are through.
    done: usize,
    answer: Answer<R>,
    stage: Stage,
    /// Why there are no more tokens.
    finish: Option<Finish>,
}

/// What the next step does.
enum Stage {
    /// Runs a batch of the prompt.
    Prompt,
    /// Runs this token.
    Decode(u32),
    /// Chooses a token.
    Choose,
    /// Gives what was held back.
    Rest,
    /// Nothing.
    Over,
}

impl<R: Borrow<Rules>> Generation<R> {
    /// Of a prompt that comes after what the session holds.
    pub fn new(prompt: Vec<u32>, rules: R) -> Self {
        Self { prompt, done: 0, answer: Answer::new(rules), stage: Stage::Prompt, finish: None }
    }

    /// Runs a batch of the prompt, chooses a token, or runs the chosen one, and says what came of it; `None` after the last
    /// step. Every step of a text has the same session, tokenizer and sampler, and nothing else runs on the session meanwhile.
    ///
    /// # Errors
    /// What the session says; the step can be repeated then. What the sampler's constraint says. An empty prompt.
    pub fn step<B: Backend>(&mut self, speaker: &mut Speaker<'_, B>) -> Result<Option<Event<'_>>, Error> {
        if matches!(self.stage, Stage::Prompt) {
            if let Some(event) = self.prompt(speaker)? {
                return Ok(Some(event));
            }
            self.stage = Stage::Choose;
            if self.answer.rules.borrow().max_tokens == Some(0) {
                (self.stage, self.finish) = (Stage::Over, Some(Finish::Length));
            }
        }
        match self.stage {
            Stage::Prompt => unreachable!("the prompt is through"),
            Stage::Choose => Ok(Some(self.choose(speaker)?)),
            Stage::Decode(token) => {
                speaker.session.decode(token)?;
                self.stage = Stage::Choose;
                Ok(Some(Event::Decoded))
            }
            Stage::Rest => {
                self.stage = Stage::Over;
                Ok(Some(Event::Rest(self.answer.finish())))
            }
            Stage::Over => Ok(None),
        }
    }

    /// Runs a batch; an event if it was not the last one.
    fn prompt<B: Backend>(&mut self, speaker: &mut Speaker<'_, B>) -> Result<Option<Event<'static>>, Error> {
        let Speaker { session, sampler, .. } = speaker;
        let (of, n_batch) = (self.prompt.len(), session.plan().n_batch);
        let batch = &self.prompt[self.done..of.min(self.done + n_batch)];
        let is_last = self.done + batch.len() == of;
        if is_last {
            session.feed(batch, &mut |_| {})?;
        } else {
            session.fill(batch)?;
        }
        batch.iter().for_each(|&token| sampler.accept(token));
        self.done += batch.len();
        if is_last {
            self.prompt = Vec::new();
            return Ok(None);
        }
        Ok(Some(Event::Prompt { done: self.done, of }))
    }

    /// Chooses a token, and what comes after it.
    fn choose<B: Backend>(&mut self, speaker: &mut Speaker<'_, B>) -> Result<Event<'_>, Error> {
        let Speaker { session, tokenizer, sampler } = speaker;
        let token = sampler.choose(session.logits())?;
        if self.answer.ends_with(tokenizer, token) {
            (self.stage, self.finish) = (Stage::Over, Some(Finish::End(token)));
            return Ok(Event::Rest(self.answer.finish()));
        }
        sampler.accept(token);
        let full = session.n_past() == session.plan().n_ctx;
        let (text, finish) = self.answer.push(tokenizer, token);
        self.finish = finish.or(full.then_some(Finish::Context));
        self.stage = if self.finish.is_some() { Stage::Rest } else { Stage::Decode(token) };
        Ok(Event::Token { token, text })
    }

    /// The token that the next step runs, if it runs a chosen one.
    pub(super) fn chosen(&self) -> Option<u32> {
        match self.stage {
            Stage::Decode(token) => Some(token),
            _ => None,
        }
    }

    /// Ends the text here.
    pub fn cancel(&mut self) {
        let began = !matches!(self.stage, Stage::Prompt);
        self.stage = if began { Stage::Rest } else { Stage::Over };
        self.finish = Some(Finish::Cancelled);
    }

    /// Why the text ended, once the last token has come.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Tokens of the text.
    pub fn generated(&self) -> usize {
        self.answer.generated()
    }
}
