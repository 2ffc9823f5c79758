//! Several texts at once on one engine: each is the text that it is alone, whatever runs beside it and whatever was kept.

mod common;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use common::ref_models::{golden, ref_model};
use hotset::{
    engine::{Engine, Options},
    generate::{self, Finish, Rules, Speaker},
    gguf::Gguf,
    io::{Extents, IoBuf, IoKind, Layout, Pread, ReadError, ReadPath, ThreadEngine},
    prefetch::PrefetchKind,
    sampler::{Sampler, SamplerConfig},
    scheduler::{Event, Outcome, Request, Scheduler},
    session::Session,
    tokenizer::Tokenizer,
};

/// One of each kind of part that keeps something of a sequence.
const MODELS: [&str; 4] = ["gpt-oss", "qwen3next", "lfm2moe", "granitehybrid"];

const N_CTX: usize = 256;

fn options(parallel: usize) -> Options {
    Options {
        n_ctx: Some(N_CTX),
        parallel,
        n_batch: Some(12),
        process_bytes: Some(0),
        threads: Some(2),
        ..Options::default()
    }
}

/// Many experts have to be read, and batches of a few tokens fit.
fn few_bytes(name: &str, parallel: usize) -> u64 {
    let plan = engine(name, options(parallel)).plan().clone();
    plan.smallest_bytes + (plan.full_bytes - plan.smallest_bytes) / 2
}

fn gguf(name: &str) -> Gguf {
    Gguf::open(&ref_model(name)).unwrap()
}

fn engine(name: &str, options: Options) -> Engine {
    Engine::open(gguf(name), &options, &mut |_, _| {}).unwrap()
}

/// The `which`-th text of `n` tokens.
fn tokens(name: &str, which: usize, n: usize) -> Vec<u32> {
    let known = golden(name, "tokens").i32s().unwrap().to_vec();
    (0..n).map(|i| known[(i * (which + 1) + i / 7 + 5 * which) % known.len()] as u32).collect()
}

fn request(prompt: &[u32], temperature: f32, max_tokens: usize) -> Request {
    let sampling = SamplerConfig {
        temperature,
        repeat_penalty: 1.3,
        frequency_penalty: 0.5,
        seed: 11,
        ..SamplerConfig::default()
    };
    let rules = Rules { max_tokens: Some(max_tokens), ignore_end: true, ..Rules::default() };
    Request { prompt: prompt.to_vec(), sampling, logit_bias: vec![(3, -2.0)], rules }
}

/// What a session of its own makes of a request.
fn alone(name: &str, request: &Request) -> Vec<u32> {
    let mut session = Session::open(gguf(name), &options(1), &mut |_, _| {}).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf(name)).unwrap();
    let n_vocab = session.blueprint().n_vocab;
    let mut sampler = Sampler::with_bias(request.sampling, n_vocab, &request.logit_bias).unwrap();
    let speaker = Speaker { session: &mut session, tokenizer: &tokenizer, sampler: &mut sampler };
    let mut all = Vec::new();
    generate::generate(speaker, &request.prompt, &request.rules, &mut |_, event| {
        if let generate::Event::Token { token, .. } = event {
            all.push(token);
        }
        Ok::<_, hotset::Error>(true)
    })
    .unwrap();
    all
}

/// What a text has told so far.
#[derive(Default)]
struct Told {
    reused: Option<usize>,
    why: Option<String>,
    tokens: Vec<u32>,
    end: Option<Result<Outcome, String>>,
}

type Seen = Arc<Mutex<Told>>;

/// Starts a text that is cancelled after `enough` tokens.
fn start(scheduler: &mut Scheduler, request: Request, enough: usize) -> Seen {
    let told = Seen::default();
    let own = told.clone();
    let on = move |event: Event<'_>| {
        let mut told = own.lock().unwrap();
        assert!(told.end.is_none(), "nothing comes after the end");
        match event {
            Event::Placed { reused, why } => {
                assert!(told.reused.replace(reused).is_none(), "a text is placed once");
                told.why = why.map(str::to_owned);
            }
            Event::Prompt { .. } | Event::Rest(_) => {}
            Event::Token { token, logits, .. } => {
                assert!(logits.iter().all(|x| x.is_finite()));
                told.tokens.push(token);
            }
            Event::End(end) => told.end = Some(end.map_err(|e| e.to_string())),
        }
        told.tokens.len() < enough
    };
    scheduler.start(request, Box::new(on)).unwrap();
    told
}

