//! Values as Python and Gemma write them: words without quotes as keys, `True`, and strings in any of three quotes.

use serde_json::{Map, Value};

/// Gemma's quotation mark, a token of its own.
pub const QUOTE: &str = "<|\"|>";

/// Lists within lists at most.
const MAX_DEPTH: usize = 64;

/// A place in a text.
pub struct Cursor<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Cursor<'a> {
    /// Its beginning.
    pub fn new(text: &'a str) -> Self {
        Self { rest: text, depth: 0 }
    }

    /// Steps over `mark` and white space before it, if it comes next.
    pub fn take(&mut self, mark: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(mark);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// The word that comes next.
    pub fn word(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let end = text.find(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '-' | '.' | '+'));
        let (word, rest) = text.split_at(end.unwrap_or(text.len()));
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    /// The value that comes next.
    pub fn value(&mut self) -> Option<Value> {
        if self.depth == MAX_DEPTH {
            return None;
        }
        if self.take("[") {
            self.depth += 1;
            let mut list = Vec::new();
            while !self.take("]") {
                list.push(self.value()?);
                self.take(",");
            }
            self.depth -= 1;
            return Some(Value::Array(list));
        }
        if self.take("{") {
            self.depth += 1;
            let mut map = Map::new();
            while !self.take("}") {
                let key = match self.string() {
                    Some(key) => key?,
                    None => self.word()?.to_owned(),
                };
                self.take(":").then_some(())?;
                map.insert(key, self.value()?);
                self.take(",");
            }
            self.depth -= 1;
            return Some(Value::Object(map));
        }
        if let Some(string) = self.string() {
            return string.map(Value::String);
        }
        match self.word()? {
            "True" => Some(Value::Bool(true)),
            "False" => Some(Value::Bool(false)),
            "None" => Some(Value::Null),
            other => serde_json::from_str(other).ok(),
        }
    }

    /// A string, if a quote comes next; inside: `None` if it does not end.
    fn string(&mut self) -> Option<Option<String>> {
        if self.take(QUOTE) {
            let parts = self.rest.split_once(QUOTE);
            self.rest = parts.map_or("", |(_, rest)| rest);
            return Some(parts.map(|(text, _)| text.to_owned()));
        }
        let quote = if self.take("\"") {
            '"'
        } else if self.take("'") {
            '\''
        } else {
            return None;
        };
        let (mut text, mut chars) = (String::new(), self.rest.char_indices());
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Some(Some(text));
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, 'r')) => text.push('\r'),
                    Some((_, c @ ('\\' | '\'' | '"'))) => text.push(c),
                    Some((_, other)) => text.extend(['\\', other]),
                    None => return Some(None),
                },
                c => text.push(c),
            }
        }
        Some(None)
    }
}
