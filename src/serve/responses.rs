//! `/v1/responses`, without a memory: each request brings its whole conversation, as Codex does.

use serde_json::{Value, json};

use super::{
    engine::timings,
    error::{ApiError, Dialect},
    fields::{Fields, wrong},
    form::{self, Choice, Wanted},
    generation::{self, Generation, HARMLESS, text_of},
    reply::{Form, Said},
    state::State,
};
use crate::{
    chat::{Delta, Message, Role, Settings, ToolCall},
    generate::{Finish, Rules},
    scheduler::{Outcome, Request},
};

type Result<T> = std::result::Result<T, ApiError>;

/// Reads a request.
pub fn request(mut fields: Fields, state: &State) -> Result<Generation> {
    let converser = &state.converser;
    fields.string("model")?;
    let mut messages = Vec::new();
    if let Some(text) = fields.string("instructions")? {
        messages.push(Message::text(Role::System, text));
    }
    match fields.require("input")? {
        Value::String(text) => messages.push(Message::text(Role::User, text)),
        Value::Array(items) => {
            for (i, value) in items.into_iter().enumerate() {
                item(&format!("input[{i}]"), value, &mut messages)?;
            }
        }
        other => return Err(wrong("input", "a string or a list of items", &other)),
    }
    let mut settings = Settings { unix_seconds: state.unix_seconds(), ..Settings::default() };
    let tools = fields.list("tools")?.into_iter().enumerate().map(|(i, t)| tool(&format!("tools[{i}]"), t));
    settings.tools = generation::tools(tools.collect::<Result<_>>()?, converser)?;
    let choice = Choice::openai(&mut fields)?;
    if choice == Choice::None {
        settings.tools.clear();
    }
    let mut wanted = Wanted { json: None, choice, several: fields.bool("parallel_tool_calls")?.unwrap_or(true) };
    if let Some(reasoning) = fields.take("reasoning") {
        let mut reasoning = Fields::of("reasoning", reasoning)?;
        let effort = reasoning.string("effort")?;
        reasoning.finish(&["summary", "generate_summary"])?;
        generation::set_effort(effort, converser, &mut settings)?;
    }
    if let Some(text) = fields.take("text") {
        let mut text = Fields::of("text", text)?;
        wanted.json = text.take("format").map_or(Ok(None), form::text_format)?;
        text.finish(&["verbosity"])?;
    }
    for (name, idle) in [
        ("store", json!(false)),
        ("background", json!(false)),
        ("truncation", json!("disabled")),
        ("top_logprobs", json!(0)),
        ("include", json!(["reasoning.encrypted_content"])),
    ] {
        fields.refuse_unless(name, &[idle, json!([])])?;
    }
    let (sampling, logit_bias) = generation::sampling(&mut fields, state)?;
    let rules = Rules {
        max_tokens: fields.integer("max_output_tokens", 1, u64::from(u32::MAX))?.map(|n| n as usize),
        visible: converser.visible(),
        ..Rules::default()
    };
    let stream = fields.bool("stream")?.unwrap_or(false);
    fields.finish(HARMLESS)?;
    let prompt = converser.prompt(&messages, &settings)?;
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

/// An item of the conversation.
fn item(path: &str, value: Value, messages: &mut Vec<Message>) -> Result<()> {
    let mut fields = Fields::of(path, value)?;
    let kind = fields.string("type")?.unwrap_or_else(|| "message".to_owned());
    match kind.as_str() {
        "message" => {
            let role = match fields.string("role")?.as_deref() {
                Some("user") => Role::User,
                Some("assistant") => Role::Assistant,
                Some("system") => Role::System,
                Some("developer") => Role::Developer,
                other => {
                    return Err(wrong(&fields.path("role"), "user, assistant, system or developer", &json!(other)));
                }
            };
            let (path, content) = (fields.path("content"), fields.require("content")?);
            messages.push(Message::text(role, text_of(&path, content, &["input_text", "output_text", "text"])?));
        }
        "function_call" => {
            let call = ToolCall {
                id: fields.string("call_id")?.unwrap_or_default(),
                name: fields.string("name")?.unwrap_or_default(),
                arguments: fields.string("arguments")?.unwrap_or_else(|| "{}".to_owned()),
            };
            match messages.last_mut() {
                // Calls belong to the message before them.
                Some(message) if message.role == Role::Assistant => message.tool_calls.push(call),
                _ => {
                    let mut message = Message::text(Role::Assistant, "");
                    message.tool_calls.push(call);
                    messages.push(message);
                }
            }
        }
        "function_call_output" => {
            let (path, output) = (fields.path("output"), fields.require("output")?);
            let mut message =
                Message::text(Role::Tool, text_of(&path, output, &["input_text", "output_text", "text"])?);
            message.tool_call_id = fields.string("call_id")?;
            messages.push(message);
        }
        // What the model thought is its own; templates leave that of earlier turns out.
        "reasoning" => {
            ["summary", "content", "encrypted_content"].iter().for_each(|name| drop(fields.take(name)));
        }
        other => {
            let path = fields.path("type");
            return Err(ApiError::field(&path, format!("{path}: hotset reads no item of type {other:?}")));
        }
    }
    fields.finish(&["id", "status", "phase"])
}

/// A tool, as templates have them.
fn tool(path: &str, value: Value) -> Result<Value> {
    let mut fields = Fields::of(path, value)?;
    match fields.string("type")?.as_deref() {
        Some("function") => {}
        other => return Err(wrong(&fields.path("type"), "function", &json!(other))),
    }
    let name = fields.require("name")?;
    let description = fields.string("description")?.unwrap_or_default();
    let parameters = fields.take("parameters").unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    fields.refuse_unless("strict", &[json!(false)])?;
    fields.finish(&[])?;
    Ok(json!({"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}))
}

/// How clients get an answer: items, of which a text or a reasoning grows.
pub struct Responses {
    id: String,
    model: String,
    created: u64,
    /// Events so far.
    sequence: u64,
    /// Items that are done.
    items: Vec<Value>,
    /// The open one: its type, and the text so far.
    open: Option<(&'static str, String)>,
}

impl Responses {
    /// Of the response with this id.
    pub fn new(id: String, model: String, created: u64) -> Self {
        Self { id, model, created, sequence: 0, items: Vec::new(), open: None }
    }

    fn response(&self, status: &str, outcome: Option<&Outcome>) -> Value {
        let usage = outcome.map(|o| {
            json!({
                "input_tokens": o.prompt,
                "input_tokens_details": {"cached_tokens": o.reused},
                "output_tokens": o.generated,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": o.prompt + o.generated,
            })
        });
        let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "model": self.model,
            "error": null, "incomplete_details": incomplete, "instructions": null, "metadata": {}, "output": self.items,
            "parallel_tool_calls": true, "temperature": null, "tool_choice": "auto", "tools": [], "top_p": null,
            "store": false, "usage": usage, "timings": outcome.map(timings),
        })
    }

    fn event(&mut self, mut value: Value) -> String {
        value["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap_or_default())
    }

    fn item_id(&self) -> String {
        format!("{}_{}", self.id, self.items.len())
    }

    fn message(&self, status: &str, content: Value) -> Value {
        json!({"id": self.item_id(), "type": "message", "role": "assistant", "status": status, "content": content})
    }

    fn reasoning(&self, content: Value) -> Value {
        json!({"id": self.item_id(), "type": "reasoning", "summary": [], "content": content})
    }

    /// Begins an item that grows, unless it is the open one.
    fn grow(&mut self, kind: &'static str, text: &str) -> String {
        let mut events = String::new();
        if self.open.as_ref().is_none_or(|(open, _)| *open != kind) {
            events = self.close_item();
            let index = self.items.len();
            let item =
                if kind == "message" { self.message("in_progress", json!([])) } else { self.reasoning(json!([])) };
            events += &self.event(json!({"type": "response.output_item.added", "output_index": index, "item": item}));
            if kind == "message" {
                let part = json!({"type": "output_text", "text": "", "annotations": []});
                events += &self.part("response.content_part.added", "part", part);
            }
            self.open = Some((kind, String::new()));
        }
        if let Some((_, all)) = &mut self.open {
            all.push_str(text);
        }
        let name = if kind == "message" { "response.output_text.delta" } else { "response.reasoning_text.delta" };
        events + &self.part(name, "delta", json!(text))
    }

    fn part(&mut self, kind: &str, name: &str, value: Value) -> String {
        let (item_id, index) = (self.item_id(), self.items.len());
        let mut event = json!({"type": kind, "item_id": item_id, "output_index": index, "content_index": 0});
        event[name] = value;
        self.event(event)
    }

    fn close_item(&mut self) -> String {
        let Some((kind, text)) = self.open.take() else { return String::new() };
        let (mut events, item) = if kind == "message" {
            let part = json!({"type": "output_text", "text": text, "annotations": []});
            let done = self.part("response.output_text.done", "text", json!(text));
            let done = done + &self.part("response.content_part.done", "part", part.clone());
            (done, self.message("completed", json!([part])))
        } else {
            let done = self.part("response.reasoning_text.done", "text", json!(text));
            (done, self.reasoning(json!([{"type": "reasoning_text", "text": text}])))
        };
        events += &self.item_done(item);
        events
    }

    fn item_done(&mut self, item: Value) -> String {
        let index = self.items.len();
        self.items.push(item.clone());
        self.event(json!({"type": "response.output_item.done", "output_index": index, "item": item}))
    }

    fn call(&mut self, call: ToolCall) -> String {
        let mut events = self.close_item();
        let (index, id) = (self.items.len(), self.item_id());
        let mut item = json!({
            "id": id, "type": "function_call", "status": "in_progress", "call_id": call.id, "name": call.name, "arguments": "",
        });
        events += &self.event(json!({"type": "response.output_item.added", "output_index": index, "item": item}));
        let arguments = json!(call.arguments);
        for (kind, name) in [("delta", "delta"), ("done", "arguments")] {
            let kind = format!("response.function_call_arguments.{kind}");
            let mut event = json!({"type": kind, "item_id": id, "output_index": index});
            event[name] = arguments.clone();
            events += &self.event(event);
        }
        item["status"] = json!("completed");
        item["arguments"] = arguments;
        events + &self.item_done(item)
    }
}

fn status(outcome: &Outcome) -> &'static str {
    match outcome.finish {
        Finish::Length | Finish::Context => "incomplete",
        Finish::End(_) | Finish::Stop(_) | Finish::Cancelled => "completed",
    }
}

impl Form for Responses {
    fn begin(&mut self, _: usize) -> String {
        let response = self.response("in_progress", None);
        let created = self.event(json!({"type": "response.created", "response": response}));
        created + &self.event(json!({"type": "response.in_progress", "response": response}))
    }

    fn delta(&mut self, _: usize, delta: Delta) -> String {
        match delta {
            Delta::Content(text) => self.grow("message", &text),
            Delta::Reasoning(text) => self.grow("reasoning", &text),
            Delta::Call(call) => self.call(call),
        }
    }

    fn end(&mut self, _: usize, outcome: &Outcome) -> String {
        let events = self.close_item();
        let status = status(outcome);
        let response = self.response(status, Some(outcome));
        events + &self.event(json!({"type": format!("response.{status}"), "response": response}))
    }

    fn close(&mut self, _: &[Outcome]) -> String {
        String::new()
    }

    fn failed(&mut self, error: &ApiError) -> String {
        let mut response = self.response("failed", None);
        response["error"] = json!({"code": "server_error", "message": error.json(Dialect::OpenAi)["error"]["message"]});
        self.event(json!({"type": "response.failed", "response": response}))
    }

    fn whole(&mut self, said: Vec<Said>) -> Value {
        let Some(said) = said.into_iter().next() else { return Value::Null };
        // The events are of no use here; the items that they leave are.
        if !said.reasoning.is_empty() {
            self.grow("reasoning", &said.reasoning);
        }
        if !said.content.is_empty() {
            self.grow("message", &said.content);
        }
        self.close_item();
        said.calls.into_iter().for_each(|call| drop(self.call(call)));
        self.response(status(&said.outcome), Some(&said.outcome))
    }
}
