//! Hermes, Qwen2.5, Qwen3: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

use serde_json::Value;

use super::{Arguments, CallForm, Marks, Part, Tools};
use crate::chat::ToolCall;

pub const MARKS: &[Marks] = &[Marks {
    open: "<tool_call>",
    close: Some("</tool_call>"),
    inner: &[],
    parse,
    form: CallForm {
        before: &[
            Part::Mark("<tool_call>"),
            Part::Text("\n{\"name\": \""),
            Part::Name,
            Part::Text("\", \"arguments\": "),
        ],
        arguments: Arguments::Object,
        after: &[Part::Text("}\n"), Part::Mark("</tool_call>")],
    },
}];

fn parse(body: &str, _: &Tools) -> Option<Vec<ToolCall>> {
    Some(vec![object(&serde_json::from_str(body.trim()).ok()?)?])
}

/// A call that is an object with a name and arguments, by either of their names.
pub fn object(value: &Value) -> Option<ToolCall> {
    let name = value.get("name")?.as_str().filter(|name| !name.is_empty())?.to_owned();
    let arguments = match value.get("arguments").or_else(|| value.get("parameters")) {
        // Some models write the object as a text.
        Some(Value::String(text)) => text.clone(),
        Some(arguments @ Value::Object(_)) => arguments.to_string(),
        None => "{}".to_owned(),
        Some(_) => return None,
    };
    let id = value.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(ToolCall { id, name, arguments })
}
