//! Qwen3-Coder, Qwen3.5: `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`, of which the
//! models sometimes leave out the outer marks.

use super::{Arguments, CallForm, Marks, Part, Strings, Tools, call, hermes};
use crate::chat::ToolCall;

pub const MARKS: &[Marks] = &[
    Marks { open: "<tool_call>", close: Some("</tool_call>"), inner: &[], parse: outer, form: FORM },
    Marks { open: "<function=", close: Some("</function>"), inner: &[], parse: inner, form: FORM },
];

const FORM: CallForm = CallForm {
    before: &[Part::Mark("<tool_call>"), Part::Text("\n<function="), Part::Name, Part::Text(">\n")],
    arguments: Arguments::Each {
        before: &[Part::Text("<parameter="), Part::Key, Part::Text(">\n")],
        after: &[Part::Text("\n</parameter>\n")],
        between: "",
        strings: Strings::Raw {
            open: &[],
            close: &[],
            without: &["<parameter=", "</parameter>", "<function=", "</function>", "</tool_call>"],
        },
        few_escapes: false,
    },
    after: &[Part::Text("</function>\n"), Part::Mark("</tool_call>")],
};

fn outer(body: &str, tools: &Tools) -> Option<Vec<ToolCall>> {
    let Some((_, function)) = body.split_once("<function=") else { return (hermes::MARKS[0].parse)(body, tools) };
    inner(function.rsplit_once("</function>").map_or(function, |(function, _)| function), tools)
}

/// What is after `<function=`.
fn inner(body: &str, tools: &Tools) -> Option<Vec<ToolCall>> {
    let (name, mut rest) = body.split_once('>')?;
    let name = name.trim();
    let mut arguments = serde_json::Map::new();
    while let Some((_, parameter)) = rest.split_once("<parameter=") {
        let (key, after) = parameter.split_once('>')?;
        // The closing mark is sometimes missing before the next parameter.
        let end = ["</parameter>", "<parameter="].iter().filter_map(|mark| after.find(mark)).min();
        let value = &after[..end.unwrap_or(after.len())];
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        arguments.insert(key.trim().to_owned(), tools.value(name, key.trim(), value));
        rest = &after[end.unwrap_or(after.len())..];
    }
    (!name.is_empty()).then(|| vec![call(name, arguments)])
}
