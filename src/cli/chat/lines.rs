//! Where the lines of a chat come from: an editor on a terminal, or whatever standard input is.

use std::{
    io::{self, BufRead, IsTerminal, Read},
    path::Path,
};

use hotset::{Error, Result};
use rustyline::{DefaultEditor, config::Config, error::ReadlineError};

/// Bytes of a line at most.
const MAX_LINE_BYTES: u64 = 8 << 20;

/// See the module.
pub enum Lines {
    /// With history and editing.
    Editor(Box<DefaultEditor>),
    /// From a pipe or a file.
    Plain,
}

/// What comes next.
pub enum Next {
    Line(String),
    /// Ctrl-C while nothing runs.
    Interrupted,
    End,
}

impl Lines {
    /// From standard input.
    ///
    /// # Errors
    /// A terminal that cannot be used.
    pub fn new() -> Result<Self> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(Lines::Plain);
        }
        let config = Config::builder().auto_add_history(true).build();
        let editor = DefaultEditor::with_config(config);
        editor.map(|editor| Lines::Editor(Box::new(editor))).map_err(|e| failed(&e))
    }

    /// The next line; one that ends in a backslash goes on.
    ///
    /// # Errors
    /// What cannot be read, or is too long or no UTF-8.
    pub fn next(&mut self) -> Result<Next> {
        let mut all = String::new();
        loop {
            let line = match self.one(if all.is_empty() { "> " } else { ". " })? {
                Next::Line(line) => line,
                Next::End if !all.is_empty() => return Ok(Next::Line(all)),
                other => return Ok(other),
            };
            match line.strip_suffix('\\') {
                Some(begun) => {
                    all.push_str(begun);
                    all.push('\n');
                }
                None => return Ok(Next::Line(all + &line)),
            }
        }
    }

    fn one(&mut self, prompt: &str) -> Result<Next> {
        match self {
            Lines::Editor(editor) => match editor.readline(prompt) {
                Ok(line) => Ok(Next::Line(line)),
                Err(ReadlineError::Interrupted) => Ok(Next::Interrupted),
                Err(ReadlineError::Eof) => Ok(Next::End),
                Err(e) => Err(failed(&e)),
            },
            Lines::Plain => {
                let mut line = String::new();
                let read = io::stdin().lock().take(MAX_LINE_BYTES).read_line(&mut line);
                let n = read.map_err(|e| Error::io(Path::new("standard input"), "read a line", e))?;
                if n as u64 == MAX_LINE_BYTES {
                    return Err(Error::invalid(format!("a line has more than {MAX_LINE_BYTES} bytes")));
                }
                let text = line.trim_end_matches(['\n', '\r']);
                Ok(if n == 0 { Next::End } else { Next::Line(text.to_owned()) })
            }
        }
    }
}

fn failed(error: &ReadlineError) -> Error {
    Error::invalid(format!("cannot read from the terminal: {error}"))
}
