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

/// A budget of so many MiB above the smallest that has a pool of slots for each layer, as `--memory` takes it. What that is
/// depends on how long the program's code is, and so on how it was built.
pub fn budget(program: impl AsRef<OsStr>, model: &str, more_mib: u64) -> String {
    let args = ["run", model, "Once", "-n", "200", "--scope", "layer", "--memory", "4096B"];
    let said = String::from_utf8(command(program).args(args).output().unwrap().stderr).unwrap();
    let least = said.split("at least ").nth(1).unwrap_or_else(|| panic!("{said}")).split(' ').next().unwrap();
    (least.parse::<u64>().unwrap() + (more_mib << 20)).to_string()
}
