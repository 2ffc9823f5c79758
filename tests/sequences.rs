//! Several sequences on one model: each gets the bits that it gets alone, whatever runs beside it, whatever fails, and however
//! often it is taken back.

mod common;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use common::ref_models::{golden, ref_model};
use hotset::{
    arch,
    engine::{Engine, Options},
    gguf::Gguf,
    io::{Extents, IoBuf, Layout, Pread, ReadError, ReadPath, ThreadEngine},
    model::{Batch, Sequence, Span, Want},
    quant::GgmlType,
    session::Session,
    trace::{Phase, TraceSink},
};

/// One of each kind of part that keeps something of a sequence.
const MODELS: [&str; 4] = ["gpt-oss", "qwen3next", "lfm2moe", "granitehybrid"];

/// Tokens of a batch: few, so that windows have fewer rows than contexts have positions.
const N_BATCH: usize = 12;

/// A context of several times the rows of the shortest windows.
const N_CTX: usize = 256;

fn options(parallel: usize) -> Options {
    Options {
        n_ctx: Some(N_CTX),
        parallel,
        n_batch: Some(N_BATCH),
        all_logits: true,
        process_bytes: Some(0),
        threads: Some(2),
        ..Options::default()
    }
}

fn gguf(name: &str) -> Gguf {
    Gguf::open(&ref_model(name)).unwrap()
}

fn engine(name: &str, options: Options) -> Engine {
    Engine::open(gguf(name), &options, &mut |_, _| {}).unwrap()
}

