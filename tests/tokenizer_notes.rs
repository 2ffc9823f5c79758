//! What a file gets wrong without much harm is a note, not an end; so is a text that the model does not know like that.

mod common;

use std::path::Path;
use std::process::{Output, Stdio};

use common::{
    program::command,
    tiny::Tiny,
    vocab::{ENDOFTEXT, IM_END, byte_level, sentence_piece},
};
use hotset::gguf::{Array, Gguf, GgufWriter, Value};
use hotset::tokenizer::{Tokenizer, VocabSource};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");

fn build(source: VocabSource<'_>) -> Tokenizer {
    Tokenizer::new(Path::new("model.gguf"), source).unwrap()
}

/// The only note.
fn note(tokenizer: &Tokenizer) -> &str {
    let [note] = tokenizer.notes() else { panic!("{:?}", tokenizer.notes()) };
    note
}

#[test]
fn sound_files_have_no_notes() {
    let gguf = Gguf::open_header(Path::new(MODEL)).unwrap();
    for tokenizer in [build(byte_level()), build(sentence_piece()), Tokenizer::from_gguf(&gguf).unwrap()] {
        assert!(tokenizer.notes().is_empty(), "{:?}", tokenizer.notes());
        let text = "it's 12345 é";
        assert!(tokenizer.prompt_notes(text, &tokenizer.encode(text, true, true)).is_empty());
    }
}

#[test]
fn merges_that_name_no_tokens_are_left_out() {
    let text = "the inner ring of the other thing around a house";
    let plain = build(byte_level());
    let mut merges = byte_level().merges.into_owned();
    // An unknown part, an unknown result, a line that is none, a character outside the alphabet; in front, so that
    // ranks move.
    for line in ["#version: 0.2", "q zz", "e t", "th", "", "日 本", "Ġ\u{1b} a"] {
        merges.insert(0, line.to_owned());
    }
    let odd = build(VocabSource { merges: merges.into(), ..byte_level() });
    assert_eq!(odd.encode(text, true, true), plain.encode(text, true, true));
    assert_eq!(note(&odd), "7 of 17 merges are left out, since they name no tokens; the first is \"Ġ\\u{1b} a\"");
}

#[test]
fn ids_that_are_no_tokens_are_as_if_absent() {
    let n = byte_level().tokens.len() as u32;
    type Field = for<'a, 'b> fn(&'a mut VocabSource<'b>) -> &'a mut Option<u32>;
    let fields: [(&str, Field); 6] = [
        ("bos", |s| &mut s.bos),
        ("eos", |s| &mut s.eos),
        ("eot", |s| &mut s.eot),
        ("eom", |s| &mut s.eom),
        ("unknown", |s| &mut s.unk),
        ("padding", |s| &mut s.pad),
    ];
    for (name, field) in fields {
        for bad in [n, u32::MAX] {
            let (mut without, mut with) = (byte_level(), byte_level());
            without.add_bos = Some(true);
            with.add_bos = Some(true);
            (*field(&mut without), *field(&mut with)) = (None, Some(bad));
            let (without, with) = (build(without), build(with));
            let expected = format!("tokenizer.ggml.{name}_token_id is ignored: {bad} is none of the {n} tokens");
            assert_eq!(note(&with), expected);
            assert_eq!((with.bos(), with.eos()), (without.bos(), without.eos()));
            assert_eq!(with.encode("the <user>", true, true), without.encode("the <user>", true, true));
            let ends = |t: &Tokenizer| (0..n + 2).filter(|&id| t.is_end_of_generation(id)).collect::<Vec<_>>();
            assert_eq!(ends(&with), ends(&without));
        }
    }
    // SentencePiece has ids of its own for absent keys.
    let spm = build(VocabSource { eos: Some(9999), bos: Some(9999), ..sentence_piece() });
    assert_eq!((spm.bos(), spm.eos(), spm.notes().len()), (Some(1), Some(2), 2));
}

#[test]
fn ids_of_any_integer_type_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let with = |id: Value| {
        let mut w = GgufWriter::new(&path, true).unwrap();
        w.meta("tokenizer.ggml.model", "gpt2").unwrap();
        w.meta("tokenizer.ggml.pre", "qwen2").unwrap();
        w.meta("tokenizer.ggml.tokens", byte_level().tokens.into_owned()).unwrap();
        w.meta("tokenizer.ggml.merges", byte_level().merges.into_owned()).unwrap();
        w.meta("tokenizer.ggml.eos_token_id", id).unwrap();
        w.start().unwrap().finish().unwrap();
        Tokenizer::from_gguf(&Gguf::open_header(&path).unwrap())
    };
    for id in [7u32.into(), 7i32.into(), 7u64.into(), 7u8.into(), 7i64.into()] {
        assert_eq!(with(id).unwrap().eos(), Some(7));
    }
    for id in [(-1i32).into(), (-1i64).into(), (-1i8).into(), u64::MAX.into(), i64::MIN.into(), u32::MAX.into()] {
        let tokenizer = with(id).unwrap();
        assert_eq!(tokenizer.eos(), None);
        assert!(note(&tokenizer).contains("tokenizer.ggml.eos_token_id is ignored"));
    }
    assert!(with("7".into()).unwrap_err().to_string().contains("tokenizer.ggml.eos_token_id"));
}

