//! A memory of n-grams (arXiv 2601.07372): rows of a table in the file, chosen by a token and those before it, become values
//! that each residual stream takes by how well it fits their keys.

use super::{
    cx::Cx,
    embed::RowReader,
    ffn::sigmoid,
    load::{Linear, Loader, Mat},
    mixer::{Conv, Inputs, silu},
    scratch::Scratch,
    state::Sequence,
};
use crate::{
    Result,
    backend::{Backend, Product, Rows},
    blueprint::{self, NGramTable},
    gguf::Gguf,
    model::Batch,
};

/// The table, of which a batch's rows are read before its first layer: which ones follows from the tokens alone.
pub struct Table {
    table: NGramTable,
    reader: RowReader,
}

impl Table {
    pub fn new(gguf: &Gguf, table: &NGramTable) -> Table {
        Table { table: table.clone(), reader: RowReader::new(gguf, &table.rows) }
    }

    /// Gathers the rows of a batch's tokens, ready for products. `ids` has room for their numbers, `raw` for the bytes of one.
    ///
    /// # Errors
    /// A read that failed.
    pub fn gather(
        &self,
        b: &mut impl Backend,
        batch: &Batch<'_>,
        seqs: &[Sequence],
        (ids, rows, raw): (&mut Vec<u64>, &mut Rows, &mut [u8]),
    ) -> Result<()> {
        ids.clear();
        for span in batch.spans {
            let (old, new) = (seqs[span.seq].tokens(), &batch.tokens[span.rows.clone()]);
            for (i, &token) in new.iter().enumerate() {
                let before = new[..i].iter().rev().chain(old.iter().rev()).copied();
                ids.extend(self.table.rows_of(token, before));
            }
        }
        // The drive is told of all rows first, so that it does not fetch one after another.
        ids.iter().for_each(|&id| self.reader.announce(id));
        let x = rows.start(batch.tokens.len());
        for (&id, row) in ids.iter().zip(x.chunks_exact_mut(self.table.rows.cols)) {
            self.reader.read(id, raw, row)?;
        }
        b.prepare(rows);
        Ok(())
    }
}

/// See the module.
pub struct NGram {
    /// Number among the recurrent parts: which memory of a sequence is its own.
    index: usize,
    /// Whether no part behind it fills any state.
    is_last: bool,
    key: Linear,
    value: Linear,
    /// Of keys, queries and what is convolved. (n_stream * n_embd)
    norms: [Vec<f32>; 3],
    /// Ones. (n_embd)
    ones: Vec<f32>,
    eps: f32,
    conv: Conv,
}

impl NGram {
    /// The recurrent part number `index`.
    pub fn load(loader: &mut Loader<'_>, ngram: &blueprint::NGram, index: usize, is_last: bool) -> Result<Self> {
        let [key, query, conv] = &ngram.norms;
        Ok(Self {
            index,
            is_last,
            key: loader.linear(&ngram.key)?,
            value: loader.linear(&ngram.value)?,
            norms: [loader.vector(key)?, loader.vector(query)?, loader.vector(conv)?],
            ones: vec![1.0; ngram.norm.cols],
            eps: ngram.norm.eps,
            conv: Conv::load(loader, &[ngram.conv])?,
        })
    }

    /// Floats per token of its rows.
    pub fn cols(ngram: &blueprint::NGram, n_embd: usize) -> usize {
        3 * ngram.conv.channels() + n_embd
    }

    pub fn mats(&self) -> impl Iterator<Item = &Mat> {
        [&self.key.w, &self.value.w].into_iter()
    }

    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        [&mut self.key.w, &mut self.value.w].into_iter()
    }

    /// `x += v + silu(conv(norm(v)))` of all streams, where v are values by how well keys fit the streams.
    pub fn add<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, each) = (cx.len(), cx.n_embd);
        let cols = self.key.w.view().rows;
        let Cx { b, s, seqs, .. } = cx;
        let Scratch { x, moe, ngrams, runs, .. } = &mut **s;
        let (keys, rest) = moe.out.split_at_mut(n * cols);
        let (gated, rest) = rest.split_at_mut(n * cols);
        let (mixed, rest) = rest.split_at_mut(n * cols);
        let values = &mut rest[..n * each];
        let x = &mut x[..n * cols];
        b.matmul(
            ngrams,
            &mut [Product { w: self.key.w.view(), y: keys }, Product { w: self.value.w.view(), y: values }],
        );
        self.key.finish(*b, keys);
        self.value.finish(*b, values);
        b.rms_norm_onto(keys, &self.ones, self.eps);
        // Queries first, then what they let through.
        b.rms_norm(x, &self.ones, self.eps, gated);
        let (of_keys, of_queries) = (&self.norms[0], &self.norms[1]);
        let root = (each as f32).sqrt();
        b.each_row(gated, each, 4 * each, |i, row| {
            let at = i * each % cols;
            let weights = of_keys[at..at + each].iter().zip(&of_queries[at..at + each]);
            let terms = row.iter().zip(&keys[i * each..]).zip(weights);
            let score = terms.map(|((q, k), (of_key, of_query))| q * of_query * (k * of_key)).sum::<f32>() / root;
            let steep = if score == 0.0 { 0.0 } else { score.signum() * score.abs().max(MIN_SCORE).sqrt() };
            let open = sigmoid(steep);
            let value = &values[i * each / cols * each..];
            row.iter_mut().zip(value).for_each(|(x, value)| *x = open * value);
        });
        b.rms_norm(gated, &self.ones, self.eps, keys);
        b.each_row(keys, cols, cols, |_, row| row.iter_mut().zip(&self.norms[2]).for_each(|(x, w)| *x *= w));
        for run in &*runs {
            let inputs = Inputs { x: run.of(keys, cols), cols, at: 0 };
            self.conv.apply(*b, inputs, seqs[run.seq].memory(self.index), run.of_mut(mixed, cols), silu);
        }
        b.add_weighted(x, cols, gated, |_| 1.0);
        b.add_weighted(x, cols, mixed, |_| 1.0);
        if self.is_last {
            cx.drop_unneeded();
        }
    }
}

/// The smallest score that a root is taken of.
const MIN_SCORE: f32 = 1e-6;
