//! Parts that mix a sequence's tokens, and fill its state.

mod compressed;
mod compressor;
mod conv;
mod delta_net;
mod gqa;
mod latent;
mod mamba2;
mod short_conv;

pub use compressed::{Compressed, SeenRows};
pub use conv::{Conv, Inputs};
pub use delta_net::DeltaNet;
pub use gqa::{AttentionRows, Gqa};
pub use latent::Latent;
pub use mamba2::Mamba2;
pub use short_conv::ShortConv;

use super::ffn::{sigmoid, softplus};
use crate::{
    backend::{Backend, Product, Rows},
    quant::{GgmlType, QMat},
};

/// `x * sigmoid(x)`.
pub fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// The products that there are, of one input.
fn multiply<B: Backend>(b: &mut B, rows: &Rows, products: [Option<Product<'_>>; 4]) {
    let none = || Product { w: QMat::new(GgmlType::F32, 0, 0, &[]), y: &mut [] };
    let (mut there, mut n) = ([none(), none(), none(), none()], 0);
    for product in products.into_iter().flatten() {
        there[n] = product;
        n += 1;
    }
    b.matmul(rows, &mut there[..n]);
}
