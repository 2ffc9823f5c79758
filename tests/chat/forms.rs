//! Answers of a given form, with logits that know nothing: whatever is chosen, the text is as the schema says, and a call is read
//! back as one.

use std::{collections::BTreeSet, path::Path};

use hotset::{
    chat::{Delta, Family, Parser, Tools},
    constrain::{Answer, Tool, Vocabulary},
    gguf::Gguf,
    sampler::{Constraint, Sampler, SamplerConfig},
    tokenizer::{Tokenizer, VocabSource},
};
use serde_json::{Value, json};

use crate::common::vocab::{byte_level, sentence_piece};

fn tokenizer(source: VocabSource<'_>) -> Tokenizer {
    Tokenizer::new(Path::new("vocabulary"), source).unwrap()
}

fn bundled() -> Tokenizer {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");
    Tokenizer::from_gguf(&Gguf::open(Path::new(model)).unwrap()).unwrap()
}

fn of_json(schema: &Value) -> Answer {
    Answer { json: Some((schema.clone(), "schema".to_owned())), calls: Vec::new() }
}

fn is_allowed(words: &[u32], token: u32) -> bool {
    words[token as usize / 32] >> (token % 32) & 1 == 1
}

/// A text by random logits that like what ends a value, with the text of control tokens; `None`: it did not end.
fn text(tokenizer: &Tokenizer, constraint: Box<dyn Constraint>, seed: u64) -> Option<String> {
    text_with(tokenizer, constraint, seed, ("", "", ""))
}

/// The same, which ends a thought that was begun between these marks, by the prompt or the text itself.
fn text_with(
    tokenizer: &Tokenizer,
    mut constraint: Box<dyn Constraint>,
    seed: u64,
    (prompt, open, close): (&str, &str, &str),
) -> Option<String> {
    let n = tokenizer.n_vocab();
    let ends = |id: u32| match tokenizer.is_end_of_generation(id) {
        true => 9.0,
        false => match &*tokenizer.decode_bytes(id) {
            bytes if bytes.iter().all(|b| b.is_ascii_whitespace()) => -6.0,
            bytes if bytes.iter().any(|b| b"\"}])<>/".contains(b)) => 4.0,
            _ => 0.0,
        },
    };
    let likes: Vec<f32> = (0..n as u32).map(ends).collect();
    let mut rng = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        rng ^= rng << 13;
        rng ^= rng >> 7;
        rng ^= rng << 17;
        (rng >> 40) as f32 / (1 << 24) as f32
    };
    let config = SamplerConfig { temperature: 0.7, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..SamplerConfig::default() };
    let mut sampler = Sampler::new(config, n).unwrap();
    let first = constraint.allowed().unwrap().to_vec();
    sampler.constrain(Some(constraint));
    let mut bytes = Vec::new();
    for i in 0..600 {
        let mut logits: Vec<f32> = likes.iter().map(|like| like + 3.0 * random()).collect();
        let so_far = String::from_utf8_lossy(&bytes);
        let thinks = (prompt == open || so_far.contains(open)) && !so_far.contains(close);
        // The mark's token; or as much of the mark as was said last, and then the rest.
        let said = (0..close.len()).rev().find(|&n| bytes.ends_with(&close.as_bytes()[..n])).unwrap_or(0);
        match tokenizer.special_token(close).filter(|_| thinks) {
            Some(mark) => logits[mark as usize] += if i % 16 == 9 { 20.0 } else { 0.0 },
            None => {
                for (token, logit) in (0..).zip(&mut logits).filter(|_| thinks && (said > 0 || i % 16 == 9)) {
                    let mut word = Vec::new();
                    tokenizer.append_bytes(token, true, &mut word);
                    let is_next = !word.is_empty() && close.as_bytes()[said..].starts_with(&word);
                    *logit += if is_next { 20.0 } else { 0.0 };
                }
            }
        }
        let token = sampler.choose(&logits).unwrap();
        assert!(i > 0 || is_allowed(&first, token));
        if tokenizer.is_end_of_generation(token) {
            return Some(String::from_utf8(bytes).expect("no character is left unfinished"));
        }
        tokenizer.append_bytes(token, true, &mut bytes);
    }
    None
}

