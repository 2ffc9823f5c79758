//! Which positions a token looks at in a long context: those whose index keys score highest (arXiv 2512.02556).

use crate::{
    Result,
    backend::{Backend, Floats, Product, Rows},
    blueprint::{self, Blueprint},
    model::load::{Linear, Loader, Mat, Norm},
    quant::{QMat, block::CHUNK},
};

/// Rows that are scored at once, which bounds the memory for their scores.
const ROWS: usize = 16;

/// Positions that they are scored for at once.
const POSITIONS: usize = 256;

/// See the module.
pub struct Indexer {
    /// Positions that a token looks at.
    pub top_k: usize,
    /// `None`: those of the attention before that has some.
    pub own: Option<Scores>,
}

/// What scores positions.
pub struct Scores {
    pub n_head: usize,
    /// Elements of a query head and of a key.
    pub k: usize,
    /// (n_head * k, rank)
    q: Linear,
    /// (k, n_embd)
    key: Linear,
    norm: Norm,
    /// (n_head, n_embd)
    weights: Linear,
}

/// The rows of an indexer, in memory that experts write to later.
pub struct IndexRows<'a> {
    /// (n, n_head, k)
    pub q: &'a mut [f32],
    /// (n, k)
    pub key: &'a mut [f32],
    /// (n, n_head)
    pub weights: &'a mut [f32],
}

/// The buffers of indexers; empty where no context is long enough for one.
pub struct IndexScratch {
    /// Positions that each row looks at, a bit each. (n_batch, words of the context)
    pub chosen: Vec<u64>,
    /// Queries of the rows that are scored. (ROWS * n_head, k)
    queries: Rows,
    /// Their products with keys. (ROWS * n_head, POSITIONS)
    products: Floats,
    /// (ROWS, n_ctx)
    scores: Floats,
    n_ctx: usize,
}

/// The largest sizes of a model's indexers: heads, and elements of all heads, in whole chunks of activations. `None` where a context of `n_ctx` needs none.
fn largest(m: &Blueprint, n_ctx: usize) -> Option<[usize; 2]> {
    let indexers = m.attentions().filter_map(|gqa| gqa.indexer).filter(|indexer| n_ctx > indexer.top_k);
    let sizes =
        indexers.filter_map(|indexer| indexer.own).map(|own| [own.n_head, own.n_head * own.k.next_multiple_of(CHUNK)]);
    sizes.reduce(|a, b| [a[0].max(b[0]), a[1].max(b[1])])
}

impl IndexScratch {
    /// For batches of `n_batch` tokens and contexts of `n_ctx`.
    pub fn new(m: &Blueprint, n_batch: usize, n_ctx: usize) -> Self {
        let ([n_head, cols], n_ctx) = largest(m, n_ctx).map_or(([0, 0], 0), |sizes| (sizes, n_ctx));
        Self {
            chosen: vec![0; n_batch * n_ctx.div_ceil(64)],
            queries: Rows::new(ROWS, cols),
            products: Floats::zeros(ROWS * n_head * POSITIONS),
            scores: Floats::zeros(ROWS * n_ctx),
            n_ctx,
        }
    }

    /// Bytes that [`IndexScratch::new`] takes.
    pub fn bytes(m: &Blueprint, n_batch: usize, n_ctx: usize) -> u64 {
        let Some([n_head, cols]) = largest(m, n_ctx) else { return 0 };
        let floats = ROWS * n_head * POSITIONS + ROWS * n_ctx;
        (n_batch * n_ctx.div_ceil(64) * size_of::<u64>() + floats * size_of::<f32>()) as u64 + Rows::bytes(ROWS, cols)
    }
}

impl Indexer {
    pub fn load(loader: &mut Loader<'_>, indexer: &blueprint::Indexer) -> Result<Self> {
        let own = match &indexer.own {
            Some(own) => Some(Scores {
                n_head: own.n_head,
                k: own.k,
                q: loader.linear(&own.q)?,
                key: loader.linear(&own.key)?,
                norm: loader.norm(&own.norm)?,
                weights: loader.linear(&own.weights)?,
            }),
            None => None,
        };
        Ok(Self { top_k: indexer.top_k, own })
    }

    /// Floats per token of its rows.
    pub fn cols(indexer: &blueprint::Indexer) -> usize {
        indexer.own.map_or(0, |own| own.n_head * own.k + own.k + own.n_head)
    }

    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        self.own.iter_mut().flat_map(|own| [&mut own.q.w, &mut own.key.w, &mut own.weights.w])
    }
}

