//! `hotset report`: its numbers are the simulator's and the run's, its page is well-formed whatever files say, and bad
//! input is refused in one sentence.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use common::{
    dice::Dice,
    program::{budget, command},
    routing::{Event, Shape, decoding, header, write},
};
use hotset::{
    report::{
        Series, routing,
        series::{MAX_POINTS, Point},
    },
    trace::file::{Header, Prompt},
};
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");
const SHAPE: Shape = Shape { layers: 4, experts: 24, used: 3, tokens: 150 };

fn hotset(args: &[&str]) -> Output {
    command(env!("CARGO_BIN_EXE_hotset")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Standard output of a run that must succeed.
fn text(args: &[&str]) -> String {
    let output = hotset(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&text(args)).unwrap()
}

/// A made-up trace in `folder`.
fn trace(folder: &Path, name: &str, header: Header) -> String {
    let path = folder.join(name);
    write(&path, header, &decoding(&mut Dice(7), SHAPE));
    path.to_str().unwrap().to_owned()
}

/// The page as XML, which its source is too.
fn page(source: &str) -> Document<'_> {
    Document::parse_with_options(source, ParsingOptions { allow_dtd: true, ..ParsingOptions::default() }).unwrap()
}

fn of_class<'a, 'b>(page: &'b Document<'a>, tag: &str, class: &str) -> Vec<Node<'b, 'a>> {
    let has = |n: &Node<'_, '_>| n.attribute("class").is_some_and(|c| c.split(' ').any(|c| c == class));
    page.descendants().filter(|n| n.has_tag_name(tag) && has(n)).collect()
}

fn figures<'a, 'b>(page: &'b Document<'a>) -> Vec<Node<'b, 'a>> {
    page.descendants().filter(|n| n.has_tag_name("figure")).collect()
}

fn texts(page: &Document<'_>) -> String {
    page.descendants().filter_map(|n| if n.is_text() { n.text() } else { None }).collect::<Vec<_>>().join("\n")
}

fn sum(list: &Value) -> u64 {
    list.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum()
}

#[test]
fn numbers_are_the_simulators() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace(folder.path(), "a.trace", header(SHAPE));
    let options = ["--scope", "layer,global", "--prefetch", "off,lookahead"];
    let report = json(&[&["report", &trace, "--json"], &options[..]].concat());
    let rows = &json(&[&["simulate", &trace, "--json"], &options[..]].concat())["rows"];
    let traced = &report["trace"];
    assert_eq!(&traced["curves"], rows);
    let sizes: std::collections::BTreeSet<_> =
        rows.as_array().unwrap().iter().map(|r| r["slots_per_layer"].as_u64().unwrap()).collect();
    assert_eq!((sizes.len(), sizes.first(), sizes.last()), (12, Some(&3), Some(&24)));
    let mut caches = 0;
    for row in rows.as_array().unwrap() {
        let same = |l: &&Value| ["policy", "scope", "prefetch", "slots_per_layer"].iter().all(|k| l[k] == row[k]);
        let Some(layers) = traced["layers"].as_array().unwrap().iter().find(same) else {
            let policy = row["policy"].as_str().unwrap();
            assert!(["belady-bypass", "static-oracle"].contains(&policy), "{policy} has no layers");
            continue;
        };
        for key in ["hit", "late", "miss"] {
            assert_eq!(sum(&layers[key]), row[key].as_u64().unwrap(), "{key} of {row}");
        }
        caches += 1;
    }
    assert_eq!(caches, traced["layers"].as_array().unwrap().len());
    let uses = traced["routing"]["uses"].as_array().unwrap();
    assert_eq!(uses.len(), SHAPE.layers);
    for layer in uses {
        assert_eq!((layer.as_array().unwrap().len(), sum(layer)), (SHAPE.experts, (SHAPE.tokens * SHAPE.used) as u64));
    }
    assert_eq!(traced["routing"]["decode_tokens"], SHAPE.tokens);
    assert!(report["run"].is_null());
}

