//! The program from outside: what it prints, writes and refuses, on the bundled model.

mod common;

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use hotset::{
    backend::cpu::kernels::{KernelChoice, Kernels},
    gguf::Gguf,
    io::IoKind,
    npy::Npy,
    policy::PolicyKind,
    quant::GgmlType,
    session::{Options, Session},
};
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");
const PROMPT: &str = "Once upon a time";

fn command(args: &[&str]) -> Command {
    let mut command = common::program::command(env!("CARGO_BIN_EXE_hotset"));
    command
        .args(args)
        .env_remove("HOTSET_MODEL")
        .env_remove("HOTSET_ISA")
        .env_remove("HOTSET_INTERLEAVE")
        .stdin(Stdio::null());
    command
}

fn hotset(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// A budget of so many MiB above the smallest with slots for each layer.
fn budget(more_mib: u64) -> String {
    common::program::budget(env!("CARGO_BIN_EXE_hotset"), MODEL, more_mib)
}

/// Standard output of a run that must succeed.
fn text(args: &[&str]) -> String {
    let output = hotset(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// `hotset run` of the prompt, with its statistics.
fn run_with_stats(args: &[&str]) -> (String, Value) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("stats.json");
    let all = [&["run", MODEL, PROMPT, "--stats-json", json.to_str().unwrap()], args].concat();
    let text = text(&all);
    (text, serde_json::from_slice(&fs::read(json).unwrap()).unwrap())
}

#[test]
fn text_depends_on_the_seed_and_on_nothing_else() {
    let run = |args: &[&str]| text(&[&["run", MODEL, PROMPT, "-n", "24", "--seed", "0"], args].concat());
    let first = run(&[]);
    assert!(first.starts_with(PROMPT) && first.len() > PROMPT.len() + 24 && first.ends_with('\n'), "{first}");
    assert_eq!(run(&["--seed", "0"]), first);
    assert_ne!(run(&["--seed", "1"]), first);
    let (small, half) = (budget(1), budget(6));
    for same in
        [&["--memory", &*small], &["--memory", &half], &["--threads", "1"], &["--batch", "2"], &["--io", "mapped"]]
    {
        assert_eq!(run(same), first, "{same:?}");
    }
    assert_eq!(run(&["--memory", &small, "--scope", "global", "--prefetch", "off", "--io-depth", "1"]), first);
    let greedy = run(&["--temp", "0"]);
    assert_eq!(run(&["--temp", "0", "--seed", "9"]), greedy);
    assert_eq!(run(&["--top-k", "1"]), greedy);
    assert_eq!(format!("{PROMPT}{}", run(&["--temp", "0", "--no-echo"])), greedy);
    assert_ne!(run(&["--temp", "0", "--repeat-penalty", "3", "--repeat-last-n", "32"]), greedy);
}

#[test]
fn prompts_come_from_the_command_line_a_file_or_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    fs::write(&file, format!("{PROMPT}\n")).unwrap();
    let (file, tail) = (file.to_str().unwrap(), ["-n", "8", "-q", "--seed", "3"]);
    let expected = text(&[&["run", MODEL, PROMPT], &tail[..]].concat());
    assert_eq!(text(&[&["run", PROMPT], &tail[..]].concat()), expected, "the bundled model");
    assert_eq!(text(&[&["run", MODEL, "--prompt-file", file], &tail[..]].concat()), expected);
    for args in [&["run", MODEL][..], &["run", MODEL, "--prompt-file", "-"], &["run"]] {
        let piped = command(&[args, &tail].concat()).stdin(fs::File::open(file).unwrap()).output().unwrap();
        assert_eq!(String::from_utf8(piped.stdout).unwrap(), expected, "{args:?}");
        assert!(piped.stderr.is_empty(), "--quiet");
    }
    let named =
        command(&[&["run", PROMPT], &tail[..]].concat()).env("HOTSET_MODEL", "/no/model.gguf").output().unwrap();
    assert!(refusal(&named).contains("/no/model.gguf"));
}

#[test]
fn statistics_add_up_and_budgets_are_kept() {
    for io in ["pread", "mapped"] {
        let (_, stats) = run_with_stats(&["-n", "60", "--ignore-eos", "--memory", &budget(1), "--io", io]);
        let n = |key: &str| stats.pointer(key).and_then(Value::as_u64).unwrap_or_else(|| panic!("{key} in {stats}"));
        let f = |key: &str| stats.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("{key} in {stats}"));
        for key in ["hit", "late", "miss"] {
            assert_eq!(n(&format!("/{key}")), n(&format!("/prompt/{key}")) + n(&format!("/decode/{key}")));
        }
        let all = n("/hit") + n("/late") + n("/miss");
        assert_eq!(
            n("/decode/hit") + n("/decode/late") + n("/decode/miss"),
            59 * 7 * 4,
            "four experts in seven layers"
        );
        assert!((f("/hit_rate") - n("/hit") as f64 / all as f64).abs() < 1e-9);
        assert_eq!((n("/prompt_tokens"), n("/generated_tokens"), n("/decode/tokens")), (6, 60, 59));
        assert!(f("/prompt_tok_s") > 0.0 && f("/decode_tok_s") > 0.0 && f("/stall_ms") >= 0.0);
        assert!(n("/bytes_read") >= n("/miss") * 3 * 18_432, "a miss reads an expert");
        assert_eq!(n("/budget_bytes").to_string(), budget(1));
        let memory = |key: &str| n(&format!("/memory/{key}_bytes"));
        let parts: u64 = ["dense", "kv", "scratch", "slots", "process"].map(memory).iter().sum();
        assert!(parts <= n("/budget_bytes") && memory("smallest") <= parts && parts < memory("full"));
        if cfg!(target_os = "linux") {
            assert!(n("/peak_rss_bytes") <= n("/budget_bytes"), "{stats}");
        }
        assert_eq!([&stats["io"], &stats["policy"], &stats["prefetch"]], [io, "lfu-adaptive", "auto"]);
        assert_eq!([&stats["stop"], &stats["scope"], &stats["kv"]], ["length", "layer", "f16"]);
    }
    let (_, stats) = run_with_stats(&["-n", "0"]);
    assert!(stats["decode_tok_s"].is_null() && stats["decode"]["hit_rate"].is_null(), "no rate without tokens");
    let (_, stats) = run_with_stats(&["--ctx", "10", "--ignore-eos"]);
    assert_eq!(
        (&stats["stop"], &stats["generated_tokens"]),
        (&"context".into(), &5.into()),
        "6 + 4 tokens, and one more"
    );
}

