//! BPE over an explicit list of merges (`gpt2`, `gemma4`): the adjacent pair that is first in the list merges first.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use super::merge::{Pair, Rules, Symbols};
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

impl Bpe {
    /// The merges, and a note on those that name no tokens: they can never apply, since no text becomes their parts or
    /// none stands for their result (vocabularies cut down after training, stray lines of a merges.txt).
    pub fn new(
        path: &Path,
        source: &VocabSource<'_>,
        vocab: &Vocab,
        pre: PreTokenizer,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
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
        let (mut left_out, mut first_left_out) = (0, None);
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
            match merge {
                Some(merge) => bpe.file(merge),
                None => {
                    left_out += 1;
                    first_left_out.get_or_insert(text);
                }
            }
        }
        if let Some(first) = first_left_out {
            let first: String = first.chars().take(40).collect();
            if left_out == source.merges.len() {
                let expected = "\"left right\", where left, right and both together are tokens";
                return Err(Error::format(path, "tokenizer.ggml.merges", expected, format!("{first:?} and no better")));
            }
            let of = source.merges.len();
            notes.push(format!(
                "{left_out} of {of} merges are left out, since they name no tokens; the first is {first:?}"
            ));
        }
        Ok(bpe)
    }

    /// Heap bytes, the pre-tokenizer's expressions left out.
    pub fn heap_bytes(&self) -> usize {
        self.merges.capacity() * size_of::<Merge>() + self.ranks.heap_bytes() + size_of_val(&*self.byte_ids)
    }

    pub fn encode(&self, vocab: &Vocab, text: &str, symbols: &mut Symbols, out: &mut Vec<u32>) {
        self.pre.split(text, |word| {
            let whole = self.pre.ignore_merges || (!self.pre.byte_level && word.bytes().all(|b| b == b'\n'));
            match vocab.find(word.as_bytes()).filter(|_| whole) {
                Some(id) => out.push(id),
                None => self.encode_word(vocab, word, symbols, out),
            }
        });
    }

    fn encode_word(&self, vocab: &Vocab, word: &str, symbols: &mut Symbols, out: &mut Vec<u32>) {
        symbols.begin(word.len());
        if self.pre.byte_level {
            word.bytes().for_each(|b| symbols.push(self.byte_ids[usize::from(b)], 1));
        } else {
            let mut utf8 = [0; 4];
            word.chars().for_each(|c| {
                let bytes = c.encode_utf8(&mut utf8).as_bytes();
                symbols.push(vocab.find(bytes).unwrap_or(NONE), bytes.len());
            });
        }
        symbols.merge(self);
        for (id, span) in symbols.iter() {
            match id {
                NONE => {
                    let bytes = word.as_bytes()[span].iter();
                    out.extend(bytes.map(|&b| self.byte_ids[usize::from(b)]).filter(|&id| id != NONE));
                }
                id => out.push(id),
            }
        }
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

impl Rules for Bpe {
    fn rank(&self, pair: &Pair) -> Option<u32> {
        let hash = self.hasher.hash_one((pair.left, pair.right));
        self.ranks.find(hash, |rank| self.merged(rank, pair).is_some())
    }

    fn merged(&self, rank: u32, pair: &Pair) -> Option<u32> {
        let merge = &self.merges[rank as usize];
        (merge.left == pair.left && merge.right == pair.right).then_some(merge.result)
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
