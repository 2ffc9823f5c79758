//! `hotset simulate`: what it says of guesses is what a count by hand says, its three forms say the same, and it takes no more
//! memory for a longer trace.

mod common;

use std::{
    path::Path,
    process::{Output, Stdio},
};

use common::{
    dice::Dice,
    program::command,
    routing::{Event, Shape, decoding, header, write},
};
use hotset::{
    expert::{CacheStats, Scope},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    simulate::{
        self, Compute, Conditions, Detail, Drive, Setting, SimPolicy,
        quality::{Recall, Source},
    },
    trace::{
        LayerEvent, Phase,
        file::Header,
        foresight::{Guesses, Ranking, Scores},
    },
};
use serde_json::Value;

const SHAPE: Shape = Shape { layers: 3, experts: 16, used: 3, tokens: 120 };

fn hotset(args: &[&str]) -> Output {
    let output = command(env!("CARGO_BIN_EXE_hotset")).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(args: &[&str]) -> String {
    String::from_utf8(hotset(args).stdout).unwrap()
}

/// The rows of a document.
fn rows(args: &[&str]) -> Vec<Value> {
    let mut document: Value = serde_json::from_str(&text(args)).unwrap();
    assert_eq!(document["schema"], 1);
    serde_json::from_value(document["rows"].take()).unwrap()
}

/// Decoding with scores of the next layer: its own choices, but a third of them replaced by others.
fn scored(seed: u64) -> Vec<Event> {
    let mut dice = Dice(seed);
    let mut events = decoding(&mut dice, SHAPE);
    for i in 0..events.len() - 1 {
        if usize::from(events[i].layer) + 1 < SHAPE.layers {
            let mut scores: Vec<f32> = (0..SHAPE.experts).map(|_| dice.below(1000) as f32 / 1000.0).collect();
            for routed in events[i + 1].routed.iter().filter(|_| dice.below(3) > 0) {
                scores[usize::from(routed.id.expert)] += 1.0;
            }
            events[i].lookahead = scores;
        }
    }
    events
}

/// With the first token of every dozen as a prompt of four rows, the tokens numbered anew after it.
fn with_prompts(mut events: Vec<Event>) -> Vec<Event> {
    for event in &mut events {
        let token = event.first_token % 12;
        event.first_token = if token == 0 { 0 } else { token + 3 };
        if token == 0 {
            (event.phase, event.n_tokens, event.lookahead) = (Phase::Prompt, 4, Vec::new());
            event.routed = event.routed.repeat(4);
        }
    }
    events
}

fn with_scores(ranks: usize) -> Header {
    Header { lookahead: "made up".to_owned(), lookahead_ranks: ranks, ..header(SHAPE) }
}

fn replay(trace: &Path, policy: SimPolicy, scope: Scope, prefetch: PrefetchKind) -> (CacheStats, Detail) {
    let future = simulate::future(trace).unwrap();
    let slots = simulate::slots(scope, 5, &header(SHAPE));
    let drive = Drive { latency_ns: 2000, bytes_per_us: 1000, depth: 1 };
    let compute = Compute { layer_ns: 1000, expert_ns: 500, ..Compute::default() };
    let setting = Setting {
        policy,
        scope,
        slots: &slots,
        fill: false,
        prefetch,
        vram: None,
        conditions: Conditions { drive, compute, warmup: 0 },
    };
    let (outcome, detail) = simulate::replay_in_detail(trace, &setting, Some(&future)).unwrap();
    (outcome.stats, detail)
}

/// A layer's own choices as its guesses find all of it, and what was absent is what the cache counted: whatever else comes
/// out is the measure's fault.
#[test]
fn the_control_reads_one_hundred_percent() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("a.trace");
    write(&trace, with_scores(SHAPE.experts), &with_prompts(scored(3)));
    let (mut runs, mut late) = (0, 0);
    for policy in SimPolicy::all() {
        for scope in [Scope::Layer, Scope::Global] {
            for &prefetch in PrefetchKind::ALL {
                let (stats, detail) = replay(&trace, policy, scope, prefetch);
                if [SimPolicy::BeladyBypass, SimPolicy::StaticOracle].contains(&policy) {
                    assert_eq!(detail, Detail::default(), "no cache, nothing absent");
                    continue;
                }
                let what = format!("{} {} {}", policy.name(), scope.name(), prefetch.name());
                let (decode, own) = (stats.decode, &detail.foresight[0]);
                assert_eq!((own.by, own.recall.len(), own.recall_on_misses.len()), (Source::Own, 3, 3), "{what}");
                assert_eq!((own.recall[2], own.recall_on_misses[2]), (1.0, 1.0), "{what}");
                assert_eq!(own.wanted, decode.hit + decode.late + decode.miss, "{what}");
                assert_eq!(own.absent, decode.late + decode.miss, "{what}");
                let next = &detail.foresight[1];
                assert_eq!((next.by, next.horizon), (Source::Scores, 1), "{what}");
                assert_eq!(next.wanted * 3, own.wanted * 2, "two layers of three: {what}");
                assert!((0.5..0.9).contains(&next.recall[2]) && next.recall.is_sorted(), "{what}: {next:?}");
                let named = detail.foresight.get(2);
                match prefetch {
                    PrefetchKind::Off => assert_eq!(named, None, "{what}"),
                    PrefetchKind::Lookahead => {
                        // It names the best six by the same scores.
                        let named = named.unwrap();
                        assert_eq!((named.by, named.horizon, named.wanted), (Source::Prefetch, 1, next.wanted));
                        assert_eq!(named.recall, next.recall[..6], "{what}");
                        assert_eq!(named.recall_on_misses, next.recall_on_misses[..6], "{what}");
                    }
                    _ => {}
                }
                (runs, late) = (runs + 1, late + decode.late);
            }
        }
    }
    assert!(runs == 8 * 2 * PrefetchKind::ALL.len() && late > 100, "{runs} {late}");
}

