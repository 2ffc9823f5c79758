//! What every verb does with the files it writes: no input, no device and no link is ever replaced, nothing half-done stays.
#![cfg(unix)]

mod common;

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use common::{dice::Dice, routing, tiny::Tiny};
use hotset::npy::Npy;
use rustix::process::{Pid, Signal, kill_process};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");
const PROGRAM: &str = env!("CARGO_BIN_EXE_hotset");

fn command(folder: &Path, args: &str) -> Command {
    let mut command = common::program::command(PROGRAM);
    command.args(args.split_whitespace()).current_dir(folder).env_remove("HOTSET_MODEL").stdin(Stdio::null());
    command
}

fn hotset(folder: &Path, args: &str) -> Output {
    command(folder, args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn succeeds(output: &Output, what: &str) {
    assert!(output.status.success(), "{what}: {}", stderr(output));
}

/// The one sentence of a refusal.
fn refusal(output: &Output, what: &str) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{what}: {text}");
    assert!(text.starts_with("hotset: ") && text.trim_end().lines().count() == 1, "{what}: {text}");
    text
}

/// What stands in a folder, with its bytes.
fn all(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()))
        .collect();
    all.sort();
    all
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A made-up trace.
fn trace(path: &Path, tokens: usize) {
    let shape = routing::Shape { layers: 2, experts: 8, used: 2, tokens };
    routing::write(path, routing::header(shape), &routing::decoding(&mut Dice(7), shape));
}

/// A folder with an input of each kind: a model, a split one, a prompt, tokens, a trace, a list of experts, a run's record.
fn inputs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::copy(MODEL, at("m.gguf")).unwrap();
    Tiny::new("qwen3moe").write_split(folder.path(), 3);
    fs::write(at("prompt"), "Once upon a time").unwrap();
    fs::write(at("tokens"), "1 2 3").unwrap();
    fs::write(at("list"), "0 1\n").unwrap();
    trace(&at("t.hottrace"), 20);
    let made = "trace export t.hottrace -o t.npz;run m.gguf --prompt-file prompt -n 2 -q --stats-json record";
    made.split(';').for_each(|args| succeeds(&hotset(folder.path(), args), args));
    folder
}

/// Each output of each verb (OUT), and the inputs that it reads beside it.
const WRITERS: &[(&str, &[&str])] = &[
    ("run m.gguf --prompt-file prompt -n 2 -q --pin list --stats-json OUT", &["m.gguf", "prompt", "list"]),
    ("run m.gguf --prompt-file prompt -n 2 -q --warm list --save-hot OUT", &["m.gguf", "prompt", "list"]),
    ("logits m.gguf --tokens-file tokens --out OUT", &["m.gguf", "tokens"]),
    ("logits m.gguf --tokens-file tokens --out a.npy --experts OUT", &["m.gguf", "tokens"]),
    ("trace m.gguf --prompts prompt -n 2 -o OUT", &["m.gguf", "prompt"]),
    ("trace import t.npz -o OUT", &["t.npz"]),
    ("trace export t.hottrace -o OUT", &["t.hottrace"]),
    ("trace hot t.hottrace -o OUT", &["t.hottrace"]),
    ("report t.hottrace --slots 4 --policy lru --run record --html OUT", &["t.hottrace", "record"]),
    ("repack m.gguf OUT", &["m.gguf"]),
    (
        "repack model-00001-of-00003.gguf OUT",
        &["model-00001-of-00003.gguf", "model-00002-of-00003.gguf", "model-00003-of-00003.gguf"],
    ),
];

/// The verbs that replace a file without being told to, as their help says.
fn replaces(args: &str) -> bool {
    args.contains("--stats-json OUT") || args.starts_with("logits")
}

fn forced(args: &str) -> String {
    if replaces(args) { args.to_owned() } else { format!("{args} --force") }
}

