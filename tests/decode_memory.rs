//! Once it decodes, a session allocates nothing: neither the control thread nor those that compute or read.

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use common::ref_models::{golden, ref_model};
use hotset::{
    gguf::Gguf,
    io::IoKind,
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
    session::{Options, Session},
};

/// Counts what all threads ask for while it is asked to.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(u64::from(COUNTS.load(Relaxed)), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tokens before counting: by then every buffer has had its size.
const WARM_UP: usize = 60;
const COUNTED: usize = 20;

/// What so many decoded tokens allocate, in a budget that has experts read for them.
fn allocations(name: &str, options: Options) -> u64 {
    let tokens: Vec<u32> = golden(name, "tokens").i32s().unwrap().iter().map(|&t| t as u32).collect();
    let options = Options { n_ctx: Some(128), process_bytes: Some(0), threads: Some(2), ..options.clone() };
    let open =
        |options: &Options| Session::open(Gguf::open(&ref_model(name)).unwrap(), options, &mut |_, _| {}).unwrap();
    let plan = open(&options).plan().clone();
    let few = plan.smallest_bytes + (plan.full_bytes - plan.smallest_bytes) / 4;
    let mut session = open(&Options { memory_bytes: Some(few), ..options.clone() });
    let mut decode = |i: usize| {
        session.decode(tokens[i * 7 % tokens.len()]).unwrap();
        session.stats().decode.miss
    };
    let before = (0..WARM_UP).map(&mut decode).last().unwrap();
    ALLOCATIONS.store(0, Relaxed);
    COUNTS.store(true, Relaxed);
    let after = (WARM_UP..WARM_UP + COUNTED).map(&mut decode).last().unwrap();
    COUNTS.store(false, Relaxed);
    assert!(after > before + 5, "{name}: experts were read");
    ALLOCATIONS.load(Relaxed)
}

/// The lru crate boxes an entry per insertion: its policy alone may allocate.
#[test]
fn twenty_decoded_tokens_allocate_nothing() {
    let base = Options { io: Some(IoKind::Pread), prefetch: PrefetchKind::Lookahead, ..Options::default() };
    for name in MODELS {
        assert_eq!(allocations(name, base.clone()), 0, "{name}");
    }
    let name = MODELS[0];
    for &policy in PolicyKind::ALL.iter().filter(|&&policy| policy != PolicyKind::Lru) {
        assert_eq!(allocations(name, Options { policy, ..base.clone() }), 0, "{}", policy.name());
    }
    for &prefetch in PrefetchKind::ALL {
        assert_eq!(allocations(name, Options { prefetch, ..base.clone() }), 0, "{}", prefetch.name());
    }
    for kv in [GgmlType::F32, GgmlType::Q8_0] {
        assert_eq!(allocations(name, Options { kv, ..base.clone() }), 0, "{kv}");
    }
    // Each read of `mapped` is a mapping of its own, which something has to stand for; `page-cache` keeps nothing at all.
    let keeps = |io: &&IoKind| !matches!(io, IoKind::Mapped | IoKind::PageCache);
    for &io in common::read_paths().iter().filter(keeps) {
        assert_eq!(allocations(name, Options { io: Some(io), ..base.clone() }), 0, "{}", io.name());
    }
    COUNTS.store(true, Relaxed);
    drop(vec![0u8; 100]);
    COUNTS.store(false, Relaxed);
    assert!(ALLOCATIONS.load(Relaxed) > 0, "allocations are counted");
}

/// One with each kind of state.
const MODELS: [&str; 9] = [
    "gpt-oss",
    "qwen35moe",
    "lfm2moe",
    "granitehybrid",
    "kimi-linear",
    "nemotron_h_moe-latent",
    "glm-dsa-sparse",
    "qwen4exp",
    "deepseek4",
];
