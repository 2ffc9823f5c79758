//! A causal convolution of each channel for itself: of its present input and some of the last ones, which a sequence keeps.

use crate::{Result, backend::Backend, blueprint, model::load::Loader};

/// See the module.
pub struct Conv {
    channels: usize,
    /// The last row is the present input's. (inputs, channels)
    w: Vec<f32>,
    /// (channels), or empty.
    bias: Vec<f32>,
    /// From each input that it sees to the next.
    dilation: usize,
}

/// Rows of inputs: some columns of a wider matrix.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// (n, cols)
    pub x: &'a [f32],
    pub cols: usize,
    /// The first channel's column.
    pub at: usize,
}

impl Conv {
    /// Of the channels of `convs` one after another, which see equally many inputs.
    pub fn load(loader: &mut Loader<'_>, convs: &[blueprint::Conv]) -> Result<Self> {
        let (mut rows, mut bias, inputs) = (Vec::new(), Vec::new(), convs[0].w.cols);
        let biased = convs.iter().any(|conv| conv.bias.is_some());
        for conv in convs {
            rows.extend(loader.vector(&conv.w)?);
            match &conv.bias {
                Some(of_conv) => bias.extend(loader.vector(of_conv)?),
                None if biased => bias.extend(vec![0.0; conv.channels()]),
                None => {}
            }
        }
        let channels = rows.len() / inputs;
        let w =
            (0..inputs).flat_map(|j| (0..channels).map(move |c| (c, j))).map(|(c, j)| rows[c * inputs + j]).collect();
        Ok(Self { channels, w, bias, dilation: convs[0].dilation })
    }

    /// Floats that a sequence keeps: the last inputs of all channels.
    pub fn floats(&self) -> usize {
        (self.w.len() - self.channels) * self.dilation
    }

    /// `out = then(conv(inputs))`, where `before` are the inputs before these, the last ones of which are left in `after`.
    pub fn apply(
        &self,
        b: &mut impl Backend,
        inputs: Inputs<'_>,
        (before, after): (&[f32], &mut [f32]),
        out: &mut [f32],
        then: impl Fn(f32) -> f32 + Sync,
    ) {
        let (channels, n, kept) = (self.channels, out.len() / self.channels, self.floats() / self.channels);
        // Row `i` counts from the first that is kept.
        let input = |i: usize| match i.checked_sub(kept) {
            Some(i) => &inputs.x[i * inputs.cols + inputs.at..][..channels],
            None => &before[i * channels..][..channels],
        };
        b.each_row(out, channels, self.w.len() + channels, |i, out| {
            out.fill(0.0);
            for (j, w) in self.w.chunks_exact(channels).enumerate() {
                out.iter_mut().zip(input(i + j * self.dilation)).zip(w).for_each(|((out, x), w)| *out += x * w);
            }
            out.iter_mut().zip(&self.bias).for_each(|(out, bias)| *out += bias);
            out.iter_mut().for_each(|out| *out = then(*out));
        });
        for (j, after) in after.chunks_exact_mut(channels).enumerate() {
            after.copy_from_slice(input(n + j));
        }
    }
}
