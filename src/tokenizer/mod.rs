//! Text to tokens and back, from the vocabulary that a GGUF file carries. Knows no model.
//!
//! `gpt2` is byte-level BPE behind one of llama.cpp's pre-tokenizers, `llama` is SentencePiece BPE with byte
//! fallback, `gemma4` is BPE over characters. The reference is llama.cpp: `docs/tokenizer-conformance.md` says how
//! far its fixtures agree. One rule differs: where special tokens overlap in a text, the leftmost wins, then the
//! longest, as in the models' own tokenizers; llama.cpp takes the longest anywhere first.
//!
//! A vocabulary of 150,000 tokens keeps about 6 MB on the heap: token texts lie in one arena, merges refer to ids,
//! and both are found through tables of four bytes a slot. That, and a longer list of pre-tokenizers, is why this is not
//! the splintr crate: its 0.22 keeps 42 MB for the same vocabulary and 61 MB after some text, which a budget would have to
//! bear.

mod bpe;
mod merge;
mod patterns;
mod pretokenizer;
mod source;
mod special;
mod spm;
mod stream;
mod table;
mod vocab;

use std::borrow::Cow;
use std::path::Path;

pub use source::VocabSource;
pub use stream::StreamDecoder;

use crate::gguf::Gguf;
use crate::{Error, Result};
use bpe::Bpe;
use merge::Symbols;
use pretokenizer::PreTokenizer;
use special::Specials;
use spm::Spm;
use unicode_normalization::is_nfc;
use vocab::{Kind, Vocab};

const PRE_MISSING: &str = "the file names no pre-tokenizer (tokenizer.ggml.pre): text is cut by llama.cpp's default rules, \
    which may not be the model's own and then make its answers worse; a newer conversion of the model has the key";
const BOS_TWICE: &str =
    "the prompt begins with the beginning-of-text token, and the model's file adds one: the text has two";
const EOS_TWICE: &str = "the prompt ends with the end-of-text token, and the model's file adds one: the text has two";
const NOT_COMPOSED: &str = "the prompt has characters that are not composed (Unicode NFC): the model's own tokenizer may \
    compose them first, which neither hotset nor llama.cpp does, and the model then gets other tokens than it learned from";

/// How SentencePiece writes a space.
const SPACE: &str = "▁";

/// Tokens that end generation by their text alone: files often name only one of a model's several (llama.cpp's list).
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    // Fill-in-the-middle: padding, repository and file separators.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Control tokens that print nevertheless: gpt-oss structures its answers with them (llama.cpp does the same).
const VISIBLE_TEXTS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Bytes of text that are tokenised at once: with `▁` for every space they still have 32-bit positions.
const MAX_PART_BYTES: usize = 1 << 30;

/// A model's tokenizer.
pub struct Tokenizer {
    vocab: Vocab,
    specials: Specials,
    algorithm: Algorithm,
    /// Spaces are written `▁` in the vocabulary.
    escaped_spaces: bool,
    /// A space goes before text at the start and after every special token.
    space_prefix: bool,
    /// Special tokens swallow the white space after them (Phi-3).
    strip_after_special: bool,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    ends: Vec<u32>, // sorted
    /// The model's own tokenizer composes text first, or nobody knows whether it does.
    may_compose: bool,
    notes: Vec<String>,
}

enum Algorithm {
    Bpe(Bpe),
    Spm(Spm),
}

