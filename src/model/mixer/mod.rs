//! Parts that mix a sequence's tokens, and fill its state.

mod compressed;
mod compressor;
mod conv;
mod delta_net;
mod gqa;
mod indexer;
mod latent;
mod low_rank;
mod mamba2;
mod short_conv;

pub use compressed::{Compressed, SeenRows};
pub use conv::{Conv, Inputs};
pub use delta_net::DeltaNet;
pub use gqa::{AttentionRows, Gqa};
pub use indexer::IndexScratch;
pub use latent::Latent;
use low_rank::LowRank;
pub use mamba2::Mamba2;
pub use short_conv::ShortConv;

use super::{
    ffn::{sigmoid, softplus},
    load::Linear,
};
use crate::{
    backend::{Backend, MAX_PRODUCTS, Product, Rows},
    blueprint::GateAct,
    quant::{GgmlType, QMat},
};

/// What a gate multiplies by.
fn open(act: GateAct, x: f32) -> f32 {
    match act {
        GateAct::Sigmoid => sigmoid(x),
        GateAct::Softplus => softplus(x),
        GateAct::Silu => silu(x),
    }
}

/// `x * sigmoid(x)`.
pub fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// `to += o · rows`. `out` has room for the product.
fn add_product(b: &mut impl Backend, o: &Linear, rows: &mut Rows, out: &mut [f32], to: &mut [f32]) {
    let w = o.w.view();
    b.prepare(rows);
    b.matmul(rows, &mut [Product { w, y: out }]);
    o.finish(b, out);
    b.add_weighted(to, w.rows, out, |_| 1.0);
}

/// The products that there are, of one input.
fn multiply<B: Backend, const N: usize>(b: &mut B, rows: &Rows, products: [Option<Product<'_>>; N]) {
    let none = || Product { w: QMat::new(GgmlType::F32, 0, 0, &[]), y: &mut [] };
    let (mut there, mut n) = ([const { None }; N].map(|_: Option<()>| none()), 0);
    for product in products.into_iter().flatten() {
        there[n] = product;
        n += 1;
    }
    there[..n].chunks_mut(MAX_PRODUCTS).for_each(|products| b.matmul(rows, products));
}
