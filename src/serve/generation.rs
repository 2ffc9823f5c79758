//! What all ways to ask for text share: how tokens are chosen, when an answer ends, messages and tools as the model gets them.

use serde_json::Value;

use super::{
    error::ApiError,
    fields::{Fields, wrong},
    state::State,
};
use crate::{
    chat::{Message, Role, Settings, ToolCall},
    converse::Converser,
    sampler::SamplerConfig,
    scheduler::Request,
};

type Result<T> = std::result::Result<T, ApiError>;

/// Stop strings of a request, and bytes of each, at most.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;

/// Answers to one request at most.
const MAX_CHOICES: u64 = 8;

/// Tokens of `logit_bias` at most.
const MAX_BIASES: usize = 1024;

/// A bias that low forbids a token, as OpenAI says of it.
const FORBIDDEN: f32 = -100.0;

/// Seeds are kept by JavaScript too.
const MAX_SEED: u64 = (1 << 53) - 1;

/// A request before it meets the queue.
pub struct Generation {
    /// Prompt, sampling and rules. The prompt is not empty.
    pub request: Request,
    /// The text of the prompt, whose end says whether the answer begins with reasoning.
    pub prompt_text: String,
    /// How many of the likeliest tokens are wanted beside each one, if probabilities are.
    pub logprobs: Option<usize>,
    /// Answers.
    pub choices: u64,
    /// Whether the answer is a stream of events.
    pub stream: bool,
    /// Whether a stream ends with usage.
    pub stream_usage: bool,
    /// Tools of the request.
    pub tools: Vec<Value>,
}

/// Fields that say nothing about the text.
pub const HARMLESS: &[&str] = &[
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "verbosity",
];

/// How tokens are chosen, from the fields that OpenAI's and llama-server's clients send, and what is added to logits. `defaults` come
/// from the server's command line.
pub fn sampling(fields: &mut Fields, state: &State) -> Result<(SamplerConfig, Vec<(u32, f32)>)> {
    let defaults = state.sampling;
    let mut number =
        |name, least, most, default| -> Result<f32> { Ok(fields.number(name, least, most)?.unwrap_or(default)) };
    let config = SamplerConfig {
        temperature: number("temperature", 0.0, 100.0, defaults.temperature)?,
        top_p: number("top_p", 0.0, 1.0, defaults.top_p)?,
        min_p: number("min_p", 0.0, 1.0, defaults.min_p)?,
        repeat_penalty: number("repeat_penalty", 0.0, 100.0, defaults.repeat_penalty)?,
        presence_penalty: number("presence_penalty", -2.0, 2.0, defaults.presence_penalty)?,
        frequency_penalty: number("frequency_penalty", -2.0, 2.0, defaults.frequency_penalty)?,
        top_k: fields.integer("top_k", 0, u64::from(u32::MAX))?.map_or(defaults.top_k, |k| k as usize),
        repeat_last_n: fields.integer("repeat_last_n", 0, 1 << 20)?.map_or(defaults.repeat_last_n, |n| n as usize),
        seed: fields.integer("seed", 0, MAX_SEED)?.unwrap_or_else(any_seed),
    };
    config.validate()?;
    Ok((config, logit_bias(fields, state.converser.tokenizer.n_vocab())?))
}

/// `logit_bias`: an object from ids of tokens to numbers, or llama-server's list of pairs; -100 or less, and `false`, forbid a
/// token.
fn logit_bias(fields: &mut Fields, n_vocab: usize) -> Result<Vec<(u32, f32)>> {
    let path = fields.path("logit_bias");
    let pairs: Vec<(Value, Value)> = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map.into_iter().map(|(id, bias)| (Value::from(id), bias)).collect(),
        Some(Value::Array(list)) => {
            let pair = |value: Value| match value {
                Value::Array(pair) => <[Value; 2]>::try_from(pair).ok().map(|[id, bias]| (id, bias)),
                _ => None,
            };
            let pairs: Option<Vec<_>> = list.into_iter().map(pair).collect();
            pairs.ok_or_else(|| ApiError::field(&path, format!("{path} must be pairs of a token and a number")))?
        }
        Some(other) => return Err(wrong(&path, "an object of tokens and numbers", &other)),
    };
    if pairs.len() > MAX_BIASES {
        return Err(ApiError::field(
            &path,
            format!("{path} has {} tokens, and at most {MAX_BIASES} are taken", pairs.len()),
        ));
    }
    let one = |(id, bias): (Value, Value)| {
        let token = id.as_u64().or_else(|| id.as_str()?.parse().ok()).filter(|token| *token < n_vocab as u64);
        let token = token.ok_or_else(|| wrong(&path, "of tokens of the vocabulary, by id", &id))?;
        let forbidden = bias == Value::Bool(false);
        let number = bias.as_f64().filter(|bias| (-1000.0..=1000.0).contains(bias)).map(|bias| bias as f32);
        match if forbidden { Some(FORBIDDEN) } else { number } {
            Some(bias) => Ok((token as u32, if bias <= FORBIDDEN { f32::NEG_INFINITY } else { bias })),
            None => Err(wrong(&path, "of numbers from -1000 to 1000, or false", &bias)),
        }
    };
    pairs.into_iter().map(one).collect()
}