/// Whether a value is as a schema says, for the keywords that the tests use.
fn is_valid(value: &Value, schema: &Value, root: &Value) -> bool {
    let Some(map) = schema.as_object() else { return schema != &json!(false) };
    let number = |key: &str| map.get(key).and_then(Value::as_f64);
    let length = |n: usize, least: &str, most: &str| {
        number(least).is_none_or(|least| n as f64 >= least) && number(most).is_none_or(|most| n as f64 <= most)
    };
    let is = |kind: &str| match kind {
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|x| x.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.is_array(),
        _ => value.is_object(),
    };
    let kind = match map.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| is(kind.as_str().unwrap())),
        Some(kind) => is(kind.as_str().unwrap()),
        None => true,
    };
    let all = |key: &str| map.get(key).and_then(Value::as_array);
    let choices = all("enum").is_none_or(|values| values.contains(value))
        && map.get("const").is_none_or(|only| only == value)
        && all("anyOf").is_none_or(|any| any.iter().any(|schema| is_valid(value, schema, root)))
        && all("oneOf").is_none_or(|any| any.iter().filter(|schema| is_valid(value, schema, root)).count() == 1)
        && all("allOf").is_none_or(|all| all.iter().all(|schema| is_valid(value, schema, root)));
    let reference = map.get("$ref").and_then(Value::as_str);
    let reference = reference.is_none_or(|to| is_valid(value, root.pointer(&to[1..]).unwrap(), root));
    let inside = match value {
        Value::Number(n) => {
            let n = n.as_f64().unwrap();
            number("minimum").is_none_or(|least| n >= least)
                && number("maximum").is_none_or(|most| n <= most)
                && number("exclusiveMaximum").is_none_or(|most| n < most)
                && number("multipleOf").is_none_or(|step| (n / step).fract() == 0.0)
        }
        Value::String(text) => {
            let pattern = map.get("pattern").and_then(Value::as_str);
            length(text.chars().count(), "minLength", "maxLength")
                && pattern.is_none_or(|pattern| regex::Regex::new(pattern).unwrap().is_match(text))
        }
        Value::Array(list) => {
            let items = map.get("items");
            length(list.len(), "minItems", "maxItems")
                && list.iter().all(|item| items.is_none_or(|items| is_valid(item, items, root)))
        }
        Value::Object(object) => {
            let none = json!({});
            let properties = map.get("properties").unwrap_or(&none);
            let more = map.get("additionalProperties").unwrap_or(&none);
            all("required").is_none_or(|keys| keys.iter().all(|key| object.contains_key(key.as_str().unwrap())))
                && object.iter().all(|(key, value)| is_valid(value, properties.get(key).unwrap_or(more), root))
        }
        _ => true,
    };
    kind && choices && reference && inside
}

/// Schemas of different kinds.
fn schemas() -> Vec<Value> {
    let person = json!({
        "type": "object", "required": ["name", "age"], "additionalProperties": false,
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 130}},
    });
    let list = json!({
        "$defs": {"node": {
            "type": "object", "required": ["value", "next"], "additionalProperties": false,
            "properties": {"value": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        }},
        "$ref": "#/$defs/node",
    });
    let shape = json!({"oneOf": [
        {"type": "object", "required": ["kind", "r"], "additionalProperties": false,
         "properties": {"kind": {"const": "circle"}, "r": {"type": "number", "minimum": 1, "maximum": 2}}},
        {"type": "object", "required": ["kind", "a"], "additionalProperties": false,
         "properties": {"kind": {"const": "square"}, "a": {"type": "integer", "enum": [1, 2, 4]}}},
    ]});
    vec![
        person.clone(),
        list,
        shape,
        json!({"type": "object", "maxProperties": 2}),
        json!({"type": "string"}),
        json!({"type": "string", "minLength": 3, "maxLength": 5}),
        json!({"type": "string", "pattern": "^[a-c]{2,4}-[0-9]+$", "maxLength": 20}),
        json!({"type": "string", "enum": ["red", "gr\u{fc}n", "b\"lue", "\u{1f3a8}"]}),
        json!({"const": {"a": [1, null, "x"]}}),
        json!({"type": "integer", "minimum": -5, "maximum": 12}),
        json!({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000}),
        json!({"type": "number", "minimum": 0.5, "exclusiveMaximum": 3}),
        json!({"type": "boolean"}),
        json!({"type": ["null", "boolean", "integer"]}),
        json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 4}),
        json!({"type": "array", "items": person, "maxItems": 2}),
        json!({"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "maxItems": 3}),
        json!({"anyOf": [{"type": "string", "maxLength": 4}, {"type": "array", "items": {"type": "null"}, "maxItems": 3}]}),
        json!({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 6}]}),
        json!({"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 3}),
    ]
}

