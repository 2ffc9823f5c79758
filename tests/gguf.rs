//! GGUF files that are as they should be: what is written is read back, and others read the same in it.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::ref_models;
use common::samples::{every_value, noise, write_file, write_split_set};
use hotset::gguf::{Extent, Gguf, GgufWriter, Value, parse};
use hotset::quant::GgmlType;
use sha2::{Digest, Sha256};

#[test]
fn every_metadata_type_survives_writing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let values = every_value();
    write_file(&path, &values, &[]);
    let gguf = Gguf::open(&path).unwrap();
    let back: Vec<(String, Value)> = gguf.meta().iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    assert_eq!(back, values, "same values in the same order");
}

/// All types, in tensors of one and three dims.
fn every_tensor() -> Vec<(String, Vec<u64>, GgmlType)> {
    let both = |&ty: &GgmlType| {
        let row = ty.block_len() as u64;
        [(format!("{ty}.flat"), vec![row], ty), (format!("{ty}.cube"), vec![2 * row, 3, 2], ty)]
    };
    GgmlType::ALL.iter().flat_map(both).collect()
}

#[test]
fn every_tensor_type_survives_writing() {
    for alignment in [None, Some(8u32), Some(4096)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let meta: Vec<_> = alignment.iter().map(|&a| ("general.alignment".to_owned(), Value::U32(a))).collect();
        let tensors = every_tensor();
        let declared: Vec<(&str, &[u64], GgmlType)> = tensors.iter().map(|(n, d, t)| (&**n, &**d, *t)).collect();
        write_file(&path, &meta, &declared);

        let gguf = Gguf::open(&path).unwrap();
        assert_eq!(gguf.tensors().len(), tensors.len());
        for (i, (name, dims, ty)) in tensors.iter().enumerate() {
            let t = gguf.require(name).unwrap();
            assert_eq!((&t.dims, t.ggml_type(gguf.path()).unwrap()), (dims, *ty));
            assert_eq!(t.offset % u64::from(alignment.unwrap_or(32)), 0);
            let bytes = t.require_bytes(gguf.path()).unwrap();
            assert_eq!(bytes, t.row_bytes().unwrap() * t.rows());
            let want = noise(i as u64, bytes);
            let mut got = vec![0; bytes as usize];
            gguf.read_tensor(t, &mut got).unwrap();
            assert_eq!(got, want, "{name}");
            let mut last = vec![0; t.row_bytes().unwrap() as usize];
            gguf.read_tensor_part(t, bytes - last.len() as u64, &mut last).unwrap();
            assert!(want.ends_with(&last), "last row of {name}");
        }
    }
}

#[test]
fn version_2_reads_as_version_3() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    write_file(&path, &every_value(), &[("t", &[32, 2], GgmlType::Q8_0)]);
    let mut bytes = std::fs::read(&path).unwrap();
    let three = parse(&path, &bytes, 0, Extent::Whole).unwrap();
    bytes[4] = 2;
    let two = parse(&path, &bytes, 0, Extent::Whole).unwrap();
    assert_eq!((three.version, two.version), (3, 2));
    assert_eq!(two.tensors, three.tensors);
    assert!(two.meta.iter().eq(three.meta.iter()));
}

#[test]
fn getters_convert_what_fits_and_name_what_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let meta: Vec<(String, Value)> = vec![
        ("small".to_owned(), 7u8.into()),
        ("wide".to_owned(), 7i64.into()),
        ("negative".to_owned(), (-1i32).into()),
        ("pi".to_owned(), 3.25f64.into()),
        ("name".to_owned(), "x".into()),
        ("per_layer".to_owned(), vec![1i32, 2, 3].into()),
        ("flags".to_owned(), vec![true, false].into()),
    ];
    write_file(&path, &meta, &[]);
    let gguf = Gguf::open(&path).unwrap();
    let m = gguf.meta();
    assert_eq!((m.u32("small").unwrap(), m.u32("wide").unwrap(), m.u32("none").unwrap()), (Some(7), Some(7), None));
    assert_eq!((m.i32("negative").unwrap(), m.u64("small").unwrap()), (Some(-1), Some(7)));
    assert_eq!((m.f32("pi").unwrap(), m.str("name").unwrap()), (Some(3.25), Some("x")));
    assert_eq!(m.u32_or_array("small", 3).unwrap(), Some(vec![7, 7, 7]));
    assert_eq!(m.u32_or_array("per_layer", 3).unwrap(), Some(vec![1, 2, 3]));
    assert_eq!(m.i32s("per_layer").unwrap().unwrap(), [1, 2, 3].as_slice());
    assert_eq!(m.bools("flags").unwrap().unwrap(), [true, false]);

    let errors = [
        (m.u32("negative").unwrap_err(), "\"negative\": expected an integer below 2^32, got i32 -1"),
        (m.u32("name").unwrap_err(), "got string \"x\""),
        (m.str("small").unwrap_err(), "expected a string, got u8 7"),
        (m.strings("per_layer").unwrap_err(), "expected an array of strings, got array of 3 i32"),
        (m.f32("small").unwrap_err(), "expected an f32, got u8 7"),
        (m.u32_or_array("per_layer", 4).unwrap_err(), "expected one integer, or 4 of them"),
        (m.u32_or_array("small", 1 << 30).unwrap_err(), "at most 16384 layers"),
        (m.require_str("none").unwrap_err(), "\"none\": expected a string, got no such key"),
        (gguf.require("none").unwrap_err(), "tensor none"),
    ];
    for (error, part) in errors {
        let text = error.to_string();
        assert!(text.contains(part) && text.contains("m.gguf"), "{text}");
    }
}

