//! A GGUF file's header, for models whose weights nobody reads.

use hotset::gguf::{Array, Value};

/// What a file of GGUF version 3 has before its tensors' data. Tensors: name, dims, ggml's number of the type, bytes.
pub fn header(meta: &[(String, Value)], tensors: &[(String, Vec<u64>, u32, u64)]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((meta.len() as u64).to_le_bytes());
    for (key, value) in meta {
        put_str(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for (name, dims, ty, bytes) in tensors {
        put_str(&mut out, name);
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(ty.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += bytes.next_multiple_of(32);
    }
    out
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    out.extend(value.type_id().to_le_bytes());
    match value {
        Value::U32(x) => out.extend(x.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::String(x) => put_str(out, x),
        Value::Array(array) => {
            out.extend(array.type_id().to_le_bytes());
            out.extend((array.len() as u64).to_le_bytes());
            match array {
                Array::I32(x) => x.iter().for_each(|x| out.extend(x.to_le_bytes())),
                Array::U64(x) => x.iter().for_each(|x| out.extend(x.to_le_bytes())),
                Array::F32(x) => x.iter().for_each(|x| out.extend(x.to_le_bytes())),
                Array::Bool(x) => x.iter().for_each(|x| out.push(u8::from(*x))),
                other => panic!("no array of type {}", other.type_id()),
            }
        }
        other => panic!("no value of type {}", other.type_id()),
    }
}