#[test]
fn no_output_is_an_input() {
    let folder = inputs();
    let at = |name: &str| folder.path().join(name);
    let before = all(folder.path());
    for (args, inputs) in WRITERS {
        for input in *inputs {
            symlink(input, at("link")).unwrap();
            symlink("link", at("link2")).unwrap();
            fs::hard_link(at(input), at("twin")).unwrap();
            let absolute = at(input);
            let descriptor = "/dev/fd/0";
            for name in [input, "link2", "twin", absolute.to_str().unwrap(), descriptor] {
                let mut command = command(folder.path(), &forced(args).replace("OUT", name));
                if name == descriptor {
                    command.stdin(File::open(at(input)).unwrap());
                }
                let said = refusal(&command.output().unwrap(), args);
                assert!(said.contains("which this run reads") && said.contains(name), "{args}: {said}");
            }
            for name in ["link", "link2", "twin"] {
                fs::remove_file(at(name)).unwrap();
            }
        }
    }
    assert!(all(folder.path()) == before);
}

#[test]
fn what_comes_by_standard_input_is_an_input_too() {
    let folder = inputs();
    let prompt = folder.path().join("prompt");
    let mut command = command(folder.path(), "run m.gguf -n 2 -q --stats-json prompt");
    let said = refusal(&command.stdin(File::open(&prompt).unwrap()).output().unwrap(), "run");
    assert!(said.contains("it is standard input"), "{said}");
    assert_eq!(fs::read_to_string(prompt).unwrap(), "Once upon a time");
}

#[test]
fn no_two_outputs_are_one_file() {
    let folder = inputs();
    symlink("out", folder.path().join("link")).unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    let both = [
        "run m.gguf --prompt-file prompt -n 2 -q --stats-json out --save-hot OUT",
        "logits m.gguf --tokens 1,2 --out out --experts OUT",
    ];
    for there in [false, true] {
        for args in both {
            for second in ["out", "./out", "sub/../out", "link"] {
                let said = refusal(&hotset(folder.path(), &args.replace("OUT", second)), args);
                assert!(said.contains("it already takes what") && said.contains(second), "{said}");
            }
        }
        if !there {
            assert!(!folder.path().join("out").exists());
            fs::write(folder.path().join("out"), "old").unwrap();
        }
    }
    assert_eq!(fs::read(folder.path().join("out")).unwrap(), b"old");
    let descriptors = |args: &str| {
        let line = format!("exec {PROGRAM} {args} 3>&1 | cat");
        Command::new("sh").args(["-c", &line]).current_dir(folder.path()).stdin(Stdio::null()).output().unwrap()
    };
    for args in ["run m.gguf Hello -n 2 --stats-json", "report t.hottrace --slots 4 --policy lru --json --html"] {
        for stdout in ["-", "/dev/stdout", "/dev/fd/3"] {
            let output = descriptors(&format!("{args} {stdout}"));
            assert!(stderr(&output).contains("cannot take what"), "{args} {stdout}: {}", stderr(&output));
            assert!(output.stdout.is_empty(), "{args} {stdout}");
        }
    }
}

#[test]
fn a_file_that_is_there_stays_unless_forced_and_keeps_its_mode() {
    let folder = inputs();
    let out = folder.path().join("out.csv");
    for (args, _) in WRITERS {
        let line = args.replace("OUT", "out.csv");
        succeeds(&hotset(folder.path(), &line), &line);
        assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7777, 0o644 & !umask(), "{line}");
        fs::write(&out, "old").unwrap();
        fs::set_permissions(&out, PermissionsExt::from_mode(0o640)).unwrap();
        if !replaces(args) {
            let said = refusal(&hotset(folder.path(), &line), &line);
            assert_eq!(said, "hotset: out.csv already exists (use --force to replace it)\n", "{line}");
            assert_eq!(fs::read(&out).unwrap(), b"old");
        }
        // By a link, which stays.
        symlink("out.csv", folder.path().join("link.csv")).unwrap();
        succeeds(&hotset(folder.path(), &forced(args).replace("OUT", "link.csv")), &line);
        let meta = out.symlink_metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, folder.path().join("link.csv").is_symlink()), (0o640, true), "{line}");
        assert_ne!(fs::read(&out).unwrap(), b"old", "{line}");
        // One that leads nowhere makes what it names.
        fs::remove_file(&out).unwrap();
        succeeds(&hotset(folder.path(), &args.replace("OUT", "link.csv")), &line);
        assert!(out.symlink_metadata().unwrap().is_file() && folder.path().join("link.csv").is_symlink(), "{line}");
        fs::remove_file(&out).unwrap();
        fs::remove_file(folder.path().join("link.csv")).unwrap();
    }
    assert!(names(folder.path()).iter().all(|name| !name.starts_with('.')));
}