/// What the simulator was told of drive and computing, its run's pace says again.
#[test]
fn a_replay_finds_the_profile_that_it_was_given() {
    let shape = Shape { layers: 4, experts: 32, used: 6, tokens: 300 };
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("a.trace");
    let header = Header { expert_bytes: vec![60_000; 4], ..header(shape) };
    write(&trace, header.clone(), &decoding(&mut Dice(5), shape));
    let drive = Drive { latency_ns: 90_000, bytes_per_us: 600, depth: 8 };
    let compute = Compute {
        layer_ns: 41_000,
        layer_wait_ns: 60_000,
        shared_ns: 13_000,
        hand_out_ns: 7_000,
        expert_ns: 21_000,
        wake_ns: 5_000,
        token_ns: 300_000,
    };
    let conditions = Conditions { drive, compute, warmup: 20 };
    let slots = simulate::slots(Scope::Layer, 16, &header);
    let policy = SimPolicy::Live(PolicyKind::default());
    let setting = Setting {
        policy,
        scope: Scope::Layer,
        slots: &slots,
        fill: false,
        prefetch: PrefetchKind::Off,
        vram: None,
        conditions,
    };
    let (outcome, detail) = simulate::replay_in_detail(&trace, &setting, None).unwrap();
    let pace = detail.pace;
    let near = |got: f64, told: u64| assert!((got - told as f64).abs() < 1.0, "{got} for {told}: {pace:?}");
    let (layer, each) = pace.layers.fit_added().unwrap();
    near(layer, compute.layer_ns);
    near(1e6 * each, compute.layer_wait_ns);
    near(pace.shared.mean_ns().unwrap(), compute.shared_ns);
    near(pace.hand_outs.fit().unwrap().0, compute.hand_out_ns);
    near(pace.hand_outs.fit().unwrap().1, compute.expert_ns);
    near(pace.wake_ns().unwrap(), compute.wake_ns);
    near(pace.token_ns().unwrap(), compute.token_ns);
    let (latency, a_byte) = pace.reads.fit().unwrap();
    near(latency, drive.latency_ns);
    near(1e6 / a_byte, 1000 * drive.bytes_per_us);
    assert!(outcome.stats.decode.stall_ns > 0 && outcome.decode_tokens == 280);
}

