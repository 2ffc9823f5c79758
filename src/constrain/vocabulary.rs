//! A model's tokens as a tree by their bytes, and grammars that walk it.

use std::{fmt, sync::Arc};

use llguidance::{
    Matcher, ParserFactory,
    api::{GrammarWithLexer, ParserLimits, TopLevelGrammar},
    toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};

use super::grammar::Grammar;
use crate::{Error, Result, sampler::Constraint, tokenizer::Tokenizer};

/// Longer tokens never come: the tree counts a token's bytes with ten bits.
const MAX_TOKEN_BYTES: usize = 1000;

/// Bytes of all tokens together: the tree numbers its nodes with 22 bits. A vocabulary of 256,000 has less than half.
const MAX_BYTES: usize = 4_000_000;

/// Bytes for each token that the tree takes at most. Measured: 170 for 150,000 tokens of 7 bytes, 190 for 8192.
const BYTES_PER_TOKEN: u64 = 256;

/// Bytes that a grammar takes at most, most of them for its lexer's states; also while it is compiled.
const GRAMMAR_BYTES: u64 = 10 << 20;

/// Bytes that one keeps at most of each token of its text.
const BYTES_PER_TEXT_TOKEN: u64 = 160;

/// Tokens within strings are found by what they are, without a walk through the tree: most of all tokens. With it a step takes
/// 20 µs in the median and 100 at the 95th percentile of 150,000 tokens, measured; the first one of a state up to 20 ms.
const IN_STRINGS: &str = r#"[^"\\\x00-\x1F\x7F]+"#;

/// What compiling and following a grammar may take.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 8000,
        max_grammar_size: 50_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// See the module.
pub struct Vocabulary {
    factory: ParserFactory,
    ends: Vec<u32>,  // sorted
    marks: Vec<u32>, // sorted
}

impl Vocabulary {
    /// Bytes that one takes at most, with the grammars of so many answers at once in contexts of `n_ctx` tokens, and one more that
    /// is compiled.
    pub fn bytes(n_vocab: usize, n_ctx: usize, answers: usize) -> u64 {
        let answer = GRAMMAR_BYTES.saturating_add(BYTES_PER_TEXT_TOKEN.saturating_mul(n_ctx as u64));
        let tree = BYTES_PER_TOKEN.saturating_mul(n_vocab as u64);
        answer.saturating_mul(answers as u64).saturating_add(tree).saturating_add(GRAMMAR_BYTES)
    }