/// gguf-rs 0.1.8 as the oracle. Left out, because it gets them wrong: the sizes of the types that its one rule for
/// block lengths does not fit (BF16, IQ4_NL, MXFP4 and the plain integers and F64), of Q8_1 (it has two f32 in a
/// block, ggml two f16); NVFP4, Q1_0 and Q2_0 (a panic and errors); nested arrays (an error).
#[test]
fn gguf_rs_reads_the_same() {
    use GgmlType::{BF16, F64, I8, I16, I32, I64, IQ4_NL, MXFP4, NVFP4, Q1_0, Q2_0, Q8_1};
    let wrong_size = [BF16, IQ4_NL, MXFP4, I8, I16, I32, I64, F64, Q8_1];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let meta: Vec<_> = every_value().into_iter().filter(|(_, v)| !v.kind().ends_with(" array")).collect();
    let tensors: Vec<_> = every_tensor().into_iter().filter(|(_, _, ty)| ![NVFP4, Q1_0, Q2_0].contains(ty)).collect();
    let declared: Vec<(&str, &[u64], GgmlType)> = tensors.iter().map(|(n, d, t)| (&**n, &**d, *t)).collect();
    write_file(&path, &meta, &declared);

    for path in [path, ref_models::ref_model("qwen2moe")] {
        let ours = Gguf::open(&path).unwrap();
        let mut container = gguf_rs::get_gguf_container_array_size(path.to_str().unwrap(), u64::MAX).unwrap();
        let theirs = container.decode().unwrap();
        let our_keys: BTreeSet<&str> = ours.meta().iter().map(|(k, _)| k).collect();
        assert_eq!(our_keys, theirs.metadata().keys().map(String::as_str).collect());
        for (key, value) in ours.meta().iter() {
            assert_eq!(as_json(value), theirs.metadata()[key], "{key}");
        }
        assert_eq!(ours.tensors().len(), theirs.tensors().len());
        for (a, b) in ours.tensors().iter().zip(theirs.tensors()) {
            assert_eq!((&a.name, &a.dims, a.ty.id()), (&b.name, &b.shape, b.kind));
            assert_eq!(a.offset, theirs.data_offset() + b.offset, "{}", a.name);
            if !wrong_size.contains(&a.ggml_type(&path).unwrap()) {
                assert_eq!(a.bytes, Some(b.size), "{}", a.name);
            }
        }
    }
}

/// A value as gguf-rs gives it.
fn as_json(value: &Value) -> serde_json::Value {
    use hotset::gguf::Array;
    use serde_json::json;
    match value {
        Value::U8(x) => json!(x),
        Value::I8(x) => json!(x),
        Value::U16(x) => json!(x),
        Value::I16(x) => json!(x),
        Value::U32(x) => json!(x),
        Value::I32(x) => json!(x),
        Value::F32(x) => json!(x),
        Value::U64(x) => json!(x),
        Value::I64(x) => json!(x),
        Value::F64(x) => json!(x),
        Value::Bool(x) => json!(x),
        Value::String(x) => json!(x),
        Value::Array(Array::U8(x)) => json!(x),
        Value::Array(Array::I8(x)) => json!(x),
        Value::Array(Array::U16(x)) => json!(x),
        Value::Array(Array::I16(x)) => json!(x),
        Value::Array(Array::U32(x)) => json!(x),
        Value::Array(Array::I32(x)) => json!(x),
        Value::Array(Array::F32(x)) => json!(x),
        Value::Array(Array::U64(x)) => json!(x),
        Value::Array(Array::I64(x)) => json!(x),
        Value::Array(Array::F64(x)) => json!(x),
        Value::Array(Array::Bool(x)) => json!(x),
        Value::Array(Array::String(x)) => json!(x),
        Value::Array(Array::Array(_)) => panic!("gguf-rs has no nested arrays"),
    }
}

#[test]
fn a_split_set_opens_from_any_of_its_files() {
    let folder = tempfile::tempdir().unwrap();
    for path in write_split_set(folder.path(), 3) {
        let gguf = Gguf::open(&path).unwrap();
        assert_eq!(gguf.shards().len(), 3);
        assert!(gguf.path().ends_with("m-00001-of-00003.gguf"));
        assert_eq!(gguf.meta().require_str("general.architecture").unwrap(), "test");
        for i in 0..3 {
            let t = gguf.require(&format!("t{i}")).unwrap();
            assert_eq!(t.shard, i);
            let mut data = vec![0; 128];
            gguf.read_tensor(t, &mut data).unwrap();
            assert_eq!(data, noise(0, 128));
        }
    }
}

