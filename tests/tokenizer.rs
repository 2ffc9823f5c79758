//! The tokenizer on small vocabularies that are built here, and on the bundled model's.

mod common;

use std::borrow::Cow;
use std::path::Path;

use common::vocab::{ENDOFTEXT, IM_END, MERGES, USER, byte_char, byte_level, sentence_piece};
use hotset::gguf::Gguf;
use hotset::tokenizer::{StreamDecoder, Tokenizer, VocabSource};
use hotset::{Error, Result};
use proptest::prelude::*;

fn build(source: VocabSource<'_>) -> Result<Tokenizer> {
    Tokenizer::new(Path::new("model.gguf"), source)
}

fn good(source: VocabSource<'_>) -> Tokenizer {
    build(source).expect("the vocabulary is sound")
}

/// Text that meets many rules of a pre-tokenizer, special tokens in one piece and in parts.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[ the\t\r\nand'sLl.,!?0-9]{0,12}",
        "[é中の한😀\u{a0}\u{3000}\u{301}▁]{0,4}",
        any::<String>().prop_map(|text| text.chars().take(8).collect()),
        Just("<|im_end|>".to_owned()),
        Just("<|im_".to_owned()),
        Just("<user>".to_owned()),
        Just("</s>".to_owned()),
    ];
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

/// BPE the slow way: again and again the first of the pairs whose merge comes first.
fn naive_bpe(word: &str) -> Vec<String> {
    let mut parts: Vec<String> = word.bytes().map(|byte| byte_char(byte).to_string()).collect();
    let rank = |a: &str, b: &str| MERGES.iter().position(|merge| merge.split_once(' ') == Some((a, b)));
    while let Some((_, i)) = (1..parts.len()).filter_map(|i| Some((rank(&parts[i - 1], &parts[i])?, i))).min() {
        let right = parts.remove(i);
        parts[i - 1].push_str(&right);
    }
    parts
}

/// SentencePiece the slow way; the pieces' ids, byte tokens for the rest.
fn naive_spm(text: &str, source: &VocabSource<'_>) -> Vec<u32> {
    let find = |piece: &str| source.tokens.iter().position(|token| token == piece);
    let mut parts: Vec<String> = format!("▁{}", text.replace(' ', "▁")).chars().map(String::from).collect();
    loop {
        let pairs = (1..parts.len()).filter_map(|i| Some((find(&format!("{}{}", parts[i - 1], parts[i]))?, i)));
        let Some((_, i)) = pairs.min() else { break }; // scores fall with the id
        let right = parts.remove(i);
        parts[i - 1].push_str(&right);
    }
    let ids = |part: &String| match find(part) {
        Some(id) => vec![id as u32],
        None => part.bytes().map(|byte| 3 + u32::from(byte)).collect(),
    };
    parts.iter().flat_map(ids).collect()
}

fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let mut decoder = StreamDecoder::new(tokenizer);
    let mut text: String = tokens.iter().map(|&token| decoder.push(tokenizer, token).to_owned()).collect();
    text.push_str(decoder.finish());
    text
}

