//! The README is short, shows what the program prints, and names commands, options and architectures that are there.

mod common;

use hotset::arch;

const README: &str = include_str!("../README.md");

fn hotset(args: &[&str]) -> String {
    let mut command = common::program::command(env!("CARGO_BIN_EXE_hotset"));
    let output = command.args(args).env_remove("HOTSET_MODEL").output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of its code blocks of this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let blocks = README.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(language)).collect()
}

/// Commands of its shell blocks, words without quotes or comments.
fn commands() -> Vec<Vec<&'static str>> {
    let lines = blocks("sh\n").into_iter().flat_map(str::lines);
    let words = lines.map(|line| line.split('#').next().unwrap().split_whitespace().collect::<Vec<_>>());
    words.filter(|words| words.first() == Some(&"hotset")).collect()
}

#[test]
fn it_has_at_most_150_lines() {
    let n = README.lines().count();
    assert!(n <= 150, "{n} lines: what is not for a first reader belongs in docs/");
}

#[test]
fn its_commands_and_options_exist() {
    let commands = commands();
    assert!(commands.len() > 10, "{commands:?}");
    for words in commands {
        let verb =
            if words[1] == "trace" && ["stats", "hot"].contains(&words[2]) { &words[1..3] } else { &words[1..2] };
        let help = hotset(&[verb, &["--help"]].concat());
        for option in words.iter().filter(|word| word.starts_with('-')) {
            let there = help.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == *option);
            assert!(there, "hotset {verb:?} has no {option}");
        }
    }
}

#[test]
fn its_first_run_prints_what_it_says() {
    let words = blocks("sh\n").into_iter().find(|block| block.contains("cargo run")).unwrap();
    let (prompt, rest) = words.split_once('"').unwrap().1.split_once('"').unwrap();
    // An unoptimised program is larger than its budget there; the text is the same in any.
    let args: Vec<_> = rest.split_whitespace().collect();
    let budget = args.iter().position(|word| *word == "--memory").unwrap();
    let args = [&["run", prompt], &args[..budget], &args[budget + 2..]].concat();
    let text = hotset(&args);
    let shown = blocks("text\n")[0].replace('\n', " ");
    let shown = shown.split("[…]").next().unwrap().trim();
    let text = text.replace('\n', " ");
    assert!(text.starts_with(shown), "{text}");
}

#[test]
fn its_table_has_every_architecture() {
    for name in arch::names() {
        assert!(README.contains(&format!("`{name}`")), "{name} is not in the README's table");
    }
}

#[test]
fn its_links_lead_to_files() {
    let links = README.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    for link in links.filter(|link| !link.contains("://")) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(link);
        assert!(path.exists(), "{link}");
    }
}
