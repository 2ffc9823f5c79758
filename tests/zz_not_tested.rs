//! No test, but the list of what the others left out on this machine, and why. Named so that cargo runs it after them.
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::{collections::BTreeSet, fs};

fn main() {
    // Whoever asks for names asks for those of tests.
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/not-tested");
    let list = fs::read_to_string(path).unwrap_or_default();
    let lines: BTreeSet<&str> = list.lines().collect();
    match lines.len() {
        0 => println!("\nnothing that ran was left out on this machine"),
        n => println!("\nNOT TESTED on this machine ({n}):"),
    }
    lines.iter().for_each(|line| println!("  {line}"));
    // The next run begins anew.
    let _ = fs::remove_file(path);
}
