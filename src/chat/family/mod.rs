//! How families of models mark reasoning and calls of tools. A family is known by its template. One file each.

mod deepseek;
mod form;
mod gemma4;
mod glm;
pub mod harmony;
mod hermes;
mod lfm2;
mod literal;
mod minimax;
mod mistral;
mod tools;
mod xml;

pub use form::{Arguments, CallForm, Part, Strings};
pub use tools::Tools;

use super::ToolCall;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The format of gpt-oss, which has channels instead of marks.
    Harmony,
    /// Marks around reasoning, and around calls.
    Marks { think: Option<(&'static str, &'static str)>, calls: &'static [Marks] },
}

/// The marks around calls, and who reads what is between them.
#[derive(Debug)]
pub struct Marks {
    /// Before.
    pub open: &'static str,
    /// After; `None`: the end of the text.
    pub close: Option<&'static str>,
    /// Marks between these two.
    inner: &'static [&'static str],
    /// Reads what is between them; `None` if it is no call.
    pub parse: fn(&str, &Tools) -> Option<Vec<ToolCall>>,
    /// How a call is written, marks included.
    form: CallForm,
}

impl PartialEq for Marks {
    fn eq(&self, other: &Self) -> bool {
        (self.open, self.close) == (other.open, other.close)
    }
}

impl Eq for Marks {}

/// Marks around reasoning, by what a template has of them.
const THINK: &[(&str, (&str, &str))] = &[
    ("<|channel>", ("<|channel>thought", "<channel|>")),
    ("[THINK]", ("[THINK]", "[/THINK]")),
    ("</think>", ("<think>", "</think>")),
    ("<seed:think>", ("<seed:think>", "</seed:think>")),
];

/// Marks around calls, by what a template has of them, all of it: the most telling first.
const CALLS: &[(&[&str], &[Marks])] = &[
    (&["<minimax:tool_call>"], minimax::MARKS),
    (&["<｜tool▁calls▁begin｜>", "```json"], deepseek::FENCED),
    (&["<｜tool▁calls▁begin｜>"], deepseek::MARKS),
    (&["<|tool_call_start|>"], lfm2::MARKS),
    (&["<|tool_call>"], gemma4::MARKS),
    (&["[TOOL_CALLS]", "[ARGS]"], mistral::NAMED),
    (&["[TOOL_CALLS]"], mistral::MARKS),
    (&["<arg_key>"], glm::MARKS),
    (&["<function="], xml::MARKS),
    (&["<tool_call>"], hermes::MARKS),
];

impl Family {
    /// The family of a template.
    pub fn of_template(template: &str) -> Self {
        if template.contains("<|channel|>") && template.contains("<|message|>") {
            return Self(Kind::Harmony);
        }
        let think = THINK.iter().find(|(mark, _)| template.contains(mark)).map(|(_, marks)| *marks);
        let has_all = |(all, _): &&(&[&str], &[Marks])| all.iter().all(|mark| template.contains(mark));
        let calls = CALLS.iter().find(has_all).map_or(&[][..], |(_, marks)| marks);
        Self(Kind::Marks { think, calls })
    }

    /// Whether calls of tools can be read.
    pub fn has_calls(&self) -> bool {
        self.is_harmony() || !self.calls().is_empty()
    }

    /// How a call is written.
    pub fn call_form(&self) -> Option<&'static CallForm> {
        if self.is_harmony() { Some(&harmony::FORM) } else { self.calls().first().map(|marks| &marks.form) }
    }

    /// What stands before an answer that is no call, and before anything else that comes after reasoning.
    pub fn answer_heads(&self) -> (&'static [Part], &'static [Part]) {
        if self.is_harmony() { (harmony::FINAL, harmony::NEXT) } else { (&[], &[]) }
    }

    /// The marks around reasoning, if the model writes any.
    pub fn think_marks(&self) -> Option<(&'static str, &'static str)> {
        if self.is_harmony() { Some(("<|channel|>analysis<|message|>", "<|end|>")) } else { self.think() }
    }

    /// Control tokens that are part of what the model says, by their text.
    pub fn visible(&self) -> Vec<&'static str> {
        if self.is_harmony() {
            return harmony::MARKS.to_vec();
        }
        let calls =
            self.calls().iter().flat_map(|c| [c.open].into_iter().chain(c.close).chain(c.inner.iter().copied()));
        // The opening mark may be a token and a word after it.
        let think = self.think().into_iter().flat_map(|(open, close)| [open, open.trim_end_matches("thought"), close]);
        calls.chain(think).collect()
    }

    pub(super) fn is_harmony(&self) -> bool {
        self.0 == Kind::Harmony
    }

    pub(super) fn think(&self) -> Option<(&'static str, &'static str)> {
        match self.0 {
            Kind::Harmony => None,
            Kind::Marks { think, .. } => think,
        }
    }

    pub(super) fn calls(&self) -> &'static [Marks] {
        match self.0 {
            Kind::Harmony => &[],
            Kind::Marks { calls, .. } => calls,
        }
    }
}

/// A call whose arguments were read.
fn call(name: &str, arguments: serde_json::Map<String, serde_json::Value>) -> ToolCall {
    let arguments = serde_json::Value::Object(arguments).to_string();
    ToolCall { id: String::new(), name: name.to_owned(), arguments }
}
