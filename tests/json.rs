//! Every field that a verb prints as JSON stands in `docs/json.md`, in the section of the verb, and every document says
//! which version of its schema it has.

mod common;

use std::{collections::BTreeSet, fs, path::Path};

use common::{
    dice::Dice,
    program::command,
    routing::{Shape, decoding, header, write},
};
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");

fn json(args: &[&str]) -> Value {
    let output = command(env!("CARGO_BIN_EXE_hotset")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The names of all fields, those of objects inside it too.
fn fields(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            into.extend(map.keys().cloned());
            map.values().for_each(|value| fields(value, into));
        }
        Value::Array(list) => list.iter().for_each(|value| fields(value, into)),
        _ => {}
    }
}

/// What stands in `docs/json.md` under a heading, up to the next one, as words in backticks.
fn documented(heading: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.md");
    let text = fs::read_to_string(path).unwrap();
    let section =
        text.split("\n## ").find(|section| section.starts_with(heading)).unwrap_or_else(|| panic!("{heading}"));
    section.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn check(document: &Value, headings: &[&str]) {
    assert_eq!(document["schema"], 1, "{}", headings[0]);
    let first = document.as_object().and_then(|map| map.keys().next()).unwrap();
    assert!(!first.is_empty());
    let mut printed = BTreeSet::new();
    fields(document, &mut printed);
    let told: BTreeSet<_> = headings.iter().flat_map(|heading| documented(heading)).collect();
    let missing: Vec<_> = printed.difference(&told).collect();
    assert!(missing.is_empty(), "docs/json.md, {}: {missing:?}", headings[0]);
}

#[test]
fn every_field_is_documented() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (trace, stats) = (at("a.trace"), at("stats.json"));
    let shape = Shape { layers: 3, experts: 16, used: 3, tokens: 40 };
    write(trace.as_ref(), header(shape), &decoding(&mut Dice(1), shape));

    let run = ["run", MODEL, "Once upon a time", "-n", "6", "--stats-json", &stats];
    assert!(command(env!("CARGO_BIN_EXE_hotset")).args(run).output().unwrap().status.success());
    check(&serde_json::from_slice(&fs::read(&stats).unwrap()).unwrap(), &["`run --stats-json`"]);
    check(&json(&["inspect", MODEL, "--json"]), &["`inspect --json`"]);
    check(&json(&["plan", MODEL, "--json", "--memory-rate", "30", "--drive", "80:1000"]), &["`plan --json`"]);
    let bench = ["bench", MODEL, "--json", "-p", "4", "-n", "3", "-r", "2", "--warmup", "2", "--probe", "0"];
    check(&json(&bench), &["`bench --json`"]);
    check(&json(&["simulate", &trace, "--json", "--slots", "8"]), &["`simulate --json`"]);
    let report = json(&["report", &trace, "--run", &stats, "--json", "--slots", "8"]);
    check(&report, &["`report --json`", "`run --stats-json`", "`simulate --json`", "`trace stats --json`"]);
    let cached = folder.path().join("models--owner--model/snapshots/c0ffee/small-Q4_0.gguf");
    fs::create_dir_all(cached.parent().unwrap()).unwrap();
    fs::copy(MODEL, cached).unwrap();
    let mut list = command(env!("CARGO_BIN_EXE_hotset"));
    let list = list.args(["list", "--json"]).env("HF_HUB_CACHE", folder.path()).output().unwrap();
    check(&serde_json::from_slice(&list.stdout).unwrap(), &["`list --json`"]);
    check(&json(&["trace", "stats", &trace, "--json"]), &["`trace stats --json`"]);
}
