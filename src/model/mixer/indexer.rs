//! Which positions a token looks at in a long context: those of the blocks of tokens whose index keys score highest
//! (arXiv 2512.02556), and those behind the last whole block.

use super::compressor::Compressor;
use crate::{
    Result,
    backend::{Backend, Floats, Product, Rows},
    blueprint::{self, Blueprint, IndexKeys, TopK},
    model::{
        cx::Run,
        load::{Linear, Loader, Mat, Norm},
        rope::Rope,
    },
    quant::{GgmlType, QMat, block::CHUNK},
};

/// Rows that are scored at once, which bounds the memory for their scores.
const ROWS: usize = 16;

/// Blocks that they are scored for at once.
const BLOCKS: usize = 256;

/// See the module.
pub struct Indexer {
    pub top_k: TopK,
    /// `None`: those of the attention before that has some.
    pub own: Option<Scores>,
}

/// What scores blocks.
pub struct Scores {
    pub n_head: usize,
    /// Elements of a query head and of a key.
    pub k: usize,
    /// (n_head * k, rank)
    q: Linear,
    /// Of each query head.
    q_norm: Option<Norm>,
    pub keys: Keys,
    /// (n_head, n_embd); `None`: each head weighs 1.
    weights: Option<Linear>,
}

/// Where keys come from.
#[expect(clippy::large_enum_variant, reason = "an attention has one")]
pub enum Keys {
    /// A token has one: the product, normed. (k, n_embd)
    Tokens(Linear, Norm),
    /// A block has one.
    Blocks(BlockKeys),
}

/// Makes keys of blocks.
pub struct BlockKeys {
    pub compressor: Compressor,
    /// Number among the recurrent parts: what is kept of the last tokens.
    pub pending: usize,
    /// How keys rotate, by the positions of blocks.
    pub rope: Option<Rope>,
}

/// The rows of an indexer, in memory that experts write to later.
pub struct IndexRows<'a> {
    /// (n, n_head, k)
    pub q: &'a mut [f32],
    /// Of tokens (n, k), or values and scores of blocks (n, cols).
    pub keys: [&'a mut [f32]; 2],
    /// (n, n_head)
    pub weights: &'a mut [f32],
}

/// The buffers of indexers; empty where no context is long enough for one.
pub struct IndexScratch {
    /// Positions that each row looks at, a bit each. (n_batch, words of the context)
    pub chosen: Vec<u64>,
    /// Queries of the rows that are scored. (ROWS * n_head, k)
    queries: Rows,
    /// Their products with keys. (ROWS * n_head, BLOCKS)
    products: Floats,
    /// (ROWS, blocks of the context)
    scores: Floats,
    n_block: usize,
    n_ctx: usize,
    /// The key of a block. (k)
    pub row: Vec<f32>,
    /// Cosines and sines of it. (n_rot)
    pub turns: Vec<f32>,
}

/// The largest sizes of a model's indexers: heads, elements of all heads, in whole chunks of activations, and of one, and
/// blocks. `None` where a context of `n_ctx` needs none.
fn largest(m: &Blueprint, n_ctx: usize) -> Option<[usize; 4]> {
    let of_blocks = m.compressed().filter_map(|part| part.blocks.as_ref()?.index);
    let indexers = m.attentions().filter_map(|gqa| gqa.indexer).chain(of_blocks);
    let sizes = indexers.filter(|indexer| indexer.top_k.leaves_out(n_ctx)).filter_map(|indexer| {
        let own = indexer.own?;
        Some([own.n_head, own.n_head * own.k.next_multiple_of(CHUNK), own.k, n_ctx / indexer.top_k.each])
    });
    sizes.reduce(|a, b| [0, 1, 2, 3].map(|i| a[i].max(b[i])))
}

impl IndexScratch {
    /// For batches of `n_batch` tokens and contexts of `n_ctx`.
    pub fn new(m: &Blueprint, n_batch: usize, n_ctx: usize) -> Self {
        let ([n_head, cols, k, n_block], n_ctx) = largest(m, n_ctx).map_or(([0; 4], 0), |sizes| (sizes, n_ctx));
        Self {
            chosen: vec![0; n_batch * n_ctx.div_ceil(64)],
            queries: Rows::new(ROWS, cols),
            products: Floats::zeros(ROWS * n_head * BLOCKS),
            scores: Floats::zeros(ROWS * n_block),
            n_block,
            n_ctx,
            row: vec![0.0; k],
            turns: vec![0.0; k],
        }
    }

