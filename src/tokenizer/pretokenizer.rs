//! Cuts text into the words inside which BPE merges. Knows no token.
//!
//! `tokenizer.ggml.pre` names a row of [`row`]. A row is a list of expressions, as in llama.cpp: each cuts the pieces
//! of the one before into its matches and the gaps between them. A wrong row gives valid but wrong tokens, so an
//! unknown name is an error.

use std::path::Path;

use regex::{Regex, RegexBuilder};

use super::patterns::*;
use crate::{Error, Result};

/// A lazy automaton's cache; the default of 2 MiB an expression would outweigh the vocabulary. Below 256 KiB, long
/// multilingual text makes it thrash.
const AUTOMATON_BYTES: usize = 512 << 10;

/// What llama.cpp's tables say of one pre-tokenizer.
pub(super) struct PreTokenizer {
    passes: Vec<Pass>,
    /// A word that is a token stays whole, whatever the merges say.
    pub ignore_merges: bool,
    /// What `add_bos_token` means when the file does not say.
    pub add_bos: bool,
    /// Symbols are bytes; otherwise characters, with `▁` for a space.
    pub byte_level: bool,
    /// The models' own tokenizers compose text first (`NFC` in their `tokenizer.json`). llama.cpp does not, nor do we.
    pub composes: bool,
}

enum Pass {
    /// Each match becomes a piece.
    Expression {
        regex: Regex,
        /// The expression ended in [`LOOKAHEAD`], which the regex engine lacks and [`Pass::cut`] does by hand.
        lookahead: bool,
        /// White space that ends in a line break is another alternative's match.
        line_breaks: bool,
    },
    /// Runs of digits in groups of three, counted from the right.
    DigitsFromRight(Regex),
}

/// White space up to, but not including, the last character before a word: it goes with the word.
const LOOKAHEAD: &str = r"|\s+(?!\S)|\s+";
/// Stands for [`Pass::DigitsFromRight`] in a row.
const DIGITS_FROM_RIGHT: &str = "";

/// The names and rows of llama.cpp's `llm_tokenizer_bpe` (2026-11), whose expressions come from each model's
/// `tokenizer.json`. Left out: chameleon, jais-2, superbpe, tiny_aya and the embedding models' own.
fn row(name: &str) -> Option<&'static [&'static str]> {
    Some(match name {
        "default" => &[DEFAULT_PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        "gpt-2" | "phi-2" | "gigachat" | "a.x-4.0" | "mellum" | "mpt" | "olmo" | "jais" | "exaone4" | "trillion"
        | "granite-docling" => &[GPT2],
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" | "dbrx"
        | "smaug-bpe" | "chatglm-bpe" | "glm4" | "glm5" => &[LLAMA3],
        "minicpm5" => &[r"\p{N}{1,3}", MINICPM5],
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan" | "solar-open"
        | "grok-2" => &[QWEN2],
        "qwen35" => &[QWEN35],
        "laguna" => &[r"[^\n]+|[\n]+", QWEN2],
        "ufakzeka" => &[UFAKZEKA],
        "deepseek-llm" => {
            &["[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", "[一-龥\u{800}-一가-\u{d7ff}]+", r"\p{N}+"]
        }
        "deepseek-coder" => &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u{800}-一가-\u{d7ff}]+", r"\p{N}"],
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => {
            &[r"\p{N}{1,3}", "[一-龥\u{3040}-ゟ゠-ヿ]+", DEEPSEEK3]
        }
        "spark2_5" => &[r"\p{N}{1,3}", "[一-龥\u{3040}-ゟ゠-ヿ]+", SPARK, r"\p{N}"],
        "youtu" => &[YOUTU_BLOCKS, YOUTU],
        "falcon" => &[FALCON_PUNCTUATION, GPT2, "[0-9][0-9][0-9]"],
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
            &[r"\p{N}", GPT2]
        }
        "poro-chat" | "bloom" | "gpt3-finnish" => &[BLOOM],
        "viking" => &[BLOOM, r"\p{N}"],
        "tekken" => &[TEKKEN],
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => &[GPT4O],
        "kimi-k2" => &[KIMI],
        "bailingmoe" | "bailingmoe2" | "llada-moe" => &[BAILING],
        "seed-coder" => &[SEED_CODER],
        "afmoe" => &[DIGITS_FROM_RIGHT, AFMOE_SCRIPTS, DEEPSEEK3],
        "exaone-moe" => &[EXAONE_MOE],
        "gemma4" | "sarvam-moe" => &[r"[^\n]+|[\n]+"],
        _ => return None,
    })
}

impl PreTokenizer {
    /// The pre-tokenizer of this name.
    pub fn new(path: &Path, name: &str) -> Result<Self> {
        let Some(row) = row(name) else {
            let expected = "a pre-tokenizer of a decoder model that llama.cpp knows, such as qwen2 or llama-bpe";
            return Err(Error::unsupported(path, "pre-tokenizer (tokenizer.ggml.pre)", expected, name));
        };
        let llama3 = matches!(
            name,
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
        );
        let by_characters = matches!(name, "gemma4" | "sarvam-moe");
        Ok(Self {
            passes: row.iter().map(|expression| Pass::new(expression)).collect(),
            ignore_merges: llama3 || matches!(name, "tekken" | "glm4" | "glm5" | "minicpm5" | "youtu"),
            add_bos: llama3 || matches!(name, "tekken" | "gemma4"),
            byte_level: !by_characters,
            composes: matches!(name, "qwen2" | "qwen35" | "mpt" | "olmo"),
        })
    }