#[test]
fn the_page_is_well_formed_and_has_every_curve() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace(folder.path(), "a.trace", header(SHAPE));
    let html = folder.path().join("out.html");
    let printed = text(&["report", &trace, "--html", html.to_str().unwrap(), "--scope", "layer,global"]);
    assert_eq!(printed, "");
    let source = fs::read_to_string(&html).unwrap();
    let page = page(&source);
    let rows = &json(&["simulate", &trace, "--json"])["rows"];
    let mut policies: Vec<&str> = rows.as_array().unwrap().iter().map(|r| r["policy"].as_str().unwrap()).collect();
    policies.sort_unstable();
    policies.dedup();
    let all = texts(&page);
    let first = figures(&page)[0];
    let curves = first.descendants().filter(|n| n.has_tag_name("polyline")).count();
    assert_eq!(curves, policies.len());
    let made = first.descendants().find(|n| n.has_tag_name("details")).unwrap();
    assert!(made.descendants().any(|n| n.has_tag_name("dl")), "provenance is folded below the first figure");
    let header = page.descendants().find(|n| n.has_tag_name("header")).unwrap();
    let said: String = header.descendants().filter_map(|n| n.text()).collect();
    assert!(said.starts_with("made-up") && said.contains("At a quarter of the experts’ memory, "), "{said}");
    for name in ["lfu-adaptive, the default", "belady, best possible"] {
        assert_eq!(
            page.descendants().filter(|n| n.has_tag_name("text") && n.text() == Some(name)).count(),
            2 * 2,
            "{name}"
        );
    }
    for policy in &policies {
        assert!(all.contains(policy), "{policy}");
    }
    for row in rows.as_array().unwrap() {
        let rate = format!("{:.2}", row["hit_rate"].as_f64().unwrap() * 100.0);
        assert!(page.descendants().any(|n| n.has_tag_name("td") && n.text() == Some(&rate)), "{row}");
        let (policy, slots) = (row["policy"].as_str().unwrap(), &row["slots_per_layer"]);
        let hover = format!("{policy}, {slots} slots per layer");
        assert!(page.descendants().any(|n| n.has_tag_name("title") && n.text().unwrap().starts_with(&hover)), "{row}");
    }
    assert_eq!(of_class(&page, "line", "cliff").len(), 2, "one for each scope");
    // Nothing to load and nothing to run: http only in the names of namespaces and headers.
    for word in ["<script", "<img", "<link", "://", "url(", "@import", "NaN", "inf"] {
        assert!(!source.contains(word), "{word}");
    }
    for title in ["Miss ratio", "Won over LRU", "Hits layer by layer", "Popularity of experts"] {
        assert!(page.descendants().any(|n| n.has_tag_name("h3") && n.text().unwrap().starts_with(title)), "{title}");
    }
    let again = hotset(&["report", &trace, "--html", html.to_str().unwrap()]);
    assert!(refusal(&again, 1).contains("out.html"));
    assert_eq!(fs::read_to_string(&html).unwrap(), source, "what is there stays");
}

