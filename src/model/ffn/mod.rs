//! Feed-forward parts: each token for itself.

mod dense;
mod device;
mod moe;
mod router;

pub use dense::Dense;
pub use moe::{Moe, MoeScratch};
pub use router::{sigmoid, softplus};