/// Runs until no text is left.
fn finish(scheduler: &mut Scheduler, tokenizer: &Tokenizer) {
    for _ in 0..1000 {
        if scheduler.running() == 0 {
            return;
        }
        scheduler.step(tokenizer);
    }
    panic!("the texts do not end");
}

fn outcome(seen: &Seen) -> Outcome {
    seen.lock().unwrap().end.clone().expect("it has ended").unwrap()
}

#[test]
fn a_text_is_the_one_that_it_is_alone() {
    for name in MODELS {
        let tokenizer = Tokenizer::from_gguf(&gguf(name)).unwrap();
        let requests: Vec<_> = [(0, 9, 0.0, 40), (1, 70, 0.0, 12), (2, 3, 1.0, 30), (3, 33, 1.0, 20), (4, 50, 0.0, 9)]
            .into_iter()
            .map(|(which, n, temperature, max)| request(&tokens(name, which, n), temperature, max))
            .collect();
        let expected: Vec<_> = requests.iter().map(|request| alone(name, request)).collect();
        for memory_bytes in [None, Some(few_bytes(name, 3))] {
            let mut scheduler = Scheduler::new(engine(name, Options { memory_bytes, ..options(3) }));
            let mut seen = Vec::new();
            for step in 0.. {
                // A new one whenever there is room, some steps after the one before.
                if seen.len() < requests.len() && scheduler.has_room() && step % 3 == 0 {
                    seen.push(start(&mut scheduler, requests[seen.len()].clone(), usize::MAX));
                }
                if scheduler.running() == 0 {
                    break;
                }
                scheduler.step(&tokenizer);
            }
            let mut wanted = 0.0;
            for (i, seen) in seen.iter().enumerate() {
                let outcome = outcome(seen);
                assert_eq!(seen.lock().unwrap().tokens, expected[i], "{name}, text {i}, {memory_bytes:?}");
                assert_eq!((outcome.finish, outcome.prompt), (Finish::Length, requests[i].prompt.len()), "{name}");
                assert_eq!(outcome.generated, expected[i].len());
                let timing = outcome.cost.timing;
                assert_eq!(timing.prompt_tokens as usize, outcome.prompt - outcome.reused);
                assert_eq!(timing.decode_tokens as usize, outcome.generated - 1);
                wanted += outcome.cost.hit + outcome.cost.late + outcome.cost.miss;
            }
            // What the texts took is what was spent.
            let total = scheduler.engine().stats().total();
            let all = (total.hit + total.late + total.miss) as f64;
            assert!((wanted - all).abs() < 1e-6 * all, "{name}: {wanted} of {all}");
        }
    }
}

#[test]
fn a_conversation_goes_on_from_what_is_kept() {
    for name in MODELS {
        let tokenizer = Tokenizer::from_gguf(&gguf(name)).unwrap();
        let mut scheduler = Scheduler::new(engine(name, options(3)));
        let mut prompt = tokens(name, 0, 60);
        for turn in 0..3 {
            let request = request(&prompt, 0.0, 10);
            let seen = start(&mut scheduler, request.clone(), usize::MAX);
            // Another conversation beside it, which must not take its place.
            let other = start(&mut scheduler, self::request(&tokens(name, 1 + turn, 5), 0.0, 3), usize::MAX);
            finish(&mut scheduler, &tokenizer);
            let (told, _) = (seen.lock().unwrap(), outcome(&other));
            assert_eq!(told.tokens, alone(name, &request), "{name}, turn {turn}");
            // All but the last token of the answer before, which did not go through the model.
            let expected = if turn == 0 { 0 } else { prompt.len() - 8 };
            assert_eq!(told.reused, Some(expected), "{name}, turn {turn}: {:?}", told.why);
            prompt.extend_from_slice(&told.tokens);
            prompt.extend(tokens(name, 5 + turn, 7));
        }
        // A turn whose answer was not kept as it was: the next prompt parts from it before its end.
        let mut again = prompt[..prompt.len() - 17].to_vec();
        let kept = again.len() - 10 - 7;
        again.extend(tokens(name, 9, 20));
        let request = request(&again, 0.0, 10);
        let seen = start(&mut scheduler, request.clone(), usize::MAX);
        finish(&mut scheduler, &tokenizer);
        let told = seen.lock().unwrap();
        assert_eq!(told.tokens, alone(name, &request), "{name}: parted");
        let reused = told.reused.unwrap();
        assert!(reused >= kept - 20 && reused < again.len() - 19, "{name}: {reused} of {kept}, {:?}", told.why);
    }
}

