//! `example.c` compiles with the system's C compiler, as C and as C++, and prints what it is there to show.
#![cfg(unix)]

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The static library that was built beside this test.
fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let folders = [deps.clone(), deps.parent().unwrap().to_owned()];
    let files = folders.iter().flat_map(|f| std::fs::read_dir(f).unwrap()).map(|e| e.unwrap().path());
    let is_ours = |p: &PathBuf| {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libhotset_c") && name.ends_with(".a")
    };
    let newest = files.filter(is_ours).max_by_key(|p| std::fs::metadata(p).unwrap().modified().unwrap());
    newest.expect("the static library is built with the test")
}

fn run(command: &mut Command) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            // Not by a macro: what those print of a test that passes is not shown.
            let _ =
                writeln!(std::io::stderr(), "NOT TESTED: example.c: there is no {}", command.get_program().display());
            None
        }
        Err(e) => panic!("{}: {e}", command.get_program().display()),
    }
}

fn checked(output: Output) -> String {
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{text}\n{error}", output.status);
    text.into_owned()
}

#[test]
fn the_example_compiles_and_runs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let program = out.path().join("example");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I"]).arg(folder).arg(folder.join("example.c"));
    cc.arg(library()).args(["-lpthread", "-ldl", "-lm", "-o"]).arg(&program);
    let Some(compiled) = run(&mut cc) else { return };
    checked(compiled);
    let text = checked(Command::new(&program).arg(folder.join("../../assets/moe-s-q4_0.gguf")).output().unwrap());
    assert!(text.starts_with("a budget of 1 MiB: code 6: "), "{text}");
    // The text of a session with much memory, and of the same one with little.
    let texts: Vec<&str> = text.lines().skip(1).take_while(|line| !line.contains("the likeliest of")).collect();
    let budgets: Vec<usize> = (0..texts.len()).filter(|&i| texts[i].starts_with("budget ")).collect();
    let [first, second] = budgets[..] else { panic!("two budgets: {text}") };
    assert_eq!(texts[..first - 1], texts[first + 1..second], "offloading never changes a bit");
    assert!(texts[first - 1].starts_with("finish 4 after 40 pieces"), "{text}");
    let misses = |line: &str| line.rsplit_once("hits, ").unwrap().1.split(' ').next().unwrap().parse::<u64>().unwrap();
    assert!(misses(texts[second]) > 2 * misses(texts[first]), "less memory reads more: {text}");
    for line in
        ["\"The old\" is 3 tokens", "policy: code 2: ", "no file: code 3: ", "no session: code 1: session is NULL"]
    {
        assert!(text.lines().any(|l| l.starts_with(line)), "{line}: {text}");
    }
}

#[test]
fn the_header_is_cpp_too() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let source = out.path().join("user.cpp");
    std::fs::write(
        &source,
        "#include \"hotset.h\"\nint main() { return hotset_abi_version() != HOTSET_ABI_VERSION; }\n",
    )
    .unwrap();
    let mut cc = Command::new("c++");
    cc.args(["-std=c++17", "-Wall", "-Werror", "-c", "-I"])
        .arg(folder)
        .arg(&source)
        .arg("-o")
        .arg(out.path().join("user.o"));
    if let Some(compiled) = run(&mut cc) {
        checked(compiled);
    }
}
