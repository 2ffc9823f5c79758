//! What people type who come from other runtimes, and what they are told: which argument is a model, options with -1,
//! options that hotset lacks, prompt files from Windows, exit codes, budgets that are what they say.

mod common;

use std::{
    fs,
    io::Write,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");

fn command(args: &[&str]) -> Command {
    let mut command = common::program::command(env!("CARGO_BIN_EXE_hotset"));
    command.args(args).env_remove("HOTSET_MODEL").env_remove("COLUMNS").stdin(Stdio::null());
    command
}

fn hotset(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn piped(args: &[&str], input: &str) -> Output {
    let mut child = command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A run that fails at once may have closed its end.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn text(args: &[&str]) -> String {
    let output = hotset(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The one line of a refusal with this exit code.
fn refused(output: &Output, code: i32) -> String {
    let line = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{line}");
    assert!(line.starts_with("hotset: ") && line.trim_end().lines().count() == 1, "{line}");
    line
}

fn stats(args: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stats.json");
    text(&[&["run", MODEL, "Once upon a time", "--stats-json", file.to_str().unwrap()], args].concat());
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

#[test]
fn what_looks_like_a_model_is_one_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = "What is 2+2?";
    let directory = folder.path().to_str().unwrap();
    for model in ["qwen3:30b", "models/blobs/sha256-00ff", "Model.GGUF", "my model.gguf", directory] {
        for output in [piped(&["run", model, "-n", "8", "-q"], prompt), hotset(&["run", model, "-n", "8"])] {
            assert!(refused(&output, 1).contains(model), "{model}");
            assert!(output.stdout.is_empty());
        }
    }
    // What is piped in is the prompt, so that the argument is the model.
    for model in ["qwen3", "two words"] {
        let output = piped(&["run", model, "-n", "8", "-q"], prompt);
        assert!(refused(&output, 1).contains("cannot open"), "{model}");
    }
}

#[test]
fn a_prompt_for_the_bundled_model_says_that_it_answers() {
    for prompt in ["Once", "Once upon and/or after", "At 12:30 he"] {
        let output = hotset(&["run", prompt, "-n", "4", "--temp", "0"]);
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).starts_with(prompt));
        assert!(stderr(&output).contains("the bundled model answers"), "{}", stderr(&output));
    }
    let quiet = hotset(&["run", "qwen3", "-n", "4", "-q"]);
    assert!(
        stderr(&quiet).contains("there is no file \"qwen3\""),
        "one word may be a model's name: {}",
        stderr(&quiet)
    );
    assert!(hotset(&["run", "Once upon", "-n", "4", "-q"]).stderr.is_empty());
    let named = stderr(&hotset(&["run", MODEL, "Once", "-n", "4"]));
    assert!(!named.contains("bundled"), "{named}");
}

#[test]
fn options_of_llama_cpp_do_what_they_do_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    fs::write(&file, "Once upon a time\n").unwrap();
    let file = file.to_str().unwrap();
    let expected = text(&["run", MODEL, "Once upon a time", "--max-tokens", "12", "--seed", "7", "-q"]);
    for args in [
        &["-m", MODEL, "-p", "Once upon a time", "-n", "12", "-s", "7", "-c", "64", "-t", "1", "-b", "32"][..],
        &["-m", MODEL, "-f", file, "--n-predict", "12", "--seed", "7", "--ctx-size", "64", "--batch-size", "4"],
        &["--model", MODEL, "--file", file, "--predict", "12", "-s", "7", "-no-cnv", "-ngl", "0"],
        &["-m", MODEL, "Once upon a time", "-n", "12", "-s", "7", "--temperature", "0.8", "--top-k", "40"],
        &[MODEL, "-p", "Once upon a time", "-n", "99", "-n", "12", "-s", "1", "-s", "7", "--repeat-last-n", "-1"],
    ] {
        assert_eq!(text(&[&["run"], args, &["-q"]].concat()), expected, "{args:?}");
    }
    let escaped = text(&["run", MODEL, "-e", "-p", r"a\nb\t\x41", "-n", "1", "--temp", "0", "-q"]);
    assert!(escaped.starts_with("a\nb\tA"), "{escaped}");
    assert!(text(&["run", MODEL, "-p", r"a\nb", "-n", "1", "-q"]).starts_with(r"a\nb"), "-e turns them on");
    for (option, says) in [
        (&["-ngl", "99"][..], "no GPU code yet"),
        (&["--n-gpu-layers=4"], "no GPU code yet"),
        (&["-i"], "hotset chat is a conversation"),
        (&["-cnv"], "hotset chat is a conversation"),
        (&["-fa"], "leave it out"),
        (&["-ctk", "q8_0"], "--kv"),
        (&["-ctv", "q8_0"], "--kv"),
        (&["--mlock"], "--memory"),
        (&["--no-mmap"], "--io mapped"),
        (&["-ub", "64"], "--batch"),
        (&["-hf", "a/b"], "does not download"),
        (&["--mirostat", "2"], "--temp"),
    ] {
        let line = refused(&hotset(&[&["run", MODEL, "Once"], option].concat()), 2);
        assert!(line.contains(says), "{option:?}: {line}");
    }
    for verb in ["bench", "plan", "simulate", "report"] {
        assert!(refused(&hotset(&[verb, "x", "-o", "json"]), 2).contains("--json"));
    }
}

#[test]
fn minus_one_is_understood_or_answered() {
    let all = stats(&["-n", "-1", "-c", "40", "--ignore-eos"]);
    assert_eq!((&all["stop"], &all["n_ctx"]), (&"context".into(), &40.into()));
    assert_eq!(stats(&["-n", "1", "-c", "0"])["n_ctx"], 1024, "0: the model's own");
    assert!(stats(&["-n", "-1", "--ctx", "1024"])["generated_tokens"].as_u64().unwrap() > 0);
    text(&["run", MODEL, "Once", "-n", "4", "--repeat-last-n", "-1", "--top-k", "-1", "--repeat-penalty", "1.2", "-q"]);
    for (option, value) in
        [("--memory", "-1"), ("--seed", "-2"), ("-n", "-3"), ("--repeat-last-n", "-7"), ("--temp", "-1")]
    {
        let line = refused(&hotset(&["run", MODEL, "Once", option, value]), 2);
        assert!(line.contains(value), "{line}");
    }
}

#[test]
fn a_seed_is_drawn_and_named_and_repeats_the_run() {
    let seeds: Vec<u64> = (0..3).map(|_| stats(&["-n", "2"])["seed"].as_u64().unwrap()).collect();
    assert!(seeds[0] != seeds[1] || seeds[1] != seeds[2], "{seeds:?}");
    let output = hotset(&["run", MODEL, "Once upon a time", "-n", "24"]);
    let told = stderr(&output);
    let seed = told.split("seed ").nth(1).unwrap_or_else(|| panic!("{told}")).split_whitespace().next().unwrap();
    let again = text(&["run", MODEL, "Once upon a time", "-n", "24", "--seed", seed, "-q"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), again);
}

#[test]
fn prompt_files_of_windows_are_the_same_text() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, bytes: &[u8]| {
        let file = folder.path().join(name);
        fs::write(&file, bytes).unwrap();
        let by_name = text(&["run", MODEL, "-f", file.to_str().unwrap(), "-n", "6", "--temp", "0", "-q"]);
        let input =
            command(&["run", MODEL, "-n", "6", "--temp", "0", "-q"]).stdin(fs::File::open(&file).unwrap()).output();
        assert_eq!(String::from_utf8(input.unwrap().stdout).unwrap(), by_name);
        by_name
    };
    let plain = run("plain.txt", b"He said:\nthe king\n");
    assert_eq!(run("crlf.txt", b"He said:\r\nthe king\r\n"), plain);
    assert_eq!(run("bom.txt", b"\xef\xbb\xbfHe said:\nthe king\n"), plain);
    assert_eq!(run("both.txt", b"\xef\xbb\xbfHe said:\r\nthe king"), plain);
}

#[test]
fn sentences_read_as_people_write_them() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.txt");
    fs::write(&empty, "").unwrap();
    for (args, code, says) in [
        (&["run", MODEL, ""][..], 2, "hotset: the prompt is empty\n"),
        (&["run", MODEL, "-f", empty.to_str().unwrap()], 1, "empty.txt: the prompt is empty\n"),
        (&["run", MODEL, "Once", "--ctx", "100000"], 1, "context length 100000 exceeds the model's maximum of 1024\n"),
        (&["run", MODEL, "Once", "--memory", "8"], 2, "hotset: --memory 8: did you mean 8GiB?\n"),
        (&["run", MODEL, "Once", "--memory", "1.5"], 2, "did you mean 1.5GiB?\n"),
        (&["run", MODEL, "Once", "-p", "twice"], 2, "the prompt is given twice"),
        (&["run", MODEL, "Once", "--temp", "101"], 2, "temperature must be from 0 to 100, not 101\n"),
        (&["run", MODEL, "Once", "--threads", "0"], 2, "--threads 0: expected a number from 1 to 1024\n"),
        (&["run", MODEL, "Once", "--io", "page-cache", "--policy", "lru"], 2, "--policy means nothing with"),
        (&["run", MODEL, "Once", "--memory", "1MiB"], 1, "the memory budget of 1.0 MiB is too small"),
        (&["run", MODEL, "Once", "--nonsense"], 2, "hotset: --nonsense: there is no such option"),
        (&["run", MODEL, "Once", "upon"], 2, "upon is one argument too many"),
    ] {
        let line = refused(&hotset(args), code);
        assert!(line.contains(says), "{args:?}: {line}");
        assert!(!line.contains(", got "), "{line}");
    }
    let help = text(&["--help"]);
    for word in ["HOTSET_ISA", "HOTSET_INTERLEAVE", "HOTSET_MODEL", "XDG_CACHE_HOME", "COLUMNS", "Exit codes"] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn two_lines_follow_a_run_and_all_of_it_with_verbose() {
    let short = stderr(&hotset(&["run", MODEL, "Once upon a time", "-n", "8"]));
    let lines: Vec<_> = short.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].contains("tok/s") && lines[1].contains("% of expert reads from memory"),
        "{short}"
    );
    let long = stderr(&hotset(&["run", MODEL, "Once upon a time", "-n", "8", "-v"]));
    for word in ["budget ", "slots ", "decode ", "memory ", "ran ", "peak RSS"] {
        assert!(long.contains(word), "{word}: {long}");
    }
}