/// A budget that leaves experts out, and has room for batches of [`N_BATCH`].
fn few_bytes(name: &str) -> u64 {
    let plan = engine(name, options(3)).plan().clone();
    let mut budgets = (6..10).map(|tenths| plan.smallest_bytes + (plan.full_bytes - plan.smallest_bytes) / 10 * tenths);
    let has_room = |bytes: &u64| {
        // Buffers grow with the threads: no test has more.
        let few = engine(name, Options { memory_bytes: Some(*bytes), threads: Some(3), ..options(3) });
        few.plan().n_batch == N_BATCH
    };
    budgets.find(has_room).expect("a budget has room for batches and not for all experts")
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// A text of sequence `seq`.
fn tokens(name: &str, seq: usize) -> Vec<u32> {
    let known = golden(name, "tokens").i32s().unwrap().to_vec();
    (0..30).map(|i| known[(i * (seq + 1) + 7 * seq) % known.len()] as u32).collect()
}

/// Logits after each token of a text that runs alone, one token at a time.
fn alone(name: &str, text: &[u32]) -> Vec<Vec<u32>> {
    let mut session = Session::open(gguf(name), &options(1), &mut |_, _| {}).unwrap();
    text.iter().map(|&token| bits(session.decode(token).unwrap())).collect()
}

/// Some tokens of some sequences that run together: (sequence, which of its text, phase).
type Step = Vec<(usize, Range<usize>, Phase)>;

/// Runs a step that wants all logits, and returns them span by span, token by token.
fn step<B: hotset::backend::Backend>(
    engine: &mut Engine<B>,
    texts: &[Vec<u32>],
    step: &Step,
) -> hotset::Result<Vec<Vec<Vec<u32>>>> {
    let (mut tokens, mut spans) = (Vec::new(), Vec::new());
    for (seq, range, phase) in step {
        let rows = tokens.len()..tokens.len() + range.len();
        tokens.extend_from_slice(&texts[*seq][range.clone()]);
        spans.push(Span { seq: *seq, first_pos: range.start as u32, rows, phase: *phase, want: Want::All });
    }
    engine.step(&Batch { tokens: &tokens, spans: &spans })?;
    let n_vocab = engine.blueprint().n_vocab;
    let mut rows = engine.logits().chunks_exact(n_vocab).map(bits);
    Ok(step.iter().map(|(_, range, _)| rows.by_ref().take(range.len()).collect()).collect())
}

/// Three sequences that begin, and leave off, at different times: prompts beside decoding, prompts alone, decoding alone.
fn steps() -> Vec<Step> {
    use Phase::{Decode, Prompt};
    let mut steps = vec![
        vec![(1, 0..9, Prompt)],
        vec![(1, 9..10, Decode), (0, 0..11, Prompt)],
        vec![(0, 11..15, Prompt), (2, 0..1, Prompt), (1, 10..11, Decode)],
        vec![(2, 1..8, Prompt), (1, 11..12, Decode), (0, 15..16, Decode)],
    ];
    for i in 0..12 {
        steps.push(vec![(0, 16 + i..17 + i, Decode), (1, 12 + i..13 + i, Decode), (2, 8 + i..9 + i, Decode)]);
    }
    steps.push(vec![(2, 20..26, Prompt), (0, 28..29, Decode)]);
    steps
}

#[test]
fn a_sequence_gets_the_bits_that_it_gets_alone() {
    for name in MODELS {
        let texts: Vec<_> = (0..3).map(|seq| tokens(name, seq)).collect();
        let alone: Vec<_> = texts.iter().map(|text| alone(name, text)).collect();
        let few = few_bytes(name);
        for (memory_bytes, threads) in [(None, 1), (Some(few), 3)] {
            let mut engine = engine(name, Options { memory_bytes, threads: Some(threads), ..options(3) });
            for (at, run) in steps().iter().enumerate() {
                let got = step(&mut engine, &texts, run).unwrap();
                for ((seq, range, _), got) in run.iter().zip(got) {
                    assert!(got == alone[*seq][range.clone()], "{name}, step {at}, sequence {seq}, {memory_bytes:?}");
                }
            }
            let stats = engine.stats();
            assert!(stats.decode.events > 0 && stats.prompt.events > 0, "{name}: {stats:?}");
        }
    }
}

/// What a span wants is its own: the last row of one, all of another, none of a third. Without a trace, rows that nobody wants
/// leave out the last layer.
#[test]
fn each_span_gets_the_logits_that_it_wants() {
    for name in MODELS {
        let texts: Vec<_> = (0..3).map(|seq| tokens(name, seq)).collect();
        let alone: Vec<_> = texts.iter().map(|text| alone(name, text)).collect();
        let mut engine = engine(name, options(3));
        let n_vocab = engine.blueprint().n_vocab;
        for i in 0..6 {
            let spans = [(0, 3, Want::Last), (1, 2, Want::All), (2, 4, Want::Nothing)];
            let spans = [0, 1, 2].map(|at| spans[(at + i) % 3]);
            let (mut all, mut list, mut expected) = (Vec::new(), Vec::new(), Vec::new());
            for (seq, n, want) in spans {
                let (first, start) = (engine.sequences()[seq].len(), all.len());
                all.extend_from_slice(&texts[seq][first..first + n]);
                let span = Span { seq, first_pos: first as u32, rows: start..start + n, phase: Phase::Prompt, want };
                expected.extend_from_slice(&alone[seq][first + n - span.n_logits()..first + n]);
                list.push(span);
            }
            engine.step(&Batch { tokens: &all, spans: &list }).unwrap();
            let got: Vec<_> = engine.logits().chunks_exact(n_vocab).take(expected.len()).map(bits).collect();
            assert!(got == expected, "{name}, step {i}");
        }
    }
}

/// Reads that fail from the n-th on, for so many.
struct Failing {
    inner: Pread,
    reads: Arc<AtomicUsize>,
    fails: Arc<AtomicUsize>,
}

impl ReadPath for Failing {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn layout(&self) -> Layout {
        self.inner.layout()
    }
    fn read(&self, extents: &Extents, buf: &mut IoBuf) -> Result<(), ReadError> {
        if self.reads.fetch_add(1, SeqCst) == self.fails.load(SeqCst) {
            let source = std::io::ErrorKind::PermissionDenied.into();
            return Err(ReadError { extent: extents[0], source });
        }
        self.inner.read(extents, buf)
    }
}

#[test]
fn a_read_that_fails_within_a_batch_leaves_every_sequence_as_it_was() {
    for name in MODELS {
        let texts: Vec<_> = (0..3).map(|seq| tokens(name, seq)).collect();
        let alone: Vec<_> = texts.iter().map(|text| alone(name, text)).collect();
        let (reads, fails) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(usize::MAX)));
        let path = |files| Failing { inner: Pread::new(files, "pread"), reads: reads.clone(), fails: fails.clone() };
        let options = Options { memory_bytes: Some(few_bytes(name)), ..options(3) };
        let mut engine = Engine::with_engine(
            gguf(name),
            &options,
            common::isa::cpu(2),
            Box::new(()) as Box<dyn TraceSink>,
            |files| Ok(Box::new(ThreadEngine::new(path(files), 2).unwrap())),
            &mut |_, _| {},
        )
        .unwrap();
        let mut failed = 0;
        for (at, run) in steps().iter().enumerate() {
            let before: Vec<_> = engine.sequences().iter().map(|s| s.tokens().to_vec()).collect();
            // Early and late in the batch.
            for skip in [0, 1, 3, 7] {
                fails.store(reads.load(SeqCst) + skip, SeqCst);
                let Err(error) = step(&mut engine, &texts, run) else { break };
                failed += 1;
                assert!(error.to_string().contains("expert"), "{error}");
                let now: Vec<_> = engine.sequences().iter().map(|s| s.tokens().to_vec()).collect();
                assert_eq!(now, before, "{name}, step {at}");
            }
            fails.store(usize::MAX, SeqCst);
            if engine.sequences().iter().zip(&before).all(|(now, before)| now.tokens() == before) {
                step(&mut engine, &texts, run).unwrap();
            }
            for ((seq, range, _), got) in run.iter().zip(logits_of(&engine, run)) {
                assert!(got == alone[*seq][range.clone()], "{name}, step {at}, sequence {seq}");
            }
        }
        assert!(failed > 20, "{name}: {failed} failures");
    }
}

