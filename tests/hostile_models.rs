//! Files that are sound GGUF and wrong models: each is one sentence that names the file and the tensor or key. And files
//! that look unusual and are right: their logits are bit for bit those of the usual layout.

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs::OpenOptions,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use common::{
    opened::{Folder, bits_of, logits, open, open_with, options, refused},
    tiny::{ARCHS, N_EMBD, N_EXPERT, N_FF, N_LAYER, N_USED, Tensor, Tiny},
};
use hotset::{
    Result, arch,
    backend::{Backend, cpu::Cpu},
    expert::{ExpertStore, Scope},
    gguf::{Array, Gguf, Value},
    io::{self, IoKind},
    plan::{Needs, Plan},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
    retrieval::Retrieval,
    session::Options,
};
use proptest::prelude::*;

/// The system's allocator, remembering the largest request that anyone in this process made.
struct Counting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to `System` with the caller's own arguments; the counter does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc_zeroed(layout) }
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

/// No file here is larger than a MiB.
const MOST_BYTES: usize = 256 << 20;

#[test]
fn the_tiny_models_are_good() {
    for arch in ARCHS {
        let bits = bits_of(&Tiny::new(arch));
        assert!(bits.iter().all(|&b| f32::from_bits(b).is_finite()), "{arch}");
        assert!(bits.iter().any(|&b| b != bits[0]), "{arch}");
    }
}

#[test]
fn unknown_architectures() {
    let mut tiny = Tiny::new("qwen3moe");
    tiny.set("general.architecture", "mystery");
    refused(&tiny, &["architecture", "mystery", "qwen3moe"]);
    tiny.set("general.architecture", "");
    refused(&tiny, &["architecture"]);
    tiny.set("general.architecture", 7u32);
    refused(&tiny, &["general.architecture"]);
}

#[test]
fn a_model_without_experts() {
    let mut tiny = Tiny::new("llama");
    tiny.tensors.retain(|t| !t.name.contains("_exps") && !t.name.contains("_inp"));
    refused(&tiny, &["without experts"]);
}

/// A tensor that a model of this family may lack.
fn is_optional(name: &str) -> bool {
    name == "output.weight" || name.ends_with(".bias")
}

fn names(tiny: &Tiny) -> Vec<String> {
    tiny.tensors.iter().map(|t| t.name.clone()).collect()
}

#[test]
fn each_tensor_missing() {
    for arch in ARCHS {
        let whole = Tiny::new(arch);
        for name in names(&whole) {
            let mut tiny = whole.clone();
            tiny.take(&name);
            if is_optional(&name) {
                assert_ne!(bits_of(&tiny), bits_of(&whole), "{arch}: {name} does nothing");
            } else {
                refused(&tiny, &[&format!("tensor {name}"), "no such tensor"]);
            }
        }
    }
}

/// The tensor's shape decides a size that others must match: one of them is named instead.
fn blamed(name: &str) -> &str {
    match name {
        "token_embd.weight" => "tensor output.weight",
        _ if name.ends_with("ffn_gate_shexp.weight") => "ffn_up_shexp.weight",
        _ => name,
    }
}

#[test]
fn each_tensor_with_a_row_too_many() {
    for arch in ARCHS {
        let whole = Tiny::new(arch);
        for name in names(&whole) {
            let mut tiny = whole.clone();
            let t = tiny.tensor(&name);
            let last = t.dims.len() - 1;
            let row = t.bytes.len() / t.dims[last] as usize;
            t.dims[last] += 1;
            t.bytes.extend(vec![0; row]);
            refused(&tiny, &[blamed(&name), "expected shape"]);
        }
    }
}

#[test]
fn each_tensor_with_its_dims_in_another_order_or_number() {
    let whole = Tiny::new("qwen2moe");
    for name in names(&whole) {
        let mut tiny = whole.clone();
        let t = tiny.tensor(&name);
        t.dims.push(1);
        if name.contains("ffn_gate_inp_shexp") {
            // A matrix of one row, which converters write either way.
            assert_eq!(bits_of(&tiny), bits_of(&whole));
        } else {
            refused(&tiny, &[&name, "expected shape"]);
        }
        let mut tiny = whole.clone();
        let t = tiny.tensor(&name);
        t.dims.reverse();
        if t.dims != whole.tensors.iter().find(|w| w.name == name).unwrap().dims {
            refused(&tiny, &["tensor "]);
        }
    }
}

