//! A prompt in, text out: the loop that decodes token after token, and the rules by which it stops. What a program uses that
//! wants text of a model; `hotset run`, `chat` and `serve` do.
//!
//! Must not know: terminals, templates, who reads the text.

mod kept;
mod steps;

use std::borrow::Borrow;

pub use kept::{Answered, KeptSession};
pub use steps::Generation;

use crate::{
    Error,
    backend::Backend,
    sampler::Sampler,
    session::Session,
    stop::StopStrings,
    tokenizer::{StreamDecoder, Tokenizer},
};

/// When a text ends, beside the end of the context.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Tokens at most; `None`: as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Texts before which the answer ends. None of them is empty.
    pub stop: Vec<String>,
    /// Go on after tokens that end a text or a turn.
    pub ignore_end: bool,
    /// Control tokens that are part of the text, such as the marks around a tool call.
    pub visible: Vec<u32>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, with this token.
    End(u32),
    /// One of [`Rules::stop`] came, the one with this index.
    Stop(usize),
    /// [`Rules::max_tokens`].
    Length,
    /// There is no room for another token.
    Context,
    /// The callback wanted no more.
    Cancelled,
}

/// What the callback is told.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// So many tokens of the prompt are through, but not all.
    Prompt {
        /// Tokens that are through.
        done: usize,
        /// Tokens of the prompt.
        of: usize,
    },
    /// A token was chosen. Not called for a token that ends the text.
    Token {
        /// Its id.
        token: u32,
        /// The text that is certain now. Empty within a character, and where a stop string may have begun.
        text: &'a str,
    },
    /// The chosen token went through the model.
    Decoded,
    /// The text that was held back when the end came.
    Rest(&'a str),
}

impl Event<'_> {
    /// Whether the text can still be ended where this is told.
    fn may_end(&self) -> bool {
        matches!(self, Event::Prompt { .. } | Event::Token { .. })
    }
}

/// What is called at each [`Event`]; it answers whether to go on.
pub type OnEvent<'a, B, E> = dyn FnMut(&Session<B>, Event<'_>) -> Result<bool, E> + 'a;

/// A model and how it chooses.
pub struct Speaker<'a, B: Backend> {
    /// Holds the tokens before the prompt, if there are any.
    pub session: &'a mut Session<B>,
    /// The model's own.
    pub tokenizer: &'a Tokenizer,
    /// Has accepted the tokens before the prompt.
    pub sampler: &'a mut Sampler,
}

/// Runs `prompt` after what the session holds, then token after token until a rule or the callback ends the text. `on` answers
/// whether to go on; what it answers to the last two events does not count.
///
/// # Errors
/// What the session or the callback says. An empty prompt.
pub fn generate<B: Backend, E: From<Error>>(
    mut speaker: Speaker<'_, B>,
    prompt: &[u32],
    rules: &Rules,
    on: &mut OnEvent<'_, B, E>,
) -> Result<Finish, E> {
    let mut generation = Generation::new(prompt.to_vec(), rules);
    while let Some(event) = generation.step(&mut speaker)? {
        let may_end = event.may_end();
        if !on(speaker.session, event)? && may_end {
            generation.cancel();
        }
    }
    Ok(generation.finish().expect("the last step gives the reason"))
}

/// The text of one answer, token by token. For those who run a loop of their own.
pub struct Answer<R: Borrow<Rules>> {
    rules: R,
    decoder: StreamDecoder,
    stops: StopStrings,
    generated: usize,
}

impl<R: Borrow<Rules>> Answer<R> {
    /// An answer without a token yet.
    pub fn new(rules: R) -> Self {
        let stops = StopStrings::new(&rules.borrow().stop);
        Self { rules, decoder: StreamDecoder::continuing(), stops, generated: 0 }
    }

    /// The text that is certain once `token` has come, and whether it is the last one. A token that ends the text is none of
    /// it.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> (&str, Option<Finish>) {
        if self.ends_with(tokenizer, token) {
            return ("", Some(Finish::End(token)));
        }
        let rules = self.rules.borrow();
        self.generated += 1;
        let special = rules.visible.contains(&token);
        let piece = self.decoder.push_with(tokenizer, token, special);
        let (text, stopped) = self.stops.push(piece);
        let length = || (rules.max_tokens == Some(self.generated)).then_some(Finish::Length);
        (text, stopped.map(Finish::Stop).or_else(length))
    }

    /// Whether this token ends the text.
    pub fn ends_with(&self, tokenizer: &Tokenizer, token: u32) -> bool {
        tokenizer.is_end_of_generation(token) && !self.rules.borrow().ignore_end
    }

    /// Tokens of the text.
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// The text that was held back: nothing after a stop string.
    pub fn finish(&mut self) -> &str {
        let rest = self.decoder.finish();
        self.stops.finish(rest)
    }
}
