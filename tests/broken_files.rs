//! The program on what is not there, not whole, not a file or without an end: one sentence and status 1, in good time; and
//! killed at any moment, it has lost nothing.

#![cfg(unix)]

mod common;

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use common::dice::Dice;
use hotset::{gguf::Gguf, io::IoKind, trace::file::TraceReader};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");

/// A program that does not end in this time hangs, also one without optimisation on a machine that others use.
const PATIENCE: Duration = Duration::from_secs(300);

fn command(args: &[&OsStr]) -> Command {
    let mut command = common::program::command(env!("CARGO_BIN_EXE_hotset"));
    command.args(args).env_remove("HOTSET_MODEL").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn args<const N: usize>(args: [&dyn AsRef<OsStr>; N]) -> [&OsStr; N] {
    args.map(AsRef::as_ref)
}

/// What it says on standard error until it ends, and how.
fn end(mut child: Child) -> (ExitStatus, String) {
    let mut stderr = child.stderr.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    // Nobody reads it, and a full pipe would stop the program.
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).map(|_| said)
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > PATIENCE => {
                child.kill().unwrap();
                panic!("hangs");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    (status, said.join().unwrap().unwrap())
}

/// The sentence with which a command fails.
#[track_caller]
fn refusal(mut command: Command) -> String {
    let (status, said) = end(command.spawn().unwrap());
    assert_eq!(status.code(), Some(1), "{status}: {said}");
    let mut sentences = said.lines().filter(|line| line.starts_with("hotset: "));
    let sentence = sentences.next().unwrap_or_else(|| panic!("{said}")).to_owned();
    assert_eq!(sentences.next(), None, "{said}");
    assert!(!said.contains("panicked"), "{said}");
    sentence
}

/// A folder with a pipe that nobody writes into, and a copy of the bundled model.
struct Folder {
    folder: tempfile::TempDir,
    pipe: PathBuf,
    model: PathBuf,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, model) = (folder.path().join("pipe"), folder.path().join("model.gguf"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        fs::copy(MODEL, &model).unwrap();
        Self { folder, pipe, model }
    }
}

#[test]
fn a_pipe_where_a_file_is_needed_is_refused_and_not_waited_for() {
    let Folder { folder, pipe, .. } = Folder::new();
    let numpy = folder.path().join("pipe.npy");
    fs::rename(&pipe, &numpy).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let out = folder.path().join("out");
    for (args, path) in [
        (&args([&"run", &pipe, &"x"])[..], &pipe),
        (&args([&"inspect", &pipe]), &pipe),
        (&args([&"plan", &pipe]), &pipe),
        (&args([&"bench", &pipe]), &pipe),
        (&args([&"tokenize", &pipe, &"x"]), &pipe),
        (&args([&"repack", &pipe, &out]), &pipe),
        (&args([&"run", &MODEL, &"x", &"-n", &"1", &"--pin", &pipe]), &pipe),
        (&args([&"run", &MODEL, &"x", &"-n", &"1", &"--warm", &pipe]), &pipe),
        (&args([&"trace", &"stats", &pipe]), &pipe),
        (&args([&"trace", &"import", &pipe, &"-o", &out]), &pipe),
        (&args([&"trace", &"import", &numpy, &"-o", &out]), &numpy),
        (&args([&"simulate", &pipe]), &pipe),
        (&args([&"report", &pipe]), &pipe),
        (&args([&"report", &"--run", &pipe]), &pipe),
    ] {
        let text = refusal(command(args));
        let expected = format!("{}: cannot open: it is a pipe, not a regular file", path.display());
        assert!(text.ends_with(&expected), "{args:?}: {text}");
        assert!(!out.exists(), "{args:?}");
    }
}

/// What the last run left for a warm start is a help: broken, it is as good as none.
#[test]
fn a_pipe_in_the_cache_folder_is_passed_over() {
    let folder = Folder::new();
    let cache = folder.folder.path();
    let run = || {
        let mut command = command(&args([&"run", &folder.model, &"x", &"-n", &"2", &"--seed", &"1", &"-q"]));
        end(command.env("XDG_CACHE_HOME", cache).spawn().unwrap()).0
    };
    assert!(run().success());
    let hot = fs::read_dir(cache.join("hotset/hot")).unwrap().next().unwrap().unwrap().path();
    for path in [hot, cache.join("hotset/drives.json")] {
        let _ = fs::remove_file(&path);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(run().success(), "{}", path.display());
    }
}

#[test]
fn a_prompt_may_come_through_a_pipe() {
    let folder = Folder::new();
    let run = |file: &Path| {
        let mut command =
            command(&args([&"run", &MODEL, &"--prompt-file", &file, &"-n", &"4", &"--seed", &"1", &"-q"]));
        let child = command.spawn().unwrap();
        if file == folder.pipe {
            fs::write(file, "Once upon").unwrap();
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    };
    let file = folder.folder.path().join("prompt.txt");
    fs::write(&file, "Once upon").unwrap();
    assert_eq!(run(&folder.pipe), run(&file));
}

#[test]
fn texts_without_an_end_are_refused_by_their_length() {
    let endless = Path::new("/dev/zero");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for args in [
        &args([&"run", &MODEL, &"--prompt-file", &endless])[..],
        &args([&"run", &MODEL, &"--prompt-file", &"-"]),
        &args([&"run", &MODEL]),
        &args([&"tokenize", &MODEL]),
        &args([&"tokenize", &MODEL, &"--file", &endless]),
        &args([&"perplexity", &MODEL, &"--file", &endless]),
        &args([&"trace", &MODEL, &"--prompts", &endless, &"-o", &out]),
        &args([&"bench", &MODEL, &"--text", &endless]),
        &args([&"logits", &MODEL, &"--tokens-file", &endless, &"--out", &out]),
    ] {
        let mut command = command(args);
        command.stdin(File::open(endless).unwrap());
        let text = refusal(command);
        assert!(text.contains(": cannot read: it is longer than "), "{args:?}: {text}");
        assert!(!out.exists(), "{args:?}");
    }
    // One word of the size that a context cannot hold: not cut into tokens to find that out.
    let word = folder.path().join("word.txt");
    fs::write(&word, vec![b'a'; 10_000_000]).unwrap();
    let text = refusal(command(&args([&"run", &MODEL, &"--prompt-file", &word])));
    assert!(text.contains("word.txt: cannot read: it is longer than ") && text.contains(" tokens can hold"), "{text}");
}

/// Downloads that are under way, of the bundled model.
#[test]
fn a_file_that_ends_inside_its_header_may_still_be_downloading() {
    let folder = Folder::new();
    let whole = fs::read(MODEL).unwrap();
    for len in [1, 24, 1000, 100_000] {
        fs::write(&folder.model, &whole[..len]).unwrap();
        for args in [
            &args([&"inspect", &folder.model])[..],
            &args([&"plan", &folder.model]),
            &args([&"run", &folder.model, &"x"]),
            &args([&"tokenize", &folder.model, &"x"]),
        ] {
            let text = refusal(command(args));
            let says = format!("the file ends inside its header, after {len} bytes (truncated, or still downloading?)");
            assert!(text.contains(&says), "{args:?} {len}: {text}");
        }
    }
    fs::write(&folder.model, "").unwrap();
    assert!(refusal(command(&args([&"inspect", &folder.model]))).ends_with("cannot open: the file is empty"));
}

/// A run of so many tokens, once the first of them are out. Each takes at least a row of the embedding from the file.
fn running(model: &Path, io: IoKind, tokens: &str) -> Child {
    let name = io.name();
    let args = args([&"run", &model, &"Once", &"-n", &tokens, &"--seed", &"1", &"--io", &name, &"-q"]);
    let mut child = command(&args).spawn().unwrap();
    let stdout = child.stdout.as_mut().unwrap();
    let mut first = [0; 8];
    stdout.read_exact(&mut first).unwrap();
    child
}

#[test]
fn a_file_cut_short_under_a_run_ends_it_with_one_sentence_on_every_read_path() {
    for &io in common::read_paths() {
        let folder = Folder::new();
        let child = running(&folder.model, io, "900");
        OpenOptions::new().write(true).open(&folder.model).unwrap().set_len(0).unwrap();
        let (status, said) = end(child);
        assert_eq!(status.code(), Some(1), "{io:?}: {status}: {said}");
        assert!(said.starts_with("hotset: ") && said.contains("model.gguf: "), "{io:?}: {said}");
        assert!(said.contains("the end of the file") || said.contains("the file ends there"), "{io:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{io:?}: {said}");
    }
}

#[test]
fn a_file_that_vanishes_under_a_run_is_read_to_the_end() {
    for &io in common::read_paths() {
        let folder = Folder::new();
        let child = running(&folder.model, io, "8");
        fs::remove_file(&folder.model).unwrap();
        let (status, said) = end(child);
        assert!(status.success(), "{io:?}: {status}: {said}");
        let text = refusal(command(&args([&"run", &folder.model, &"x"])));
        assert!(text.contains("model.gguf: cannot open: No such file"), "{text}");
    }
}

/// Killed at any moment, a verb has not touched its input, and what it wrote is whole, absent, or a trace with a sound start.
#[test]
fn what_is_killed_has_lost_nothing() {
    let folder = Folder::new();
    let model = fs::read(&folder.model).unwrap();
    let text = folder.folder.path().join("text.txt");
    fs::write(&text, "Once upon a time there was a fox.").unwrap();
    let [repacked, trace] = ["repacked.gguf", "run.trace"].map(|name| folder.folder.path().join(name));
    let mut dice = Dice(33);
    for _ in 0..8 {
        for args in [
            &args([&"run", &folder.model, &"Once", &"-n", &"100", &"-q"])[..],
            &args([&"repack", &folder.model, &repacked]),
            &args([&"trace", &folder.model, &"--prompts", &text, &"-o", &trace, &"-n", &"50"]),
        ] {
            let mut child = command(args).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(dice.next() % 400));
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(fs::read(&folder.model).unwrap() == model, "{args:?}");
            if repacked.exists() {
                Gguf::open(&repacked).unwrap();
                fs::remove_file(&repacked).unwrap();
            }
            if trace.exists() {
                // Killed before the header was out, it is no trace yet.
                if let Ok(mut trace) = TraceReader::open(&trace) {
                    while trace.next_event().unwrap().is_some() {}
                }
                fs::remove_file(&trace).unwrap();
            }
        }
    }
    for args in [
        &args([&"run", &folder.model, &"Once", &"-n", &"2", &"-q"])[..],
        &args([&"repack", &folder.model, &repacked]),
        &args([&"trace", &folder.model, &"--prompts", &text, &"-o", &trace, &"-n", &"2"]),
    ] {
        let (status, said) = end(command(args).spawn().unwrap());
        assert!(status.success(), "{args:?}: {said}");
    }
}

/// A header needs no room for the whole file, which batch systems do not grant.
#[cfg(target_os = "linux")]
#[test]
fn a_header_is_read_within_a_limit_on_address_space() {
    let child = common::program::command(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_opens_a_large_file_in_little_address_space", "--nocapture"])
        .env(LIMITED, "1")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

#[cfg(target_os = "linux")]
const LIMITED: &str = "HOTSET_TEST_LIMITED";

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the other half of a_header_is_read_within_a_limit_on_address_space"]
fn child_opens_a_large_file_in_little_address_space() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    if std::env::var_os(LIMITED).is_none() {
        return;
    }
    let (folder, gib) = (tempfile::tempdir().unwrap(), 1u64 << 30);
    let path = folder.path().join("large.gguf");
    let raw = common::samples::Raw::header(1, 0).tensor("pad", &[3 * gib], 1, 0).data(32);
    fs::write(&path, raw.0).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(7 * gib).unwrap();
    setrlimit(Resource::As, Rlimit { current: Some(3 * gib), maximum: Some(3 * gib) }).unwrap();
    // It is in force.
    // SAFETY: the mapping is not used.
    assert!(unsafe { memmap2::Mmap::map(&File::open(&path).unwrap()) }.is_err());
    assert_eq!(Gguf::open(&path).unwrap().tensors()[0].bytes, Some(6 * gib));
}
