//! Longer texts against llama.cpp's logits (`tests/data/ref/README.md`): prompts that are longer than windows and blocks, in
//! several sizes of batches, then decoded tokens.

mod common;

use common::ref_models::{golden, ref_model};
use hotset::{
    gguf::Gguf,
    quant::GgmlType,
    session::{Options, Session},
};

/// Models whose state a short text does not exercise.
const MODELS: &[&str] = &["qwen4exp", "deepseek4", "glm5-next"];

/// Prompt tokens in the reference runs; the rest is decoded one by one.
const PROMPT: usize = 160;

/// Logits of every token. The prompt comes in batches of `n_batch`.
fn run(name: &str, n_batch: usize) -> Vec<f32> {
    let tokens = golden(&format!("{name}-long"), "tokens");
    let tokens: Vec<u32> = tokens.i32s().unwrap().iter().map(|&t| t as u32).collect();
    let options = Options {
        n_ctx: Some(tokens.len()),
        n_batch: Some(n_batch),
        kv: GgmlType::F32,
        all_logits: true,
        memory_bytes: Some(1 << 32),
        process_bytes: Some(0),
        threads: Some(2),
        ..Options::default()
    };
    let mut session = Session::open(Gguf::open(&ref_model(name)).unwrap(), &options, &mut |_, _| {}).unwrap();
    let mut logits = Vec::new();
    for batch in tokens[..PROMPT].chunks(n_batch) {
        logits.extend_from_slice(session.feed_all(batch).unwrap());
    }
    for &token in &tokens[PROMPT..] {
        logits.extend_from_slice(session.decode(token).unwrap());
    }
    logits
}

/// `tests/golden.rs` compares these with llama.cpp.
#[test]
fn what_an_indexer_chooses_is_the_same_in_batches_of_any_size() {
    for name in ["glm-dsa-sparse", "qwen4exp-sparse", "glm5-next-sparse"] {
        let whole = run(name, PROMPT);
        for n_batch in [1, 37] {
            let parts = run(name, n_batch);
            let equal = parts.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(equal && parts.len() == whole.len(), "{name}: batches of {n_batch}");
        }
    }
}

#[test]
fn long_texts_match_llama_cpp_in_batches_of_any_size() {
    for name in MODELS {
        let expected = golden(&format!("{name}-long"), "logits");
        let expected = expected.f32s().unwrap();
        let whole = run(name, PROMPT);
        assert_eq!(whole.len(), expected.len());
        let worst = whole.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        eprintln!("{name}: max |difference of logits| {worst:.2e}");
        assert!(worst <= 1e-4, "{name}: {worst}");
        for n_batch in [1, 37] {
            let parts = run(name, n_batch);
            let equal = parts.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(equal && parts.len() == whole.len(), "{name}: batches of {n_batch}");
        }
    }
}
