//! Co-activation: which two experts of a layer tokens use together.
//!
//! Memory: 4 bytes for each pair of a layer's experts, once the layer has run. Must not know: caches.

use serde::Serialize;

/// Layers with more experts are left out: their pairs would take more than a megabyte each.
const MOST_EXPERTS: usize = 512;

/// Two experts that are often used by the same token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The lower number first.
    pub experts: (usize, usize),
    /// Share of the tokens that use both.
    pub share: f64,
    /// That share over the one that independent experts of their popularity would have.
    pub lift: f64,
}

/// Of one layer.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    /// Tokens that used both, by (higher, lower): row after row of a triangle.
    together: Vec<u32>,
}

fn place(a: usize, b: usize) -> usize {
    let (low, high) = (a.min(b), a.max(b));
    high * (high.saturating_sub(1)) / 2 + low
}

impl Pairs {
    /// A token's choices, in a layer of `n_expert` experts.
    pub fn add(&mut self, experts: &[usize], n_expert: usize) {
        if n_expert > MOST_EXPERTS {
            return;
        }
        self.together.resize(place(0, n_expert), 0);
        for (i, &a) in experts.iter().enumerate() {
            for &b in experts[..i].iter().filter(|b| **b != a) {
                let n = &mut self.together[place(a, b)];
                *n = n.saturating_add(1);
            }
        }
    }

    /// The `n` most frequent pairs of `tokens` tokens, given each expert's uses.
    pub fn top(&self, n: usize, tokens: u64, uses: &[u64]) -> Vec<Pair> {
        let all = (0..uses.len()).flat_map(|a| (0..a).map(move |b| (b, a)));
        let mut found: Vec<_> = all.zip(&self.together).filter(|(_, n)| **n > 0).collect();
        found.sort_unstable_by_key(|&(pair, &n)| (std::cmp::Reverse(n), pair));
        let pair = |&((a, b), &n): &((usize, usize), &u32)| Pair {
            experts: (a, b),
            share: f64::from(n) / tokens as f64,
            lift: f64::from(n) * tokens as f64 / (uses[a] as f64 * uses[b] as f64),
        };
        found.iter().take(n).map(pair).collect()
    }

    /// Share of all co-activations that the most frequent hundredth of the pairs gets; `None` without any.
    pub fn top_hundredth(&self) -> Option<f64> {
        let all: u64 = self.together.iter().map(|&n| u64::from(n)).sum();
        let mut sorted = self.together.clone();
        sorted.sort_unstable_by_key(|&n| std::cmp::Reverse(n));
        let top: u64 = sorted.iter().take(sorted.len().div_ceil(100)).map(|&n| u64::from(n)).sum();
        (all > 0).then(|| top as f64 / all as f64)
    }
}