#[test]
fn each_tensor_of_a_type_without_kernels() {
    for arch in ARCHS {
        let whole = Tiny::new(arch);
        for name in names(&whole) {
            let mut tiny = whole.clone();
            tiny.tensor(&name).ty = GgmlType::I32;
            refused(&tiny, &[&format!("the type of tensor {name}"), "got I32"]);
        }
    }
}

#[test]
fn a_type_that_is_only_known_by_size() {
    let mut tiny = Tiny::new("llama");
    for role in ["gate", "up", "down"] {
        let t = tiny.tensor(&format!("blk.1.ffn_{role}_exps.weight"));
        let (cols, rows) = if role == "down" { (256, N_EMBD) } else { (N_EMBD, 256) };
        t.dims = vec![cols, rows, N_EXPERT as u64];
        t.ty = if role == "down" { GgmlType::Q8_1 } else { GgmlType::Q8_0 };
        let n = t.ty.row_bytes(cols).unwrap() * rows * N_EXPERT as u64;
        t.bytes = vec![0; n as usize];
    }
    refused(&tiny, &["tensor blk.1.ffn_down_exps.weight", "Q8_1", "not supported"]);
}

const REQUIRED: [&str; 7] = [
    "block_count",
    "context_length",
    "embedding_length",
    "attention.head_count",
    "expert_count",
    "expert_used_count",
    "attention.layer_norm_rms_epsilon",
];

#[test]
fn each_key_missing_or_of_another_type() {
    for arch in ARCHS {
        let whole = Tiny::new(arch);
        let expected = bits_of(&whole);
        for (key, _) in &whole.meta {
            let mut tiny = whole.clone();
            tiny.meta.retain(|(k, _)| k != key);
            let short = key.trim_start_matches(&format!("{arch}."));
            if REQUIRED.contains(&short) || short == "general.architecture" {
                refused(&tiny, &[key, "no such key"]);
            } else if short == "attention.head_count_kv" {
                // Means as many as there are query heads, and then the keys' shape is wrong.
                refused(&tiny, &["tensor blk.0.attn_k", "expected shape"]);
            } else {
                assert_eq!(bits_of(&tiny), expected, "{key}: what is there is the default");
            }
            if short != "feed_forward_length" {
                tiny.set(key, Value::Array(Array::String(vec!["x".to_owned()])));
                refused(&tiny, &[key]);
            }
        }
    }
}

#[test]
fn numbers_that_make_no_sense() {
    let key = |k: &str| format!("qwen3moe.{k}");
    let cases: &[(&str, &[u32])] = &[
        ("block_count", &[0, 3, 100, 2049, u32::MAX]),
        ("embedding_length", &[0, 1, 31, 64, u32::MAX]),
        ("context_length", &[0]),
        ("attention.head_count", &[0, 1, 3, 4, u32::MAX]),
        ("attention.head_count_kv", &[0, 2, 3, u32::MAX]),
        ("attention.key_length", &[0, 8, 15, 32, 1 << 20, u32::MAX]),
        ("attention.value_length", &[0, 8, 17, 32, 1 << 20, u32::MAX]),
        ("expert_count", &[0, 1, 7, 9, 4096, 4097, u32::MAX]),
        ("expert_used_count", &[0, 9, u32::MAX]),
        ("rope.dimension_count", &[0, 3, 18, u32::MAX]),
    ];
    for (short, values) in cases {
        for &value in *values {
            let mut tiny = Tiny::new("qwen3moe");
            tiny.set(&key(short), value);
            // The key, or the key or tensor that contradicts it.
            let text = refused(&tiny, &[]);
            assert!(text.contains(": qwen3moe.") || text.contains("tensor "), "{short} = {value}: {text}");
        }
    }
    let mut tiny = Tiny::new("qwen3moe");
    tiny.set(&key("attention.head_count_kv"), vec![1u32, 2]);
    refused(&tiny, &["attention.head_count_kv"]);
    tiny.set(&key("attention.head_count_kv"), vec![1u32; 7]);
    refused(&tiny, &["attention.head_count_kv"]);
    let mut tiny = Tiny::new("qwen3moe");
    tiny.set(&key("rope.scaling.type"), "longrope");
    refused(&tiny, &["rope.scaling.type", "longrope"]);
    // A head_count_kv for each layer is fine where they agree.
    let mut tiny = Tiny::new("qwen3moe");
    tiny.set(&key("attention.head_count_kv"), vec![1u32, 1]);
    assert_eq!(bits_of(&tiny), bits_of(&Tiny::new("qwen3moe")));
}

