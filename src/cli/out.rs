//! Standard output that may close, notes on standard error, progress for people who watch.

use std::{
    fmt,
    io::{self, IsTerminal, StdoutLock, Write},
    path::Path,
};

use hotset::Error;
use indicatif::{ProgressBar, ProgressStyle};

use super::Stop;

/// Standard output, locked.
pub struct Out(StdoutLock<'static>);

impl Out {
    /// Locks it.
    pub fn new() -> Self {
        Self(io::stdout().lock())
    }

    /// Writes and flushes, so that a reader sees each piece as it comes.
    pub fn text(&mut self, text: &str) -> Result<(), Stop> {
        self.0.write_all(text.as_bytes()).and_then(|()| self.0.flush()).map_err(stop)
    }
}

fn stop(error: io::Error) -> Stop {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Stop::Pipe,
        _ => Stop::Error(Error::io(Path::new("standard output"), "write", error)),
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
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A name from a file, without what a terminal would obey.
pub fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
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
        if quiet || !io::stderr().is_terminal() {
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
