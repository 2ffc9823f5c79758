//! Exported traces: CSV holds every choice, `.npz` comes back as it was, nothing is replaced, half tokens are left out.

mod common;

use std::{fs, path::Path};

use common::{
    dice::Dice,
    routing::{Event, Shape, decoding, header, write},
};
use hotset::{
    id::ExpertId,
    trace::{
        Phase, Routed,
        export::{arrays, export},
        file::Header,
        file::TraceReader,
        import::import,
    },
};

const SHAPE: Shape = Shape { layers: 3, experts: 12, used: 2, tokens: 40 };

/// A prompt of four tokens in one batch, then decoding: two texts.
fn events() -> Vec<Event> {
    let mut dice = Dice(11);
    let mut events = Vec::new();
    for _ in 0..2 {
        for layer in 0..SHAPE.layers as u16 {
            let ids = (0..4).flat_map(|_| dice.choose(SHAPE.used, SHAPE.experts)).collect::<Vec<_>>();
            let routed = ids.iter().map(|&e| Routed { id: ExpertId { layer, expert: e as u16 }, weight: 0.5 });
            events.push(Event {
                phase: Phase::Prompt,
                first_token: 0,
                n_tokens: 4,
                layer,
                routed: routed.collect(),
                lookahead: Vec::new(),
            });
        }
        events.extend(decoding(&mut dice, SHAPE).into_iter().map(|mut event| {
            event.first_token += 4;
            event.routed.iter_mut().for_each(|r| r.weight = 0.25);
            event
        }));
    }
    events
}

fn weighted() -> Header {
    Header { weights: true, ..header(SHAPE) }
}

/// (expert, layer) of every token's choices, token by token.
fn choices(trace: &Path) -> Vec<Vec<ExpertId>> {
    let mut reader = TraceReader::open(trace).unwrap();
    let (n_layer, k) = (reader.header().n_layer, reader.header().n_expert_used);
    let (mut tokens, mut batch): (Vec<Vec<ExpertId>>, Vec<Vec<ExpertId>>) = (Vec::new(), Vec::new());
    while let Some(event) = reader.next_event().unwrap() {
        batch.push(event.routed.iter().map(|r| r.id).collect());
        if batch.len() == n_layer {
            for i in 0..event.n_tokens as usize {
                tokens.push(batch.iter().flat_map(|layer| layer[i * k..(i + 1) * k].to_vec()).collect());
            }
            batch.clear();
        }
    }
    tokens
}

/// Two texts, each a prompt in two batches and then tokens: with weights and lookahead scores, as a session records them.
fn session(experts: usize) -> (Header, Vec<Event>) {
    let shape = Shape { layers: 3, experts, used: 3, tokens: 0 };
    let (mut dice, mut events) = (Dice(21), Vec::new());
    for _ in 0..2 {
        let (mut position, batches) =
            (0, [(Phase::Prompt, 5), (Phase::Prompt, 2), (Phase::Decode, 1), (Phase::Decode, 1)]);
        for (phase, n_tokens) in batches {
            for layer in 0..shape.layers as u16 {
                let mut routed = Vec::new();
                for _ in 0..n_tokens {
                    routed.extend(dice.choose(3, experts).into_iter().map(|expert| Routed {
                        id: ExpertId { layer, expert: expert as u16 },
                        weight: dice.below(100) as f32 / 7.0,
                    }));
                }
                let mut score = |target: u16| {
                    let mut scores = Vec::new();
                    if phase == Phase::Decode && target < shape.layers as u16 {
                        scores = vec![f32::NEG_INFINITY; experts];
                        let best = dice.choose(4, experts).into_iter().enumerate();
                        best.for_each(|(i, e)| scores[e] = 9.0 - i as f32 / 3.0);
                    }
                    scores
                };
                let lookahead = score(layer + 1);
                events.push(Event { phase, first_token: position, n_tokens, layer, routed, lookahead });
            }
            position += n_tokens;
        }
    }
    let header = Header { weights: true, lookahead: "made up".into(), lookahead_ranks: 4, ..header(shape) };
    (header, events)
}

