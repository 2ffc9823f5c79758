//! hotset: Mixture-of-Experts models inside a memory budget.

pub mod backend;
pub mod error;
pub mod expert;
pub mod gguf;
pub mod id;
pub mod io;
pub mod machine;
pub mod model;
pub mod npy;
pub mod plan;
pub mod policy;
pub mod prefetch;
pub mod quant;
pub mod sampler;
pub mod session;
pub mod tokenizer;
pub mod trace;

pub use error::{Error, Result};

/// Bytes for people: `15.2 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
