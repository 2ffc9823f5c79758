//! Every reader of files on damaged files: an error in one sentence or a value, never a panic, never an allocation out
//! of proportion, and no hang.
//!
//!     HOTSET_FUZZ_CASES=1000000 HOTSET_FUZZ_SEED=1 cargo test --release --test fuzz -- --nocapture
//!
//! A case that fails prints its own seed: run it alone with `HOTSET_FUZZ_CASES=1`.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{
    dice::Dice,
    mutate::{extreme, mutate},
    routing::{Event, Shape, decoding, header, write},
    samples::{every_value, write_file},
    vocab::{byte_level, characters, meta, sentence_piece},
};
use hotset::{
    Error,
    expert::HotList,
    gguf::Gguf,
    report::{Made, Report, Run},
    tokenizer::{StreamDecoder, Tokenizer, VocabSource},
    trace::{
        export::export,
        file::{Header, TraceReader},
        import::import,
    },
};
use rustix::time::{ClockId, clock_gettime};

/// The system's allocator, remembering the largest request.
struct Counting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to `System` with the caller's own arguments; the counter does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System`, as all of this allocator's do.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        LARGEST.fetch_max(new_size, Ordering::Relaxed);
        // SAFETY: `ptr` came from `System`, and the caller's promise about the sizes is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// No input here is larger than 16 KiB; what it makes us allocate at once must be in proportion.
const MOST_BYTES: usize = 32 << 20;

/// A case takes some microseconds of computing; how long it waits for the machine does not count.
const PATIENCE: Duration = Duration::from_secs(2);

/// Time that this thread has computed.
fn computed() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("no clock runs backwards")
}

/// Says which case it was if it panics.
struct Case {
    name: &'static str,
    seed: u64,
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} failed: HOTSET_FUZZ_SEED={} HOTSET_FUZZ_CASES=1", self.name, self.seed);
        }
    }
}

/// Runs `one` on as many cases as asked for; it says whether the input was accepted.
fn fuzz(name: &'static str, mut one: impl FnMut(&mut Dice) -> bool) {
    let number = |key: &str| std::env::var(key).ok().map(|text| text.parse::<u64>().expect("a number"));
    let first = number("HOTSET_FUZZ_SEED").unwrap_or(1);
    let cases = number("HOTSET_FUZZ_CASES").unwrap_or(2000);
    let (mut accepted, mut slowest) = (0, Duration::ZERO);
    for seed in (0..cases).map(|i| first.wrapping_add(i)) {
        let case = Case { name, seed };
        let start = computed();
        accepted += u64::from(one(&mut Dice(seed)));
        slowest = slowest.max(computed() - start);
        assert!(slowest < PATIENCE, "{slowest:?}");
        let largest = LARGEST.load(Ordering::Relaxed);
        assert!(largest <= MOST_BYTES, "an allocation of {largest} bytes");
        drop(case);
    }
    eprintln!(
        "{name}: {cases} cases from seed {first}: {accepted} accepted, {} refused, none panicked; the slowest computed {} ms",
        cases - accepted,
        slowest.as_millis()
    );
    assert!(cases < 1000 || (accepted > 0 && accepted < cases), "the cases are not what they are meant to be");
}

/// An error is one line and names the file.
fn refused(error: &Error, path: &Path) -> bool {
    let text = error.to_string();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(text.contains(name) && text.lines().count() == 1, "{text:?}");
    false
}

const TEXT: &str = "the <|im_end|> thé\u{301} 12345 'll\n\n  \u{3000}<user></s><s>";

