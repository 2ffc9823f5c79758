//! Notices a file that has its length and not its data: what is left of a download that takes its whole length first.

use crate::{
    Error, Result,
    blueprint::Role,
    gguf::{Gguf, TensorInfo},
};

/// A tensor whose data is not there: it lies in a hole of its file, or it is a norm of zeros, which would make zeros of
/// everything. Biases may be zeros, and then a sparse copy has no bytes for them.
///
/// # Errors
/// If a norm cannot be read.
pub fn missing_data(gguf: &Gguf) -> Result<Option<&TensorInfo>> {
    if let Some(hollow) = gguf.hollow_tensors().into_iter().find(|t| Role::of(&t.name) != Role::Bias) {
        return Ok(Some(hollow));
    }
    for tensor in gguf.tensors().iter().filter(|t| Role::of(&t.name) == Role::Norm) {
        // A norm is as long as a row of the residual stream.
        let Some(n) = tensor.bytes.filter(|&n| n <= MAX_NORM_BYTES) else { continue };
        let mut bytes = vec![0; n as usize];
        gguf.read_tensor(tensor, &mut bytes)?;
        if bytes.iter().all(|&b| b == 0) {
            return Ok(Some(tensor));
        }
    }
    Ok(None)
}

/// Refuses a file of which [`missing_data`] finds a tensor.
///
/// # Errors
/// Names the tensor.
pub fn refuse_missing(gguf: &Gguf) -> Result<()> {
    let Some(tensor) = missing_data(gguf)? else { return Ok(()) };
    let message = format!("the data of tensor {} is not there (still downloading?)", tensor.name.escape_debug());
    Err(Error::file(gguf.path_of(tensor), message))
}

/// A limit on what is read at once: a megabyte-wide stream of F32.
const MAX_NORM_BYTES: u64 = 4 << 20;
