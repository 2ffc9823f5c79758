//! Models of hundreds of billions of parameters, by their headers alone: the file is one hole behind it. `hotset inspect` says
//! what they are, what stays in memory and what in the file, and `hotset plan` what they need.

mod common;
#[path = "../tools/synth/published.rs"]
#[allow(dead_code, reason = "the tool that writes such files makes more of them")]
mod published;

use std::{fs::File, io::Write, path::PathBuf};

use common::{header::header, program::command};
use hotset::quant::GgmlType;
use published::{Choices, Header, deepseek4, qwen4exp};
use serde_json::Value as Json;

/// A model of the published size, its experts of these types.
fn choices(experts: GgmlType) -> Choices {
    let types = [experts, experts, GgmlType::Q8_0, GgmlType::Q8_0];
    Choices { layers: None, vocab: None, table_rows: 12_450_000, types }
}

/// The file, which takes no room for what is not written. The folder goes with it.
fn write(model: &Header) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.gguf");
    let tensor = |(name, dims, ty): &(String, Vec<u64>, GgmlType)| {
        let bytes = dims[1..].iter().product::<u64>() * ty.row_bytes(dims[0]).expect("whole blocks");
        (name.clone(), dims.clone(), *ty as u32, bytes)
    };
    let tensors: Vec<_> = model.tensors.iter().map(tensor).collect();
    let (mut file, bytes) = (File::create(&path).unwrap(), header(&model.meta, &tensors));
    file.write_all(&bytes).unwrap();
    let data: u64 = tensors.iter().map(|(.., bytes)| bytes.next_multiple_of(32)).sum();
    file.set_len((bytes.len() as u64).next_multiple_of(32) + data).unwrap();
    (folder, path)
}

fn hotset(args: &[&str]) -> String {
    let output = command(env!("CARGO_BIN_EXE_hotset")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What `inspect` says of a model, as text and as JSON, and what `plan` does.
fn told(model: &Header) -> (String, Json, Json) {
    let (_folder, path) = write(model);
    let path = path.to_str().unwrap();
    let text = hotset(&["inspect", path]);
    let inspect = serde_json::from_str(&hotset(&["inspect", path, "--json"])).unwrap();
    let plan = hotset(&["plan", path, "--json", "--memory-rate", "30", "--drive", "80:3000"]);
    (text, inspect, serde_json::from_str(&plan).unwrap())
}

fn billions(json: &Json, key: &str) -> f64 {
    json[key].as_u64().unwrap_or_else(|| panic!("{key} of {json}")) as f64 / 1e9
}

#[test]
fn a_table_of_n_grams_is_charged_to_nobody() {
    let model = qwen4exp(&choices(GgmlType::IQ3_XXS));
    let (text, inspect, plan) = told(&model);
    assert!((165.0..180.0).contains(&billions(&inspect, "parameters")), "{text}");
    assert!((4.0..9.0).contains(&billions(&inspect, "active_parameters")), "the table is not: {text}");
    assert!(
        text.contains("a table of n-grams stays in the file, 26.7 GiB: a token reads 16 rows of 144 bytes"),
        "{text}"
    );
    assert_eq!(inspect["context_train"], 262_144);
    // A vocabulary and weights are not there, and that is all that is wrong with the file.
    assert!(text.contains("INCOMPLETE           the data of tensor "), "{text}");
    assert!(
        text.lines().last().unwrap().starts_with("runs: no, because metadata key \"tokenizer.ggml.model\""),
        "{text}"
    );
    for json in [&inspect, &plan] {
        let budget = if json["budget"].is_object() { &json["budget"] } else { json };
        assert!(billions(budget, "smallest_bytes") < 9.0, "{text}");
        assert!((40.0..60.0).contains(&billions(budget, "full_bytes")), "{text}");
    }
    assert!(billions(&inspect, "dense_resident_bytes") < 6.0, "{text}");
}

#[test]
fn blocks_of_tokens_keep_a_long_context_small() {
    let model = deepseek4(&choices(GgmlType::MXFP4));
    let (text, inspect, plan) = told(&model);
    assert!((275.0..295.0).contains(&billions(&inspect, "parameters")), "{text}");
    assert!((11.0..15.0).contains(&billions(&inspect, "active_parameters")), "{text}");
    assert!(text.contains("41 layers keep a row of each block of tokens beyond the window"), "{text}");
    assert!(billions(&inspect["budget"], "smallest_bytes") < 12.0, "{text}");
    assert!(plan["rows"].as_array().unwrap().len() >= 6);
    let (_folder, path) = write(&model);
    let long = hotset(&["inspect", path.to_str().unwrap(), "--json", "--ctx", "131072"]);
    let long: Json = serde_json::from_str(&long).unwrap();
    // A row of each token would take 64 times as much as keys and values of one.
    assert!(billions(&long["budget"], "kv_bytes") < 1.5, "{long}");
}
