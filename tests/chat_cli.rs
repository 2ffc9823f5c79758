//! `hotset chat`: on a terminal of its own, and with lines from a pipe.
#![cfg(target_os = "linux")]

mod common;

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Command, Stdio},
};

use common::{opened::Folder, program::command, terminal::terminal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");

fn chat(more: &[&str]) -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_hotset"));
    command.args(["chat", "--threads", "1", "--seed", "7"]).args(more).env("TERM", "xterm");
    command
}

/// What a chat prints on both outputs when it is told these lines.
fn piped(args: &[&str], lines: &str) -> (String, String) {
    let mut child = chat(args);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes()); // what it says counts, should it have left
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    (stdout, stderr)
}

/// A terminal with a chat on it.
struct Screen {
    ours: File,
    child: Child,
    seen: String,
}

impl Screen {
    fn new(args: &[&str]) -> Self {
        let (ours, theirs) = terminal(100, 30);
        // Ctrl-C is for those whose terminal this is.
        let chat = chat(args);
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(chat.get_program()).args(chat.get_args()).env("TERM", "xterm");
        command.envs(chat.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap()).stderr(theirs);
        Self { ours, child: command.spawn().unwrap(), seen: String::new() }
    }

    fn send(&mut self, text: &str) {
        self.ours.write_all(text.as_bytes()).unwrap();
    }

    /// Types a line, which the editor then leaves.
    fn enter(&mut self, line: &str) {
        self.send(line);
        self.wait("\x1b[?2004l\r\n");
    }

    /// Waits until the terminal has got `text` after all that was waited for before.
    fn wait(&mut self, text: &str) -> String {
        let mut piece = [0; 4096];
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let mut ready = [PollFd::new(&self.ours, PollFlags::IN)];
            let n = poll(&mut ready, Some(&Timespec { tv_sec: 25, tv_nsec: 0 })).unwrap();
            assert!(n > 0, "{text:?} does not come: {:?}", self.seen);
            match self.ours.read(&mut piece) {
                Ok(n @ 1..) => self.seen.push_str(&String::from_utf8_lossy(&piece[..n])),
                _ => panic!("{text:?} did not come: {:?}", self.seen),
            }
        }
    }
}

#[test]
fn two_turns_on_a_terminal_with_an_answer_stopped() {
    let mut screen = Screen::new(&[MODEL, "-n", "-1", "--memory", "120MiB", "-c", "1024"]);
    screen.wait("no chat template");
    screen.wait("> ");
    screen.enter("/help\r");
    screen.wait("/undo");
    screen.wait("> ");
    // Ctrl-C on an empty line leaves nothing but a word.
    screen.enter("\x03");
    screen.wait("Ctrl-D leaves");
    screen.wait("> ");
    screen.enter("Once upon a time there was a king\r");
    // The answer is long: what it begins with is there before it ends.
    screen.wait(" ");
    screen.send("\x03");
    screen.wait("stopped");
    screen.wait("> ");
    screen.enter("/memory 100MiB\r");
    screen.wait("the memory budget is 100.0 MiB");
    screen.wait("> ");
    screen.enter("/memory 1MiB\r");
    let refused = screen.wait("> ");
    assert!(refused.contains("hotset: ") && !refused.contains("is 1.0 MiB"), "{refused}");
    screen.enter("And then he\r");
    screen.wait(" ");
    screen.send("\x03");
    screen.wait("stopped");
    screen.wait("> ");
    screen.enter("/stats\r");
    screen.wait("tok/s");
    screen.wait("tokens of context are in use");
    screen.wait("> ");
    screen.enter("/undo\r");
    screen.wait("the last question is forgotten");
    screen.wait("> ");
    screen.enter("/undo\r");
    screen.wait("the last question is forgotten");
    screen.wait("> ");
    screen.enter("/undo\r");
    screen.wait("there is nothing to undo");
    screen.wait("> ");
    screen.enter("/nonsense\r");
    screen.wait("there is no command /nonsense");
    screen.wait("> ");
    screen.enter("/exit\r");
    assert_eq!(screen.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_pipe_is_a_conversation_too_and_it_is_saved_and_loaded() {
    let folder = Folder::new();
    let file = folder.path().join("talk.json");
    let file = file.to_str().unwrap();
    let args = [MODEL, "-n", "12", "--temp", "0", "-v"];
    let lines = format!("/system A tale.\nOnce upon\\\na time\nAnd then\n/save {file}\n/save {file}\n");
    let (stdout, stderr) = piped(&args, &lines);
    assert!(stderr.contains("saved 5 messages") && stderr.contains("already exists"), "{stderr}");
    let saved: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let roles: Vec<_> = saved.as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!(saved[1]["content"], "Once upon\na time");
    let answers = [&saved[2], &saved[4]].map(|m| m["content"].as_str().unwrap().to_owned());
    let shown: String = answers.iter().map(|a| if a.ends_with('\n') { a.clone() } else { format!("{a}\n") }).collect();
    assert_eq!(stdout, shown, "the answers and nothing else");
    // The second turn computes what is new, and a conversation that was loaded goes on as it would have.
    let reused: Vec<_> = stderr.lines().filter(|l| l.contains("were there already")).collect();
    assert!(reused[0].contains(" 0 of ") && !reused[1].contains(" 0 of "), "{reused:?}");
    let (again, stderr) = piped(&args, &format!("/load {file}\n/undo\nAnd then\n"));
    assert!(stderr.contains("loaded 5 messages"), "{stderr}");
    assert_eq!(again.trim_end(), answers[1].trim_end(), "reuse changes nothing");
    let (_, stderr) = piped(&args, &format!("/load {MODEL}\n/load /nowhere\n/memory lots\n/reset\nHi\n"));
    for words in ["no saved conversation", "/nowhere", "/memory lots: ", "is forgotten"] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
}

#[test]
fn a_template_is_used_and_its_switches_are_checked() {
    let folder = Folder::new();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if enable_thinking is false %}quick {% endif %}assistant:";
    let path = folder.path().join("t.jinja");
    std::fs::write(&path, template).unwrap();
    let path = path.to_str().unwrap();
    let base = [MODEL, "-n", "4", "--temp", "0", "--chat-template", path];
    let (_, stderr) = piped(&base, "Hi\n");
    assert!(!stderr.contains("no chat template"), "{stderr}");
    let failing = |args: &[&str], words: &str| {
        let output = chat(&[&base[..], args].concat()).stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && stderr.contains(words), "{stderr}");
    };
    failing(&["--reasoning-effort", "low"], "no reasoning_effort");
    std::fs::write(path, "{{ raise_exception('only odd turns') }}").unwrap();
    failing(&["--think", "off"], "no enable_thinking");
    let (stdout, stderr) = piped(&base, "Hi\n");
    assert!(stdout.is_empty() && stderr.contains("does not render: ") && stderr.contains("only odd turns"), "{stderr}");
    std::fs::write(path, "{% if %}").unwrap();
    failing(&[], "the chat template is wrong");
}
