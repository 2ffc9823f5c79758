//! Tokens in, readable text out, as they come. Knows bytes and UTF-8 only.

use super::Tokenizer;

/// Turns a stream of tokens into text that is whole at every step.
///
/// A token may end in the middle of a character: those bytes wait for the next. What all steps and
/// [`finish`](Self::finish) give, one after the other, equals [`Tokenizer::decode`] of all tokens.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    /// Bytes of an unfinished character.
    pending: Vec<u8>,
    /// What the last step gave.
    text: String,
    /// A space that the tokenizer itself put before the text is still to come.
    strip_space: bool,
}

impl StreamDecoder {
    /// A decoder for tokens that begin a text: like [`Tokenizer::decode`], it drops the space that a SentencePiece
    /// vocabulary puts before the first word.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        // Longest token of published vocabularies: 256 bytes (runs of spaces).
        Self { pending: Vec::with_capacity(512), text: String::with_capacity(512), strip_space: tokenizer.space_prefix }
    }

    /// A decoder for tokens that go on from a prompt: a leading space is text.
    pub fn continuing() -> Self {
        Self { pending: Vec::with_capacity(512), text: String::with_capacity(512), strip_space: false }
    }

    /// The text that `token` completes; empty while a character is unfinished, and for control tokens.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> &str {
        self.push_with(tokenizer, token, false)
    }

    /// [`StreamDecoder::push`], with the text of a control token if `special` asks for it.
    pub fn push_with(&mut self, tokenizer: &Tokenizer, token: u32, special: bool) -> &str {
        let start = self.pending.len();
        tokenizer.append_bytes(token, special, &mut self.pending);
        if self.strip_space && self.pending.len() > start {
            self.strip_space = false;
            if self.pending[start] == b' ' {
                self.pending.remove(start);
            }
        }
        self.text.clear();
        let kept = drain_complete(&self.pending, &mut self.text);
        self.pending.drain(..kept);
        &self.text
    }

    /// The rest: U+FFFD if the stream stopped inside a character. The decoder is then as one that continues.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
        self.strip_space = false;
        &self.text
    }
}

/// Appends all of `bytes` that cannot change any more, U+FFFD for what is no UTF-8, and says how many they were.
/// What is left is the beginning of one character.
fn drain_complete(bytes: &[u8], text: &mut String) -> usize {
    let mut at = 0;
    loop {
        match std::str::from_utf8(&bytes[at..]) {
            Ok(good) => {
                text.push_str(good);
                return bytes.len();
            }
            Err(error) => {
                let good = at + error.valid_up_to();
                text.push_str(std::str::from_utf8(&bytes[at..good]).expect("the error says that this part is valid"));
                let Some(bad) = error.error_len() else { return good };
                text.push(char::REPLACEMENT_CHARACTER);
                at = good + bad;
            }
        }
    }
}