impl Tokenizer {
    /// Builds the tokenizer; `path` is the file that `source` comes from, for error messages.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an algorithm or pre-tokenizer that hotset does not have; [`Error::Format`] for
    /// arrays that do not fit each other, tokens that occur twice, merges of which none has known tokens. What a file
    /// gets wrong without much harm is a note instead: [`Tokenizer::notes`].
    pub fn new(path: &Path, mut source: VocabSource<'_>) -> Result<Self> {
        let spm = match source.model.as_str() {
            "gpt2" | "gemma4" => false,
            "llama" => true,
            other => {
                let expected = "gpt2, llama or gemma4";
                return Err(Error::unsupported(path, "tokenizer (tokenizer.ggml.model)", expected, other));
            }
        };
        let mut notes = leave_out_bad_ids(&mut source);
        let pre_missing = source.model == "gpt2" && source.pre.is_none();
        if pre_missing {
            notes.push(PRE_MISSING.to_owned());
        }
        let pre = match (spm, source.model.as_str()) {
            (true, _) => None,
            (_, "gemma4") => Some(PreTokenizer::new(path, "gemma4")?),
            _ => Some(PreTokenizer::new(path, source.pre.as_deref().unwrap_or("default"))?),
        };
        let byte_level = pre.as_ref().is_some_and(|pre| pre.byte_level);
        let mut vocab = Vocab::new(path, &source, byte_level)?;
        if spm {
            let in_range = |id: u32| (id as usize) < vocab.len();
            source.bos = source.bos.or(Some(1)).filter(|&id| in_range(id));
            source.eos = source.eos.or(Some(2)).filter(|&id| in_range(id));
            source.unk = source.unk.or(Some(0));
        }
        let ends = end_tokens(&source, &mut vocab);
        let specials = Specials::new(path, &vocab)?;
        let may_compose = pre_missing || pre.as_ref().is_some_and(|pre| pre.composes);
        let default_add_bos = pre.as_ref().map_or(spm, |pre| pre.add_bos);
        let algorithm = match pre {
            Some(pre) => Algorithm::Bpe(Bpe::new(path, &source, &vocab, pre, &mut notes)?),
            None => Algorithm::Spm(Spm::new(path, &source, &vocab)?),
        };
        let name = source.name.as_deref().unwrap_or_default().to_lowercase();
        Ok(Self {
            escaped_spaces: !byte_level,
            space_prefix: spm && source.add_space_prefix.unwrap_or(true),
            strip_after_special: name.contains("phi-3") || name.contains("phi3"),
            bos: source.bos,
            eos: source.eos,
            // Gemma 4 files say "no" by mistake (llama.cpp overrides them too).
            add_bos: source.model == "gemma4" || source.add_bos.unwrap_or(default_add_bos),
            add_eos: source.add_eos.unwrap_or(false),
            ends,
            may_compose,
            notes,
            specials,
            vocab,
            algorithm,
        })
    }