/// The one sentence of a refusal.
fn refusal(output: &Output) -> String {
    refusal_with(output, 1)
}

/// The same with this exit code.
fn refusal_with(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.starts_with("hotset: ") && stderr.trim_end().lines().count() == 1, "{stderr}");
    stderr
}

#[test]
fn bad_input_is_refused_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| -> String {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let truncated = file("truncated.gguf", &fs::read(MODEL).unwrap()[..3 << 20]);
    let (no_gguf, empty) = (file("text.gguf", b"Once upon a time"), file("empty.txt", b""));
    let (binary, short) = (file("binary.txt", b"\xff\xfe"), file("short.txt", b"Once"));
    let nowhere = "/nowhere/at/all.out";
    let cases: &[(&[&str], &str)] = &[
        (&["run", "/no/such.gguf", PROMPT], "/no/such.gguf"),
        (&["run", "/no/such.gguf"], "/no/such.gguf"),
        (&["run", &no_gguf, PROMPT], "text.gguf"),
        (&["run", &truncated, PROMPT], "truncated.gguf"),
        (&["run", "/tmp", PROMPT], "/tmp"),
        (&["run", MODEL], "prompt"),
        (&["run", MODEL, "--prompt-file", &empty], "prompt"),
        (&["run", MODEL, "--prompt-file", &binary], "binary.txt"),
        (&["run", MODEL, "--prompt-file", nowhere], nowhere),
        (&["run", MODEL, PROMPT, "--ctx", "3"], "--ctx"),
        (&["run", MODEL, PROMPT, "--ctx", "4096"], "context"),
        (&["run", MODEL, &PROMPT.repeat(600)], "context"),
        (&["run", MODEL, PROMPT, "--memory", "1B"], "memory budget"),
        (&["run", MODEL, PROMPT, "--stats-json", nowhere], nowhere),
        (&["inspect", &no_gguf], "text.gguf"),
        (&["tokenize", "/no/such.gguf", "text"], "/no/such.gguf"),
        (&["tokenize", MODEL, "--file", nowhere], nowhere),
        (&["logits", MODEL, "--tokens", "1,2", "--out", nowhere], nowhere),
        (&["logits", MODEL, "--tokens", "1,x", "--out", nowhere], "--tokens"),
        (&["logits", MODEL, "--tokens", "9999", "--out", "/dev/null"], "token"),
        (&["perplexity", MODEL, "--file", &short], "short.txt"),
        (&["perplexity", MODEL, "--file", nowhere], nowhere),
    ];
    for (args, named) in cases {
        let sentence = refusal(&hotset(args));
        assert!(sentence.contains(named), "{args:?}: {sentence}");
    }
    let usage: &[(&[&str], &str)] = &[
        (&["run", MODEL, ""], "prompt"),
        (&["run", MODEL, PROMPT, "--prompt-file", &short], "--prompt-file"),
        (&["run", MODEL, PROMPT, "--temp", "-1"], "temperature"),
        (&["run", MODEL, PROMPT, "--top-p", "0"], "top_p"),
    ];
    for (args, named) in usage {
        let sentence = refusal_with(&hotset(args), 2);
        assert!(sentence.contains(named), "{args:?}: {sentence}");
    }
    for (variable, value) in [("HOTSET_ISA", "mmx"), ("HOTSET_INTERLEAVE", "perhaps")] {
        let sentence = refusal(&command(&["run", MODEL, PROMPT]).env(variable, value).output().unwrap());
        assert!(sentence.contains(variable) && sentence.contains(value), "{sentence}");
    }
}

