//! What a test left out on this machine, and why: said where it happens, which `cargo test` shows only of tests that fail, and
//! kept for the list that `tests/zz_not_tested.rs` prints after all others.

use std::{fs::OpenOptions, io::Write};

/// A line per thing that was left out.
const LIST: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/not-tested");

/// See the module; arguments as for `format!`.
macro_rules! not_tested {
    ($($what:tt)*) => { $crate::common::not_tested::note(&format!($($what)*)) };
}
pub(crate) use not_tested;

/// See the module.
pub fn note(what: &str) {
    eprintln!("NOT TESTED: {what}");
    let line = format!("{}\n", what.replace('\n', " "));
    // One write: other tests append at the same time.
    let list = OpenOptions::new().create(true).append(true).open(LIST);
    list.and_then(|mut list| list.write_all(line.as_bytes())).expect("target/tmp is cargo's, for tests to write to");
}