#[test]
fn options_that_make_no_sense() {
    let folder = Folder::new();
    let path = folder.write(&Tiny::new("qwen3moe"));
    let said = |options: Options| open_with(&path, options).err().expect("refused").to_string();
    assert!(said(Options { n_ctx: Some(0), ..options() }).contains("a context of 0 tokens"));
    assert!(said(Options { n_ctx: Some(65), ..options() }).contains("65 exceeds the model's maximum of 64"));
    assert!(said(Options { n_ctx: Some(usize::MAX), ..options() }).contains("context length"));
    assert!(said(Options { n_batch: Some(0), ..options() }).contains("a batch of 0 tokens"));
    // Heads of 16 are no whole block of Q8_0's 32; other types have no code for storing.
    assert!(
        said(Options { kv: GgmlType::Q8_0, ..options() })
            .contains("KV cache type Q8_0: expected heads of a multiple of 32")
    );
    assert!(
        said(Options { kv: GgmlType::Q4_0, ..options() })
            .contains("the KV cache type: expected one of F16, F32, Q8_0, got Q4_0")
    );
    let mut session = open(&path).unwrap();
    assert!(session.decode(40).unwrap_err().to_string().contains("not in the vocabulary of 40 tokens"));
    assert!(session.feed(&[], &mut |_| {}).is_err());
    assert!(
        session
            .feed(&[1; 65], &mut |_| {})
            .unwrap_err()
            .to_string()
            .contains("the context of 64 tokens is too short for 65")
    );
    assert_eq!(session.n_past(), 0);
    session.feed(&[1; 64], &mut |_| {}).unwrap();
    assert!(session.decode(1).unwrap_err().to_string().contains("too short for 65"));
}

#[test]
fn the_largest_weights_do_not_panic() {
    for arch in ["qwen3moe", "qwen2moe"] {
        let whole = Tiny::new(arch);
        for name in names(&whole) {
            let mut tiny = whole.clone();
            let bytes = &mut tiny.tensor(&name).bytes;
            bytes.as_chunks_mut::<4>().0.iter_mut().for_each(|x| *x = f32::MAX.to_le_bytes());
            let folder = Folder::new();
            match logits(open(&folder.write(&tiny)).unwrap()) {
                Ok(bits) => assert!(bits.iter().any(|&bits| f32::from_bits(bits).is_finite()), "{arch}: {name}"),
                Err(e) => assert!(e.to_string().contains("gives NaN or infinity"), "{arch}: {name}: {e}"),
            }
        }
    }
}

#[test]
fn every_layout_of_the_same_experts_gives_the_same_bits() {
    for arch in ARCHS {
        let stacked = Tiny::new(arch);
        let expected = bits_of(&stacked);
        let folder = Folder::new();
        let whole = folder.write(&stacked);
        let split = stacked.write_split(folder.path(), 3);
        let old = folder.path().join("old.gguf");
        stacked.clone().old_layout().write(&old);
        let fused = folder.path().join("fused.gguf");
        stacked.clone().fused_layout(0..N_LAYER).write(&fused);
        let mixed = folder.path().join("mixed.gguf");
        stacked.clone().fused_layout(1..N_LAYER).write(&mixed);
        for path in [&whole, &split, &old, &fused, &mixed] {
            for &io in common::read_paths() {
                for scope in [Scope::Layer, Scope::Global] {
                    let options = Options { io: Some(io), scope: Some(scope), ..options() };
                    let least = open_with(path, options.clone()).unwrap().plan().smallest_bytes;
                    for memory_bytes in [None, Some(least + (1 << 20))] {
                        let session = open_with(path, Options { memory_bytes, ..options.clone() }).unwrap();
                        let what = format!("{} {} {}", path.display(), io.name(), scope.name());
                        assert!(logits(session).unwrap() == expected, "{arch}: {what}");
                    }
                }
            }
        }
    }
}

