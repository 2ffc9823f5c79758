//! `/v1/messages` and `/v1/messages/count_tokens`: what Anthropic's clients speak.

use serde_json::{Value, json};

use super::{
    engine::timings,
    error::{ApiError, Dialect},
    fields::{Fields, wrong},
    form::{Choice, Wanted},
    generation::{self, Generation, text_of},
    reply::{Form, Said},
    state::State,
};
use crate::{
    chat::{Delta, Message, Role, Settings, ToolCall},
    generate::{Finish, Rules},
    scheduler::{Outcome, Request},
};

type Result<T> = std::result::Result<T, ApiError>;

/// Fields that say nothing about the text.
const HARMLESS: &[&str] = &["metadata", "service_tier", "cache_control"];

/// Reads a request for `/v1/messages`.
pub fn messages(mut fields: Fields, state: &State) -> Result<Generation> {
    let (messages, settings, wanted) = conversation(&mut fields, state)?;
    let max_tokens = fields.integer("max_tokens", 1, u64::from(u32::MAX))?;
    let max_tokens = max_tokens.ok_or_else(|| ApiError::field("max_tokens", "max_tokens is missing"))?;
    let rules = Rules {
        max_tokens: Some(max_tokens as usize),
        stop: generation::stops(&mut fields, "stop_sequences")?,
        visible: state.converser.visible(),
        ignore_end: false,
    };
    let (sampling, logit_bias) = generation::sampling(&mut fields, state)?;
    let stream = fields.bool("stream")?.unwrap_or(false);
    fields.finish(HARMLESS)?;
    let prompt = state.converser.prompt(&messages, &settings)?;
    let constraint = wanted.constraint(&settings.tools, Some(&prompt.text), state)?;
    Ok(Generation {
        request: Request { prompt: prompt.tokens, sampling, logit_bias, constraint, rules },
        prompt_text: prompt.text,
        logprobs: None,
        choices: 1,
        stream,
        stream_usage: false,
        tools: settings.tools,
    })
}

/// Reads a request for `/v1/messages/count_tokens`: the tokens of its prompt.
pub fn count(mut fields: Fields, state: &State) -> Result<usize> {
    let (messages, settings, _) = conversation(&mut fields, state)?;
    fields.finish(HARMLESS)?;
    Ok(state.converser.prompt(&messages, &settings)?.tokens.len())
}

/// What both have: messages, instructions, tools, thinking.
fn conversation(fields: &mut Fields, state: &State) -> Result<(Vec<Message>, Settings, Wanted)> {
    fields.string("model")?;
    let mut settings = Settings { unix_seconds: state.unix_seconds(), ..Settings::default() };
    let mut messages = Vec::new();
    if let Some(system) = fields.take("system") {
        messages.push(Message::text(Role::System, text_of("system", system, &["text"])?));
    }
    let list = match fields.require("messages")? {
        Value::Array(list) if !list.is_empty() => list,
        Value::Array(_) => return Err(ApiError::field("messages", "messages is empty")),
        other => return Err(wrong("messages", "a list", &other)),
    };
    for (i, value) in list.into_iter().enumerate() {
        message(&format!("messages[{i}]"), value, &mut messages)?;
    }
    let tools = fields.list("tools")?.into_iter().enumerate().map(|(i, t)| tool(&format!("tools[{i}]"), t));
    settings.tools = generation::tools(tools.collect::<Result<_>>()?, &state.converser)?;
    let (choice, several) = Choice::anthropic(fields)?;
    if choice == Choice::None {
        settings.tools.clear();
    }
    if let Some(thinking) = fields.take("thinking") {
        let mut thinking = Fields::of("thinking", thinking)?;
        let on = match thinking.string("type")?.as_deref() {
            Some("enabled" | "adaptive") => true,
            Some("disabled") => false,
            _ => return Err(ApiError::field("thinking.type", "thinking.type must be enabled, adaptive or disabled")),
        };
        // How much of it is the model's to know.
        thinking.finish(&["budget_tokens", "display"])?;
        // What has no switch thinks as it does.
        if state.converser.template.knows_thinking() {
            settings.enable_thinking = Some(on);
        } else if on && state.converser.template.family().think_marks().is_none() {
            let sentence = "thinking is not supported: the model's chat template has none";
            return Err(ApiError::field("thinking", sentence));
        }
    }
    Ok((messages, settings, Wanted { json: None, choice, several }))
}

