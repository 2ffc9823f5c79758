//! Figures of a trace's routing, against examples that can be checked by hand.

mod common;

use common::{
    dice::Dice,
    routing::{Event, Shape, decoding, header, write},
};
use hotset::{
    id::ExpertId,
    trace::{
        Phase, Routed,
        file::Header,
        stats::{LayerStats, TraceStats, stats},
    },
};

fn of(header: Header, events: &[Event]) -> TraceStats {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.trace");
    write(&path, header, events);
    stats(&path).unwrap()
}

/// One layer of four experts; what each token uses.
fn layer(tokens: &[&[u16]]) -> LayerStats {
    let shape = Shape { layers: 1, experts: 4, used: tokens[0].len(), tokens: tokens.len() };
    let routed = |&expert: &u16| Routed { id: ExpertId { layer: 0, expert }, weight: 0.0 };
    let event = |(i, experts): (usize, &&[u16])| Event {
        phase: Phase::Decode,
        first_token: i as u32,
        n_tokens: 1,
        layer: 0,
        routed: experts.iter().map(routed).collect(),
        lookahead: Vec::new(),
    };
    let events: Vec<Event> = tokens.iter().enumerate().map(event).collect();
    of(header(shape), &events).layers.remove(0)
}

#[test]
fn segments_of_sixteen_tokens() {
    let same = layer(&[&[0u16][..]; 20]);
    assert_eq!((same.srp_16, same.sch_16), (Some((1.0, 1.0)), Some([1.0, 1.0])));
    // 0 and 1 in turn: naming both, each is right half of the time.
    let turns = layer(&[&[0u16][..], &[1]].repeat(8));
    assert_eq!((turns.srp_16, turns.sch_16), (Some((2.0 * 16.0 / (32.0 + 16.0), 2.0)), Some([0.5, 1.0])));
    // 12 times 0 and 4 times 1: naming 0 alone is right 12 times of 16, and misses 4.
    let mostly = layer(&[&[0u16][..], &[0], &[0], &[1]].repeat(4));
    assert_eq!((mostly.srp_16, mostly.sch_16), (Some((24.0 / 32.0, 1.0)), Some([0.75, 1.0])));
    let few = layer(&[&[0u16][..]; 15]);
    assert_eq!((few.srp_16, few.sch_16), (None, None));
}

#[test]
fn load_and_pairs() {
    let turns = layer(&[&[0u16][..], &[1]].repeat(8));
    assert_eq!((turns.load, turns.load_cv, turns.load_gini), ((2.0, 0.0), 1.0, 0.5));
    assert_eq!((turns.pairs.len(), turns.pairs_top_hundredth), (0, None));
    let even = layer(&[&[0], &[1], &[2], &[3]]);
    assert_eq!((even.load_cv, even.load_gini), (0.0, 0.0));
    // 0 goes with 1 in three of four tokens, 2 with 3 in one.
    let pairs = layer(&[&[0, 1], &[1, 0], &[3, 2], &[0, 1]]);
    let found: Vec<_> = pairs.pairs.iter().map(|p| (p.experts, p.share, p.lift)).collect();
    assert_eq!(found, [((0, 1), 0.75, 4.0 / 3.0), ((2, 3), 0.25, 4.0)]);
    assert_eq!(pairs.pairs_top_hundredth, Some(0.75), "one pair of six");
}

/// Scores that are the next layer's own choices: whatever reads less than all of them is the measure's fault.
#[test]
fn the_layers_own_routing_foretells_it_wholly() {
    let shape = Shape { layers: 3, experts: 12, used: 3, tokens: 50 };
    let mut events = decoding(&mut Dice(4), shape);
    for i in 0..events.len() - 1 {
        if events[i].layer < 2 {
            let next: Vec<u16> = events[i + 1].routed.iter().map(|r| r.id.expert).collect();
            let place = |e: u16| next.iter().position(|&n| n == e).map_or(-50.0, |at| -(at as f32));
            events[i].lookahead = (0..12).map(place).collect();
        }
    }
    let header = Header { lookahead: "own".to_owned(), lookahead_ranks: 6, ..header(shape) };
    let s = of(header, &events);
    for layer in &s.layers[1..] {
        assert_eq!((layer.lookahead_recall, layer.lookahead_recall_2), (Some(1.0), Some(1.0)));
        assert_eq!(layer.lookahead_by_rank, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    }
    assert!(s.layers[0].lookahead_by_rank.is_empty(), "nothing foretells the first layer");
}