#[test]
fn values_are_as_their_schema_says() {
    let tokenizer = bundled();
    let vocabulary = Vocabulary::new(&tokenizer, &[]).unwrap();
    for (i, schema) in (0..).zip(schemas()) {
        let constraint = of_json(&schema).of_text(&tokenizer, &vocabulary).unwrap();
        let mut ended = 0;
        for seed in 0..3 {
            let Some(text) = text(&tokenizer, constraint.clone(), 3 * i + seed) else { continue };
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{schema}: {text:?}: {e}"));
            assert!(is_valid(&value, &schema, &schema), "{schema}: {text:?}");
            ended += 1;
        }
        assert!(ended > 0, "{schema} never ended");
    }
}

/// All texts that a constraint allows, by all tokens on the way.
fn all_texts(tokenizer: &Tokenizer, constraint: &dyn Constraint, bytes: &[u8], texts: &mut BTreeSet<String>) {
    let mut here = constraint.boxed_clone();
    let allowed = here.allowed().unwrap().to_vec();
    for token in (0..tokenizer.n_vocab() as u32).filter(|&token| is_allowed(&allowed, token)) {
        if tokenizer.is_end_of_generation(token) {
            texts.insert(String::from_utf8(bytes.to_vec()).expect("a text ends with a whole character"));
            continue;
        }
        let mut next = here.boxed_clone();
        next.push(token).unwrap();
        let mut bytes = bytes.to_vec();
        tokenizer.append_bytes(token, false, &mut bytes);
        assert!(bytes.len() < 40, "{}", String::from_utf8_lossy(&bytes));
        all_texts(tokenizer, &*next, &bytes, texts);
    }
}

/// Every way through, over tokens that cut words and characters, leads to a value of the schema, and to each of them.
#[test]
fn what_is_allowed_is_exactly_what_the_schema_has() {
    for tokenizer in [tokenizer(byte_level()), tokenizer(sentence_piece())] {
        let vocabulary = Vocabulary::new(&tokenizer, &[]).unwrap();
        for values in [
            json!(["the", "then", "\u{e9}", "t\u{e9}", "an\u{1f3a8}"]),
            json!([true, null, 12, "a"]),
            json!(["a\"b", "a\\", "\n"]),
        ] {
            let constraint = of_json(&json!({"enum": values})).of_text(&tokenizer, &vocabulary).unwrap();
            let mut texts = BTreeSet::new();
            all_texts(&tokenizer, &*constraint, &[], &mut texts);
            let found: Vec<Value> = texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
            let expected = values.as_array().unwrap();
            assert!(expected.iter().all(|value| found.contains(value)), "{texts:?}");
            assert!(found.iter().all(|value| expected.contains(value)), "{texts:?}");
        }
        let constraint = of_json(&json!({"type": "array", "maxItems": 0})).of_text(&tokenizer, &vocabulary).unwrap();
        let words = constraint.boxed_clone().allowed().unwrap().to_vec();
        let ends: Vec<u32> = (0..tokenizer.n_vocab() as u32).filter(|&id| tokenizer.is_end_of_generation(id)).collect();
        assert!(ends.iter().all(|&end| !is_allowed(&words, end)), "nothing may end before it has begun");
    }
}

/// (what a template has, so that it is known by it)
const TEMPLATES: &[&str] = &[
    "<tool_call>",
    "<tool_call><function=",
    "<tool_call><arg_key>",
    "<minimax:tool_call>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁begin｜>```json",
    "[TOOL_CALLS]",
    "[TOOL_CALLS][ARGS]",
    "<|tool_call_start|>",
    "<|tool_call>",
    "<|channel|><|message|>",
];