#[test]
fn gguf() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut seeds = Vec::new();
    let padded = VocabSource { pad: Some(u32::MAX), add_bos: Some(true), ..byte_level() };
    for meta in [meta(&padded), meta(&sentence_piece()), meta(&characters()), every_value()] {
        write_file(&path, &meta, &[("a", &[8, 3], hotset::quant::GgmlType::F32)]);
        seeds.push(fs::read(&path).unwrap());
    }
    fuzz("gguf", |dice| {
        fs::write(&path, mutate(dice, &seeds)).unwrap();
        match Gguf::open_header(&path).and_then(|gguf| Tokenizer::from_gguf(&gguf)) {
            Ok(tokenizer) => check_text(&tokenizer, TEXT),
            Err(error) => refused(&error, &path),
        }
    });
}

/// The tokens of a text are tokens, and a stream of them reads like the whole.
fn check_text(tokenizer: &Tokenizer, text: &str) -> bool {
    let tokens = tokenizer.encode(text, true, true);
    assert!(tokens.iter().all(|&id| (id as usize) < tokenizer.n_vocab()));
    tokenizer.prompt_notes(text, &tokens);
    let mut decoder = StreamDecoder::new(tokenizer);
    let mut streamed: String = tokens.iter().map(|&token| decoder.push(tokenizer, token).to_owned()).collect();
    streamed.push_str(decoder.finish());
    assert_eq!(streamed, tokenizer.decode(&tokens));
    true
}

#[test]
fn tokenizer_text() {
    let build = |source| Tokenizer::new(Path::new("m.gguf"), source).unwrap();
    let mut tokenizers = vec![build(sentence_piece()), build(characters())];
    for pre in ["default", "qwen2", "llama-bpe", "deepseek-llm", "deepseek-v3", "gpt-4o", "kimi-k2", "afmoe", "bloom"] {
        tokenizers.push(build(VocabSource { pre: Some(pre.to_owned()), ..byte_level() }));
    }
    let others = ["e\u{301}\u{301}中文ひら 한국 ١٢٣ 'LL\r\n\t\u{a0}", "<|im_start|><|im_<user><|endoftext|>▁▁"];
    let seeds: Vec<Vec<u8>> = [TEXT, others[0], others[1]].map(|s| s.into()).to_vec();
    fuzz("tokenizer text", |dice| {
        let bytes = mutate(dice, &seeds);
        let tokenizer = &tokenizers[dice.below(tokenizers.len())];
        // What is no UTF-8 is refused before it comes to a tokenizer.
        std::str::from_utf8(&bytes).is_ok_and(|text| check_text(tokenizer, text))
    });
}

/// Traces without and with weights and lookahead, few and many experts.
fn trace_seeds(path: &Path) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (experts, ranks) in [(4, 0), (12, 3), (300, 2)] {
        let shape = Shape { layers: 3, experts, used: 2, tokens: 6 };
        let mut events = decoding(&mut Dice(5), shape);
        for event in events.iter_mut().filter(|_| ranks > 0) {
            event.lookahead = (0..experts).map(|e| if e < ranks { e as f32 } else { f32::NEG_INFINITY }).collect();
        }
        let header = Header { weights: ranks > 0, lookahead_ranks: ranks, ..header(shape) };
        write(path, header, &events);
        seeds.push(fs::read(path).unwrap());
    }
    seeds
}

/// Makes the checksums right again, so that wrong numbers come as far as the reader of events.
fn with_checksums(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = |bytes: &[u8], at: usize| {
        let field = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes(field.try_into().unwrap()) as usize)
    };
    let mut at = 16;
    if let Some(n) = length(&bytes, 12).filter(|&n| n < bytes.len()) {
        at += n + 4;
        if at <= bytes.len() {
            let crc = crc32fast::hash(&bytes[16..16 + n]);
            bytes[16 + n..at].copy_from_slice(&crc.to_le_bytes());
        }
    }
    while let Some(n) = length(&bytes, at) {
        let (start, end) = (at + 8, at + 8 + n.min(bytes.len()));
        if end > bytes.len() {
            break;
        }
        let crc = crc32fast::hash(&bytes[start..end]);
        bytes[at + 4..start].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
    bytes
}