    /// The tokenizer of a model file.
    ///
    /// # Errors
    /// As [`VocabSource::from_metadata`] and [`Tokenizer::new`].
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Self::new(gguf.path(), VocabSource::from_metadata(gguf.meta())?)
    }

    /// The tokens of `text`.
    ///
    /// `add_special` puts the beginning and end tokens around it that the file asks for; `parse_special` reads
    /// control tokens spelled out in the text (a chat template's) as such. Without it they are plain text, so that a
    /// user cannot forge them; user-defined tokens are always read. [`Tokenizer::prompt_notes`] has what may be wrong with
    /// the text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        out.extend(self.bos.filter(|_| add_special && self.add_bos));
        let mut symbols = Symbols::default();
        let mut after_special = true;
        let mut start = 0;
        // The last one first, so that the next one is popped.
        let mut specials = self.specials.starts(text, parse_special);
        while let Some((at, id)) = specials.pop() {
            if at < start {
                continue; // inside the one before it
            }
            if at > start {
                self.encode_plain(&text[start..at], after_special, &mut symbols, &mut out);
            }
            out.push(id);
            after_special = true;
            start = at + self.vocab.text(id).len();
            if self.strips_after(id) {
                let rest = text[start..].trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
                start = text.len() - rest.len();
            }
        }
        if text.len() > start {
            self.encode_plain(&text[start..], after_special, &mut symbols, &mut out);
        }
        out.extend(self.eos.filter(|_| add_special && self.add_eos));
        out
    }

    /// Text without special tokens.
    fn encode_plain(&self, mut text: &str, mut after_special: bool, symbols: &mut Symbols, out: &mut Vec<u32>) {
        while !text.is_empty() {
            let (part, rest) = text.split_at(text.floor_char_boundary(MAX_PART_BYTES));
            let escaped = self.escaped_spaces.then(|| self.escaped(part, after_special));
            let part = escaped.as_deref().unwrap_or(part);
            match &self.algorithm {
                Algorithm::Bpe(bpe) => bpe.encode(&self.vocab, part, symbols, out),
                Algorithm::Spm(spm) => spm.encode(&self.vocab, part, symbols, out),
            }
            (text, after_special) = (rest, false);
        }
    }

    /// The text with `▁` for every space, and one before it where the vocabulary wants that.
    fn escaped(&self, text: &str, after_special: bool) -> String {
        let mut escaped = String::with_capacity(text.len() + text.len() / 2);
        if self.space_prefix && after_special {
            escaped.push_str(SPACE);
        }
        for (i, word) in text.split(' ').enumerate() {
            if i > 0 {
                escaped.push_str(SPACE);
            }
            escaped.push_str(word);
        }
        escaped
    }

    /// What is odd about the file and was put up with, a sentence each. Empty for a sound one.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What is odd about `text` and its `tokens`, as [`Tokenizer::encode`] gave them with `add_special`: a sentence each.
    pub fn prompt_notes(&self, text: &str, tokens: &[u32]) -> Vec<String> {
        let mut notes = Vec::new();
        let twice = |id: Option<u32>, pair: Option<&[u32]>| id.is_some_and(|id| pair == Some(&[id, id]));
        if self.add_bos && twice(self.bos, tokens.get(..2)) {
            notes.push(BOS_TWICE.to_owned());
        }
        if self.add_eos && twice(self.eos, tokens.len().checked_sub(2).map(|n| &tokens[n..])) {
            notes.push(EOS_TWICE.to_owned());
        }
        if self.may_compose && !text.is_ascii() && !is_nfc(text) {
            notes.push(NOT_COMPOSED.to_owned());
        }
        notes
    }

    /// Appends one token's bytes: nothing for an unused token or an id outside the vocabulary; a control token's
    /// text only if `special` asks for it.
    pub fn append_bytes(&self, token: u32, special: bool, out: &mut Vec<u8>) {
        let text = self.vocab.text(token);
        match self.vocab.kind(token) {
            Kind::Control | Kind::Unknown if !special => {}
            Kind::Unused => {}
            Kind::Byte => match vocab::named_byte(text) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(text),
            },
            Kind::Normal if self.escaped_spaces => {
                let mut rest = text;
                while let Some(&byte) = rest.first() {
                    let (piece, after) = match rest.strip_prefix(SPACE.as_bytes()) {
                        Some(after) => (b' ', after),
                        None => (byte, &rest[1..]),
                    };
                    out.push(piece);
                    rest = after;
                }
            }
            Kind::Normal | Kind::UserDefined | Kind::Control | Kind::Unknown => out.extend_from_slice(text),
        }
    }

    /// One token's bytes, which may be part of a character; empty for control tokens.
    pub fn decode_bytes(&self, token: u32) -> Cow<'_, [u8]> {
        match self.vocab.kind(token) {
            Kind::Normal | Kind::UserDefined if !self.escaped_spaces => Cow::Borrowed(self.vocab.text(token)),
            _ => {
                let mut bytes = Vec::new();
                self.append_bytes(token, false, &mut bytes);
                Cow::Owned(bytes)
            }
        }
    }

    /// The text of a sequence from its beginning: control tokens left out, U+FFFD for what is no UTF-8, and without
    /// the space that a SentencePiece vocabulary puts before the first word.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut bytes = Vec::with_capacity(tokens.len() * 4);
        for &token in tokens {
            self.append_bytes(token, false, &mut bytes);
        }
        let strip = usize::from(self.space_prefix && bytes.first() == Some(&b' '));
        String::from_utf8_lossy(&bytes[strip..]).into_owned()
    }

    /// The number of tokens; ids are below it.
    pub fn n_vocab(&self) -> usize {
        self.vocab.len()
    }

    /// The beginning-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-text token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The special token with this text, such as `<|im_end|>`.
    pub fn special_token(&self, text: &str) -> Option<u32> {
        self.specials.find(&self.vocab, text)
    }

    /// Whether generation ends here: end of text, turn or message, by the file's ids or the token's text.
    pub fn is_end_of_generation(&self, token: u32) -> bool {
        self.ends.binary_search(&token).is_ok()
    }

    /// Bytes that the vocabulary and the merges keep on the heap. The pre-tokenizer comes on top: up to 0.3 MB for its
    /// compiled expressions, and 0.2 to 0.6 MB of their caches from the first text on (measured; the regex crate
    /// does not say).
    pub fn resident_bytes(&self) -> usize {
        let algorithm = match &self.algorithm {
            Algorithm::Bpe(bpe) => bpe.heap_bytes(),
            Algorithm::Spm(spm) => spm.heap_bytes(),
        };
        self.vocab.heap_bytes() + self.specials.heap_bytes() + algorithm + self.ends.capacity() * size_of::<u32>()
    }

    fn strips_after(&self, id: u32) -> bool {
        self.strip_after_special && !matches!(self.vocab.text(id), b"<unk>" | b"<s>" | b"<|endoftext|>")
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens, {} bytes)", self.n_vocab(), self.resident_bytes())
    }
}

