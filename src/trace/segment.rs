//! Local routing consistency: how well a few experts serve a segment of consecutive tokens. The measures are those of Liang
//! et al., "Not All Models Suit Expert Offloading" (arXiv 2505.16056, first version, as its published code computes them).
//!
//! Both are of all segments of m tokens that lie within one text, each start counted. *SRP* (segment routing best
//! performance): predict, for whole segments, the experts that are used at least t times in them; SRP is the F1 score of
//! the best t, one for all segments. *SCH* (segment cache best hit rate) with c slots: the share of uses that the c most
//! used experts of each segment get.
//!
//! Memory: a count for each expert, and m tokens' choices. Must not know: caches.

use std::collections::VecDeque;

/// Tokens of a segment.
pub const SEGMENT: usize = 16;

/// Of one layer.
#[derive(Clone, Debug)]
pub struct Segments {
    n_used: usize,
    last: VecDeque<Vec<usize>>,
    /// Uses in the segment. (n_expert)
    uses: Vec<usize>,
    /// How often an expert had so many uses in a segment, over all of them. (SEGMENT + 1)
    seen: [u64; SEGMENT + 1],
    /// Uses of the n_used and of twice as many most used experts, over all segments.
    best: [u64; 2],
    all: u64,
}

impl Segments {
    /// For a layer of `n_expert` experts of which a token uses `n_used`.
    pub fn new(n_expert: usize, n_used: usize) -> Self {
        let (seen, best) = ([0; SEGMENT + 1], [0; 2]);
        Self { n_used, last: VecDeque::with_capacity(SEGMENT + 1), uses: vec![0; n_expert], seen, best, all: 0 }
    }

    /// Another text begins.
    pub fn restart(&mut self) {
        self.last.clear();
        self.uses.fill(0);
    }

    /// The next token's choices.
    pub fn add(&mut self, experts: Vec<usize>) {
        experts.iter().for_each(|&e| self.uses[e] += 1);
        self.last.push_back(experts);
        if self.last.len() > SEGMENT {
            let gone = self.last.pop_front().expect("longer than a segment");
            gone.iter().for_each(|&e| self.uses[e] -= 1);
        }
        if self.last.len() == SEGMENT {
            self.count();
        }
    }

    fn count(&mut self) {
        let mut seen = [0; SEGMENT + 1];
        // A damaged trace may name an expert twice for one token.
        self.uses.iter().for_each(|&n| seen[n.min(SEGMENT)] += 1);
        for (best, slots) in self.best.iter_mut().zip([self.n_used, 2 * self.n_used]) {
            let mut left = slots as u64;
            for (n, &experts) in seen.iter().enumerate().rev() {
                let held = left.min(experts);
                *best += held * n as u64;
                left -= held;
            }
        }
        self.all += seen.iter().enumerate().map(|(n, &experts)| n as u64 * experts).sum::<u64>();
        self.seen.iter_mut().zip(seen).for_each(|(sum, n)| *sum += n);
    }

    /// SRP, and how many experts the best prediction names, as a multiple of those used; `None` without a segment.
    pub fn srp(&self) -> Option<(f64, f64)> {
        let (mut named, mut right, mut best) = (0, 0, None::<(f64, f64)>);
        for n in (1..=SEGMENT).rev() {
            named += self.seen[n] * SEGMENT as u64;
            right += self.seen[n] * n as u64;
            let f1 = 2.0 * right as f64 / (named + self.all).max(1) as f64;
            if self.all > 0 && best.is_none_or(|(f, _)| f1 > f) {
                best = Some((f1, named as f64 / self.all as f64));
            }
        }
        best
    }

    /// SCH with as many slots as a token uses experts, and with twice as many; `None` without a segment.
    pub fn sch(&self) -> Option<[f64; 2]> {
        (self.all > 0).then(|| self.best.map(|b| b as f64 / self.all as f64))
    }
}