/// Scales beside matrices, as files of NVFP4 have them. Powers of two keep every bit.
#[test]
fn scaled_matrices_give_the_bits_of_matrices_that_are_larger() {
    let whole = Tiny::new("qwen3moe");
    let mut scaled = whole.clone();
    for (name, factors) in [
        ("blk.0.attn_q", vec![2.0f32]),
        ("blk.1.attn_k", vec![0.25]),
        ("blk.0.attn_v", vec![4.0]),
        ("blk.1.attn_output", vec![0.5]),
        ("output", vec![8.0]),
        ("blk.0.ffn_gate_exps", vec![0.5, 1.0, 2.0, 4.0, 8.0, 0.25, 2.0, 0.125]),
        ("blk.1.ffn_up_exps", vec![2.0; N_EXPERT]),
        ("blk.1.ffn_down_exps", vec![1.0, 4.0, 2.0, 0.5, 8.0, 0.25, 2.0, 16.0]),
    ] {
        let weights = &mut scaled.tensor(&format!("{name}.weight")).bytes;
        let each = weights.len() / factors.len();
        for (part, factor) in weights.chunks_exact_mut(each).zip(&factors) {
            for x in part.as_chunks_mut::<4>().0 {
                *x = (f32::from_le_bytes(*x) / factor).to_le_bytes();
            }
        }
        let bytes = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        let dims = vec![factors.len() as u64];
        scaled.tensors.push(Tensor { name: format!("{name}.scale"), dims, ty: GgmlType::F32, bytes });
    }
    assert_eq!(bits_of(&scaled), bits_of(&whole));
    let mut wrong = scaled.clone();
    wrong.tensor("blk.1.ffn_up_exps.scale").dims = vec![N_EXPERT as u64 / 2, 2];
    refused(&wrong, &["tensor blk.1.ffn_up_exps.scale", "expected shape"]);
}

#[test]
fn a_hole_in_an_unusual_layout() {
    let old = Tiny::new("llama").old_layout();
    for name in ["blk.0.ffn_gate.7.weight", "blk.1.ffn_up.0.weight", "blk.1.ffn_down.3.weight"] {
        let mut tiny = old.clone();
        tiny.take(name);
        refused(&tiny, &[&format!("tensor {name}"), "no such tensor"]);
    }
    let mut tiny = old.clone();
    let t = tiny.tensor("blk.0.ffn_up.5.weight");
    (t.ty, t.bytes) = (GgmlType::F16, vec![0; t.bytes.len() / 2]);
    refused(&tiny, &["tensor blk.0.ffn_up.5.weight", "F32", "F16"]);

    let mut tiny = Tiny::new("llama").fused_layout(0..1);
    tiny.take("blk.0.ffn_down_exps.weight");
    refused(&tiny, &["tensor blk.0.ffn_down_exps.weight"]);
    let mut tiny = Tiny::new("llama").fused_layout(0..1);
    let t = tiny.tensor("blk.0.ffn_gate_up_exps.weight");
    t.dims[1] -= 1;
    t.bytes.truncate((t.dims.iter().product::<u64>() * 4) as usize);
    refused(&tiny, &["tensor blk.0.ffn_gate_up_exps.weight"]);

    // In a split set, the file that the tensor lies in is the one to look at.
    let folder = Folder::new();
    let mut tiny = Tiny::new("llama");
    tiny.tensor("blk.1.ffn_down_exps.weight").ty = GgmlType::I32;
    let first = tiny.write_split(folder.path(), 3);
    let text = open(&first).err().expect("refused").to_string();
    assert!(text.contains("model-00003-of-00003.gguf") && text.contains("blk.1.ffn_down_exps.weight"), "{text}");
}

