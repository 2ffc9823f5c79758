//! `hotset bench` on the bundled model: the rows that were asked for, with figures that agree with each other.

mod common;

use common::{
    dice::Dice,
    program::{self, command},
    routing::{Shape, decoding, header, write},
};
use hotset::{arch, gguf::Gguf, io::IoKind, model::Sequence, quant::GgmlType};
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");

/// Standard output, and whether the exit code was 0.
fn bench(more: &[&str]) -> (String, bool) {
    let common = ["bench", MODEL, "-p", "4", "-n", "3", "-r", "3", "--warmup", "2"];
    let probe: &[&str] = if more.contains(&"--probe") { &[] } else { &["--probe", "0"] };
    let output = command(env!("CARGO_BIN_EXE_hotset")).args(common).args(probe).args(more).output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.success())
}

fn rows(more: &[&str]) -> Vec<Value> {
    let (text, ok) = bench(&[&["--json"], more].concat());
    assert!(ok, "{more:?}");
    rows_of(&text)
}

/// A budget of so many MiB above the smallest.
fn budget(more_mib: u64) -> String {
    program::budget(env!("CARGO_BIN_EXE_hotset"), MODEL, more_mib)
}

/// The rows of a document.
fn rows_of(text: &str) -> Vec<Value> {
    let mut document: Value = serde_json::from_str(text).unwrap();
    assert_eq!(document["schema"], 1);
    serde_json::from_value(document["rows"].take()).unwrap()
}