impl Scores {
    /// The rows of `n` tokens in `memory`.
    pub fn rows<'m>(&self, n: usize, memory: &'m mut [f32]) -> IndexRows<'m> {
        let (q, rest) = memory.split_at_mut(n * self.n_head * self.k);
        let (key, rest) = rest.split_at_mut(n * self.k);
        IndexRows { q, key, weights: &mut rest[..n * self.n_head] }
    }

    /// Keys of the normed rows `x`, before they rotate.
    pub fn keys(&self, b: &mut impl Backend, x: &Rows, y: &mut [f32]) {
        b.matmul(x, &mut [Product { w: self.key.w.view(), y }]);
        self.key.finish(b, y);
        self.norm.apply_onto(b, y);
    }

    /// Queries of the short rows `low`, before they rotate, and weights of the normed rows `x`.
    pub fn queries(&self, b: &mut impl Backend, [x, low]: [&Rows; 2], [q, weights]: [&mut [f32]; 2]) {
        b.matmul(low, &mut [Product { w: self.q.w.view(), y: q }]);
        self.q.finish(b, q);
        b.matmul(x, &mut [Product { w: self.weights.w.view(), y: weights }]);
        self.weights.finish(b, weights);
    }

    /// Chooses up to `top_k` positions of each of some rows of one sequence, of which the first is at `pos`: bits in `chosen`,
    /// which are (n, words). `keys` are those of the sequence, these rows' own included.
    pub fn choose(
        &self,
        b: &mut impl Backend,
        rows: &IndexRows<'_>,
        (first, n, pos): (usize, usize, usize),
        keys: QMat<'_>,
        top_k: usize,
        s: &mut IndexScratch,
    ) {
        let (words, cols) = (s.n_ctx.div_ceil(64), self.n_head * self.k);
        for start in (0..n).step_by(ROWS) {
            let some = first + start..first + n.min(start + ROWS);
            s.queries
                .start_wide(some.len() * self.n_head, self.k)
                .copy_from_slice(&rows.q[some.start * cols..some.end * cols]);
            b.prepare(&mut s.queries);
            let weights = &rows.weights[some.start * self.n_head..some.end * self.n_head];
            self.score(b, weights, keys, s);
            let scores = &s.scores[..some.len() * s.n_ctx];
            let chosen = &mut s.chosen[some.start * words..some.end * words];
            b.each_row(chosen, words, 4 * s.n_ctx, |i, chosen| {
                let seen = pos + start + i + 1;
                choose_best(&scores[i * s.n_ctx..][..seen], top_k, chosen);
            });
        }
    }

    /// Scores of all positions that have keys, for the rows whose queries have been prepared.
    fn score(&self, b: &mut impl Backend, weights: &[f32], keys: QMat<'_>, s: &mut IndexScratch) {
        let n = s.queries.len() / self.n_head;
        for start in (0..keys.rows).step_by(POSITIONS) {
            let some = start..keys.rows.min(start + POSITIONS);
            let products = &mut s.products[..s.queries.len() * some.len()];
            b.matmul(&s.queries, &mut [Product { w: keys.slice(some.clone()), y: products }]);
            let products = &*products;
            b.each_row(&mut s.scores[..n * s.n_ctx], s.n_ctx, self.n_head * some.len(), |i, scores| {
                let scores = &mut scores[some.clone()];
                scores.fill(0.0);
                let heads = products.chunks_exact(some.len()).zip(weights).skip(i * self.n_head).take(self.n_head);
                for (products, weight) in heads {
                    scores.iter_mut().zip(products).for_each(|(score, x)| *score += weight * x.max(0.0));
                }
            });
        }
    }
}

/// Sets the bits of the `k` best scores; of equal ones, the first. All of fewer.
fn choose_best(scores: &[f32], k: usize, bits: &mut [u64]) {
    bits.fill(0);
    // The k-th best by its digits from the highest on: so many are left to be found among those that have the digits so far.
    let (mut found, mut known, mut left) = (0u32, 0u32, k);
    if k < scores.len() {
        for shift in [24, 16, 8, 0] {
            let mut counts = [0usize; 256];
            let alike = scores.iter().map(|&score| order(score)).filter(|key| key & known == found);
            alike.for_each(|key| counts[(key >> shift & 255) as usize] += 1);
            let mut digit = 255;
            while counts[digit] < left {
                left -= counts[digit];
                digit -= 1;
            }
            found |= (digit as u32) << shift;
            known |= 255 << shift;
        }
    }
    for (i, &score) in scores.iter().enumerate() {
        let key = order(score);
        let equal = key == found && left > 0;
        if key > found || equal {
            left -= usize::from(equal);
            bits[i / 64] |= 1 << (i % 64);
        }
    }
}

/// A number in the order of scores. Both zeros are one.
fn order(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(scores: &[f32], k: usize) -> Vec<usize> {
        let mut bits = [u64::MAX; 2];
        choose_best(scores, k, &mut bits);
        (0..128).filter(|i| bits[i / 64] >> (i % 64) & 1 == 1).collect()
    }

    #[test]
    fn the_best_are_chosen_and_of_equal_ones_the_first() {
        assert_eq!(chosen(&[1.0, -3.0, 2.0, 0.5], 2), [0, 2]);
        assert_eq!(chosen(&[1.0, 2.0], 3), [0, 1], "all of fewer");
        assert_eq!(chosen(&[1.0, 2.0], 2), [0, 1]);
        assert_eq!(chosen(&[0.0, -0.0, 0.0, -1.0], 2), [0, 1], "zeros are alike");
        assert_eq!(chosen(&[-0.0, 0.0, 7.0], 2), [0, 2]);
        assert_eq!(chosen(&[-1.0, -2.0, -1.5, -1.25], 3), [0, 2, 3]);
        let many: Vec<f32> = (0..100).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        let mut sorted: Vec<usize> = (0..100).collect();
        sorted.sort_by(|&a, &b| many[b].total_cmp(&many[a]));
        for k in 1..100 {
            let mut best = sorted[..k].to_vec();
            best.sort_unstable();
            assert_eq!(chosen(&many, k), best, "{k}");
        }
    }
}