proptest! {
    #![proptest_config(common::property::cases(256))]

    #[test]
    fn byte_level_text_comes_back(text in text(), pre in prop::sample::select(vec!["qwen2", "gpt-2", "llama-bpe",
        "deepseek-llm", "deepseek-v3", "llama4", "falcon", "default", "kimi-k2", "afmoe", "exaone-moe"])) {
        let tokenizer = good(VocabSource { pre: Some(pre.into()), ..byte_level() });
        let tokens = tokenizer.encode(&text, false, false);
        prop_assert_eq!(tokenizer.decode(&tokens), text.clone());
        let pieces: Vec<u8> = tokens.iter().flat_map(|&token| tokenizer.decode_bytes(token).into_owned()).collect();
        prop_assert_eq!(pieces, text.as_bytes());
    }

    #[test]
    fn sentence_piece_text_comes_back(text in text()) {
        let tokenizer = good(sentence_piece());
        // The vocabulary has one sign for a space and for `▁`.
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, true, false)), text.replace('▁', " "));
    }

    #[test]
    fn merging_agrees_with_the_slow_way(word in "[therinagou]{1,40}", text in "[ thenadé中]{1,40}") {
        let source = byte_level();
        let ids: Vec<u32> = good(source.clone()).encode(&word, false, false);
        let got: Vec<&str> = ids.iter().map(|&id| source.tokens[id as usize].as_str()).collect();
        prop_assert_eq!(got, naive_bpe(&word));
        let source = sentence_piece();
        prop_assert_eq!(good(source.clone()).encode(&text, false, false), naive_spm(&text, &source));
    }

    #[test]
    fn a_stream_reads_like_the_whole(tokens in prop::collection::vec(0u32..300, 0..40)) {
        for source in [byte_level(), sentence_piece()] {
            let tokenizer = good(source);
            prop_assert_eq!(streamed(&tokenizer, &tokens), tokenizer.decode(&tokens));
        }
    }

    #[test]
    fn control_tokens_are_read_only_on_request(before in "[a-z <]{0,5}", after in "[a-z >]{0,5}") {
        let tokenizer = good(byte_level());
        let text = format!("{before}<|im_end|>{after}<user>");
        let asked = tokenizer.encode(&text, false, true);
        prop_assert_eq!(asked.iter().filter(|&&token| token == IM_END).count(), 1);
        let plain = tokenizer.encode(&text, false, false);
        prop_assert!(plain.iter().all(|&token| token < ENDOFTEXT || token == USER));
        prop_assert_eq!(plain.last(), Some(&USER));
        prop_assert_eq!(tokenizer.decode(&asked), format!("{before}{after}<user>"), "control tokens do not print");
    }

    #[test]
    fn hostile_vocabularies_are_errors_or_work(
        model in prop::sample::select(vec!["gpt2", "llama", "gemma4", "bert", ""]),
        pre in prop::sample::select(vec![None, Some("qwen2"), Some("falcon"), Some("nonsense")]),
        tokens in prop::collection::vec("[abĠ▁<0x4>é ]{0,3}", 0..12),
        types in prop::collection::vec(-1i32..9, 0..14),
        scores in prop::collection::vec(prop_oneof![Just(f32::NAN), Just(f32::INFINITY), -9.0f32..9.0], 0..14),
        merges in prop::collection::vec("[abĠ▁é ]{0,4}", 0..4),
        ids in prop::array::uniform3(prop::option::of(0u32..14)),
        text in text(),
        decoded in prop::collection::vec(any::<u32>(), 0..4),
    ) {
        let source = VocabSource {
            model: model.into(), pre: pre.map(str::to_owned), tokens: tokens.into(), types: types.into(),
            scores: scores.into(), merges: merges.into(), bos: ids[0], eos: ids[1], unk: ids[2], add_eos: Some(true),
            ..VocabSource::default()
        };
        if let Ok(tokenizer) = build(source) {
            let ids = tokenizer.encode(&text, true, true);
            prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.n_vocab()));
            tokenizer.decode(&ids);
            prop_assert_eq!(streamed(&tokenizer, &decoded), tokenizer.decode(&decoded));
        }
    }
}