    /// Of a model. `marks` never come as part of a text, but only where a call or a thought begins or ends.
    ///
    /// # Errors
    /// If nothing in it ends a text, or its tokens are longer than the tree can be.
    pub fn new(tokenizer: &Tokenizer, marks: &[u32]) -> Result<Self> {
        let n = tokenizer.n_vocab() as u32;
        let ends: Vec<u32> = (0..n).filter(|&id| tokenizer.is_end_of_generation(id)).collect();
        let Some(&end) = ends.first() else {
            return Err(Error::invalid("no token of the model ends a text, so no form of an answer can be enforced"));
        };
        let words: Vec<Vec<u8>> = (0..n).map(|id| word(tokenizer, id, marks.contains(&id))).collect();
        if words.iter().map(Vec::len).sum::<usize>() > MAX_BYTES {
            return Err(Error::invalid("the model's tokens are too long for the form of an answer to be enforced"));
        }
        let trie = TokTrie::from(&TokRxInfo::new(n, end), &words).with_eos_tokens(&ends);
        drop(words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let capabilities = InferenceCapabilities::default();
        let mut factory =
            ParserFactory::new(&environment, capabilities, &[IN_STRINGS.to_owned()]).map_err(|e| failed(&e))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        let mut marks = marks.to_vec();
        marks.sort_unstable();
        Ok(Self { factory, ends, marks })
    }

    /// Whether this token comes only where a grammar mentions it.
    pub(super) fn is_mark(&self, tokenizer: &Tokenizer, token: u32) -> bool {
        self.marks.binary_search(&token).is_ok() || tokenizer.decode_bytes(token).is_empty()
    }

    /// What holds an answer to a grammar.
    ///
    /// # Errors
    /// Names the schema that cannot be enforced, and why.
    pub(super) fn compile(&self, grammar: &Grammar) -> Result<Box<dyn Constraint>> {
        let parts = grammar.parts();
        let with_name = |(i, part): (usize, &super::grammar::Part)| GrammarWithLexer {
            name: Some(Grammar::name(i)),
            ..GrammarWithLexer::from_json_schema(part.schema.clone())
        };
        let mut grammars = vec![GrammarWithLexer::from_lark(grammar.text())];
        grammars.extend(parts.iter().enumerate().map(with_name));
        match self.factory.create_parser(TopLevelGrammar { grammars, max_tokens: None }) {
            Ok(parser) => {
                let matcher = Matcher::new(Ok(parser));
                let mut held = Held { matcher, ends: self.ends.clone(), mask: SimpleVob::new() };
                // What has no first token has no text.
                held.allowed()?;
                Ok(Box::new(held))
            }
            Err(error) => {
                // Which of them it was shows when each is alone.
                let alone = |part: &&super::grammar::Part| {
                    self.factory.create_parser(TopLevelGrammar::from_json_schema(part.schema.clone())).is_err()
                };
                let path = parts.iter().find(alone).or(parts.first()).map_or("the form", |part| part.path.as_str());
                Err(Error::invalid(format!("{path} cannot be enforced: {}", sentence(&error.to_string()))))
            }
        }
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vocabulary({} tokens)", self.factory.tok_env().tok_trie().vocab_size())
    }
}

/// A token's bytes as the tree has them: empty for one that is no text and never comes, a mark and its text for one that only
/// a grammar's own mention brings.
fn word(tokenizer: &Tokenizer, id: u32, is_mark: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokenizer.append_bytes(id, false, &mut bytes);
    // No text has this byte.
    if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) || bytes.len() > MAX_TOKEN_BYTES {
        return Vec::new();
    }
    if bytes.is_empty() || is_mark {
        bytes.clear();
        bytes.push(TokTrie::SPECIAL_TOKEN_MARKER);
        tokenizer.append_bytes(id, true, &mut bytes);
        if bytes.len() == 1 || bytes.len() > MAX_TOKEN_BYTES {
            bytes.clear();
        }
    }
    bytes
}

/// Follows a grammar.
#[derive(Clone)]
struct Held {
    matcher: Matcher,
    ends: Vec<u32>,
    mask: SimpleVob,
}

impl Constraint for Held {
    fn allowed(&mut self) -> Result<&[u32]> {
        self.mask = self.matcher.compute_mask_or_eos().map_err(|e| failed(&e))?;
        Ok(self.mask.as_slice())
    }

    fn push(&mut self, token: u32) -> Result<()> {
        if self.ends.binary_search(&token).is_ok() {
            return Ok(()); // the text is over
        }
        self.matcher.consume_token(token).map_err(|e| failed(&e))
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({:?})", self.matcher.stop_reason())
    }
}

fn failed(error: &impl fmt::Display) -> Error {
    Error::invalid(format!("the form of the answer cannot be enforced: {}", sentence(&error.to_string())))
}

/// What the library says, in one line and in words of this program.
fn sentence(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default().trim();
    if let Some((_, keys)) = line.split_once("Unimplemented keys: ") {
        let keys = keys.trim_matches(['[', ']']).replace('"', "");
        return format!("hotset does not know how to enforce {keys}");
    }
    if line.contains("oneOf constraints") {
        return "the options of a oneOf must exclude each other visibly, by a constant or a type; anyOf need not"
            .to_owned();
    }
    if line.starts_with("panic") {
        return "its numbers are too large".to_owned();
    }
    if line.contains("NoExtension") || line.contains("no tokens allowed") {
        return "no text is as it says".to_owned();
    }
    if ["too big", "too large", "too many", "max is", "imit"].iter().any(|words| line.contains(words)) {
        return "it is too large, or has too many possibilities".to_owned();
    }
    line.to_owned()
}
