//! A vocabulary of bytes, a few merges and three control tokens, padded to any size. Text survives it; nothing else is
//! asked of it. Must not know: weights.

use hotset::{
    Result,
    gguf::{Array, GgufWriter, Value},
};

/// Pairs that become one token, best first; `Ġ` is how byte-level BPE writes a space.
const MERGES: [(&str, &str); 10] = [
    ("t", "h"),
    ("h", "e"),
    ("i", "n"),
    ("e", "r"),
    ("a", "n"),
    ("th", "e"),
    ("Ġ", "the"),
    ("Ġ", "a"),
    ("o", "u"),
    ("in", "g"),
];

const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// The smallest vocabulary.
pub const LEAST: usize = 256 + MERGES.len() + CONTROL.len();

/// ggml's token types.
const NORMAL: i32 = 1;
const CONTROL_TYPE: i32 = 3;
const UNUSED: i32 = 5;

/// Adds the tokenizer's keys for `n` tokens, at least [`LEAST`].
pub fn write(n: usize, out: &mut GgufWriter) -> Result<()> {
    let mut tokens: Vec<String> = byte_chars().iter().map(char::to_string).collect();
    tokens.extend(MERGES.iter().map(|(a, b)| format!("{a}{b}")));
    let mut types = vec![NORMAL; tokens.len()];
    let padding = n - LEAST;
    tokens.extend((0..padding).map(|i| format!("[PAD{i}]")));
    types.resize(tokens.len(), UNUSED);
    let first = tokens.len() as u32;
    tokens.extend(CONTROL.map(str::to_owned));
    types.resize(tokens.len(), CONTROL_TYPE);

    let merges: Vec<String> = MERGES.iter().map(|(a, b)| format!("{a} {b}")).collect();
    out.meta("tokenizer.ggml.model", "gpt2")?;
    out.meta("tokenizer.ggml.pre", "qwen2")?;
    out.meta("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)))?;
    out.meta("tokenizer.ggml.token_type", types)?;
    out.meta("tokenizer.ggml.merges", Value::Array(Array::String(merges)))?;
    out.meta("tokenizer.ggml.bos_token_id", first)?;
    out.meta("tokenizer.ggml.eos_token_id", first + 2)?;
    out.meta("tokenizer.ggml.padding_token_id", first)?;
    out.meta("tokenizer.ggml.add_bos_token", false)?;
    Ok(())
}

/// The character that stands for each byte (GPT-2): itself where it can be seen, else the next from 256 on.
fn byte_chars() -> [char; 256] {
    let mut next = 256;
    std::array::from_fn(|byte| {
        let byte = byte as u32;
        let seen = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if seen { byte } else { next };
        next += u32::from(!seen);
        char::from_u32(code).expect("no surrogate is below 512")
    })
}
