//! What a tokenizer is built from: the `tokenizer.ggml.*` metadata, as plain data. Knows no file format.

/// The vocabulary of a GGUF file, key by key.
///
/// | field | metadata key |
/// |---|---|
/// | `model` | `tokenizer.ggml.model` |
/// | `pre` | `tokenizer.ggml.pre` |
/// | `name` | `general.name` |
/// | `tokens` | `tokenizer.ggml.tokens` |
/// | `scores` | `tokenizer.ggml.scores` |
/// | `types` | `tokenizer.ggml.token_type` |
/// | `merges` | `tokenizer.ggml.merges` |
/// | `bos`, `eos`, `eot`, `eom` | `tokenizer.ggml.{bos,eos,eot,eom}_token_id` |
/// | `unk`, `pad` | `tokenizer.ggml.{unknown,padding}_token_id` |
/// | `add_bos`, `add_eos` | `tokenizer.ggml.add_{bos,eos}_token` |
/// | `add_space_prefix` | `tokenizer.ggml.add_space_prefix` |
///
/// An absent key is `None`, or an empty vector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VocabSource {
    /// The algorithm: `gpt2` (byte-level BPE), `llama` (SentencePiece BPE) or `gemma4` (BPE over characters).
    pub model: String,
    /// Which pre-tokenizer cuts the text before byte-level BPE; the file's absent key means `default`.
    pub pre: Option<String>,
    /// The model's name: Phi-3's special tokens swallow the white space after them, and only the name tells.
    pub name: Option<String>,
    /// The text of every token, by id: byte-level encoded for `gpt2`, with `▁` for a space otherwise.
    pub tokens: Vec<String>,
    /// For `llama`: the priority of each token in merging, higher first.
    pub scores: Vec<f32>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty: all are normal.
    pub types: Vec<i32>,
    /// For `gpt2` and `gemma4`: "left right" in order of priority.
    pub merges: Vec<String>,
    /// Beginning of text.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// End of turn.
    pub eot: Option<u32>,
    /// End of message.
    pub eom: Option<u32>,
    /// Stands for what the vocabulary cannot spell.
    pub unk: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Whether `encode` puts `bos` first; absent: what llama.cpp does for this kind of vocabulary.
    pub add_bos: Option<bool>,
    /// Whether `encode` puts `eos` last; absent: no.
    pub add_eos: Option<bool>,
    /// For `llama`: whether a space goes before text; absent: yes.
    pub add_space_prefix: Option<bool>,
}