#[test]
fn nothing_is_wider_than_a_terminal_of_100_columns() {
    let narrow = |args: &[&str]| {
        let output = command(args).env("COLUMNS", "100").output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output);
        let named = |line: &&str| line.split_whitespace().all(|word| word.chars().count() < 60);
        let long: Vec<_> = text.lines().filter(named).filter(|line| line.chars().count() > 100).collect();
        assert!(long.is_empty(), "{long:#?}");
        text
    };
    let bench = narrow(&["bench", MODEL, "-p", "4", "-n", "3", "-r", "2", "--warmup", "2", "--probe", "0"]);
    assert!(bench.contains("tok/s") && bench.contains("more columns"), "{bench}");
    let plan = narrow(&["plan", MODEL, "--memory-rate", "30", "--drive", "80:1000"]);
    assert!(plan.starts_with("On this machine, with the rates"), "{plan}");
    narrow(&["run", MODEL, "Once upon a time", "-n", "8", "-v", "--no-echo", "--temp", "0"]);
    narrow(&["--help"]);
    narrow(&["run", "--help"]);
}

/// What is given as `--memory` is what the process stays within.
#[cfg(target_os = "linux")]
#[test]
fn a_budget_is_what_the_process_stays_within() {
    let output = hotset(&["run", MODEL, "Once upon a time", "-n", "60", "--memory", "4096B"]);
    let sentence = refused(&output, 1);
    let least = sentence.split("at least ").nth(1).unwrap();
    let (exact, human) = least.split_once(" bytes (").unwrap();
    let human = human.split(':').next().unwrap();
    let budgets = [1, 4, 16].map(|more| common::program::budget(env!("CARGO_BIN_EXE_hotset"), MODEL, more));
    for memory in [exact, human].into_iter().chain(budgets.iter().map(String::as_str)) {
        for more in [&[][..], &["--io", "mapped"], &["--io", "page-cache"], &["-t", "1", "--prefetch", "off"]] {
            let args = [&["-n", "60", "--ignore-eos", "--memory", memory], more].concat();
            let number = |stats: &Value, key: &str| stats[key].as_u64().unwrap();
            // The page cache's slots are fewer, the mapped ones lie in whole pages: their smallest budgets differ.
            if more.contains(&"--io") && (memory == exact || memory == human) {
                continue;
            }
            let stats = stats(&args);
            let (peak, budget) = (number(&stats, "peak_rss_bytes"), number(&stats, "budget_bytes"));
            assert!(peak <= budget, "{memory} {more:?}: {peak} of {budget}: {}", stats["memory"]);
        }
    }
}

#[test]
fn completions_and_manual_pages_know_the_commands() {
    let script = text(&["completions", "bash"]);
    assert!(script.contains("--memory") && script.contains("simulate"), "{script}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    text(&["man", path]);
    let page = fs::read_to_string(folder.path().join("hotset-run.1")).unwrap();
    assert!(page.contains(".TH hotset-run 1") && page.contains("\\-\\-memory"), "{page}");
    assert!(folder.path().join("hotset.1").is_file());
    let again = hotset(&["man", path]);
    assert_eq!(again.status.code(), Some(1), "nothing is replaced without --force");
    text(&["man", path, "--force"]);
}

#[test]
fn the_long_version_names_the_cpu_s_instruction_sets() {
    let long = text(&["--version"]);
    assert!(long.starts_with(concat!("hotset ", env!("CARGO_PKG_VERSION"))) && long.contains("scalar"), "{long}");
    assert_eq!(text(&["-V"]), concat!("hotset ", env!("CARGO_PKG_VERSION"), "\n"));
}
