//! Parts that mix a sequence's tokens, and fill its state.

mod gqa;

pub use gqa::{AttentionRows, Gqa};