    /// Calls `word` for every word of `text`, in order.
    pub fn split(&self, text: &str, mut word: impl FnMut(&str)) {
        split(&self.passes, text, &mut word);
    }
}

fn split(passes: &[Pass], text: &str, word: &mut dyn FnMut(&str)) {
    match passes.split_first() {
        _ if text.is_empty() => {}
        None => word(text),
        Some((pass, later)) => pass.cut(text, &mut |piece| split(later, piece, word)),
    }
}

impl Pass {
    fn new(expression: &str) -> Self {
        let compile = |expression: &str| {
            RegexBuilder::new(expression)
                .dfa_size_limit(AUTOMATON_BYTES)
                .build()
                .expect("the table holds only expressions that a test has compiled")
        };
        if expression == DIGITS_FROM_RIGHT {
            return Pass::DigitsFromRight(compile(r"\p{N}+"));
        }
        let head = expression.strip_suffix(LOOKAHEAD);
        Pass::Expression {
            regex: compile(&head.map_or_else(|| expression.to_owned(), |head| format!(r"{head}|\s+"))),
            lookahead: head.is_some(),
            line_breaks: expression.contains(r"\s*[\r\n]"),
        }
    }

    /// Cuts `text` into matches and gaps.
    fn cut(&self, text: &str, piece: &mut dyn FnMut(&str)) {
        let regex = match self {
            Pass::Expression { regex, .. } | Pass::DigitsFromRight(regex) => regex,
        };
        let mut at = 0;
        while let Some(found) = regex.find_at(text, at) {
            let start = found.start();
            if found.is_empty() {
                break; // no row matches nothing
            }
            if start > at {
                piece(&text[at..start]);
            }
            match self {
                Pass::Expression { .. } => {
                    at = self.end(text, start, found.end());
                    piece(&text[start..at]);
                }
                Pass::DigitsFromRight(_) => {
                    at = found.end();
                    threes(found.as_str(), piece);
                }
            }
        }
        if at < text.len() {
            piece(&text[at..]);
        }
    }

    /// Where a match really ends: [`LOOKAHEAD`] gives the last of several white spaces back to the word behind.
    fn end(&self, text: &str, start: usize, end: usize) -> usize {
        let &Pass::Expression { lookahead, line_breaks, .. } = self else { return end };
        let found = &text[start..end];
        if !lookahead || end == text.len() || !found.chars().all(char::is_whitespace) {
            return end;
        }
        match found.char_indices().next_back() {
            Some((_, '\r' | '\n')) if line_breaks => end,
            Some((last, _)) if last > 0 => start + last,
            _ => end,
        }
    }
}

/// Cuts digits in threes, the first group shorter where they do not come out even.
fn threes(digits: &str, piece: &mut dyn FnMut(&str)) {
    let (mut left, mut start) = (digits.chars().count(), 0);
    for (at, _) in digits.char_indices() {
        if at > start && left % 3 == 0 {
            piece(&digits[start..at]);
            start = at;
        }
        left -= 1;
    }
    piece(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        let pre = PreTokenizer::new(Path::new("test.gguf"), name).expect("the name is in the table");
        pre.split(text, |word| words.push(word.to_owned()));
        words
    }

    #[test]
    fn every_row_compiles_and_loses_nothing() {
        let text =
            "Hello  wörld's 12345 \n\n\t tabs\t\tx  中文ひらがな 한국어 😀!?\r\n   'LL a1b22c333 \u{a0}\u{3000}end  ";
        for name in [
            "default",
            "gpt-2",
            "llama-bpe",
            "minicpm5",
            "qwen2",
            "qwen35",
            "laguna",
            "ufakzeka",
            "deepseek-llm",
            "deepseek-coder",
            "deepseek-v3",
            "spark2_5",
            "youtu",
            "falcon",
            "starcoder",
            "bloom",
            "viking",
            "tekken",
            "gpt-4o",
            "kimi-k2",
            "bailingmoe",
            "seed-coder",
            "afmoe",
            "exaone-moe",
            "gemma4",
        ] {
            assert_eq!(words(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn white_space_before_a_word_is_shared() {
        assert_eq!(words("gpt-2", "a   b"), ["a", "  ", " b"]);
        assert_eq!(words("gpt-2", "a\n\nb"), ["a", "\n", "\n", "b"]);
        assert_eq!(words("qwen2", "a\n\nb"), ["a", "\n\n", "b"]);
        assert_eq!(words("qwen2", "a \n  b  "), ["a", " \n", " ", " b", "  "]);
        assert_eq!(words("qwen2", "x\t\ty"), ["x", "\t", "\ty"]);
    }

    #[test]
    fn digits_are_grouped_by_row() {
        assert_eq!(words("qwen2", "1234"), ["1", "2", "3", "4"]);
        assert_eq!(words("llama-bpe", "1234"), ["123", "4"]);
        assert_eq!(words("afmoe", "1234 567"), ["1", "234", " ", "567"]);
        assert_eq!(words("afmoe", "12³45678"), ["12", "³45", "678"]);
        assert_eq!(words("gpt-2", " 1234"), [" 1234"]);
    }
}