/// Counts after a warm-up are those of the whole run less those of the warm-up alone, for every policy.
#[test]
fn a_warm_up_runs_and_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let (trace, start) = (folder.path().join("a.trace"), folder.path().join("b.trace"));
    let events = scored(7);
    write(&trace, with_scores(SHAPE.experts), &events);
    let n = 40;
    write(&start, with_scores(SHAPE.experts), &events[..n * SHAPE.layers]);
    for policy in PolicyKind::ALL.iter().map(|&kind| SimPolicy::Live(kind)).chain([SimPolicy::Random]) {
        let run = |trace: &Path, warmup| {
            let slots = simulate::slots(Scope::Layer, 5, &header(SHAPE));
            let drive = Drive { latency_ns: 2000, bytes_per_us: 1000, depth: 1 };
            let conditions = Conditions { drive, compute: Compute { layer_ns: 1000, ..Compute::default() }, warmup };
            let prefetch = PrefetchKind::Lookahead;
            let setting =
                Setting { policy, scope: Scope::Layer, slots: &slots, fill: false, prefetch, vram: None, conditions };
            simulate::replay(trace, &setting, None)
        };
        let (all, first, rest) = (run(&trace, 0).unwrap(), run(&start, 0).unwrap(), run(&trace, n as u64).unwrap());
        assert_eq!(rest.stats, all.stats.since(&first.stats), "{}", policy.name());
        assert_eq!(rest.decode_ns, all.decode_ns - first.decode_ns, "{}", policy.name());
        assert_eq!(rest.decode_tokens, (SHAPE.tokens - n) as u64);
        let error = run(&trace, SHAPE.tokens as u64).unwrap_err().to_string();
        assert!(error.contains("warm-up") && error.contains("120"), "{error}");
    }
}