/// The number that the error for too small a budget names.
fn named(error: &str) -> u64 {
    error.split("at least ").nth(1).unwrap_or_else(|| panic!("{error}")).split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_smallest_budget_is_named_to_the_byte() {
    for arch in ["qwen3moe", "qwen2moe"] {
        let folder = Folder::new();
        let path = folder.write(&Tiny::new(arch));
        let gguf = Gguf::open(&path).unwrap();
        let blueprint = arch::blueprint(&gguf).unwrap();
        let store = ExpertStore::new(&gguf, blueprint.experts()).unwrap();
        for n_ctx in [1, 7, 64] {
            for layout in [io::Layout::Lines, io::Layout::Blocks(512), io::Layout::Blocks(4096), io::Layout::Pages] {
                for scope in [Scope::Layer, Scope::Global] {
                    for process_bytes in [0, 24 << 20, 100 << 20] {
                        let (kv, n_batch, threads) = (GgmlType::F16, Some(32), 2);
                        let needs = Needs {
                            parallel: 1,
                            n_ctx,
                            n_batch,
                            all_logits: true,
                            kv,
                            scope,
                            policy: if process_bytes == 0 { PolicyKind::Echo } else { PolicyKind::Lru },
                            prefetch: if process_bytes == 0 { PrefetchKind::History } else { PrefetchKind::Auto },
                            keeps: true,
                            layout,
                            process_bytes,
                            threads,
                            attention_bytes: Cpu::attention_bytes,
                        };
                        let plan = |budget| Plan::new(&blueprint, &store, needs, Some(budget));
                        let least = named(&plan(0).unwrap_err().to_string());
                        assert_eq!(named(&plan(least - 1).unwrap_err().to_string()), least);
                        let smallest = plan(least).unwrap();
                        let pools = if scope == Scope::Global { 1 } else { N_LAYER };
                        assert_eq!((smallest.smallest_bytes, &smallest.slots), (least, &vec![N_USED; pools]));
                        let most = plan(u64::MAX).unwrap();
                        keeps_its_promise(&most);
                        let unlearnt = Needs { policy: PolicyKind::Lru, prefetch: PrefetchKind::Off, ..needs };
                        let unlearnt = Plan::new(&blueprint, &store, unlearnt, Some(u64::MAX)).unwrap();
                        // Policy and prefetcher share the past tokens.
                        let past = needs.policy.wants_retrieval() || needs.prefetch.wants_retrieval();
                        let learnt = u64::from(past) * Retrieval::bytes(N_LAYER, N_EXPERT)
                            + needs.prefetch.bytes(N_LAYER, N_EXPERT, N_USED, most.n_batch);
                        assert_eq!(most.scratch_bytes - unlearnt.scratch_bytes, learnt);
                        assert_eq!(learnt > 0, past || needs.prefetch == PrefetchKind::History);
                        for more in [0, 1, 50_000, 500_000, 5_000_000] {
                            keeps_its_promise(&plan(least + more).unwrap());
                        }
                    }
                }
            }
        }
    }
}

/// The parts are not more than the whole.
fn keeps_its_promise(p: &Plan) {
    let parts = p.dense_bytes + p.kv_bytes + p.scratch_bytes + p.process_bytes + p.slots_bytes;
    assert!(parts <= p.budget_bytes, "{p:?}");
    assert!(p.slots.iter().all(|&n| (N_USED..=N_EXPERT * N_LAYER).contains(&n)), "{p:?}");
}

#[test]
fn a_session_opens_with_the_budget_that_the_error_names() {
    let folder = Folder::new();
    let path = folder.write(&Tiny::new("qwen3moe"));
    let expected = logits(open(&path).unwrap()).unwrap();
    for &io in common::read_paths() {
        for scope in [Scope::Layer, Scope::Global] {
            let with = |bytes| {
                open_with(&path, Options { memory_bytes: Some(bytes), io: Some(io), scope: Some(scope), ..options() })
            };
            // What the process holds is charged, and other tests run beside this one: the number may grow once or twice.
            let mut least = 0;
            let session = (0..100).find_map(|_| with(least).map_err(|e| least = named(&e.to_string())).ok());
            assert!(logits(session.expect("some number works")).unwrap() == expected);
        }
    }
}

/// Layers whose largest parts differ: slots for all layers are larger than those of any one, and the plan knows it.
#[test]
fn global_slots_hold_the_largest_of_each_part() {
    let mut tiny = Tiny::new("llama");
    for (il, role) in [(0, "gate"), (0, "up"), (1, "down")] {
        let t = tiny.tensor(&format!("blk.{il}.ffn_{role}_exps.weight"));
        (t.ty, t.bytes) = (GgmlType::F16, vec![0; t.bytes.len() / 2]);
    }
    let folder = Folder::new();
    let path = folder.write(&tiny);
    let session =
        open_with(&path, Options { io: Some(IoKind::Pread), scope: Some(Scope::Global), ..options() }).unwrap();
    let plan = session.plan();
    let part = 4 * (N_EMBD * N_FF) as usize;
    let slot = io::Layout::Lines.slot_bytes(&[part, part, part]);
    assert_eq!(plan.slots_bytes, slot * plan.slots[0] as u64);
    logits(session).unwrap();
}

#[cfg(unix)]
#[test]
fn a_file_that_is_deleted_while_open_goes_on_working() {
    let folder = Folder::new();
    let path = folder.write(&Tiny::new("qwen3moe"));
    let expected = logits(open(&path).unwrap()).unwrap();
    for &io in common::read_paths() {
        let path = folder.write(&Tiny::new("qwen3moe"));
        let session = open_with(&path, Options { io: Some(io), ..options() }).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(logits(session).unwrap() == expected, "{}", io.name());
    }
}

#[test]
fn a_file_that_is_cut_while_open_is_named() {
    for &io in common::read_paths() {
        for (keep, what) in [("", "tensor token_embd.weight"), ("token_embd.weight", " of blk.0")] {
            let folder = Folder::new();
            let path = folder.write(&Tiny::new("qwen3moe"));
            let gguf = Gguf::open(&path).unwrap();
            let left = gguf.tensor(keep).map_or(0, |t| t.offset + t.bytes.unwrap());
            let mut session = open_with(&path, Options { io: Some(io), ..options() }).unwrap();
            OpenOptions::new().write(true).open(&path).unwrap().set_len(left).unwrap();
            for _ in 0..2 {
                let text = session.decode(3).unwrap_err().to_string();
                assert!(text.starts_with(&format!("{}: ", path.display())) && text.contains(what), "{text}");
                assert_eq!(session.n_past(), 0);
            }
        }
    }
}

/// Opens, and decodes if it opens. Anything but a panic or a huge allocation will do.
fn survives(path: &Path) -> Result<(), TestCaseError> {
    let opened = catch_unwind(AssertUnwindSafe(|| open(path).and_then(|mut s| s.decode(1).map(drop))));
    prop_assert!(opened.is_ok(), "a panic");
    if let Ok(Err(error)) = opened {
        prop_assert!(!error.to_string().contains('\n'), "{}", error);
    }
    let largest = LARGEST.load(Ordering::Relaxed);
    prop_assert!(largest <= MOST_BYTES, "a single allocation of {} bytes", largest);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_header_bytes_never_panic(
        arch in prop::sample::select(&ARCHS[..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..5),
    ) {
        let folder = Folder::new();
        let path = folder.write(&Tiny::new(arch));
        let data = Gguf::open(&path).unwrap().tensors().iter().map(|t| t.offset).min().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, byte, how) in changes {
            let b = &mut bytes[at.index(data as usize)];
            *b = match how { 0 => byte, 1 => *b ^ (1 << (byte % 8)), _ => b.wrapping_add(1) };
        }
        std::fs::write(&path, bytes).unwrap();
        survives(&path)?;
    }

    #[test]
    fn changed_numbers_never_panic(
        arch in prop::sample::select(&ARCHS[..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>(), 0..32u32, any::<bool>()), 1..4),
        dims in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1..70u64), 0..2),
    ) {
        let mut tiny = Tiny::new(arch);
        for (at, value, shift, float) in changes {
            let key = tiny.meta[1 + at.index(tiny.meta.len() - 1)].0.clone();
            tiny.set(&key, if float { Value::F32(f32::from_bits(value)) } else { Value::U32(value >> shift) });
        }
        for (tensor, dim, n) in dims {
            let at = tensor.index(tiny.tensors.len());
            let t = &mut tiny.tensors[at];
            let dim = dim.index(t.dims.len());
            t.dims[dim] = n;
            t.bytes.resize(4 * t.dims.iter().product::<u64>() as usize, 7);
        }
        let folder = Folder::new();
        survives(&folder.write(&tiny))?;
    }
}
