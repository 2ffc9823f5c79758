//! The code about the code: who may use whom, where `unsafe` may stand, how long a file may be.
//!
//! Sources are cut into tokens, without comments and strings, so that neither a doc link nor a message counts as a use.

use std::path::{Path, PathBuf};

/// Who may import whom: a module may use itself and the modules listed beside it, all of which stand above it, so there
/// is no circle.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("id", &[]),
    ("input", &["error"]),
    ("machine", &[]),
    ("io", &["input", "machine"]),
    ("quant", &[]),
    ("new_file", &["error"]),
    ("npy", &["error", "input", "new_file"]),
    ("gguf", &["error", "input", "new_file", "quant"]),
    ("trace", &["error", "id", "input", "machine", "new_file", "npy"]),
    ("retrieval", &["trace"]),
    ("policy", &["id", "retrieval", "trace"]),
    ("prefetch", &["id", "retrieval", "trace"]),
    ("backend", &["error", "quant"]),
    ("gpu", &["backend", "error", "quant"]),
    ("blueprint", &["backend", "error", "gguf", "quant"]),
    ("arch", &["blueprint", "error", "gguf"]),
    ("expert", &["blueprint", "error", "gguf", "id", "io", "policy", "prefetch", "quant", "retrieval", "trace"]),
    ("model", &["backend", "blueprint", "error", "expert", "gguf", "gpu", "id", "machine", "quant", "trace"]),
    ("repack", &["arch", "blueprint", "error", "expert", "gguf", "model", "new_file", "quant"]),
    ("plan", &["backend", "blueprint", "error", "expert", "io", "model", "policy", "prefetch", "quant", "retrieval"]),
    ("budget", &[]),
    ("pressure", &[]),
    ("simulate", &["error", "expert", "id", "io", "policy", "prefetch", "trace"]),
    ("report", &["error", "expert", "input", "policy", "simulate", "trace"]),
    ("outlook", &["simulate"]),
    ("tokenizer", &["error", "gguf"]),
    ("sampler", &["error"]),
    (
        "engine",
        &[
            "arch",
            "backend",
            "blueprint",
            "error",
            "expert",
            "gguf",
            "gpu",
            "id",
            "input",
            "io",
            "machine",
            "model",
            "new_file",
            "plan",
            "policy",
            "prefetch",
            "pressure",
            "quant",
            "trace",
        ],
    ),
    ("session", &["backend", "engine", "error", "gguf", "gpu", "io", "model", "trace"]),
    ("stop", &[]),
    ("generate", &["backend", "error", "sampler", "session", "stop", "tokenizer"]),
    (
        "scheduler",
        &[
            "backend",
            "blueprint",
            "engine",
            "error",
            "expert",
            "generate",
            "model",
            "quant",
            "sampler",
            "tokenizer",
            "trace",
        ],
    ),
    ("chat", &["error", "stop"]),
    ("converse", &["chat", "error", "gguf", "tokenizer"]),
];

/// May use everything.
const ROOTS: &[&str] = &["lib", "main", "cli", "serve"];

/// What the crate's root re-exports or holds itself, and the module that it counts as.
const ROOT_ITEMS: &[(&str, Option<&str>)] =
    &[("Error", Some("error")), ("Result", Some("error")), ("human_bytes", None), ("human_bytes_up", None)];

/// What single files, or all that begin so, must not name although their module may: paths of one name under the crate's root, or
/// of two that follow each other.
const FILES_MUST_NOT_NAME: &[(&str, &[&[&str]])] = &[
    // A cache asks a source for experts by id, and knows neither what their bytes mean nor where they lie.
    ("src/expert/cache", &[&["quant"], &["io", "Extent"], &["io", "Extents"], &["io", "Files"], &["io", "Read"]]),
    ("src/expert/source.rs", &[&["quant"], &["policy"], &["prefetch"]]),
    // Layouts and memory are each backend's own.
    ("src/model", &[&["backend", "cpu"]]),
    ("src/plan.rs", &[&["backend", "cpu"]]),
    ("src/engine/options.rs", &[&["backend", "cpu"]]),
    (
        "src/backend/reference.rs",
        &[&["super", "cpu"], &["backend", "cpu"], &["quant", "ActRow"], &["quant", "interleaved"]],
    ),
];

