//! Which argument is the model and which the prompt, and the prompt's text.
//!
//! A model that is not found must not become a prompt for the bundled one: see [`names_model`].

use std::{
    ffi::OsStr,
    io::{self, BufRead, IsTerminal},
    path::Path,
};

use hotset::{Error, Result};

use super::{
    Stop,
    text::{Limit, read_text},
};

/// The arguments that name a model or a prompt, as they were given.
pub struct Given<'a> {
    /// At most two.
    pub positional: [Option<&'a OsStr>; 2],
    pub model: Option<&'a Path>,
    pub prompt: Option<&'a OsStr>,
    pub prompt_file: Option<&'a Path>,
}

/// Where the prompt comes from.
#[derive(Debug, PartialEq)]
pub enum Prompt<'a> {
    Text(&'a str),
    File(&'a Path),
    StandardInput,
}

/// What a run starts from.
#[derive(Debug, PartialEq)]
pub struct Source<'a> {
    /// `None`: the bundled model.
    pub model: Option<&'a Path>,
    pub prompt: Prompt<'a>,
    /// The only argument, if it was taken for the prompt.
    pub only: bool,
}

impl<'a> Given<'a> {
    /// Tells them apart. `stdin_has_text` says whether standard input brings a prompt; it is asked only where that decides.
    ///
    /// # Errors
    /// No prompt, or two.
    pub fn source(&self, stdin_has_text: impl FnOnce(&OsStr) -> bool) -> Result<Source<'a>, Stop> {
        let has_prompt = self.prompt.is_some() || self.prompt_file.is_some();
        let mut only = false;
        let (model, text) = match (self.positional, self.model) {
            ([Some(_), Some(_)], Some(_)) => {
                return Err(Stop::usage("beside --model there is one argument at most, the prompt: put it in quotes"));
            }
            ([first, None], Some(model)) => (Some(model), first),
            ([Some(first), None], None) => {
                if has_prompt || names_model(first) || stdin_has_text(first) {
                    (Some(Path::new(first)), None)
                } else {
                    only = true;
                    (None, Some(first))
                }
            }
            ([first, second], model) => (model.or(first.map(Path::new)), second),
        };
        let twice = |other: &str| Err(Stop::usage(format!("the prompt is given twice: as an argument and by {other}")));
        let prompt = match (text, self.prompt, self.prompt_file) {
            (Some(_), Some(_), _) => return twice("--prompt"),
            (Some(_), _, Some(_)) => return twice("--prompt-file"),
            (_, Some(_), Some(_)) => {
                return Err(Stop::usage("the prompt is given twice: by --prompt and by --prompt-file"));
            }
            (Some(text), None, None) | (None, Some(text), None) => {
                Prompt::Text(text.to_str().ok_or_else(|| Stop::usage("the prompt is not UTF-8"))?)
            }
            (None, None, Some(file)) => Prompt::File(file),
            (None, None, None) => Prompt::StandardInput,
        };
        Ok(Source { model, prompt, only })
    }
}

/// Whether an only argument must be a model, there or not: a path, a file's or a folder's name, a name as of a registry.
fn names_model(given: &OsStr) -> bool {
    let text = given.to_string_lossy();
    let is_word = !text.contains(char::is_whitespace);
    let is_path = text.contains(std::path::is_separator);
    let ends_in_gguf = text.to_ascii_lowercase().ends_with(".gguf");
    Path::new(given).symlink_metadata().is_ok() || ends_in_gguf || (is_word && (is_path || is_tagged(&text)))
}

/// As in `qwen3:30b`.
fn is_tagged(word: &str) -> bool {
    let is_name = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    };
    word.split_once(':').is_some_and(|(name, tag)| is_name(name) && is_name(tag))
}

/// Whether standard input brings text, beside an only argument. An argument of several words is hardly a model, so that a
/// pipe which nobody writes to must not hold the run up; a single word may be one, and is worth the wait.
pub fn stdin_has_text(given: &OsStr) -> bool {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return false;
    }
    let is_word = !given.to_string_lossy().contains(char::is_whitespace);
    (is_word || is_ready(&stdin)) && stdin.lock().fill_buf().is_ok_and(|text| !text.is_empty())
}

/// Whether a read would not wait, now or in a moment: who starts a pipeline starts its ends at about the same time.
#[cfg(unix)]
fn is_ready(stdin: &io::Stdin) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let moment = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    poll(&mut [PollFd::new(stdin, PollFlags::IN)], Some(&moment)).is_ok_and(|n| n > 0)
}

#[cfg(not(unix))]
fn is_ready(_: &io::Stdin) -> bool {
    false
}

impl Prompt<'_> {
    /// The text.
    ///
    /// # Errors
    /// A file that cannot be read, nothing to read from, an empty text.
    pub fn text(&self, limit: &Limit, escapes: bool) -> Result<String, Stop> {
        let text = match self {
            Prompt::Text("") => return Err(Stop::usage("the prompt is empty")),
            Prompt::Text(text) => (*text).to_owned(),
            Prompt::File(file) => as_written(read_text(file, limit)?),
            Prompt::StandardInput if io::stdin().is_terminal() => {
                let ways = "an argument after the model, --prompt, --prompt-file, or standard input";
                return Err(Stop::usage(format!("there is no prompt: give it by {ways}")));
            }
            Prompt::StandardInput => as_written(read_text(Path::new("-"), limit)?),
        };
        if text.is_empty() {
            return Err(match self {
                Prompt::File(file) if file.as_os_str() != "-" => Error::file(file, "the prompt is empty").into(),
                _ => Error::invalid("the prompt is empty").into(),
            });
        }
        if escapes { unescaped(&text).map_err(Stop::Usage) } else { Ok(text) }
    }
}

