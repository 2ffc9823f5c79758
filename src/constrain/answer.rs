//! What an answer is to be, after the model's reasoning if there is any.

use serde_json::Value;

use super::{
    Vocabulary,
    calls::{call, texts},
    grammar::Grammar,
    schema,
};
use crate::{Error, Result, chat::Family, sampler::Constraint, tokenizer::Tokenizer};

/// A tool that may be called.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The schema of its parameters; null: it has none.
    pub parameters: Value,
    /// The field that names it, for messages.
    pub path: String,
}

/// See the module. With both a schema and tools, it is either.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// A value by this schema, and the field that has it.
    pub json: Option<(Value, String)>,
    /// One call of one of these.
    pub calls: Vec<Tool>,
}

impl Answer {
    /// What holds a text to it from its first token, without a chat.
    ///
    /// # Errors
    /// Names the schema that cannot be enforced, and why.
    pub fn of_text(&self, tokenizer: &Tokenizer, vocabulary: &Vocabulary) -> Result<Box<dyn Constraint>> {
        self.of_chat(&Family::of_template(""), "", tokenizer, vocabulary)
    }

    /// What holds the answer of a model of this family to it. `prompt` may have begun the reasoning.
    ///
    /// # Errors
    /// Names the schema that cannot be enforced, and why; a family without calls.
    pub fn of_chat(
        &self,
        family: &Family,
        prompt: &str,
        tokenizer: &Tokenizer,
        vocabulary: &Vocabulary,
    ) -> Result<Box<dyn Constraint>> {
        let mut grammar = Grammar::new(tokenizer, vocabulary);
        let (head, next) = family.answer_heads();
        let mut answers = Vec::new();
        if let Some((json, path)) = &self.json {
            schema::check(json, path)?;
            let head = texts(&grammar, head, "", "");
            let json = grammar.json(json.clone(), path, false);
            answers.push(format!("{head} {json}"));
        }
        for tool in &self.calls {
            let form =
                family.call_form().ok_or_else(|| Error::invalid("the model's chat template has no calls of tools"))?;
            answers.push(call(&mut grammar, form, tool)?);
        }
        let answer = grammar.rule(&answers.join(" | "));
        let next = texts(&grammar, next, "", "");
        match family.think_marks() {
            None => grammar.start(&answer),
            Some((open, close)) => {
                // Marks of another message would end the thought for who reads it.
                let others = if next.is_empty() { Vec::new() } else { family.visible() };
                let others: Vec<&str> = others.into_iter().filter(|mark| *mark != close).collect();
                let thought = grammar.text_up_to(close, &others, (0, None));
                let space = if next.is_empty() { grammar.space() } else { next };
                if prompt.trim_end().ends_with(open) {
                    grammar.start(&format!("{thought} {space} {answer}"));
                } else {
                    let parts = opening(&grammar, open);
                    grammar.start(&format!("({parts} {thought} {space})? {answer}"));
                }
            }
        }
        vocabulary.compile(&grammar)
    }
}

/// The mark that begins a thought, which may be several tokens with words between them.
fn opening(grammar: &Grammar<'_>, open: &str) -> String {
    let mut parts = Vec::new();
    let mut rest = open;
    while !rest.is_empty() {
        match grammar.token(rest) {
            Some((token, after)) => {
                parts.push(format!("<[{token}]>"));
                rest = after;
            }
            None => {
                // Text up to the next mark.
                let end = rest[1..].find('<').map_or(rest.len(), |at| at + 1);
                parts.push(Grammar::literal(&rest[..end]));
                rest = &rest[end..];
            }
        }
    }
    parts.join(" ")
}
