//! Parts that mix a sequence's tokens, and fill its state.

mod gqa;
mod latent;

pub use gqa::{AttentionRows, Gqa};
pub use latent::Latent;
