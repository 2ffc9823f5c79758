//! `--json-schema` and `--logit-bias`: what a text has to be, and what it is pushed to.

use std::{ffi::OsString, path::Path};

use hotset::{
    Error, Result,
    constrain::{Answer, Vocabulary},
    sampler::Constraint,
    tokenizer::Tokenizer,
};
use serde_json::Value;

use super::text::{Limit, read_text};

/// Which tokens may come.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct Form {
    /// Generate a JSON value that this schema describes, and nothing after it; the schema itself or a file that has it. {}: any
    /// value
    #[arg(long, value_name = "JSON|FILE", conflicts_with = "ignore_eos")]
    json_schema: Option<OsString>,
    /// Add a number to the logit of a token (its id, as tokenize prints it), from -1000 to 1000; false forbids the token. May be
    /// repeated
    #[arg(long, value_name = "TOKEN=BIAS", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
}

fn bias(text: &str) -> std::result::Result<(u32, f32), String> {
    let expected = || "expected a token's id, =, and a number from -1000 to 1000 or false".to_owned();
    let (token, bias) = text.split_once('=').ok_or_else(expected)?;
    let token = token.trim().parse().map_err(|_| expected())?;
    match bias.trim() {
        "false" | "-inf" => Ok((token, f32::NEG_INFINITY)),
        number => {
            let number = number.parse().ok().filter(|n| (-1000.0..=1000.0).contains(n));
            number.map(|n| (token, n)).ok_or_else(expected)
        }
    }
}

impl Form {
    /// What is added to logits.
    pub fn logit_bias(&self) -> &[(u32, f32)] {
        &self.logit_bias
    }

    /// What holds the text to the schema, and the bytes that it takes.
    ///
    /// # Errors
    /// What cannot be read, is no JSON, or cannot be enforced.
    pub fn constraint(&self, tokenizer: &Tokenizer, n_ctx: usize) -> Result<Option<(Box<dyn Constraint>, u64)>> {
        let Some(given) = &self.json_schema else { return Ok(None) };
        let text = match given.to_str() {
            Some(text) if text.trim_start().starts_with('{') => text.to_owned(),
            _ => read_text(Path::new(given), &Limit::of_texts())?,
        };
        let schema: Value =
            serde_json::from_str(&text).map_err(|e| Error::invalid(format!("--json-schema is no JSON: {e}")))?;
        let vocabulary = Vocabulary::new(tokenizer, &[])?;
        let answer = Answer { json: Some((schema, "--json-schema".to_owned())), calls: Vec::new() };
        let constraint = answer.of_text(tokenizer, &vocabulary)?;
        Ok(Some((constraint, Vocabulary::bytes(tokenizer.n_vocab(), n_ctx, 1))))
    }
}