/// The logits of the last step.
fn logits_of(engine: &Engine, step: &Step) -> Vec<Vec<Vec<u32>>> {
    let mut rows = engine.logits().chunks_exact(engine.blueprint().n_vocab).map(bits);
    step.iter().map(|(_, range, _)| rows.by_ref().take(range.len()).collect()).collect()
}

/// A text longer than twice the rows of a window.
fn long_text(name: &str) -> Vec<u32> {
    let known = golden(name, "tokens").i32s().unwrap().to_vec();
    (0..230).map(|i| known[(i * i + i / 5) % known.len()] as u32).collect()
}

/// Feeds the text, and returns the last logits of each batch.
fn fed(session: &mut Session, text: &[u32]) -> Vec<Vec<u32>> {
    text.chunks(N_BATCH).map(|batch| bits(session.feed(batch, &mut |_| {}).unwrap())).collect()
}

/// A window's rows are overwritten again and again; of a context that is computed with rows for all positions, every bit is the
/// same.
#[test]
fn rows_of_a_window_give_the_bits_of_rows_for_everything() {
    let (name, text) = ("gpt-oss", long_text("gpt-oss"));
    for kv in [GgmlType::F32, GgmlType::F16, GgmlType::Q8_0] {
        let open =
            |options: Options| Session::open(gguf(name), &Options { kv, ..options.clone() }, &mut |_, _| {}).unwrap();
        let mut few = open(options(1));
        // So long a batch needs all positions.
        let mut all = open(Options { n_batch: Some(N_CTX), memory_bytes: Some(1 << 30), ..options(1) });
        assert!(few.plan().kv_bytes < all.plan().kv_bytes, "{kv}");
        let got = fed(&mut few, &text);
        assert!(got == fed(&mut all, &text), "{kv}: in batches");
        if kv == GgmlType::Q8_0 {
            few.reset();
            let last = text.iter().map(|&token| bits(few.decode(token).unwrap())).last();
            assert_eq!(last.as_ref(), got.last(), "{kv}: one by one");
        }
    }
}