fn events(path: &Path) -> Result<Vec<Event>, Error> {
    let (mut reader, mut events) = (TraceReader::open(path)?, Vec::new());
    while let Some(event) = reader.next_event()? {
        events.push(Event::own(event));
    }
    Ok(events)
}

#[test]
fn trace() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (path, npz, back) = (at("t.trace"), at("t.npz"), at("back.trace"));
    let seeds = trace_seeds(&path);
    fuzz("trace", |dice| {
        let bytes = mutate(dice, &seeds);
        let bytes = if dice.below(4) == 0 { bytes } else { with_checksums(bytes) };
        fs::write(&path, bytes).unwrap();
        let all = match events(&path) {
            Ok(events) => events,
            Err(error) => return refused(&error, &path),
        };
        // What can be exported can be imported.
        if dice.below(16) == 0 {
            match export(&path, &npz) {
                Ok(exported) => {
                    import(&npz, &back, 0).unwrap();
                    assert!(exported.tokens == 0 || events(&back).unwrap().len() <= all.len());
                    fs::remove_file(&npz).unwrap();
                    fs::remove_file(&back).unwrap();
                }
                Err(error) => assert!(!refused(&error, &path)),
            }
        }
        true
    });
}

/// A `.npy` whose shape and type are as asked for, and which tells the truth about its length, mostly.
fn random_npy(dice: &mut Dice, shape: &[u64], float: bool) -> Vec<u8> {
    let mut shape = shape.to_vec();
    if dice.below(12) == 0 {
        let axis = dice.below(shape.len());
        shape[axis] = extreme(dice);
    }
    let types = [("<f4", 4), ("<f2", 2), ("|u1", 1), ("<u2", 2), ("<i4", 4), ("<i8", 8)];
    let (ty, width) = match dice.below(12) {
        0 => types[dice.below(6)],
        _ if float => types[dice.below(2)],
        _ => types[2 + dice.below(4)],
    };
    let list = shape.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let dict = format!("{{'descr': '{ty}', 'fortran_order': False, 'shape': ({list},), }}\n");
    let mut bytes = b"\x93NUMPY\x01\0".to_vec();
    bytes.extend_from_slice(&(dict.len() as u16).to_le_bytes());
    bytes.extend_from_slice(dict.as_bytes());
    let elements = shape.iter().fold(1u64, |n, &axis| n.saturating_mul(axis)).min(4096);
    for _ in 0..elements {
        let value = if dice.below(200) == 0 { extreme(dice) } else { dice.below(4) as u64 };
        bytes.extend_from_slice(&value.to_le_bytes()[..width]);
    }
    bytes
}

