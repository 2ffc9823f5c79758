//! A text as an iterator of its pieces: a step of the model for each that is asked for.

use std::sync::{Mutex, PoisonError};

use hotset::{
    Error, Result, Sampler, SamplerConfig,
    chat::{Delta, Parser},
    generate::{self, Event, Finish, Rules},
};
use pyo3::prelude::*;

use crate::{
    errors::OrRaise,
    session::{Inner, Session},
};

/// How a text is written.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Writing {
    max_tokens: Option<usize>,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repeat_penalty: f32,
    repeat_last_n: usize,
    seed: u64,
    stop: Vec<String>,
    ignore_end: bool,
}

/// A text that has begun, but has no session yet.
pub struct Begun {
    state: State,
    turn: u64,
    reused: usize,
    prompt: usize,
}

struct State {
    steps: generate::Generation<Rules>,
    sampler: Sampler,
    /// Takes the answer apart, where it is one.
    parser: Option<Parser>,
    reasoning: String,
    /// Tools that the model wants to call, unasked: (name, arguments).
    calls: Vec<(String, String)>,
    /// Text that has come and was not handed out yet.
    pending: String,
    over: bool,
}

/// An iterator of the pieces of a text.
#[pyclass(frozen, module = "hotset._native")]
pub struct Generation {
    session: Py<Session>,
    state: Mutex<State>,
    turn: u64,
    /// Tokens of the prompt.
    #[pyo3(get)]
    prompt_tokens: usize,
    /// Those of them that an earlier text had computed already.
    #[pyo3(get)]
    reused_tokens: usize,
}

impl Begun {
    /// The text on its session.
    pub fn of(self, session: Py<Session>) -> Generation {
        let Self { state, turn, reused, prompt } = self;
        Generation { session, state: Mutex::new(state), turn, prompt_tokens: prompt, reused_tokens: reused }
    }
}

impl Generation {
    /// Begins a text; every earlier one on this session is over.
    ///
    /// # Errors
    /// An empty prompt or one beyond the context, wrong sampling options, an empty stop string.
    pub fn begin(inner: &mut Inner, prompt: &[u32], writing: Writing, parser: Option<Parser>) -> Result<Begun> {
        if prompt.is_empty() {
            return Err(Error::invalid("the prompt has no tokens"));
        }
        if writing.stop.iter().any(String::is_empty) {
            return Err(Error::invalid("a stop string is empty"));
        }
        let config = SamplerConfig {
            temperature: writing.temperature,
            top_k: writing.top_k,
            top_p: writing.top_p,
            min_p: writing.min_p,
            repeat_penalty: writing.repeat_penalty,
            repeat_last_n: writing.repeat_last_n,
            seed: writing.seed,
            ..SamplerConfig::default()
        };
        let mut sampler = Sampler::new(config, inner.kept.session().blueprint().n_vocab)?;
        let visible = if parser.is_some() { inner.converser.visible() } else { Vec::new() };
        let Writing { max_tokens, stop, ignore_end, .. } = writing;
        let rules = Rules { max_tokens, stop, ignore_end, visible };
        let (steps, reused) = inner.kept.begin(prompt, &mut sampler, rules)?;
        inner.turn += 1;
        let (reasoning, pending) = (String::new(), String::new());
        let state = State { steps, sampler, parser, reasoning, calls: Vec::new(), pending, over: false };
        Ok(Begun { state, turn: inner.turn, reused, prompt: prompt.len() })
    }

    /// One step of the model. Without Python's lock.
    fn step(&self) -> Result<()> {
        // A panic in a step poisons the session's own lock as well, which says so.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.session.get().lock()?;
        if inner.turn != self.turn {
            return Err(Error::invalid("another text has begun on this session, or it was reset"));
        }
        let State { steps, sampler, parser, reasoning, calls, pending, over } = &mut *state;
        let Inner { kept, converser, .. } = &mut *inner;
        let (text, rest) = match kept.step(steps, &converser.tokenizer, sampler)? {
            Some(Event::Token { text, .. }) => (text, false),
            Some(Event::Rest(text)) => (text, true),
            Some(Event::Prompt { .. } | Event::Decoded) => ("", false),
            None => {
                *over = true;
                ("", false)
            }
        };
        let Some(parser) = parser else {
            pending.push_str(text);
            return Ok(());
        };
        let mut deltas = parser.push(text);
        if rest {
            deltas.extend(parser.finish());
        }
        for delta in deltas {
            match delta {
                Delta::Content(text) => pending.push_str(&text),
                Delta::Reasoning(text) => reasoning.push_str(&text),
                Delta::Call(call) => calls.push((call.name, call.arguments)),
            }
        }
        Ok(())
    }

    fn look<T>(&self, py: Python<'_>, look: impl FnOnce(&mut State) -> T + Send) -> T
    where
        T: Send,
    {
        py.detach(|| look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

#[pymethods]
impl Generation {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        loop {
            // What came just before Ctrl-C is handed out by the next call.
            let (piece, over) = self.look(py, |state| (std::mem::take(&mut state.pending), state.over));
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
            if over {
                return Ok(None);
            }
            py.detach(|| self.step()).or_raise(py)?;
            py.check_signals()?;
        }
    }

    /// Why the text ended; `None` while it has not.
    #[getter]
    fn finish_reason(&self, py: Python<'_>) -> Option<&'static str> {
        self.look(py, |state| {
            let finish = state.steps.finish()?;
            Some(match finish {
                Finish::End(_) => "end",
                Finish::Stop(_) => "stop",
                Finish::Length => "length",
                Finish::Context => "context",
                Finish::Cancelled => "cancelled",
            })
        })
    }

    /// Tokens of the text so far.
    #[getter]
    fn generated_tokens(&self, py: Python<'_>) -> usize {
        self.look(py, |state| state.steps.generated())
    }

    /// What the model thought before it answered, so far; only `chat` tells it apart.
    #[getter]
    fn reasoning(&self, py: Python<'_>) -> String {
        self.look(py, |state| state.reasoning.clone())
    }

    /// Tools that the model wanted to call, as (name, arguments); only `chat` tells them apart.
    #[getter]
    fn tool_calls(&self, py: Python<'_>) -> Vec<(String, String)> {
        self.look(py, |state| state.calls.clone())
    }

    /// Ends the text here.
    fn cancel(&self, py: Python<'_>) {
        self.look(py, |state| {
            if state.steps.finish().is_none() {
                state.steps.cancel();
            }
        });
    }
}
