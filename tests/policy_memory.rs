//! Policies and the ring of past tokens allocate when they are built, and never again.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use hotset::{
    id::ExpertId,
    policy::{CacheShape, PolicyKind},
    retrieval::Retrieval,
    trace::{LayerEvent, Phase, Routed},
};

/// Counts what each thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
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

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// One layer's choices: `used` of `experts`, in a sequence that repeats after some hundred tokens.
fn choices(token: usize, layer: u16, used: usize, experts: usize) -> Vec<Routed> {
    let first = (token % 150 * 7 + usize::from(layer) * 3) % experts;
    let expert = |i: usize| ((first + i * i) % experts) as u16;
    (0..used).map(|i| Routed { id: ExpertId { layer, expert: expert(i) }, weight: 0.5 }).collect()
}

/// Runs events as the cache does, in a pool of `slots` slots.
fn run(kind: PolicyKind, events: &[Vec<Routed>], shape: &CacheShape) -> u64 {
    let mut policy = kind.build(shape);
    let mut past =
        if policy.wants_retrieval() { Retrieval::new(shape.n_layer(), shape.n_expert) } else { Retrieval::off() };
    let (mut resident, mut held) = (vec![false; shape.experts()], vec![0; shape.slots.len()]);
    let layers: Vec<Vec<u16>> = (0..shape.slots.len()).map(|pool| shape.layers(pool)).collect();
    let (before, mut evictions) = (allocations(), 0);
    for (i, routed) in events.iter().enumerate() {
        let layer = routed[0].id.layer;
        let event =
            LayerEvent { phase: Phase::Decode, first_token: i as u32, n_tokens: 1, layer, routed, lookahead: &[] };
        past.observe(event);
        policy.observe(event, &past);
        for r in routed {
            let pool = shape.pool(layer);
            if !resident[shape.key(r.id)] {
                let keep = |id: ExpertId| routed.iter().any(|r| r.id == id);
                if held[pool] == shape.slots[pool] {
                    let victim = policy.evict(&layers[pool], &keep).expect("somebody is not wanted");
                    resident[shape.key(victim)] = false;
                    held[pool] -= 1;
                    evictions += 1;
                }
                resident[shape.key(r.id)] = true;
                held[pool] += 1;
                policy.insert(r.id);
            }
            policy.touch(*r);
        }
    }
    assert!(evictions > 1000, "{}: {evictions} evictions", kind.name());
    allocations() - before
}

#[test]
fn nothing_is_allocated_after_construction() {
    let (n_layer, n_expert) = (3u16, 32);
    let events: Vec<_> =
        (0..3000).flat_map(|token| (0..n_layer).map(move |layer| choices(token, layer, 4, n_expert))).collect();
    let layers = usize::from(n_layer);
    // The lru crate boxes an entry per insertion.
    for &kind in PolicyKind::ALL.iter().filter(|&&kind| kind != PolicyKind::Lru) {
        for (pool_of, slots) in [((0..layers).collect(), vec![8; layers]), (vec![0; layers], vec![20])] {
            let shape = CacheShape { n_expert, pool_of, slots };
            assert_eq!(run(kind, &events, &shape), 0, "{} in {shape:?}", kind.name());
        }
    }
    let before = allocations();
    drop(vec![0u8; 100]);
    assert_eq!(allocations() - before, 1, "allocations are counted");
}