#[test]
fn a_windows_rows_cost_the_window_and_a_batch() {
    let blueprint = arch::blueprint(&gguf("gpt-oss")).unwrap();
    let bytes = |n_ctx, n_batch| Sequence::bytes(&blueprint, GgmlType::F16, n_ctx, n_batch).unwrap();
    let rows: Vec<u64> =
        blueprint.attentions().map(|gqa| (2 * gqa.heads.n_head_kv * (gqa.heads.k + gqa.heads.v)) as u64).collect();
    let full = |n_ctx: u64| -> u64 { rows.iter().map(|row| row * n_ctx).sum() };
    let everything: u64 =
        blueprint.attentions().zip(&rows).filter(|(gqa, _)| gqa.window.is_none()).map(|(_, row)| row).sum();
    assert_eq!(bytes(100, 1), full(100), "a context as short as a window's tiles");
    assert_eq!(bytes(10_000, 12) - bytes(9_000, 12), 1000 * everything);
    // Window 8: positions 7 before a batch of 12, in whole tiles of 64, one more for where they begin.
    assert_eq!(bytes(10_000, 12), full(128) + (10_000 - 128) * everything);
    let plan = |parallel| engine("gpt-oss", options(parallel)).plan().clone();
    assert_eq!(plan(3).kv_bytes, 3 * plan(1).kv_bytes);
    assert_eq!(plan(1).kv_bytes, bytes(N_CTX, N_BATCH));
    assert!(plan(3).smallest_bytes > plan(1).smallest_bytes + 2 * plan(1).kv_bytes);
}

#[test]
fn a_rewound_sequence_continues_as_a_fresh_one() {
    for name in MODELS {
        let (text, other) = (tokens(name, 0), tokens(name, 1));
        let expected = alone(name, &text);
        let mut session = Session::open(gguf(name), &options(1), &mut |_, _| {}).unwrap();
        session.feed(&text[..20], &mut |_| {}).unwrap();
        let checkpoint = session.sequence_mut().checkpoint().unwrap();
        assert_eq!(checkpoint.tokens(), &text[..20]);
        session.feed(&other[..15], &mut |_| {}).unwrap();
        session.sequence_mut().restore(&checkpoint).unwrap();
        assert_eq!(bits(session.decode(text[20]).unwrap()), expected[20], "{name}: restored");
        session.feed(&other[..3], &mut |_| {}).unwrap();
        for len in [17, 5, 0] {
            match session.sequence().check_rewind(len) {
                Ok(()) => session.sequence_mut().rewind(len).unwrap(),
                Err(e) => {
                    assert!(session.sequence_mut().rewind(len).is_err() && session.n_past() > len, "{e}");
                    session.reset();
                    session.feed(&text[..len], &mut |_| {}).unwrap();
                }
            }
            assert_eq!(session.sequence().tokens(), &text[..len]);
            let got = bits(session.feed(&text[len..len + 9], &mut |_| {}).unwrap());
            assert_eq!(got, expected[len + 8], "{name}: rewound to {len}");
        }
        let error = session.sequence_mut().rewind(10).unwrap_err().to_string();
        assert!(error.contains("9 tokens cannot be rewound to 10"), "{error}");
        let error = session.sequence_mut().restore(&checkpoint).unwrap_err().to_string();
        assert!(error.contains("no longer those of its checkpoint"), "{error}");
    }
}

/// Also of what chooses the positions that attention sees: the text is longer than it chooses.
#[test]
fn a_copied_sequence_continues_as_the_one_that_it_was_copied_from() {
    for name in MODELS.into_iter().chain(["glm-dsa-sparse", "deepseek4"]) {
        let text = tokens(name, 0).repeat(2);
        // What was there before must not be seen.
        let junk: Vec<_> = text.iter().rev().copied().collect();
        let mut engine = engine(name, options(2));
        let n = engine.plan().n_batch;
        let feed = |engine: &mut Engine, texts: [&[u32]; 2], seq: usize, range: Range<usize>| {
            let texts = texts.map(<[u32]>::to_vec);
            let each = range.clone().step_by(n).map(|first| first..range.end.min(first + n));
            each.flat_map(|range| step(engine, &texts, &vec![(seq, range, Phase::Prompt)]).unwrap().remove(0))
                .collect::<Vec<_>>()
        };
        feed(&mut engine, [&text, &junk], 1, 0..30);
        feed(&mut engine, [&text, &junk], 0, 0..40);
        let (from, to) = engine.sequence_pair(0, 1);
        to.copy_from(from, 40).unwrap();
        let expected = feed(&mut engine, [&text, &text], 0, 40..60);
        assert!(feed(&mut engine, [&text, &text], 1, 40..60) == expected, "{name}");
    }
}