    /// Bytes that [`IndexScratch::new`] takes.
    pub fn bytes(m: &Blueprint, n_batch: usize, n_ctx: usize) -> u64 {
        let Some([n_head, cols, k, n_block]) = largest(m, n_ctx) else { return 0 };
        let floats = ROWS * n_head * BLOCKS + ROWS * n_block + 2 * k;
        (n_batch * n_ctx.div_ceil(64) * size_of::<u64>() + floats * size_of::<f32>()) as u64 + Rows::bytes(ROWS, cols)
    }
}

impl Indexer {
    /// That of an attention that rotates by `rope`, which keeps the last tokens in the recurrent part number `pending` if its
    /// keys are those of blocks.
    pub fn load(
        loader: &mut Loader<'_>,
        indexer: &blueprint::Indexer,
        rope: Option<&blueprint::Rope>,
        pending: usize,
    ) -> Result<Self> {
        let own = indexer.own.as_ref().map(|own| Scores::load(loader, own, rope, pending)).transpose()?;
        Ok(Self { top_k: indexer.top_k, own })
    }

    /// Floats per token of its rows.
    pub fn cols(indexer: &blueprint::Indexer) -> usize {
        indexer.own.map_or(0, |own| {
            own.n_head * (own.k + 1) + own.compressor().map_or(own.k, |compressor| compressor.token_cols())
        })
    }

    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        self.own.iter_mut().flat_map(|own| {
            let (key, blocks) = match &mut own.keys {
                Keys::Tokens(key, _) => (Some(key), None),
                Keys::Blocks(blocks) => (None, Some(blocks.compressor.linears_mut())),
            };
            let linears = [&mut own.q].into_iter().chain(&mut own.weights).chain(key);
            linears.chain(blocks.into_iter().flatten()).map(|linear| &mut linear.w)
        })
    }

    /// Chooses for each row of a run which positions it looks at, if any is left out and there are scores. `keys` are those of
    /// its sequence, these rows' own included.
    pub fn choose(
        &self,
        b: &mut impl Backend,
        rows: &IndexRows<'_>,
        run: &Run,
        (ty, keys): (GgmlType, &[u8]),
        s: &mut IndexScratch,
    ) {
        let (Some(own), end) = (&self.own, run.pos + run.n) else { return };
        if self.top_k.leaves_out(end) {
            let (n, row_bytes) = (end / self.top_k.each, own.k / ty.block_len() * ty.block_bytes());
            let keys = QMat::new(ty, n, own.k, &keys[..n * row_bytes]);
            own.choose(b, rows, (run.row, run.n, run.pos), keys, self.top_k, s);
        }
    }

    /// What has been chosen for a run, a bit of each position: (n, words). Empty: all, as of shorter ones.
    pub fn chosen<'s>(&self, run: &Run, s: &'s IndexScratch) -> &'s [u64] {
        if self.top_k.leaves_out(run.pos + run.n) { run.of(&s.chosen, s.n_ctx.div_ceil(64)) } else { &[] }
    }
}

impl Scores {
    fn load(
        loader: &mut Loader<'_>,
        own: &blueprint::IndexScores,
        rope: Option<&blueprint::Rope>,
        pending: usize,
    ) -> Result<Self> {
        let keys = match &own.keys {
            IndexKeys::Tokens(key, norm) => Keys::Tokens(loader.linear(key)?, loader.norm(norm)?),
            IndexKeys::Blocks(compressor) => {
                let rope = rope.map(|rope| Rope::load(loader, rope)).transpose()?;
                Keys::Blocks(BlockKeys { compressor: Compressor::load(loader, compressor)?, pending, rope })
            }
        };
        Ok(Self {
            n_head: own.n_head,
            k: own.k,
            q: loader.linear(&own.q)?,
            q_norm: loader.norm_if_there(own.q_norm.as_ref())?,
            keys,
            weights: own.weights.as_ref().map(|weights| loader.linear(weights)).transpose()?,
        })
    }

    /// What makes keys of blocks, if tokens have none.
    pub fn compressor(&self) -> Option<&Compressor> {
        match &self.keys {
            Keys::Tokens(..) => None,
            Keys::Blocks(blocks) => Some(&blocks.compressor),
        }
    }

