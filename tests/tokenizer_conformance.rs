//! llama.cpp's own tokenizer fixtures, which are not ours to ship: `docs/tokenizer-conformance.md` says where they
//! come from and what the last run gave.
//!
//!     HOTSET_VOCAB_FIXTURES=…/models cargo test --release --test tokenizer_conformance -- --ignored --nocapture

use std::path::{Path, PathBuf};

use hotset::gguf::Gguf;
use hotset::tokenizer::Tokenizer;

const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

/// Cases passed and run, and what failed.
struct Outcome {
    passed: usize,
    total: usize,
    failures: Vec<String>,
}

fn fixture(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("ggml-vocab-{name}.gguf"))
}

fn cases(vocab: &Path) -> Vec<(String, Vec<u32>)> {
    let read = |extension: &str| {
        std::fs::read_to_string(format!("{}.{extension}", vocab.display())).expect("the fixture folder is complete")
    };
    let ids = |line: &str| line.split_whitespace().map(|id| id.parse().expect("an id")).collect();
    let inputs = read("inp");
    // The file ends in a separator and, as every file that an editor touched, perhaps in one more line break.
    let inputs: Vec<&str> = inputs.split(SEPARATOR).collect();
    let outputs: Vec<Vec<u32>> = read("out").lines().map(ids).collect();
    assert!(inputs.len() == outputs.len() || inputs.len() == outputs.len() + 1, "{} cases", inputs.len());
    inputs.into_iter().map(str::to_owned).zip(outputs).collect()
}

fn check(vocab: &Path) -> Outcome {
    let gguf = Gguf::open_header(vocab).expect("the fixture is a GGUF file");
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("hotset has this tokenizer");
    let mut outcome = Outcome { passed: 0, total: 0, failures: Vec::new() };
    for (text, expected) in cases(vocab) {
        let got = tokenizer.encode(&text, false, false);
        outcome.total += 1;
        if got == expected {
            outcome.passed += 1;
        } else {
            outcome.failures.push(format!("{text:?}\n    expected {expected:?}\n    got      {got:?}"));
        }
        assert_eq!(tokenizer.decode(&got), text, "{}: what was encoded decodes to itself", vocab.display());
    }
    outcome
}

#[test]
#[ignore = "needs llama.cpp's fixtures: HOTSET_VOCAB_FIXTURES"]
fn agrees_with_llama_cpp() {
    let folder = PathBuf::from(std::env::var_os("HOTSET_VOCAB_FIXTURES").expect("HOTSET_VOCAB_FIXTURES is a folder"));
    let names = [
        "llama-spm",
        "phi-3",
        "gpt-2",
        "mpt",
        "llama-bpe",
        "qwen2",
        "qwen35",
        "deepseek-llm",
        "deepseek-coder",
        "command-r",
        "falcon",
        "refact",
        "starcoder",
        "gemma-4",
    ];
    let mut failures = Vec::new();
    for name in names {
        let Outcome { passed, total, failures: failed } = check(&fixture(&folder, name));
        eprintln!("{name}: {passed}/{total}");
        failures.extend(failed.into_iter().map(|failure| format!("{name}: {failure}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