fn umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(mask);
    mask.bits()
}

/// A device of our own, never the machine's; `None` where only root may make one and we are not.
fn device(path: &Path, minor: u32) -> Option<()> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let made = mknodat(CWD, path, FileType::CharacterDevice, Mode::from(0o666), makedev(1, minor));
    if made.is_err() || File::options().write(true).open(path).is_err() {
        common::not_tested!("devices, which cannot be made or opened here");
        return None;
    }
    Some(())
}

#[test]
fn devices_and_pipes_are_written_and_stay_what_they_are() {
    let folder = inputs();
    let at = |name: &str| folder.path().join(name);
    let has_devices = device(&at("null"), 3).and_then(|()| device(&at("full"), 7)).is_some();
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for (args, _) in WRITERS {
        let pipe = at("pipe");
        let reader = thread::spawn(move || fs::read(pipe).unwrap());
        succeeds(&hotset(folder.path(), &args.replace("OUT", "pipe")), args);
        assert!(!reader.join().unwrap().is_empty(), "{args}");
        assert!(at("pipe").metadata().unwrap().file_type().is_fifo(), "{args}");
        if has_devices {
            succeeds(&hotset(folder.path(), &args.replace("OUT", "null")), args);
            let said = refusal(&hotset(folder.path(), &args.replace("OUT", "full")), args);
            assert!(said.contains("full: cannot write: No space left on device"), "{said}");
            for name in ["null", "full"] {
                assert!(at(name).metadata().unwrap().file_type().is_char_device(), "{args}");
            }
        }
    }
    if has_devices {
        // What nobody keeps, everybody may write to.
        let both = "run m.gguf Hello -n 2 -q --stats-json null --save-hot null";
        succeeds(&hotset(folder.path(), both), both);
    }
    for (args, _) in WRITERS {
        let said = refusal(&hotset(folder.path(), &args.replace("OUT", ".")), args);
        assert!(said.contains(".: is a directory"), "{said}");
        let said = refusal(&hotset(folder.path(), &args.replace("OUT", "none/out.csv")), args);
        assert!(said.contains("none/out.csv: cannot create: No such file or directory"), "{said}");
        assert!(!said.contains("at path"), "{said}");
    }
}

