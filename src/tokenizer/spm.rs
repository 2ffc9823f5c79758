//! SentencePiece BPE (`llama`): the adjacent pair that forms the best-scored token merges first.
//!
//! Works on text in which every space is `▁` already. What no token spells becomes byte tokens.

use std::path::Path;

use super::merge::{Pair, Rules, Symbols};
use super::source::VocabSource;
use super::table::NONE;
use super::vocab::Vocab;
use crate::{Error, Result};

pub(super) struct Spm {
    /// Place in the order of scores, the best first; equal scores share theirs. (n_vocab)
    ranks: Vec<u32>,
    byte_ids: Box<[u32; 256]>, // NONE where neither the byte nor `unk` has a token
    joints: Joints,
}

/// The pairs of bytes that stand side by side in some token, a bit each. A text can be cut between two others: nothing
/// ever merges there. Most vocabularies cut before each `▁`, so that a text is many short words, not one long one.
struct Joints(Box<[u64; 1024]>);

impl Joints {
    fn new(vocab: &Vocab) -> Self {
        let mut bits = Box::new([0; 1024]);
        for id in 0..vocab.len() as u32 {
            for pair in vocab.text(id).windows(2) {
                let at = usize::from(u16::from_be_bytes([pair[0], pair[1]]));
                bits[at / 64] |= 1 << (at % 64);
            }
        }
        Self(bits)
    }

    fn joins(&self, left: u8, right: u8) -> bool {
        let at = usize::from(u16::from_be_bytes([left, right]));
        self.0[at / 64] >> (at % 64) & 1 != 0
    }

    /// Calls `word` for each stretch of the text within which something may merge.
    fn split<'a>(&self, text: &'a str, mut word: impl FnMut(&'a str)) {
        let (bytes, mut start) = (text.as_bytes(), 0);
        for at in (1..bytes.len()).filter(|&at| text.is_char_boundary(at)) {
            if !self.joins(bytes[at - 1], bytes[at]) {
                word(&text[start..at]);
                start = at;
            }
        }
        word(&text[start..]);
    }
}

impl Spm {
    pub fn new(path: &Path, source: &VocabSource<'_>, vocab: &Vocab) -> Result<Self> {
        let Some(scores) = source.scores.get(..vocab.len()) else {
            return Err(Error::format(path, "tokenizer.ggml.scores", vocab.len(), source.scores.len()));
        };
        // -0 is 0.
        let score = |id: &u32| scores[*id as usize] + 0.0;
        let mut order: Vec<u32> = (0..vocab.len() as u32).collect();
        order.sort_by(|a, b| score(b).total_cmp(&score(a)));
        let mut ranks = vec![0; vocab.len()];
        for group in order.chunk_by(|a, b| score(a).total_cmp(&score(b)).is_eq()).enumerate() {
            let (rank, ids) = group;
            ids.iter().for_each(|&id| ranks[id as usize] = rank as u32);
        }
        let byte_ids = vocab.byte_tokens(source.unk.unwrap_or(NONE));
        Ok(Self { ranks, byte_ids, joints: Joints::new(vocab) })
    }

    /// Heap bytes.
    pub fn heap_bytes(&self) -> usize {
        self.ranks.capacity() * size_of::<u32>() + size_of_val(&*self.byte_ids) + size_of_val(&*self.joints.0)
    }

    pub fn encode(&self, vocab: &Vocab, text: &str, symbols: &mut Symbols, out: &mut Vec<u32>) {
        self.joints.split(text, |word| {
            let text = word.as_bytes();
            symbols.begin(text.len());
            for (start, c) in word.char_indices() {
                let len = c.len_utf8();
                symbols.push(vocab.find(&text[start..start + len]).unwrap_or(NONE), len);
            }
            symbols.merge(&Word { spm: self, vocab, text });
            for (id, span) in symbols.iter() {
                match id {
                    NONE => {
                        let bytes = text[span].iter();
                        out.extend(bytes.map(|&b| self.byte_ids[usize::from(b)]).filter(|&id| id != NONE));
                    }
                    id => out.push(id),
                }
            }
        });
    }
}

/// A pair merges if its text is a token.
struct Word<'a> {
    spm: &'a Spm,
    vocab: &'a Vocab,
    text: &'a [u8],
}

impl Rules for Word<'_> {
    fn rank(&self, pair: &Pair) -> Option<u32> {
        Some(self.spm.ranks[self.vocab.find(&self.text[pair.span.clone()])? as usize])
    }

    fn merged(&self, rank: u32, pair: &Pair) -> Option<u32> {
        let id = self.vocab.find(&self.text[pair.span.clone()])?;
        (self.spm.ranks[id as usize] == rank).then_some(id)
    }
}