#[test]
fn an_import_of_an_export_is_the_same_trace() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for experts in [8, 300] {
        let (header, events) = session(experts);
        write(&at("a.trace"), header.clone(), &events);
        let (npz, back) = (at(&format!("{experts}.npz")), at(&format!("{experts}.trace")));
        assert_eq!(export(&at("a.trace"), &npz).unwrap().tokens, 18);
        import(&npz, &back, 0).unwrap();
        let mut reader = TraceReader::open(&back).unwrap();
        assert_eq!(reader.header(), &header);
        for event in &events {
            assert_eq!(Some(event), reader.next_event().unwrap().map(Event::own).as_ref());
        }
        assert!(reader.next_event().unwrap().is_none());
    }
}

#[test]
fn csv_has_a_line_a_choice() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(&at("a.trace"), weighted(), &events());
    export(&at("a.trace"), &at("a.csv")).unwrap();
    let text = fs::read_to_string(at("a.csv")).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("token,prompt,position,phase,layer,rank,expert,weight"));
    let ids = choices(&at("a.trace"));
    let mut n = 0;
    for (i, line) in lines.enumerate() {
        let cells: Vec<&str> = line.split(',').collect();
        let (token, rest) = (i / (SHAPE.layers * SHAPE.used), i % (SHAPE.layers * SHAPE.used));
        let id = ids[token][rest];
        let phase = if token % 44 < 4 { "prompt" } else { "decode" };
        let expected = [token, token / 44, token % 44].map(|n| n.to_string());
        assert_eq!(cells[..3], expected, "{line}");
        assert_eq!((cells[3], cells[4].parse(), cells[6].parse()), (phase, Ok(id.layer), Ok(id.expert)), "{line}");
        assert_eq!(cells[5].parse(), Ok(rest % SHAPE.used), "{line}");
        assert_eq!(cells[7], if phase == "prompt" { "0.5" } else { "0.25" }, "{line}");
        n += 1;
    }
    assert_eq!(n, ids.len() * SHAPE.layers * SHAPE.used);
}

#[test]
fn half_a_token_is_left_out_and_nothing_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut cut = events();
    cut.pop();
    write(&at("a.trace"), weighted(), &cut);
    for name in ["a.npz", "a.csv"] {
        assert_eq!(export(&at("a.trace"), &at(name)).unwrap().tokens, 2 * 44 - 1, "{name}");
        let before = fs::read(at(name)).unwrap();
        let error = export(&at("a.trace"), &at(name)).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        assert_eq!(fs::read(at(name)).unwrap(), before);
    }
    for (from, to, word) in [("a.trace", "a.xlsx", ".csv or .npz"), ("none.trace", "b.csv", "none.trace")] {
        let error = export(&at(from), &at(to)).unwrap_err().to_string();
        assert!(error.contains(word) && !at(to).exists(), "{error}");
    }
    // A layer that is missing in the middle.
    let mut torn = events();
    torn.remove(1);
    write(&at("torn.trace"), weighted(), &torn);
    let error = export(&at("torn.trace"), &at("torn.csv")).unwrap_err().to_string();
    assert!(error.contains("layer 1") && error.contains("layer 2") && !at("torn.csv").exists(), "{error}");
}

#[test]
fn arrays_in_memory_are_those_of_the_archive() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("a.trace");
    write(&trace, weighted(), &events());
    let all = arrays(&trace).unwrap();
    let experts: Vec<u16> = choices(&trace).into_iter().flatten().map(|id| id.expert).collect();
    assert_eq!(all.experts, experts);
    assert_eq!(all.weights.len(), experts.len());
    assert_eq!(all.phase.len(), 2 * (4 + SHAPE.tokens));
    assert_eq!(all.prompt_start, [0, 4 + SHAPE.tokens as i64]);
    assert_eq!((all.batch[3], all.batch[4], all.position[5], all.phase[4]), (0, 1, 5, 1));
    assert_eq!((all.weights[0], all.weights[4 * SHAPE.layers * SHAPE.used]), (0.5, 0.25));
}
