//! Continues a text within a memory budget: `cargo run --release --example generate -- [MODEL [TEXT]]`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use hotset::{
    Gguf, Options, Result, Sampler, SamplerConfig, Session, Tokenizer,
    generate::{Event, Rules, Speaker, generate},
};

const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (model, text) = (args.next(), args.next());
    let gguf = Gguf::open(model.as_deref().unwrap_or(SMALL).as_ref())?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    // What the whole process stays within; too small a budget is an error that names the smallest.
    let options = Options { memory_bytes: Some(64 << 20), n_ctx: Some(256), ..Options::default() };
    let mut session = Session::open(gguf, &options, &mut |_done, _total| {})?;
    let mut sampler = Sampler::new(SamplerConfig::greedy(), session.blueprint().n_vocab)?;
    let prompt = tokenizer.encode(text.as_deref().unwrap_or("Once upon a time there was"), true, false);
    let rules = Rules { max_tokens: Some(32), ..Rules::default() };
    let speaker = Speaker { session: &mut session, tokenizer: &tokenizer, sampler: &mut sampler };
    let finish = generate(speaker, &prompt, &rules, &mut |_, event| {
        if let Event::Token { text, .. } | Event::Rest(text) = event {
            print!("{text}");
        }
        Ok::<bool, hotset::Error>(true)
    })?;
    let decode = session.stats().decode;
    println!(
        "\n{finish:?}; {} of {} expert reads came from memory",
        decode.hit,
        decode.hit + decode.late + decode.miss
    );
    Ok(())
}
