//! hotset: Mixture-of-Experts models inside a memory budget.

pub mod backend;
pub mod error;
pub mod gguf;
pub mod id;
pub mod npy;
pub mod quant;
pub mod sampler;
pub mod tokenizer;

pub use error::{Error, Result};
