//! Trace files: what is written is read back, a damaged tail costs the tail only, a bad file gets one clear sentence.

mod common;

use std::path::Path;

use common::{
    dice::Dice,
    routing::{Event, Shape, decoding, header, write},
};
use hotset::{
    Result,
    trace::{
        Phase, TraceSink,
        file::{Header, TraceReader, TraceWriter},
        import::import,
        stats::stats,
    },
};

fn read(path: &Path) -> Result<(Vec<Event>, Option<String>)> {
    let mut reader = TraceReader::open(path)?;
    let mut events = Vec::new();
    while let Some(event) = reader.next_event()? {
        events.push(Event::own(event));
    }
    Ok((events, reader.damage().map(str::to_owned)))
}

/// Prompts and decoding with weights and scores, of more or fewer than 256 experts.
fn rich(seed: u64, experts: usize) -> (Header, Vec<Event>) {
    let mut dice = Dice(seed);
    let shape = Shape { layers: 3, experts, used: 3, tokens: 40 };
    let mut events = decoding(&mut dice, shape);
    for event in &mut events {
        event.routed.iter_mut().for_each(|r| r.weight = (dice.below(1000) as f32) / 7.0);
        if dice.below(4) == 0 {
            event.phase = Phase::Prompt;
        } else if dice.below(3) > 0 {
            event.lookahead = vec![f32::NEG_INFINITY; experts];
            dice.choose(4, experts).iter().for_each(|&e| event.lookahead[e] = dice.below(100) as f32 - 50.0);
        }
    }
    let header = Header { weights: true, lookahead: "made up".into(), lookahead_ranks: 4, ..header(shape) };
    (header, events)
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.trace");
    for (seed, experts) in [(1, 8), (2, 256), (3, 257), (4, 5000)] {
        let (header, events) = rich(seed, experts);
        write(&path, header.clone(), &events);
        assert_eq!(TraceReader::open(&path).unwrap().header(), &header);
        assert_eq!(read(&path).unwrap(), (events, None));
    }
}

/// Scores of the layer after the next, which files of version 2 have, are passed over.
#[test]
fn version_2_is_read_without_its_second_scores() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.trace");
    let (header, events) = rich(5, 8);
    write(&path, header.clone(), &events);
    assert_eq!(std::fs::read(&path).unwrap()[8], 1, "older programs read what is written");
    let mut json = serde_json::to_value(&header).unwrap();
    json["lookahead2_ranks"] = 2.into();
    json["weights"] = false.into();
    let file = |version: u32, json: &serde_json::Value, second: [u8; 2]| {
        let json = serde_json::to_vec(json).unwrap();
        let pairs = |experts: &[u8]| experts.iter().flat_map(|&e| [e, 0, 0, 0, 0]).collect::<Vec<_>>();
        // Decoded, both scores, layer 1, token 3, one token, three choices.
        let event = [7, 1, 0, 3, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 5, 2, 6];
        let chunk = [&event[..], &pairs(&[1, 0, 2, 3]), &pairs(&second)].concat().repeat(2);
        let crc = |bytes: &[u8]| crc32fast::hash(bytes).to_le_bytes();
        let len = |bytes: &[u8]| (bytes.len() as u32).to_le_bytes();
        let head = [&b"HOTTRACE"[..], &version.to_le_bytes(), &len(&json), &json, &crc(&json)].concat();
        std::fs::write(&path, [&head[..], &len(&chunk), &crc(&chunk), &chunk].concat()).unwrap();
        read(&path).map_err(|e| e.to_string())
    };
    let (found, damage) = file(2, &json, [4, 7]).unwrap();
    assert_eq!((found.len(), damage), (2, None));
    for event in found {
        assert_eq!(event.routed.iter().map(|r| r.id.expert).collect::<Vec<_>>(), [5, 2, 6]);
        assert_eq!(event.lookahead.iter().filter(|s| s.is_finite()).count(), 4);
    }
    assert!(file(2, &json, [4, 8]).unwrap_err().contains("a number below 8, got 8"));
    let error = file(1, &json, [4, 7]).unwrap_err();
    assert!(error.ends_with("the trace version: expected 2, as its header says, got 1"), "{error}");
    json["lookahead2_ranks"] = 9.into();
    assert!(file(2, &json, [4, 7]).unwrap_err().contains("lookahead2_ranks: expected at most 8"));
}

