//! BPE over an explicit list of merges (`gpt2`, `gemma4`): the adjacent pair that is first in the list merges first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use super::pretokenizer::PreTokenizer;
use super::source::VocabSource;
use super::table::{IdTable, NONE};
use super::vocab::{ByteAlphabet, Vocab};
use crate::{Error, Result};

/// More merges than any published vocabulary by a factor of ten.
const MAX_MERGES: usize = 1 << 23;

pub(super) struct Bpe {
    merges: Vec<Merge>, // by rank
    ranks: IdTable,     // (left, right) → index into `merges`
    hasher: RandomState,
    byte_ids: Box<[u32; 256]>, // NONE where the vocabulary lacks the byte
    pre: PreTokenizer,
}

struct Merge {
    left: u32,
    right: u32,
    result: u32,
}

/// A stretch of one word; `len` 0: merged into its left neighbour.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32, // NONE: no token spells it; never merges
    len: usize,
    prev: usize,
    next: usize,
}

const NIL: usize = usize::MAX;

/// A merge that may still be possible: rank, left symbol, and both ids to tell if it is outdated.
type Candidate = Reverse<(u32, usize, u32, u32)>;

/// What one `encode` reuses from word to word.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
}

impl Bpe {
    pub fn new(path: &Path, source: &VocabSource<'_>, vocab: &Vocab, pre: PreTokenizer) -> Result<Self> {
        if source.merges.is_empty() || source.merges.len() > MAX_MERGES {
            let expected = format!("1 to {MAX_MERGES} merges");
            return Err(Error::format(path, "tokenizer.ggml.merges", expected, source.merges.len()));
        }
        let mut bpe = Self {
            merges: Vec::with_capacity(source.merges.len()),
            ranks: IdTable::with_capacity(source.merges.len()),
            hasher: RandomState::new(),
            byte_ids: if pre.byte_level { single_byte_tokens(vocab) } else { vocab.byte_tokens(NONE) },
            pre,
        };
        let alphabet = ByteAlphabet::new();
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for text in source.merges.iter() {
            let merge = split_merge(text).and_then(|(a, b)| {
                left.clear();
                right.clear();
                if bpe.pre.byte_level {
                    if !(alphabet.decode(a, &mut left) && alphabet.decode(b, &mut right)) {
                        return None;
                    }
                } else {
                    left.extend_from_slice(a.as_bytes());
                    right.extend_from_slice(b.as_bytes());
                }
                let (left_id, right_id) = (vocab.find(&left)?, vocab.find(&right)?);
                left.extend_from_slice(&right);
                Some(Merge { left: left_id, right: right_id, result: vocab.find(&left)? })
            });
            let Some(merge) = merge else {
                let expected = "\"left right\", where left, right and both together are tokens";
                return Err(Error::format(path, "tokenizer.ggml.merges", expected, format!("{text:?}")));
            };
            bpe.file(merge);
        }
        Ok(bpe)
    }

    /// Heap bytes, the pre-tokenizer's expressions left out.
    pub fn heap_bytes(&self) -> usize {
        self.merges.capacity() * size_of::<Merge>() + self.ranks.heap_bytes() + size_of_val(&*self.byte_ids)
    }

    pub fn encode(&self, vocab: &Vocab, text: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        self.pre.split(text, |word| {
            let whole = self.pre.ignore_merges || (!self.pre.byte_level && word.bytes().all(|b| b == b'\n'));
            match vocab.find(word.as_bytes()).filter(|_| whole) {
                Some(id) => out.push(id),
                None => self.encode_word(vocab, word, scratch, out),
            }
        });
    }

    fn encode_word(&self, vocab: &Vocab, word: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { symbols, queue } = scratch;
        symbols.clear();
        queue.clear();
        let mut push = |id, len| {
            let i = symbols.len();
            symbols.push(Symbol { id, len, prev: i.checked_sub(1).unwrap_or(NIL), next: i + 1 });
        };
        if self.pre.byte_level {
            word.bytes().for_each(|b| push(self.byte_ids[usize::from(b)], 1));
        } else {
            let mut utf8 = [0; 4];
            word.chars().for_each(|c| {
                let bytes = c.encode_utf8(&mut utf8).as_bytes();
                push(vocab.find(bytes).unwrap_or(NONE), bytes.len());
            });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NIL;
        }
        for left in 0..symbols.len() {
            self.push_candidate(symbols, left, queue);
        }
        while let Some(Reverse((rank, left, left_id, right_id))) = queue.pop() {
            let Symbol { id, len, prev, next: right } = symbols[left];
            if len == 0 || id != left_id || right == NIL || symbols[right].id != right_id {
                continue; // one of them has merged with something else since
            }
            let after = symbols[right].next;
            symbols[left] =
                Symbol { id: self.merges[rank as usize].result, len: len + symbols[right].len, prev, next: after };
            symbols[right].len = 0;
            if after != NIL {
                symbols[after].prev = left;
            }
            if prev != NIL {
                self.push_candidate(symbols, prev, queue);
            }
            self.push_candidate(symbols, left, queue);
        }
        let mut start = 0;
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &word.as_bytes()[start..start + symbol.len];
            start += symbol.len;
            match symbol.id {
                NONE => out.extend(piece.iter().map(|&b| self.byte_ids[usize::from(b)]).filter(|&id| id != NONE)),
                id => out.push(id),
            }
        }
    }

    /// Queues the merge of `left` with its right neighbour, if there is one.
    fn push_candidate(&self, symbols: &[Symbol], left: usize, queue: &mut BinaryHeap<Candidate>) {
        let Symbol { id, next, .. } = symbols[left];
        if next == NIL {
            return;
        }
        let right_id = symbols[next].id;
        if let Some(rank) = self.rank(id, right_id) {
            queue.push(Reverse((rank, left, id, right_id)));
        }
    }

    fn rank(&self, left: u32, right: u32) -> Option<u32> {
        self.ranks.find(self.hasher.hash_one((left, right)), |rank| self.is_pair(rank, left, right))
    }

    fn is_pair(&self, rank: u32, left: u32, right: u32) -> bool {
        let merge = &self.merges[rank as usize];
        merge.left == left && merge.right == right
    }

    /// Files a merge under the next rank. A pair that is listed twice keeps its first rank.
    fn file(&mut self, merge: Merge) {
        let hash = self.hasher.hash_one((merge.left, merge.right));
        let rank = self.merges.len() as u32;
        let merges = &self.merges;
        self.ranks.insert(hash, rank, |other| {
            let there = &merges[other as usize];
            (there.left, there.right) == (merge.left, merge.right)
        });
        self.merges.push(merge);
    }
}

fn single_byte_tokens(vocab: &Vocab) -> Box<[u32; 256]> {
    let mut ids = Box::new([NONE; 256]);
    for byte in 0..=255u8 {
        ids[usize::from(byte)] = vocab.find(&[byte]).unwrap_or(NONE);
    }
    ids
}

/// "left right": the first space after the first character divides.
fn split_merge(text: &str) -> Option<(&str, &str)> {
    let first = text.chars().next()?.len_utf8();
    let space = first + text[first..].find(' ')?;
    Some((&text[..space], &text[space + 1..]))
}
