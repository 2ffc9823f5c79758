//! Imports that cannot be are one sentence and no file; what an export wrote comes back, whatever the trace.

mod common;

use std::{fs, path::Path};

use common::{
    dice::Dice,
    routing::{Event, Shape, header, write},
};
use hotset::{
    id::ExpertId,
    trace::{
        Phase, Routed, TraceSink,
        export::export,
        file::{Header, TraceReader, TraceWriter},
        import::import,
    },
};

fn events(path: &Path) -> Vec<Event> {
    let (mut reader, mut events) = (TraceReader::open(path).unwrap(), Vec::new());
    while let Some(event) = reader.next_event().unwrap() {
        events.push(Event::own(event));
    }
    events
}

/// What an import says that must fail: one line, that names the file.
fn refused(from: &Path) -> String {
    let to = from.with_extension("trace");
    let error = import(from, &to, 0).unwrap_err().to_string();
    assert!(error.contains(from.file_name().unwrap().to_str().unwrap()) && error.lines().count() == 1, "{error}");
    assert!(!to.exists(), "half an import: {error}");
    error
}

/// An array as `numpy.save` writes it.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\0".to_vec();
    bytes.extend_from_slice(&(dict.len() as u16).to_le_bytes());
    bytes.extend_from_slice(dict.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn archive(path: &Path, arrays: &[(&str, Vec<u8>)]) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (name, bytes) in arrays {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut zip, bytes).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn small_archives_with_large_shapes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/npz");
    let mut seen = 0;
    for case in fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().path()) {
        let path = folder.path().join(case.file_name().unwrap());
        fs::copy(&case, &path).unwrap();
        let error = refused(&path);
        assert!(error.contains("n_layer") || error.contains("array data"), "{error}");
        seen += 1;
    }
    assert_eq!(seen, 6);

    let path = folder.path().join("a.npz");
    let four = npy("<i8", "(1,)", &4u64.to_le_bytes());
    for shape in ["(0, 3, 0)", "(0, 3, 5)", "(1, 99999999999999999999, 1)", "(4294967296, 4294967296, 0)", "(1, -1, 1)"]
    {
        archive(&path, &[("experts.npy", npy("|u1", shape, &[])), ("n_expert.npy", four.clone())]);
        refused(&path);
    }
    for n_expert in [0, -1, i64::MAX, 16385] {
        let n_expert = npy("<i8", "()", &n_expert.to_le_bytes());
        archive(&path, &[("experts.npy", npy("|u1", "(1, 1, 1)", &[0])), ("n_expert.npy", n_expert)]);
        assert!(refused(&path).contains("n_expert"));
    }
    // The largest expert counts where nothing else does.
    archive(&path, &[("experts.npy", npy("<i8", "(1, 1, 1)", &i64::MAX.to_le_bytes()))]);
    assert!(refused(&path).contains("n_expert"));
}

