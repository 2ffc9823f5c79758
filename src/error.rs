//! One error type. Each variant prints as one sentence that names what is wrong, and where.
//!
//! Most sentences are whole: [`Error::invalid`] and [`Error::file`]. Readers of binary formats compose theirs from the
//! field, what a good file has there, and what this one has: [`Error::format`].

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// All recoverable errors; broken invariants panic.
///
/// Both ways of printing give the sentence, so that `main` may return one.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something on a path.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "open", "read 512 bytes at 64 of tensor blk.0.attn_q.weight", …
        action: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's contents break its format, or do not fit the model they describe.
    #[error("{}: {what}: expected {expected}, got {got}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The section, metadata key or tensor.
        what: String,
        /// What a good file has there.
        expected: String,
        /// What this one has.
        got: String,
    },
    /// A file ends before its header does, as one that is still being downloaded.
    #[error("{}: the file ends inside its header, after {len} bytes (truncated, or still downloading?): {what}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// What the header has at the place where it ends: "metadata key … needs 8 bytes at byte 997".
        what: String,
    },
    /// The file is sound, and asks for something that hotset does not have.
    #[error("{}: {what} is not supported: expected {expected}, got {got}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature: "architecture", "pre-tokenizer", "type of tensor …".
        what: String,
        /// What is supported.
        expected: String,
        /// What the file asks for.
        got: String,
    },
    /// What is wrong with a file or folder, in words of its own.
    #[error("{}: {message}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The rest of the sentence.
        message: String,
    },
    /// The memory budget cannot hold the model's dense weights, its state and the experts of one token.
    #[error("{message}")]
    BudgetTooSmall {
        /// The smallest budget that would do, in bytes.
        least: u64,
        /// A whole sentence that says so, and what takes how much.
        message: String,
    },
    /// The caller asked for something that cannot be: a whole sentence.
    #[error("{0}")]
    Invalid(String),
    /// The caller gave a value out of its range.
    #[error("{what}: expected {expected}, got {got}")]
    Request {
        /// The option or argument.
        what: String,
        /// What would do.
        expected: String,
        /// What was given.
        got: String,
    },
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`].
    pub fn io(path: &Path, action: impl Into<String>, source: std::io::Error) -> Self {
        Error::Io { path: path.to_owned(), action: one_line(action.into()), source }
    }
    /// An [`Error::Format`].
    pub fn format(path: &Path, what: impl Into<String>, expected: impl ToString, got: impl ToString) -> Self {
        Error::Format {
            path: path.to_owned(),
            what: one_line(what.into()),
            expected: one_line(expected.to_string()),
            got: one_line(got.to_string()),
        }
    }
    /// An [`Error::Unsupported`].
    pub fn unsupported(path: &Path, what: impl Into<String>, expected: impl ToString, got: impl ToString) -> Self {
        Error::Unsupported {
            path: path.to_owned(),
            what: one_line(what.into()),
            expected: one_line(expected.to_string()),
            got: one_line(got.to_string()),
        }
    }
    /// An [`Error::File`]: "model.gguf: the file is empty".
    pub fn file(path: &Path, message: impl Into<String>) -> Self {
        Error::File { path: path.to_owned(), message: one_line(message.into()) }
    }
    /// An [`Error::Invalid`]: "the prompt is empty".
    pub fn invalid(sentence: impl Into<String>) -> Self {
        Error::Invalid(one_line(sentence.into()))
    }
    /// An [`Error::Request`].
    pub fn request(what: impl Into<String>, expected: impl ToString, got: impl ToString) -> Self {
        Error::Request {
            what: one_line(what.into()),
            expected: one_line(expected.to_string()),
            got: one_line(got.to_string()),
        }
    }
}

/// What a file or a caller said may end lines or move a terminal; an error stays one line.
fn one_line(text: String) -> String {
    if text.contains(char::is_control) {
        return text
            .chars()
            .map(|c| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() })
            .collect();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_stays_in_one_line() {
        let path = Path::new("a.npz");
        let error = Error::format(path, "header", "'descr'", "\u{1b}[2J\nß");
        assert_eq!(error.to_string(), "a.npz: header: expected 'descr', got \\u{1b}[2J\\nß");
        assert_eq!(Error::file(path, "a\nb").to_string(), "a.npz: a\\nb");
        assert_eq!(format!("{error:?}"), error.to_string());
    }
}