/// A message, which may stand for several: each answer of a tool is one of its own.
fn message(path: &str, value: Value, messages: &mut Vec<Message>) -> Result<()> {
    let mut fields = Fields::of(path, value)?;
    let role = match fields.string("role")?.as_deref() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system") => Role::System,
        other => return Err(wrong(&fields.path("role"), "user or assistant", &json!(other))),
    };
    let (path, content) = (fields.path("content"), fields.require("content")?);
    fields.finish(&[])?;
    let blocks = match content {
        Value::Array(blocks) => blocks,
        Value::String(text) => {
            messages.push(Message::text(role, text));
            return Ok(());
        }
        other => return Err(wrong(&path, "a string or a list of blocks", &other)),
    };
    let mut message = Message::text(role, "");
    for (i, block) in blocks.into_iter().enumerate() {
        let mut block = Fields::of(&format!("{path}[{i}]"), block)?;
        match block.string("type")?.as_deref() {
            Some("text") => message.content += &block.string("text")?.unwrap_or_default(),
            Some("thinking") => {
                message.reasoning += &block.string("thinking")?.unwrap_or_default();
                block.take("signature");
            }
            Some("redacted_thinking") => drop(block.take("data")),
            Some("tool_use") => message.tool_calls.push(ToolCall {
                id: block.string("id")?.unwrap_or_default(),
                name: block.string("name")?.unwrap_or_default(),
                arguments: block.take("input").unwrap_or_else(|| json!({})).to_string(),
            }),
            Some("tool_result") => {
                let content_path = block.path("content");
                let content = block.take("content").unwrap_or_else(|| json!(""));
                let mut result = Message::text(Role::Tool, text_of(&content_path, content, &["text"])?);
                result.tool_call_id = block.string("tool_use_id")?;
                block.bool("is_error")?;
                messages.push(result);
            }
            other => {
                let path = block.path("type");
                let sentence = format!("{path}: hotset reads no block of type {:?}", other.unwrap_or_default());
                return Err(ApiError::field(&path, sentence));
            }
        }
        block.finish(&["cache_control", "citations"])?;
    }
    if !(message.content.is_empty() && message.tool_calls.is_empty() && message.reasoning.is_empty()) {
        messages.push(message);
    }
    Ok(())
}