/// Forgets ids that are no tokens, as if their keys were absent, and gives a note for each: -1 often stands for "none".
fn leave_out_bad_ids(source: &mut VocabSource<'_>) -> Vec<String> {
    let n_vocab = source.tokens.len();
    let ids = [
        ("bos", &mut source.bos),
        ("eos", &mut source.eos),
        ("eot", &mut source.eot),
        ("eom", &mut source.eom),
        ("unknown", &mut source.unk),
        ("padding", &mut source.pad),
    ];
    let mut notes = Vec::new();
    for (name, id) in ids {
        if let Some(bad) = id.take_if(|id| *id as usize >= n_vocab) {
            notes.push(format!("tokenizer.ggml.{name}_token_id is ignored: {bad} is none of the {n_vocab} tokens"));
        }
    }
    notes
}

/// Finds the tokens that end generation, sorted, and makes control tokens of those that the file calls otherwise: a
/// user must not be able to end a turn by spelling it.
fn end_tokens(source: &VocabSource<'_>, vocab: &mut Vocab) -> Vec<u32> {
    for (id, text) in (0..).zip(source.tokens.iter()) {
        if VISIBLE_TEXTS.contains(&text.as_str()) && vocab.kind(id).is_special() {
            vocab.set_kind(id, Kind::UserDefined);
        }
    }
    let named: Vec<(&str, u32)> = (0..)
        .zip(source.tokens.iter())
        .filter(|(_, text)| text.starts_with(['<', '[', '_']) && END_TEXTS.contains(&text.as_str()))
        .map(|(id, text)| (text.as_str(), id))
        .collect();
    let has = |text: &str| named.iter().any(|&(other, _)| other == text);
    // These vocabularies end only a part of the answer with `<|end|>`, and Gemma 4's `</s>` is a word.
    let end_is_part = has("<|call|>") && has("<|return|>") || (has("<|call|>") || has("<|calls|>")) && has("<|flush|>");
    let s_is_word = has("<|tool_response>");
    let mut ends: Vec<u32> = [source.eos, source.eot, source.eom].into_iter().flatten().collect();
    for &(text, id) in &named {
        match text {
            "<|end|>" if end_is_part => vocab.set_kind(id, Kind::UserDefined),
            "</s>" if s_is_word => vocab.set_kind(id, Kind::Normal),
            _ => {
                vocab.set_kind(id, Kind::Control);
                ends.push(id);
            }
        }
    }
    ends.sort_unstable();
    ends.dedup();
    ends
}
