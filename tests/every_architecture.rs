//! Every architecture that hotset runs, by the header of a tiny model of it: whatever else a file may say is refused in one
//! sentence, or listed as unread, or makes a blueprint; nothing panics and nothing is passed over.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{
    header::header,
    ref_models::{Spec, specs, type_of},
};
use hotset::{
    arch,
    blueprint::Blueprint,
    gguf::{Array, Gguf, Value},
};

/// A model's header.
#[derive(Clone)]
struct Header {
    arch: String,
    meta: Vec<(String, Value)>,
    /// Name and dims.
    tensors: Vec<(String, Vec<u64>)>,
}

impl Header {
    fn new(spec: &Spec) -> Header {
        let mut meta = vec![("general.architecture".to_owned(), spec.arch.as_str().into())];
        meta.extend(spec.meta());
        Header { arch: spec.arch.clone(), meta, tensors: spec.tensors.clone() }
    }

    fn with(&self, key: &str, value: Value) -> Header {
        let mut header = self.clone();
        header.meta.retain(|(k, _)| k != key);
        header.meta.push((key.to_owned(), value));
        header
    }

    fn bytes(&self) -> Vec<u8> {
        let tensor = |(name, dims): &(String, Vec<u64>)| {
            (name.clone(), dims.clone(), type_of(name) as u32, 4 * dims.iter().product::<u64>())
        };
        header(&self.meta, &self.tensors.iter().map(tensor).collect::<Vec<_>>())
    }

    /// What the model is. Panics and errors of several lines are failures.
    fn blueprint(&self, what: &str) -> Result<Blueprint, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), self.bytes()).unwrap();
        let read = || Gguf::open_header(file.path()).and_then(|gguf| arch::blueprint(&gguf));
        let result = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| panic!("{what}: a panic"));
        result.map_err(|e| {
            let said = e.to_string();
            assert!(!said.contains('\n') && said.starts_with(&*file.path().to_string_lossy()), "{what}: {said}");
            said
        })
    }

    /// The key must be refused by name, or be one that is not read.
    fn refuses_or_lists(&self, key: &str, what: &str) {
        match self.blueprint(what) {
            Err(said) => assert!(said.contains(": "), "{what}: {said}"),
            Ok(blueprint) => assert!(blueprint.unread.iter().any(|unread| unread.name == key), "{what}: accepted"),
        }
    }
}

