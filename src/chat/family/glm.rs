//! GLM-4.5 and later: `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`.

use super::{Arguments, CallForm, Marks, Part, Strings, Tools, call};
use crate::chat::ToolCall;

pub const MARKS: &[Marks] = &[Marks {
    open: "<tool_call>",
    close: Some("</tool_call>"),
    inner: &["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    parse,
    form: CallForm {
        before: &[Part::Mark("<tool_call>"), Part::Name, Part::Text("\n")],
        arguments: Arguments::Each {
            before: &[
                Part::Mark("<arg_key>"),
                Part::Key,
                Part::Mark("</arg_key>"),
                Part::Text("\n"),
                Part::Mark("<arg_value>"),
            ],
            after: &[Part::Mark("</arg_value>"), Part::Text("\n")],
            between: "",
            strings: Strings::Raw {
                open: &[],
                close: &[],
                without: &["<arg_key>", "</arg_value>", "<arg_value>", "</tool_call>"],
            },
            few_escapes: false,
        },
        after: &[Part::Mark("</tool_call>")],
    },
}];

fn parse(body: &str, tools: &Tools) -> Option<Vec<ToolCall>> {
    let name = body.split("<arg_key>").next()?.trim();
    let mut arguments = serde_json::Map::new();
    for pair in body.split("<arg_key>").skip(1) {
        let (key, rest) = pair.split_once("</arg_key>")?;
        let (_, value) = rest.split_once("<arg_value>")?;
        let (value, _) = value.rsplit_once("</arg_value>")?;
        arguments.insert(key.trim().to_owned(), tools.value(name, key.trim(), value));
    }
    let is_name = !name.is_empty() && !name.contains(char::is_whitespace);
    is_name.then(|| vec![call(name, arguments)])
}
