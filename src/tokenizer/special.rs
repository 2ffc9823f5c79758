//! Finds the special tokens in a text: wherever one starts, the longest that does. Knows no merging.
//!
//! The text is read from its end by an automaton over the reversed tokens (Aho and Corasick, CACM 1975): after each byte
//! its state tells the longest token that starts there. So time grows with the text alone, whatever the number and
//! the lengths of the tokens: a table of lengths needs a look-up for each at every place, and a forward automaton walks
//! a token's length again and again where it fails at the last byte.

use std::path::Path;

use super::table::{IdTable, NONE};
use super::vocab::{Kind, Vocab};
use crate::{Error, Result};

/// Bytes of all special tokens together: twenty times as many as a vocabulary of 256,000 that are all special.
const MAX_BYTES: usize = 8 << 20;

/// The state before any byte.
const ROOT: u32 = 0;

/// The end of a text, as far as it may be the rest of a token.
struct State {
    parent: u32,
    /// The state of the longest true prefix (of the text: it is read backwards) that is one.
    fail: u32,
    /// The longest token that starts here; `NONE` if there is none.
    any: u32,
    /// The longest user-defined one.
    user: u32,
    /// What leads here from the parent.
    byte: u8,
}

/// The automaton.
pub(super) struct Specials {
    states: Vec<State>,
    /// By parent and byte.
    children: IdTable,
    /// The root's children by byte, `ROOT` where there is none.
    first: Box<[u32; 256]>,
}

impl Specials {
    /// # Errors
    /// Two special tokens with one text, and more text than any vocabulary has.
    pub fn new(path: &Path, vocab: &Vocab) -> Result<Self> {
        // The token, and the state after those of its bytes that are in the automaton.
        let ids = (0..vocab.len() as u32).filter(|&id| vocab.kind(id).is_special() && !vocab.text(id).is_empty());
        let mut growing: Vec<(u32, u32)> = ids.map(|id| (id, ROOT)).collect();
        let bytes: usize = growing.iter().map(|&(id, _)| vocab.text(id).len()).sum();
        if bytes > MAX_BYTES {
            let expected = format!("special tokens of at most {MAX_BYTES} bytes together");
            return Err(Error::format(path, "tokenizer.ggml.tokens", expected, bytes));
        }
        let root = State { parent: ROOT, fail: ROOT, any: NONE, user: NONE, byte: 0 };
        let children = IdTable::with_capacity(bytes);
        let mut specials = Self { states: vec![root], children, first: Box::new([ROOT; 256]) };
        // One byte of every token after the other: a state's shorter ones are complete before it is made.
        for depth in 1.. {
            growing.retain(|&(id, _)| vocab.text(id).len() >= depth);
            if growing.is_empty() {
                break;
            }
            for (id, state) in &mut growing {
                let text = vocab.text(*id);
                *state = specials.child_or_new(*state, text[text.len() - depth]);
            }
            for &(id, state) in growing.iter().filter(|&&(id, _)| vocab.text(id).len() == depth) {
                let state = &mut specials.states[state as usize];
                if state.any != NONE && vocab.text(state.any).len() == depth {
                    let text = String::from_utf8_lossy(vocab.text(id));
                    let got = format!("{text:?} at both {} and {id}", state.any);
                    return Err(Error::format(path, "tokenizer.ggml.tokens", "every token once", got));
                }
                state.any = id;
                if vocab.kind(id) == Kind::UserDefined {
                    state.user = id;
                }
            }
        }
        specials.states.shrink_to_fit();
        Ok(specials)
    }

    /// The special token with this text.
    pub fn find(&self, vocab: &Vocab, text: &str) -> Option<u32> {
        let state = text.bytes().rev().try_fold(ROOT, |state, byte| self.child(state, byte))?;
        let id = self.states[state as usize].any;
        (id != NONE && vocab.text(id).len() == text.len()).then_some(id)
    }

    /// Where special tokens start in `text`, the longest of each place, the last place first. Only user-defined ones,
    /// unless `control` asks for all.
    pub fn starts(&self, text: &str, control: bool) -> Vec<(usize, u32)> {
        let (mut found, mut state) = (Vec::new(), ROOT);
        for (at, byte) in text.bytes().enumerate().rev() {
            state = self.step(state, byte);
            let State { any, user, .. } = self.states[state as usize];
            let id = if control { any } else { user };
            if id != NONE {
                found.push((at, id));
            }
        }
        found
    }

    /// Heap bytes.
    pub fn heap_bytes(&self) -> usize {
        self.states.capacity() * size_of::<State>() + self.children.heap_bytes() + size_of_val(&*self.first)
    }

    fn step(&self, mut state: u32, byte: u8) -> u32 {
        while state != ROOT {
            if let Some(child) = self.child(state, byte) {
                return child;
            }
            state = self.states[state as usize].fail;
        }
        self.first[usize::from(byte)]
    }

    fn child(&self, state: u32, byte: u8) -> Option<u32> {
        if state == ROOT {
            return Some(self.first[usize::from(byte)]).filter(|&child| child != ROOT);
        }
        self.children.find(hash(state, byte), |child| self.is_child(child, state, byte))
    }

    fn is_child(&self, child: u32, parent: u32, byte: u8) -> bool {
        let child = &self.states[child as usize];
        (child.parent, child.byte) == (parent, byte)
    }

    fn child_or_new(&mut self, parent: u32, byte: u8) -> u32 {
        if let Some(child) = self.child(parent, byte) {
            return child;
        }
        let new = self.states.len() as u32;
        let fail = if parent == ROOT { ROOT } else { self.step(self.states[parent as usize].fail, byte) };
        let State { any, user, .. } = self.states[fail as usize];
        self.states.push(State { parent, fail, any, user, byte });
        if parent == ROOT {
            self.first[usize::from(byte)] = new;
        } else {
            let states = &self.states;
            let same = |other: u32| (states[other as usize].parent, states[other as usize].byte) == (parent, byte);
            self.children.insert(hash(parent, byte), new, same);
        }
        new
    }
}

/// Spreads states, which are numbered in order, over the table (the multiplier of SplitMix64). The file's author chooses
/// the tokens but hardly the numbers of states.
fn hash(state: u32, byte: u8) -> u64 {
    (u64::from(state) << 8 | u64::from(byte)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20
}