/// Calls `test` with every model's name and header. A model that fails does not hide what others do.
fn each_model(test: impl Fn(&str, &Header)) {
    let fails = |(name, spec): &(String, Spec)| {
        let header = Header::new(spec);
        header.blueprint(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        catch_unwind(AssertUnwindSafe(|| test(name, &header))).is_err()
    };
    let failed: Vec<_> = specs().into_iter().filter(fails).map(|(name, _)| name).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn what_no_one_reads_is_refused_by_name() {
    each_model(|name, header| {
        let arch = &header.arch;
        for tensor in ["blk.0.mystery.weight", "blk.1.attn_norm.scale", "mystery.weight", "blk.0.ffn_gate_exps.bias"] {
            let mut more = header.clone();
            more.tensors.push((tensor.to_owned(), vec![64]));
            if header.tensors.iter().any(|(known, _)| known == tensor) {
                continue;
            }
            let said = more.blueprint(name).expect_err(tensor);
            assert!(said.contains(&format!("tensor {tensor} ")), "{name}: {said}");
        }
        let key = format!("{arch}.mystery");
        let said = header.with(&key, 1u32.into()).blueprint(name).expect_err(&key);
        assert!(said.contains(&format!("key {key} ")), "{name}: {said}");
    });
}

#[test]
fn numbers_that_make_no_sense_are_refused_or_not_read() {
    each_model(|name, header| {
        for (key, value) in &header.meta {
            let what = |value: &dyn std::fmt::Display| format!("{name}: {key} = {value}");
            match value {
                Value::F32(_) => {
                    for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e30, 1e30] {
                        header.with(key, x.into()).refuses_or_lists(key, &what(&x));
                    }
                }
                Value::U32(_) => {
                    for x in [0u32, 1, 3, 5, 7, 1 << 20, 1 << 31, u32::MAX] {
                        // Some of these make a model, as a smaller number of experts used does.
                        let _ = header.with(key, x.into()).blueprint(&what(&x));
                    }
                }
                Value::Array(array) => {
                    for n in [0, array.len() - 1, array.len() + 1] {
                        header.with(key, Value::Array(resized(array, n))).refuses_or_lists(key, &what(&n));
                    }
                }
                _ => {}
            }
            header.with(key, Value::Array(Array::I32(vec![-1, -1]))).refuses_or_lists(key, &what(&"[-1, -1]"));
        }
    });
}

/// The array with another number of elements.
fn resized(array: &Array, n: usize) -> Array {
    fn cycled<T: Clone>(x: &[T], n: usize) -> Vec<T> {
        x.iter().cycle().take(n).cloned().collect()
    }
    match array {
        Array::I32(x) => Array::I32(cycled(x, n)),
        Array::U64(x) => Array::U64(cycled(x, n)),
        Array::F32(x) => Array::F32(cycled(x, n)),
        Array::Bool(x) => Array::Bool(cycled(x, n)),
        other => panic!("no array of type {}", other.type_id()),
    }
}

#[test]
fn counts_of_zero_and_counts_that_do_not_divide_are_refused() {
    each_model(|name, header| {
        let arch = &header.arch;
        for (short, values) in [
            ("block_count", &[0u32, 1][..]),
            ("embedding_length", &[0, 1]),
            ("context_length", &[0]),
            ("attention.head_count", &[0, 5]),
            ("attention.head_count_kv", &[0, 3]),
            ("expert_count", &[0, 1, 5]),
            ("expert_used_count", &[0, 1 << 12]),
            ("attention.kv_lora_rank", &[0, 7]),
            ("attention.indexer.top_k", &[0]),
            ("attention.sliding_window", &[0]),
        ] {
            let key = format!("{arch}.{short}");
            if !header.meta.iter().any(|(known, _)| *known == key) {
                continue;
            }
            for &value in values {
                header.with(&key, value.into()).refuses_or_lists(&key, &format!("{name}: {key} = {value}"));
            }
        }
    });
}

#[test]
fn tensors_that_are_missing_or_of_another_shape_never_panic() {
    each_model(|name, header| {
        for (i, (tensor, dims)) in header.tensors.iter().enumerate() {
            let mut fewer = header.clone();
            fewer.tensors.remove(i);
            let missing = fewer.blueprint(&format!("{name}: without {tensor}"));
            let may =
                ["output.weight", "bias", "scale", "exp_probs_b", "rope_freqs", "indexer", "attn_v.weight", "nextn"];
            let norms = header.tensors.iter().filter(|(t, _)| t.ends_with(".attn_norm.weight")).count();
            let last = format!("blk.{}.", norms.saturating_sub(1));
            let skipped = name.ends_with("-mtp") && tensor.starts_with(&last);
            assert!(
                missing.is_err() || skipped || may.iter().any(|part| tensor.contains(part)),
                "{name}: without {tensor}"
            );
            for d in 0..dims.len() {
                // The embedding decides how many tokens there are, unless another matrix has a row for each; a table of
                // n-grams may have rows to spare.
                if ["token_embd.weight", "per_layer_token_embd.weight"].contains(&tensor.as_str()) && d == 1 {
                    continue;
                }
                let mut other = header.clone();
                other.tensors[i].1[d] += 1;
                let got = other.blueprint(&format!("{name}: {tensor} with another length"));
                assert!(
                    got.is_err() || skipped || tensor.contains("indexer") || tensor.contains("nextn"),
                    "{name}: {tensor}"
                );
            }
        }
    });
}

/// The first files of GLM-5.3-Flash have another name for it.
#[test]
fn both_spellings_of_an_architecture_are_the_same() {
    let header = Header::new(&specs()["glm5-next"]);
    let (name, early) = ("glm5-next", "glm5next");
    let mut other = Header { arch: early.to_owned(), ..header.clone() };
    for (key, value) in &mut other.meta {
        *key = key.replace(name, early);
        if key == "general.architecture" {
            *value = early.into();
        }
    }
    let [a, b] = [header, other].map(|header| header.blueprint(name).unwrap());
    assert_eq!((a.arch, b.arch), (name, early));
    assert_eq!(format!("{:?}{:?}", a.blocks, a.head), format!("{:?}{:?}", b.blocks, b.head));
}

/// What a file may say of blocks, and what makes no sense.
#[test]
fn blocks_of_an_indexer_are_whole_and_some_are_chosen() {
    let specs = specs();
    for (name, short, n_layer) in
        [("qwen4exp-sparse", "attention.compress_ratios", 3), ("glm5-next-sparse", "attention.indexer.kpool", 0)]
    {
        let header = Header::new(&specs[name]);
        let key = format!("{}.{short}", header.arch);
        let value = |n: u32| match n_layer {
            0 => Value::U32(n),
            _ => Value::Array(Array::I32(vec![n as i32; n_layer])),
        };
        for n in [17, 1 << 13, i32::MAX as u32] {
            let said = header.with(&key, value(n)).blueprint(name).expect_err(&key);
            assert!(said.contains("attention.indexer.top_k") || said.contains(&key), "{said}");
        }
        let none = header.with(&key, value(0)).blueprint(name).expect_err(&key);
        assert!(none.contains("indexer") || none.contains(&key), "no block has no token: {none}");
    }
    let header = Header::new(&specs["glm5-next-sparse"]);
    let types = |first| Value::Array(Array::I32(vec![first, 1, 1]));
    let said = header.with("glm5-next.attention.indexer.types", types(0)).blueprint("types").unwrap_err();
    assert!(said.contains("which has none to share"), "{said}");
}

/// Contexts up to which attention looks at everything, and one sentence beyond, where the indexer is missing or not computed.
#[test]
fn an_indexer_limits_the_context() {
    let specs = specs();
    for (name, limit) in
        [("glm-dsa", 64), ("deepseek32", 64), ("minimax-m3", 128), ("qwen4exp-sparse", 16), ("glm5-next-sparse", 12)]
    {
        let mut header = Header::new(&specs[name]);
        if name != "minimax-m3" {
            assert_eq!(header.blueprint(name).unwrap().n_ctx_train, 512, "{name} has indexers");
            header.tensors.retain(|(tensor, _)| !tensor.contains(".indexer"));
        }
        let blueprint = header.blueprint(name).unwrap();
        assert_eq!(blueprint.n_ctx_train, limit, "{name}");
        let said = blueprint.context_error(limit + 1);
        assert!(said.contains(&limit.to_string()) && said.contains("an indexer chooses"), "{said}");
    }
}
