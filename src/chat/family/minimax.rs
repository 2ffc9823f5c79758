//! MiniMax-M2: `<minimax:tool_call><invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke></minimax:tool_call>`,
//! with any number of calls inside.

use super::{Arguments, CallForm, Marks, Part, Strings, Tools, call};
use crate::chat::ToolCall;

pub const MARKS: &[Marks] = &[Marks {
    open: "<minimax:tool_call>",
    close: Some("</minimax:tool_call>"),
    inner: &[],
    parse,
    form: CallForm {
        before: &[Part::Mark("<minimax:tool_call>"), Part::Text("\n<invoke name=\""), Part::Name, Part::Text("\">\n")],
        arguments: Arguments::Each {
            before: &[Part::Text("<parameter name=\""), Part::Key, Part::Text("\">")],
            after: &[Part::Text("</parameter>\n")],
            between: "",
            strings: Strings::Raw {
                open: &[],
                close: &[],
                without: &["<parameter name=", "</parameter>", "<invoke name=", "</invoke>", "</minimax:tool_call>"],
            },
            few_escapes: false,
        },
        after: &[Part::Text("</invoke>\n"), Part::Mark("</minimax:tool_call>")],
    },
}];

fn parse(body: &str, tools: &Tools) -> Option<Vec<ToolCall>> {
    let mut calls = Vec::new();
    for invoke in body.split("<invoke name=").skip(1) {
        let (name, rest) = named(invoke)?;
        let rest = rest.split("</invoke>").next()?;
        let mut arguments = serde_json::Map::new();
        for parameter in rest.split("<parameter name=").skip(1) {
            let (key, value) = named(parameter)?;
            let (value, _) = value.rsplit_once("</parameter>")?;
            let value = value.strip_prefix('\n').unwrap_or(value);
            let value = value.strip_suffix('\n').unwrap_or(value);
            arguments.insert(key.to_owned(), tools.value(name, key, value));
        }
        calls.push(call(name, arguments));
    }
    Some(calls)
}

/// A name with or without quotes, and what is after the mark that it ends.
fn named(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.split_once('>')?;
    Some((name.trim().trim_matches(['"', '\'']), rest))
}
