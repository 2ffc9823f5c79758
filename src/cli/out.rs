//! Standard output that may close, notes on standard error, progress for people who watch.
//!
//! Names in a model file, and names of files, may hold what a terminal obeys: colours, titles, answers typed for the user.
//! What the program itself says has control characters spelt out, whoever reads it, since logs end up in terminals too. What
//! the model says is given to a terminal so, and to all others as it is.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    io::{self, IsTerminal, StdoutLock, Write},
    path::Path,
};

use hotset::{Error, new_file::STDOUT};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    Stop,
    live::moves_cursor,
    width::{of_stderr, wrap},
};

/// Standard output, locked.
pub struct Out {
    stdout: StdoutLock<'static>,
    is_terminal: bool,
}

impl Out {
    /// Locks it.
    pub fn new() -> Self {
        let stdout = io::stdout().lock();
        Self { is_terminal: stdout.is_terminal(), stdout }
    }

    /// Writes what the program says, lines and tabs and all else spelt out, and flushes.
    pub fn text(&mut self, text: &str) -> Result<(), Stop> {
        self.write(&spelt_out(text, |c| is_obeyed(c) && c != '\n' && c != '\t'))
    }

    /// Writes a text as a model reads or writes it, and flushes, so that a reader sees each piece as it comes.
    pub fn generated(&mut self, text: &str) -> Result<(), Stop> {
        if !self.is_terminal {
            return self.write(text);
        }
        // Such an end of a line does nothing more on a terminal; alone it would hide the line.
        self.write(&spelt_out(&text.replace("\r\n", "\n"), |c| c.is_control() && c != '\n' && c != '\t'))
    }

    /// Whether it is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// What follows is dim on a terminal that knows how, or no longer.
    pub fn dim(&mut self, on: bool) -> Result<(), Stop> {
        if self.is_terminal && moves_cursor() { self.write(if on { "\x1b[2m" } else { "\x1b[0m" }) } else { Ok(()) }
    }

    fn write(&mut self, text: &str) -> Result<(), Stop> {
        let written = self.stdout.write_all(text.as_bytes()).and_then(|()| self.stdout.flush());
        written.map_err(|e| Error::io(Path::new(STDOUT), "write", e).into())
    }
}

/// A line on standard error that begins with the program's name. Nobody can be told if that fails.
pub fn note(text: fmt::Arguments<'_>) {
    plain(format_args!("hotset: {text}"));
}

/// Each as a [`note`].
pub fn notes(list: &[String]) {
    list.iter().for_each(|text| note(format_args!("{text}")));
}

/// A line on standard error.
pub fn plain(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{}", spelt_out(&text.to_string(), is_obeyed));
}

/// A line on standard error, broken where it is longer than the terminal is wide; each part after the first one indented.
pub fn folded(text: fmt::Arguments<'_>, indent: usize) {
    let text = spelt_out(&text.to_string(), is_obeyed).into_owned();
    let _ = writeln!(io::stderr().lock(), "{}", wrap(&text, of_stderr(), indent));
}

/// A name from a file as part of a line.
pub fn printable(name: &str) -> String {
    spelt_out(name, is_obeyed).into_owned()
}

/// `text` with these characters as JSON can have them, `\u001b`: JSON stays JSON.
fn spelt_out(text: &str, obeyed: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if obeyed(c) {
            write!(out, "\\u{:04x}", u32::from(c)).expect("a String takes all");
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// What moves a terminal to something else than showing it: C0, DEL and C1 (U+009B is ESC [ to some), and what orders the
/// characters after it another way.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A bar on standard error while something takes its time; nothing where that is no terminal.
pub struct Progress(Option<ProgressBar>);

impl Progress {
    /// A bar that counts bytes.
    pub fn bytes(what: &'static str, quiet: bool) -> Self {
        Self::new(what, "{msg} {wide_bar} {bytes} of {total_bytes}", quiet)
    }

    /// A bar that counts tokens.
    pub fn tokens(what: &'static str, quiet: bool) -> Self {
        Self::new(what, "{msg} {wide_bar} {pos} of {len} tokens", quiet)
    }

    /// A bar that counts runs.
    pub fn runs(what: &'static str, quiet: bool) -> Self {
        Self::new(what, "{msg} {wide_bar} {pos} of {len} runs", quiet)
    }

    fn new(what: &'static str, template: &str, quiet: bool) -> Self {
        if quiet || !moves_cursor() {
            return Self(None);
        }
        let style = ProgressStyle::with_template(template).expect("the templates above are sound");
        Self(Some(ProgressBar::no_length().with_style(style).with_message(what)))
    }

    /// `done` of `total`.
    pub fn set(&self, done: u64, total: u64) {
        if let Some(bar) = &self.0 {
            if bar.length() != Some(total) {
                bar.set_length(total); // draws
            }
            bar.set_position(done);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_spelt_out() {
        let text = "a\x1b[31m\u{9b}2J\x07\x7f\r\n\tß\u{202e}";
        assert_eq!(printable(text), "a\\u001b[31m\\u009b2J\\u0007\\u007f\\u000d\\u000a\\u0009ß\\u202e");
        assert_eq!(spelt_out("a\n\tb\r", |c| c == '\r'), "a\n\tb\\u000d");
        assert!(matches!(spelt_out("plain ☃ text", is_obeyed), Cow::Borrowed(_)));
        let json = serde_json::to_string(text).unwrap();
        assert_eq!(serde_json::from_str::<String>(&spelt_out(&json, is_obeyed)).unwrap(), text);
    }
}
