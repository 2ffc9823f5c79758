//! Gemma 4: `<|tool_call>call:NAME{KEY:VALUE, …}<tool_call|>`, with `<|"|>` around strings.

use serde_json::Value;

use super::{
    Marks, Tools, call,
    literal::{Cursor, QUOTE},
};
use crate::chat::ToolCall;

pub const MARKS: &[Marks] = &[Marks { open: "<|tool_call>", close: Some("<tool_call|>"), inner: &[QUOTE], parse }];

fn parse(body: &str, _: &Tools) -> Option<Vec<ToolCall>> {
    let mut cursor = Cursor::new(body);
    cursor.take("call:").then_some(())?;
    let name = cursor.word()?;
    match cursor.value()? {
        Value::Object(arguments) => Some(vec![call(name, arguments)]),
        _ => None,
    }
}
