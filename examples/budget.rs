//! A program that gives its model less memory while it runs, and more again: `cargo run --release --example budget`.
//!
//! The tokens stay the same; only the share that has to be read changes.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use hotset::{Gguf, Options, Result, Session, Tokenizer};

const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");

fn main() -> Result<()> {
    let gguf = Gguf::open(SMALL.as_ref())?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    // 0: this process is mostly its own, so that only what the session allocates counts.
    let options = Options { n_ctx: Some(512), process_bytes: Some(0), ..Options::default() };
    let mut session = Session::open(gguf, &options, &mut |_, _| {})?;
    let (least, most) = (session.plan().smallest_bytes, session.plan().full_bytes);
    let greedy =
        |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0) as u32;
    let mut token = greedy(session.feed(&tokenizer.encode("Once upon a time", true, false), &mut |_| {})?);
    for (name, bytes) in [("all of it", most), ("a quarter", least + (most - least) / 4), ("all again", most)] {
        session.set_memory(bytes)?;
        let before = *session.stats();
        for _ in 0..64 {
            token = greedy(session.decode(token)?);
        }
        let now = session.stats().since(&before).decode;
        println!(
            "{name:9} {:5.1} MiB: {:4} experts from memory, {:4} read",
            bytes as f64 / 1048576.0,
            now.hit,
            now.miss
        );
    }
    Ok(())
}