/// The gates and ups of this model's experts have rows of whole chunks, its downs have not.
#[test]
fn interleaved_rows_change_no_bit() {
    let logits = |interleave: bool, memory: Option<u64>, io: Option<IoKind>, threads: usize| {
        let kernels = KernelChoice { isa: None, interleave: Some(interleave) };
        let (policy, threads, n_ctx) = (PolicyKind::Lru, Some(threads), Some(64));
        let process_bytes = Some(0);
        let options =
            Options { memory_bytes: memory, process_bytes, io, kernels, policy, threads, n_ctx, ..Options::default() };
        let mut session = Session::open(Gguf::open(Path::new(MODEL)).unwrap(), &options, &mut |_, _| {}).unwrap();
        assert_eq!(session.backend().contains("-interleaved"), interleave, "{}", session.backend());
        let mut all = Vec::new();
        for token in 0..40 {
            let logits = session.feed(&[token * 7 % 200], &mut |_| {}).unwrap();
            all.extend(logits.iter().map(|x| x.to_bits()));
        }
        (all, session.plan().smallest_bytes)
    };
    if !Kernels::detect().unwrap().can_interleave(GgmlType::Q4_0, 256) {
        return;
    }
    let (off, smallest) = logits(false, None, None, 2);
    // With a small budget, slots take other experts while some are interleaved; the file's pages stay as they are.
    let small = Some(smallest + (1 << 20));
    for (memory, io, threads) in [(None, None, 2), (small, None, 2), (None, Some(IoKind::Mapped), 2), (None, None, 1)] {
        assert_eq!(logits(true, memory, io, threads).0, off, "{memory:?} {io:?} {threads}");
    }
}