/// Parts of the standard library that a module must not see.
const MUST_NOT_SEE: &[(&str, &[&str])] = &[
    ("outlook", &["env", "fs", "io", "net", "path", "process", "sync", "thread", "time"]),
    ("pressure", &["env", "fs", "io", "net", "path", "process", "sync", "thread"]),
    ("retrieval", &["env", "fs", "io", "net", "path", "process", "sync", "thread", "time"]),
    ("policy", &["env", "fs", "io", "net", "path", "process", "sync", "thread", "time"]),
    ("prefetch", &["env", "fs", "io", "net", "path", "process", "sync", "thread", "time"]),
    ("report", &["env", "net", "process", "sync", "thread", "time"]),
    ("chat", &["env", "fs", "net", "path", "process", "sync", "thread", "time"]),
    ("generate", &["env", "fs", "io", "net", "path", "process", "sync", "thread", "time"]),
    ("scheduler", &["env", "fs", "io", "net", "path", "process", "sync", "thread", "time"]),
    ("arch", &["env", "fs", "io", "net", "path", "process", "sync", "thread", "time"]),
    ("blueprint", &["env", "fs", "io", "net", "path", "process", "sync", "thread", "time"]),
    ("backend", &["fs", "net", "path", "process"]),
    ("gpu", &["env", "fs", "net", "path", "process", "sync", "thread"]),
    ("model", &["env", "fs", "io", "net", "process", "sync", "thread", "time"]),
    ("expert", &["env", "fs", "net", "process", "sync", "thread", "time"]),
    ("quant", &["env", "fs", "io", "net", "path", "process", "sync", "thread", "time"]),
];

/// Files and folders where `unsafe` may stand.
const MAY_BE_UNSAFE: &[&str] = &[
    "src/io/buf.rs",
    "src/io/bus_error.rs",
    "src/io/mapped.rs",
    "src/io/uring.rs",
    "src/backend/cpu/mod.rs",
    "src/backend/cpu/pool.rs",
    "src/backend/cpu/attention.rs",
    "src/backend/cpu/attention/sums.rs",
    "src/backend/cpu/recurrent.rs",
    "src/backend/cpu/rows.rs",
    "src/backend/cpu/kernels/",
    "bindings/c/src/",
    "src/gpu/vulkan.rs",
];

/// Lines of a file at most.
const MAX_LINES: usize = 700;

/// Lines between an unsafe block and the end of the comment that says why it is sound, at most: a statement's head.
const SAFETY_LINES: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Punct(char),
}

/// The tokens of a source with their line numbers from 1. Comments, strings, characters and numbers' insides vanish.
fn tokens(source: &str) -> Vec<(usize, Token)> {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut out, mut i, mut line) = (Vec::new(), 0, 1);
    while i < chars.len() {
        let start = i;
        match at(i) {
            '/' if at(i + 1) == '/' => i += chars[i..].iter().take_while(|&&c| c != '\n').count(),
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
            }
            '"' => i = end_of_string(&chars, i, 0, true),
            // A character, or the quote of a lifetime.
            '\'' if at(i + 1) == '\\' => i = end_of_quoted(&chars, i + 1, '\''),
            '\'' if at(i + 2) == '\'' => i += 3,
            c if is_word(c) => {
                let word: String = chars[i..].iter().take_while(|&&c| is_word(c)).collect();
                i += word.chars().count();
                let hashes = chars[i.min(chars.len())..].iter().take_while(|&&c| c == '#').count();
                match (word.as_str(), at(i + hashes)) {
                    ("r" | "br" | "cr", '"') => i = end_of_string(&chars, i + hashes, hashes, false),
                    ("b" | "c", '"') => i = end_of_string(&chars, i, 0, true),
                    ("r", _) if hashes == 1 => i += 1,
                    _ => out.push((line, Token::Word(word))),
                }
            }
            c if c.is_whitespace() => i += 1,
            c => {
                out.push((line, Token::Punct(c)));
                i += 1;
            }
        }
        i = i.min(chars.len());
        line += chars[start..i].iter().filter(|&&c| c == '\n').count();
    }
    out
}

