//! What one pool for several layers does in prompts.

mod common;

use std::path::Path;

use common::{
    dice::Dice,
    routing::{Event, Shape, decoding, header, write},
};
use hotset::{
    expert::Scope,
    id::ExpertId,
    policy::PolicyKind,
    prefetch::PrefetchKind,
    simulate::{self, Compute, Conditions, Drive, Outcome, Setting, SimPolicy},
    trace::{Phase, Routed},
};

fn run(trace: &Path, shape: Shape, scope: Scope, slots: usize, policy: SimPolicy) -> Outcome {
    let future = simulate::future(trace).unwrap();
    let setting = Setting {
        policy,
        scope,
        slots: &simulate::slots(scope, slots, &header(shape)),
        fill: false,
        prefetch: PrefetchKind::Off,
        vram: None,
        conditions: Conditions {
            drive: Drive { latency_ns: 1000, bytes_per_us: 1000, depth: 1 },
            compute: Compute::default(),
            warmup: 0,
        },
    };
    simulate::replay(trace, &setting, Some(&future)).unwrap()
}

/// Chunks that want every expert of every layer.
fn chunks(shape: Shape) -> Vec<Event> {
    let mut events = Vec::new();
    for chunk in 0..shape.tokens {
        for layer in 0..shape.layers as u16 {
            let all = (0..3 * shape.experts).map(|i| (i % shape.experts) as u16);
            let routed: Vec<_> = all.map(|expert| Routed { id: ExpertId { layer, expert }, weight: 0.0 }).collect();
            events.push(Event {
                phase: Phase::Prompt,
                first_token: (chunk * 3 * shape.experts) as u32,
                n_tokens: (routed.len() / shape.used) as u32,
                layer,
                routed,
                lookahead: Vec::new(),
            });
        }
    }
    events
}

/// A prompt goes through the layers in a loop, which one pool must not lose everything to.
#[test]
fn prompts_hit_in_one_pool_what_they_hit_with_slots_per_layer() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("a.trace");
    let shape = Shape { layers: 6, experts: 16, used: 2, tokens: 12 };
    let mut events = chunks(shape);
    events.extend(decoding(&mut Dice(4), Shape { tokens: 60, ..shape }));
    events.extend(chunks(shape));
    write(&trace, header(shape), &events);
    for &kind in PolicyKind::ALL {
        let hits = |scope| run(&trace, shape, scope, 4, SimPolicy::Live(kind)).stats.prompt.hit;
        let (layer, one_pool) = (hits(Scope::Layer), hits(Scope::Global));
        // Of 24 chunks of 96 experts a quarter each, but for what is cold or changes hands after decoding.
        assert!(layer > 450, "{}: {layer}", kind.name());
        assert!(one_pool * 10 >= layer * 9, "{}: {one_pool} in one pool, {layer} with slots per layer", kind.name());
    }
}