#[test]
fn every_combination_has_a_row_whose_figures_agree() {
    let rows = rows(&["--memory", &format!("{},500%", budget(2)), "-t", "1,2", "-d", "0,5"]);
    assert_eq!(rows.len(), 2 * 2 * 2 * 2);
    for row in &rows {
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"));
        assert_eq!(row["samples_tok_s"].as_array().unwrap().len(), 3);
        assert!(number("min_tok_s") <= number("median_tok_s") && number("median_tok_s") <= number("max_tok_s"));
        assert!(number("min_tok_s") > 0.0);
        assert!((0.0..=1.0).contains(&number("hit_rate")));
        let read = number("demand_bytes_per_token") + number("prefetch_bytes_per_token");
        assert_eq!(read, number("bytes_read_per_token"));
        assert!(number("slots") <= number("experts"));
        assert!(number("budget_bytes") >= number("smallest_bytes"));
        assert!((0.0..number("model_bytes")).contains(&number("weight_bytes_per_token")));
        assert!(row["share_of_memory"].is_null(), "caches hold this model");
    }
    let tests: Vec<_> = rows[..4].iter().map(|r| r["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["pp4", "tg3", "pp4 @ d5", "tg3 @ d5"]);
    // Each token reads the keys and values of itself and of those before it: on average of 2, and of 7.
    let blueprint = arch::blueprint(&Gguf::open(MODEL.as_ref()).unwrap()).unwrap();
    let context = |positions| Sequence::bytes(&blueprint, GgmlType::F16, positions, 1).unwrap() as f64;
    let said = rows[..4].iter().map(|r| r["context_bytes_per_token"].as_f64());
    assert_eq!(said.collect::<Vec<_>>(), [None, Some(context(2)), None, Some(context(7))]);
    assert_eq!((&rows[0]["threads"], &rows[0]["memory"]), (&Value::from(1), &Value::from(budget(2))));
}

#[test]
fn rows_under_a_budget_are_held_against_the_drive_and_against_the_row_in_memory() {
    if !common::read_paths().contains(&IoKind::Direct) {
        return;
    }
    let in_memory = ["--warmup-prompt", "512", "--memory", &format!("1GiB,{}", budget(3)), "--probe", "0.5"];
    let rows = rows(&[&in_memory[..], &["--io", "direct"]].concat());
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"));
    assert_eq!(rows.len(), 4);
    for (all, few) in rows[..2].iter().zip(&rows[2..]) {
        assert_eq!(
            number(few, "read_share_of_probed"),
            number(few, "read_bytes_per_second") / number(few, "probed_bytes_per_second")
        );
        assert!(all["bound_tok_s"].is_null() && all["share_of_bound"].is_null());
        let rates = all["samples_tok_s"].as_array().unwrap();
        let seconds = rates.iter().map(|rate| 1.0 / rate.as_f64().unwrap()).sum::<f64>() / rates.len() as f64;
        let alone = seconds - number(all, "stall_ms_per_token") / 1e3;
        assert!(alone > 0.0, "{all}");
        assert!(number(few, "bound_tok_s") <= (1.0 / alone) * 1.000_001, "{few}");
        assert_eq!(number(few, "share_of_bound"), number(few, "median_tok_s") / number(few, "bound_tok_s"));
    }
    let cached = &self::rows(&["--memory", &budget(3), "--io", "pread", "--probe", "0.1"])[0];
    assert!(cached["probed_bytes_per_second"].is_null(), "the page cache is no drive");
}

/// What a decode test says of drive and computing adds up to its time, and `simulate --profile` takes it.
#[test]
fn a_decode_test_is_a_profile() {
    let folder = tempfile::tempdir().unwrap();
    let (text, ok) = bench(&["--json", "--memory", &budget(2), "--prefetch", "off", "--io", "pread"]);
    assert!(ok);
    let mut rows = rows_of(&text);
    // Nobody waits where the page cache is quick enough: then nothing is known of waiting.
    for (key, us) in [("wake_us", 7.5), ("read_latency_us", 80.0), ("read_mb_s", 950.0)] {
        let measured = rows[1][key].take();
        assert!(measured.is_null() || measured.as_f64().unwrap() >= 0.0, "{key}: {measured}");
        rows[1][key] = us.into();
    }
    let text = serde_json::to_string_pretty(&serde_json::json!({ "rows": rows })).unwrap();
    assert!(rows[0]["layer_us"].is_null() && rows[0]["read_mb_s"].is_null(), "a prompt's");
    let us = |key: &str| rows[1][key].as_f64().unwrap_or_else(|| panic!("{key} of {}", rows[1]));
    let (layers, used) = (us("n_layer"), us("n_expert_used"));
    let computing = layers * (us("layer_us") + us("shared_us") + used * us("expert_us")) + us("token_us");
    let token = 1e6 / us("mean_tok_s") - 1e3 * us("stall_ms_per_token");
    assert!(computing > 0.0 && computing <= 1.5 * token, "{computing} of {token}");
    assert!(us("hand_out_us") >= 0.0);

    let (trace, profile) = (folder.path().join("a.trace"), folder.path().join("profile.json"));
    std::fs::write(&profile, &text).unwrap();
    let shape = Shape { layers: 3, experts: 16, used: 3, tokens: 40 };
    write(&trace, header(shape), &decoding(&mut Dice(1), shape));
    let simulate = |more: &[&str]| {
        let args = ["simulate", trace.to_str().unwrap(), "--policy", "default", "--slots", "8", "--json"];
        let output = command(env!("CARGO_BIN_EXE_hotset")).args(args).args(more).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (String::from_utf8(output.stdout).unwrap(), error, output.status.success())
    };
    let file = profile.to_str().unwrap();
    let named = |key: &str, option: &str| [format!("--{option}-us"), us(key).to_string()];
    let options = ["layer", "layer-wait", "shared", "hand-out", "expert", "wake", "token"];
    let mut options: Vec<_> = options.iter().flat_map(|o| named(&format!("{}_us", o.replace('-', "_")), o)).collect();
    options.extend(["--drive".to_owned(), "70:900:3".to_owned()]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let both = [&["--profile", file], &options[14..]].concat();
    let (by_profile, by_hand) = (simulate(&both), simulate(&options));
    assert!(by_hand.2 && by_hand.0 == by_profile.0, "{by_hand:?} {by_profile:?}");
    assert_ne!(simulate(&["--profile", file]).0, by_hand.0, "its own drive");
    assert_ne!(simulate(&["--profile", file, "--token-us", "9e5"]).0, simulate(&["--profile", file]).0);

    assert_ne!(simulate(&["--profile", file, "--layer-wait-us", "9e5"]).0, simulate(&["--profile", file]).0);

    let whole = std::fs::read(&trace).unwrap();
    std::fs::write(&trace, &whole[..whole.len() / 2]).unwrap();
    let (text_of_half, error, ok) = simulate(&["--profile", file]);
    assert!(ok && !text_of_half.is_empty() && error.contains("the rest is left out"), "{error}");
    std::fs::write(&trace, whole).unwrap();
    let empty = folder.path().join("empty.trace");
    write(&empty, header(shape), &[]);
    let args = ["simulate", empty.to_str().unwrap(), "--policy", "default", "--slots", "8"];
    let idle = command(env!("CARGO_BIN_EXE_hotset")).args(args).output().unwrap();
    let nothing = String::from_utf8(idle.stdout).unwrap();
    assert!(idle.status.success() && nothing.ends_with("no token was decoded in the trace\n"), "{nothing}");

    let refused = [
        ("{\"rows\": []}", "one test that decoded"),
        ("nonsense", "bench --json"),
        ("[]", "bench --json"),
        (&text.replace("\"read_mb_s\"", "\"x\""), "no expert was read"),
        (&text.replace("\"layer_us\": null", "\"layer_us\": 1"), "one test that decoded"),
        (&text.replace("\"layer_us\": ", "\"layer_us\": -"), "profile"),
    ];
    for (content, says) in refused {
        std::fs::write(&profile, content).unwrap();
        let (_, error, ok) = simulate(&["--profile", file]);
        assert!(!ok && error.contains(file) | error.contains("--profile") && error.contains(says), "{says}: {error}");
    }
    let (_, error, ok) = simulate(&["--profile", "/no/such.json"]);
    assert!(!ok && error.contains("/no/such.json"), "{error}");
}

#[test]
fn a_warm_up_prompt_brings_in_nearly_every_expert() {
    for row in &rows(&["--warmup-prompt", "512", "--memory", "1GiB"]) {
        assert_eq!(row["slots"], row["experts"]);
        // A trained model has experts that hardly any token asks for.
        assert!(row["hit_rate"].as_f64().unwrap() > 0.95, "{row}");
    }
}

#[test]
fn csv_has_the_fields_of_json() {
    let (csv, _) = bench(&["--csv"]);
    let header: Vec<_> = csv.lines().next().unwrap().split(',').collect();
    let row = &rows(&[])[0];
    assert_eq!(header.len(), row.as_object().unwrap().len());
    assert!(header.iter().all(|name| row.get(name).is_some()));
    assert_eq!(csv.lines().count(), 3);
}

#[test]
fn a_budget_that_is_too_small_costs_its_rows_and_the_exit_code() {
    let (text, ok) = bench(&["--json", "--memory", "1%,500%"]);
    assert!(!ok);
    assert_eq!(rows_of(&text).len(), 2);
}

#[test]
fn a_text_may_give_the_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "The cat sat on the mat.").unwrap();
    let row = &rows(&["--text", file.to_str().unwrap(), file.to_str().unwrap()])[0];
    assert_eq!((&row["tokens"], &row["seed"]), (&Value::from("text"), &Value::Null));
}

#[test]
fn the_page_cache_alone_keeps_no_experts() {
    let page_cache = ["--io", "page-cache", "--memory", &budget(3)];
    for row in rows(&page_cache) {
        assert_eq!((&row["hit_rate"], &row["io"]), (&Value::from(0.0), &Value::from("page-cache")), "{row}");
        assert_eq!((&row["slots"], &row["policy"]), (&row["n_expert_used"], &Value::from("none")), "{row}");
        assert!(row["demand_bytes_per_token"].as_f64().unwrap() > 0.0, "{row}");
    }
    for option in [["--policy", "lru"], ["--prefetch", "auto"], ["--scope", "layer"]] {
        let (text, ok) = bench(&[&page_cache[..], &option].concat());
        assert!(!ok && text.is_empty(), "{option:?}: {text}");
    }
}
