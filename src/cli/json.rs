//! Results as JSON, one way for all verbs: an object that begins with the version of its schema, indented, with a newline
//! at its end. `docs/json.md` lists every field.

use serde::Serialize;

/// Of all documents together. A field that goes or changes its meaning makes it one more; a new field does not.
pub const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document<'a, T> {
    schema: u32,
    #[serde(flatten)]
    value: &'a T,
}

/// A document with the fields of an object.
pub fn document(value: &impl Serialize) -> String {
    text(&Document { schema: SCHEMA, value })
}

/// A document with rows.
pub fn rows(rows: &[impl Serialize]) -> String {
    #[derive(Serialize)]
    struct Rows<'a, T> {
        rows: &'a [T],
    }
    document(&Rows { rows })
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("results have string keys and plain values") + "\n"
}
