//! Two texts at once from one model in one budget: an expert that both want is read once.
//! `cargo run --release --example sequences`
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use hotset::{
    Engine, Gguf, Options, Result, Tokenizer,
    model::{Batch, Span, Want},
    trace::Phase,
};

const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");

fn main() -> Result<()> {
    let gguf = Gguf::open(SMALL.as_ref())?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let options = Options { parallel: 2, n_ctx: Some(128), ..Options::default() };
    let mut engine = Engine::open(gguf, &options, &mut |_, _| {})?;
    let n_vocab = engine.blueprint().n_vocab;
    let greedy =
        |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0) as u32;
    // First each prompt, then a token of both in every step.
    let prompts = ["The old king", "A ship came"].map(|text| tokenizer.encode(text, true, false));
    let mut texts = prompts.clone();
    let mut next = [0; 2];
    for (seq, prompt) in prompts.iter().enumerate() {
        let span = Span { seq, first_pos: 0, rows: 0..prompt.len(), phase: Phase::Prompt, want: Want::Last };
        engine.step(&Batch { tokens: prompt, spans: &[span] })?;
        next[seq] = greedy(&engine.logits()[..n_vocab]);
    }
    for _ in 0..24 {
        let spans = [0, 1].map(|seq| {
            let first_pos = engine.sequences()[seq].len() as u32;
            Span { seq, first_pos, rows: seq..seq + 1, phase: Phase::Decode, want: Want::Last }
        });
        engine.step(&Batch { tokens: &next, spans: &spans })?;
        for (seq, logits) in engine.logits().chunks(n_vocab).take(2).enumerate() {
            texts[seq].push(next[seq]);
            next[seq] = greedy(logits);
        }
    }
    texts.iter().for_each(|tokens| println!("{}", tokenizer.decode(tokens)));
    Ok(())
}