/// One past the quote that ends what `from` is inside of, with backslash escapes.
fn end_of_quoted(chars: &[char], mut from: usize, quote: char) -> usize {
    while from < chars.len() && chars[from] != quote {
        from += if chars[from] == '\\' { 2 } else { 1 };
    }
    from + 1
}

/// One past the end of the string whose opening quote is at `quote` and has `hashes` hashes before it.
fn end_of_string(chars: &[char], quote: usize, hashes: usize, escapes: bool) -> usize {
    if escapes {
        return end_of_quoted(chars, quote + 1, '"');
    }
    let closes = |i: usize| chars[i] == '"' && chars[i + 1..].iter().take_while(|&&c| c == '#').count() >= hashes;
    (quote + 1..chars.len()).find(|&i| closes(i)).map_or(chars.len(), |i| i + 1 + hashes)
}

fn word(tokens: &[(usize, Token)], i: usize) -> Option<&str> {
    match tokens.get(i) {
        Some((_, Token::Word(w))) => Some(w),
        _ => None,
    }
}

fn is(tokens: &[(usize, Token)], i: usize, c: char) -> bool {
    tokens.get(i).is_some_and(|(_, t)| *t == Token::Punct(c))
}

fn colons(tokens: &[(usize, Token)], i: usize) -> bool {
    is(tokens, i, ':') && is(tokens, i + 1, ':')
}