    /// The rows of `n` tokens in `memory`.
    pub fn rows<'m>(&self, n: usize, memory: &'m mut [f32]) -> IndexRows<'m> {
        let cols = self.compressor().map_or([self.k, 0], Compressor::cols);
        let (q, rest) = memory.split_at_mut(n * self.n_head * self.k);
        let (keys, rest) = rest.split_at_mut(n * cols[0]);
        let (scores, rest) = rest.split_at_mut(n * cols[1]);
        IndexRows { q, keys: [keys, scores], weights: &mut rest[..n * self.n_head] }
    }

    /// Keys of the normed rows `x`, before they rotate; of blocks, what they are made of.
    pub fn project_keys(&self, b: &mut impl Backend, x: &Rows, [y, scores]: [&mut [f32]; 2]) {
        match &self.keys {
            Keys::Blocks(blocks) => blocks.compressor.project(b, x, y, scores),
            Keys::Tokens(key, norm) => {
                b.matmul(x, &mut [Product { w: key.w.view(), y }]);
                key.finish(b, y);
                norm.apply_onto(b, y);
            }
        }
    }

    /// Queries of the rows `of`, before they rotate, and weights of the normed rows `x`.
    pub fn queries(&self, b: &mut impl Backend, [x, of]: [&Rows; 2], [q, weights]: [&mut [f32]; 2]) {
        b.matmul(of, &mut [Product { w: self.q.w.view(), y: q }]);
        self.q.finish(b, q);
        if let Some(norm) = &self.q_norm {
            norm.apply_onto(b, q);
        }
        if let Some(linear) = &self.weights {
            b.matmul(x, &mut [Product { w: linear.w.view(), y: weights }]);
            linear.finish(b, weights);
        } else {
            weights.fill(1.0);
        }
    }

    /// Chooses blocks of each of some rows of one sequence, of which the first is at `pos`: bits of positions in `chosen`, which
    /// are (n, words). `keys` are those of the sequence, these rows' own included.
    fn choose(
        &self,
        b: &mut impl Backend,
        rows: &IndexRows<'_>,
        (first, n, pos): (usize, usize, usize),
        keys: QMat<'_>,
        top_k: TopK,
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
            let scores = &s.scores[..some.len() * s.n_block];
            let chosen = &mut s.chosen[some.start * words..some.end * words];
            b.each_row(chosen, words, 4 * s.n_block, |i, chosen| {
                choose(&scores[i * s.n_block..], pos + start + i + 1, top_k, chosen);
            });
        }
    }

    /// Scores of all blocks that have keys, for the rows whose queries have been prepared.
    fn score(&self, b: &mut impl Backend, weights: &[f32], keys: QMat<'_>, s: &mut IndexScratch) {
        let n = s.queries.len() / self.n_head;
        for start in (0..keys.rows).step_by(BLOCKS) {
            let some = start..keys.rows.min(start + BLOCKS);
            let products = &mut s.products[..s.queries.len() * some.len()];
            b.matmul(&s.queries, &mut [Product { w: keys.slice(some.clone()), y: products }]);
            let products = &*products;
            b.each_row(&mut s.scores[..n * s.n_block], s.n_block, self.n_head * some.len(), |i, scores| {
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

/// Sets the bits of the first `seen` positions that are in the best blocks, by their scores, or in no whole one.
fn choose(scores: &[f32], seen: usize, top_k: TopK, bits: &mut [u64]) {
    bits.fill(0);
    let (each, whole) = (top_k.each, seen / top_k.each);
    let mut set = |positions: std::ops::Range<usize>| positions.for_each(|i| bits[i / 64] |= 1 << (i % 64));
    choose_best(&scores[..whole], top_k.blocks(), |block| set(block * each..(block + 1) * each));
    set(whole * each..seen);
}

/// Calls `take` with the numbers of the `k` best scores; of equal ones, the first. All of fewer.
fn choose_best(scores: &[f32], k: usize, mut take: impl FnMut(usize)) {
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
            take(i);
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

    fn positions(scores: &[f32], seen: usize, top_k: TopK) -> Vec<usize> {
        let mut bits = [u64::MAX; 2];
        choose(scores, seen, top_k, &mut bits);
        (0..128).filter(|i| bits[i / 64] >> (i % 64) & 1 == 1).collect()
    }

    fn chosen(scores: &[f32], k: usize) -> Vec<usize> {
        positions(scores, scores.len(), TopK { n: k, each: 1 })
    }

    #[test]
    fn of_blocks_all_positions_are_chosen_and_those_behind_the_last() {
        let scores = [1.0, 3.0, 2.0, 9.0];
        let top_k = TopK { n: 5, each: 2 };
        assert_eq!(positions(&scores, 7, top_k), [2, 3, 4, 5, 6], "the fourth block is not whole");
        assert_eq!(positions(&scores, 8, top_k), [2, 3, 6, 7]);
        assert_eq!(positions(&scores, 1, top_k), [0]);
        assert_eq!([4, 5, 6].map(|len| top_k.leaves_out(len)), [false, false, true]);
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