#[test]
fn standard_output_and_descriptors_take_files() {
    let folder = inputs();
    let logits = "logits m.gguf --tokens-file tokens --out";
    succeeds(&hotset(folder.path(), &format!("{logits} a.npy")), logits);
    let expected = fs::read(folder.path().join("a.npy")).unwrap();
    let shell = |line: &str| {
        let output = Command::new("sh").args(["-c", line]).current_dir(folder.path()).output().unwrap();
        succeeds(&output, line);
        output.stdout
    };
    for name in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        assert!(shell(&format!("{PROGRAM} {logits} {name} | cat")) == expected, "{name}");
        shell(&format!("{{ echo before; {PROGRAM} {logits} {name}; echo after; }} > out"));
        let whole = [b"before\n", &expected[..], b"after\n"].concat();
        assert!(fs::read(folder.path().join("out")).unwrap() == whole, "{name}");
        shell(&format!("echo before > out; {PROGRAM} {logits} {name} >> out"));
        assert!(fs::read(folder.path().join("out")).unwrap() == whole[..whole.len() - 6], "{name}");
    }
    assert!(shell(&format!("{PROGRAM} {logits} /dev/fd/3 3>&1 | cat")) == expected);
    shell(&format!("{PROGRAM} {logits} /dev/fd/3 3>out"));
    assert!(fs::read(folder.path().join("out")).unwrap() == expected);
    let text = shell(&format!("{PROGRAM} run m.gguf Hello -n 2 --seed 1 -q --stats-json /dev/fd/3 3>out"));
    assert!(text.starts_with(b"Hello"));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(folder.path().join("out")).unwrap()).unwrap();
    assert_eq!(json["generated_tokens"], 2);
    // A reader that has left is no error.
    shell(&format!("{PROGRAM} trace m.gguf --prompts prompt -n 2 -o - | true"));
    let same = shell(&format!("{PROGRAM} trace export t.hottrace -o - | head -n 1"));
    assert_eq!(same, b"token,prompt,position,phase,layer,rank,expert,weight\n");
    let packed = shell(&format!("{PROGRAM} repack m.gguf -"));
    shell(&format!("{PROGRAM} repack m.gguf packed"));
    assert!(packed == fs::read(folder.path().join("packed")).unwrap());
    let experts = shell(&format!("{PROGRAM} logits m.gguf --tokens 1,2 --out null.npy --experts -"));
    assert_eq!(Npy::parse(Path::new("-"), &experts).unwrap().shape, [7, 2, 4]);
}

/// A run that will not end by itself soon, and writes OUT in the folder `out`.
const LONG: &[&str] = &[
    "run m.gguf Hello -n 900 --ignore-eos -q --threads 1 --stats-json out/file --save-hot out/hot",
    "logits m.gguf --tokens-file many --threads 1 --out out/file --experts out/experts",
    "trace export long.hottrace -o out/file.csv",
    "repack m.gguf out/file",
];

/// A folder with what [`LONG`] reads.
fn long_inputs() -> tempfile::TempDir {
    let folder = inputs();
    fs::write(folder.path().join("many"), "1 2 3 4 5 6 7 8 ".repeat(120)).unwrap();
    trace(&folder.path().join("long.hottrace"), 60_000);
    fs::create_dir(folder.path().join("out")).unwrap();
    folder
}

#[cfg(target_os = "linux")]
#[test]
fn whatever_ends_a_run_leaves_a_whole_file_or_none() {
    let folder = long_inputs();
    let out = folder.path().join("out");
    let mut ended = 0;
    for args in LONG {
        for (i, signal) in
            [Signal::KILL, Signal::INT, Signal::TERM, Signal::HUP].into_iter().cycle().take(8).enumerate()
        {
            fs::write(out.join("file"), "old").unwrap();
            let mut command = command(folder.path(), &forced_long(args));
            let mut child =
                command.env("HOTSET_ISA", "scalar").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            thread::sleep(Duration::from_millis(40 * i as u64 + 20));
            let _ = kill_process(Pid::from_child(&child), signal);
            let status = child.wait().unwrap();
            ended += usize::from(!status.success());
            // What the run was told to end for, it writes.
            let bytes = fs::read(out.join("file")).unwrap();
            assert!(status.code().is_some() || bytes == b"old", "{args} {signal:?}: {}", bytes.len());
            assert!(!bytes.is_empty());
            let known = |name: &String| ["file", "file.csv", "hot", "experts"].contains(&name.as_str());
            assert!(names(&out).iter().all(known), "{args} {signal:?}: {:?}", names(&out));
            names(&out).iter().for_each(|name| fs::remove_file(out.join(name)).unwrap());
        }
    }
    assert!(ended > 8, "only {ended} of 32 were ended by a signal");
}

fn forced_long(args: &str) -> String {
    if args.starts_with("logits") { args.to_owned() } else { format!("{args} --force") }
}