/// What follows the path separator at `i`: one word, `*`, or the first word of each branch of a `{…}`.
fn branches(tokens: &[(usize, Token)], i: usize) -> Vec<String> {
    let first = |i: usize| word(tokens, i).unwrap_or("*").to_owned();
    if !is(tokens, i, '{') {
        return vec![first(i)];
    }
    let (mut found, mut depth) = (Vec::new(), 0);
    for (j, (_, token)) in tokens.iter().enumerate().skip(i) {
        match token {
            Token::Punct('{') => depth += 1,
            Token::Punct('}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && (*token == Token::Punct('{') || *token == Token::Punct(',')) && !is(tokens, j + 1, '}') {
            found.push(first(j + 1));
        }
    }
    found
}

/// The (line, name) of everything that paths reach directly under `root` (`std`, `crate`, …).
fn reached(tokens: &[(usize, Token)], root: &str) -> Vec<(usize, String)> {
    let starts = (0..tokens.len()).filter(|&i| word(tokens, i) == Some(root) && colons(tokens, i + 1));
    starts.flat_map(|i| branches(tokens, i + 3).into_iter().map(move |name| (tokens[i].0, name))).collect()
}

/// The (line, name) of everything that `super::` paths reach directly under the crate's root, in a file that lies
/// `depth` modules below it. Inline modules go deeper.
fn reached_by_super(tokens: &[(usize, Token)], depth: usize) -> Vec<(usize, String)> {
    let (mut found, mut braces, mut inline) = (Vec::new(), 0, Vec::new());
    let mut i = 0;
    while i < tokens.len() {
        if is(tokens, i, '{') {
            braces += 1;
            if i >= 2 && word(tokens, i - 2) == Some("mod") {
                inline.push(braces);
            }
        } else if is(tokens, i, '}') {
            inline.pop_if(|b| *b == braces);
            braces -= 1;
        }
        let mut supers = 0;
        let line = tokens[i].0;
        while word(tokens, i) == Some("super") && colons(tokens, i + 1) {
            (supers, i) = (supers + 1, i + 3);
        }
        if supers == 0 {
            i += 1;
        } else if supers == depth + inline.len() {
            found.extend(branches(tokens, i).into_iter().map(|name| (line, name)));
        }
    }
    found
}

/// The top-level module that a file under `src` belongs to, and how many modules deep it is.
fn module_of(path: &Path) -> (String, usize) {
    let parts: Vec<_> =
        path.strip_prefix("src").unwrap_or(path).iter().map(|p| p.to_str().expect("ASCII names")).collect();
    let depth = parts.len() - usize::from(parts.last() == Some(&"mod.rs"));
    (parts[0].trim_end_matches(".rs").to_owned(), depth)
}

/// What a file imports that its module may not.
fn wrong_uses(path: &Path, source: &str) -> Vec<String> {
    let (module, depth) = module_of(path);
    if ROOTS.contains(&module.as_str()) {
        return Vec::new();
    }
    let at = |line: usize, what: String| format!("{}:{line}: {what}", path.display());
    let Some((_, allowed)) = MAY_USE.iter().find(|(m, _)| *m == module) else {
        return vec![at(1, format!("module {module} has no row in MAY_USE"))];
    };
    let tokens = tokens(source);
    let mut wrong = Vec::new();
    let inside =
        reached(&tokens, "crate").into_iter().chain(reached_by_super(&tokens, depth)).chain(reached(&tokens, "hotset"));
    for (line, name) in inside {
        let used = match ROOT_ITEMS.iter().find(|(item, _)| *item == name) {
            Some((_, None)) => continue,
            Some((_, Some(module))) => module,
            None => name.as_str(),
        };
        if used != module && !allowed.contains(&used) {
            wrong.push(at(line, format!("{module} must not use {name}")));
        }
    }
    let unseen = MUST_NOT_SEE.iter().find(|(m, _)| *m == module).map_or(&[][..], |(_, list)| list);
    for (line, name) in reached(&tokens, "std") {
        if unseen.contains(&name.as_str()) || name == "*" {
            wrong.push(at(line, format!("{module} must not see std::{name}")));
        }
    }
    wrong
}

/// Whether `second` follows `first` in a path, or is a branch of a `{…}` that does.
fn names(tokens: &[(usize, Token)], first: &str, second: &str) -> Option<usize> {
    let starts = |&i: &usize| word(tokens, i) == Some(first) && colons(tokens, i + 1);
    (0..tokens.len()).filter(starts).find(|&i| branches(tokens, i + 3).iter().any(|b| b == second)).map(|i| tokens[i].0)
}

/// What a file names that it must not.
fn wrong_paths(path: &Path, source: &str) -> Vec<String> {
    let (name, tokens, depth) = (path.to_str().expect("ASCII names"), tokens(source), module_of(path).1);
    let mut wrong = Vec::new();
    for (_, unnamed) in FILES_MUST_NOT_NAME.iter().filter(|(file, _)| name.starts_with(file)) {
        for banned in *unnamed {
            let line = match **banned {
                [first, second] => names(&tokens, first, second),
                [only] => {
                    let inside = reached(&tokens, "crate").into_iter().chain(reached_by_super(&tokens, depth));
                    inside.into_iter().find(|(_, module)| module == only).map(|(line, _)| line)
                }
                _ => unreachable!("paths of one name or two"),
            };
            wrong.extend(line.map(|line| format!("{name}:{line}: must not name {}", banned.join("::"))));
        }
    }
    wrong
}

/// Parameters of a function at most, `self` among them.
const MAX_PARAMETERS: usize = 7;

/// Functions of the model with too many parameters.
fn wrong_parameters(path: &Path, source: &str) -> Vec<String> {
    if module_of(path).0 != "model" {
        return Vec::new();
    }
    let tokens = tokens(source);
    let functions = (0..tokens.len()).filter(|&i| word(&tokens, i) == Some("fn") && word(&tokens, i + 1).is_some());
    let found = functions.map(|i| (tokens[i].0, word(&tokens, i + 1).expect("a name"), parameters(&tokens, i + 2)));
    let wrong = found.filter(|(.., n)| *n > MAX_PARAMETERS);
    wrong.map(|(line, name, n)| format!("{}:{line}: {name} has {n} parameters", path.display())).collect()
}

/// Parameters of the function whose name ends before token `i`.
fn parameters(tokens: &[(usize, Token)], mut i: usize) -> usize {
    // Behind `fn name<…>`, whose `->` ends nothing.
    let mut angles = 0;
    while !(angles == 0 && is(tokens, i, '(')) {
        angles += i32::from(is(tokens, i, '<')) - i32::from(is(tokens, i, '>') && !is(tokens, i - 1, '-'));
        i += 1;
    }
    let (mut depth, mut n, mut begun) = (0, 0, false);
    loop {
        let arrow = is(tokens, i, '>') && is(tokens, i - 1, '-');
        let opens = ['(', '[', '{', '<'].iter().any(|&c| is(tokens, i, c));
        let closes = [')', ']', '}', '>'].iter().any(|&c| is(tokens, i, c)) && !arrow;
        depth += i32::from(opens) - i32::from(closes);
        if depth == 0 {
            return n + usize::from(begun);
        }
        if depth == 1 && is(tokens, i, ',') {
            (n, begun) = (n + 1, false);
        } else if !(depth == 1 && opens) {
            begun = true;
        }
        i += 1;
    }
}

/// Lines of the forward pass at most: it is the page to read.
const MAX_FORWARD: usize = 30;

/// Lines of `Model::forward`, its signature and last brace among them.
fn forward_lines(source: &str) -> Option<usize> {
    let mut lines = source.lines().skip_while(|line| !line.starts_with("    pub fn forward"));
    lines.position(|line| line == "    }").map(|last| last + 1)
}

/// Where a file is unsafe although it must not be, or does not say why that is sound.
fn wrong_unsafe(path: &Path, source: &str) -> Vec<String> {
    let name = path.to_str().expect("ASCII names");
    let listed = MAY_BE_UNSAFE.iter().any(|p| name == *p || (p.ends_with('/') && name.starts_with(p)));
    let (tokens, lines): (Vec<_>, Vec<_>) = (tokens(source), source.lines().collect());
    let mut wrong = Vec::new();
    for i in (0..tokens.len()).filter(|&i| word(&tokens, i) == Some("unsafe")) {
        let line = tokens[i].0;
        if !listed {
            wrong.push(format!("{name}:{line}: unsafe, and not listed in MAY_BE_UNSAFE"));
            continue;
        }
        // A function with a name; pointers to functions have none.
        let function = word(&tokens, i + 1) == Some("fn") && word(&tokens, i + 2).is_some();
        let block = is(&tokens, i + 1, '{') || word(&tokens, i + 1) == Some("impl");
        let marks: &[&str] = if function { &["SAFETY:", "# Safety"] } else { &["SAFETY:"] };
        if (function || block) && !is_explained(&lines, line, marks) {
            wrong.push(format!("{name}:{line}: no SAFETY comment close above"));
        }
    }
    wrong
}

/// Whether a comment that has one of `marks` ends within [`SAFETY_LINES`] above `line` (from 1), with no finished statement
/// in between.
fn is_explained(lines: &[&str], line: usize, marks: &[&str]) -> bool {
    let is_comment = |l: &str| l.trim_start().starts_with("//");
    let above = || lines[..line - 1].iter().rev();
    let code = above().take_while(|l| !is_comment(l)).take(SAFETY_LINES + 1);
    let code: Vec<_> = code.map(|l| l.trim_end()).collect();
    let same_statement = code.len() <= SAFETY_LINES && !code.iter().any(|l| l.ends_with(';') || l.ends_with('}'));
    same_statement
        && above().skip(code.len()).take_while(|l| is_comment(l)).any(|l| marks.iter().any(|mark| l.contains(mark)))
}

/// What is wrong with a file as a text.
fn wrong_text(path: &Path, source: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let n = source.lines().count();
    if n > MAX_LINES {
        wrong.push(format!("{}: {n} lines, at most {MAX_LINES}", path.display()));
    }
    if !source.starts_with("//! ") {
        wrong.push(format!("{}:1: does not open with a paragraph of //!", path.display()));
    }
    let tokens = tokens(source);
    for i in 0..tokens.len() {
        if let Some(name @ ("todo" | "unimplemented")) = word(&tokens, i)
            && is(&tokens, i + 1, '!')
        {
            wrong.push(format!("{}:{}: {name}!", path.display(), tokens[i].0));
        }
    }
    wrong
}

/// Where a tensor's or an architecture's name stands although only the blueprint and the architectures know any.
fn wrong_names(path: &Path, source: &str) -> Vec<String> {
    const KNOWN: [&str; 2] = ["arch", "blueprint"];
    const NAMES: [&str; 3] = [".weight\"", ".bias\"", "_exps"];
    // Vocabularies have names of their own, some of which are architectures' too.
    let others = |_: &&str| module_of(path).0 != "tokenizer";
    let architectures: Vec<_> = hotset::arch::names().filter(others).map(|name| format!("\"{name}\"")).collect();
    if KNOWN.contains(&module_of(path).0.as_str()) {
        return Vec::new();
    }
    let code = source.lines().take_while(|line| *line != "#[cfg(test)]").enumerate();
    let code = code.filter(|(_, line)| !line.trim_start().starts_with("//"));
    let wrong = code.filter(|(_, line)| {
        NAMES.iter().any(|name| line.contains(name)) || architectures.iter().any(|name| line.contains(name))
    });
    wrong.map(|(i, line)| format!("{}:{}: {}", path.display(), i + 1, line.trim())).collect()
}

/// Every Rust file under these folders, as paths from the crate's, with its text.
fn files(folders: &[&str]) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut folders) = (Vec::new(), folders.iter().map(|f| root.join(f)).collect::<Vec<_>>());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    found
}

