//! Tokenising takes time in proportion to the text and a few bytes for each of its bytes, whatever text and vocabulary.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use common::vocab::{byte_level, characters, sentence_piece};
use hotset::tokenizer::{Tokenizer, VocabSource};
use rustix::time::{ClockId, clock_gettime};

/// The system's allocator, counting what is taken at once.
struct Counting;

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    PEAK.fetch_max(TAKEN.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call is handed to `System` with the caller's own arguments; the counter does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `ptr` came from `System`, as all of this allocator's do.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Both exist while the bytes move.
        add(new_size);
        TAKEN.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `ptr` came from `System`, and the caller's promise about the sizes is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time: what they count is the process's.
static ALONE: Mutex<()> = Mutex::new(());

fn build(source: VocabSource<'_>) -> Tokenizer {
    Tokenizer::new(Path::new("model.gguf"), source).unwrap()
}

/// Time that this thread has computed: what else the machine does does not count.
fn computed() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("no clock runs backwards")
}

/// The tokens, which must not take longer than `limit`: far more than they need, far less than a quadratic search does.
#[track_caller]
fn within(limit: Duration, what: &str, tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let start = computed();
    let tokens = tokenizer.encode(text, true, true);
    let took = computed() - start;
    assert!(took < limit, "{what}: {took:?} for {} bytes", text.len());
    tokens
}

/// [`within`] five seconds.
#[track_caller]
fn quickly(what: &str, tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    within(Duration::from_secs(5), what, tokenizer, text)
}

/// With merges that make every length of a run of `a`.
fn runs() -> VocabSource<'static> {
    let mut source = byte_level();
    let (mut tokens, mut merges) = (source.tokens.into_owned(), source.merges.into_owned());
    for i in 0..8 {
        let half = "a".repeat(1 << i);
        merges.push(format!("{half} {half}"));
        tokens.push(half.repeat(2));
    }
    source.types = Vec::new().into();
    (source.tokens, source.merges) = (tokens.into(), merges.into());
    source
}

#[test]
fn every_pre_tokenizer_is_linear_in_every_kind_of_text() {
    let _alone = ALONE.lock();
    let names = [
        "default",
        "gpt-2",
        "llama-bpe",
        "minicpm5",
        "qwen2",
        "qwen35",
        "laguna",
        "ufakzeka",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
        "spark2_5",
        "youtu",
        "falcon",
        "starcoder",
        "bloom",
        "viking",
        "tekken",
        "gpt-4o",
        "kimi-k2",
        "bailingmoe",
        "seed-coder",
        "afmoe",
        "exaone-moe",
    ];
    let parts = [
        "7", " ", "\n", "\r", " \n", "  x", "a", "A", "Ab", "a ", "!", "! ", "'", "'l", "中", "한", "ひ", "e\u{301}",
        "\u{301}", "²", "١", "/", "\t\u{a0}", "ๆ",
    ];
    for name in names {
        let tokenizer = build(VocabSource { pre: Some(name.to_owned()), ..byte_level() });
        for part in parts {
            // What may come behind is looked for all the way, and is not there.
            let text = part.repeat(100_000 / part.len()) + "x";
            within(Duration::from_secs(1), &format!("{name}, {part:?}"), &tokenizer, &text);
        }
    }
}

#[test]
fn long_runs_of_digits_are_cut_from_the_right() {
    let _alone = ALONE.lock();
    let tokenizer = build(VocabSource { pre: Some("afmoe".into()), ..byte_level() });
    let tokens = quickly("afmoe", &tokenizer, &"1234567".repeat(200_000));
    assert_eq!(tokens.len(), 1_400_000);
}

#[test]
fn long_words_merge_in_time() {
    let _alone = ALONE.lock();
    let n = 1 << 20;
    assert_eq!(quickly("a run", &build(runs()), &"a".repeat(n)).len(), n / 256);
    assert_eq!(quickly("the", &build(byte_level()), &"the".repeat(n / 4)).len(), n / 4);
    for source in [sentence_piece(), characters()] {
        let tokenizer = build(source);
        quickly("the", &tokenizer, &"the".repeat(n / 4));
        quickly("spaces", &tokenizer, &" ".repeat(n));
        quickly("unknown", &tokenizer, &"é\u{301}".repeat(n / 4));
    }
}

#[test]
fn special_tokens_cost_nothing_by_their_number_or_length() {
    let _alone = ALONE.lock();
    let with = |specials: Vec<String>| {
        let mut tokens = byte_level().tokens.into_owned();
        let mut types = byte_level().types.into_owned();
        types.extend(specials.iter().map(|_| 4));
        tokens.extend(specials);
        build(VocabSource { tokens: tokens.into(), types: types.into(), ..byte_level() })
    };
    let first = byte_level().tokens.len() as u32;
    let n = 2000;
    // All begin alike, and the text never ends as they do.
    let tokenizer = with((1..=n).map(|i| "<".repeat(i) + ">").collect());
    let text = "<".repeat(200_000);
    assert_eq!(quickly("no end", &tokenizer, &text).len(), text.len());
    assert_eq!(
        quickly("an end", &tokenizer, &(text + ">")),
        [vec![u32::from(b'<'); 198_000], vec![first + 1999]].concat()
    );
    // The longest is tried at each place, and the shortest is there.
    let mut specials = vec!["<<".to_owned(), "<".repeat(60_000) + ">"];
    specials.extend((2..n).map(|i| format!("<{i}|>")));
    let tokenizer = with(specials);
    assert_eq!(quickly("short ones", &tokenizer, &"<".repeat(200_000)), vec![first; 100_000]);
    // All lengths are there.
    let tokenizer = with((2..n).map(|i| "<".repeat(i)).collect());
    assert_eq!(quickly("all", &tokenizer, &"<".repeat(200_000)).len(), 200_000_usize.div_ceil(n - 1));
    // All begin differently.
    let tokenizer = with((0..n * 10).map(|i| format!("{i}|>{}", "x".repeat(i % 97))).collect());
    quickly("digits", &tokenizer, &"1234567890|".repeat(20_000));
}

#[test]
fn a_byte_of_text_takes_few_bytes_of_memory() {
    let _alone = ALONE.lock();
    let n = 1 << 20;
    let words = [
        ("merging", runs(), "a".repeat(n)),
        ("not merging", byte_level(), "xyzw".repeat(n / 4)),
        ("sentence piece", sentence_piece(), "the".repeat(n / 3)),
        ("sentence piece, words", sentence_piece(), "the and ".repeat(n / 8)),
        ("characters", characters(), "the".repeat(n / 3)),
    ];
    for (what, source, text) in words {
        let tokenizer = build(source);
        let before = TAKEN.load(Relaxed);
        PEAK.store(before, Relaxed);
        let tokens = tokenizer.encode(&text, true, true);
        let each = (PEAK.load(Relaxed) - before) as f64 / text.len() as f64;
        assert!(each < 32.0, "{what}: {each:.1} bytes a byte, of {} tokens", tokens.len());
    }
}