#[test]
fn a_trace_can_be_read_while_it_grows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.trace");
    let (header, events) = rich(7, 16);
    let mut writer = TraceWriter::create(&path, header).unwrap();
    assert_eq!(read(&path).unwrap(), (vec![], None));
    for (i, event) in events.iter().enumerate() {
        writer.record(event.borrow());
        if i % 10 == 9 {
            writer.flush().unwrap();
            assert_eq!(read(&path).unwrap(), (events[..=i].to_vec(), None));
        }
    }
}

#[test]
fn a_damaged_tail_costs_the_tail() {
    let folder = tempfile::tempdir().unwrap();
    let (path, cut) = (folder.path().join("a.trace"), folder.path().join("cut.trace"));
    let (header, events) = rich(9, 16);
    let events = &events[..40];
    let mut writer = TraceWriter::create(&path, header).unwrap();
    let mut ends = vec![(std::fs::metadata(&path).unwrap().len() as usize, 0)];
    for (i, event) in events.iter().enumerate() {
        writer.record(event.borrow());
        if i % 8 == 7 {
            writer.flush().unwrap();
            ends.push((std::fs::metadata(&path).unwrap().len() as usize, i + 1));
        }
    }
    let bytes = std::fs::read(&path).unwrap();
    let start = ends[0].0;
    for n in 0..bytes.len() {
        std::fs::write(&cut, &bytes[..n]).unwrap();
        if n < start {
            let e = read(&cut).unwrap_err().to_string();
            assert!(e.contains("cut.trace") && !e.contains('\n'), "{e}");
            continue;
        }
        let &(end, whole) = ends.iter().rev().find(|(end, _)| *end <= n).unwrap();
        let (found, damage) = read(&cut).unwrap();
        assert_eq!((found.len(), damage.is_some()), (whole, n > end), "cut at {n}");
        assert_eq!(found, events[..whole]);
    }
    let mut dice = Dice(1);
    for _ in 0..500 {
        let at = dice.below(bytes.len());
        let mut bad = bytes.clone();
        bad[at] ^= 1 << dice.below(8);
        std::fs::write(&cut, &bad).unwrap();
        match read(&cut) {
            Ok((found, damage)) => {
                assert!(damage.is_some() && events.starts_with(&found), "a flipped bit at {at} went unseen");
            }
            Err(e) => assert!(at < start, "a flipped bit at {at}: {e}"),
        }
    }
}

/// With sound checksums: somebody wrote these.
#[test]
fn wrong_numbers_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.trace");
    let shape = Shape { layers: 2, experts: 300, used: 2, tokens: 4 };
    let events = decoding(&mut Dice(3), shape);
    let wrong = |change: &dyn Fn(&mut Event)| {
        let mut events = events.clone();
        change(&mut events[5]);
        write(&path, header(shape), &events);
        read(&path).unwrap_err().to_string()
    };
    let e = wrong(&|e| e.routed[1].id.expert = 300);
    assert!(e.ends_with("a.trace: an expert of event 6: expected a number below 300, got 300"), "{e}");
    let e = wrong(&|e| e.layer = 2);
    assert!(e.ends_with("the layer of event 6: expected a number below 2, got 2"), "{e}");
    let e = wrong(&|e| e.n_tokens = 0);
    assert!(e.contains("the size of event 6"), "{e}");

    write(&path, header(shape), &events);
    let good = std::fs::read(&path).unwrap();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        std::fs::write(&path, bytes).unwrap();
        read(&path).unwrap_err().to_string()
    };
    assert!(with(8, 9).ends_with("the trace version is not supported: expected 1 or 2, got 9"));
    assert!(with(0, b'h').contains("expected HOTTRACE"));
    assert!(with(15, 0xff).contains("the header's length"));
    assert!(with(20, 0xff).contains("the header's checksum"));
    let bad = Header { n_expert_used: 301, ..header(shape) };
    assert!(TraceWriter::create(&path, bad).unwrap_err().to_string().contains("n_expert_used"));
    let bad = header(Shape { layers: 65, experts: 1 << 14, ..shape });
    let e = TraceWriter::create(&path, bad).unwrap_err().to_string();
    assert!(e.ends_with("n_layer times n_expert: expected at most 1048576, got 1064960"), "{e}");
    let bad = Header { expert_bytes: vec![1], ..header(shape) };
    assert!(TraceWriter::create(&path, bad).unwrap_err().to_string().contains("expert_bytes"));
}

