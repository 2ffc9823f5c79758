//! What several test binaries share.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod dice;
pub mod npz;
pub mod numpy_rng;
pub mod program;
pub mod ref_models;
pub mod routing;
pub mod samples;
pub mod tiny;