#[test]
fn a_window_can_be_restored_where_it_cannot_be_rewound() {
    let (name, text) = ("gpt-oss", long_text("gpt-oss"));
    let mut session = Session::open(gguf(name), &options(1), &mut |_, _| {}).unwrap();
    let expected = fed(&mut session, &text);
    session.reset();
    fed(&mut session, &text[..8 * N_BATCH]);
    let checkpoint = session.sequence_mut().checkpoint().unwrap();
    let most = Sequence::checkpoint_bytes(session.blueprint(), GgmlType::F16, N_CTX, N_BATCH).unwrap();
    assert!(checkpoint.bytes() - 4 * 8 * N_BATCH as u64 <= most && most > 0);
    fed(&mut session, &text[8 * N_BATCH..]);
    let error = session.sequence_mut().rewind(8 * N_BATCH).unwrap_err().to_string();
    assert!(error.contains("cannot rewind from 230 to 96 tokens: rows that its window saw"), "{error}");
    assert_eq!(session.n_past(), 230);
    session.sequence_mut().rewind(220).unwrap();
    session.sequence_mut().restore(&checkpoint).unwrap();
    assert_eq!(fed(&mut session, &text[8 * N_BATCH..]), expected[8..]);
    // Positions before the checkpoint's window are gone.
    session.sequence_mut().restore(&checkpoint).unwrap();
    assert!(session.sequence_mut().rewind(60).is_err());
    // A prompt of several batches that fails is taken back whole, though its batches overwrote the window: see `tests/faults.rs`
    // for failing reads; here a token that does not exist is refused before anything runs.
    assert!(session.feed(&[1, 2, u32::MAX], &mut |_| {}).is_err());
    assert_eq!(session.n_past(), 8 * N_BATCH);
}

#[test]
fn batches_that_make_no_sense_are_refused() {
    let mut engine = engine("qwen2moe", options(2));
    let span = |seq, first_pos, rows| Span { seq, first_pos, rows, phase: Phase::Prompt, want: Want::Last };
    let all = [1; N_BATCH + 1];
    for (n, spans, expected) in [
        (0, vec![], "a batch without tokens"),
        (N_BATCH + 1, vec![span(0, 0, 0..N_BATCH + 1)], "a batch holds 12 tokens, not 13"),
        (3, vec![span(0, 0, 0..2)], "spans hold 2 of a batch's 3 tokens"),
        (3, vec![span(0, 0, 0..2), span(1, 0, 1..3)], "span 1 has the tokens 1..3"),
        (3, vec![span(0, 0, 0..3), span(1, 0, 3..3)], "span 1 has the tokens 3..3"),
        (3, vec![span(0, 0, 0..2), span(0, 2, 2..3)], "sequence 0 has two spans"),
        (3, vec![span(2, 0, 0..3)], "there are 2 sequences"),
        (3, vec![span(1, 4, 0..3)], "sequence 1 has 0 tokens, so that none can come at position 4"),
    ] {
        let error = engine.step(&Batch { tokens: &all[..n], spans: &spans }).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let tokens = [u32::MAX];
    let error = engine.step(&Batch { tokens: &tokens, spans: &[span(0, 0, 0..1)] }).unwrap_err().to_string();
    assert!(error.contains("not in the vocabulary"), "{error}");
    for parallel in [0, 257] {
        let error = Engine::open(gguf("qwen2moe"), &options(parallel), &mut |_, _| {}).err().unwrap().to_string();
        assert!(error.contains("from 1 to 256"), "{error}");
    }
    assert!(engine.sequences().iter().all(Sequence::is_empty));
}
