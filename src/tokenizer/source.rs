//! What a tokenizer is built from: the `tokenizer.ggml.*` metadata, as plain data.

use std::borrow::Cow;

use crate::Result;
use crate::gguf::Metadata;

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
/// An absent key is `None`, or an empty array. The arrays borrow from the file's metadata: the vocabulary is not
/// copied on its way into the tokenizer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VocabSource<'a> {
    /// The algorithm: `gpt2` (byte-level BPE), `llama` (SentencePiece BPE) or `gemma4` (BPE over characters).
    pub model: String,
    /// Which pre-tokenizer cuts the text before byte-level BPE; the file's absent key means `default`.
    pub pre: Option<String>,
    /// The model's name: Phi-3's special tokens swallow the white space after them, and only the name tells.
    pub name: Option<String>,
    /// The text of every token, by id: byte-level encoded for `gpt2`, with `▁` for a space otherwise.
    pub tokens: Cow<'a, [String]>,
    /// For `llama`: the priority of each token in merging, higher first.
    pub scores: Cow<'a, [f32]>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty: all are normal.
    pub types: Cow<'a, [i32]>,
    /// For `gpt2` and `gemma4`: "left right" in order of priority.
    pub merges: Cow<'a, [String]>,
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

impl<'a> VocabSource<'a> {
    /// Collects the keys from a file's metadata.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for a missing model or token list, and for keys of the wrong type.
    pub fn from_metadata(meta: &'a Metadata) -> Result<Self> {
        let string = |key: &str| meta.str(key).map(|text| text.map(str::to_owned));
        let id = |name: &str| id(meta, &format!("tokenizer.ggml.{name}_token_id"));
        Ok(Self {
            model: meta.require_str("tokenizer.ggml.model")?.to_owned(),
            pre: string("tokenizer.ggml.pre")?,
            name: string("general.name")?,
            tokens: meta.require_strings("tokenizer.ggml.tokens")?.into(),
            scores: meta.f32s("tokenizer.ggml.scores")?.unwrap_or_default(),
            types: meta.i32s("tokenizer.ggml.token_type")?.unwrap_or_default(),
            merges: meta.strings("tokenizer.ggml.merges")?.unwrap_or_default().into(),
            bos: id("bos")?,
            eos: id("eos")?,
            eot: id("eot")?,
            eom: id("eom")?,
            unk: id("unknown")?,
            pad: id("padding")?,
            add_bos: meta.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: meta.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: meta.bool("tokenizer.ggml.add_space_prefix")?,
        })
    }
}

/// A token's id. One that does not fit, such as the -1 of some converters, is `u32::MAX`, which no token has.
fn id(meta: &Metadata, key: &str) -> Result<Option<u32>> {
    meta.u32(key).or_else(|error| {
        let is_integer = meta.get(key).is_some_and(|value| value.integer().is_some());
        if is_integer { Ok(Some(u32::MAX)) } else { Err(error) }
    })
}