/// An archive of arrays whose shapes fit each other, mostly.
fn random_npz(dice: &mut Dice, header: &[u8]) -> Vec<u8> {
    let [tokens, layers, used] = [dice.below(5), 1 + dice.below(3), 1].map(|n| n as u64);
    let (used, experts) = (used + u64::from(dice.below(4) == 0), 4);
    let layers = if dice.below(20) == 0 { 0 } else { layers };
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    let arrays: [(&str, &[u64], bool); 11] = [
        (if dice.below(2) == 0 { "experts" } else { "ids" }, &[tokens, layers, used], false),
        ("n_expert", &[1], false),
        ("prompt_start", &[1], false),
        ("probs", &[tokens, layers, experts], true),
        ("weights", &[tokens, layers, used], true),
        ("phase", &[tokens], false),
        ("batch", &[tokens], false),
        ("position", &[tokens], false),
        ("pred_mid_plus1", &[tokens, layers, 2], false),
        ("pred_mid_plus1_score", &[tokens, layers, 2], true),
        ("pred_mid_plus2", &[tokens, layers, 2], false),
    ];
    for (i, (name, shape, float)) in arrays.into_iter().enumerate() {
        if i == 0 || dice.below(8) == 0 {
            let bytes = random_npy(dice, shape, float);
            add(&format!("{name}.npy"), &bytes);
        }
    }
    if dice.below(16) == 0 {
        add("header.json", header);
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn npz() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (path, out) = (at("a.npz"), at("a.trace"));
    let mut seeds = Vec::new();
    for seed in trace_seeds(&out) {
        fs::write(&out, seed).unwrap();
        export(&out, &path).unwrap();
        seeds.push(fs::read(&path).unwrap());
        fs::remove_file(&path).unwrap();
    }
    fs::remove_file(&out).unwrap();
    let header = serde_json::to_vec(&header(Shape { layers: 2, experts: 4, used: 1, tokens: 3 })).unwrap();
    fuzz("npz import", |dice| {
        let bytes = match dice.below(4) {
            0 => mutate(dice, &seeds),
            1 => {
                let seed = random_npz(dice, &header);
                mutate(dice, &[seed])
            }
            _ => random_npz(dice, &header),
        };
        fs::write(&path, bytes).unwrap();
        match import(&path, &out, 1000) {
            Ok(_) => {
                events(&out).unwrap();
                fs::remove_file(&out).unwrap();
                true
            }
            Err(error) => {
                assert!(!out.exists(), "half an import");
                // A header that came along is checked as the new trace's.
                let named = if error.to_string().contains("a.trace") { &out } else { &path };
                refused(&error, named)
            }
        }
    });
}

#[test]
fn hot_list() {
    let path = Path::new("a.hot");
    let seeds =
        [&b"# layer expert uses\n0 17 412\n3 5 398\n1 2\n\n"[..], b"0 0 1\r\n0 1 4294967295\n# \xc3\xa9\n2 2 2"];
    let seeds = seeds.map(<[u8]>::to_vec);
    fuzz("hot list", |dice| {
        let bytes = mutate(dice, &seeds);
        match HotList::parse(&String::from_utf8_lossy(&bytes), path, 4, 32) {
            Ok(list) => {
                let again = HotList::parse(&list.to_text(), path, 4, 32).unwrap();
                assert_eq!(again, list);
                assert!(again.after(&list).top(2).len() <= 8);
                true
            }
            Err(error) => refused(&error, path),
        }
    });
}

const RECORD: &str = r#"{"version": "0.1.0", "date": "2026-01-01", "machine": "two cores", "model": "m.gguf", "model_id": "0",
"prompt_tokens": 3, "bytes_read": 4000, "prefetches": 2, "prefetch_useful": 1, "prefetch_wasted": 1, "budget_bytes": 1000000,
"peak_rss_bytes": 900000, "io": "pread", "io_depth": 4, "io_reason": null, "policy": "lru", "prefetch": "off",
"scope": "layer", "isa": "avx2", "threads": 2,
"decode": {"tokens": 3, "seconds": 0.5, "hit": 6, "late": 1, "miss": 5, "stall_ms": 1.5},
"layers": [{"hit": 4, "late": 0, "miss": 2}, {"hit": 2, "late": 1, "miss": 3}],
"tokens": {"each": 1, "count": 3, "hit": [1, 2, 3], "late": [0, 1, 0], "miss": [3, 1, 1], "bytes": [3000, 500, 500],
"stall_ns": [900, 500, 100], "time_ns": [1000, 900, 600]}}"#;

#[test]
fn run_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.json");
    let seeds = [RECORD.as_bytes().to_vec()];
    fs::write(&path, &seeds[0]).unwrap();
    Run::read(&path).unwrap();
    fuzz("run record", |dice| {
        fs::write(&path, mutate(dice, &seeds)).unwrap();
        match Run::read(&path) {
            Ok(run) => {
                let made = Made { version: String::new(), date: String::new(), machine: String::new() };
                let report = Report { made, trace: None, run: Some(run) };
                assert!(!report.html().is_empty() && !report.text().is_empty());
                true
            }
            Err(error) => refused(&error, &path),
        }
    });
}
