//! Rows as comma-separated values (RFC 4180): a header line, then a line a row. A list is one cell with spaces between its
//! items; what is unknown is an empty cell.

use hotset::simulate::{
    Row,
    quality::{AHEAD, Recall, Source},
};
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
    let Value::Object(row_fields) = json!(row) else { unreachable!("a row is an object") };
    let mut cells: Vec<_> = row_fields.into_iter().filter(|(key, _)| key != "foresight").collect();
    let guesses = (1..=AHEAD).map(|n| (Source::Prefetch, n));
    for (by, horizon) in [(Source::Own, 0), (Source::Scores, 1)].into_iter().chain(guesses) {
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
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(Value::to_string).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    };
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(values.iter().map(cell)).expect("memory takes it");
    String::from_utf8(writer.into_inner().expect("memory takes it")).expect("cells are text")
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
