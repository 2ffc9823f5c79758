//! The models against llama.cpp's logits (`tests/data/ref/README.md`), and against themselves over everything that must
//! not change a bit: budgets, policies, prefetchers, read paths, threads, batches.

mod common;

use std::sync::{Arc, Mutex};

use common::ref_models::{N_VOCAB, golden, ref_model};
use hotset::{
    backend::{Backend, Reference, cpu::Cpu},
    expert::Scope,
    gguf::Gguf,
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
    session::{Options, Session},
    trace::{LayerEvent, TraceSink},
};

/// (layer, experts in routing order over the batch's tokens)
type Event = (u16, Vec<i32>);

/// Routed experts of every event.
#[derive(Clone, Default)]
struct Routing(Arc<Mutex<Vec<Event>>>);

impl TraceSink for Routing {
    fn record(&mut self, event: LayerEvent<'_>) {
        let ids = event.routed.iter().map(|r| i32::from(r.id.expert)).collect();
        self.0.lock().unwrap().push((event.layer, ids));
    }
}

/// Four architectures, over everything.
const MODELS: [&str; 4] = ["qwen3moe", "llama-mixtral", "olmoe", "qwen2moe"];

/// The others, each with something that no one before it has.
const MORE_MODELS: &[&str] = &[
    "qwen3vlmoe",
    "minimax-m2",
    "glm4moe",
    "glm4moe-mtp",
    "dots1",
    "hy_v3",
    "mellum",
    "smallthinker",
    "gpt-oss",
    "qwen3next",
    "qwen35moe",
    "qwen35moe-fused",
    "qwen35moe-mtp",
    "qwen4exp",
    "lfm2moe",
    "granitehybrid",
    "granitehybrid-rope",
    "granitemoe",
    "granitemoe-shared",
    "ernie4_5-moe",
    "exaone-moe",
    "bailingmoe2",
    "hunyuan-moe",
    "phimoe",
    "dbrx",
    "llama4",
    "grok",
    "grok-2",
    "afmoe",
    "laguna",
    "laguna-full",
    "step35",
    "step35-mtp",
    "mimo2",
    "mimo2-split",
    "cohere2moe",
    "granite_swa",
    "minimax-m3",
    "qwen3moe-scaled",
    "gemma4",
    "deepseek2-v3",
    "deepseek2-v3-fused",
    "deepseek2-lite-mla",
    "deepseek2-lite-oldkvb",
    "mistral4",
    "deepseek32",
    "deepseek4",
    "glm5-next",
    "glm-dsa",
    "glm-dsa-sparse",
    "qwen4exp-sparse",
    "glm5-next-sparse",
    "nemotron_h_moe",
    "nemotron_h_moe-latent",
    "kimi-linear",
    "bailingmoe3",
];
/// Those of which there are longer runs, too: windows wrap, batches end within them, indexers choose.
const LONG: &[&str] = &[
    "gpt-oss",
    "gemma4",
    "granitehybrid",
    "qwen3next",
    "qwen35moe",
    "lfm2moe",
    "laguna",
    "kimi-linear",
    "bailingmoe3",
    "nemotron_h_moe",
    "glm-dsa-sparse",
    "qwen4exp-sparse",
    "glm5-next-sparse",
];

/// Prompt tokens in the reference runs; the rest is decoded one by one.
const PROMPT: usize = 32;

/// Those of the longer runs, of whose logits every eighth row is kept.
const LONG_PROMPT: usize = 160;
const LONG_ROWS: usize = 8;

struct Run {
    /// (tokens, vocabulary)
    logits: Vec<f32>,
    /// (moe layers, tokens, used), flattened
    experts: Vec<i32>,
    hits: u64,
    misses: u64,
}

/// The tokens of a run.
fn tokens_of(name: &str) -> Vec<u32> {
    golden(name, "tokens").i32s().unwrap().iter().map(|&t| t as u32).collect()
}

fn run(name: &str, options: Options, backend: impl Backend) -> Run {
    run_tokens(name, (&tokens_of(name), PROMPT), options, backend)
}

/// Tokens, of which so many are a prompt.
fn run_tokens(name: &str, (tokens, prompt): (&[u32], usize), options: Options, backend: impl Backend) -> Run {
    let routing = Routing::default();
    let options = Options { kv: GgmlType::F32, all_logits: true, process_bytes: Some(0), ..options.clone() };
    let gguf = Gguf::open(&ref_model(name)).unwrap();
    let mut session =
        Session::with_backend(gguf, &options, backend, Box::new(routing.clone()), &mut |_, _| {}).unwrap();
    let mut logits = Vec::new();
    let n_batch = session.plan().n_batch;
    for batch in tokens[..prompt].chunks(n_batch) {
        logits.extend_from_slice(session.feed_all(batch).unwrap());
    }
    for &token in &tokens[prompt..] {
        logits.extend_from_slice(session.decode(token).unwrap());
    }
    let events = routing.0.lock().unwrap();
    let layers = session.blueprint().n_moe();
    let of_layer = |l| events.iter().filter(move |(layer, _)| usize::from(*layer) == l).flat_map(|(_, ids)| ids);
    let experts = (0..layers).flat_map(of_layer).copied().collect();
    let total = session.stats().total();
    Run { logits, experts, hits: total.hit, misses: total.miss }
}

