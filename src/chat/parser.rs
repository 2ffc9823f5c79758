//! A model's text, in pieces, to reasoning, answer and calls of tools. Marks never leak, and nothing else is lost: what looks
//! like a call and cannot be read is part of the answer.

use super::{
    Family, ToolCall, Tools,
    family::harmony::Harmony,
    scanner::{Piece, Scanner},
};

/// A piece of what the model says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// More of what it thinks.
    Reasoning(String),
    /// More of its answer.
    Content(String),
    /// A call, whole.
    Call(ToolCall),
}

/// See the module.
pub struct Parser {
    machine: Machine,
    scanner: Scanner,
}

enum Machine {
    Tagged(Tagged),
    Harmony(Harmony),
}

/// Reasoning and calls between marks.
struct Tagged {
    family: Family,
    tools: Tools,
    state: State,
    out: Sections,
}

enum State {
    Content,
    Reasoning,
    /// Between the marks with this index; the text so far.
    Call(usize, String),
}

impl Parser {
    /// For the answer to `prompt`, which may have begun the reasoning.
    pub fn new(family: &Family, tools: Tools, prompt: &str) -> Self {
        let machine = if family.is_harmony() {
            Machine::Harmony(Harmony::default())
        } else {
            let thinks = family.think().is_some_and(|(open, _)| prompt.trim_end().ends_with(open));
            let state = if thinks { State::Reasoning } else { State::Content };
            let holds = !family.calls().is_empty() || family.think().is_some();
            let out = Sections { holds, begins: thinks, ..Sections::default() };
            Machine::Tagged(Tagged { family: family.clone(), tools, state, out })
        };
        Self { machine, scanner: Scanner::default() }
    }

    /// What is certain once `text` has come.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.scanner.push(text);
        let mut deltas = Vec::new();
        match &mut self.machine {
            Machine::Tagged(tagged) => tagged.run(&mut self.scanner, &mut deltas),
            Machine::Harmony(harmony) => harmony.run(&mut self.scanner, &mut deltas),
        }
        deltas
    }

    /// What is left at the end of the text.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let rest = self.scanner.rest();
        match &mut self.machine {
            Machine::Tagged(tagged) => tagged.finish(&rest, &mut deltas),
            Machine::Harmony(harmony) => harmony.finish(&rest, &mut deltas),
        }
        deltas
    }
}

impl Tagged {
    fn run(&mut self, scanner: &mut Scanner, deltas: &mut Vec<Delta>) {
        let think = self.family.think();
        let calls = self.family.calls();
        let opens: Vec<_> = calls.iter().map(|c| c.open).chain(think.map(|(open, _)| open)).collect();
        loop {
            let piece = match &self.state {
                State::Content => scanner.next(&opens),
                State::Reasoning => scanner.next(&[think.map_or("", |(_, close)| close)]),
                State::Call(which, _) => match calls[*which].close {
                    Some(close) => scanner.next(&[close]),
                    None => scanner.next(&[]),
                },
            };
            match (piece, &mut self.state) {
                (None, _) => return,
                (Some(Piece::Text(text)), State::Content) => self.out.text(&text, Delta::Content, deltas),
                (Some(Piece::Text(text)), State::Reasoning) => self.out.text(&text, Delta::Reasoning, deltas),
                (Some(Piece::Text(text)), State::Call(_, body)) => body.push_str(&text),
                (Some(Piece::Mark(which)), State::Content) => {
                    self.state = match calls.get(which) {
                        Some(_) => State::Call(which, String::new()),
                        None => State::Reasoning,
                    };
                    // Space before a call may still be of the answer, if the call turns out to be none.
                    if matches!(self.state, State::Reasoning) {
                        self.out.next_section();
                    }
                }
                (Some(Piece::Mark(_)), State::Reasoning) => {
                    self.state = State::Content;
                    self.out.next_section();
                }
                (Some(Piece::Mark(_)), State::Call(..)) => self.close_call(true, deltas),
            }
        }
    }

    fn finish(&mut self, rest: &str, deltas: &mut Vec<Delta>) {
        match &mut self.state {
            State::Content => {
                self.out.text(rest, Delta::Content, deltas);
                self.out.end_content(deltas);
            }
            State::Reasoning => self.out.text(rest, Delta::Reasoning, deltas),
            State::Call(_, body) => {
                body.push_str(rest);
                self.close_call(false, deltas);
                self.out.end_content(deltas);
            }
        }
    }

    /// The text between the marks of a call has ended, with its closing mark or without.
    fn close_call(&mut self, closed: bool, deltas: &mut Vec<Delta>) {
        let State::Call(which, body) = std::mem::replace(&mut self.state, State::Content) else { return };
        let marks = &self.family.calls()[which];
        match (marks.parse)(&body, &self.tools) {
            Some(calls) if !calls.is_empty() => {
                deltas.extend(calls.into_iter().map(Delta::Call));
                self.out.next_section();
            }
            _ => {
                let close = marks.close.filter(|_| closed).unwrap_or_default();
                self.out.text(&format!("{}{body}{close}", marks.open), Delta::Content, deltas);
            }
        }
    }
}

/// Text without the white space around a section.
#[derive(Default)]
struct Sections {
    /// White space may stand before a mark, and waits.
    holds: bool,
    /// A section that begins after a mark has had no text yet.
    begins: bool,
    spaces: String,
}

impl Sections {
    fn text(&mut self, text: &str, delta: fn(String) -> Delta, deltas: &mut Vec<Delta>) {
        let text = if self.begins { text.trim_start() } else { text };
        self.begins &= text.is_empty();
        let solid = if self.holds { text.trim_end().len() } else { text.len() };
        if solid > 0 {
            deltas.push(delta(std::mem::take(&mut self.spaces) + &text[..solid]));
        }
        self.spaces.push_str(&text[solid..]);
    }

    fn next_section(&mut self) {
        self.spaces.clear();
        self.begins = true;
    }

    fn end_content(&mut self, deltas: &mut Vec<Delta>) {
        if !self.spaces.is_empty() {
            deltas.push(Delta::Content(std::mem::take(&mut self.spaces)));
        }
    }
}
