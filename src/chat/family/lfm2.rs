//! LFM2: calls as Python has them, `<|tool_call_start|>[NAME(KEY="VALUE", …), …]<|tool_call_end|>`.

use super::{Arguments, CallForm, Marks, Part, Strings, Tools, call, hermes, literal::Cursor};
use crate::chat::ToolCall;

pub const MARKS: &[Marks] = &[Marks {
    open: "<|tool_call_start|>",
    close: Some("<|tool_call_end|>"),
    inner: &[],
    parse,
    form: CallForm {
        before: &[Part::Mark("<|tool_call_start|>"), Part::Text("["), Part::Name, Part::Text("(")],
        arguments: Arguments::Each {
            before: &[Part::Key, Part::Text("=")],
            after: &[],
            between: ", ",
            strings: Strings::Json,
            few_escapes: true,
        },
        after: &[Part::Text(")]"), Part::Mark("<|tool_call_end|>")],
    },
}];

fn parse(body: &str, _: &Tools) -> Option<Vec<ToolCall>> {
    if let Ok(list) = serde_json::from_str::<Vec<serde_json::Value>>(body.trim()) {
        return list.iter().map(hermes::object).collect();
    }
    let mut cursor = Cursor::new(body);
    cursor.take("[").then_some(())?;
    let mut calls = Vec::new();
    while !cursor.take("]") {
        let name = cursor.word()?;
        cursor.take("(").then_some(())?;
        let mut arguments = serde_json::Map::new();
        while !cursor.take(")") {
            let key = cursor.word()?;
            cursor.take("=").then_some(())?;
            arguments.insert(key.to_owned(), cursor.value()?);
            cursor.take(",");
        }
        calls.push(call(name, arguments));
        cursor.take(",");
    }
    Some(calls)
}
