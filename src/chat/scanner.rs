//! Marks in a text that comes in pieces.

use crate::stop::overlap;

/// Text that was not taken yet.
#[derive(Debug, Default)]
pub struct Scanner {
    held: String,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text without a mark.
    Text(String),
    /// The mark with this index.
    Mark(usize),
}

impl Scanner {
    /// More text.
    pub fn push(&mut self, text: &str) {
        self.held.push_str(text);
    }

    /// The next piece that is certain, where these are the marks.
    pub fn next(&mut self, marks: &[&str]) -> Option<Piece> {
        let found = marks.iter().enumerate().filter_map(|(i, mark)| Some((self.held.find(mark)?, i))).min();
        if let Some((0, which)) = found {
            self.held.drain(..marks[which].len());
            return Some(Piece::Mark(which));
        }
        let unsure = || marks.iter().map(|mark| overlap(&self.held, mark)).max().unwrap_or(0);
        let end = found.map_or_else(|| self.held.len() - unsure(), |(at, _)| at);
        (end > 0).then(|| Piece::Text(self.held.drain(..end).collect()))
    }

    /// What is left at the end of the text: no mark, though it may begin as one.
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
