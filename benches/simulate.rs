//! Layer-expert requests a second of a replay, on one core: `cargo bench --bench simulate -- lru`.
//!
//! A made-up trace of a million requests (24 layers, 8 of 128 experts, from a seed); names are policy, slots per layer or in
//! one pool, their share of the experts. `scored` has weights and the 24 best ranks of the next layer, as `hotset trace` writes
//! them. `trace` only reads the file.
//!
//! `observe` is what each policy does at a layer event of 64 experts in 27 layers, whoever is resident, with what it wants of
//! retrieval and a full ring: `cargo bench --bench simulate -- observe`, nanoseconds per event.

#[path = "../tests/common/dice.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod dice;
#[path = "../tests/common/routing.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod routing;

use std::{path::Path, sync::Arc, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dice::Dice;
use hotset::{
    expert::Scope,
    policy::{CacheShape, Future, PolicyKind},
    prefetch::PrefetchKind,
    retrieval::Retrieval,
    simulate::{self, Compute, Conditions, Drive, Setting, SimPolicy, SlotSpec},
    trace::file::{Header, TraceReader},
};
use routing::{Shape, decoding, header, write};

const SHAPE: Shape = Shape { layers: 24, experts: 128, used: 8, tokens: 5200 };
const RANKS: usize = 24;

fn replay(trace: &Path, policy: SimPolicy, scope: Scope, share: f64, future: &Arc<Future>) -> u64 {
    let slots = simulate::slots(scope, SlotSpec::Percent(share).count(SHAPE.experts), &header(SHAPE));
    let drive = Drive { latency_ns: 80_000, bytes_per_us: 3500, depth: 1 };
    let compute = Compute::default();
    let setting = Setting {
        policy,
        scope,
        slots: &slots,
        fill: false,
        prefetch: PrefetchKind::Off,
        vram: None,
        conditions: Conditions { drive, compute, warmup: 0 },
    };
    let outcome = simulate::replay(trace, &setting, Some(future)).expect("the trace is sound");
    let total = outcome.stats.total();
    total.hit + total.miss
}

fn requests(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder for traces");
    let (plain, scored) = (folder.path().join("plain.trace"), folder.path().join("scored.trace"));
    let mut dice = Dice(1);
    let mut events = decoding(&mut dice, SHAPE);
    write(&plain, header(SHAPE), &events);
    for event in &mut events {
        event.lookahead = (0..SHAPE.experts).map(|_| dice.below(1 << 20) as f32).collect();
    }
    let lookahead = "by a die".to_owned();
    write(&scored, Header { weights: true, lookahead, lookahead_ranks: RANKS, ..header(SHAPE) }, &events);
    drop(events);

    let mut group = c.benchmark_group("simulate");
    let all = (SHAPE.layers * SHAPE.tokens * SHAPE.used) as u64;
    group.throughput(Throughput::Elements(all));
    for (name, trace) in [("plain", &plain), ("scored", &scored)] {
        group.bench_function(format!("trace/{name}"), |b| {
            b.iter(|| {
                let (mut reader, mut routed) = (TraceReader::open(trace).expect("a trace"), 0);
                while let Some(event) = reader.next_event().expect("it is sound") {
                    routed += event.routed.len() as u64;
                }
                assert_eq!(routed, all);
            });
        });
        let future = simulate::future(trace).expect("the trace is sound");
        for scope in [Scope::Layer, Scope::Global] {
            for policy in [SimPolicy::Live(PolicyKind::Lru), SimPolicy::Live(PolicyKind::default()), SimPolicy::Belady]
            {
                for share in [12.5, 25.0, 50.0] {
                    group.bench_function(format!("{name}/{}/{}/{share}%", policy.name(), scope.name()), |b| {
                        b.iter(|| assert_eq!(replay(trace, policy, scope, share, &future), all));
                    });
                }
            }
        }
    }
}

/// Nanoseconds an event of what policies learn.
fn observe(c: &mut Criterion) {
    let shape = Shape { layers: 27, experts: 64, used: 6, tokens: 2300 };
    let events = decoding(&mut Dice(2), shape);
    let (filling, rest) = events.split_at(2100 * shape.layers);
    let cache =
        CacheShape { n_expert: shape.experts, pool_of: (0..shape.layers).collect(), slots: vec![16; shape.layers] };
    let mut group = c.benchmark_group("observe");
    group.throughput(Throughput::Elements(rest.len() as u64));
    for &kind in PolicyKind::ALL {
        let mut policy = kind.build(&cache);
        let mut past =
            if kind.wants_retrieval() { Retrieval::new(shape.layers, shape.experts) } else { Retrieval::off() };
        let mut run = |events: &[routing::Event]| {
            for event in events {
                past.observe(event.borrow());
                policy.observe(event.borrow(), &past);
            }
        };
        run(filling);
        group.bench_function(kind.name(), |b| b.iter(|| run(rest)));
    }
    let mut past = Retrieval::new(shape.layers, shape.experts);
    filling.iter().for_each(|event| past.observe(event.borrow()));
    group.bench_function("retrieval", |b| b.iter(|| rest.iter().for_each(|event| past.observe(event.borrow()))));
    let mut votes = vec![0.0; shape.experts];
    group.bench_function("votes", |b| {
        b.iter(|| {
            for event in rest {
                past.votes((event.layer + 1) % shape.layers as u16, &mut votes);
            }
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(20))
        .measurement_time(Duration::from_millis(500))
        .without_plots();
    targets = observe, requests
}
criterion_main!(benches);
