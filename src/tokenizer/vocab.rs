//! The tokens themselves: one arena of bytes, and the way back from bytes to id. Knows no merging.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use super::source::VocabSource;
use super::table::IdTable;
use crate::{Error, Result};

/// More tokens than any published vocabulary by a factor of ten; ids stay far below [`super::table::NONE`].
const MAX_TOKENS: usize = 1 << 22;
/// Bytes of all tokens together.
const MAX_TEXT_BYTES: usize = 1 << 28;

/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Byte,
    /// Unused, undefined, or a number that nobody has assigned: prints as nothing.
    Unused,
}

impl Kind {
    fn new(number: i32) -> Self {
        match number {
            1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            6 => Kind::Byte,
            _ => Kind::Unused,
        }
    }

    /// Whether the token is cut out of the text before any merging.
    pub fn is_special(self) -> bool {
        matches!(self, Kind::Unknown | Kind::Control | Kind::UserDefined)
    }
}

/// Every token's bytes and kind.
///
/// A byte-level vocabulary is kept *decoded* (`Ġthe` as ` the`), so encoding looks the text's own bytes up.
pub(super) struct Vocab {
    bytes: Vec<u8>,
    ends: Vec<u32>,   // n_vocab: where each token ends in `bytes`
    kinds: Vec<Kind>, // n_vocab
    ids: IdTable,
    hasher: RandomState,
    /// Bytes of the longest token: no longer text is looked up.
    longest: usize,
}

impl Vocab {
    pub fn new(path: &Path, source: &VocabSource<'_>, byte_level: bool) -> Result<Self> {
        let (tokens, types) = (&source.tokens, &source.types);
        if tokens.is_empty() || tokens.len() > MAX_TOKENS {
            let expected = format!("1 to {MAX_TOKENS} tokens");
            return Err(Error::format(path, "tokenizer.ggml.tokens", expected, tokens.len()));
        }
        let text_bytes = tokens.iter().map(String::len).sum::<usize>();
        if text_bytes > MAX_TEXT_BYTES {
            return Err(Error::format(path, "tokenizer.ggml.tokens", format!("{MAX_TEXT_BYTES} bytes"), text_bytes));
        }
        if !types.is_empty() && types.len() < tokens.len() {
            return Err(Error::format(path, "tokenizer.ggml.token_type", tokens.len(), types.len()));
        }
        let mut vocab = Self {
            bytes: Vec::with_capacity(text_bytes),
            ends: Vec::with_capacity(tokens.len()),
            kinds: Vec::with_capacity(tokens.len()),
            ids: IdTable::with_capacity(tokens.len()),
            hasher: RandomState::new(),
            longest: 0,
        };
        let alphabet = ByteAlphabet::new();
        for (id, text) in tokens.iter().enumerate() {
            let kind = types.get(id).map_or(Kind::Normal, |&number| Kind::new(number));
            let start = vocab.bytes.len();
            let decoded = byte_level && alphabet.decode(text, &mut vocab.bytes);
            // A special token prints as written; BPE can reach it only where both spellings agree.
            let literal = !decoded || (kind.is_special() && vocab.bytes[start..] != *text.as_bytes());
            if literal {
                vocab.bytes.truncate(start);
                vocab.bytes.extend_from_slice(text.as_bytes());
            }
            vocab.ends.push(vocab.bytes.len() as u32);
            vocab.kinds.push(kind);
            // What no bytes spell is found as a special token or never.
            if !(byte_level && literal) {
                vocab.file(path, id as u32)?;
            }
        }
        vocab.bytes.shrink_to_fit();
        Ok(vocab)
    }

    /// Makes token `id` findable by its bytes.
    fn file(&mut self, path: &Path, id: u32) -> Result<()> {
        let text = &self.bytes[self.range(id)];
        // Some published vocabularies have unused slots without text: they print as nothing and are never found.
        if text.is_empty() {
            return Ok(());
        }
        let hash = self.hasher.hash_one(text);
        if let Some(other) = self.ids.insert(hash, id, |other| slice(&self.bytes, &self.ends, other) == text) {
            let got = format!("{:?} at both {other} and {id}", String::from_utf8_lossy(text));
            return Err(Error::format(path, "tokenizer.ggml.tokens", "every token once", got));
        }
        self.longest = self.longest.max(text.len());
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The token's bytes as kept (see the type); empty for an id outside the vocabulary.
    pub fn text(&self, id: u32) -> &[u8] {
        if (id as usize) < self.len() { slice(&self.bytes, &self.ends, id) } else { &[] }
    }

    /// `Unused` for an id outside the vocabulary.
    pub fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Unused)
    }

    /// The token that is exactly these bytes.
    pub fn find(&self, text: &[u8]) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        self.ids.find(self.hasher.hash_one(text), |id| slice(&self.bytes, &self.ends, id) == text)
    }

    /// Overrides what the file says of a token.
    pub fn set_kind(&mut self, id: u32, kind: Kind) {
        self.kinds[id as usize] = kind;
    }

    /// For each byte, the token `<0xNN>`, else the token that is this byte alone, else `fallback`.
    pub fn byte_tokens(&self, fallback: u32) -> Box<[u32; 256]> {
        let mut ids = Box::new([fallback; 256]);
        for (byte, id) in ids.iter_mut().enumerate() {
            let named = self.find(format!("<0x{byte:02X}>").as_bytes());
            *id = named.or_else(|| self.find(&[byte as u8])).unwrap_or(fallback);
        }
        ids
    }

    /// Heap bytes.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>() + self.kinds.capacity() + self.ids.heap_bytes()
    }

    fn range(&self, id: u32) -> std::ops::Range<usize> {
        range(&self.ends, id)
    }
}

fn range(ends: &[u32], id: u32) -> std::ops::Range<usize> {
    let start = if id == 0 { 0 } else { ends[id as usize - 1] as usize };
    start..ends[id as usize] as usize
}

fn slice<'a>(bytes: &'a [u8], ends: &[u32], id: u32) -> &'a [u8] {
    &bytes[range(ends, id)]
}

/// The byte that `<0xNN>` names.
pub(super) fn named_byte(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let both_hex = digits.len() == 2 && digits.iter().all(u8::is_ascii_hexdigit);
    both_hex.then(|| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())?
}

/// GPT-2's way to write bytes as printable characters: itself where printable, else U+0100 and up.
pub(super) struct ByteAlphabet {
    bytes: [Option<u8>; 0x144], // by character
}

impl ByteAlphabet {
    pub fn new() -> Self {
        let mut bytes = [None; 0x144];
        let mut next = 0x100;
        for byte in 0..=255u8 {
            if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
                bytes[usize::from(byte)] = Some(byte);
            } else {
                bytes[next] = Some(byte);
                next += 1;
            }
        }
        Self { bytes }
    }

    /// Appends the bytes that `text` spells; `false` if it has a character outside the alphabet.
    pub fn decode(&self, text: &str, out: &mut Vec<u8>) -> bool {
        text.chars().all(|c| {
            let byte = self.bytes.get(c as usize).copied().flatten();
            out.extend(byte);
            byte.is_some()
        })
    }
}