#[test]
fn broken_vocabularies_name_what_is_wrong() {
    let bytes = byte_level;
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut tokens = bytes().tokens.into_owned();
        change(&mut tokens);
        VocabSource { tokens: tokens.into(), ..bytes() }
    };
    let merges = |merge: &str| VocabSource { merges: vec![merge.to_owned()].into(), ..bytes() };
    let cases = [
        (VocabSource { model: "rwkv".into(), ..bytes() }, "tokenizer.ggml.model", "rwkv"),
        (VocabSource { pre: Some("superbpe".into()), ..bytes() }, "tokenizer.ggml.pre", "superbpe"),
        (VocabSource { tokens: Cow::default(), bos: None, eos: None, ..bytes() }, "tokenizer.ggml.tokens", "got 0"),
        (with(&|tokens| tokens[5] = tokens[9].clone()), "tokenizer.ggml.tokens", "at both 5 and 9"),
        (with(&|tokens| tokens[268] = "<|im_start|>".into()), "tokenizer.ggml.tokens", "at both 267 and 268"),
        (VocabSource { types: vec![1].into(), ..bytes() }, "tokenizer.ggml.token_type", "got 1"),
        (VocabSource { merges: Cow::default(), ..bytes() }, "tokenizer.ggml.merges", "got 0"),
        (merges("t zz"), "tokenizer.ggml.merges", "\"t zz\""),
        (merges("x y"), "tokenizer.ggml.merges", "\"x y\""),
        (merges("th"), "tokenizer.ggml.merges", "\"th\""),
        (VocabSource { scores: vec![0.0; 3].into(), ..sentence_piece() }, "tokenizer.ggml.scores", "got 3"),
    ];
    for (source, what, got) in cases {
        let error = build(source).expect_err("broken");
        assert!(matches!(error, Error::Format { .. } | Error::Unsupported { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("model.gguf") && text.contains(what) && text.contains(got), "{text}");
    }
}

#[test]
fn boundary_tokens_follow_the_file() {
    let flags = |source: VocabSource<'static>, add_bos, add_eos| {
        good(VocabSource { add_bos, add_eos, ..source }).encode("", true, false)
    };
    assert_eq!(flags(byte_level(), None, None), [0u32; 0]);
    assert_eq!(flags(byte_level(), Some(true), Some(true)), [ENDOFTEXT, IM_END]);
    assert_eq!(flags(VocabSource { pre: Some("llama-bpe".into()), ..byte_level() }, None, None), [ENDOFTEXT]);
    assert_eq!(flags(sentence_piece(), None, None), [1], "the ids that the file leaves out are SentencePiece's own");
    assert_eq!(flags(sentence_piece(), Some(false), Some(true)), [2]);
    assert_eq!(good(byte_level()).encode("a", false, true).len(), 1);
}

#[test]
fn sentence_piece_spaces() {
    let tokenizer = good(sentence_piece());
    let the = tokenizer.encode("the", false, false);
    assert_eq!(the.len(), 1, "▁the");
    assert_eq!(tokenizer.decode(&the), "the", "the first word's space is the tokenizer's own");
    assert_eq!(tokenizer.decode_bytes(the[0]), b" the".as_slice());
    assert_eq!(StreamDecoder::continuing().push(&tokenizer, the[0]), " the", "behind a prompt it is text");
    assert_eq!(tokenizer.encode("</s>the", false, true), [2, the[0]], "a special token starts a new text");
    let bare = good(VocabSource { add_space_prefix: Some(false), ..sentence_piece() });
    assert_eq!(bare.decode(&bare.encode(" the", false, false)), " the");
}

#[test]
fn a_character_in_parts_waits_for_the_last() {
    let tokenizer = good(sentence_piece());
    let byte = |byte: u8| 3 + u32::from(byte);
    let mut decoder = StreamDecoder::continuing();
    let mut push = |b: u8| decoder.push(&tokenizer, byte(b)).to_owned();
    assert_eq!((push(0xe4), push(0xb8), push(0xad)), (String::new(), String::new(), "中".into()));
    assert_eq!((push(0xe4), push(b'x')), (String::new(), "\u{fffd}x".into()));
    assert_eq!(push(0xf0), "");
    assert_eq!(decoder.finish(), "\u{fffd}");
    assert_eq!(decoder.finish(), "");
}

#[test]
fn generation_ends_by_id_or_text() {
    let tokenizer = good(VocabSource { eot: Some(7), ..byte_level() });
    let ends: Vec<u32> = (0..300).filter(|&token| tokenizer.is_end_of_generation(token)).collect();
    assert_eq!(ends, [7, ENDOFTEXT, IM_END]);
    assert_eq!(tokenizer.special_token("<|im_start|>"), Some(267));
    assert_eq!(tokenizer.special_token("the"), None);
}

#[test]
fn tokens_that_end_a_turn_are_control_tokens_whatever_the_file_says() {
    for kind in [1, 4] {
        let mut types = byte_level().types.into_owned();
        types[IM_END as usize] = kind;
        let tokenizer = good(VocabSource { types: types.into(), ..byte_level() });
        assert_eq!(tokenizer.encode("<|im_end|>", false, true), [IM_END]);
        assert!(!tokenizer.encode("<|im_end|>", false, false).contains(&IM_END), "not for a user to spell");
        assert_eq!(tokenizer.decode(&[IM_END]), "");
    }
}

