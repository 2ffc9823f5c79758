//! Merges neighbours in a text, best first: the loop that BPE and SentencePiece share. Knows no vocabulary.
//!
//! Time: n log n in the bytes of a word, however long. Memory: eight bytes a byte, and eight for each pair that may merge.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use super::table::NONE;

/// Marks a byte inside a symbol: no symbol starts there.
const INSIDE: u32 = NONE - 1;

/// Two neighbours: their ids, and the bytes that they span.
pub(super) struct Pair {
    pub left: u32,
    pub right: u32,
    pub span: Range<usize>,
}

/// Which pairs merge.
pub(super) trait Rules {
    /// How early this pair merges, lower first; `None`: never.
    fn rank(&self, pair: &Pair) -> Option<u32>;
    /// What the pair becomes, if this is its rank. Otherwise it is not the pair that was queued any more.
    fn merged(&self, rank: u32, pair: &Pair) -> Option<u32>;
}

/// A word in symbols, at first one for each byte or character.
///
/// Both ends of a symbol hold its length, so that neighbours are found without links.
#[derive(Default)]
pub(super) struct Symbols {
    /// The symbol's token or `NONE` at its first byte, [`INSIDE`] at the others.
    ids: Vec<u32>,
    lens: Vec<u32>,
    /// Rank and start of the left symbol.
    queue: BinaryHeap<Reverse<u64>>,
}

impl Symbols {
    /// Begins a word of so many bytes.
    pub fn begin(&mut self, bytes: usize) {
        self.ids.clear();
        self.lens.clear();
        self.ids.reserve(bytes);
        self.lens.reserve(bytes);
    }

    /// Appends a symbol of `len` bytes, at least one. A word has less than 4 GiB.
    pub fn push(&mut self, id: u32, len: usize) {
        self.ids.push(id);
        self.ids.extend((1..len).map(|_| INSIDE));
        self.lens.extend((0..len).map(|_| len as u32));
    }

    /// The symbol at a byte where one starts.
    fn span(&self, start: usize) -> Range<usize> {
        start..start + self.lens[start] as usize
    }

    /// The symbol that starts here and the one behind it, if there are two.
    fn pair(&self, start: usize) -> Option<Pair> {
        let left = *self.ids.get(start).filter(|&&id| id != INSIDE)?;
        let middle = self.span(start).end;
        let right = *self.ids.get(middle)?;
        Some(Pair { left, right, span: start..self.span(middle).end })
    }

    /// Merges until no pair can.
    pub fn merge(&mut self, rules: &impl Rules) {
        let candidate = |symbols: &Self, start: usize| {
            let rank = rules.rank(&symbols.pair(start)?)?;
            Some(Reverse(u64::from(rank) << 32 | start as u64))
        };
        let mut queue = std::mem::take(&mut self.queue).into_vec();
        queue.clear();
        queue.extend((0..self.ids.len()).filter_map(|start| candidate(self, start)));
        let mut queue = BinaryHeap::from(queue);
        while let Some(Reverse(next)) = queue.pop() {
            let (rank, start) = ((next >> 32) as u32, next as u32 as usize);
            let Some(pair) = self.pair(start) else { continue };
            let Some(id) = rules.merged(rank, &pair) else { continue };
            let (middle, end) = (self.span(start).end, pair.span.end);
            self.ids[middle] = INSIDE;
            self.ids[start] = id;
            self.lens[start] = (end - start) as u32;
            self.lens[end - 1] = (end - start) as u32;
            let before = start.checked_sub(1).map(|last| start - self.lens[last] as usize);
            for left in before.into_iter().chain([start]) {
                if let Some(next) = candidate(self, left) {
                    queue.push(next);
                }
            }
        }
        self.queue = queue;
    }

    /// Each symbol's id and bytes, from the first to the last.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Range<usize>)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let id = *self.ids.get(at)?;
            let span = self.span(at);
            at = span.end;
            Some((id, span))
        })
    }
}