fn cpu(threads: usize) -> Cpu {
    common::isa::cpu(threads)
}

/// Greedy choice: the first largest.
fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// F32 weights and F32 KV cache: llama.cpp's own batch and single-token paths differ by up to 4e-5 (summation order);
/// 1e-4 is what its authors' reference notes allow.
fn matches_llama_cpp(name: &str, run: &Run) {
    matches_logits(name, &run.logits);
    // -1 stands for none, where layers use different numbers of experts.
    let experts: Vec<i32> = golden(name, "experts").i32s().unwrap().iter().copied().filter(|&e| e >= 0).collect();
    assert_eq!(run.experts, experts, "{name}: experts in order");
}

fn matches_logits(name: &str, logits: &[f32]) {
    let expected = golden(name, "logits");
    let expected = expected.f32s().unwrap();
    assert_eq!(logits.len(), expected.len());
    let worst = logits.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    eprintln!("{name}: max |difference of logits| {worst:.2e}");
    assert!(worst <= 1e-4, "{name}: {worst}");
    for (ours, theirs) in logits.chunks(N_VOCAB).zip(expected.chunks(N_VOCAB)) {
        assert_eq!(argmax(ours), argmax(theirs), "{name}: greedy tokens");
    }
}

#[test]
fn every_architecture_matches_llama_cpp() {
    for &name in MODELS.iter().chain(MORE_MODELS) {
        matches_llama_cpp(name, &run(name, Options::default(), cpu(2)));
    }
}

#[test]
fn long_contexts_match_llama_cpp() {
    for model in LONG {
        let name = format!("{model}-long");
        // Enough for batches of so many beside few experts.
        let options = Options { n_batch: Some(64), memory_bytes: Some(1 << 30), ..Options::default() };
        let mut run = run_tokens(model, (&tokens_of(&name), LONG_PROMPT), options, cpu(2));
        let kept = run.logits.chunks(N_VOCAB).skip(LONG_ROWS - 1).step_by(LONG_ROWS);
        run.logits = kept.flatten().copied().collect();
        matches_llama_cpp(&name, &run);
    }
}

#[test]
fn the_reference_backend_matches_llama_cpp() {
    for &name in MODELS.iter().chain(MORE_MODELS) {
        matches_llama_cpp(name, &run(name, Options::default(), Reference));
    }
}

/// The logits that are kept are those after tokens 3, 7, 11 and 15 of a prompt of 64 to 79.
#[test]
fn a_factor_of_rotated_queries_and_keys_matches_llama_cpp() {
    let name = "qwen3moe-attn-factor";
    let tokens: Vec<u32> = (64..80).collect();
    let kept = golden(name, "logits");
    let options = Options { kv: GgmlType::F32, all_logits: true, ..Options::default() };
    let mut session = Session::open(Gguf::open(&ref_model(name)).unwrap(), &options, &mut |_, _| {}).unwrap();
    assert_eq!(session.blueprint().ropes()[0].magnitude, 2.0);
    let n_vocab = session.blueprint().n_vocab;
    let logits = session.feed_all(&tokens).unwrap();
    for (expected, token) in kept.f32s().unwrap().chunks(n_vocab).zip([3, 7, 11, 15]) {
        let row = &logits[token * n_vocab..(token + 1) * n_vocab];
        let worst = row.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst <= 1e-4, "after token {token}: {worst}");
    }
}

/// The smallest budget that works, as the error for a budget of nothing names it.
fn smallest(name: &str, options: Options) -> u64 {
    let options = Options {
        kv: GgmlType::F32,
        all_logits: true,
        process_bytes: Some(0),
        memory_bytes: Some(0),
        ..options.clone()
    };
    let gguf = Gguf::open(&ref_model(name)).unwrap();
    let error = Session::open(gguf, &options, &mut |_, _| {}).err().expect("nothing is too little").to_string();
    let digits = error.split("at least ").nth(1).expect("names the smallest").split(' ').next().unwrap();
    digits.parse().unwrap()
}

