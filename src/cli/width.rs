//! Lines that fit the terminal.

use std::{
    env,
    io::{self, IsTerminal, Stderr, Stdout},
};

use terminal_size::{Width, terminal_size_of};

/// A line is never made narrower than this: what is left of it would not be read.
const LEAST: usize = 40;

/// Columns of the terminal behind standard output, or what `COLUMNS` says; `None`: lines may be as long as they are.
pub fn of_stdout() -> Option<usize> {
    let stdout: Stdout = io::stdout();
    asked().or_else(|| if stdout.is_terminal() { terminal_size_of(stdout).map(|(Width(n), _)| n.into()) } else { None })
}

/// As [`of_stdout`], of standard error.
pub fn of_stderr() -> Option<usize> {
    let stderr: Stderr = io::stderr();
    asked().or_else(|| if stderr.is_terminal() { terminal_size_of(stderr).map(|(Width(n), _)| n.into()) } else { None })
}

fn asked() -> Option<usize> {
    env::var("COLUMNS").ok()?.parse().ok().filter(|n| *n > 0)
}

/// `text` broken between words, each line after the first one indented. A word that is longer than a line stays whole.
pub fn wrap(text: &str, columns: Option<usize>, indent: usize) -> String {
    let Some(columns) = columns.map(|n| n.max(LEAST)) else { return text.to_owned() };
    let mut lines = Vec::new();
    for line in text.split('\n') {
        let mut rest = line;
        let mut room = columns;
        while let Some((at, next)) = cut(rest, room) {
            lines.push(if room == columns { rest[..at].to_owned() } else { indented(&rest[..at], indent) });
            rest = &rest[next..];
            room = columns - indent.min(columns - 1);
        }
        lines.push(if room == columns { rest.to_owned() } else { indented(rest, indent) });
    }
    lines.join("\n")
}

fn indented(text: &str, indent: usize) -> String {
    format!("{:indent$}{text}", "")
}

/// Where a line of more than `room` characters is to end, and where its rest begins.
fn cut(line: &str, room: usize) -> Option<(usize, usize)> {
    let (end, _) = line.char_indices().nth(room)?;
    let first_word = line.find(|c| c != ' ')?;
    let at = line[..=end].rfind(' ').filter(|at| *at > first_word);
    let at = at.or_else(|| line[end..].find(' ').map(|more| end + more))?;
    Some((line[..at].trim_end().len(), at + 1))
}

#[cfg(test)]
mod tests {
    use super::wrap;

    #[test]
    fn lines_break_between_words_and_are_indented() {
        let text = "prompt   12 tokens in 0.00 s, 4943.5 tok/s; experts: 0 hit, 0 late, 144 missed\nshort";
        let wrapped = wrap(text, Some(50), 9);
        assert_eq!(
            wrapped,
            "prompt   12 tokens in 0.00 s, 4943.5 tok/s;\n         experts: 0 hit, 0 late, 144 missed\nshort"
        );
        assert_eq!(wrap(text, None, 9), text);
        assert_eq!(wrap(text, Some(200), 9), text);
        let long = format!("path {} end", "x".repeat(60));
        assert_eq!(wrap(&long, Some(50), 2), format!("path\n  {}\n  end", "x".repeat(60)));
        for columns in 40..90 {
            let wrapped = wrap(text, Some(columns), 9);
            assert!(wrapped.lines().all(|line| line.chars().count() <= columns), "{columns}: {wrapped}");
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&wrapped), words(text));
        }
    }
}