#[test]
fn unknown_values_are_wrong_usage() {
    let options = ["--policy", "--io", "--prefetch", "--scope", "--kv", "--memory", "--threads", "--batch", "--ctx"];
    for option in options {
        let output = hotset(&["run", MODEL, PROMPT, option, "much"]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{option}");
        assert!(stderr.contains(option) && stderr.contains("much") && !stderr.contains("panicked"), "{stderr}");
    }
    assert_eq!(hotset(&["run", MODEL, PROMPT, "--threads", "0"]).status.code(), Some(2));
}

/// The number of bytes that a refusal names.
fn named(sentence: &str) -> u64 {
    sentence.split("at least ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_budget_too_small_for_a_pool_a_layer_has_one_for_all_layers() {
    let refused = |more: &[&str]| {
        refusal(&hotset(&[&["run", MODEL, PROMPT, "-n", "8", "--prefetch", "off", "--memory", "1B"], more].concat()))
    };
    let (layer, global) = (refused(&["--scope", "layer"]), refused(&["--scope", "global"]));
    assert_eq!(refused(&[]), global);
    assert!(named(&global) < named(&layer), "{global}; {layer}");
    let run = |bytes: u64| {
        let args = ["-n", "8", "--seed", "0", "--prefetch", "off", "--memory", &bytes.to_string()];
        let (text, stats) = run_with_stats(&args);
        (text, stats["scope"].as_str().unwrap().to_owned(), stats["memory"]["smallest_bytes"].as_u64().unwrap())
    };
    let (text, scope, smallest) = run(named(&layer));
    assert_eq!((&*scope, smallest), ("layer", named(&global)));
    for bytes in [named(&layer) - 1, named(&global)] {
        assert_eq!(run(bytes), (text.clone(), "global".to_owned(), smallest));
    }
}

#[test]
fn the_smallest_budget_that_an_error_names_works() {
    for mode in [&["--io", "pread"][..], &["--io", "mapped", "--kv", "q8_0"], &["--scope", "global"]] {
        let args = [&["run", MODEL, PROMPT, "-n", "8", "--memory"][..], &["1B"], mode].concat();
        let sentence = refusal(&hotset(&args));
        let smallest = named(&sentence);
        let with = |bytes: u64| [&args[..6], &[&*bytes.to_string()], mode].concat().join("\n");
        let run = |bytes: u64| hotset(&with(bytes).split('\n').collect::<Vec<_>>());
        assert!(run(smallest).status.success(), "{mode:?}");
        assert!(refusal(&run(smallest - 1)).contains(&smallest.to_string()));
    }
}

#[test]
fn inspect_knows_the_bundled_model() {
    let report: Value = serde_json::from_str(&text(&["inspect", MODEL, "--json", "--ctx", "256"])).unwrap();
    let expected: HashMap<&str, u64> = HashMap::from([
        ("parameters", 25_555_584),
        ("expert_parameters", 22_020_096),
        ("active_parameters", 25_555_584 - 22_020_096 + 22_020_096 / 8),
        ("layers", 7),
        ("moe_layers", 7),
        ("experts", 32),
        ("experts_used", 4),
        ("context_train", 1024),
        ("vocabulary", 8192),
        ("experts_bytes", 22_020_096 / 32 * 18),
        ("token_working_set_bytes", 22_020_096 / 8 / 32 * 18),
        ("missing_bytes", 0),
    ]);
    for (key, value) in expected {
        assert_eq!(report[key], value, "{key}");
    }
    assert_eq!([&report["architecture"], &report["tokenizer"]], ["qwen3moe", "gpt2"]);
    assert_eq!(report["moe"][6]["types"], serde_json::json!(["Q4_0", "Q4_0", "Q4_0"]));
    let smallest = report["budget"]["smallest_bytes"].as_u64().unwrap().to_string();
    text(&["run", MODEL, PROMPT, "--ctx", "256", "-n", "4", "--memory", &smallest]);
    for words in ["25.6M in all, 22.0M in experts, 6.3M active", "32 a layer, 4 used", "smallest budget", "expert gate"]
    {
        assert!(text(&["inspect", MODEL]).contains(words), "{words}");
    }
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("part.gguf");
    fs::write(&part, &fs::read(MODEL).unwrap()[..1 << 20]).unwrap();
    assert!(text(&["inspect", part.to_str().unwrap()]).contains("INCOMPLETE"));
}

#[test]
fn tokens_go_in_and_logits_and_experts_come_out() {
    let ids = text(&["tokenize", MODEL, "--ids", PROMPT]);
    let n = ids.trim().split(',').count();
    assert_eq!(text(&["tokenize", MODEL, PROMPT]).lines().count(), n);
    assert_eq!(text(&["tokenize", MODEL, "--ids", "--no-bos", PROMPT]).trim(), ids.trim().split_once(',').unwrap().1);
    assert_eq!(text(&["tokenize", MODEL, "--no-bos", "--parse-special", "<|endoftext|>"]), "0\t\"<|endoftext|>\"\n");

    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let read = |path: &Path| (Npy::read(path).unwrap().shape.clone(), fs::read(path).unwrap());
    fs::write(at("ids"), &ids).unwrap();
    let (out, experts, ids_file) = (at("a.npy"), at("e.npy"), at("ids"));
    let paths = [&out, &experts, &ids_file].map(|p| p.to_str().unwrap());
    text(&["logits", MODEL, "--tokens", ids.trim(), "--out", paths[0], "--experts", paths[1]]);
    let (logits, routed) = (read(&out), read(&experts));
    assert_eq!((logits.0.clone(), routed.0.clone()), (vec![n, 8192], vec![7, n, 4]));
    let budget = budget(1);
    let small = ["--memory", &budget, "--batch", "2"];
    let args = ["logits", MODEL, "--tokens-file", paths[2], "--out", paths[0], "--experts", paths[1]];
    text(&[&args[..], &small].concat());
    assert!(read(&out) == logits && read(&experts) == routed, "a budget changes no bit");
}

#[test]
fn perplexity_is_the_same_in_any_budget() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    fs::write(&file, include_str!("cli.rs")).unwrap();
    let base = ["perplexity", MODEL, "--file", file.to_str().unwrap(), "--ctx", "64", "--chunks", "3"];
    let full = text(&base);
    assert!(full.starts_with("[1]") && full.contains(",[3]") && !full.contains("[4]"), "{full}");
    let value: f64 = full.split("PPL = ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(value > 1.0 && value < 8192.0, "{full}");
    assert_eq!(text(&[&base[..], &["--memory", &budget(3), "--batch", "5"]].concat()), full);
}

#[test]
fn a_reader_may_leave() {
    let mut child = command(&["run", MODEL, PROMPT, "-n", "200", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && !String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_text_and_prints_what_there_is() {
    let mut child = command(&["run", MODEL, "--no-echo", "-n", "1000", "--ignore-eos", "--threads", "1", "-v"])
        .env("HOTSET_ISA", "scalar")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(PROMPT.as_bytes()).unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 40]).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("decode") && stderr.contains("hit"), "{stderr}");
}

#[test]
fn texts_follow_a_schema_and_biases() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("s.json");
    let schema = r#"{"type": "array", "items": {"enum": ["king", "queen"]}, "minItems": 1, "maxItems": 2}"#;
    fs::write(&file, schema).unwrap();
    let run = |args: &[&str]| {
        text(
            &[&["run", MODEL, PROMPT, "-n", "120", "--no-echo", "-q", "--temp", "0", "--memory", &budget(30)], args]
                .concat(),
        )
    };
    let plain = run(&["-n", "4"]);
    let by_file = run(&["--json-schema", file.to_str().unwrap()]);
    assert_eq!(by_file, run(&["--json-schema", schema]));
    let value: Vec<String> = serde_json::from_str(&by_file).unwrap();
    assert!(matches!(value.len(), 1 | 2) && value.iter().all(|word| word == "king" || word == "queen"), "{by_file}");
    // The first token of the plain text, which then cannot come.
    let ids = text(&["tokenize", MODEL, &plain, "--ids", "--no-bos"]);
    let id = ids.trim().split(',').next().unwrap();
    let other = run(&["-n", "4", "--logit-bias", &format!("{id}=false")]);
    assert_ne!(other, plain);
    assert_eq!(other, run(&["-n", "4", "--logit-bias", &format!("{id}=-1000")]));
    for (option, value, words) in [
        ("--json-schema", "{\"not\": {}}", "--json-schema cannot be enforced: hotset does not know how to enforce not"),
        ("--json-schema", "{\"type\":", "--json-schema is no JSON"),
        ("--json-schema", "nowhere.json", "nowhere.json"),
        ("--logit-bias", "999999999=1", "logit_bias must be of tokens below"),
    ] {
        assert!(refusal(&hotset(&["run", MODEL, PROMPT, option, value])).contains(words), "{value}");
    }
    assert!(refusal_with(&hotset(&["run", MODEL, PROMPT, "--logit-bias", "5"]), 2).contains("expected a token's id"));
}