fn weather() -> Value {
    json!({
        "type": "object", "required": ["city", "days"],
        "$defs": {"unit": {"enum": ["C", "F"]}},
        "properties": {
            "city": {"type": "string", "maxLength": 8, "description": "Where"},
            "unit": {"$ref": "#/$defs/unit"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "kind": {"type": "string", "enum": ["rain", "sun"]},
            "at": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
            "place": {"type": "object", "additionalProperties": false,
                      "properties": {"x": {"type": "number", "minimum": 0, "maximum": 1}, "in": {"type": "boolean"}}},
        },
    })
}

fn tools() -> Vec<Value> {
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    vec![tool("get_weather", weather()), tool("stop-all", Value::Null)]
}

fn calls(of: &[usize]) -> Answer {
    let tools = tools();
    let tool = |i: &usize| Tool {
        name: tools[*i]["function"]["name"].as_str().unwrap().to_owned(),
        parameters: tools[*i]["function"]["parameters"].clone(),
        path: "name".to_owned(),
    };
    Answer { json: None, calls: of.iter().map(tool).collect() }
}

/// (reasoning, content, calls with name and arguments)
fn read(family: &Family, prompt: &str, text: &str) -> (String, String, Vec<(String, Value)>) {
    let mut parser = Parser::new(family, Tools::new(&tools()), prompt);
    let mut said = (String::new(), String::new(), Vec::new());
    let mut deltas = parser.push(text);
    deltas.extend(parser.finish());
    for delta in deltas {
        match delta {
            Delta::Reasoning(text) => said.0 += &text,
            Delta::Content(text) => said.1 += &text,
            Delta::Call(call) => said.2.push((call.name, serde_json::from_str(&call.arguments).unwrap())),
        }
    }
    said
}

/// The byte-level vocabulary with all marks of a family as tokens of this kind (3: control, 4: user-defined).
fn with_marks(family: &Family, kind: i32) -> VocabSource<'static> {
    let mut source = byte_level();
    let marks: BTreeSet<&str> = family.visible().into_iter().collect();
    source.tokens.to_mut().extend(marks.iter().map(|mark| (*mark).to_owned()));
    source.types.to_mut().extend(marks.iter().map(|_| kind));
    source
}

#[test]
fn forced_calls_are_read_back_in_every_family() {
    for template in TEMPLATES {
        let family = Family::of_template(template);
        let (open, close) = family.think_marks().unwrap_or_default();
        // Marks as words of several tokens, and as tokens.
        for source in [byte_level(), with_marks(&family, 3), with_marks(&family, 4)] {
            let tokenizer = tokenizer(source);
            let marks: Vec<u32> =
                family.visible().into_iter().filter_map(|mark| tokenizer.special_token(mark)).collect();
            let vocabulary = Vocabulary::new(&tokenizer, &marks).unwrap();
            let mut seen = BTreeSet::new();
            let constraint = calls(&[0, 1]).of_chat(&family, "", &tokenizer, &vocabulary).unwrap();
            for seed in 0..6 {
                let Some(text) = text_with(&tokenizer, constraint.clone(), seed, ("", open, close)) else { continue };
                let (_, content, calls) = read(&family, "", &text);
                let [(name, arguments)] = &calls[..] else { panic!("{template}: {text:?}: {calls:?}") };
                assert_eq!(content, "", "{template}: {text:?}");
                let schema = if name == "get_weather" { weather() } else { json!({"maxProperties": 0}) };
                assert!(is_valid(arguments, &schema, &schema), "{template}: {text:?}: {arguments}");
                seen.insert(name.clone());
            }
            assert!(!seen.is_empty(), "{template}: no call ended");
            // One of the two alone.
            let constraint = calls(&[1]).of_chat(&family, "", &tokenizer, &vocabulary).unwrap();
            let text = text_with(&tokenizer, constraint, 1, ("", open, close)).unwrap();
            let (_, _, called) = read(&family, "", &text);
            assert_eq!(called, [("stop-all".to_owned(), json!({}))], "{template}: {text:?}");
        }
    }
}

#[test]
fn an_answer_keeps_its_form_after_the_reasoning() {
    let schema = json!({"type": "object", "required": ["a"], "additionalProperties": false,
                        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}}});
    for template in ["</think><tool_call>", "[THINK][TOOL_CALLS]", "<|channel><|tool_call>", "<|channel|><|message|>"] {
        let family = Family::of_template(template);
        let (open, close) = family.think_marks().unwrap();
        for source in [byte_level(), with_marks(&family, 3), with_marks(&family, 4)] {
            let tokenizer = tokenizer(source);
            let marks: Vec<u32> =
                family.visible().into_iter().filter_map(|mark| tokenizer.special_token(mark)).collect();
            let vocabulary = Vocabulary::new(&tokenizer, &marks).unwrap();
            let mut thoughts = 0;
            for (prompt, seed) in [(open, 1), (open, 2), (open, 3), ("", 4), ("", 5), ("", 6)] {
                let constraint = of_json(&schema).of_chat(&family, prompt, &tokenizer, &vocabulary).unwrap();
                let Some(text) = text_with(&tokenizer, constraint, seed, (prompt, open, close)) else { continue };
                // gpt-oss's prompts never begin a thought.
                let text = if family.answer_heads().0.is_empty() { text } else { format!("{prompt}{text}") };
                let (reasoning, content, _) = read(&family, prompt, &text);
                let value: Value =
                    serde_json::from_str(&content).unwrap_or_else(|e| panic!("{template}: {text:?}: {e}"));
                assert!(is_valid(&value, &schema, &schema), "{template}: {text:?}");
                thoughts += usize::from(!reasoning.is_empty());
            }
            assert!(thoughts > 0, "{template}");
        }
    }
    // With tools that need not be called, it is either.
    let family = Family::of_template("<tool_call>");
    let tokenizer = tokenizer(byte_level());
    let vocabulary = Vocabulary::new(&tokenizer, &[]).unwrap();
    let either = Answer { json: Some((schema, "schema".to_owned())), ..calls(&[1]) };
    let constraint = either.of_chat(&family, "", &tokenizer, &vocabulary).unwrap();
    let words = constraint.boxed_clone().allowed().unwrap().to_vec();
    assert!(is_allowed(&words, u32::from(b'<')) && is_allowed(&words, u32::from(b'{')));
}

