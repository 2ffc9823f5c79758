//! `hotset plan`: from a header alone, rows that rise with the budget, figures that fit each other, refusals in one sentence.

mod common;

use std::{fs, path::Path, process::Output};

use common::{
    dice::Dice,
    program::command,
    routing::{Shape, decoding, header, write},
};
use hotset::{arch, gguf::Gguf};
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");
const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");

fn hotset(args: &[&str]) -> Output {
    command(env!("CARGO_BIN_EXE_hotset")).args(args).output().unwrap()
}

fn plan(args: &[&str]) -> Value {
    let output = hotset(&[&["plan", "--json", "--memory-rate", "30", "--drive", "80:1000"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The first bytes of the bundled model, up to where its tensors' data begin.
fn head(folder: &Path) -> String {
    let gguf = Gguf::open(Path::new(MODEL)).unwrap();
    let data = gguf.tensors().iter().map(|t| t.offset).min().unwrap() as usize;
    let path = folder.join("head.gguf");
    fs::write(&path, &fs::read(MODEL).unwrap()[..data]).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_header_is_enough_and_says_the_same_as_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (mut whole, mut part) = (plan(&[MODEL]), plan(&[&head(folder.path())]));
    for outlook in [&mut whole, &mut part] {
        let outlook = outlook.as_object_mut().unwrap();
        // What moves with the machine from run to run.
        for key in ["model", "available_bytes", "here_bytes", "less"] {
            outlook.remove(key);
        }
        outlook["rows"].as_array_mut().unwrap().retain(|row| row["here"] == false);
    }
    assert_eq!(whole, part);
}

/// A card's slots are more hits in the same memory, simulated too; one without room for an expert is an error.
#[test]
fn a_card_s_memory_counts_as_hits() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("run.trace").display().to_string();
    let recorded = hotset(&["trace", MODEL, "--prompts", README, "-n", "40", "-o", &trace, "--ctx", "128"]);
    assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    let hits = |args: &[&str]| {
        let outlook = plan(&[&[MODEL, "--ctx", "512"], args].concat());
        (outlook["vram_slots"].as_u64().unwrap(), outlook["rows"][0]["hit_rate"]["expected"].as_f64().unwrap())
    };
    for with in [&[][..], &["--trace", &trace]] {
        let (none, alone) = hits(with);
        let (some, both) = hits(&[with, &["--vram", "40%"]].concat());
        assert!(none == 0 && some > 0 && both > alone, "{with:?}: {some} slots, {both} vs. {alone}");
        let (_, all) = hits(&[with, &["--vram", "1GiB"]].concat());
        assert!(all >= both, "{with:?}: {all} vs. {both}");
    }
    let refused = hotset(&["plan", MODEL, "--vram", "1KiB"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("hold no expert"), "{said}");
}

#[test]
fn more_memory_is_never_worse() {
    let outlook = plan(&[MODEL, "--ctx", "512"]);
    let bytes = |key: &str| outlook[key].as_u64().unwrap();
    assert!(bytes("smallest_bytes") <= bytes("sensible_bytes") && bytes("sensible_bytes") <= bytes("full_bytes"));
    let rows = outlook["rows"].as_array().unwrap();
    assert!(rows.len() >= 6, "{}", rows.len());
    let column = |key: &str, of: &str| -> Vec<f64> {
        rows.iter().map(|r| if of.is_empty() { &r[key] } else { &r[key][of] }.as_f64().unwrap()).collect()
    };
    assert!(column("budget_bytes", "").is_sorted());
    for of in ["low", "expected", "high"] {
        assert!(column("hit_rate", of).is_sorted() && column("decode_tok_s", of).is_sorted(), "{of}");
    }
    let (low, expected, high) =
        (column("decode_tok_s", "low"), column("decode_tok_s", "expected"), column("decode_tok_s", "high"));
    assert!((0..rows.len()).all(|i| low[i] < expected[i] && expected[i] < high[i]));
    assert_eq!(column("hit_rate", "low").last(), Some(&1.0), "with all of it nothing is missing");
    // In memory a token takes as long as its bytes at the rate that was given, and something a layer.
    let gguf = Gguf::open(Path::new(MODEL)).unwrap();
    let layers = arch::blueprint(&gguf).unwrap().n_moe() as f64;
    let whole = 1.0 / (bytes("token_bytes") as f64 / 30e9 + layers * hotset::outlook::LAYER_SECONDS);
    assert!((expected.last().unwrap() / whole - 1.0).abs() < 1e-9, "{} and {whole}", expected.last().unwrap());
}

/// Without rates the types of the model are tried, and the drive that it is on.
#[test]
fn rates_are_tried_where_none_are_given() {
    let output = hotset(&["plan", "--json", MODEL]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outlook: Value = serde_json::from_slice(&output.stdout).unwrap();
    let weights = outlook["weights_rate_is"].as_str().unwrap();
    assert!(weights.starts_with("measured here: ") && weights.contains("Q4_0 "), "{weights}");
    assert!(outlook["weights_bytes_per_second"].as_f64().unwrap() > 1e6);
    assert!(
        outlook["drive_mb_per_second"].as_u64().unwrap() > 0 && outlook["drive_latency_us"].as_f64().unwrap() >= 0.0
    );
}

#[test]
fn a_trace_replaces_the_guess() {
    let folder = tempfile::tempdir().unwrap();
    let guessed = plan(&[MODEL]);
    let gguf = Gguf::open(Path::new(MODEL)).unwrap();
    let c = arch::blueprint(&gguf).unwrap();
    let shape = Shape { layers: c.n_moe(), experts: c.n_expert, used: c.n_expert_used(), tokens: 100 };
    let trace = folder.path().join("own.trace");
    write(&trace, header(shape), &decoding(&mut Dice(5), shape));
    let simulated = plan(&[MODEL, "--trace", trace.to_str().unwrap()]);
    let first = |outlook: &Value| outlook["rows"][0]["hit_rate"].clone();
    assert!(first(&simulated)["low"] == first(&simulated)["high"] && first(&simulated) != first(&guessed));

    let other = Shape { layers: 2, ..shape };
    let trace = folder.path().join("other.trace");
    write(&trace, header(other), &decoding(&mut Dice(5), other));
    let refused = hotset(&["plan", MODEL, "--trace", trace.to_str().unwrap()]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && error.lines().count() == 1 && error.contains("2 MoE layers"), "{error}");
}

#[test]
fn nonsense_is_refused_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let torn = folder.path().join("torn.gguf");
    fs::write(&torn, &fs::read(MODEL).unwrap()[..5000]).unwrap();
    for (args, word) in [
        (vec!["plan", torn.to_str().unwrap()], "torn.gguf"),
        (vec!["plan", "/nowhere/model.gguf"], "/nowhere/model.gguf"),
        (vec!["plan", MODEL, "--ctx", "100000000"], "context"),
    ] {
        let output = hotset(&args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.lines().count() == 1 && error.contains(word), "{args:?}: {error}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    for args in [["--drive", "floppy"], ["--memory-rate", "-3"], ["--memory-rate", "nan"]] {
        let output = hotset(&["plan", MODEL, args[0], args[1]]);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}
