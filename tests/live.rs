//! `hotset run --stats-live` in a terminal of its own: the text is what it is without, and the terminal is given back
//! however the run ends.
#![cfg(target_os = "linux")]

mod common;

use std::{
    fs::File,
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    time::Instant,
};

use common::{program::command, terminal::terminal};
use rustix::process::{Pid, Signal, kill_process};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");
const RESTORE: &str = "\x1b7\x1b[r\x1b8\x1b[J";

/// A slow run: tens of tokens per second.
fn run(more: &[&str]) -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_hotset"));
    command.args(["run", MODEL, "Once upon a time", "--ignore-eos", "--threads", "1", "--seed", "0"]).args(more);
    command.env("HOTSET_ISA", "scalar").env("TERM", "xterm").stdin(Stdio::null());
    command
}

fn start(mut command: Command, theirs: File) -> Child {
    command.stdout(theirs.try_clone().unwrap()).stderr(theirs).spawn().unwrap()
}

/// What the terminal got, until nobody holds it or it got `until`.
fn read(ours: &mut File, until: Option<&str>) -> String {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    // The end of a terminal is an error on Linux.
    while let Ok(n @ 1..) = ours.read(&mut piece) {
        all.extend_from_slice(&piece[..n]);
        if until.is_some_and(|until| String::from_utf8_lossy(&all).contains(until)) {
            break;
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// What stays where it was written: without all that stands between a saved cursor and its return, and without moves.
fn kept(output: &str) -> String {
    let mut pieces = output.split("\x1b7");
    let first = pieces.next().unwrap_or_default().to_owned();
    let rest = pieces.map(|piece| piece.split_once("\x1b8").expect("a saved cursor returns").1);
    (first + &rest.collect::<String>())
        .replace("\x1bD", "")
        .replace("\x1b[4A", "")
        .replace("\x1b[J", "")
        .replace('\r', "")
}

#[test]
fn the_panel_leaves_the_text_alone_and_the_terminal_as_it_was() {
    let args = ["-n", "40"];
    let expected = String::from_utf8(run(&args).arg("-q").output().unwrap().stdout).unwrap();
    let (mut ours, theirs) = terminal(80, 24);
    let mut command = run(&args);
    command.arg("--stats-live");
    let mut child = start(command, theirs);
    let output = read(&mut ours, None);
    assert!(child.wait().unwrap().success());
    assert!(kept(&output).contains(&expected), "{:?}\n{expected:?}", kept(&output));
    let setup = output.find("\x1b[1;20r").expect("the text scrolls above the panel");
    let end = output.rfind(RESTORE).unwrap();
    assert!(setup < end && !output[end + RESTORE.len()..].contains('\x1b'), "{output:?}");
    assert!(output[end..].contains("tok/s"), "statistics follow");
    for (row, word) in [(21, "decode "), (22, "% hit"), (23, "GB/s"), (24, "by layer")] {
        let line = output.split(&format!("\x1b[{row};1H\x1b[2K")).nth(1).unwrap_or_else(|| panic!("row {row}"));
        assert!(line.split('\x1b').next().unwrap().contains(word), "{line:?}");
    }
    let drawn = output.matches("\x1b[24;1H").count();
    assert!(drawn < 300, "ten times per second, not at each token: {drawn}");
}

#[test]
fn signals_give_the_terminal_back() {
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::TERM, None)] {
        let (mut ours, theirs) = terminal(100, 30);
        let mut command = run(&["-n", "1000"]);
        command.arg("--stats-live");
        let mut child = start(command, theirs);
        let before = read(&mut ours, Some("by layer"));
        assert!(before.contains("\x1b[1;26r"), "{before:?}");
        kill_process(Pid::from_child(&child), signal).unwrap();
        let after = read(&mut ours, None);
        let status = child.wait().unwrap();
        assert_eq!(status.code(), code);
        let (_, last) = after.rsplit_once(RESTORE).unwrap_or_else(|| panic!("not given back: {after:?}"));
        match code {
            Some(_) => assert!(last.contains("tok/s"), "statistics of what there is: {last:?}"),
            None => assert_eq!((status.signal(), last), (Some(15), "")),
        }
    }
}

#[test]
fn where_a_panel_has_no_room_there_are_lines() {
    let shown = |mut command: Command, columns| {
        let (mut ours, theirs) = terminal(columns, 24);
        command.arg("--stats-live");
        let mut child = start(command, theirs);
        let output = read(&mut ours, None);
        assert_eq!(child.wait().unwrap().code(), Some(0), "{output}");
        output
    };
    let mut dumb = run(&["-n", "4"]);
    dumb.env("TERM", "dumb");
    let (narrow, dumb) = (shown(run(&["-n", "4"]), 20), shown(dumb, 80));
    // A bar while the model loads is well; a panel would divide the screen.
    assert!(!narrow.contains("\x1b[1;") && narrow.contains("tok/s"), "{narrow:?}");
    assert!(!dumb.contains('\x1b') && dumb.contains("tok/s"), "{dumb:?}");
    assert_eq!(run(&["--stats-live", "-q"]).output().unwrap().status.code(), Some(2), "quiet or live");

    let start = Instant::now();
    let output = run(&["-n", "100", "--stats-live"]).output().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = stderr.lines().filter(|l| l.starts_with("live ")).collect();
    assert!(lines.len() as f64 <= seconds && (seconds < 2.5 || !lines.is_empty()), "one a second: {stderr}");
    assert!(lines.iter().all(|l| l.contains("% hit") && l.contains("GB/s")), "{stderr}");
    assert!(!stderr.contains('\x1b'));
}