#[test]
fn what_cannot_be_enforced_is_named() {
    let tokenizer = tokenizer(byte_level());
    let vocabulary = Vocabulary::new(&tokenizer, &[]).unwrap();
    let mut deep = json!({"type": "string"});
    for _ in 0..80 {
        deep = json!({"items": deep});
    }
    let twelve: Vec<Value> = (0..12).map(|i| json!({"type": "string", "pattern": format!("a{i}.*b")})).collect();
    let refs: Vec<Value> = (0..60).map(|_| json!({"$ref": "#/$defs/a"})).collect();
    for (schema, words) in [
        (json!({"not": {"type": "string"}}), "schema cannot be enforced: hotset does not know how to enforce not"),
        (
            json!({"type": "object", "propertyNames": {"maxLength": 3}, "uniqueItems": true}),
            "propertyNames, uniqueItems",
        ),
        (json!({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}), "oneOf must exclude each other"),
        (json!({"type": "string", "pattern": "(?=a)b"}), "schema cannot be enforced"),
        (json!({"type": "string", "format": "poem"}), "schema cannot be enforced"),
        (json!({"type": "poem"}), "schema cannot be enforced"),
        (json!({"$ref": "#/$defs/none"}), "schema cannot be enforced"),
        (json!({"$ref": "https://example.org/s.json"}), "a $ref must lead to a place in the same schema"),
        (json!({"$ref": "#"}), "no text is as it says"),
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), "schema cannot be enforced"),
        (json!({"x-guidance": {"lenient": true}}), "hotset does not know x-guidance"),
        (json!([1]), "schema must be an object that is a JSON schema"),
        (deep, "nests deeper than 64"),
        (json!({"enum": (0..5000).collect::<Vec<_>>()}), "an enum has 5000 values"),
        (json!({"type": "array", "minItems": 1_000_000_000u64}), "minItems must be a whole number of at most 1000"),
        (json!({"type": "string", "maxLength": -1}), "maxLength must be a whole number"),
        (json!({"description": "x".repeat(200_000)}), "and at most 131072 are taken"),
        (
            json!({"allOf": [{"anyOf": twelve}, {"anyOf": twelve}, {"anyOf": twelve}, {"anyOf": twelve}]}),
            "more than 2000 combinations",
        ),
        (json!({"$defs": {"a": {"allOf": refs}}, "allOf": refs}), "more than 2000 combinations"),
    ] {
        let error = of_json(&schema).of_text(&tokenizer, &vocabulary).unwrap_err().to_string();
        assert!(error.contains(words) && error.lines().count() == 1, "{error}");
    }
    let mut bad = calls(&[0]);
    let xml = Family::of_template("<function=");
    let error =
        |answer: &Answer, family: &Family| answer.of_chat(family, "", &tokenizer, &vocabulary).unwrap_err().to_string();
    bad.calls[0].parameters = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}});
    assert!(error(&bad, &xml).contains("the parameters of get_weather.a cannot be enforced: pattern of a string"));
    bad.calls[0].parameters = json!({"type": "object", "anyOf": []});
    assert!(error(&bad, &xml).contains("anyOf beside the properties"));
    bad.calls[0].parameters = json!({"type": "object", "properties": {"a": {"not": {}}}});
    for template in ["<tool_call>", "<function="] {
        let sentence = error(&bad, &Family::of_template(template));
        assert!(
            sentence.contains("the parameters of get_weather cannot be enforced: hotset does not know"),
            "{sentence}"
        );
    }
    bad.calls[0].name = "a b>".to_owned();
    assert!(error(&bad, &xml).contains("name must be of letters"));
    assert!(error(&calls(&[0]), &Family::of_template("")).contains("no calls of tools"));
}
