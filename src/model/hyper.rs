//! Hyper-connections (arXiv 2409.19606): what a part reads of several residual streams, and how it adds to them.

use super::load::{Linear, Loader, Mat};
use crate::{
    Result,
    backend::{Backend, Product, Rows},
    blueprint::{self, MAX_STREAMS},
    model::ffn::sigmoid,
};

/// See the module.
pub struct Connection {
    /// Streams.
    n: usize,
    n_embd: usize,
    kind: Kind,
}

enum Kind {
    Mean,
    Gated(Gated),
    Mixed(Mixed),
}

struct Gated {
    /// (n * n_embd)
    norm: Vec<f32>,
    eps: f32,
    /// Ones. (n_embd)
    ones: Vec<f32>,
    /// (rank, n * n_embd)
    down: Linear,
    /// (n * n_embd, rank)
    up: Linear,
    /// (n, n * n_embd)
    inject: Option<Linear>,
}

struct Mixed {
    /// (n * (2 + n) or n, n * n_embd)
    w: Linear,
    /// (rows of `w`)
    base: Vec<f32>,
    /// (3 or 1)
    scale: Vec<f32>,
    eps: f32,
    /// Ones. (n * n_embd)
    ones: Vec<f32>,
    epsilon: f32,
    iterations: usize,
}

/// Buffers for reading. Of as many rows as are read:
pub struct StreamRows<'a> {
    /// All streams, normed. (n_row, n * n_embd)
    pub all: &'a mut Rows,
    /// (n_row, rank)
    pub low: &'a mut Rows,
    /// (n_row, n * n_embd)
    pub gate: &'a mut [f32],
    /// What adding needs. (n_row, [`Connection::n_weight`])
    pub weights: &'a mut [f32],
}

impl Connection {
    /// Between `n` streams of `n_embd`, if there is one.
    pub fn load_if_any(
        loader: &mut Loader<'_>,
        connection: Option<&blueprint::Connection>,
        [n, n_embd]: [usize; 2],
    ) -> Result<Option<Connection>> {
        let Some(connection) = connection else { return Ok(None) };
        let kind = match connection {
            blueprint::Connection::Mean => Kind::Mean,
            blueprint::Connection::Gated(gated) => Kind::Gated(Gated {
                norm: loader.vector(&gated.norm)?,
                eps: gated.eps,
                ones: vec![1.0; n_embd],
                down: loader.plain(&gated.down)?,
                up: loader.plain(&gated.up)?,
                inject: gated.inject.as_ref().map(|inject| loader.plain(inject)).transpose()?,
            }),
            blueprint::Connection::Mixed(mixed) => Kind::Mixed(Mixed {
                w: loader.plain(&mixed.w)?,
                base: loader.vector(&mixed.base)?,
                scale: loader.vector(&mixed.scale)?,
                eps: mixed.eps,
                ones: vec![1.0; n * n_embd],
                epsilon: mixed.epsilon,
                iterations: mixed.iterations,
            }),
        };
        Ok(Some(Connection { n, n_embd, kind }))
    }

    /// Floats of a row's [`StreamRows::weights`] at most.
    pub const fn most_weights(n: usize) -> usize {
        n * (2 + n)
    }

