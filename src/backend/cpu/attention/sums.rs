//! Weighted sums of values with the largest score so far: the running part of a softmax in one pass, and how two of them
//! become one.
//!
//! Must not know: keys, tiles, heads.

use super::{super::Out, Kernels, QUERIES};
use crate::backend::Floats;

/// What queries have of the positions so far.
#[derive(Default)]
pub(super) struct Sums {
    /// The padded head_v.
    wide_v: usize,
    /// Values, weighted. (queries, wide_v)
    values: Floats,
    /// The largest score, and the sum of weights. (queries)
    weights: Vec<(f32, f32)>,
}

impl Sums {
    pub(super) const fn bytes(queries: usize, head_v: usize) -> usize {
        queries * (Kernels::padded(head_v) * size_of::<f32>() + size_of::<(f32, f32)>())
    }

    pub(super) fn resize(&mut self, queries: usize, head_v: usize) {
        self.wide_v = Kernels::padded(head_v);
        self.values.resize(queries * self.wide_v);
        self.weights.resize(queries, (0.0, 0.0));
    }

    pub(super) fn shared(&mut self) -> SharedSums {
        let wide_v = self.wide_v;
        SharedSums { values: Out(self.values.as_mut_ptr()), weights: Out(self.weights.as_mut_ptr()), wide_v }
    }

    /// Those of the first `n` queries.
    pub(super) fn first(&mut self, n: usize) -> Part<'_> {
        Part { wide_v: self.wide_v, values: &mut self.values[..n * self.wide_v], weights: &mut self.weights[..n] }
    }
}

/// [`Sums`] that threads have parts of.
pub(super) struct SharedSums {
    values: Out<f32>,
    weights: Out<(f32, f32)>,
    wide_v: usize,
}

impl SharedSums {
    /// Those of `n` queries from `first` on.
    ///
    /// # Safety
    /// The sums live, have them, and nobody else uses these meanwhile.
    pub(super) unsafe fn part<'a>(&self, first: usize, n: usize) -> Part<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            let values = std::slice::from_raw_parts_mut(self.values.at(first * self.wide_v), n * self.wide_v);
            let weights = std::slice::from_raw_parts_mut(self.weights.at(first), n);
            Part { wide_v: self.wide_v, values, weights }
        }
    }
}

/// Some queries' [`Sums`].
pub(super) struct Part<'a> {
    wide_v: usize,
    /// (queries, wide_v)
    pub(super) values: &'a mut [f32],
    weights: &'a mut [(f32, f32)],
}

impl Part<'_> {
    pub(super) fn clear(&mut self) {
        self.values.fill(0.0);
        self.weights.fill((f32::NEG_INFINITY, 0.0));
    }

    /// Query `i`, its values brought to a largest score of `score` if that is larger.
    pub(super) fn raise(&mut self, k: &Kernels, i: usize, score: f32) -> (&mut [f32], &mut (f32, f32)) {
        let wide_v = self.wide_v;
        let (values, weights) = (&mut self.values[i * wide_v..][..wide_v], &mut self.weights[i]);
        let (max, sum) = weights;
        if score > *max {
            let mut shrink = [*max];
            k.exp_sum(&mut shrink, score);
            k.scale(shrink[0], values);
            (*max, *sum) = (score, *sum * shrink[0]);
        }
        (values, weights)
    }

    /// Takes in a score of query `i` that has no value.
    pub(super) fn add_sink(&mut self, k: &Kernels, i: usize, score: f32) {
        let (_, weights) = self.raise(k, i, score);
        weights.1 += k.exp_sum(&mut [score], weights.0);
    }

    /// Takes in what the queries, at most a block's, have of the positions behind these.
    pub(super) fn add(&mut self, k: &Kernels, behind: &Part<'_>) {
        let wide_v = self.wide_v;
        let shrink = &mut [0.0; QUERIES][..self.weights.len()];
        for (i, (shrink, (max, _))) in shrink.iter_mut().zip(&*behind.weights).enumerate() {
            let (_, (highest, _)) = self.raise(k, i, *max);
            *shrink = max - *highest;
        }
        k.exp_sum(shrink, 0.0);
        for (i, (shrink, (_, sum))) in shrink.iter().zip(&*behind.weights).enumerate() {
            // Otherwise the query sees none of them.
            if *sum != 0.0 {
                self.weights[i].1 += sum * shrink;
                k.axpy(*shrink, &behind.values[i * wide_v..][..wide_v], &mut self.values[i * wide_v..][..wide_v]);
            }
        }
    }

    /// Query `i`'s row of the result.
    pub(super) fn divide(&self, k: &Kernels, i: usize, out: &mut [f32]) {
        let wide_v = self.wide_v;
        k.scaled(1.0 / self.weights[i].1, &self.values[i * wide_v..][..out.len()], out);
    }
}
