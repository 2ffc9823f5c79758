//! `hotset inspect` shows any GGUF file as far as it is understood, and ends by saying whether it runs, and if not, why.

mod common;

use std::path::Path;

use common::{opened::Folder, program::command, ref_models::ref_model, tiny::Tiny};
use hotset::gguf::{Gguf, Value};
use serde_json::Value as Json;

fn hotset(args: &[&str]) -> (i32, String, String) {
    let output = command(env!("CARGO_BIN_EXE_hotset")).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn inspect(path: &Path) -> (String, Json) {
    let path = path.to_str().unwrap();
    let (code, text, said) = hotset(&["inspect", path]);
    assert_eq!((code, said.as_str()), (0, ""));
    let (code, json, said) = hotset(&["inspect", path, "--json"]);
    assert_eq!((code, said.as_str()), (0, ""));
    (text, serde_json::from_str(&json).unwrap())
}

/// A model with a vocabulary, which runs.
fn good() -> Tiny {
    Tiny::read(&ref_model("qwen3moe"))
}

/// The last line must say that the file does not run, with these words; what it says otherwise comes back.
#[track_caller]
fn does_not_run(path: &Path, words: &[&str]) -> (String, Json) {
    let (text, json) = inspect(path);
    let last = text.lines().last().unwrap().to_owned();
    assert!(last.starts_with("runs: no, because "), "{last}");
    let why = json["why_not"].as_str().unwrap();
    assert_eq!(last, format!("runs: no, because {why}"));
    assert!(!why.contains(path.to_str().unwrap()), "{why}");
    assert_eq!(json["runs"], false);
    for word in words {
        assert!(why.contains(word), "{word:?} is not in: {why}");
    }
    // The other verbs fail with the same reason, in one sentence.
    for args in [&["plan", path.to_str().unwrap()][..], &["run", path.to_str().unwrap(), "abc", "-n", "1"]] {
        let (code, out, said) = hotset(args);
        assert_eq!((code, out.as_str()), (1, ""), "{args:?}");
        assert_eq!(said.trim_end().lines().count(), 1, "{args:?}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{args:?}: {said}");
    }
    (text, json)
}

#[test]
fn a_good_file_runs() {
    let folder = Folder::new();
    let mut tiny = good();
    tiny.set("qwen3moe.expert_group_count", 1u32);
    let (text, json) = inspect(&folder.write(&tiny));
    assert!(text.ends_with("\nruns: yes\n"), "{text}");
    assert_eq!((&json["runs"], &json["why_not"], &json["complete"]), (&true.into(), &Json::Null, &true.into()));
    let line = "not used             qwen3moe.expert_group_count: one group is all experts\n";
    assert!(text.contains(line), "{text}");
    let unread = json["unread"].as_array().unwrap();
    assert!(unread.iter().any(|key| key["key"] == "qwen3moe.expert_group_count"), "{unread:?}");
    // The same list, where the model runs.
    let path = folder.write(&tiny);
    let (code, _, said) = hotset(&["run", path.to_str().unwrap(), "abc", "-n", "1", "--verbose"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("qwen3moe.expert_group_count: one group is all experts"), "{said}");
}

/// Changes the type's number of a tensor of three dims in a file.
fn retype(path: &Path, tensor: &str, id: u32) {
    let mut bytes = std::fs::read(path).unwrap();
    // The number follows the name, the number of dims and three dims.
    let at = bytes.windows(tensor.len()).position(|w| w == tensor.as_bytes()).unwrap() + tensor.len() + 4 + 3 * 8;
    bytes[at..at + 4].copy_from_slice(&id.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn an_unknown_type_hides_only_itself() {
    let folder = Folder::new();
    let path = folder.write(&good());
    retype(&path, "blk.1.ffn_up_exps.weight", 555);
    let (text, json) = does_not_run(&path, &["tensor blk.1.ffn_up_exps.weight", "555"]);
    for words in ["expert up            unknown type 555", "expert up            F32", "layers               3, 3 of"] {
        assert!(text.contains(words), "{words:?} is not in: {text}");
    }
    assert_eq!((&json["experts"], &json["name"]), (&16.into(), &"qwen3moe".into()));
}

#[test]
fn types_of_other_programs_are_named_and_listed_by_layer() {
    let folder = Folder::new();
    let path = folder.write(&good());
    for layer in [1, 2] {
        retype(&path, &format!("blk.{layer}.ffn_up_exps.weight"), 144);
    }
    let (text, json) = does_not_run(&path, &["tensor blk.1.ffn_up_exps.weight", "IQ4_KS", "ik_llama.cpp", "144"]);
    let rows = [
        "layer 0              expert gate F32, expert up F32, expert down F32\n",
        "layer 1-2            expert gate F32, expert up IQ4_KS (ik_llama.cpp), expert down F32\n",
    ];
    assert!(text.contains(&rows.concat()), "{text}");
    let layers = json["expert_types"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!((&layers[1]["first_layer"], &layers[1]["last_layer"]), (&1.into(), &2.into()));
    assert_eq!(layers[1]["matrices"][1]["role"], "expert up");
    assert_eq!(layers[1]["matrices"][1]["types"][0], "IQ4_KS (ik_llama.cpp)");
    retype(&path, "blk.1.ffn_up_exps.weight", 339);
    does_not_run(&path, &["IQ4_K_R4"]);
}

#[test]
fn rotated_weights_are_refused() {
    let folder = Folder::new();
    let mut tiny = good();
    tiny.set("prism.hadamard.block_size", 128u32);
    does_not_run(&folder.write(&tiny), &["rotated", "prism.hadamard.block_size", "not supported"]);
}

/// Name, family, parts as they are listed, the number of kinds.
#[test]
fn layers_are_listed_by_kind() {
    for (name, family, parts) in [
        ("kimi-linear", "Kimi Linear", "2 latent attention, 3 delta net, 1 dense feed-forward, 4 MoE"),
        ("nemotron_h_moe", "Nemotron 3", "1 attention, 3 Mamba 2, 3 MoE"),
        ("gpt-oss", "gpt-oss", "2 attention, 2 sliding-window attention, 4 MoE"),
        ("glm-dsa", "GLM-5", "4 sparse attention, 1 dense feed-forward, 3 MoE"),
        ("lfm2moe", "LFM2", "2 attention, 2 short convolution, 1 dense feed-forward, 3 MoE"),
    ] {
        let (text, json) = inspect(&ref_model(name));
        assert!(text.contains(&format!("parts                {parts}\n")), "{name}: {text}");
        assert!(text.contains(&format!("architecture         {name} ({family})\n")), "{name}: {text}");
        assert_eq!(json["family"], family);
        let listed = json["parts"].as_array().unwrap().iter();
        let listed: Vec<_> = listed.map(|p| format!("{} {}", p["count"], p["kind"].as_str().unwrap())).collect();
        assert_eq!(listed.join(", "), parts);
    }
}

#[test]
fn an_unknown_architecture_is_listed() {
    let folder = Folder::new();
    let mut tiny = good();
    tiny.set("general.architecture", "mystery");
    let (text, json) = does_not_run(&folder.write(&tiny), &["architecture", "mystery"]);
    for words in ["architecture         mystery", "expert up            F32", "tokens, gpt2 (qwen2)"] {
        assert!(text.contains(words.trim_start_matches("tokens, ")), "{words:?} is not in: {text}");
    }
    assert_eq!(json["architecture"], "mystery");
    assert!(json["parameters"].as_u64().unwrap() > json["expert_parameters"].as_u64().unwrap());
}

#[test]
fn what_a_run_would_refuse_is_said() {
    let folder = Folder::new();
    let mut tiny = good();
    tiny.add("blk.0.exp_probs_b.bias", &[16]);
    let (text, _) = does_not_run(&folder.write(&tiny), &["tensor blk.0.exp_probs_b.bias"]);
    assert!(text.contains("smallest budget"), "{text}");

    let mut tiny = good();
    tiny.set("qwen3moe.attention.sliding_window", 8u32);
    does_not_run(&folder.write(&tiny), &["qwen3moe.attention.sliding_window", "8"]);

    let mut tiny = good();
    tiny.set("qwen3moe.attention.layer_norm_rms_epsilon", f32::NAN);
    does_not_run(&folder.write(&tiny), &["layer_norm_rms_epsilon", "NaN"]);

    let mut tiny = good();
    tiny.take("blk.2.attn_q_norm.weight");
    does_not_run(&folder.write(&tiny), &["tensor blk.2.attn_q_norm.weight", "no such tensor"]);

    let mut tiny = good();
    tiny.set("tokenizer.ggml.tokens", Value::Array(hotset::gguf::Array::String(vec!["x".to_owned(); 273])));
    tiny.set("tokenizer.ggml.token_type", vec![1i32; 273]);
    does_not_run(&folder.write(&tiny), &["273 tokens", "272 rows"]);
}

#[test]
fn data_that_is_not_there_is_incomplete() {
    let folder = Folder::new();
    let path = folder.write(&good());
    let bytes = std::fs::read(&path).unwrap();
    let start = Gguf::open(&path).unwrap().tensors()[0].offset as usize;
    // Its length is there, its data is not.
    let mut zeros = bytes.clone();
    zeros[start..].fill(0);
    std::fs::write(&path, zeros).unwrap();
    let (text, json) = inspect(&path);
    assert!(text.lines().nth(1).unwrap().starts_with("INCOMPLETE           the data of tensor "), "{text}");
    assert_eq!((&json["complete"], &json["runs"]), (&false.into(), &false.into()));
    assert!(text.lines().last().unwrap().starts_with("runs: no, because the data of tensor "), "{text}");
    // Its data ends early.
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let (text, json) = inspect(&path);
    assert!(text.contains("INCOMPLETE") && text.contains("smallest budget"), "{text}");
    assert!(text.lines().last().unwrap().contains("still downloading?"), "{text}");
    assert_eq!((&json["complete"], &json["runs"]), (&false.into(), &false.into()));
}

#[test]
fn a_wrong_byte_in_a_text_for_people_costs_nobody_the_model() {
    let folder = Folder::new();
    let mut tiny = good();
    tiny.set("general.name", "Zebra model");
    tiny.set("general.tags", vec!["Zebra one".to_owned(), "two".to_owned()]);
    tiny.set("tokenizer.chat_template", "Zebra {{ messages }}");
    let path = folder.write(&tiny);
    let mut bytes = std::fs::read(&path).unwrap();
    let places: Vec<_> = (0..bytes.len() - 5).filter(|&i| &bytes[i..i + 5] == b"Zebra").collect();
    assert_eq!(places.len(), 3);
    for at in places {
        bytes[at + 1] = 0xff;
    }
    std::fs::write(&path, &bytes).unwrap();
    let (text, json) = inspect(&path);
    assert!(text.contains("Z\u{fffd}bra model") && text.ends_with("runs: yes\n"), "{text}");
    assert_eq!(json["name"], "Z\u{fffd}bra model");
    let args = ["run", path.to_str().unwrap(), "abc", "-n", "4", "--temp", "0", "-q"];
    let broken = hotset(&args);
    assert_eq!(broken.0, 0, "{}", broken.2);
    folder.write(&tiny);
    assert_eq!(hotset(&args), broken);
}

#[test]
fn a_context_beyond_the_model_is_an_error_of_the_caller() {
    let folder = Folder::new();
    let path = folder.write(&good());
    let (code, out, said) = hotset(&["inspect", path.to_str().unwrap(), "--ctx", "513"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(said.contains("513"), "{said}");
}