    /// Floats that reading leaves for adding, of each row.
    pub fn n_weight(&self) -> usize {
        match &self.kind {
            Kind::Mean => 0,
            Kind::Gated(_) => self.n,
            Kind::Mixed(mixed) => mixed.base.len(),
        }
    }

    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        let linears = match &mut self.kind {
            Kind::Mean => [None, None, None],
            Kind::Gated(gated) => [Some(&mut gated.down), Some(&mut gated.up), gated.inject.as_mut()],
            Kind::Mixed(mixed) => [Some(&mut mixed.w), None, None],
        };
        linears.into_iter().flatten().map(|linear| &mut linear.w)
    }

    /// What a part reads of rows `x` of all streams (n_row, n * n_embd), into `out` (n_row, n_embd).
    pub fn read(&self, b: &mut impl Backend, x: &[f32], rows: StreamRows<'_>, out: &mut [f32]) {
        match &self.kind {
            Kind::Mean => self.sum(b, x, |_, _| 1.0 / self.n as f32, out),
            Kind::Gated(gated) => self.read_gated(gated, b, x, rows, out),
            Kind::Mixed(mixed) => self.read_mixed(mixed, b, x, rows, out),
        }
    }

    /// Sums of the streams, by the weight of each row's stream.
    fn sum(&self, b: &mut impl Backend, x: &[f32], weight: impl Fn(usize, usize) -> f32 + Sync, out: &mut [f32]) {
        let (n, cols) = (self.n, self.n_embd);
        b.each_row(out, cols, 2 * n * cols, |i, out| {
            out.fill(0.0);
            for (stream, x) in x[i * n * cols..(i + 1) * n * cols].chunks_exact(cols).enumerate() {
                let weight = weight(i, stream);
                out.iter_mut().zip(x).for_each(|(out, x)| *out += weight * x);
            }
        });
    }

    fn read_gated(&self, gated: &Gated, b: &mut impl Backend, x: &[f32], rows: StreamRows<'_>, out: &mut [f32]) {
        let (n, cols, each) = (self.n, self.n * self.n_embd, self.n_embd);
        let n_row = x.len() / cols;
        let StreamRows { all, low, gate, weights } = rows;
        let normed = all.start_wide(n_row, cols);
        b.rms_norm(x, &gated.ones, gated.eps, normed);
        b.each_row(normed, cols, cols, |_, row| row.iter_mut().zip(&gated.norm).for_each(|(x, w)| *x *= w));
        b.prepare(all);
        let rank = gated.down.w.view().rows;
        let y = low.start_wide(n_row, rank);
        let share = 1.0 / n as f32;
        if let Some(inject) = &gated.inject {
            let weights = &mut weights[..n_row * n];
            let down = Product { w: gated.down.w.view(), y };
            b.matmul(all, &mut [down, Product { w: inject.w.view(), y: weights }]);
            weights.iter_mut().for_each(|x| *x = 2.0 * sigmoid(*x * share));
        } else {
            b.matmul(all, &mut [Product { w: gated.down.w.view(), y }]);
        }
        b.each_row(low.x_mut(), rank, 8 * rank, |_, row| {
            row.iter_mut().for_each(|x| *x = *x * share * sigmoid(*x * share));
        });
        b.prepare(low);
        let gate = &mut gate[..n_row * cols];
        b.matmul(low, &mut [Product { w: gated.up.w.view(), y: gate }]);
        let (gate, normed) = (&*gate, all.x());
        b.each_row(out, each, 12 * cols, |i, out| {
            out.fill(0.0);
            let row = |x: usize| x * each..(x + 1) * each;
            for stream in i * n..(i + 1) * n {
                let terms = normed[row(stream)].iter().zip(&gate[row(stream)]);
                out.iter_mut().zip(terms).for_each(|(out, (x, gate))| *out += x * sigmoid(*gate));
            }
            out.iter_mut().for_each(|out| *out *= share);
        });
    }

    fn read_mixed(&self, mixed: &Mixed, b: &mut impl Backend, x: &[f32], rows: StreamRows<'_>, out: &mut [f32]) {
        let (n, cols) = (self.n, self.n * self.n_embd);
        let n_row = x.len() / cols;
        let StreamRows { all, weights, .. } = rows;
        b.rms_norm(x, &mixed.ones, mixed.eps, all.start_wide(n_row, cols));
        b.prepare(all);
        let width = mixed.base.len();
        let weights = &mut weights[..n_row * width];
        b.matmul(all, &mut [Product { w: mixed.w.w.view(), y: weights }]);
        b.each_row(weights, width, 64 * width, |_, row| mixed.weigh(n, row));
        self.sum(b, x, |i, stream| weights[i * width + stream], out);
    }

    /// Adds what a part gave (n_row, n_embd) to the rows `x` of all streams, with the weights that reading left.
    pub fn add(&self, b: &mut impl Backend, given: &[f32], weights: &[f32], x: &mut [f32]) {
        let (n, each) = (self.n, self.n_embd);
        match &self.kind {
            Kind::Mean => unreachable!("what reads a mean adds nothing"),
            Kind::Gated(_) => b.each_row(x, n * each, 2 * n * each, |i, x| {
                for (x, weight) in x.chunks_exact_mut(each).zip(&weights[i * n..(i + 1) * n]) {
                    x.iter_mut().zip(&given[i * each..]).for_each(|(x, given)| *x += weight * given);
                }
            }),
            Kind::Mixed(mixed) => b.each_row(x, n * each, n * n * each, |i, x| {
                let width = mixed.base.len();
                let (adds, mixes) = weights[i * width + n..(i + 1) * width].split_at(n);
                let mut old = [0.0; MAX_STREAMS];
                for (j, given) in given[i * each..(i + 1) * each].iter().enumerate() {
                    old[..n].iter_mut().enumerate().for_each(|(stream, old)| *old = x[stream * each + j]);
                    for (to, add) in adds.iter().enumerate() {
                        let kept: f32 = old[..n].iter().enumerate().map(|(from, x)| mixes[from * n + to] * x).sum();
                        x[to * each + j] = add * given + kept;
                    }
                }
            }),
        }
    }
}

impl Mixed {
    /// From products to weights of reading, adding and mixing of `n` streams.
    fn weigh(&self, n: usize, row: &mut [f32]) {
        let scale = |i: usize| self.scale[(i / n).min(2)];
        row.iter_mut().zip(&self.base).enumerate().for_each(|(i, (x, base))| *x = *x * scale(i) + base);
        let (reads, rest) = row.split_at_mut(n);
        reads.iter_mut().for_each(|x| *x = sigmoid(*x) + self.epsilon);
        if rest.is_empty() {
            return;
        }
        let (adds, mixes) = rest.split_at_mut(n);
        adds.iter_mut().for_each(|x| *x = 2.0 * sigmoid(*x));
        for from in mixes.chunks_exact_mut(n) {
            let max = from.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
            from.iter_mut().for_each(|x| *x = (*x - max).exp());
            let sum: f32 = from.iter().sum();
            from.iter_mut().for_each(|x| *x = *x / sum + self.epsilon);
        }
        self.to_one(mixes, n, 1);
        for _ in 1..self.iterations {
            self.to_one(mixes, 1, n);
            self.to_one(mixes, n, 1);
        }
    }

    /// Divides the elements `within` each other of a square matrix by their sum, for each of those `beside` each other.
    fn to_one(&self, mixes: &mut [f32], within: usize, beside: usize) {
        let n = within.max(beside);
        for start in (0..n).map(|i| i * beside) {
            let sum: f32 = (0..n).map(|i| mixes[start + i * within]).sum();
            (0..n).for_each(|i| mixes[start + i * within] /= sum + self.epsilon);
        }
    }
}
