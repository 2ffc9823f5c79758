//! The form that an answer is to have, as requests ask for it: a JSON schema, or a call of a tool.

use serde_json::{Value, json};

use super::{
    error::ApiError,
    fields::{Fields, wrong},
    state::State,
};
use crate::{
    constrain::{Answer, Tool},
    sampler::Constraint,
};

type Result<T> = std::result::Result<T, ApiError>;

/// Which tools may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Those that the model wants.
    Auto,
    /// None: the model does not see them.
    None,
    /// One of them has to be.
    Any,
    /// This one has to be.
    Named(String),
}

impl Choice {
    /// `tool_choice` as OpenAI's chat and responses have it.
    pub fn openai(fields: &mut Fields) -> Result<Self> {
        let expected = "auto, none, required or a function";
        match fields.take("tool_choice") {
            None => Ok(Self::Auto),
            Some(Value::String(choice)) => match choice.as_str() {
                "auto" => Ok(Self::Auto),
                "none" => Ok(Self::None),
                "required" => Ok(Self::Any),
                _ => Err(wrong("tool_choice", expected, &Value::from(choice))),
            },
            Some(Value::Object(map)) => {
                let mut choice = Fields::of("tool_choice", Value::Object(map))?;
                choice.refuse_unless("type", &[json!("function")])?;
                // The chat's has the name within an object.
                let name = match choice.take("function") {
                    Some(function) => {
                        let mut function = Fields::of("tool_choice.function", function)?;
                        let name = function.string("name")?;
                        function.finish(&[])?;
                        name
                    }
                    None => choice.string("name")?,
                };
                choice.finish(&[])?;
                name.map(Self::Named).ok_or_else(|| ApiError::field("tool_choice", "tool_choice names no function"))
            }
            Some(other) => Err(wrong("tool_choice", expected, &other)),
        }
    }

    /// `tool_choice` as Anthropic's messages have it, and whether more than one call may come.
    pub fn anthropic(fields: &mut Fields) -> Result<(Self, bool)> {
        let Some(choice) = fields.take("tool_choice") else { return Ok((Self::Auto, true)) };
        let mut choice = Fields::of("tool_choice", choice)?;
        let kind = choice.string("type")?;
        let several = !choice.bool("disable_parallel_tool_use")?.unwrap_or(false);
        let chosen = match kind.as_deref() {
            Some("auto") => Self::Auto,
            Some("none") => Self::None,
            Some("any") => Self::Any,
            Some("tool") => {
                let name = choice.string("name")?;
                Self::Named(name.ok_or_else(|| ApiError::field("tool_choice.name", "tool_choice.name is missing"))?)
            }
            other => return Err(wrong("tool_choice.type", "auto, none, any or tool", &json!(other))),
        };
        choice.finish(&[])?;
        Ok((chosen, several))
    }

    /// Whether a call has to come.
    fn forces(&self) -> bool {
        matches!(self, Self::Any | Self::Named(_))
    }
}

/// The schema that an answer is to follow, by `response_format` of OpenAI's chat, and the field that has it.
pub fn response_format(fields: &mut Fields) -> Result<Option<(Value, String)>> {
    let Some(format) = fields.take("response_format") else { return Ok(None) };
    let mut format = Fields::of("response_format", format)?;
    match format.string("type")?.as_deref() {
        Some("json_schema") => {
            let inner = format.require("json_schema")?;
            format.finish(&[])?;
            schema(Fields::of("response_format.json_schema", inner)?).map(Some)
        }
        kind => plain_format(format, kind),
    }
}

/// The same of `text.format`, where the schema stands beside the type.
pub fn text_format(format: Value) -> Result<Option<(Value, String)>> {
    let mut format = Fields::of("text.format", format)?;
    match format.string("type")?.as_deref() {
        Some("json_schema") => schema(format).map(Some),
        kind => plain_format(format, kind),
    }
}

/// Formats without a schema.
fn plain_format(format: Fields, kind: Option<&str>) -> Result<Option<(Value, String)>> {
    let path = format.path("type");
    format.finish(&[])?;
    match kind {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some((json!({"type": "object"}), "json_object".to_owned()))),
        other => Err(wrong(&path, "text, json_object or json_schema", &json!(other))),
    }
}

/// A schema with its name. It is enforced whether it says `strict` or not.
fn schema(mut fields: Fields) -> Result<(Value, String)> {
    fields.string("name")?;
    fields.string("description")?;
    fields.bool("strict")?;
    let path = fields.path("schema");
    let schema = fields.require("schema")?;
    fields.finish(&[])?;
    Ok((schema, path))
}

/// What was asked of the form of an answer.
pub struct Wanted {
    /// The schema of an answer that is no call, and its field.
    pub json: Option<(Value, String)>,
    /// Which tools may be called.
    pub choice: Choice,
    /// Whether more than one call may come. Calls that are enforced come alone.
    pub several: bool,
}

impl Wanted {
    /// What enforces it in the answer to `prompt`, if anything has to be; `None` as the prompt: there is no chat.
    pub fn constraint(
        self,
        tools: &[Value],
        prompt: Option<&str>,
        state: &State,
    ) -> Result<Option<Box<dyn Constraint>>> {
        let Self { json, choice, several } = self;
        if choice.forces() && json.is_some() {
            let sentence =
                "an answer that is a call (tool_choice) can have no other form (response_format, text.format)";
            return Err(ApiError::field("tool_choice", sentence));
        }
        let named = |tool: &&Value| match &choice {
            Choice::Named(name) => tool["function"]["name"] == *name,
            _ => choice.forces() || json.is_some(),
        };
        let tool = |tool: &Value| Tool {
            name: tool["function"]["name"].as_str().unwrap_or_default().to_owned(),
            parameters: tool["function"]["parameters"].clone(),
            path: "the name of a tool".to_owned(),
        };
        let calls: Vec<Tool> = tools.iter().filter(named).map(tool).collect();
        if choice.forces() && calls.is_empty() {
            return Err(ApiError::field("tool_choice", "tool_choice asks for a call of a tool that is not in tools"));
        }
        if !several && !tools.is_empty() && calls.is_empty() {
            let sentence = "one call at most is enforced only where tool_choice asks for a call: leave out \
                            parallel_tool_calls and disable_parallel_tool_use";
            return Err(ApiError::field("parallel_tool_calls", sentence));
        }
        if calls.is_empty() && json.is_none() {
            return Ok(None);
        }
        if !state.forms {
            let sentence = "the server's memory budget has no room for answers of a given form (response_format, text.format, \
                            a forced tool_choice): it needs a larger --memory";
            return Err(ApiError::bad(sentence));
        }
        let param = if json.is_some() { "response_format" } else { "tools" };
        let constraint = state.converser.constraint(&Answer { json, calls }, prompt);
        constraint.map(Some).map_err(|error| ApiError::field(param, error.to_string()))
    }
}