#[test]
fn texts_of_one_prompt_compute_it_once() {
    for name in MODELS {
        let tokenizer = Tokenizer::from_gguf(&gguf(name)).unwrap();
        let prompt = tokens(name, 0, 90);
        let mut scheduler = Scheduler::new(engine(name, options(3)));
        let mut requests: Vec<_> = (0..3).map(|_| request(&prompt, 1.0, 12)).collect();
        requests.iter_mut().zip(5..).for_each(|(request, seed)| request.sampling.seed = seed);
        let seen: Vec<_> = requests.iter().map(|request| start(&mut scheduler, request.clone(), usize::MAX)).collect();
        finish(&mut scheduler, &tokenizer);
        for (i, (seen, request)) in seen.iter().zip(&requests).enumerate() {
            assert_eq!(seen.lock().unwrap().tokens, alone(name, request), "{name}, text {i}");
            assert_eq!(seen.lock().unwrap().reused, Some(if i == 0 { 0 } else { 89 }), "{name}, text {i}");
        }
        assert_eq!(scheduler.engine().timing().prompt_tokens, 92, "{name}");
    }
}

/// What cannot be rewound says so, and is there the next time: where two prompts parted, a checkpoint stands.
#[test]
fn a_beginning_that_others_share_is_kept_once_it_was_missed() {
    for name in ["qwen3next", "granitehybrid"] {
        let tokenizer = Tokenizer::from_gguf(&gguf(name)).unwrap();
        let mut scheduler = Scheduler::new(engine(name, options(1)));
        let shared = tokens(name, 0, 50);
        let mut reused = Vec::new();
        for which in 1..4 {
            let prompt = [shared.clone(), vec![which as u32; 3], tokens(name, which, 40)].concat();
            let request = request(&prompt, 0.0, 4);
            let seen = start(&mut scheduler, request.clone(), usize::MAX);
            finish(&mut scheduler, &tokenizer);
            let told = seen.lock().unwrap();
            assert_eq!(told.tokens, alone(name, &request), "{name}, prompt {which}");
            reused.push(told.reused.unwrap());
            if which == 2 {
                let why = told.why.clone().unwrap();
                assert!(why.contains("50 tokens are kept, but") && why.contains("recurrent memory"), "{why}");
            }
        }
        assert_eq!(reused, [0, 0, 50], "{name}");
    }
}

#[test]
fn who_leaves_makes_room_and_what_is_wrong_is_refused() {
    let name = "gpt-oss";
    let tokenizer = Tokenizer::from_gguf(&gguf(name)).unwrap();
    let mut scheduler = Scheduler::new(engine(name, options(2)));
    for (prompt, words) in [
        (vec![], "no tokens"),
        (vec![1; N_CTX + 1], "the context holds 256"),
        (vec![u32::MAX], "not in the vocabulary"),
    ] {
        let refused = scheduler.start(request(&prompt, 0.0, 3), Box::new(|_| true)).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
    let bias = Request { logit_bias: vec![(u32::MAX, 1.0)], ..request(&[1], 0.0, 3) };
    assert!(scheduler.start(bias, Box::new(|_| true)).unwrap_err().to_string().contains("logit_bias"));
    assert_eq!(scheduler.running(), 0);

    let leaves = start(&mut scheduler, request(&tokens(name, 0, 20), 0.0, 100), 3);
    let at_once = start(&mut scheduler, request(&tokens(name, 1, 200), 0.0, 100), 0);
    assert!(!scheduler.has_room());
    scheduler.step(&tokenizer);
    assert!(scheduler.has_room(), "a prompt that nobody waits for is not computed");
    let full = start(&mut scheduler, request(&tokens(name, 2, 250), 0.0, 100), usize::MAX);
    finish(&mut scheduler, &tokenizer);
    let ends = [&leaves, &at_once, &full].map(|seen| (outcome(seen).finish, seen.lock().unwrap().tokens.len()));
    assert_eq!(ends, [(Finish::Cancelled, 3), (Finish::Cancelled, 0), (Finish::Context, 7)]);

    let fails = start(&mut scheduler, request(&[1, 2, 3], 0.0, 100), usize::MAX);
    scheduler.step(&tokenizer);
    scheduler.fail_all("the end");
    assert_eq!(fails.lock().unwrap().end.clone().unwrap().unwrap_err(), "the end");
    assert_eq!(scheduler.running(), 0);
}

/// Plain reads, which can be made to fail.
struct Failing {
    inner: Pread,
    fails: Arc<AtomicBool>,
}

impl ReadPath for Failing {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn layout(&self) -> Layout {
        self.inner.layout()
    }
    fn read(&self, extents: &Extents, buf: &mut IoBuf) -> Result<(), ReadError> {
        if self.fails.load(SeqCst) {
            return Err(ReadError { extent: extents[0], source: std::io::ErrorKind::PermissionDenied.into() });
        }
        self.inner.read(extents, buf)
    }
}

/// A scheduler whose reads fail while the second says so.
fn failing(name: &str, parallel: usize) -> (Scheduler, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(false));
    let memory_bytes = Some(few_bytes(name, parallel));
    let options = Options { memory_bytes, prefetch: PrefetchKind::Off, ..options(parallel) };
    let own = fails.clone();
    let reads = |files| -> hotset::Result<Box<dyn hotset::io::IoEngine>> {
        let inner = Pread::new(files, IoKind::Pread.name());
        Ok(Box::new(ThreadEngine::new(Failing { inner, fails: own }, 2).unwrap()))
    };
    let cpu = common::isa::cpu(2);
    let engine = Engine::with_engine(gguf(name), &options, cpu, Box::new(()), reads, &mut |_, _| {});
    (Scheduler::new(engine.unwrap()), fails)
}

