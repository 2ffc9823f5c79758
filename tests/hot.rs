//! Pinned experts and warm starts: what stays, what is read when, what is refused; and that no bit of the output changes.

mod common;

use std::{fs, path::Path};

use common::{
    program::{budget, command},
    ref_models::{golden, ref_model},
};
use hotset::{
    arch,
    blueprint::Blueprint,
    expert::{ExpertCache, ExpertStore, Hot, HotList, Scope},
    gguf::Gguf,
    id::ExpertId,
    io::{SimClock, SimIo},
    policy::PolicyKind,
    quant::GgmlType,
    session::{Options, Session},
    trace::{LayerEvent, Phase, Routed},
};
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");

fn list(text: &str) -> HotList {
    HotList::parse(text, Path::new("list"), 100, 100).unwrap()
}

fn id(layer: u16, expert: u16) -> ExpertId {
    ExpertId { layer, expert }
}

#[test]
fn a_list_is_lines_of_numbers_and_every_other_line_is_refused_by_its_number() {
    let text = "# layer expert uses\n\n 3 17 412 \n0 5\n";
    let read = list(text);
    assert_eq!(read.iter().collect::<Vec<_>>(), [Hot { id: id(3, 17), uses: 412 }, Hot { id: id(0, 5), uses: 1 }]);
    assert_eq!(list(&read.to_text()), read);
    for (line, message) in [
        ("3", "a layer, an expert and perhaps its uses, got \"3\""),
        ("1 2 3 4", "a layer, an expert and perhaps its uses, got \"1 2 3 4\""),
        ("1 -2", "a layer, an expert and perhaps its uses, got \"1 -2\""),
        ("1 two", "a layer, an expert and perhaps its uses, got \"1 two\""),
        ("1 2 99999999999", "a layer, an expert and perhaps its uses, got \"1 2 99999999999\""),
        ("100 0", "a MoE layer below 100, got 100"),
        ("99 100 7", "an expert below 100, got 100"),
        ("0 0", "each expert once, got expert 0 of MoE layer 0 again"),
    ] {
        let error = HotList::parse(&format!("0 0\n{line}\n"), Path::new("list"), 100, 100).unwrap_err();
        assert_eq!(error.to_string(), format!("list: line 2: expected {message}"));
    }
}

#[test]
fn uses_are_ordered_cut_by_layer_and_fade_from_run_to_run() {
    let first = HotList::from_uses(&[0, 9, 4, 4, 0, 7], 3);
    assert_eq!(first, list("0 1 9\n1 2 7\n0 2 4\n1 0 4"));
    assert_eq!(first.clone().top(1), list("0 1 9\n1 2 7"));
    let second = HotList::from_uses(&[1, 0, 6, 0, 0, 0], 3).after(&first);
    assert_eq!(second, list("0 2 8\n0 1 4\n1 2 3\n1 0 2\n0 0 1"));
    assert_eq!(HotList::from_uses(&[0; 6], 3).after(&list("0 0 1\n0 1 3")), list("0 1 1"));
}

/// A cache of the reference model's experts on a drive that takes a microsecond a read.
fn cache(scope: Scope, slots: usize, policy: PolicyKind) -> (ExpertCache, SimClock, Blueprint) {
    let gguf = Gguf::open(&ref_model("qwen3moe")).unwrap();
    let blueprint = arch::blueprint(&gguf).unwrap();
    let store = ExpertStore::new(&gguf, blueprint.experts()).unwrap();
    let pools = if scope == Scope::Layer { store.layers().len() } else { 1 };
    let sim = SimIo::new(1000, u64::MAX);
    let clock = sim.clock();
    (ExpertCache::new(store, scope, &vec![slots; pools], policy, Box::new(sim)).unwrap(), clock, blueprint)
}

fn decode(cache: &mut ExpertCache, layer: u16, experts: &[u16]) {
    let routed: Vec<_> = experts.iter().map(|&e| Routed { id: id(layer, e), weight: 0.5 }).collect();
    let (phase, lookahead) = (Phase::Decode, &[][..]);
    cache.request(LayerEvent { phase, first_token: 0, n_tokens: 1, layer, routed: &routed, lookahead });
    let mut ready = Vec::new();
    let mut n = 0;
    while {
        cache.next_ready(&mut ready).unwrap();
        !ready.is_empty()
    } {
        n += ready.len();
    }
    assert_eq!(n, experts.len());
}