/// Two layers of four experts, one of them a token; the second layer has two slots.
#[test]
fn recall_on_misses_by_hand() {
    let shape = Shape { layers: 2, experts: 4, used: 1, tokens: 5 };
    let mut events = decoding(&mut Dice(1), shape);
    // wants, guesses by rank: miss at rank 2, miss at rank 1, hit at rank 1, miss without a rank, no guess.
    let tokens = [(0, [1.0, 2.0]), (1, [1.0, 2.0]), (0, [2.0, 1.0]), (2, [2.0, 1.0]), (3, [0.0, 0.0])];
    for (i, (wants, [zero, one])) in tokens.into_iter().enumerate() {
        events[2 * i].routed[0].id.expert = 0;
        events[2 * i + 1].routed[0].id.expert = wants;
        if i < 4 {
            events[2 * i].lookahead = vec![zero, one, f32::NEG_INFINITY, f32::NEG_INFINITY];
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("a.trace");
    write(&trace, Header { lookahead: "made up".to_owned(), lookahead_ranks: 2, ..header(shape) }, &events);
    let setting = Setting {
        policy: SimPolicy::Live(PolicyKind::Lru),
        scope: Scope::Layer,
        slots: &[2, 2],
        fill: false,
        prefetch: PrefetchKind::Off,
        vram: None,
        conditions: Conditions {
            drive: Drive { latency_ns: 1, bytes_per_us: 1, depth: 1 },
            compute: Compute::default(),
            warmup: 0,
        },
    };
    let (_, detail) = simulate::replay_in_detail(&trace, &setting, None).unwrap();
    let own =
        Recall { by: Source::Own, horizon: 0, wanted: 10, absent: 5, recall: vec![1.0], recall_on_misses: vec![1.0] };
    let next = Recall {
        by: Source::Scores,
        horizon: 1,
        wanted: 4,
        absent: 3,
        recall: vec![2.0 / 4.0, 3.0 / 4.0],
        recall_on_misses: vec![1.0 / 3.0, 2.0 / 3.0],
    };
    assert_eq!(detail.foresight, [own, next]);
}

/// Three layers of eight experts: of the second one the first layer's scores are all wrong, of the last one the second's are
/// its choices.
#[test]
fn layers_scores_are_kept_apart() {
    let shape = Shape { layers: 3, experts: 8, used: 2, tokens: 30 };
    let mut events = decoding(&mut Dice(19), shape);
    for token in 0..shape.tokens {
        let last: Vec<u16> = events[3 * token + 2].routed.iter().map(|r| r.id.expert).collect();
        let right: Vec<f32> = (0..8).map(|e| f32::from(u8::from(last.contains(&e)))).collect();
        events[3 * token + 1].lookahead = right;
        let next: Vec<u16> = events[3 * token + 1].routed.iter().map(|r| r.id.expert).collect();
        events[3 * token].lookahead = (0..8).map(|e| f32::from(u8::from(!next.contains(&e)))).collect();
    }
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("a.trace");
    let lookahead = "made up".to_owned();
    write(&trace, Header { lookahead, lookahead_ranks: 8, ..header(shape) }, &events);
    let slots = [3; 3];
    let setting = Setting {
        policy: SimPolicy::Live(PolicyKind::Lru),
        scope: Scope::Layer,
        slots: &slots,
        fill: false,
        prefetch: PrefetchKind::Off,
        vram: None,
        conditions: Conditions {
            drive: Drive { latency_ns: 1, bytes_per_us: 1, depth: 1 },
            compute: Compute::default(),
            warmup: 0,
        },
    };
    let (_, detail) = simulate::replay_in_detail(&trace, &setting, None).unwrap();
    let found: Vec<_> = detail.foresight.iter().map(|r| (r.by, r.horizon, r.wanted, r.recall[1])).collect();
    assert_eq!(found, [(Source::Own, 0, 180, 1.0), (Source::Scores, 1, 120, 0.5)]);
}

#[test]
fn shares_of_prefetches_are_those_of_their_counts() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("a.trace");
    write(&trace, with_scores(SHAPE.experts), &scored(5));
    let args = ["--slots", "4,8", "--policy", "lru,default", "--prefetch", "off,lookahead", "--drive", "1:1000"];
    let args = [&["simulate", trace.to_str().unwrap(), "--json", "--layer-us", "3"], &args[..]].concat();
    let rows = rows(&args);
    let (mut in_time, mut late, mut wasted) = (0, 0, 0);
    for row in &rows {
        let count = |key: &str| row[key].as_u64().unwrap();
        let all = count("prefetches");
        assert_eq!(all > 0, row["prefetch"] == "lookahead");
        for (key, share) in [("useful", "useful_share"), ("late", "late_share"), ("wasted", "wasted_share")] {
            let n = count(&format!("prefetch_{key}"));
            assert_eq!(row[share].as_f64(), (all > 0).then(|| n as f64 / all as f64), "{row}");
        }
        assert!(count("prefetch_useful") + count("prefetch_wasted") <= all, "{row}");
        assert_eq!(count("prefetch_late"), count("late"), "{row}");
        in_time += count("prefetch_useful") - count("prefetch_late");
        (late, wasted) = (late + count("prefetch_late"), wasted + count("prefetch_wasted"));
    }
    assert!(in_time > 0 && late > 0 && wasted > 0, "{in_time} {late} {wasted}");
}

#[test]
fn csv_says_what_json_says() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("a.trace");
    write(&trace, with_scores(6), &scored(7));
    let args = ["simulate", trace.to_str().unwrap(), "--slots", "4,8", "--prefetch", "off,lookahead"];
    let json = rows(&[&args[..], &["--json"]].concat());
    let csv = text(&[&args[..], &["--csv"]].concat());
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let head = lines.next().unwrap();
    assert_eq!(head[..4], ["policy", "scope", "prefetch", "slots_per_layer"]);
    assert_eq!(lines.clone().count(), json.len());
    let same = |cell: &str, value: &Value| match value {
        Value::Null => cell.is_empty(),
        Value::String(text) => cell == text,
        Value::Array(list) => {
            let cells: Vec<&str> = cell.split_whitespace().collect();
            cells.len() == list.len() && cells.iter().zip(list).all(|(c, v)| c.parse::<f64>().ok() == v.as_f64())
        }
        number => cell.parse::<f64>().ok() == number.as_f64(),
    };
    for (line, row) in lines.zip(&json) {
        assert_eq!(line.len(), head.len());
        let (mut keys, mut foresight) = (row.as_object().unwrap().len() - 1, 0);
        for (key, cell) in head.iter().zip(line) {
            // recall_on_misses_scores_1: a list, a source, a horizon.
            let words: Vec<&str> = key.rsplitn(3, '_').collect();
            let value = match words[..] {
                [horizon, by, list] if list.starts_with("recall") => {
                    let of = |r: &&Value| r["by"] == by && r["horizon"].as_u64() == horizon.parse().ok();
                    let found = row["foresight"].as_array().unwrap().iter().find(of);
                    foresight += usize::from(found.is_some());
                    found.map_or(&Value::Null, |r| &r[list])
                }
                _ => {
                    keys -= 1;
                    &row[key]
                }
            };
            assert!(same(cell, value), "{key}: {cell} is not {value}");
        }
        assert_eq!(keys, 0, "every key of {row} has a column");
        assert_eq!(foresight, 2 * row["foresight"].as_array().unwrap().len(), "{row}");
    }
}

#[test]
fn text_has_the_rows_figures_and_the_control() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("a.trace");
    let hostile = Header { model: "\u{1b}[31mred\nand\u{7}".to_owned(), ..with_scores(6) };
    write(&trace, hostile, &scored(9));
    let args = ["simulate", trace.to_str().unwrap(), "--slots", "4", "--policy", "lru"];
    let shown = text(&args);
    let rows = rows(&[&args[..], &["--json"]].concat());
    let percent = |value: &Value| format!("{:.2}", value.as_f64().unwrap() * 100.0);
    let figures: Vec<&str> = shown.lines().filter_map(|line| line.strip_prefix("lru ")).map(str::trim).collect();
    assert_eq!(figures, [percent(&rows[0]["hit_rate"]), percent(&rows[0]["foresight"][1]["recall_on_misses"][2])]);
    assert!(shown.contains("(must be 100): 100\n"), "{shown}");
    let stats = text(&["trace", "stats", trace.to_str().unwrap()]);
    for shown in [shown, stats] {
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
        assert!(shown.lines().next().unwrap().contains("[31mred"), "{shown}");
    }
}