#[test]
fn arrays_that_contradict_themselves_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npz");
    let experts = || ("experts.npy", npy("|u1", "(3, 1, 2)", &[0, 1, 2, 3, 1, 2]));
    let with = |name: &str, bytes: Vec<u8>| {
        archive(&path, &[experts(), (name, bytes), ("batch.npy", npy("|u1", "(3,)", &[0, 0, 1]))]);
        refused(&path)
    };
    let expected = [
        (with("position.npy", npy("|u1", "(3,)", &[0, 2, 2])), "position of token 1, in a batch: expected 1, got 2"),
        (with("position.npy", npy("<i4", "(3,)", &[255; 12])), "position of token 0: expected 32 bits, got -1"),
        (with("phase.npy", npy("|u1", "(3,)", &[0, 1, 1])), "phase of token 1"),
        (with("phase.npy", npy("|u1", "(3,)", &[7, 7, 1])), "phase of token 0"),
        (with("phase.npy", npy("<f4", "(3,)", &[0; 12])), "expected integers, got f32"),
        (with("probs.npy", npy("|u1", "(3, 1, 4)", &[0; 12])), "expected f32, got u8"),
        (with("probs.npy", npy("<f4", "(3, 1, 4)", &[0; 48])), "probabilities of token 0's experts in layer 0"),
        (with("prompt_start.npy", npy("|u1", "(2,)", &[0, 9])), "from 0 to 3"),
        (with("experts", npy("|u1", "(3, 1, 2)", &[0; 6])), "expected one array named experts, got two"),
        (with("pred_mid_plus1.npy", npy("|u1", "(3, 1, 9)", &[0; 27])), "expected at most 4, got 9"),
    ];
    for (error, part) in expected {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    // Whose choice a batch's is, its place alone tells.
    let gap = npy("<u2", "(2, 1, 2)", &[0, 0, 255, 255, 1, 0, 2, 0]);
    archive(&path, &[("experts.npy", gap), ("batch.npy", npy("|u1", "(2,)", &[0, 0]))]);
    assert!(refused(&path).contains("the batch at token 0: expected 2 experts per token"));
    archive(&path, &[("experts.npy", npy("<f4", "(1, 1, 1)", &[0; 4]))]);
    assert!(refused(&path).contains("expected integers, got f32"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(refused(&path).contains("it is a directory, not a regular file"));
}

/// Batches as a session records them: of some tokens or one, with and without weights and lookahead; a token of its own
/// may have fewer choices; the first text may have begun before.
fn random_trace(dice: &mut Dice) -> (Header, Vec<Event>) {
    let experts = [1, 7, 256, 257][dice.below(4)];
    let shape = Shape { layers: 1 + dice.below(4), experts, used: 1 + dice.below(experts.min(4)), tokens: 0 };
    let ranks = if dice.below(2) == 0 { 0 } else { 1 + dice.below(experts.min(5)) };
    let (weights, mut events) = (dice.below(2) == 0, Vec::new());
    let mut position = dice.below(3) as u32;
    for _ in 0..dice.below(8) {
        if dice.below(4) == 0 {
            position = 0;
        }
        let n_tokens = if dice.below(2) == 0 { 1 } else { 1 + dice.below(4) as u32 };
        let phase = if dice.below(2) == 0 { Phase::Prompt } else { Phase::Decode };
        for layer in 0..shape.layers as u16 {
            let mut routed = Vec::new();
            for _ in 0..n_tokens {
                let fewer = if n_tokens == 1 && dice.below(4) == 0 { dice.below(shape.used + 1) } else { shape.used };
                routed.extend(dice.choose(fewer, experts).into_iter().map(|expert| Routed {
                    id: ExpertId { layer, expert: expert as u16 },
                    weight: if weights { dice.below(1000) as f32 / 7.0 } else { 0.0 },
                }));
            }
            let mut scores = || {
                if ranks == 0 || n_tokens > 1 || usize::from(layer) + 1 >= shape.layers || dice.below(3) == 0 {
                    return Vec::new();
                }
                let mut scores = vec![f32::NEG_INFINITY; experts];
                dice.choose(ranks, experts).into_iter().enumerate().for_each(|(i, e)| scores[e] = 2.5 - i as f32);
                scores
            };
            let lookahead = scores();
            events.push(Event { phase, first_token: position, n_tokens, layer, routed, lookahead });
        }
        position += n_tokens;
    }
    let header = Header { weights, lookahead_ranks: ranks, ..header(shape) };
    (header, events)
}

#[test]
fn what_an_export_writes_an_import_reads() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut empty = 0;
    for seed in 0..300 {
        let (header, all) = random_trace(&mut Dice(seed));
        write(&at("a.trace"), header.clone(), &all);
        export(&at("a.trace"), &at("a.npz")).unwrap();
        import(&at("a.npz"), &at("back.trace"), 0).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(TraceReader::open(&at("back.trace")).unwrap().header(), &header, "seed {seed}");
        assert_eq!(events(&at("back.trace")), all, "seed {seed}");
        empty += usize::from(all.is_empty());
        fs::remove_file(at("a.npz")).unwrap();
        fs::remove_file(at("back.trace")).unwrap();
    }
    assert!(empty > 0, "a trace without events is one");

    // Damaged from its first event on: nothing is left, and that comes back.
    let (header, all) = (0..).map(|seed| random_trace(&mut Dice(seed))).find(|(_, all)| !all.is_empty()).unwrap();
    write(&at("a.trace"), header, &all);
    let mut bytes = fs::read(at("a.trace")).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(at("a.trace"), bytes).unwrap();
    assert_eq!(export(&at("a.trace"), &at("a.npz")).unwrap().tokens, 0);
    assert_eq!(import(&at("a.npz"), &at("back.trace"), 0).unwrap().tokens, 0);
    assert!(events(&at("back.trace")).is_empty());
}

#[test]
fn an_export_refuses_what_an_import_would() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let shape = Shape { layers: 1, experts: 4, used: 2, tokens: 1 };
    let event = |experts: &[u16], n_tokens| Event {
        phase: Phase::Decode,
        first_token: 0,
        n_tokens,
        layer: 0,
        routed: experts.iter().map(|&e| Routed { id: ExpertId { layer: 0, expert: e }, weight: 0.0 }).collect(),
        lookahead: Vec::new(),
    };
    for (wrong, part) in
        [(event(&[0, 1, 2, 2], 2), "twice"), (event(&[0, 1, 2], 1), "3 choices"), (event(&[0, 1, 2], 2), "3 choices")]
    {
        write(&at("a.trace"), header(shape), &[wrong]);
        let error = export(&at("a.trace"), &at("a.npz")).unwrap_err().to_string();
        assert!(error.contains("a.trace") && error.contains(part) && !at("a.npz").exists(), "{error}");
    }
    write(&at("a.trace"), header(shape), &[event(&[0, 1, 1, 2], 2)]);
    assert_eq!(export(&at("a.trace"), &at("a.npz")).unwrap().tokens, 2, "two tokens may use the same");
}

#[test]
fn a_writer_refuses_what_a_reader_would_take_for_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.trace");
    let shape = Shape { layers: 1, experts: 300, used: 2, tokens: 1 };
    let n_tokens = 17 << 20;
    let routed = vec![Routed { id: ExpertId { layer: 0, expert: 0 }, weight: 0.0 }; 2 * n_tokens];
    let mut writer = TraceWriter::create(&path, header(shape)).unwrap();
    let (phase, n_tokens) = (Phase::Prompt, n_tokens as u32);
    let none = Vec::new();
    writer.record(Event { phase, first_token: 0, n_tokens, layer: 0, routed, lookahead: none }.borrow());
    let error = writer.flush().unwrap_err().to_string();
    assert!(error.contains("an event of 17825792 tokens: expected at most 67108864 bytes"), "{error}");
}
