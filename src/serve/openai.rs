//! `/v1/chat/completions` and `/v1/completions`: requests, and replies whole or as a stream of events.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    engine::{Probs, timings},
    error::ApiError,
    fields::{Fields, wrong},
    form::{self, Choice, Wanted},
    generation::{self, Generation, HARMLESS},
    logprobs,
    reply::{Form, Said},
    state::State,
};
use crate::{
    chat::{Delta, Settings},
    converse::Converser,
    generate::{Finish, Rules},
    scheduler::{Outcome, Request},
};

type Result<T> = std::result::Result<T, ApiError>;

/// Reads a request for `/v1/chat/completions`.
pub fn chat(mut fields: Fields, state: &State) -> Result<Generation> {
    let converser = &state.converser;
    fields.string("model")?; // there is one model, and the reply names it
    let messages = generation::messages(&mut fields)?;
    let mut settings = Settings { unix_seconds: state.unix_seconds(), ..Settings::default() };
    let tools = generation::tools(fields.list("tools")?, converser)?;
    let wanted = Wanted {
        json: form::response_format(&mut fields)?,
        choice: Choice::openai(&mut fields)?,
        several: fields.bool("parallel_tool_calls")?.unwrap_or(true),
    };
    if wanted.choice != Choice::None {
        settings.tools = tools;
    }
    let logprobs = logprobs::of_chat(&mut fields)?;
    fields.refuse_unless("store", &[Value::Bool(false)])?;
    fields.refuse_unless("modalities", &[json!(["text"])])?;
    generation::thinking(&mut fields, converser, &mut settings)?;
    let (sampling, logit_bias) = generation::sampling(&mut fields, state)?;
    let rules = Rules {
        max_tokens: generation::max_tokens(&mut fields, ["max_completion_tokens", "max_tokens"])?,
        stop: generation::stops(&mut fields, "stop")?,
        visible: converser.visible(),
        ignore_end: false,
    };
    let (choices, stream, stream_usage) = generation::delivery(&mut fields)?;
    fields.finish(HARMLESS)?;
    let prompt = converser.prompt(&messages, &settings)?;
    let constraint = wanted.constraint(&settings.tools, Some(&prompt.text), state)?;
    Ok(Generation {
        request: Request { prompt: prompt.tokens, sampling, logit_bias, constraint, rules },
        prompt_text: prompt.text,
        logprobs,
        choices,
        stream,
        stream_usage,
        tools: settings.tools,
    })
}

/// Reads a request for `/v1/completions`.
pub fn completion(mut fields: Fields, state: &State) -> Result<Generation> {
    let tokenizer = &state.converser.tokenizer;
    fields.string("model")?;
    let (prompt, prompt_text) = match fields.require("prompt")? {
        Value::String(text) => (tokenizer.encode(&text, true, true), text),
        Value::Array(list) => {
            let n_vocab = tokenizer.n_vocab() as u64;
            let token = |value: &Value| value.as_u64().filter(|id| *id < n_vocab).map(|id| id as u32);
            let tokens: Option<Vec<_>> = list.iter().map(token).collect();
            let expected = "a string, or a list of tokens of the vocabulary (one prompt per request)";
            (tokens.ok_or_else(|| wrong("prompt", expected, &Value::Array(list)))?, String::new())
        }
        other => return Err(wrong("prompt", "a string or a list of tokens", &other)),
    };
    if prompt.is_empty() {
        return Err(ApiError::field("prompt", "prompt is empty"));
    }
    let logprobs = logprobs::of_completion(&mut fields)?;
    let wanted = Wanted { json: form::response_format(&mut fields)?, choice: Choice::Auto, several: true };
    fields.refuse_unless("best_of", &[Value::from(1)])?;
    fields.refuse_unless("echo", &[Value::Bool(false)])?;
    fields.refuse_unless("suffix", &[])?;
    let (sampling, logit_bias) = generation::sampling(&mut fields, state)?;
    let rules = Rules {
        max_tokens: fields.integer("max_tokens", 0, u64::from(u32::MAX))?.map_or(Some(256), |n| Some(n as usize)),
        stop: generation::stops(&mut fields, "stop")?,
        ignore_end: fields.bool("ignore_eos")?.unwrap_or(false),
        visible: Vec::new(),
    };
    let (choices, stream, stream_usage) = generation::delivery(&mut fields)?;
    fields.finish(HARMLESS)?;
    if wanted.json.is_some() && rules.ignore_end {
        return Err(ApiError::field("ignore_eos", "ignore_eos and response_format exclude each other"));
    }
    let constraint = wanted.constraint(&[], None, state)?;
    let request = Request { prompt, sampling, logit_bias, constraint, rules };
    Ok(Generation { request, prompt_text, logprobs, choices, stream, stream_usage, tools: Vec::new() })
}

/// Why an answer ended, in OpenAI's words.
fn reason(finish: Finish, calls: bool) -> &'static str {
    match finish {
        Finish::Length | Finish::Context => "length",
        _ if calls => "tool_calls",
        Finish::End(_) | Finish::Stop(_) | Finish::Cancelled => "stop",
    }
}

