//! hotset for C, and for whatever calls C. `hotset.h` is made from these files; `example.c` shows all of it in use.
//!
//! The rules that every function keeps stand at the head of `hotset.h` (`cbindgen.toml`). In short: nobody keeps the other's pointers,
//! errors are values, NULL and panics are errors, and a session's lock is what makes wrong use from two sides an error too.

mod error;
mod memory;
mod options;
mod session;
mod stats;
mod text;

pub use error::{Code, Failure, hotset_error_code, hotset_error_free, hotset_error_least_bytes, hotset_error_message};
pub use options::{OpenOptions, TextOptions};
pub use session::{
    Session, hotset_close, hotset_decode, hotset_feed, hotset_logits, hotset_open, hotset_reset, hotset_set_memory,
};
pub use stats::{Stats, hotset_get_stats};
pub use text::{Finish, OnText, hotset_detokenize, hotset_generate, hotset_tokenize};

/// Changes when a program that was built against an older header no longer works.
pub const ABI_VERSION: u32 = 1;

/// The library's `HOTSET_ABI_VERSION`, to compare with the header's.
#[unsafe(no_mangle)]
pub extern "C" fn hotset_abi_version() -> u32 {
    ABI_VERSION
}