/// The text that a file was written for. Lines may end as on Windows; and editors end a file with a newline that nobody
/// means: after it models start another paragraph.
fn as_written(text: String) -> String {
    let mut text = if text.contains('\r') { text.replace("\r\n", "\n") } else { text };
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

/// The text with its escapes read: those of llama.cpp's `-e`, and no others.
fn unescaped(text: &str) -> Result<String, String> {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text.chars());
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match rest.next() {
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some(c @ ('\\' | '\'' | '"')) => c,
            Some('x') => {
                let digits: String = rest.by_ref().take(2).collect();
                let is_hex = digits.len() == 2 && digits.chars().all(|c| c.is_ascii_hexdigit());
                let code = u8::from_str_radix(&digits, 16).ok().filter(|code| is_hex && code.is_ascii());
                char::from(code.ok_or_else(|| format!("\\x{digits} in the prompt is no escape: it takes 00 to 7f"))?)
            }
            other => {
                let given = other.map_or(String::new(), String::from);
                return Err(format!(
                    "\\{given} in the prompt is no escape: -e reads \\n \\r \\t \\\\ \\' \\\" and \\xNN"
                ));
            }
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given<'a>(positional: &[&'a str]) -> Given<'a> {
        let at = |i: usize| positional.get(i).copied().map(OsStr::new);
        Given { positional: [at(0), at(1)], model: None, prompt: None, prompt_file: None }
    }

    fn model_of<'a>(given: &Given<'a>, stdin: bool) -> Option<&'a Path> {
        given.source(|_| stdin).ok().expect("one prompt").model
    }

    #[test]
    fn what_may_be_a_model_is_none_of_the_bundled_ones_business() {
        for model in [
            "qwen3:30b",
            "models/blobs/sha256-00ff",
            "./x",
            "/no/such",
            "Model.GGUF",
            "my model.gguf",
            "src",
            "Cargo.toml",
            "a.b-c_d:latest",
        ] {
            assert_eq!(model_of(&given(&[model]), false), Some(Path::new(model)), "{model}");
        }
        for prompt in
            ["Hello", "either and/or both", "Note: this", "Was it 12:30 or so?", "Once upon a time", "::", "a:"]
        {
            let given = given(&[prompt]);
            let source = given.source(|_| false).ok().unwrap();
            assert_eq!(source, Source { model: None, prompt: Prompt::Text(prompt), only: true });
            assert_eq!(model_of(&given, true), Some(Path::new(prompt)), "what was piped in is the prompt");
        }
    }

    #[test]
    fn options_name_both_and_nothing_is_given_twice() {
        let (model, file) = (Path::new("m"), Path::new("f"));
        let with = |positional: &[&'static str]| Given { model: Some(model), ..given(positional) };
        let unasked = |_: &OsStr| -> bool { panic!("standard input does not decide") };
        let source = |given: &Given<'static>| given.source(unasked).ok();
        let text = |model, text| Some(Source { model, prompt: Prompt::Text(text), only: false });
        assert_eq!(source(&with(&["a/b"])), text(Some(model), "a/b"));
        assert_eq!(source(&Given { prompt: Some("t".as_ref()), ..with(&[]) }), text(Some(model), "t"));
        assert_eq!(source(&Given { prompt: Some("t".as_ref()), ..given(&["m"]) }), text(Some(model), "t"));
        assert_eq!(source(&Given { prompt: Some("t".as_ref()), ..given(&[]) }), text(None, "t"));
        assert_eq!(source(&given(&["m", "t"])), text(Some(model), "t"));
        let from = |prompt| Some(Source { model: Some(model), prompt, only: false });
        assert_eq!(source(&Given { prompt_file: Some(file), ..given(&["m"]) }), from(Prompt::File(file)));
        assert_eq!(source(&with(&[])), from(Prompt::StandardInput));
        assert_eq!(source(&with(&["t", "more"])), None);
        assert_eq!(source(&Given { prompt: Some("t".as_ref()), ..with(&["t"]) }), None);
        assert_eq!(source(&Given { prompt_file: Some(file), ..with(&["t"]) }), None);
        assert_eq!(source(&Given { prompt: Some("t".as_ref()), prompt_file: Some(file), ..with(&[]) }), None);
    }

    #[test]
    fn line_ends_and_escapes() {
        for (file, text) in
            [("a\r\n", "a"), ("a\n", "a"), ("a\n\n", "a\n"), ("a\r\nb", "a\nb"), ("a\r", "a\r"), ("", "")]
        {
            assert_eq!(as_written(file.to_owned()), text);
        }
        assert_eq!(unescaped(r#"a\nb\t\\n\x41\"\'\r"#), Ok("a\nb\t\\nA\"'\r".to_owned()));
        for wrong in [r"a\", r"\q", r"\x4", r"\xff", r"\x+1"] {
            assert!(unescaped(wrong).unwrap_err().contains("no escape"), "{wrong}");
        }
    }
}