#[test]
fn pinned_experts_are_read_first_and_never_leave() {
    for &policy in PolicyKind::ALL {
        for scope in [Scope::Layer, Scope::Global] {
            let (mut cache, clock, blueprint) = cache(scope, 5, policy);
            let pins = list("0 6\n1 7\n0 1");
            cache.pin(&pins, 2).unwrap();
            for turn in 0..200u16 {
                let n = blueprint.n_expert as u16;
                decode(
                    &mut cache,
                    turn % 2,
                    &[turn % n, (turn * 5 + 1) % n][..if turn % n == (turn * 5 + 1) % n { 1 } else { 2 }],
                );
                clock.advance(10_000);
                if turn > 3 {
                    assert!(pins.iter().all(|hot| cache.is_resident(hot.id)), "{} {turn}", policy.name());
                }
            }
            let stats = cache.stats();
            assert!(stats.warm_reads <= 3 && stats.evictions > 50, "{stats:?}");
            assert_eq!((cache.n_pinned(), cache.hot().iter().map(|h| h.uses).sum::<u32>() > 200), (3, true));
        }
    }
}

#[test]
fn pins_leave_room_for_what_a_token_needs_and_yield_when_slots_go() {
    let (mut cache, clock, blueprint) = cache(Scope::Layer, 5, PolicyKind::default());
    let error = cache.pin(&list("0 0\n1 0\n1 1\n1 2\n1 3"), 2).unwrap_err().to_string();
    let what =
        "pinned experts of MoE layer 1: expected at most 3 (5 slots, of which a token needs 2 for others), got 4";
    assert_eq!((error.as_str(), cache.n_pinned()), (what, 0));
    cache.pin(&list("1 0\n1 1\n1 2"), 2).unwrap();
    assert_eq!(cache.n_pinned(), 3);
    let few = vec![3; cache.store().layers().len()];
    decode(&mut cache, 1, &[3, 4]);
    clock.advance(100_000);
    decode(&mut cache, 1, &[3, 4]);
    cache.resize(&few);
    for i in 0..20 {
        clock.advance(100_000);
        decode(&mut cache, 1, &[3 + i % 4, 7]);
    }
    assert_eq!((cache.n_slot(), cache.n_pinned()), (few.iter().sum(), 1));
    assert!(cache.is_resident(id(1, 0)));
    let many = vec![5; few.len()];
    cache.resize(&many);
    assert_eq!(cache.n_pinned(), 3);
    // Where every expert has a slot all may be pinned.
    let (mut all, ..) = self::cache(Scope::Layer, blueprint.n_expert, PolicyKind::default());
    let every: String = (0..blueprint.n_expert).map(|e| format!("0 {e}\n")).collect();
    all.pin(&list(&every), 2).unwrap();
    decode(&mut all, 0, &[0, 1]);
}

#[test]
fn a_warm_start_fills_free_slots_a_few_at_a_time_and_takes_none_from_anybody() {
    PolicyKind::ALL.iter().for_each(|policy| warm_start(*policy));
}

fn warm_start(policy: PolicyKind) {
    let (mut cache, clock, blueprint) = cache(Scope::Layer, 5, policy);
    let every: Vec<u64> = (0..blueprint.n_moe() * blueprint.n_expert).map(|i| 1000 - i as u64).collect();
    let hot = HotList::from_uses(&every, blueprint.n_expert);
    cache.warm(&hot);
    assert_eq!(cache.stats().warm_reads, 4, "the first are on their way");
    decode(&mut cache, 1, &[6, 7]);
    for _ in 0..200 {
        clock.advance(100_000);
        decode(&mut cache, 1, &[6, 7]);
    }
    let stats = *cache.stats();
    assert_eq!((stats.decode.miss, stats.evictions), (2, 0), "{stats:?}");
    assert_eq!(stats.warm_reads as usize, 5 * blueprint.n_moe() - 2, "every other slot is warm");
    assert!((0..5).all(|e| cache.is_resident(id(0, e))) && (0..3).all(|e| cache.is_resident(id(1, e))));
    assert_eq!((stats.warm_used, stats.prefetches, stats.bytes_read() > stats.warm_bytes), (0, 0, true));
    decode(&mut cache, 0, &[0, 3]);
    assert_eq!((cache.stats().warm_used, cache.stats().decode.hit), (2, stats.decode.hit + 2));
    // Who leaves first is who was used least, although nobody here has used these since.
    decode(&mut cache, 0, &[6, 7]);
    let stay = [0, 1, 2, 3, 4].map(|e| cache.is_resident(id(0, e)));
    assert_eq!((stay, cache.stats().prefetch_wasted), ([true, true, false, true, false], 0), "{}", policy.name());
}