#[test]
fn offloading_never_changes_a_bit() {
    for name in MODELS {
        let base = Options { n_ctx: Some(64), process_bytes: Some(0), ..Options::default() };
        let all = run(name, base.clone(), cpu(2));
        let same = |what: &str, options: Options, threads: usize| {
            let run = run(name, options, cpu(threads));
            let equal = run.logits.iter().zip(&all.logits).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(equal, "{name}: {what} changed the logits");
            run
        };
        let least = smallest(name, base.clone());
        let full = {
            let gguf = Gguf::open(&ref_model(name)).unwrap();
            let session =
                Session::open(gguf, &Options { kv: GgmlType::F32, all_logits: true, ..base.clone() }, &mut |_, _| {});
            session.unwrap().plan().full_bytes
        };
        for io in common::read_paths() {
            for &prefetch in PrefetchKind::ALL {
                for scope in [Scope::Layer, Scope::Global] {
                    let mode = Options { io: Some(*io), prefetch, scope: Some(scope), ..base.clone() };
                    let least = smallest(name, mode.clone()).max(least);
                    for percent in [0, 25, 50] {
                        let budget = least + (full - least) * percent / 100;
                        let options = Options { memory_bytes: Some(budget), ..mode.clone() };
                        let what = format!("{} {} {} {percent}%", io.name(), prefetch.name(), scope.name());
                        let run = same(&what, options, 2);
                        assert!(run.misses > all.misses, "{name}: {what}: a smaller cache misses more");
                    }
                }
            }
        }
        for &policy in PolicyKind::ALL {
            let budget = least + (full - least) / 4;
            same(policy.name(), Options { policy, memory_bytes: Some(budget), ..base.clone() }, 2);
        }
        assert!(all.hits > 0, "{name}: an expert is used again");
        same("one thread", base.clone(), 1);
        same("three threads", base.clone(), 3);
        same("batches of 5", Options { n_batch: Some(5), ..base.clone() }, 2);
        same("batches of 1", Options { n_batch: Some(1), ..base.clone() }, 2);
    }
}

/// What all models have in common is held above; here are those that compute something of their own.
#[test]
fn offloading_changes_no_bit_of_any_architecture() {
    for &name in MORE_MODELS {
        let base = Options { n_ctx: Some(64), process_bytes: Some(0), ..Options::default() };
        let all = run(name, base.clone(), cpu(2));
        let least = smallest(name, base.clone());
        for (percent, threads, n_batch) in [(0, 1, 5), (25, 2, 32), (50, 3, 1), (100, 1, 32)] {
            let most = least + ref_model(name).metadata().unwrap().len();
            let memory_bytes = Some(least + (most - least) * percent / 100);
            let run = run(name, Options { memory_bytes, n_batch: Some(n_batch), ..base.clone() }, cpu(threads));
            let equal = run.logits.iter().zip(&all.logits).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(equal, "{name}: {percent} %, {threads} threads, batches of {n_batch}");
            assert!(percent > 0 || run.misses > all.misses, "{name}: a smaller cache misses more");
        }
    }
}

#[test]
fn a_budget_that_changes_on_the_way_changes_no_bit() {
    let name = "qwen3moe";
    let options = Options { n_ctx: Some(64), process_bytes: Some(0), kv: GgmlType::F32, ..Options::default() };
    let tokens = tokens_of(name);
    let open = || Session::open(Gguf::open(&ref_model(name)).unwrap(), &options, &mut |_, _| {}).unwrap();
    let (mut steady, mut changing) = (open(), open());
    let (least, most) = (steady.plan().least_bytes(), steady.plan().budget_bytes);
    for wrong in [least - 1, most + 1] {
        let error = changing.set_memory(wrong).unwrap_err().to_string();
        assert!(error.contains(&format!("{least} to {most} bytes")), "{error}");
    }
    for (i, &token) in tokens.iter().enumerate() {
        changing.set_memory(least + (most - least) * [0, 4, 1, 2, 3][i % 5] / 4).unwrap();
        let (a, b) = (steady.decode(token).unwrap(), changing.decode(token).unwrap());
        assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()), "token {i}");
    }
    let misses = |session: &Session| session.stats().total().miss;
    assert!(misses(&changing) > misses(&steady), "experts were given up");
}

#[test]
fn tokens_that_leave_out_the_last_layer_change_no_bit() {
    for name in MODELS {
        let tokens = tokens_of(name);
        let options = Options { all_logits: true, n_batch: Some(8), ..Options::default() };
        let open = |trace: Box<dyn TraceSink>| {
            Session::with_backend(Gguf::open(&ref_model(name)).unwrap(), &options, cpu(2), trace, &mut |_, _| {})
                .unwrap()
        };
        let (mut few, mut whole) = (open(Box::new(())), open(Box::<Routing>::default()));
        let n_vocab = few.blueprint().n_vocab;
        // Batches without logits, one that wants its last token's, and tokens one by one.
        for prompt in [1, 5, 8, 20] {
            few.reset();
            whole.reset();
            let got = few.feed(&tokens[..prompt], &mut |_| {}).unwrap().to_vec();
            let want: Vec<f32> = tokens[..prompt].chunks(8).flat_map(|t| whole.feed_all(t).unwrap().to_vec()).collect();
            assert!(got == want[(prompt - 1) * n_vocab..], "{name}: a prompt of {prompt}");
            few.fill(&tokens[prompt..prompt + 3]).unwrap();
            whole.fill(&tokens[prompt..prompt + 3]).unwrap();
            for &token in &tokens[prompt + 3..prompt + 8] {
                assert!(few.decode(token).unwrap() == whole.decode(token).unwrap(), "{name}: decoding after {prompt}");
            }
        }
        let of =
            |session: &Session| session.stats().prompt.hit + session.stats().prompt.miss + session.stats().prompt.late;
        assert!(of(&few) < of(&whole), "{name}: the last layer's experts are left out");
    }
}
