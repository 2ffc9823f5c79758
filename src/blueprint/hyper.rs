//! Hyper-connections (arXiv 2409.19606): several residual streams instead of one. A block reads one row from all streams of a
//! token and adds what it gives to all of them.

use super::{LayerReader, Reader, Tensor};
use crate::{Error, Result};

/// The most streams of a model: models have 4.
pub const MAX_STREAMS: usize = 16;

/// A limit on what a file may claim: models have 20.
const MAX_ITERATIONS: usize = 1000;

/// A limit on what a file may claim, as [`super::reader::MAX_WIDTH`].
const MAX_RANK: usize = 1 << 20;

/// Between the residual streams and a part with one input and one output.
#[derive(Clone, Copy, Debug)]
pub enum Connection {
    /// Reads their mean, and adds nothing.
    Mean,
    /// Reads the mean of the streams, normed and gated element by element, and adds to each with a weight.
    Gated(GatedStreams),
    /// Reads a weighted sum of the streams, and mixes them when it adds.
    Mixed(MixedStreams),
}

/// The gates of a [`Connection`], of low rank: with `s` the streams, each normed, and n their number, a part reads the mean of
/// `s · sigmoid(up · silu(down · s / n))`, and adds to each stream with a weight of `2 · sigmoid(inject · s / n)`.
#[derive(Clone, Copy, Debug)]
pub struct GatedStreams {
    /// Of each stream, one after another. (n * n_embd)
    pub norm: Tensor,
    /// Added to the mean square.
    pub eps: f32,
    /// (rank, n * n_embd)
    pub down: Tensor,
    /// (n * n_embd, rank)
    pub up: Tensor,
    /// (n, n * n_embd) `None`: it adds nothing.
    pub inject: Option<Tensor>,
}

/// The weights of a [`Connection`] that keeps the streams' sum (arXiv 2512.24880): products with all streams, normed at once,
/// say with which weights streams are read, with which they are added to, and how they are mixed before that, by a matrix that
/// Sinkhorn's iteration makes doubly stochastic.
#[derive(Clone, Copy, Debug)]
pub struct MixedStreams {
    /// Rows for reading, for adding, for mixing from each stream into each. (n * (2 + n), n * n_embd), or (n, n * n_embd): it
    /// adds nothing.
    pub w: Tensor,
    /// What is added to the products after their scale. (rows of `w`)
    pub base: Tensor,
    /// The scale of the products for reading, for adding, for mixing. (3) or (1)
    pub scale: Tensor,
    /// Added to the mean square.
    pub eps: f32,
    /// Added to weights and divisors.
    pub epsilon: f32,
    /// Of Sinkhorn's, from 1 on.
    pub iterations: usize,
}

/// How the residual streams of a model are mixed, by its keys.
#[derive(Clone, Copy, Debug)]
pub struct Mixture {
    /// Streams.
    pub n: usize,
    epsilon: f32,
    iterations: usize,
}

impl Connection {
    pub(super) fn tensors(&self, all: &mut Vec<Tensor>) {
        match self {
            Connection::Mean => {}
            Connection::Gated(gated) => {
                all.extend([gated.norm, gated.down, gated.up]);
                all.extend(gated.inject);
            }
            Connection::Mixed(mixed) => all.extend([mixed.w, mixed.base, mixed.scale]),
        }
    }
}

impl Reader<'_> {
    /// How many residual streams there are.
    ///
    /// # Errors
    /// A key that is missing or does not make sense.
    pub fn n_stream(&self) -> Result<usize> {
        match self.count("hyper_connection.count", MAX_STREAMS)? {
            1 => Err(Error::format(self.gguf().path(), self.key("hyper_connection.count"), "several", 1)),
            n => Ok(n),
        }
    }

    /// How they are mixed.
    ///
    /// # Errors
    /// A key that is missing or does not make sense.
    pub fn mixture(&self) -> Result<Mixture> {
        let n = self.n_stream()?;
        let iterations = self.count("hyper_connection.sinkhorn_iterations", MAX_ITERATIONS)?;
        self.gguf().meta().require_f32(&self.key("hyper_connection.epsilon"))?;
        let epsilon = self.number("hyper_connection.epsilon", (0.0, 0.1))?.expect("it is there");
        Ok(Mixture { n, epsilon, iterations })
    }

    /// `NAME_norm`, `NAME_down` and `NAME_up`, and with `adds` `NAME_inject`, or `NAME_down_inject` with the rows of both.
    fn gated(&self, name: &str, n: usize, adds: bool) -> Result<Connection> {
        let (rank, all) = (self.count("hyper_connection.low_rank", MAX_RANK)?, n * self.n_embd);
        let norm = self.vector(&format!("{name}_norm.weight"), all)?;
        let fused = format!("{name}_down_inject.weight");
        let (down, inject) = if adds && self.gguf().tensor(&fused).is_some() {
            let both = self.matrix(&fused, all, rank + n)?;
            (both.slice(0..rank), Some(both.slice(rank..rank + n)))
        } else {
            let inject = adds.then(|| self.matrix(&format!("{name}_inject.weight"), all, n)).transpose()?;
            (self.matrix(&format!("{name}_down.weight"), all, rank)?, inject)
        };
        let up = self.matrix(&format!("{name}_up.weight"), rank, all)?;
        Ok(Connection::Gated(GatedStreams { norm, eps: self.plain_norm(self.n_embd)?.eps, down, up, inject }))
    }

    /// What the output reads of gated streams: `output_hc_norm`, `output_hc_down`, `output_hc_up`.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn gated_output(&self, n: usize) -> Result<Connection> {
        self.gated("output_hc", n, false)
    }

    /// `NAME_fn`, `NAME_base`, `NAME_scale`.
    fn mixed(&self, name: &str, mixture: Mixture, adds: bool) -> Result<Connection> {
        let Mixture { n, epsilon, iterations } = mixture;
        let (rows, scales) = if adds { (n * (2 + n), 3) } else { (n, 1) };
        Ok(Connection::Mixed(MixedStreams {
            w: self.matrix(&format!("{name}_fn.weight"), n * self.n_embd, rows)?,
            base: self.vector(&format!("{name}_base.weight"), rows)?,
            scale: self.vector(&format!("{name}_scale.weight"), scales)?,
            eps: self.plain_norm(self.n_embd)?.eps,
            epsilon,
            iterations,
        }))
    }

    /// What the output reads of mixed streams: `output_hc_fn`, `output_hc_base`, `output_hc_scale`.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn mixed_output(&self, mixture: Mixture) -> Result<Connection> {
        self.mixed("output_hc", mixture, false)
    }
}

impl LayerReader<'_, '_> {
    /// The connection of the part `which` (`attn` or `ffn`) with `n` gated streams, by `hc_WHICH_norm` and so on.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn gated_streams(&self, which: &str, n: usize) -> Result<Connection> {
        self.m.gated(&self.name(&format!("hc_{which}")), n, true)
    }

    /// The connection of the part `which` (`attn` or `ffn`) with mixed streams, by `hc_WHICH_fn` and so on.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn mixed_streams(&self, which: &str, mixture: Mixture) -> Result<Connection> {
        self.m.mixed(&self.name(&format!("hc_{which}")), mixture, true)
    }
}
