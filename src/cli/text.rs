//! Texts and lists that verbs read from files, pipes and standard input, each with a limit on its length.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use hotset::{Error, Result, arch, gguf::Gguf, input};

/// The longest text of a verb that does not need to hold it in a context.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// A prompt may always have so many bytes. Whether its tokens fit is known when there are some.
const MIN_PROMPT_BYTES: u64 = 64 << 10;

/// How long a text may be, and why.
pub struct Limit {
    bytes: u64,
    why: String,
}

impl Limit {
    /// For texts of which only a part has to fit a context.
    pub fn of_texts() -> Self {
        Self { bytes: MAX_TEXT_BYTES, why: "the most that is read of a text".to_owned() }
    }

    /// For a prompt that has to fit a context of `n_ctx` tokens, the model's own without: as many bytes as that many of the
    /// vocabulary's longest token. Beyond them a text is not worth reading, let alone cutting into tokens.
    ///
    /// # Errors
    /// A model without a context length or tokens.
    pub fn of_prompt(gguf: &Gguf, n_ctx: Option<usize>) -> Result<Self> {
        let most = arch::blueprint(gguf)?.n_ctx_train;
        let n_ctx = n_ctx.map_or(most, |n| n.min(most));
        let tokens = gguf.meta().require_strings("tokenizer.ggml.tokens")?;
        let longest = tokens.iter().map(String::len).max().unwrap_or(0);
        let bytes = (n_ctx as u64).saturating_mul(longest as u64).max(MIN_PROMPT_BYTES);
        Ok(Self { bytes, why: format!("the most that a context of {n_ctx} tokens can hold") })
    }
}

/// Editors on Windows begin files with one, and nobody means it.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The text of a file or pipe, or of standard input for `-`, without a byte-order mark.
///
/// # Errors
/// Names the file, also where it is no UTF-8 or longer than the limit.
pub fn read_text(path: &Path, limit: &Limit) -> Result<String> {
    let Limit { bytes, why } = limit;
    let (path, read) = if path.as_os_str() == "-" {
        let path = PathBuf::from("standard input");
        let read = input::read_limited(&path, io::stdin().lock(), *bytes, why)?;
        (path, read)
    } else {
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let read = input::read_limited(path, file, *bytes, why)?;
        (path.to_owned(), read)
    };
    let mut text = String::from_utf8(read).map_err(|e| {
        let text = format!("byte {} is no UTF-8", e.utf8_error().valid_up_to());
        Error::io(&path, "read as text", io::Error::new(io::ErrorKind::InvalidData, text))
    })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}

/// The text of a list: a regular file, or standard input for `-`. To wait for somebody who writes into a pipe would look like a
/// run that hangs.
///
/// # Errors
/// As [`read_text`]; also what is no regular file.
pub fn read_list(path: &Path) -> Result<String> {
    if path.as_os_str() != "-" {
        input::open(path)?;
    }
    read_text(path, &Limit::of_texts())
}