/// Runs a script as root in a world of mounts of its own; `None`, said aloud, where that is not allowed.
#[cfg(target_os = "linux")]
fn in_own_mounts(folder: &Path, script: &str) -> Option<Output> {
    let unshare = |script: &str| {
        Command::new("unshare").args(["-m", "sh", "-c", script]).current_dir(folder).stdin(Stdio::null()).output()
    };
    if !unshare("mount -t tmpfs none out").is_ok_and(|output| output.status.success()) {
        common::not_tested!("mounts are not allowed here");
        return None;
    }
    Some(unshare(script).unwrap())
}

/// Without /proc a file that has no name cannot get one, as on file systems that have none.
#[cfg(target_os = "linux")]
#[test]
fn signals_remove_drafts_that_have_names() {
    let folder = long_inputs();
    let out = folder.path().join("out");
    for args in LONG {
        // Not SIGINT, which a shell's background jobs ignore.
        for signal in ["TERM", "HUP"] {
            let script = format!(
                "mount -t tmpfs none /proc; HOTSET_ISA=scalar {PROGRAM} {} > /dev/null 2>&1 & \
                 while ! ls out/.hotset-* > /dev/null 2>&1; do kill -0 $! || exit 9; done; \
                 kill -{signal} $!; wait $!; ls -A out",
                forced_long(args)
            );
            let Some(output) = in_own_mounts(folder.path(), &script) else { return };
            let (left, told) = (String::from_utf8(output.stdout.clone()).unwrap(), stderr(&output));
            assert!(output.status.success() && !left.contains(".hotset-"), "{args} {signal}: {left} {told}");
            names(&out).iter().for_each(|name| fs::remove_file(out.join(name)).unwrap());
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_drive_leaves_nothing_under_the_name() {
    let folder = long_inputs();
    let big = [
        "logits m.gguf --tokens-file tokens --out out/file",
        "trace export long.hottrace -o out/file.csv",
        "trace import t.npz -o out/file",
        "repack m.gguf out/file",
        "run m.gguf Hello -n 2 -q --stats-json out/file",
        "run m.gguf Hello -n 2 -q --save-hot out/file",
        "trace m.gguf --prompts prompt -n 2 -o out/file",
        "trace hot t.hottrace -o out/file",
        "report t.hottrace --slots 4 --policy lru --html out/file",
    ];
    for args in big {
        // Full but for nothing.
        let script = format!(
            "mount -t tmpfs -o size=16k none out && {{ head -c 16384 /dev/zero > out/other; {PROGRAM} {args}; \
             echo \"code $?\"; ls -A out; }}"
        );
        let Some(output) = in_own_mounts(folder.path(), &script) else { return };
        let (left, told) = (String::from_utf8(output.stdout.clone()).unwrap(), stderr(&output));
        assert!(left.ends_with("code 1\nother\n"), "{args}: {left} {told}");
        assert!(told.contains("No space left on device") && told.contains("out/file"), "{args}: {told}");
        assert_eq!(told.trim_end().lines().count(), 1, "{args}: {told}");
    }
    // And what is there stays.
    let script = format!(
        "mount -t tmpfs -o size=16k none out && {{ head -c 16384 /dev/zero > out/file; {PROGRAM} {} ; wc -c out/file; ls -A out; }}",
        big[0]
    );
    let output = in_own_mounts(folder.path(), &script).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "16384 out/file\nfile\n");
}

/// A file that something is mounted on cannot be replaced by another: it is written.
#[cfg(target_os = "linux")]
#[test]
fn what_is_mounted_is_written_over() {
    let folder = long_inputs();
    fs::write(folder.path().join("here"), "a longer text than the list of experts will be ".repeat(100)).unwrap();
    let script = format!(
        "touch there; mount --bind here there && {PROGRAM} trace hot t.hottrace -o there --force && \
         {PROGRAM} trace hot t.hottrace -o - | cmp - here"
    );
    let Some(output) = in_own_mounts(folder.path(), &script) else { return };
    succeeds(&output, &script);
}

/// Names with what a terminal obeys: ESC, CSI as one character, BEL, a line of its own, letters backwards.
const EVIL: &str = "x\x1b]0;evil\x07\x1b[31m\u{9b}2J\n\r\u{202e}y";

/// No byte that a terminal obeys, but the ends of lines.
fn is_harmless(text: &str) -> bool {
    text.chars().all(|c| c == '\n' || (!c.is_control() && c != '\u{202e}'))
}

#[test]
fn names_from_files_reach_no_terminal_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let mut named = Tiny::new("qwen3moe");
    for key in ["general.name", "tokenizer.ggml.model", "tokenizer.ggml.pre"] {
        named.set(key, EVIL);
    }
    let mut arch = named.clone();
    arch.set("general.architecture", EVIL);
    let mut tensor = named.clone();
    tensor.tensor("output.weight").name = EVIL.to_owned();
    let mut key = named.clone();
    key.set("qwen3moe.rope.scaling.type", EVIL);
    let file = format!("{}.gguf", EVIL.replace('\n', ""));
    for (name, model) in [("name.gguf", &named), ("arch.gguf", &arch), ("tensor.gguf", &tensor), (file.as_str(), &key)]
    {
        model.write(&folder.path().join(name));
        let verbs: [&[&str]; 8] = [
            &["inspect", name],
            &["run", name, "Hello"],
            &["plan", name],
            &["bench", name, "-p", "4", "-n", "0", "-r", "1"],
            &["tokenize", name, "Hello"],
            &["logits", name, "--tokens", "1", "--out", "/no/such/out"],
            &["repack", name, "/no/such/out"],
            &["perplexity", name, "--file", "/no/such/file"],
        ];
        for verb in verbs {
            let output = common::program::command(PROGRAM).args(verb).current_dir(&folder).output().unwrap();
            for text in [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap()) {
                assert!(is_harmless(&text), "{verb:?}: {text:?}");
            }
            if verb[0] == "inspect" && name == "name.gguf" {
                let text = String::from_utf8(output.stdout).unwrap();
                let shown = r"x\u001b]0;evil\u0007\u001b[31m\u009b2J\u000a\u000d\u202ey";
                assert!(text.contains(&format!("name                 {shown}\n")), "{text}");
            }
        }
    }
    let missing = common::program::command(PROGRAM).args(["inspect", "/no\x1b[31m/\u{9b}such"]).output().unwrap();
    assert!(refusal(&missing, "inspect").contains(r"/no\u001b[31m/\u009bsuch"));
    let usage = common::program::command(PROGRAM).args(["inspect", "a", "\x1b[31mb", "--\x1b[2J"]).output().unwrap();
    assert!(usage.status.code() == Some(2) && is_harmless(&stderr(&usage)), "{}", stderr(&usage));
}

/// What the prompt holds is shown to a terminal, and given to all others as it is.
#[cfg(target_os = "linux")]
#[test]
fn generated_text_moves_no_terminal() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let folder = tempfile::tempdir().unwrap();
    let prompt = "red \x1b[31m \u{9b}2J \x07 tab\t\nline";
    fs::write(folder.path().join("prompt"), prompt).unwrap();
    let args = format!("run {MODEL} --prompt-file prompt -n 0 -q");
    assert_eq!(hotset(folder.path(), &args).stdout, format!("{prompt}\n").as_bytes());

    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name: PathBuf = ptsname(&ours, Vec::new()).unwrap().to_str().unwrap().into();
    let theirs = File::options().read(true).write(true).open(name).unwrap();
    let mut child = command(folder.path(), &args).stdout(theirs).spawn().unwrap();
    let (mut ours, mut got) = (File::from(ours), Vec::new());
    let _ = ours.read_to_end(&mut got); // the end of a terminal is an error on Linux
    assert!(child.wait().unwrap().success());
    let got = String::from_utf8(got).unwrap().replace("\r\n", "\n");
    assert_eq!(got, "red \\u001b[31m \\u009b2J \\u0007 tab\t\nline\n");
}
