//! Programs built with the tests, as commands.

use std::{ffi::OsStr, process::Command};

/// A command for a program of the tests' own architecture: `HOTSET_TEST_RUNNER` names the emulator that this needs on
/// another machine, with its arguments (`tools/test-aarch64`). It keeps nothing: every run starts as the first one does.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let runner = std::env::var("HOTSET_TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let mut command = match words.next() {
        Some(emulator) => {
            let mut command = Command::new(emulator);
            command.args(words).arg(program);
            command
        }
        None => Command::new(program),
    };
    // A file is no folder.
    command.env("XDG_CACHE_HOME", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    command
}
