//! JSON schemas as clients send them: what is refused at once, and how values are written.

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Bytes of a schema at most.
const MAX_BYTES: usize = 128 << 10;

/// Levels of a schema at most.
const MAX_DEPTH: usize = 64;

/// The largest number that a length may be compared with.
const MAX_LENGTH: u64 = 1000;

/// Combinations of options of anyOf, oneOf and enum at most that the members of allOf, and keywords beside each other, make.
const MAX_COMBINATIONS: u64 = 2000;

/// Levels of options down to which references are followed to count combinations.
const MAX_REFS: usize = 8;

/// Schemas that are looked at to count combinations. Each is counted once for all that it is part of.
const MAX_STEPS: usize = 200_000;

/// Values of an enum at most.
const MAX_VALUES: usize = 1000;

/// Properties of an object at most.
const MAX_PROPERTIES: usize = 400;

/// Keywords that are lengths.
const LENGTHS: &[&str] = &["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// White space between the parts of a value: what models write, and not without end.
const SPACE: &str = r"(\x20|\x0D?\x0A[\x20\x09]{0,32})";

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
    check_within(schema, path, 0)?;
    if (Counter { root: schema, steps: 0 }).most(schema) > MAX_COMBINATIONS {
        let sentence = format!("{path} cannot be enforced: its options make more than {MAX_COMBINATIONS} combinations");
        return Err(Error::invalid(sentence));
    }
    Ok(())
}

/// Counts how many schemas without options a schema stands for.
struct Counter<'a> {
    root: &'a Value,
    steps: usize,
}

impl Counter<'_> {
    /// The largest number of any schema within this one.
    fn most(&mut self, schema: &Value) -> u64 {
        let within: u64 = match schema {
            Value::Object(map) => map.values().fold(1, |most, value| most.max(self.most(value))),
            Value::Array(list) => list.iter().fold(1, |most, value| most.max(self.most(value))),
            _ => return 1,
        };
        within.max(self.of(schema, 0))
    }

    /// Of this schema: the product over all that has to hold at once. Beyond the limits of counting, more than is ever taken.
    fn of(&mut self, schema: &Value, depth: usize) -> u64 {
        let Some(map) = schema.as_object() else { return 1 };
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return u64::MAX;
        }
        let list = |key: &str| map.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let mut product = list("enum").len().max(1) as u64;
        for key in ["anyOf", "oneOf"] {
            let sum = list(key).iter().fold(0u64, |sum, option| sum.saturating_add(self.of(option, depth + 1)));
            product = product.saturating_mul(sum.max(1));
        }
        for member in list("allOf") {
            product = product.saturating_mul(self.of(member, depth + 1));
        }
        let reference = map.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix('#'));
        if let Some(there) = reference.filter(|_| depth < MAX_REFS).and_then(|to| self.root.pointer(to)) {
            product = product.saturating_mul(self.of(there, depth + 1));
        }
        product
    }
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
                    ("properties", Value::Object(properties)) if properties.len() > MAX_PROPERTIES => {
                        let n = properties.len();
                        return refuse(format!("an object has {n} properties, and at most {MAX_PROPERTIES} are taken"));
                    }
                    (key, Value::Number(n)) if LENGTHS.contains(&key) && n.as_u64().is_none_or(|n| n > MAX_LENGTH) => {
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