/// A row says what it says whatever the trace: nothing is a number that is none.
#[test]
fn a_trace_of_prompts_only_has_no_figures() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("a.trace");
    let mut events = scored(11);
    events.iter_mut().for_each(|e| e.phase = Phase::Prompt);
    write(&trace, with_scores(6), &events);
    let rows = rows(&["simulate", trace.to_str().unwrap(), "--slots", "4", "--json"]);
    for row in &rows {
        assert!(row["hit_rate"].is_null() && row["foresight"].as_array().unwrap().is_empty(), "{row}");
    }
    assert!(!text(&["simulate", trace.to_str().unwrap(), "--slots", "4"]).contains("control"));
}

/// What the last line says. (requests in millions, peak memory in MiB)
#[cfg(target_os = "linux")]
fn requests_and_peak(trace: &Path) -> (f64, f64) {
    let args = ["simulate", trace.to_str().unwrap(), "--slots", "25%", "--policy", "lru,default"];
    let said = String::from_utf8(hotset(&args).stderr).unwrap();
    let number = |before: &str, after: &str| {
        let (_, rest) = said.split_once(before).unwrap_or_else(|| panic!("{before} is not in {said}"));
        let (number, _) = rest.split_once(after).unwrap_or_else(|| panic!("{after} is not in {said}"));
        number.trim().parse::<f64>().unwrap()
    };
    (number("hotset:", "million"), number("peak RSS", "MiB"))
}

/// Ten times the trace, which takes 10 MiB as a file, in the same memory.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_trace() {
    use hotset::trace::{TraceSink, file::TraceWriter};
    let shape = Shape { layers: 8, experts: 64, used: 6, tokens: 6000 };
    let events = decoding(&mut Dice(13), shape);
    let folder = tempfile::tempdir().unwrap();
    let of = |times: u32| {
        let path = folder.path().join(format!("{times}.trace"));
        let mut writer = TraceWriter::create(&path, header(shape)).unwrap();
        for time in 0..times {
            for event in &events {
                let first_token = event.first_token + time * shape.tokens as u32;
                writer.record(Event { first_token, ..event.clone() }.borrow());
            }
        }
        writer.flush().unwrap();
        requests_and_peak(&path)
    };
    let ((few, low), (many, high)) = (of(1), of(10));
    assert!((many / few - 10.0).abs() < 0.2, "{few} and {many} million requests");
    assert!(high < low + 2.0, "{low} MiB, then {high} MiB");
}

/// Ranks are counted, not sorted: here against the sorted order, with scores that are equal or missing.
#[test]
fn ranks_are_those_of_the_sorted_scores() {
    let mut dice = Dice(17);
    for n_expert in [1, 5, 16, 131] {
        let score = |n: usize| if n < 2 { f32::NEG_INFINITY } else { n as f32 - 4.0 };
        let scores: Vec<f32> = (0..n_expert).map(|_| score(dice.below(9))).collect();
        let mut sorted: Vec<u16> = (0..n_expert as u16).filter(|&e| scores[usize::from(e)].is_finite()).collect();
        sorted.sort_by(|&a, &b| scores[usize::from(b)].total_cmp(&scores[usize::from(a)]));
        let event = |layer| LayerEvent {
            phase: Phase::Decode,
            first_token: 7,
            n_tokens: 1,
            layer,
            routed: &[],
            lookahead: &[],
        };
        let mut guesses = Guesses::<Scores>::new(1);
        guesses.learn(event(3), |kept| kept.set(&scores));
        assert!(guesses.of(event(3)).is_none() && guesses.of(event(5)).is_none());
        if sorted.is_empty() {
            assert!(guesses.of(event(4)).is_none());
            continue;
        }
        let ranking = guesses.of(event(4)).unwrap();
        assert_eq!(ranking.named(), sorted.len());
        for expert in 0..n_expert as u16 {
            assert_eq!(ranking.rank(expert), sorted.iter().position(|&e| e == expert), "{expert} of {scores:?}");
        }
    }
}
