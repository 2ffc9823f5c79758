//! The grammar of a call in the format of a model's family.

use serde_json::{Map, Value, json};

use super::{Tool, grammar::Grammar, schema};
use crate::{
    Error, Result,
    chat::{Arguments, CallForm, Part, Strings},
};

/// Parameters of a tool at most, where each is written by itself.
const MAX_PARAMETERS: usize = 200;

/// Keywords of the parameters' schema that mean nothing more where each parameter is written by itself, or are looked at.
const TOP: &[&str] = &[
    "type",
    "properties",
    "required",
    "additionalProperties",
    "$defs",
    "definitions",
    "$schema",
    "$id",
    "$comment",
    "title",
    "description",
    "examples",
    "default",
];

/// Keywords of a string that can be enforced where it is written as it is.
const OF_STRINGS: &[&str] =
    &["type", "enum", "const", "minLength", "maxLength", "title", "description", "examples", "default", "$comment"];

/// A call of this tool, as an expression.
///
/// # Errors
/// Names what cannot be enforced.
pub fn call(grammar: &mut Grammar<'_>, form: &CallForm, tool: &Tool) -> Result<String> {
    check_name(&tool.name, &tool.path)?;
    let path = format!("the parameters of {}", tool.name);
    let object = schema::object(&tool.parameters, &path)?;
    let whole = Value::Object(object.clone());
    schema::check(&whole, &path)?;
    let arguments = match form.arguments {
        Arguments::Object => grammar.json(whole, &path, false),
        Arguments::Each { .. } => each(grammar, form, &object, &path)?,
    };
    let before = texts(grammar, form.before, &tool.name, "");
    let after = texts(grammar, form.after, &tool.name, "");
    Ok(grammar.rule(&format!("{before} {arguments} {after}")))
}

/// Names stand between marks without quotes.
fn check_name(name: &str, path: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !name.is_empty() && name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::invalid(format!("{path} must be of letters, digits, _, - and . where a call is enforced, not {name:?}")))
}

/// What is always the same, as an expression.
pub fn texts(grammar: &Grammar<'_>, parts: &[Part], name: &str, key: &str) -> String {
    let text = |part: &Part| match part {
        Part::Mark(mark) => grammar.mark(mark),
        Part::Text(text) => Grammar::literal(text),
        Part::Name => Grammar::literal(name),
        Part::Key => Grammar::literal(key),
    };
    parts.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// The parameters one after the other in the schema's order, with those left out that need not be there.
fn each(grammar: &mut Grammar<'_>, form: &CallForm, object: &Map<String, Value>, path: &str) -> Result<String> {
    let Arguments::Each { between, .. } = form.arguments else { return Ok(String::new()) };
    let refuse = |what: String| Err(Error::invalid(format!("{path} cannot be enforced: {what}")));
    if let Some(key) = object.keys().find(|key| !TOP.contains(&key.as_str())) {
        return refuse(format!("{key} beside the properties, in this model's format of calls"));
    }
    let none = Map::new();
    let properties = object.get("properties").map_or(Some(&none), Value::as_object);
    let Some(properties) = properties else { return refuse("its properties are no object".to_owned()) };
    let required: Vec<&str> =
        object.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    if let Some(missing) = required.iter().find(|key| !properties.contains_key(**key)) {
        return refuse(format!("it requires {missing:?}, which is none of its properties"));
    }
    if properties.len() > MAX_PARAMETERS {
        return refuse(format!("it has {} properties, and at most {MAX_PARAMETERS} are taken", properties.len()));
    }
    // From the last to the first: what may come if nothing was written yet, and if something was.
    let (mut first, mut later) = ("\"\"".to_owned(), "\"\"".to_owned());
    for (key, property) in properties.iter().rev() {
        check_name(key, "names of parameters")?;
        let parameter = parameter(grammar, form, object, (key, property), path)?;
        let (skip_first, skip_later) = match required.contains(&key.as_str()) {
            true => (String::new(), String::new()),
            false => (format!(" | {first}"), format!(" | {later}")),
        };
        let begins = grammar.rule(&format!("{parameter} {later}{skip_first}"));
        let goes_on = match between {
            "" => grammar.rule(&format!("{parameter} {later}{skip_later}")),
            text => grammar.rule(&format!("{} {parameter} {later}{skip_later}", Grammar::literal(text))),
        };
        (first, later) = (begins, goes_on);
    }
    Ok(first)
}

/// One parameter, as a rule.
fn parameter(
    grammar: &mut Grammar<'_>,
    form: &CallForm,
    object: &Map<String, Value>,
    (key, property): (&str, &Value),
    path: &str,
) -> Result<String> {
    let Arguments::Each { before, after, strings, few_escapes, .. } = form.arguments else { return Ok(String::new()) };
    let before = texts(grammar, before, "", key);
    let value = match strings {
        Strings::Raw { open, close, without } if property["type"] == "string" => {
            let open = texts(grammar, open, "", key);
            let end: Vec<Part> = close.iter().chain(after).copied().collect();
            let text = raw(grammar, property, &end, without, &format!("{path}.{key}"))?;
            format!("{open} {text}")
        }
        _ => {
            let value = grammar.json(with_definitions(property, object), path, few_escapes);
            let after = texts(grammar, after, "", key);
            format!("{value} {after}")
        }
    };
    Ok(grammar.rule(&format!("{before} {value}")))
}

/// A parameter's schema, from which the same references lead to the same places.
fn with_definitions(property: &Value, object: &Map<String, Value>) -> Value {
    let mut schema = match property {
        Value::Object(map) => map.clone(),
        Value::Bool(false) => Map::from_iter([("not".to_owned(), json!({}))]),
        _ => Map::new(),
    };
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = object.get(key) {
            schema.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    Value::Object(schema)
}

/// A string as it is, and what comes after it.
fn raw(grammar: &mut Grammar<'_>, schema: &Value, end: &[Part], without: &[&str], path: &str) -> Result<String> {
    let refuse = |what: String| Err(Error::invalid(format!("{path} cannot be enforced: {what}")));
    let keys = schema.as_object().into_iter().flat_map(|map| map.keys());
    if let Some(key) = keys.into_iter().find(|key| !OF_STRINGS.contains(&key.as_str())) {
        return refuse(format!("{key} of a string, which this model's format of calls writes without quotes"));
    }
    let values = schema.get("const").map(std::slice::from_ref).or_else(|| schema["enum"].as_array().map(Vec::as_slice));
    if let Some(values) = values {
        let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
        if values.is_empty() || values.iter().any(|value| without.iter().any(|mark| value.contains(mark))) {
            return refuse("its values are no strings, or have marks of this model's format of calls".to_owned());
        }
        let one_of = values.iter().map(|value| Grammar::literal(value)).collect::<Vec<_>>().join(" | ");
        let end = texts(grammar, end, "", "");
        return Ok(format!("({one_of}) {end}"));
    }
    let lengths = (schema["minLength"].as_u64().unwrap_or(0), schema["maxLength"].as_u64());
    // The first mark or text ends it.
    let Some((first, rest)) = end.split_first() else { return refuse("nothing ends it".to_owned()) };
    let (Part::Mark(mark) | Part::Text(mark)) = first else { return refuse("nothing ends it".to_owned()) };
    let text = grammar.text_up_to(mark, without, lengths);
    let rest = texts(grammar, rest, "", "");
    Ok(format!("{text} {rest}"))
}
