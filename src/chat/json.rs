//! JSON as Python writes it, which is what models were trained on: a space after each comma and colon, and letters of all
//! scripts as they are.

use minijinja::{Error, ErrorKind, Value, value::Kwargs};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::{Result, Write};

/// Indentation at most: a template must not fill memory with spaces.
const MAX_INDENT: usize = 16;

/// The filter `tojson`.
pub fn tojson(value: &Value, args: Kwargs) -> std::result::Result<Value, Error> {
    let indent: Option<usize> = args.get("indent")?;
    // What else Python's takes and templates use; they ask for what is done anyway.
    for name in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = args.get(name)?;
    }
    args.assert_all_used()?;
    let indent = indent.map(|n| " ".repeat(n.min(MAX_INDENT)));
    let text = written(value, indent.as_deref());
    text.map(Value::from).map_err(|e| Error::new(ErrorKind::BadSerialization, "no JSON").with_source(e))
}

/// The same value for templates. Not by its serialisation, in which a number is a map where some crate asked `serde_json` for
/// numbers of any precision.
pub fn of_json(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(list) => list.iter().map(of_json).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), of_json(value)))),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
    }
}

fn written(value: &Value, indent: Option<&str>) -> serde_json::Result<String> {
    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced))?,
    }
    Ok(String::from_utf8(out).expect("JSON is UTF-8"))
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }
    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> Result<()> {
        writer.write_all(b": ")
    }
}