fn any_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() >> 32
}

/// The texts of `name` before which an answer ends: one, or a list.
pub fn stops(fields: &mut Fields, name: &str) -> Result<Vec<String>> {
    let path = fields.path(name);
    let list = match fields.take(name) {
        None => return Ok(Vec::new()),
        Some(text @ Value::String(_)) => vec![text],
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong(&path, "a string or a list of strings", &other)),
    };
    if list.len() > MAX_STOPS {
        return Err(ApiError::field(
            &path,
            format!("{path} has {} strings, and at most {MAX_STOPS} are taken", list.len()),
        ));
    }
    let text = |value: Value| match value {
        Value::String(text) if text.is_empty() => Err(ApiError::field(&path, format!("{path} has an empty string"))),
        Value::String(text) if text.len() > MAX_STOP_BYTES => {
            Err(ApiError::field(&path, format!("{path} has a string of more than {MAX_STOP_BYTES} bytes")))
        }
        Value::String(text) => Ok(text),
        other => Err(wrong(&path, "a string or a list of strings", &other)),
    };
    list.into_iter().map(text).collect()
}

/// `n`, `stream` and what belongs to it.
pub fn delivery(fields: &mut Fields) -> Result<(u64, bool, bool)> {
    let choices = fields.integer("n", 1, MAX_CHOICES)?.unwrap_or(1);
    let stream = fields.bool("stream")?.unwrap_or(false);
    let mut usage = false;
    if let Some(options) = fields.take("stream_options") {
        if !stream {
            return Err(ApiError::field("stream_options", "stream_options is only for streams"));
        }
        let mut options = Fields::of("stream_options", options)?;
        usage = options.bool("include_usage")?.unwrap_or(false);
        options.refuse_unless("include_obfuscation", &[Value::Bool(false)])?;
        options.finish(&[])?;
    }
    Ok((choices, stream, usage))
}

/// Tokens of an answer at most, by either name.
pub fn max_tokens(fields: &mut Fields, names: [&str; 2]) -> Result<Option<usize>> {
    let [a, b] = names;
    let first = fields.integer(a, 1, u64::from(u32::MAX))?;
    let second = fields.integer(b, 1, u64::from(u32::MAX))?;
    Ok(first.or(second).map(|n| n as usize))
}

/// `messages`, as OpenAI's chat has them.
pub fn messages(fields: &mut Fields) -> Result<Vec<Message>> {
    let list = match fields.require("messages")? {
        Value::Array(list) if !list.is_empty() => list,
        Value::Array(_) => return Err(ApiError::field("messages", "messages is empty")),
        other => return Err(wrong("messages", "a list", &other)),
    };
    list.into_iter().enumerate().map(|(i, value)| message(&format!("messages[{i}]"), value)).collect()
}

/// One message of OpenAI's chat.
fn message(path: &str, value: Value) -> Result<Message> {
    let mut fields = Fields::of(path, value)?;
    let role = match fields.string("role")?.as_deref() {
        Some("system") => Role::System,
        Some("developer") => Role::Developer,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        Some(other) => {
            let expected = "system, developer, user, assistant or tool";
            return Err(wrong(&fields.path("role"), expected, &Value::from(other)));
        }
        None => return Err(ApiError::field(fields.path("role"), format!("{} is missing", fields.path("role")))),
    };
    let content_path = fields.path("content");
    let content = match fields.take("content") {
        Some(value) => text_of(&content_path, value, &["text", "input_text", "output_text"])?,
        None if role == Role::Assistant => String::new(),
        None => return Err(ApiError::field(&content_path, format!("{content_path} is missing"))),
    };
    let mut message = Message::text(role, content);
    message.reasoning = match fields.string("reasoning_content")? {
        Some(text) => text,
        None => fields.string("reasoning")?.unwrap_or_default(),
    };
    message.name = fields.string("name")?;
    message.tool_call_id = fields.string("tool_call_id")?;
    let calls_path = fields.path("tool_calls");
    for (i, call) in fields.list("tool_calls")?.into_iter().enumerate() {
        message.tool_calls.push(tool_call(&format!("{calls_path}[{i}]"), call)?);
    }
    fields.finish(&["refusal", "annotations", "audio"])?;
    Ok(message)
}