#[test]
fn names_from_files_cannot_become_markup() {
    let evil = "</title><script>alert('1')</script> & \"<b onclick='x'>\u{202e}\u{7}]]>";
    let folder = tempfile::tempdir().unwrap();
    let prompt = Prompt { name: evil.to_owned(), tokens: 1, hash: evil.to_owned() };
    let named = Header {
        model: evil.to_owned(),
        model_id: evil.to_owned(),
        source: evil.to_owned(),
        lookahead: evil.to_owned(),
        prompts: vec![prompt],
        ..header(SHAPE)
    };
    let trace = trace(folder.path(), "<i>'&quot;.trace", named);
    let run = run_record(folder.path(), "run.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&run).unwrap()).unwrap();
    for key in
        ["version", "date", "machine", "model", "model_id", "io", "io_reason", "policy", "prefetch", "scope", "isa"]
    {
        record[key] = evil.into();
    }
    let evil_run = folder.path().join("evil.json");
    fs::write(&evil_run, record.to_string()).unwrap();
    let html = folder.path().join("out.html");
    text(&["report", &trace, "--run", evil_run.to_str().unwrap(), "--html", html.to_str().unwrap()]);
    let source = fs::read_to_string(&html).unwrap();
    let page = page(&source);
    let tags = ["script", "b", "i"];
    assert!(!page.descendants().any(|n| tags.contains(&n.tag_name().name())));
    assert!(!page.descendants().any(|n| n.attributes().any(|a| a.name().starts_with("on"))));
    let shown = evil.replace(['\u{202e}', '\u{7}'], "\u{fffd}");
    assert!(texts(&page).matches(&shown).count() >= 10, "{}", texts(&page));
    assert!(texts(&page).contains("<i>'&quot;.trace"));
    assert!(!source.contains('\u{202e}') && !source.contains('\u{7}'));
    assert!(!text(&["report", &trace]).contains('\u{7}'), "a terminal would obey");
}

/// The record of a run of the bundled model.
fn run_record(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let budget = budget(env!("CARGO_BIN_EXE_hotset"), MODEL, 1);
    let args = ["run", MODEL, "Once upon a time", "-n", "40", "--ignore-eos", "--memory", &budget, "--stats-json"];
    text(&[&args[..], &[path.to_str().unwrap()]].concat());
    path
}

#[test]
fn a_run_is_recorded_token_by_token_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_record(folder.path(), "run.json");
    let run = run.to_str().unwrap();
    let record: Value = serde_json::from_slice(&fs::read(run).unwrap()).unwrap();
    let (tokens, decode) = (&record["tokens"], &record["decode"]);
    assert_eq!((&tokens["count"], &tokens["each"]), (&39.into(), &1.into()));
    for key in ["hit", "late", "miss"] {
        assert_eq!(sum(&tokens[key]), decode[key].as_u64().unwrap());
        let layers = record["layers"].as_array().unwrap().iter().map(|l| l[key].as_u64().unwrap());
        assert_eq!(layers.sum::<u64>(), decode[key].as_u64().unwrap());
    }
    let near = |ns: u64, other: f64| (ns as f64 / other - 1.0).abs() < 1e-9 || (ns == 0 && other == 0.0);
    assert!(near(sum(&tokens["time_ns"]), decode["seconds"].as_f64().unwrap() * 1e9), "{tokens}");
    assert!(near(sum(&tokens["stall_ns"]), decode["stall_ms"].as_f64().unwrap() * 1e6));
    assert!(sum(&tokens["bytes"]) <= record["bytes_read"].as_u64().unwrap() && sum(&tokens["bytes"]) > 0);

    let report = json(&["report", "--run", run, "--json"]);
    assert!(report["trace"].is_null());
    for (key, value) in report["run"].as_object().unwrap() {
        if key == "decode" {
            value.as_object().unwrap().iter().for_each(|(key, value)| assert_eq!(value, &decode[key], "{key}"));
        } else {
            assert_eq!(value, &record[key], "{key}");
        }
    }
    assert!(text(&["report", "--run", run]).starts_with("The run decoded 39 tokens at "));
    let html = folder.path().join("out.html");
    text(&["report", "--run", run, "--html", html.to_str().unwrap()]);
    let source = fs::read_to_string(&html).unwrap();
    let page = page(&source);
    assert_eq!(figures(&page).len(), 4);
    assert_eq!(page.descendants().filter(|n| n.has_tag_name("polygon")).count(), 2 + 3 + 1 + 3);
    let polygon = of_class(&page, "polygon", "s-rest")[0].attribute("points").unwrap();
    assert_eq!(polygon.split(' ').count(), 39 * 4, "a column has four corners");
    let hovers =
        page.descendants().filter(|n| n.has_tag_name("title") && n.text().unwrap().starts_with("token ")).count();
    assert_eq!(hovers, 3 * 39);
}