/// While no read comes through, texts that need one end with what went wrong, their sequences stay as they were, and what
/// comes later goes on from them.
#[test]
fn texts_that_cannot_read_end_and_later_ones_are_right() {
    for name in MODELS {
        let tokenizer = Tokenizer::from_gguf(&gguf(name)).unwrap();
        let (mut scheduler, fails) = failing(name, 3);
        let prompts: Vec<_> = [(0, 40), (1, 34), (2, 37)].map(|(which, n)| tokens(name, which, n)).into();
        let begin = |scheduler: &mut Scheduler| -> Vec<_> {
            prompts.iter().map(|prompt| start(scheduler, request(prompt, 0.0, 6), usize::MAX)).collect()
        };
        let seen = begin(&mut scheduler);
        while seen.iter().any(|seen| seen.lock().unwrap().tokens.len() < 2) {
            scheduler.step(&tokenizer);
        }
        let lengths =
            |scheduler: &Scheduler| -> Vec<_> { scheduler.engine().sequences().iter().map(|s| s.len()).collect() };
        let told = |seen: &[Seen]| -> Vec<_> { seen.iter().map(|seen| seen.lock().unwrap().tokens.len()).collect() };
        let mut errors = 0;
        fails.store(true, SeqCst);
        while scheduler.running() > 0 {
            let (len, n, running) = (lengths(&scheduler), told(&seen), scheduler.running());
            scheduler.step(&tokenizer);
            let moved = |before: &[usize], after: &[usize]| before.iter().zip(after).filter(|(a, b)| a != b).count();
            let (rows, chosen) = (moved(&len, &lengths(&scheduler)), moved(&n, &told(&seen)));
            assert_eq!(rows, chosen, "{name}: only a text that got its token has a longer sequence");
            errors += running - rows;
        }
        fails.store(false, SeqCst);
        assert!(errors > 0, "{name}: some text has to read");
        let ends: Vec<_> = seen.iter().filter_map(|seen| seen.lock().unwrap().end.clone().unwrap().err()).collect();
        assert_eq!(ends.len(), errors, "{name}");
        for error in ends {
            assert!(error.contains("expert ") && error.contains(" at offset ") && !error.contains('\n'), "{error}");
        }
        // The same again: from what was kept, and as if nothing had been.
        let seen = begin(&mut scheduler);
        finish(&mut scheduler, &tokenizer);
        for (i, (seen, prompt)) in seen.iter().zip(&prompts).enumerate() {
            let told = seen.lock().unwrap();
            assert_eq!(told.tokens, alone(name, &request(prompt, 0.0, 6)), "{name}, text {i}");
            assert!(told.reused.unwrap() > 0, "{name}, text {i}: {:?}", told.why);
        }
    }
}
