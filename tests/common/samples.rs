//! Small GGUF files: good ones through the writer, broken ones byte by byte.

use std::path::Path;

use hotset::gguf::{Array, GgufWriter, Value};
use hotset::quant::GgmlType;

/// A key and a value for every type that metadata can have.
pub fn every_value() -> Vec<(String, Value)> {
    let nested = Array::Array(vec![
        Array::U8(vec![1, 2]),
        Array::String(vec!["é".to_owned()]),
        Array::Array(vec![Array::Bool(vec![true]), Array::F64(vec![])]),
    ]);
    let values: Vec<Value> = vec![
        u8::MAX.into(),
        i8::MIN.into(),
        u16::MAX.into(),
        i16::MIN.into(),
        u32::MAX.into(),
        i32::MIN.into(),
        f32::MIN_POSITIVE.into(),
        u64::MAX.into(),
        i64::MIN.into(),
        f64::MAX.into(),
        true.into(),
        false.into(),
        "".into(),
        "naïve ☃".into(),
        vec![0u8, 255].into(),
        vec![-128i8, 127].into(),
        vec![0u16, 65535].into(),
        vec![-32768i16, 32767].into(),
        vec![0u32, 7].into(),
        vec![-1i32, 0, 1].into(),
        vec![0.5f32, -2.0].into(),
        vec![u64::MAX].into(),
        vec![i64::MIN].into(),
        vec![0.1f64].into(),
        vec![true, false, true].into(),
        vec!["a".to_owned(), String::new(), "ß".to_owned()].into(),
        Vec::<f32>::new().into(),
        Value::Array(nested),
    ];
    values.into_iter().enumerate().map(|(i, v)| (format!("test.{i}"), v)).collect()
}

/// `n` bytes that differ from place to place and from seed to seed.
pub fn noise(seed: u64, n: u64) -> Vec<u8> {
    let mut state = seed.wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..n).map(|_| next()).collect()
}

/// Writes a file with `meta` and tensors of noise; the i-th has seed i.
pub fn write_file(path: &Path, meta: &[(String, Value)], tensors: &[(&str, &[u64], GgmlType)]) {
    let mut w = GgufWriter::new(path, true).unwrap();
    for (key, value) in meta {
        w.meta(key, value.clone()).unwrap();
    }
    for (name, dims, ty) in tensors {
        w.tensor(name, dims, *ty).unwrap();
    }
    let mut out = w.start().unwrap();
    for (i, (name, dims, ty)) in tensors.iter().enumerate() {
        let bytes = ty.row_bytes(dims[0]).unwrap() * dims[1..].iter().product::<u64>();
        out.write_tensor(name, &noise(i as u64, bytes)).unwrap();
    }
    out.finish().unwrap();
}

/// Files `m-0000i-of-0000N.gguf` in `folder`, each with one tensor `t{i}` (from 0) of 32 f32.
pub fn write_split_set(folder: &Path, n: u16) -> Vec<std::path::PathBuf> {
    (0..n)
        .map(|i| {
            let path = folder.join(format!("m-{:05}-of-{n:05}.gguf", i + 1));
            let mut meta: Vec<(String, Value)> = vec![
                ("split.no".to_owned(), i.into()),
                ("split.count".to_owned(), n.into()),
                ("split.tensors.count".to_owned(), i32::from(n).into()),
            ];
            if i == 0 {
                meta.push(("general.architecture".to_owned(), "test".into()));
            }
            write_file(&path, &meta, &[(&format!("t{i}"), &[32], GgmlType::F32)]);
            path
        })
        .collect()
}

/// A file's bytes, written without any check.
#[derive(Clone, Default)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    /// Magic, version 3 and the two counts.
    pub fn header(n_tensors: u64, n_entries: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(n_tensors).u64(n_entries)
    }
    pub fn u32(mut self, v: u32) -> Raw {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    pub fn u64(mut self, v: u64) -> Raw {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    pub fn bytes(mut self, v: &[u8]) -> Raw {
        self.0.extend_from_slice(v);
        self
    }
    pub fn str(self, s: &str) -> Raw {
        self.u64(s.len() as u64).bytes(s.as_bytes())
    }
    /// A row of the tensor table.
    pub fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Raw {
        let raw = self.str(name).u32(dims.len() as u32);
        dims.iter().fold(raw, |raw, &d| raw.u64(d)).u32(ty).u64(offset)
    }
    /// Pads to 32 bytes and adds `n` bytes of tensor data.
    pub fn data(mut self, n: usize) -> Raw {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + n, 0);
        self
    }
}