#[test]
fn a_missing_pre_tokenizer_is_the_default_with_a_note() {
    let with = |pre: Option<&str>| build(VocabSource { pre: pre.map(str::to_owned), ..byte_level() });
    let (missing, default) = (with(None), with(Some("default")));
    let text = "don't 12345 (a+b)";
    assert_eq!(missing.encode(text, true, true), default.encode(text, true, true));
    assert!(note(&missing).contains("tokenizer.ggml.pre") && default.notes().is_empty());
    // SentencePiece has no such thing.
    assert!(build(VocabSource { pre: None, ..sentence_piece() }).notes().is_empty());
}

#[test]
fn two_tokens_around_a_text_are_noticed() {
    let tokenizer = build(VocabSource { add_bos: Some(true), add_eos: Some(true), ..byte_level() });
    let notes = |text: &str, parse: bool| {
        let tokens = tokenizer.encode(text, true, parse);
        (tokens.clone(), tokenizer.prompt_notes(text, &tokens).join("\n"))
    };
    let (tokens, both) = notes("<|endoftext|>a<|im_end|>", true);
    assert_eq!(tokens, [ENDOFTEXT, ENDOFTEXT, u32::from(b'a'), IM_END, IM_END]);
    assert!(both.contains("beginning-of-text") && both.contains("end-of-text") && both.lines().count() == 2, "{both}");
    assert!(notes("<|endoftext|>a<|im_end|>", false).1.is_empty(), "spelled out, they are text");
    assert!(notes("a", true).1.is_empty() && notes("", true).1.is_empty());
    let bare = build(VocabSource { add_bos: Some(false), ..byte_level() });
    assert!(bare.prompt_notes("", &bare.encode("<|endoftext|><|endoftext|>", true, true)).is_empty());
}

#[test]
fn text_that_is_not_composed_is_noticed_where_the_model_composes() {
    let notes = |pre: Option<&str>, text: &str| {
        let tokenizer = build(VocabSource { pre: pre.map(str::to_owned), ..byte_level() });
        let tokens = tokenizer.encode(text, true, true);
        assert_eq!(tokenizer.decode(&tokens), text, "what is encoded is the text itself");
        tokenizer.prompt_notes(text, &tokens).len()
    };
    for pre in [Some("qwen2"), Some("qwen35"), Some("olmo"), None] {
        assert_eq!((notes(pre, "cafe\u{301}"), notes(pre, "café"), notes(pre, "เปล่า नमस्ते 한국")), (1, 0, 0), "{pre:?}");
    }
    assert_eq!(notes(Some("llama-bpe"), "cafe\u{301}"), 0);
    assert_eq!(build(sentence_piece()).prompt_notes("cafe\u{301}", &[]).len(), 0);
}

fn hotset(args: &[&str]) -> Output {
    command(env!("CARGO_BIN_EXE_hotset")).args(args).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn the_program_prints_notes_once_unless_quiet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut model = Tiny::read(Path::new(MODEL));
    model.meta.retain(|(key, _)| key != "tokenizer.ggml.pre");
    for (key, value) in &mut model.meta {
        if let ("tokenizer.ggml.merges", Value::Array(Array::String(merges))) = (key.as_str(), value) {
            merges.push("no token".to_owned());
        }
    }
    model.set("tokenizer.ggml.padding_token_id", u32::MAX);
    model.write(&path);
    let path = path.to_str().unwrap();
    let prompt = "<|endoftext|>cafe\u{301}";
    let parts = ["tokenizer.ggml.pre", "merges are left out", "padding_token_id", "beginning-of-text", "not composed"];
    let check = |args: &[&str]| {
        let output = hotset(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        parts.map(|part| stderr.matches(part).count())
    };
    assert_eq!(check(&["tokenize", path, prompt, "--parse-special"]), [1; 5]);
    let run = ["run", path, prompt, "-n", "2", "--temp", "0"];
    assert_eq!(check(&run), [1; 5]);
    assert_eq!(check(&[&run[..], &["-q"]].concat()), [0; 5]);
}
