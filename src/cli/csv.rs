//! Rows as comma-separated values (RFC 4180): a header line, then a line a row. A list is one cell with spaces between its
//! items; what is unknown is an empty cell.

use std::fmt;

use hotset::simulate::{
    Row,
    quality::{AHEAD, Recall, Source},
};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value, json};

/// The rows of a simulation: the JSON's keys in their order, and of each source of guesses what its ranks recall.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let (keys, values): (Vec<_>, Vec<_>) = cells(row).into_iter().unzip();
        if text.is_empty() {
            text += &line(&keys.into_iter().map(Value::String).collect::<Vec<_>>());
        }
        text += &line(&values);
    }
    text
}

fn cells(row: &Row) -> Vec<(String, Value)> {
    let json = serde_json::to_string(row).expect("rows are plain numbers");
    let Fields(mut cells) = serde_json::from_str(&json).expect("a row is an object");
    cells.retain(|(key, _)| key != "foresight");
    let sources = [Source::Scores, Source::Prefetch].into_iter().flat_map(|by| (1..=AHEAD).map(move |n| (by, n)));
    for (by, horizon) in std::iter::once((Source::Own, 0)).chain(sources) {
        let found = row.foresight.iter().find(|r| (r.by, r.horizon) == (by, horizon));
        let list = |of: fn(&Recall) -> &Vec<f64>| json!(found.map(of));
        let name = by.name();
        cells.push((format!("recall_{name}_{horizon}"), list(|r| &r.recall)));
        cells.push((format!("recall_on_misses_{name}_{horizon}"), list(|r| &r.recall_on_misses)));
    }
    cells
}

/// A line of cells.
pub fn line(values: &[Value]) -> String {
    let cell = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) if text.contains([',', '"', '\n', '\r']) => format!("\"{}\"", text.replace('"', "\"\"")),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(Value::to_string).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    };
    values.iter().map(cell).collect::<Vec<_>>().join(",") + "\n"
}

/// An object's fields in the order in which they stand.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InOrder)
    }
}

struct InOrder;

impl<'de> Visitor<'de> for InOrder {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Fields(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        let values = [json!("a,b"), json!("say \"x\""), json!("a\rb"), json!(null), json!([0.5, 1])];
        assert_eq!(line(&values), "\"a,b\",\"say \"\"x\"\"\",\"a\rb\",,0.5 1\n");
    }
}