/// A stored archive, as `numpy.savez` writes it.
fn npz(path: &Path, arrays: &[(&str, &str, &str, &[u8])]) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, descr, shape, data) in arrays {
        zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(dict.len() as u16).to_le_bytes());
        bytes.extend_from_slice(dict.as_bytes());
        bytes.extend_from_slice(data);
        std::io::Write::write_all(&mut zip, &bytes).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn arrays_are_imported() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("a.npz"), folder.path().join("a.trace"));
    let experts: [u16; 12] = [0, 1, 2, 3, 1, 2, 65535, 0, 3, 2, 1, 65535];
    let experts: Vec<u8> = experts.iter().flat_map(|e| e.to_le_bytes()).collect();
    let ahead = [9, 9, 2, 3, 9, 9, 0, 1, 9, 9, 3, 2];
    let all: [(&str, &str, &str, &[u8]); 4] = [
        ("experts", "<u2", "(3, 2, 2)", &experts),
        ("n_expert", "|u1", "()", &[4]),
        ("prompt_start", "|u1", "(2,)", &[0, 2]),
        ("pred_mid_plus1", "|u1", "(3, 2, 2)", &ahead),
    ];
    npz(&from, &all);
    let done = import(&from, &to, 77).unwrap();
    assert_eq!((done.tokens, done.events), (3, 6));
    let (events, _) = read(&to).unwrap();
    let ids: Vec<Vec<u16>> = events.iter().map(|e| e.routed.iter().map(|r| r.id.expert).collect()).collect();
    assert_eq!(ids, [vec![0, 1], vec![2, 3], vec![1, 2], vec![0], vec![3, 2], vec![1]]);
    assert_eq!(events.iter().map(|e| e.first_token).collect::<Vec<_>>(), [0, 0, 1, 1, 0, 0]);
    let none = f32::NEG_INFINITY;
    assert_eq!(events[0].lookahead, [none, none, 0.0, -1.0]);
    assert!(events[1].lookahead.is_empty());
    let header = TraceReader::open(&to).unwrap().header().clone();
    assert_eq!((header.n_expert, header.expert_bytes, header.prompts.len()), (4, vec![77, 77], 2));
    let s = stats(&to).unwrap();
    assert_eq!(s.layers[1].lookahead_recall, Some(3.0 / 4.0));
    assert_eq!((s.layers[0].lookahead_recall, s.decode_tokens, s.layers[0].used), (None, 3, 4));
    assert_eq!(s.layers[0].overlap, [2.0 / 6.0; 5]);

    // A trace that is there stays as it is.
    let before = std::fs::read(&to).unwrap();
    assert!(import(&from, &to, 77).unwrap_err().to_string().contains("a.trace"));
    assert_eq!(std::fs::read(&to).unwrap(), before);

    let to = folder.path().join("bad.trace");
    let bad = |arrays: &[(&str, &str, &str, &[u8])], part: &str| {
        npz(&from, arrays);
        let e = import(&from, &to, 0).unwrap_err().to_string();
        assert!(e.contains("a.npz") && e.contains(part), "{e}");
        assert!(!to.exists(), "half an import stays");
    };
    bad(&all[1..], "an array named experts or ids");
    bad(
        &[all[0], ("n_expert", "|u1", "()", &[3])],
        "an expert of token 0 in layer 1: expected a number below 3, got 3",
    );
    bad(&[("experts", "|u1", "(1, 1, 2)", &[5, 5])], "expected once, got twice");
    bad(&[all[0], ("prompt_start", "|u1", "(2,)", &[1, 2])], "prompt_start");
    bad(&[("experts", "|u1", "(2,)", &[5, 5])], "three axes");
    std::fs::write(&from, b"PK").unwrap();
    assert!(import(&from, &to, 0).unwrap_err().to_string().contains("a.npz"));
}
