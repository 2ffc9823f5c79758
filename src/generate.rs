//! A prompt in, text out: the loop that decodes token after token, and the rules by which it stops. What a program uses that
//! wants text of a model; `hotset run`, `chat` and `serve` do.
//!
//! Must not know: terminals, templates, who reads the text.

mod kept;

pub use kept::{Answered, KeptSession};

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
    speaker: Speaker<'_, B>,
    prompt: &[u32],
    rules: &Rules,
    on: &mut OnEvent<'_, B, E>,
) -> Result<Finish, E> {
    let Speaker { session, tokenizer, sampler } = speaker;
    prompt.iter().for_each(|&token| sampler.accept(token));
    let n_batch = session.plan().n_batch;
    let last = prompt.len().saturating_sub(1) / n_batch * n_batch;
    for (i, batch) in prompt[..last].chunks(n_batch).enumerate() {
        session.fill(batch)?;
        if !on(session, Event::Prompt { done: (i + 1) * n_batch, of: prompt.len() })? {
            return Ok(Finish::Cancelled);
        }
    }
    session.feed(&prompt[last..], &mut |_| {})?;
    let mut answer = Answer::new(rules);
    if rules.max_tokens == Some(0) {
        return Ok(Finish::Length);
    }
    let finish = loop {
        let token = sampler.sample(session.logits());
        let (text, finish) = answer.push(tokenizer, token);
        if let Some(finish @ Finish::End(_)) = finish {
            break finish;
        }
        sampler.accept(token);
        if !on(session, Event::Token { token, text })? {
            break Finish::Cancelled;
        }
        if let Some(finish) = finish {
            break finish;
        }
        if session.n_past() == session.plan().n_ctx {
            break Finish::Context;
        }
        session.decode(token)?;
        on(session, Event::Decoded)?;
    };
    on(session, Event::Rest(answer.finish()))?;
    Ok(finish)
}

/// The text of one answer, token by token. For those who run a loop of their own.
pub struct Answer {
    max_tokens: Option<usize>,
    ignore_end: bool,
    visible: Vec<u32>,
    decoder: StreamDecoder,
    stops: StopStrings,
    generated: usize,
}

impl Answer {
    /// An answer without a token yet.
    pub fn new(rules: &Rules) -> Self {
        let Rules { max_tokens, ignore_end, ref visible, ref stop } = *rules;
        let (decoder, stops) = (StreamDecoder::continuing(), StopStrings::new(stop));
        Self { max_tokens, ignore_end, visible: visible.clone(), decoder, stops, generated: 0 }
    }

    /// The text that is certain once `token` has come, and whether it is the last one. A token that ends the text is none of
    /// it.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> (&str, Option<Finish>) {
        if tokenizer.is_end_of_generation(token) && !self.ignore_end {
            return ("", Some(Finish::End(token)));
        }
        self.generated += 1;
        let special = self.visible.contains(&token);
        let piece = self.decoder.push_with(tokenizer, token, special);
        let (text, stopped) = self.stops.push(piece);
        let length = || (self.max_tokens == Some(self.generated)).then_some(Finish::Length);
        (text, stopped.map(Finish::Stop).or_else(length))
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