fn usage(outcomes: &[Outcome]) -> Value {
    let prompt = outcomes.first().map_or(0, |o| o.prompt);
    let cached = outcomes.first().map_or(0, |o| o.reused);
    let generated: usize = outcomes.iter().map(|o| o.generated).sum();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}

/// How OpenAI's clients get an answer.
pub struct OpenAi {
    /// Chat, or plain text.
    pub chat: bool,
    /// Of the reply.
    pub id: String,
    /// The model's name.
    pub model: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Whether a stream ends with usage.
    pub usage: bool,
    /// Knows the tokens' texts.
    pub converser: Arc<Converser>,
    /// Whether probabilities are wanted.
    pub logprobs: bool,
    /// Of each choice.
    pub sent: Vec<Sent>,
}

/// What was sent of a choice, and waits to be.
#[derive(Default)]
pub struct Sent {
    /// Calls so far.
    calls: usize,
    /// For the next chunk.
    probs: Vec<Probs>,
    /// Bytes of the tokens so far.
    offset: usize,
}

impl OpenAi {
    /// `logprobs` of a choice for these tokens.
    fn probabilities(&self, probs: &[Probs], offset: &mut usize) -> Value {
        let tokenizer = &self.converser.tokenizer;
        match (self.logprobs, self.chat) {
            (false, _) => Value::Null,
            (true, true) => logprobs::chat(probs, tokenizer),
            (true, false) => logprobs::completion(probs, tokenizer, offset),
        }
    }

    fn envelope(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices,
            "system_fingerprint": concat!("hotset-", env!("CARGO_PKG_VERSION")),
        })
    }

    fn chunk(&mut self, choice: usize, delta: Value, finish: Option<&str>) -> Value {
        let kind = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        let mut sent = std::mem::take(&mut self.sent[choice]);
        let probs = match sent.probs.is_empty() {
            true => Value::Null,
            false => self.probabilities(&sent.probs, &mut sent.offset),
        };
        sent.probs.clear();
        self.sent[choice] = sent;
        let choice = match self.chat {
            true => json!({"index": choice, "delta": delta, "logprobs": probs, "finish_reason": finish}),
            false => json!({"index": choice, "text": delta, "logprobs": probs, "finish_reason": finish}),
        };
        self.envelope(kind, json!([choice]))
    }
}

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

impl Form for OpenAi {
    fn begin(&mut self, choice: usize) -> String {
        match self.chat {
            true => event(&self.chunk(choice, json!({"role": "assistant", "content": ""}), None)),
            false => String::new(),
        }
    }

    fn probs(&mut self, choice: usize, probs: Probs) {
        self.sent[choice].probs.push(probs);
    }

    fn delta(&mut self, choice: usize, delta: Delta) -> String {
        let delta = match delta {
            Delta::Content(text) if self.chat => json!({"content": text}),
            Delta::Content(text) => json!(text),
            Delta::Reasoning(text) => json!({"reasoning_content": text}),
            Delta::Call(call) => {
                let index = self.sent[choice].calls;
                self.sent[choice].calls += 1;
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]})
            }
        };
        event(&self.chunk(choice, delta, None))
    }

    fn end(&mut self, choice: usize, outcome: &Outcome) -> String {
        let finish = reason(outcome.finish, self.sent[choice].calls > 0);
        let mut chunk = self.chunk(choice, if self.chat { json!({}) } else { json!("") }, Some(finish));
        chunk["timings"] = timings(outcome);
        event(&chunk)
    }

    fn close(&mut self, outcomes: &[Outcome]) -> String {
        let mut last = String::new();
        if self.usage {
            let kind = if self.chat { "chat.completion.chunk" } else { "text_completion" };
            let mut chunk = self.envelope(kind, json!([]));
            chunk["usage"] = usage(outcomes);
            last = event(&chunk);
        }
        last + "data: [DONE]\n\n"
    }

    fn failed(&mut self, error: &ApiError) -> String {
        event(&error.json(super::error::Dialect::OpenAi))
    }

    fn whole(&mut self, said: Vec<Said>) -> Value {
        let outcomes: Vec<_> = said.iter().map(|said| said.outcome).collect();
        let choices = said.into_iter().enumerate().map(|(index, said)| {
            let finish = reason(said.outcome.finish, !said.calls.is_empty());
            let probs = self.probabilities(&said.probs, &mut 0);
            if !self.chat {
                return json!({"index": index, "text": said.content, "logprobs": probs, "finish_reason": finish});
            }
            let content = if said.content.is_empty() && !said.calls.is_empty() { Value::Null } else { json!(said.content) };
            let mut message = json!({"role": "assistant", "content": content});
            if !said.reasoning.is_empty() {
                message["reasoning_content"] = json!(said.reasoning);
            }
            if !said.calls.is_empty() {
                let call = |c: &crate::chat::ToolCall| {
                    json!({"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}})
                };
                message["tool_calls"] = said.calls.iter().map(call).collect();
            }
            json!({"index": index, "message": message, "logprobs": probs, "finish_reason": finish})
        });
        let choices = choices.collect();
        let mut reply = self.envelope(if self.chat { "chat.completion" } else { "text_completion" }, choices);
        reply["usage"] = usage(&outcomes);
        if let [.., last] = &outcomes[..] {
            reply["timings"] = timings(last);
        }
        reply
    }
}
