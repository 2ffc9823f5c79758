//! JSON schemas as clients send them: what is refused at once, and how values are written.

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Bytes of a schema at most.
const MAX_BYTES: usize = 128 << 10;

/// Levels of a schema at most.
const MAX_DEPTH: usize = 64;

/// The largest number that a length may be compared with.
const MAX_LENGTH: u64 = 2000;

/// Values of an enum at most.
const MAX_VALUES: usize = 1000;

/// Keywords that are lengths.
const LENGTHS: &[&str] = &["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// White space between the parts of a value: enough for the indentation that models write, and not without end.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// Escapes in strings that readers of calls know which are no readers of JSON.
const FEW_ESCAPES: &str = "nrt\\\"";

/// Refuses what is too large, and what is no schema of ours.
///
/// # Errors
/// One sentence, which begins with `path`.
pub fn check(schema: &Value, path: &str) -> Result<()> {
    let bytes = schema.to_string().len();
    if bytes > MAX_BYTES {
        return Err(Error::invalid(format!("{path} has {bytes} bytes, and at most {MAX_BYTES} are taken")));
    }
    if !schema.is_object() {
        return Err(Error::invalid(format!("{path} must be an object that is a JSON schema")));
    }
    check_within(schema, path, 0)
}

fn check_within(value: &Value, path: &str, depth: usize) -> Result<()> {
    let refuse = |what: String| Err(Error::invalid(format!("{path} cannot be enforced: {what}")));
    if depth > MAX_DEPTH {
        return refuse(format!("it nests deeper than {MAX_DEPTH}"));
    }
    match value {
        Value::Array(list) => list.iter().try_for_each(|value| check_within(value, path, depth + 1)),
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value) {
                    ("x-guidance", _) => return refuse("hotset does not know x-guidance".to_owned()),
                    ("$ref", Value::String(to)) if to.starts_with('#') => {}
                    ("$ref", Value::String(_)) => {
                        return refuse("a $ref must lead to a place in the same schema, as #/$defs/NAME".to_owned());
                    }
                    ("enum", Value::Array(values)) if values.len() > MAX_VALUES => {
                        return refuse(format!(
                            "an enum has {} values, and at most {MAX_VALUES} are taken",
                            values.len()
                        ));
                    }
                    (key, Value::Number(n))
                        if LENGTHS.contains(&key) && n.as_u64().is_none_or(|n| n > MAX_LENGTH) =>
                    {
                        return refuse(format!("{key} must be a whole number of at most {MAX_LENGTH}, not {n}"));
                    }
                    _ => {}
                }
                check_within(value, path, depth + 1)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The schema with our way to write values: bounded white space, and few escapes in strings where a reader knows no more.
pub fn written(mut schema: Value, few_escapes: bool) -> Value {
    let mut options = json!({"whitespace_pattern": SPACE});
    if few_escapes {
        options["json_allowed_escapes"] = json!(FEW_ESCAPES);
    }
    if let Some(map) = schema.as_object_mut() {
        map.insert("x-guidance".to_owned(), options);
    }
    schema
}

/// The parameters of a tool as the schema of an object.
///
/// # Errors
/// If it is the schema of something else.
pub fn object(parameters: &Value, path: &str) -> Result<Map<String, Value>> {
    let mut map = match parameters {
        Value::Null => Map::from_iter([("additionalProperties".to_owned(), json!(false))]),
        Value::Object(map) => map.clone(),
        _ => return Err(Error::invalid(format!("{path} must be an object that is a JSON schema"))),
    };
    match map.get("type") {
        None => drop(map.insert("type".to_owned(), json!("object"))),
        Some(kind) if kind == "object" => {}
        Some(_) => return Err(Error::invalid(format!("{path}.type must be \"object\""))),
    }
    Ok(map)
}