/// The one sentence of a refusal, with its exit code.
fn refusal(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.starts_with("hotset: ") && stderr.trim_end().lines().count() == 1, "{stderr}");
    stderr
}

#[test]
fn bad_input_is_refused_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace(folder.path(), "a.trace", header(SHAPE));
    let run = run_record(folder.path(), "run.json");
    let record: Value = serde_json::from_slice(&fs::read(&run).unwrap()).unwrap();
    let changed = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut record = record.clone();
        change(&mut record);
        let path = folder.path().join(name);
        fs::write(&path, record.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let short = changed("short.json", &|r| r["tokens"]["hit"] = Value::Array(vec![1.into()]));
    let many = changed("many.json", &|r| r["tokens"]["each"] = 0.into());
    let huge = changed("huge.json", &|r| r["tokens"]["bytes"][3] = u64::MAX.into());
    let wrong = changed("wrong.json", &|r| r["decode"]["hit"] = 1.into());
    let layers = changed("layers.json", &|r| r["layers"][0]["miss"] = u64::MAX.into());
    let none = changed("none.json", &|r| drop(r.as_object_mut().unwrap().remove("tokens")));
    let page = folder.path().join("page.html");
    let page = page.to_str().unwrap();
    let cases: &[(&[&str], &str, i32)] = &[
        (&["report", "/no/such.trace"], "/no/such.trace", 1),
        (&["report", MODEL], "HOTTRACE", 1),
        (&["report", &trace, "--html", "/no/folder/out.html"], "/no/folder/out.html", 1),
        (&["report", &trace, "--html", "/tmp"], "/tmp", 1),
        (&["report", &trace, "--policy", "best"], "--policy", 2),
        (&["report", &trace, "--slots", "1"], "--slots", 1),
        (&["report", "--run", "/no/run.json"], "/no/run.json", 1),
        (&["report", "--run", &trace], "a.trace", 1),
        (&["report", "--run", &short, "--html", page], "short.json", 1),
        (&["report", "--run", &many], "many.json", 1),
        (&["report", "--run", &huge], "2^48", 1),
        (&["report", "--run", &wrong], "wrong.json", 1),
        (&["report", "--run", &layers], "layers.json", 1),
        (&["report", "--run", &none], "tokens", 1),
    ];
    for (args, named, code) in cases {
        let sentence = refusal(&hotset(args), *code);
        assert!(sentence.contains(named), "{args:?}: {sentence}");
    }
    assert!(!Path::new(page).exists(), "a page that failed leaves nothing");
    assert_eq!(hotset(&["report"]).status.code(), Some(2), "a trace or a run");
    for option in [
        ["--policy", "lru"],
        ["--slots", "50%"],
        ["--scope", "layer"],
        ["--prefetch", "off"],
        ["--drive", "sata"],
        ["--layer-us", "0"],
        ["--shared-us", "0"],
        ["--expert-us", "0"],
    ] {
        let output = hotset(&[&["report", "--run", run.to_str().unwrap()], &option[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{option:?} without a trace");
    }
}

#[test]
fn a_run_without_decoding_and_a_trace_without_tokens_have_pages_too() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (run, empty, html) = (at("run.json"), at("empty.trace"), at("out.html"));
    text(&["run", MODEL, "Once", "-n", "0", "--stats-json", &run]);
    write(Path::new(&empty), header(SHAPE), &[]);
    text(&["report", &empty, "--run", &run, "--html", &html]);
    let source = fs::read_to_string(&html).unwrap();
    assert!(texts(&page(&source)).contains("decoded nothing") && !source.contains("NaN"), "{source}");
    assert!(text(&["report", &empty]).contains("miss ratio"));
}

#[test]
fn curves_in_the_terminal_have_every_policy() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace(folder.path(), "a.trace", header(SHAPE));
    let plot = text(&["report", &trace, "--policy", "lru,belady,random"]);
    let key = plot.lines().find(|l| l.starts_with("a ")).unwrap();
    for (i, entry) in key.split("   ").enumerate() {
        let (letter, name) = entry.split_once(' ').unwrap();
        assert!(["lru", "belady", "random"].contains(&name) && letter == ["a", "b", "c"][i], "{key}");
        let rows = || plot.lines().filter_map(|l| l.split_once(" |").map(|(_, row)| row));
        assert!(rows().filter(|r| r.contains(letter)).count() > 5, "{name} is not drawn:\n{plot}");
    }
    assert!(key.ends_with("c belady"), "the optimum misses least: {key}");
    assert!(plot.lines().all(|l| l.chars().count() <= 120 && !l.contains('\u{1b}')), "{plot}");
}

#[test]
fn ranks_are_counted_by_hand() {
    let shape = Shape { layers: 2, experts: 4, used: 1, tokens: 4 };
    let mut events: Vec<Event> = decoding(&mut Dice(3), shape);
    let wanted = [0, 1, 2, 3];
    for (i, event) in events.iter_mut().enumerate() {
        let (token, layer) = (i / 2, i % 2);
        event.routed[0].id.expert = if layer == 0 { 0 } else { wanted[token] };
        if layer == 0 && token < 3 {
            // Expert 0 first, 1 second, no third.
            event.lookahead = vec![2.0, 1.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.trace");
    write(&path, Header { lookahead: "made up".to_owned(), lookahead_ranks: 2, ..header(shape) }, &events);
    let routing = routing::routing(&path).unwrap();
    let ranks: Vec<_> = routing.ranks.iter().map(|r| (r.guesses, r.right)).collect();
    assert_eq!(ranks, [(3, 1), (3, 1)], "tokens 0 and 1 are right, 2 is not, 3 has no guess");
    assert_eq!((routing.ranks[0].precision, routing.ranks[0].recall), (1.0 / 3.0, 1.0 / 3.0));
    assert_eq!(routing.ranks[1].recall, 2.0 / 3.0);
    assert_eq!(routing.uses, [[4, 0, 0, 0], [1, 1, 1, 1]]);
}

#[test]
fn a_series_is_bounded_and_loses_no_sum() {
    let mut dice = Dice(11);
    let mut series = Series::default();
    let mut total = Point::default();
    let n = 3 * MAX_POINTS as u64 + 17;
    for _ in 0..n {
        let point = Point {
            hit: dice.below(9) as u64,
            late: dice.below(3) as u64,
            miss: dice.below(9) as u64,
            bytes: dice.below(99) as u64,
            stall_ns: dice.below(50) as u64,
            time_ns: dice.below(100) as u64,
        };
        total.hit += point.hit;
        total.late += point.late;
        total.miss += point.miss;
        total.bytes += point.bytes;
        total.stall_ns += point.stall_ns;
        total.time_ns += point.time_ns;
        series.push(point);
    }
    assert_eq!((series.tokens(), series.each(), series.total()), (n, 4, total));
    assert_eq!(series.points().len() as u64, n.div_ceil(4));
    let coarse = series.coarse(100);
    assert!(coarse.len() <= 100 && coarse.iter().map(|(tokens, _)| tokens).sum::<u64>() == n);
    assert_eq!(coarse.iter().map(|(_, p)| p.time_ns).sum::<u64>(), total.time_ns);
    let text = serde_json::to_string(&series).unwrap();
    assert_eq!(serde_json::from_str::<Series>(&text).unwrap(), series);
    assert_eq!((Series::default().total(), Series::default().coarse(9)), (Point::default(), Vec::new()));
}
