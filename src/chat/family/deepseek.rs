//! DeepSeek: R1 and V3 write `function<sep>NAME` and the arguments in a fence, V3.1 writes `NAME<sep>ARGUMENTS`.

use super::{Arguments, CallForm, Marks, Part, Tools};
use crate::chat::ToolCall;

const BEGIN: &str = "<｜tool▁call▁begin｜>";
const SEPARATOR: &str = "<｜tool▁sep｜>";
const END: &str = "<｜tool▁call▁end｜>";

const OPEN: &str = "<｜tool▁calls▁begin｜>";
const CLOSE: &str = "<｜tool▁calls▁end｜>";

const PLAIN: CallForm = CallForm {
    before: &[Part::Mark(OPEN), Part::Mark(BEGIN), Part::Name, Part::Mark(SEPARATOR)],
    arguments: Arguments::Object,
    after: &[Part::Mark(END), Part::Mark(CLOSE)],
};

/// V3.1.
pub const MARKS: &[Marks] =
    &[Marks { open: OPEN, close: Some(CLOSE), inner: &[BEGIN, SEPARATOR, END], parse, form: PLAIN }];

/// R1 and V3.
pub const FENCED: &[Marks] = &[Marks {
    form: CallForm {
        before: &[
            Part::Mark(OPEN),
            Part::Mark(BEGIN),
            Part::Text("function"),
            Part::Mark(SEPARATOR),
            Part::Name,
            Part::Text("\n```json\n"),
        ],
        after: &[Part::Text("\n```"), Part::Mark(END), Part::Mark(CLOSE)],
        ..PLAIN
    },
    ..MARKS[0]
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
