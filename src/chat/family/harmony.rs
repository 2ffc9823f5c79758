//! gpt-oss: messages on channels. `<|channel|>analysis<|message|>…<|end|>` is reasoning, `final` and `commentary` are the answer,
//! and a message to a recipient, `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>`, is a call.

use super::{Arguments, CallForm, Part};
use crate::chat::{
    ToolCall,
    parser::Delta,
    scanner::{Piece, Scanner},
};

/// All that structures a text.
pub const MARKS: &[&str] =
    &["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>"];

/// What ends a message or begins the next one's head.
const BODY: &[&str] = &["<|channel|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>"];

/// A call.
pub const FORM: CallForm = CallForm {
    before: &[
        Part::Mark("<|channel|>"),
        Part::Text("commentary to=functions."),
        Part::Name,
        Part::Text(" "),
        Part::Mark("<|constrain|>"),
        Part::Text("json"),
        Part::Mark("<|message|>"),
    ],
    arguments: Arguments::Object,
    after: &[],
};

/// The head of an answer.
pub const FINAL: &[Part] = &[Part::Mark("<|channel|>"), Part::Text("final"), Part::Mark("<|message|>")];

/// What begins the next message.
pub const NEXT: &[Part] = &[Part::Mark("<|start|>"), Part::Text("assistant")];

/// Where in a message the text is.
#[derive(Debug)]
pub enum Harmony {
    /// Before `<|message|>`: the text so far.
    Head(String),
    /// Reasoning.
    Analysis,
    /// The answer.
    Answer,
    /// The arguments of a call, so far.
    Call { name: String, arguments: String },
}

impl Default for Harmony {
    /// A text without a channel is an answer.
    fn default() -> Self {
        Harmony::Answer
    }
}

impl Harmony {
    /// Reads what is certain.
    pub fn run(&mut self, scanner: &mut Scanner, deltas: &mut Vec<Delta>) {
        loop {
            let piece = match self {
                Harmony::Head(_) => scanner.next(&["<|message|>"]),
                _ => scanner.next(BODY),
            };
            match piece {
                None => return,
                Some(Piece::Text(text)) => self.text(text, deltas),
                Some(Piece::Mark(_)) => {
                    *self = match std::mem::take(self) {
                        Harmony::Head(head) => of_head(&head),
                        body => {
                            body.end(deltas);
                            Harmony::Head(String::new())
                        }
                    }
                }
            }
        }
    }

    /// Reads the end of the text.
    pub fn finish(&mut self, rest: &str, deltas: &mut Vec<Delta>) {
        if !rest.is_empty() {
            self.text(rest.to_owned(), deltas);
        }
        std::mem::take(self).end(deltas);
    }

    fn text(&mut self, text: String, deltas: &mut Vec<Delta>) {
        match self {
            Harmony::Head(head) => head.push_str(&text),
            Harmony::Analysis => deltas.push(Delta::Reasoning(text)),
            Harmony::Answer => deltas.push(Delta::Content(text)),
            Harmony::Call { arguments, .. } => arguments.push_str(&text),
        }
    }

    fn end(self, deltas: &mut Vec<Delta>) {
        if let Harmony::Call { name, arguments } = self {
            let arguments = arguments.trim().to_owned();
            deltas.push(Delta::Call(ToolCall { id: String::new(), name, arguments }));
        }
    }
}

/// What a message with this head is.
fn of_head(head: &str) -> Harmony {
    let recipient = head.split_once("to=").map(|(_, to)| to);
    let name = recipient.and_then(|to| to.split(|c: char| c.is_whitespace() || c == '<').next());
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        let name = name.strip_prefix("functions.").unwrap_or(name).to_owned();
        return Harmony::Call { name, arguments: String::new() };
    }
    let channel = head.rsplit("<|channel|>").next().unwrap_or(head).trim_start();
    if channel.starts_with("analysis") { Harmony::Analysis } else { Harmony::Answer }
}
