//! Mistral: `[TOOL_CALLS][{"name": …, "arguments": {…}, "id": …}]`, later `[TOOL_CALLS]NAME[ARGS]{…}` for each call, with or
//! without `[CALL_ID]…` before the arguments. The end of the text ends them.

use serde_json::Value;

use super::{Arguments, CallForm, Marks, Part, Tools, hermes};
use crate::chat::ToolCall;

const OPEN: &str = "[TOOL_CALLS]";

/// The older ones.
pub const MARKS: &[Marks] = &[Marks {
    open: OPEN,
    close: None,
    inner: &["[ARGS]", "[CALL_ID]"],
    parse,
    form: CallForm {
        before: &[Part::Mark(OPEN), Part::Text("[{\"name\": \""), Part::Name, Part::Text("\", \"arguments\": ")],
        arguments: Arguments::Object,
        after: &[Part::Text("}]")],
    },
}];

/// The later ones.
pub const NAMED: &[Marks] = &[Marks {
    form: CallForm {
        before: &[Part::Mark(OPEN), Part::Name, Part::Mark("[ARGS]")],
        arguments: Arguments::Object,
        after: &[],
    },
    ..MARKS[0]
}];

fn parse(body: &str, _: &Tools) -> Option<Vec<ToolCall>> {
    if let Ok(list) = serde_json::from_str::<Vec<Value>>(body.trim()) {
        return list.iter().map(hermes::object).collect();
    }
    body.split(OPEN).map(one).collect()
}

fn one(body: &str) -> Option<ToolCall> {
    let arguments_at = body.find("[ARGS]").or_else(|| body.find('{'))?;
    let (name, arguments) = body.split_at(arguments_at);
    let arguments = arguments.trim_start_matches("[ARGS]").trim();
    let (name, id) = name.split_once("[CALL_ID]").unwrap_or((name, ""));
    let is_object = serde_json::from_str::<serde_json::Map<_, Value>>(arguments).is_ok();
    let call = ToolCall { id: id.trim().to_owned(), name: name.trim().to_owned(), arguments: arguments.to_owned() };
    (is_object && !call.name.is_empty()).then_some(call)
}