#[test]
fn a_lone_file_may_carry_the_name_of_a_set() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m-00002-of-00003.gguf");
    write_file(&path, &[], &[("t", &[4], GgmlType::F32)]);
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!((gguf.shards().len(), gguf.tensors()[0].shard), (1, 0));
}

#[test]
fn a_header_is_enough_to_plan() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    write_file(&path, &[], &[("a", &[256], GgmlType::F32), ("b", &[256], GgmlType::F32)]);
    let whole = Gguf::open(&path).unwrap();
    let cut = whole.require("b").unwrap().offset;
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
    let error = Gguf::open(&path).unwrap_err().to_string();
    assert!(error.contains("m.gguf: data of tensor \"b\""), "{error}");
    assert_eq!(Gguf::open_header(&path).unwrap().tensors(), whole.tensors());

    // The handle that was opened before the cut says what it could not read.
    let mut data = vec![0; 1024];
    whole.read_tensor(whole.require("a").unwrap(), &mut data).unwrap();
    let error = whole.read_tensor(whole.require("b").unwrap(), &mut data).unwrap_err().to_string();
    assert!(error.contains(&format!("m.gguf: cannot read 1024 bytes at {cut} of tensor b (got 0)")), "{error}");
}

fn files_in(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_writer_replaces_nothing_unasked_and_leaves_nothing_half_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let start = |overwrite| {
        let mut w = GgufWriter::new(&path, overwrite)?;
        w.tensor("a", &[4], GgmlType::F32)?.tensor("b", &[4], GgmlType::F32)?;
        w.start()
    };
    let request = |result: hotset::Result<()>, part: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    };
    let mut out = start(false).unwrap();
    request(out.begin("b"), "expected a, got b");
    request(out.write(&[0]), "at most 0 more bytes");
    out.begin("a").unwrap();
    out.write(&[0; 9]).unwrap();
    request(out.write(&[0; 8]), "at most 7 more bytes, got 8");
    request(out.begin("b"), "data of tensor a: expected 7 more bytes");
    out.write(&[0; 7]).unwrap();
    request(out.finish(), "all, b too");
    assert!(files_in(folder.path()).is_empty(), "an unfinished file is removed");

    let mut out = start(false).unwrap();
    out.write_tensor("a", &[1; 16]).unwrap();
    out.write_tensor("b", &[2; 16]).unwrap();
    std::fs::write(&path, "another program's").unwrap();
    request(out.finish(), "m.gguf");
    request(start(false).map(drop), "m.gguf");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "another program's");

    let mut out = start(true).unwrap();
    out.write_tensor("a", &[1; 16]).unwrap();
    request(out.begin("c"), "expected b, got c");
    out.write_tensor("b", &[2; 16]).unwrap();
    request(out.begin("c"), "expected none, all are written, got c");
    out.finish().unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let mut data = [0; 16];
    gguf.read_tensor(gguf.require("b").unwrap(), &mut data).unwrap();
    assert_eq!(data, [2; 16], "a refused call has moved nothing");
    assert_eq!(files_in(folder.path()), ["m.gguf"]);
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let path = Path::new("m.gguf");
    let mut w = GgufWriter::new(path, false).unwrap();
    w.meta("k", 1u32).unwrap();
    w.tensor("t", &[32], GgmlType::Q8_0).unwrap();
    let errors = [
        w.meta("k", 1u32).unwrap_err(),
        w.meta("general.alignment", 48u32).unwrap_err(),
        w.tensor("u", &[], GgmlType::F32).unwrap_err(),
        w.tensor("u", &[1; 5], GgmlType::F32).unwrap_err(),
        w.tensor("u", &[4, 0], GgmlType::F32).unwrap_err(),
        w.tensor("u", &[33], GgmlType::Q8_0).unwrap_err(),
        w.tensor("u", &[1 << 40, 1 << 40], GgmlType::F32).unwrap_err(),
    ];
    for error in errors {
        assert!(error.to_string().starts_with("m.gguf: "), "{error}");
    }
    w.tensor("t", &[32], GgmlType::Q8_0).unwrap();
    assert!(w.start().unwrap_err().to_string().contains("one tensor of that name"));
}

/// The files that llama.cpp's reference answers were made with, to the last byte.
#[test]
fn reference_models_are_rebuilt_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for (name, spec) in ref_models::specs() {
        let path = folder.path().join(&name);
        ref_models::build(&name, &spec, &path);
        let bytes = std::fs::read(&path).unwrap();
        let sha256: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!((bytes.len() as u64, sha256), (spec.bytes, spec.sha256), "{name}");

        assert_eq!(ref_models::golden(&name, "logits").shape[1], ref_models::N_VOCAB, "{name}");
    }
}