#[test]
fn no_bit_of_the_output_changes() {
    let model = ref_model("qwen3moe");
    let tokens: Vec<u32> = golden("qwen3moe", "tokens").i32s().unwrap().iter().map(|&t| t as u32).collect();
    let base = Options {
        n_ctx: Some(64),
        process_bytes: Some(0),
        kv: GgmlType::F32,
        n_batch: Some(4),
        scope: Some(Scope::Layer),
        ..Options::default()
    };
    let open = |options: &Options| Session::open(Gguf::open(&model).unwrap(), options, &mut |_, _| {}).unwrap();
    let run = |session: &mut Session| {
        let mut logits = session.feed(&tokens[..8], &mut |_| {}).unwrap().to_vec();
        tokens[8..].iter().for_each(|&t| logits.extend_from_slice(session.decode(t).unwrap()));
        logits
    };
    let mut cold = open(&base);
    let (expected, hot) = (run(&mut cold), cold.hot());
    let (least, full) = (cold.plan().smallest_bytes, cold.plan().full_bytes);
    for memory in [least, least + (full - least) / 3, full] {
        for pins in [0, 1, 2] {
            let mut session = open(&Options { memory_bytes: Some(memory), ..base.clone() });
            let pinned = session.pin(&hot.clone().top(pins));
            let room = session.plan().slots[0] - session.blueprint().n_expert_used();
            assert_eq!(pinned.is_ok(), pins <= room || memory == full, "{pins} pins beside {room}");
            session.warm(&hot);
            assert!(run(&mut session) == expected, "{pins} pins in {memory}");
            assert!(session.stats().warm_used > 0);
        }
    }
}

/// Runs the program with a cache folder of its own. Gives the text, the statistics and what was said.
fn run(folder: &Path, more: &[&str]) -> (String, Value, String) {
    let json = folder.join("stats.json");
    let budget = budget(env!("CARGO_BIN_EXE_hotset"), MODEL, 3);
    let args = ["run", MODEL, "Once upon a time", "-n", "32", "--seed", "4", "-v", "--memory", &budget, "--stats-json"];
    let mut command = command(env!("CARGO_BIN_EXE_hotset"));
    let output = command.args(args).arg(&json).args(more).env("XDG_CACHE_HOME", folder).output().unwrap();
    let stats = output.status.success().then(|| serde_json::from_slice(&fs::read(&json).unwrap()).unwrap());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), stats.unwrap_or_default(), text(output.stderr))
}

#[test]
fn the_second_run_starts_with_what_the_first_one_used() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("hotset/hot");
    let (text, stats, _) = run(folder.path(), &["--warm", "off"]);
    assert_eq!((&stats["warm_reads"], kept.exists()), (&Value::from(0), false));
    let (first, stats, said) = run(folder.path(), &[]);
    assert_eq!((&first, &stats["warm_reads"], said.contains("kept ")), (&text, &Value::from(0), false));
    let (second, stats, said) = run(folder.path(), &[]);
    assert!(stats["warm_reads"].as_u64() > Some(0) && stats["warm_used"].as_u64() > Some(0), "{stats}");
    assert!(second == text && said.contains("read before they were asked for"), "{said}");
    let (third, stats, said) = run(folder.path(), &["--io", "page-cache"]);
    assert!(third == text && stats["warm_reads"] == 0 && said.contains("policy none"), "it keeps nothing: {said}");
    // One file for the model; broken, it is as good as none, and replaced.
    let files: Vec<_> = fs::read_dir(&kept).unwrap().map(|f| f.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    for broken in ["0 0\n0 0\n", "what?", "9999 1\n"] {
        fs::write(&files[0], broken).unwrap();
        assert_eq!(run(folder.path(), &[]).1["warm_reads"], 0);
        assert!(run(folder.path(), &[]).1["warm_reads"].as_u64() > Some(0));
    }
}

