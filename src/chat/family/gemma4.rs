//! Gemma 4: `<|tool_call>call:NAME{KEY:VALUE, …}<tool_call|>`, with `<|"|>` around strings.

use serde_json::Value;

use super::{
    Arguments, CallForm, Marks, Part, Strings, Tools, call,
    literal::{Cursor, QUOTE},
};
use crate::chat::ToolCall;

pub const MARKS: &[Marks] = &[Marks {
    open: "<|tool_call>",
    close: Some("<tool_call|>"),
    inner: &[QUOTE],
    parse,
    form: CallForm {
        before: &[Part::Mark("<|tool_call>"), Part::Text("call:"), Part::Name, Part::Text("{")],
        arguments: Arguments::Each {
            before: &[Part::Key, Part::Text(":")],
            after: &[],
            between: ",",
            strings: Strings::Raw {
                open: &[Part::Mark(QUOTE)],
                close: &[Part::Mark(QUOTE)],
                without: &[QUOTE, "<tool_call|>"],
            },
            few_escapes: true,
        },
        after: &[Part::Text("}"), Part::Mark("<tool_call|>")],
    },
}];

fn parse(body: &str, _: &Tools) -> Option<Vec<ToolCall>> {
    let mut cursor = Cursor::new(body);
    cursor.take("call:").then_some(())?;
    let name = cursor.word()?;
    match cursor.value()? {
        Value::Object(arguments) => Some(vec![call(name, arguments)]),
        _ => None,
    }
}