/// The crate's own.
fn sources() -> Vec<(PathBuf, String)> {
    let found = files(&["src"]);
    assert!(found.len() > 30, "found only {} files", found.len());
    found
}

/// Those of the crates for other languages too, where they are: a published crate is without.
fn all_sources() -> Vec<(PathBuf, String)> {
    let bindings = ["bindings/c/src", "bindings/python/src"];
    let there: Vec<_> =
        bindings.into_iter().filter(|f| Path::new(env!("CARGO_MANIFEST_DIR")).join(f).is_dir()).collect();
    sources().into_iter().chain(files(&there)).collect()
}

fn check_all(sources: &[(PathBuf, String)], check: fn(&Path, &str) -> Vec<String>) {
    let wrong: Vec<_> = sources.iter().flat_map(|(path, text)| check(path, text)).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn imports_point_down() {
    check_all(&sources(), wrong_uses);
}

#[test]
fn files_name_no_more_than_they_need() {
    check_all(&sources(), wrong_paths);
    for (file, _) in FILES_MUST_NOT_NAME {
        assert!(sources().iter().any(|(path, _)| path.to_str().unwrap().starts_with(file)), "{file} is not there");
    }
}

#[test]
fn the_forward_pass_is_a_page_and_functions_of_the_model_take_few_parameters() {
    let all = sources();
    check_all(&all, wrong_parameters);
    let (_, model) = all.iter().find(|(path, _)| path == Path::new("src/model/mod.rs")).unwrap();
    let lines = forward_lines(model).expect("there is a forward pass");
    assert!(lines <= MAX_FORWARD, "Model::forward has {lines} lines, at most {MAX_FORWARD}");
}

#[test]
fn unsafe_is_fenced_and_explained() {
    check_all(&all_sources(), wrong_unsafe);
}

#[test]
fn only_blueprint_and_architectures_know_names() {
    check_all(&sources(), wrong_names);
}

#[test]
fn files_open_with_their_purpose_and_are_short_and_finished() {
    check_all(&all_sources(), wrong_text);
}

#[test]
fn the_table_has_no_circle_and_no_stale_row() {
    let modules: Vec<_> = sources().iter().map(|(path, _)| module_of(path).0).collect();
    for (row, (module, allowed)) in MAY_USE.iter().enumerate() {
        assert!(modules.iter().any(|m| m == module), "MAY_USE has a row for {module}, which is not there");
        for used in *allowed {
            assert!(MAY_USE[..row].iter().any(|(m, _)| m == used), "{module} uses {used}, which stands below it");
        }
    }
    for file in MAY_BE_UNSAFE {
        let has =
            |(path, text): &(PathBuf, String)| path.to_str().unwrap().starts_with(file) && text.contains("unsafe");
        assert!(all_sources().iter().any(has), "MAY_BE_UNSAFE has {file}, which needs no unsafe");
    }
}

/// The checks on snippets that break each rule, and on such that only look as if they did.
#[test]
fn the_checks_see_what_they_should() {
    let policy = Path::new("src/policy/lru.rs");
    for bad in [
        "use crate::io::Files;",
        "use crate::{id::ExpertId, io::{self, Files}};",
        "use crate::{\n    id::ExpertId,\n    trace::{Phase,\n Routed},\n    quant,\n};",
        "fn f() -> crate::expert::Scope { x }",
        "use crate::*;",
        "use crate::Error;",
        "macro_rules! m { () => { $crate::model::f() } }",
        "use super::super::gguf::Gguf;",
        "mod inner { use super::super::super::gguf::Gguf; }",
        "use super::super::{trace, model};",
        "use std::time::Instant;",
        "use std::{fmt, collections::{HashMap, HashSet}, thread};",
        "static C: char = '\"'; use crate::io;",
        "static S: &str = r#\"\"\"#; use crate::io;",
        "fn f<'a>(x: &'a str) -> crate::io::Extent {}",
    ] {
        assert_eq!(wrong_uses(policy, bad).len(), 1, "{bad}: {:?}", wrong_uses(policy, bad));
    }
    for good in [
        "use crate::{id::ExpertId, trace::{LayerEvent, Routed}};",
        "use super::CachePolicy; use std::{fmt, num::NonZeroUsize};",
        "//! [`crate::io::Files`]\n/* use crate::io; /* nested */ use crate::model; */",
        "const HELP: &str = \"use crate::io::Files; \\\" crate::model\";",
        "const RAW: &str = r##\"crate::io \"# crate::io\"##;",
        "mod tests { use super::super::CachePolicy; }",
        "pub(crate) fn f() { crate::policy::g() }",
    ] {
        assert_eq!(wrong_uses(policy, good), Vec::<String>::new(), "{good}");
    }
    assert_eq!(
        wrong_uses(Path::new("src/model/ffn/moe.rs"), "use crate::{policy::Lru, io::Files, prefetch};").len(),
        3
    );
    assert_eq!(wrong_uses(Path::new("src/plan.rs"), "use super::session::Session;").len(), 1);
    assert_eq!(wrong_uses(Path::new("src/backend/mod.rs"), "use crate::id::ExpertId;").len(), 1);
    assert_eq!(wrong_uses(Path::new("src/newcomer.rs"), "").len(), 1);
    assert_eq!(wrong_uses(Path::new("src/cli/run.rs"), "use crate::session::Session;").len(), 0);

    let fenced = Path::new("src/io/mapped.rs");
    let explained = "// SAFETY: it is.\nlet x =\n    unsafe { f() };\n// SAFETY: too.\nunsafe impl Send for X {}\n\
        /// # Safety\n/// Do so.\n#[inline]\nunsafe fn g();\ntype G = unsafe fn(u8);";
    assert_eq!(wrong_unsafe(fenced, explained), Vec::<String>::new());
    assert_eq!(wrong_unsafe(policy, explained).len(), 4, "not listed");
    assert_eq!(wrong_unsafe(policy, "// unsafe\nlet x = \"unsafe { }\"; #![deny(unsafe_code)]").len(), 0);
    for bad in [
        "let x = unsafe { f() };",
        "// SAFETY: it is.\nlet x = unsafe { f() };\nlet y = unsafe { f() };",
        "// SAFETY: far away\na\nb\nc\nd\nunsafe { f() };",
        "// It is.\nunsafe impl Send for X {}",
        "/// It is.\n#[inline]\nunsafe fn f() {}",
        "/// # Safety\n/// It is.\nunsafe fn f();\nunsafe fn g();",
        "/// # Safety\nlet x = unsafe { f() };",
    ] {
        assert_eq!(wrong_unsafe(fenced, bad).len(), 1, "{bad}");
    }

    let name = "fn f() { gguf.tensor(\"output.weight\") }";
    assert_eq!(wrong_names(Path::new("src/plan.rs"), name).len(), 1);
    assert_eq!(wrong_names(Path::new("src/plan.rs"), &format!("// {name}\n#[cfg(test)]\n{name}")).len(), 0);
    assert_eq!(wrong_names(Path::new("src/arch/llama.rs"), name).len(), 0);
    for (name, wrong) in [("\"gpt-oss\"", 1), ("\"llama.cpp of old\"", 0), ("\"llama-bpe\"", 0), ("gemma4", 0)] {
        assert_eq!(wrong_names(Path::new("src/model/rope.rs"), name).len(), wrong, "{name}");
        assert_eq!(wrong_names(Path::new("src/tokenizer/vocab.rs"), name).len(), 0, "{name}");
    }

    let cache = Path::new("src/expert/cache/fill.rs");
    for (path, bad) in [
        (cache, "use crate::{id::ExpertId, quant::QMat};"),
        (cache, "use super::super::super::quant::QMat;"),
        (cache, "use crate::io::{Done, Read};"),
        (Path::new("src/model/ffn/moe.rs"), "use crate::{backend::{Act, cpu::Cpu}, id};"),
        (Path::new("src/plan.rs"), "fn f() { crate::backend::cpu::f() }"),
        (Path::new("src/backend/reference.rs"), "use super::{Act, cpu::keys};"),
    ] {
        assert_eq!(wrong_paths(path, bad).len(), 1, "{bad}: {:?}", wrong_paths(path, bad));
    }
    for good in ["use crate::{io::{Done, IoBuf}, backend::Backend};", "// use crate::quant;", "fn cpu() {}"] {
        assert_eq!(wrong_paths(cache, good), Vec::<String>::new(), "{good}");
    }

    let model = Path::new("src/model/x.rs");
    let seven =
        "fn f<A, B: Fn(u8) -> u8>(&self, a: [u8; 2], (b, c): (A, B), d: impl Fn(u8, u8) -> u8, e: A, f: A, g: A,) {}";
    assert_eq!(wrong_parameters(model, seven), Vec::<String>::new());
    assert_eq!(wrong_parameters(model, "fn f() {} fn g(x: fn(u8, u8)) {}"), Vec::<String>::new());
    assert_eq!(wrong_parameters(model, &seven.replace("g: A,", "g: A, h: &[u8]")).len(), 1);
    assert_eq!(forward_lines("impl Model {\n    pub fn forward(\n    ) {\n        {\n        }\n    }\n}\n"), Some(5));

    assert_eq!(wrong_text(policy, "//! What it is for.\n// todo! later\n"), Vec::<String>::new());
    assert_eq!(
        wrong_text(policy, "//! What it is for.\nfn f() { todo!() }\nfn g() { unimplemented!(\"x\") }").len(),
        2
    );
    assert_eq!(wrong_text(policy, "use std::fmt;\n").len(), 1);
    assert_eq!(wrong_text(policy, &format!("//! Long.\n{}", "\n".repeat(MAX_LINES))).len(), 1);
}
