//! Small vocabularies: byte-level BPE, SentencePiece, BPE over characters.

use hotset::gguf::Value;
use hotset::tokenizer::VocabSource;

/// The byte-level vocabulary's.
pub const MERGES: [&str; 10] = ["t h", "h e", "i n", "e r", "a n", "th e", "Ġ the", "Ġ a", "o u", "in g"];
/// Control token: beginning and end of text.
pub const ENDOFTEXT: u32 = 266;
/// Control token.
pub const IM_END: u32 = 268;
/// User-defined token.
pub const USER: u32 = 269;

/// GPT-2's printable stand-in for each byte.
pub fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let unprintable_before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    if printable(byte) { char::from(byte) } else { char::from_u32(0x100 + unprintable_before).expect("below U+0144") }
}

/// All bytes, ten merges, three control tokens and a user-defined one.
pub fn byte_level() -> VocabSource<'static> {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_char(byte).to_string()).collect();
    tokens.extend(MERGES.iter().map(|merge| merge.replace(' ', "")));
    tokens.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<user>"].map(str::to_owned));
    let types = (0..)
        .zip(&tokens)
        .map(|(i, _)| {
            if i < 266 {
                1
            } else if i < 269 {
                3
            } else {
                4
            }
        })
        .collect();
    VocabSource {
        model: "gpt2".into(),
        pre: Some("qwen2".into()),
        tokens: tokens.into(),
        types,
        merges: MERGES.map(str::to_owned).to_vec().into(),
        bos: Some(ENDOFTEXT),
        eos: Some(IM_END),
        ..VocabSource::default()
    }
}

/// `<unk>`, `<s>`, `</s>`, the 256 byte tokens, and pieces with scores.
pub fn sentence_piece() -> VocabSource<'static> {
    let pieces =
        ["▁", "t", "h", "e", "a", "n", "é", "th", "an", "the", "▁the", "he", "▁t", "▁a", "▁▁", "nd", "and", "▁and"];
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(pieces.map(str::to_owned));
    let types = (0..tokens.len())
        .map(|i| {
            if i == 0 {
                2
            } else if i < 3 {
                3
            } else if i < 259 {
                6
            } else {
                1
            }
        })
        .collect();
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    VocabSource { model: "llama".into(), tokens: tokens.into(), types, scores, ..VocabSource::default() }
}

/// BPE over characters, as Gemma 4 has it, on the pieces of [`sentence_piece`].
pub fn characters() -> VocabSource<'static> {
    let merges = ["t h", "h e", "th e", "▁ the", "▁ t", "▁ ▁", "a n"].map(str::to_owned).to_vec();
    VocabSource { model: "gemma4".into(), merges: merges.into(), ..sentence_piece() }
}

/// The keys of a file with this vocabulary.
pub fn meta(source: &VocabSource<'_>) -> Vec<(String, Value)> {
    let mut meta = Vec::new();
    let mut key = |name: &str, value: Option<Value>| {
        meta.extend(value.map(|value| (format!("tokenizer.ggml.{name}"), value)));
    };
    key("model", Some(source.model.as_str().into()));
    key("pre", source.pre.as_deref().map(Value::from));
    key("tokens", Some(source.tokens.clone().into_owned().into()));
    key("token_type", Some(source.types.clone().into_owned().into()));
    key("scores", Some(source.scores.clone().into_owned().into()));
    key("merges", Some(source.merges.clone().into_owned().into()));
    key("bos_token_id", source.bos.map(Value::from));
    key("eos_token_id", source.eos.map(Value::from));
    key("padding_token_id", source.pad.map(Value::from));
    key("add_bos_token", source.add_bos.map(Value::from));
    meta
}
