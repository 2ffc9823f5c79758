//! SentencePiece BPE (`llama`): the adjacent pair that forms the best-scored token merges first.
//!
//! Works on text in which every space is `▁` already. What no token spells becomes byte tokens.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::path::Path;

use super::source::VocabSource;
use super::table::NONE;
use super::vocab::Vocab;
use crate::{Error, Result};

pub(super) struct Spm {
    scores: Vec<f32>,          // n_vocab
    byte_ids: Box<[u32; 256]>, // NONE where neither the byte nor `unk` has a token
}

/// A stretch of the text; `len` 0: merged into its left neighbour.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    prev: usize,
    next: usize,
}

/// Two neighbours that form a token of `len` bytes.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

const NIL: usize = usize::MAX;

impl Spm {
    pub fn new(path: &Path, source: &VocabSource<'_>, vocab: &Vocab) -> Result<Self> {
        let Some(scores) = source.scores.get(..vocab.len()) else {
            return Err(Error::format(path, "tokenizer.ggml.scores", vocab.len(), source.scores.len()));
        };
        Ok(Self { scores: scores.to_vec(), byte_ids: vocab.byte_tokens(source.unk.unwrap_or(NONE)) })
    }

    /// Heap bytes.
    pub fn heap_bytes(&self) -> usize {
        self.scores.capacity() * size_of::<f32>() + size_of_val(&*self.byte_ids)
    }

    pub fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let n = text.chars().count();
        let mut symbols: Vec<Symbol> = Vec::with_capacity(n);
        for (i, (start, c)) in text.char_indices().enumerate() {
            let (prev, next) = (i.checked_sub(1).unwrap_or(NIL), if i + 1 < n { i + 1 } else { NIL });
            symbols.push(Symbol { start, len: c.len_utf8(), prev, next });
        }
        let text = text.as_bytes();
        let mut queue = BinaryHeap::with_capacity(n);
        for right in 1..n {
            self.push_pair(vocab, text, &symbols, right - 1, right, &mut queue);
        }
        while let Some(Pair { left, right, len, .. }) = queue.pop() {
            let (a, b) = (symbols[left], symbols[right]);
            if a.len == 0 || b.len == 0 || a.len + b.len != len {
                continue; // one of them has merged with something else since
            }
            symbols[left].len = len;
            symbols[left].next = b.next;
            symbols[right].len = 0;
            if b.next != NIL {
                symbols[b.next].prev = left;
            }
            self.push_pair(vocab, text, &symbols, a.prev, left, &mut queue);
            self.push_pair(vocab, text, &symbols, left, b.next, &mut queue);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.len];
            match vocab.find(piece) {
                Some(id) => out.push(id),
                None => out.extend(piece.iter().map(|&b| self.byte_ids[usize::from(b)]).filter(|&id| id != NONE)),
            }
        }
    }

    fn push_pair(
        &self,
        vocab: &Vocab,
        text: &[u8],
        symbols: &[Symbol],
        left: usize,
        right: usize,
        queue: &mut BinaryHeap<Pair>,
    ) {
        if left == NIL || right == NIL {
            return;
        }
        let (start, len) = (symbols[left].start, symbols[left].len + symbols[right].len);
        if let Some(id) = vocab.find(&text[start..start + len]) {
            queue.push(Pair { score: self.scores[id as usize], left, right, len });
        }
    }
}

/// Best score first, then leftmost.
impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}
