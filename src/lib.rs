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

/// Bytes for people, in binary units: `15.2 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, "bytes");
    for next in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") }
}
