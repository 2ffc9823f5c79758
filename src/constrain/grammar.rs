//! A grammar as `llguidance` reads it, in its dialect of Lark: texts, tokens, JSON schemas and raw strings.

use std::fmt::Write;

use serde_json::Value;

use super::{Vocabulary, schema};
use crate::tokenizer::Tokenizer;

/// White space between reasoning and what comes after it.
const SPACE: &str = "/[ \\t\\r\\n]{1,8}/";

/// A schema within a grammar.
pub struct Part {
    /// As the library gets it.
    pub schema: Value,
    /// Whose it is, for messages.
    pub path: String,
}

/// See the module. Its methods give expressions, of which [`Grammar::rule`] makes rules.
pub struct Grammar<'a> {
    tokenizer: &'a Tokenizer,
    vocabulary: &'a Vocabulary,
    rules: String,
    n_rules: usize,
    parts: Vec<Part>,
}

impl<'a> Grammar<'a> {
    /// Without a rule yet. The first thing that is matched is what [`Grammar::start`] gets.
    pub fn new(tokenizer: &'a Tokenizer, vocabulary: &'a Vocabulary) -> Self {
        Self { tokenizer, vocabulary, rules: String::new(), n_rules: 0, parts: Vec::new() }
    }

    /// All of it.
    pub fn text(&self) -> String {
        self.rules.clone()
    }

    /// Its schemas, in the order of their [names](Self::name).
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The name of a schema.
    pub fn name(part: usize) -> String {
        format!("json{part}")
    }

    /// The rule that everything begins with.
    pub fn start(&mut self, expression: &str) {
        let _ = writeln!(self.rules, "start: {expression}");
    }

    /// A rule, by its name.
    pub fn rule(&mut self, expression: &str) -> String {
        let name = format!("r{}", self.next());
        let _ = writeln!(self.rules, "{name}: {expression}");
        name
    }

    fn next(&mut self) -> usize {
        self.n_rules += 1;
        self.n_rules
    }

    /// A text.
    pub fn literal(text: &str) -> String {
        Value::from(text).to_string()
    }

    /// The token that a mark is or begins with, and the rest of the mark.
    pub fn token<'m>(&self, mark: &'m str) -> Option<(u32, &'m str)> {
        let ends = mark.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
        ends.into_iter().find_map(|end| Some((self.tokenizer.special_token(&mark[..end])?, &mark[end..])))
    }

    /// A mark: its token where it is one, else its text.
    pub fn mark(&self, mark: &str) -> String {
        match self.token(mark) {
            None => Self::literal(mark),
            Some((token, "")) => format!("<[{token}]>"),
            Some((token, rest)) => format!("<[{token}]> {}", Self::literal(rest)),
        }
    }

    /// A value by its schema.
    pub fn json(&mut self, schema: Value, path: &str, few_escapes: bool) -> String {
        self.parts.push(Part { schema: schema::written(schema, few_escapes), path: path.to_owned() });
        format!("@{}", Self::name(self.parts.len() - 1))
    }

    /// Any text up to `mark`, which belongs to it, with none of `without`; `lengths`: its characters at least and at most.
    pub fn text_up_to(&mut self, mark: &str, without: &[&str], lengths: (u64, Option<u64>)) -> String {
        match self.token(mark) {
            // Only as a token: who reads the text would take it for the mark if it were spelled.
            Some((token, _)) if self.vocabulary.is_mark(self.tokenizer, token) => {
                let without: Vec<&str> = without.iter().copied().filter(|text| *text != mark).chain([mark]).collect();
                let body = self.body(&without, lengths);
                format!("{body} {}", self.mark(mark))
            }
            // As a token or spelled: the shortest text that ends so.
            _ => {
                let body = self.body(without, lengths);
                let name = format!("r{}", self.next());
                let _ = writeln!(self.rules, "{name}[suffix={}]: {body}", Self::literal(mark));
                name
            }
        }
    }

    /// A terminal for text.
    fn body(&mut self, without: &[&str], (least, most): (u64, Option<u64>)) -> String {
        let name = format!("T{}", self.next());
        let most = most.map_or(String::new(), |most| most.to_string());
        let any = format!("/(?s:.{{{least},{most}}})/");
        let not: Vec<String> = without.iter().map(|text| regex::escape(text).replace('/', "\\/")).collect();
        let not = if not.is_empty() { String::new() } else { format!(" & ~/(?s:.*({}).*)/", not.join("|")) };
        let _ = writeln!(self.rules, "{name}: {any}{not}");
        name
    }

    /// White space, or none.
    pub fn space(&mut self) -> String {
        let name = format!("T{}", self.next());
        let _ = writeln!(self.rules, "{name}: {SPACE}");
        format!("{name}?")
    }
}