/// A tool, as templates have them.
fn tool(path: &str, value: Value) -> Result<Value> {
    let mut fields = Fields::of(path, value)?;
    fields.refuse_unless("type", &[Value::from("custom")])?;
    let name = fields.require("name")?;
    let description = fields.string("description")?.unwrap_or_default();
    let parameters = fields.require("input_schema")?;
    fields.finish(&["cache_control", "input_examples", "eager_input_streaming", "strict"])?;
    Ok(json!({"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}))
}

/// How Anthropic's clients get an answer.
pub struct Messages {
    id: String,
    model: String,
    /// Tokens of the prompt.
    prompt: usize,
    stops: Vec<String>,
    /// Blocks that were begun.
    blocks: usize,
    /// Type of the one that is open.
    open: Option<&'static str>,
    calls: bool,
}

impl Messages {
    /// Of the message with this id.
    pub fn new(id: String, model: String, prompt: usize, stops: Vec<String>) -> Self {
        Self { id, model, prompt, stops, blocks: 0, open: None, calls: false }
    }

    fn usage(&self, outcome: Option<&Outcome>) -> Value {
        let cached = outcome.map_or(0, |o| o.reused);
        json!({
            "input_tokens": self.prompt - cached.min(self.prompt),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": outcome.map_or(0, |o| o.generated),
        })
    }

    /// Why the answer ended, and the stop sequence that ended it.
    fn reason(&self, outcome: &Outcome) -> (&'static str, Option<&str>) {
        match outcome.finish {
            Finish::Length | Finish::Context => ("max_tokens", None),
            _ if self.calls => ("tool_use", None),
            Finish::Stop(which) => ("stop_sequence", self.stops.get(which).map(String::as_str)),
            Finish::End(_) | Finish::Cancelled => ("end_turn", None),
        }
    }

    /// Ends the open block, and begins one of this type.
    fn block(&mut self, kind: &'static str, content: Value) -> String {
        let mut events = self.stop_block();
        events += &event(json!({"type": "content_block_start", "index": self.blocks, "content_block": content}));
        self.open = Some(kind);
        events
    }

    fn stop_block(&mut self) -> String {
        if self.open.take().is_none() {
            return String::new();
        }
        self.blocks += 1;
        event(json!({"type": "content_block_stop", "index": self.blocks - 1}))
    }

    fn piece(&self, delta: Value) -> String {
        event(json!({"type": "content_block_delta", "index": self.blocks, "delta": delta}))
    }
}

fn event(value: Value) -> String {
    format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap_or_default())
}

/// Arguments as a value. What is no JSON stays a text, under a name of its own.
fn input(arguments: &str) -> Value {
    serde_json::from_str(arguments).unwrap_or_else(|_| json!({"arguments": arguments}))
}

impl Form for Messages {
    fn begin(&mut self, _: usize) -> String {
        event(json!({"type": "message_start", "message": {
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": self.usage(None),
        }}))
    }

    fn delta(&mut self, _: usize, delta: Delta) -> String {
        match delta {
            Delta::Content(text) => {
                let begin = match self.open {
                    Some("text") => String::new(),
                    _ => self.block("text", json!({"type": "text", "text": ""})),
                };
                begin + &self.piece(json!({"type": "text_delta", "text": text}))
            }
            Delta::Reasoning(text) => {
                let begin = match self.open {
                    Some("thinking") => String::new(),
                    _ => self.block("thinking", json!({"type": "thinking", "thinking": "", "signature": ""})),
                };
                begin + &self.piece(json!({"type": "thinking_delta", "thinking": text}))
            }
            Delta::Call(call) => {
                self.calls = true;
                let block = json!({"type": "tool_use", "id": call.id, "name": call.name, "input": {}});
                let begin = self.block("tool_use", block);
                let piece = self.piece(json!({"type": "input_json_delta", "partial_json": call.arguments}));
                begin + &piece + &self.stop_block()
            }
        }
    }

    fn end(&mut self, _: usize, outcome: &Outcome) -> String {
        let events = self.stop_block();
        let (reason, stop) = self.reason(outcome);
        let delta = json!({"stop_reason": reason, "stop_sequence": stop});
        events + &event(json!({"type": "message_delta", "delta": delta, "usage": self.usage(Some(outcome))}))
    }

    fn close(&mut self, _: &[Outcome]) -> String {
        event(json!({"type": "message_stop"}))
    }

    fn failed(&mut self, error: &ApiError) -> String {
        event(error.json(Dialect::Anthropic))
    }

    fn whole(&mut self, said: Vec<Said>) -> Value {
        let Some(said) = said.into_iter().next() else { return Value::Null };
        let mut content = Vec::new();
        if !said.reasoning.is_empty() {
            content.push(json!({"type": "thinking", "thinking": said.reasoning, "signature": ""}));
        }
        if !said.content.is_empty() {
            content.push(json!({"type": "text", "text": said.content}));
        }
        for call in &said.calls {
            self.calls = true;
            content
                .push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input(&call.arguments)}));
        }
        let (reason, stop) = self.reason(&said.outcome);
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": reason, "stop_sequence": stop, "usage": self.usage(Some(&said.outcome)),
            "timings": timings(&said.outcome),
        })
    }
}