#[test]
fn the_second_run_starts_with_the_past_tokens_of_the_first_one() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("hotset/hot");
    let ring = || {
        let files = fs::read_dir(&kept).into_iter().flatten().map(|f| f.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|e| e == "ring")).collect::<Vec<_>>()
    };
    let (text, ..) = run(folder.path(), &[]);
    assert!(ring().is_empty(), "nobody goes by past tokens");
    let echo = ["--policy", "echo"];
    assert_eq!(run(folder.path(), &echo).0, text);
    let path = ring().pop().unwrap();
    let first = fs::read(&path).unwrap();
    let (second, _, said) = run(folder.path(), &echo);
    assert!(second == text && !said.contains("are not used"), "{said}");
    let longer = fs::read(&path).unwrap();
    assert!(longer.len() > first.len() && longer.len() < 2 * first.len(), "the second run's tokens behind the first's");
    // Tokens lie behind a header of 20 bytes.
    assert!(longer[20..].starts_with(&first[20..first.len() - 4]));
    let mut flipped = first.clone();
    flipped[40] ^= 1;
    let huge = vec![0; 64 << 20];
    for broken in [&first[..30], &flipped, b"what?", &huge, b""] {
        fs::write(&path, broken).unwrap();
        let (third, _, said) = run(folder.path(), &echo);
        assert!(third == text && said.contains("the last run's tokens are not used: "), "{said}");
        assert!(fs::read(&path).unwrap().starts_with(b"hotring1"), "it is replaced");
        let said = run(folder.path(), &echo).2;
        assert!(!said.contains("are not used"), "{said}");
    }
    fs::write(&path, b"what?").unwrap();
    let said = run(folder.path(), &[]).2;
    assert!(!said.contains("are not used"), "whom it does not concern is not told: {said}");
}

#[test]
fn lists_of_runs_and_traces_can_be_pinned() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (text, ..) = run(folder.path(), &["--warm", "off", "--save-hot", &path("hot.txt")]);
    let hot = fs::read_to_string(path("hot.txt")).unwrap();
    let top: String = hot.lines().take(9).map(|line| line.to_owned() + "\n").collect();
    fs::write(path("pins.txt"), top).unwrap();
    let (pinned, stats, _) = run(folder.path(), &["--warm", "off", "--pin", &path("pins.txt")]);
    assert_eq!((&pinned, &stats["pinned"]), (&text, &Value::from(8)));
    let (warm, stats, _) = run(folder.path(), &["--warm", &path("hot.txt")]);
    assert!(warm == text && stats["warm_used"].as_u64() > Some(0));
    assert!(!folder.path().join("hotset/hot").exists(), "a named list is not the program's to keep");

    let said = run(folder.path(), &["--pin", &path("hot.txt")]).2;
    assert!(said.contains("pinned experts of MoE layer") && said.lines().count() == 1, "{said}");
    let said = run(folder.path(), &["--warm", &path("none.txt")]).2;
    assert!(said.contains("none.txt: cannot open") && said.lines().count() == 1, "{said}");
    let said = run(folder.path(), &["--save-hot", &path("hot.txt")]).2;
    assert!(said.contains("hot.txt") && said.lines().count() == 1, "{said}");
    assert_eq!(fs::read_to_string(path("hot.txt")).unwrap(), hot, "nothing that exists is replaced");

    fs::write(path("prompt.txt"), "Once upon a time").unwrap();
    let hotset = |args: &[&str]| command(env!("CARGO_BIN_EXE_hotset")).args(args).output().unwrap().status.success();
    let (trace, prompt, out) = (path("run.trace"), path("prompt.txt"), path("trace.txt"));
    assert!(hotset(&["trace", MODEL, "--prompts", &prompt, "-o", &trace, "-n", "16"]));
    assert!(hotset(&["trace", "hot", &trace, "-o", &out, "--top", "1"]));
    let (pinned, stats, _) = run(folder.path(), &["--warm", "off", "--pin", &out]);
    assert_eq!(pinned, text);
    assert_eq!(stats["pinned"].as_u64().unwrap() as usize, stats["layers"].as_array().unwrap().len());
}
