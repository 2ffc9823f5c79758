//! Computes a token's tensors. Sees no file and no expert id.

pub mod cpu;