#[test]
fn phi_3_special_tokens_swallow_white_space() {
    let source = VocabSource { name: Some("Phi-3.5 MoE".into()), ..byte_level() };
    let tokenizer = good(source);
    assert_eq!(tokenizer.encode("<|im_end|> \n a", false, true), [IM_END, u32::from(b'a')]);
    assert_eq!(tokenizer.encode("<|endoftext|> a", false, true).len(), 2, "<|endoftext|> does not: Ġa");
}

#[test]
fn the_bundled_vocabulary() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/moe-s-q4_0.gguf");
    let gguf = Gguf::open_header(&path).expect("the bundled model opens");
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("the bundled model has a tokenizer");
    assert_eq!((tokenizer.n_vocab(), tokenizer.bos(), tokenizer.eos()), (8192, Some(0), Some(0)));
    let text = "Once upon a time there was an old king.\n\ndef read_file(path: str) -> None:\n    pass  # Größe 中";
    let tokens = tokenizer.encode(text, true, false);
    assert_eq!(tokens[0], 0, "the file asks for a beginning token");
    assert!(tokens.len() < 45, "words are tokens: {}", tokens.len());
    assert_eq!(tokenizer.decode(&tokens), text);
    assert!(tokenizer.resident_bytes() < 600_000, "{}", tokenizer.resident_bytes());
}

/// What llama.cpp made of some texts with each byte-level pre-tokenizer (`tools/pretokenizers.py`): hashes of the tokens of a
/// vocabulary that shows where text is cut.
#[derive(serde::Deserialize)]
struct PreTokenized {
    texts: Vec<String>,
    hashes: std::collections::BTreeMap<String, Vec<String>>,
}

impl PreTokenized {
    /// All bytes, and all pairs of them that the texts have, in an order that has nothing to do with language.
    fn vocabulary(&self) -> VocabSource<'static> {
        let pair = |pair: &[u8]| usize::from(pair[0]) << 8 | usize::from(pair[1]);
        let there: std::collections::BTreeSet<_> =
            self.texts.iter().flat_map(|text| text.as_bytes().windows(2).map(pair)).collect();
        let order = (0..1 << 16).map(|i| (i * 40_503 + 12_345) % (1 << 16)).filter(|pair| there.contains(pair));
        let parts: Vec<_> = order.map(|pair| [(pair >> 8) as u8, pair as u8].map(byte_char)).collect();
        let mut tokens: Vec<String> = (0..=255).map(|byte| byte_char(byte).to_string()).collect();
        tokens.extend(parts.iter().map(|[a, b]| format!("{a}{b}")));
        let merges: Vec<_> = parts.iter().map(|[a, b]| format!("{a} {b}")).collect();
        VocabSource { model: "gpt2".into(), tokens: tokens.into(), merges: merges.into(), ..VocabSource::default() }
    }
}

/// FNV-1a, 64 bits.
fn hash(tokens: &[u32]) -> String {
    let bytes = tokens.iter().flat_map(|token| token.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |h: u64, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// Pre-tokenizers, and beginnings of texts of which hotset cuts at least one as the model's own expression says and llama.cpp
/// otherwise: by case and marks of all scripts, at Han characters, at white space beyond ASCII's.
/// `docs/tokenizer-conformance.md` has the list.
const OTHERWISE: [(&[&str], &[&str]); 4] = [
    (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "tekken"], &["नम", "e\u{301} "]),
    (&["kimi-k2"], &["int main", "camelCase", "ABCdef", "東京", "नम", "e\u{301} "]),
    (&["youtu"], &["int main", "camelCase", "ABCdef"]),
    (&["deepseek-llm", "deepseek-coder"], &["a\u{a0}b"]),
];

#[test]
fn every_pre_tokenizer_cuts_as_llama_cpp_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pretokenizers.json");
    let known: PreTokenized = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let vocabulary = known.vocabulary();
    for (name, hashes) in &known.hashes {
        let otherwise =
            OTHERWISE.iter().find(|(names, _)| names.contains(&&**name)).map_or(&[][..], |(_, texts)| texts);
        let tokenizer = good(VocabSource { pre: Some(name.clone()), ..vocabulary.clone() });
        for (text, expected) in known.texts.iter().zip(hashes) {
            let same = hash(&tokenizer.encode(text, false, false)) == *expected;
            assert_eq!(same, !otherwise.iter().any(|start| text.starts_with(start)), "{name}: {text:?}");
        }
    }
}