/// Text, or parts of which all are text.
pub fn text_of(path: &str, value: Value, kinds: &[&str]) -> Result<String> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong(path, "a string or a list of parts", &other)),
    };
    let mut text = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(&format!("{path}[{i}]"), part)?;
        let kind = part.string("type")?.unwrap_or_default();
        if !kinds.contains(&kind.as_str()) {
            let path = part.path("type");
            return Err(ApiError::field(&path, format!("{path} must be text: hotset reads no {kind:?}")));
        }
        match part.string("text")? {
            Some(piece) => text.push_str(&piece),
            None => return Err(ApiError::field(part.path("text"), format!("{} is missing", part.path("text")))),
        }
        part.finish(&["cache_control", "annotations", "citations"])?;
    }
    Ok(text)
}

fn tool_call(path: &str, value: Value) -> Result<ToolCall> {
    let mut fields = Fields::of(path, value)?;
    fields.refuse_unless("type", &[Value::from("function")])?;
    let id = fields.string("id")?.unwrap_or_default();
    let mut function = Fields::of(&fields.path("function"), fields.require("function")?)?;
    fields.finish(&["index"])?;
    let name = function.string("name")?.unwrap_or_default();
    let arguments = function.string("arguments")?.unwrap_or_else(|| "{}".to_owned());
    function.finish(&[])?;
    Ok(ToolCall { id, name, arguments })
}

/// Tools as templates have them, if the model calls any.
pub fn tools(list: Vec<Value>, converser: &Converser) -> Result<Vec<Value>> {
    if list.is_empty() {
        return Ok(list);
    }
    if !converser.template.family().has_calls() {
        return Err(ApiError::field(
            "tools",
            "tools are not supported: the model's chat template has no calls of tools",
        ));
    }
    for (i, tool) in list.iter().enumerate() {
        let path = format!("tools[{i}]");
        if tool["type"] != "function" {
            return Err(wrong(&format!("{path}.type"), "\"function\"", &tool["type"]));
        }
        if tool["function"]["name"].as_str().is_none_or(str::is_empty) {
            return Err(ApiError::field(format!("{path}.function.name"), format!("{path}.function.name is missing")));
        }
        if !matches!(tool["function"]["parameters"], Value::Null | Value::Object(_)) {
            return Err(wrong(
                &format!("{path}.function.parameters"),
                "a JSON schema",
                &tool["function"]["parameters"],
            ));
        }
    }
    Ok(list)
}

/// `reasoning_effort` and whether the model thinks, where its template knows that.
pub fn thinking(fields: &mut Fields, converser: &Converser, settings: &mut Settings) -> Result<()> {
    let effort = fields.string("reasoning_effort")?;
    if let Some(options) = fields.take("chat_template_kwargs") {
        let mut options = Fields::of("chat_template_kwargs", options)?;
        settings.enable_thinking = options.bool("enable_thinking")?;
        settings.reasoning_effort = options.string("reasoning_effort")?;
        options.finish(&[])?;
    }
    set_effort(effort, converser, settings)
}

/// An effort of `none` switches thinking off where there is a switch.
pub fn set_effort(effort: Option<String>, converser: &Converser, settings: &mut Settings) -> Result<()> {
    let template = &converser.template;
    match effort {
        Some(effort) if template.knows_effort() => settings.reasoning_effort = Some(effort),
        Some(effort) if template.knows_thinking() => settings.enable_thinking = Some(effort != "none"),
        Some(_) => {
            return Err(ApiError::field(
                "reasoning_effort",
                "reasoning_effort is not supported by the model's chat template",
            ));
        }
        None => {}
    }
    if settings.enable_thinking.is_some() && !template.knows_thinking() {
        return Err(ApiError::field(
            "enable_thinking",
            "enable_thinking is not supported by the model's chat template",
        ));
    }
    Ok(())
}
