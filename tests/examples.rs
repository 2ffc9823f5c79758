//! The programs under `examples/` run and print what they are there to show.

mod common;

use std::{path::PathBuf, process::Command};

/// What it prints; `None` where only this test was built, and examples were not.
fn output(name: &str) -> Option<String> {
    let folder = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples");
    let program: PathBuf = folder.join(name).with_extension(std::env::consts::EXE_EXTENSION);
    if !program.is_file() {
        common::not_tested!("example {name}, which `cargo test` without a choice of tests builds");
        return None;
    }
    let output = Command::new(program).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn generate_continues_a_text() {
    if let Some(text) = output("generate") {
        assert!(text.len() > 40 && text.contains("expert reads came from memory"), "{text}");
    }
}

#[test]
fn a_smaller_budget_reads_more() {
    let Some(text) = output("budget") else { return };
    let read = |line: &str| line.split(", ").nth(1).unwrap().trim().split(' ').next().unwrap().parse::<u64>().unwrap();
    let lines: Vec<u64> = text.lines().map(read).collect();
    assert!(lines.len() == 3 && lines[1] > lines[2], "{text}");
}

#[test]
fn two_sequences_give_two_texts() {
    if let Some(text) = output("sequences") {
        assert!(text.contains("The old king") && text.contains("A ship came"), "{text}");
    }
}

#[test]
fn a_policy_of_one_s_own_beats_random() {
    let Some(text) = output("policy") else { return };
    let hits = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    assert!(hits("twice") > hits("random"), "{text}");
}
