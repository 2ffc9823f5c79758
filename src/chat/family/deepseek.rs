//! DeepSeek: R1 and V3 write `function<sep>NAME` and the arguments in a fence, V3.1 writes `NAME<sep>ARGUMENTS`.

use super::{Marks, Tools};
use crate::chat::ToolCall;

const BEGIN: &str = "<｜tool▁call▁begin｜>";
const SEPARATOR: &str = "<｜tool▁sep｜>";
const END: &str = "<｜tool▁call▁end｜>";

pub const MARKS: &[Marks] = &[Marks {
    open: "<｜tool▁calls▁begin｜>",
    close: Some("<｜tool▁calls▁end｜>"),
    inner: &[BEGIN, SEPARATOR, END],
    parse,
}];

fn parse(body: &str, _: &Tools) -> Option<Vec<ToolCall>> {
    body.split(BEGIN).skip(1).map(one).collect()
}

fn one(body: &str) -> Option<ToolCall> {
    let body = body.split(END).next()?.trim();
    let (first, rest) = body.split_once(SEPARATOR)?;
    let (name, arguments) = match rest.split_once("```json") {
        Some((name, fenced)) => (name, fenced.rsplit_once("```").map_or(fenced, |(inside, _)| inside)),
        None => (first, rest),
    };
    let arguments = arguments.trim();
    let is_object = serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(arguments).is_ok();
    let call = || ToolCall { id: String::new(), name: name.trim().to_owned(), arguments: arguments.to_owned() };
    is_object.then(call)
}
