//! Experts that are known before a layer's attention are asked for before it: from the layer's input (SmallThinker) or from
//! the token alone (the first layers of DeepSeek-V4).

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use common::ref_models::{golden, ref_model};
use hotset::{
    backend::{
        Attention, AttentionShape, Backend, CacheWrite, FfnJob, Hidden, Pair, Product, Recurrence, Reference, Rotation,
        Rows,
    },
    engine::{Engine, Options},
    gguf::Gguf,
    io::{Extents, IoBuf, Layout, Pread, ReadError, ReadPath, ThreadEngine},
    model::{Batch, Span, Want},
    prefetch::PrefetchKind,
    quant::{GgmlType, QMat},
    trace::{Phase, TraceSink},
};

/// Counts the experts that are read.
struct Counting(Pread, Arc<AtomicUsize>);

impl ReadPath for Counting {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn layout(&self) -> Layout {
        self.0.layout()
    }
    fn read(&self, extents: &Extents, buf: &mut IoBuf) -> Result<(), ReadError> {
        self.1.fetch_add(1, SeqCst);
        self.0.read(extents, buf)
    }
}

/// Looks at the reads when attention begins.
struct Watching {
    reads: Arc<AtomicUsize>,
    /// Experts used per token, and layers whose reads attention waits for.
    used: usize,
    early: usize,
    /// Reads that each attention saw.
    seen: Arc<Mutex<Vec<usize>>>,
}

impl Watching {
    fn look(&self) {
        let mut seen = self.seen.lock().unwrap();
        let layer = seen.len();
        let expected = self.used * if layer < self.early { layer + 1 } else { layer };
        // They are submitted, not done.
        let end = Instant::now() + Duration::from_secs(20);
        while self.reads.load(SeqCst) < expected && Instant::now() < end {
            sleep(Duration::from_millis(1));
        }
        seen.push(self.reads.load(SeqCst));
    }
}

impl Backend for Watching {
    fn describe(&self) -> String {
        "watching".to_owned()
    }
    fn prepare(&mut self, rows: &mut Rows) {
        Reference.prepare(rows);
    }
    fn matmul(&mut self, rows: &Rows, products: &mut [Product<'_>]) {
        Reference.matmul(rows, products);
    }
    fn matmul_per_head(&mut self, rows: &Rows, n_head: usize, w: QMat<'_>, y: &mut [f32]) {
        Reference.matmul_per_head(rows, n_head, w, y);
    }
    fn ffn(&mut self, rows: &Rows, jobs: &[FfnJob<'_>], pairs: &[Pair], hidden: &mut Hidden, out: &mut [f32]) {
        Reference.ffn(rows, jobs, pairs, hidden, out);
    }
    fn attend(&mut self, a: &Attention<'_>, out: &mut [f32]) {
        self.look();
        Reference.attend(a, out);
    }
    fn recur(&mut self, r: &Recurrence<'_>, state: &mut [f32], out: &mut [f32]) {
        Reference.recur(r, state, out);
    }
    fn rms_norm(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        Reference.rms_norm(x, weight, eps, out);
    }
    fn rms_norm_onto(&mut self, x: &mut [f32], weight: &[f32], eps: f32) {
        Reference.rms_norm_onto(x, weight, eps);
    }
    fn rope(&mut self, x: &mut [f32], rotation: &Rotation<'_>) {
        Reference.rope(x, rotation);
    }
    fn attention_bytes(threads: usize, shape: AttentionShape) -> u64 {
        Reference::attention_bytes(threads, shape)
    }
    fn write_cache(&mut self, write: CacheWrite<'_>) {
        Reference.write_cache(write);
    }
    fn add_bias(&mut self, x: &mut [f32], bias: &[f32]) {
        Reference.add_bias(x, bias);
    }
    fn add_weighted(&mut self, x: &mut [f32], cols: usize, terms: &[f32], weight: impl Fn(usize) -> f32 + Sync) {
        Reference.add_weighted(x, cols, terms, weight);
    }
    fn softmax(&mut self, x: &mut [f32], cols: usize) {
        Reference.softmax(x, cols);
    }
    fn each_row<T: Send>(&mut self, x: &mut [T], cols: usize, cost: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        Reference.each_row(x, cols, cost, f);
    }
}

/// Reads that the attention of each layer sees of a first token, and the token's logits.
fn first_token(name: &str, used: usize, early: usize) -> (Vec<usize>, Vec<f32>) {
    let (reads, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let backend = Watching { reads: reads.clone(), used, early, seen: seen.clone() };
    let options = Options {
        n_ctx: Some(64),
        kv: GgmlType::F32,
        prefetch: PrefetchKind::Off,
        process_bytes: Some(0),
        ..Options::default()
    };
    let counting = reads.clone();
    let mut engine = Engine::with_engine(
        Gguf::open(&ref_model(name)).unwrap(),
        &options,
        backend,
        Box::new(()) as Box<dyn TraceSink>,
        |files| Ok(Box::new(ThreadEngine::new(Counting(Pread::new(files, "pread"), counting), 2).unwrap())),
        &mut |_, _| {},
    )
    .unwrap();
    let tokens = [golden(name, "tokens").i32s().unwrap()[0] as u32];
    let span = Span { seq: 0, first_pos: 0, rows: 0..1, phase: Phase::Decode, want: Want::Last };
    engine.step(&Batch { tokens: &tokens, spans: &[span] }).unwrap();
    let n_vocab = engine.blueprint().n_vocab;
    let seen = seen.lock().unwrap().clone();
    (seen, engine.logits()[..n_vocab].to_vec())
}

#[test]
fn reads_begin_before_the_attention_that_they_hide_behind() {
    // A layer's attention sees the reads of the layers before it, and its own where they are known.
    for (name, used, early, expected) in [
        ("qwen3moe", 4, 0, &[0, 4, 8][..]),
        ("smallthinker", 2, 4, &[2, 4, 6, 8]),
        ("deepseek4", 4, 2, &[4, 8, 8, 12, 16]),
    ] {
        let (seen, logits) = first_token(name, used, early);
        assert_eq!(seen, expected, "{name}");
        let reference = golden(name, "logits");
        let worst = logits.iter().zip(reference.f32s().unwrap()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst <= 1e-4, "{name}: {worst}");
    }
}
