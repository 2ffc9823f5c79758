//! Requests that are wrong: each gets its status and one sentence that says why, and the server keeps serving.
#![cfg(all(target_os = "linux", feature = "serve"))]

mod common;

use common::server::{Server, raw};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";

/// A sound request for a path, with one more field, which may be one of its own.
fn with(path: &str, name: &str, value: Value) -> String {
    let hi = json!([{"role": "user", "content": "Hi"}]);
    let mut body = match path {
        CHAT => json!({"messages": hi, "max_tokens": 2}),
        TEXT => json!({"prompt": "Hi", "max_tokens": 2}),
        MESSAGES => json!({"messages": hi, "max_tokens": 2}),
        _ => json!({"input": "Hi", "max_output_tokens": 2}),
    };
    body[name] = value;
    body.to_string()
}

fn messages(value: Value) -> String {
    with(CHAT, "messages", value)
}

/// (path, body, status, words of the sentence)
fn table() -> Vec<(&'static str, String, u16, &'static str)> {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let mut table = vec![
        (CHAT, String::new(), 400, "no JSON"),
        (CHAT, "{".into(), 400, "no JSON"),
        (CHAT, "[]".into(), 400, "must be a JSON object"),
        (CHAT, "null".into(), 400, "must be a JSON object"),
        (CHAT, "{\"messages\": [}".into(), 400, "no JSON"),
        (CHAT, "{'messages': 1}".into(), 400, "no JSON"),
        (CHAT, "{\"a\": 1} more".into(), 400, "no JSON"),
        (CHAT, "{\"a\": 1e999}".into(), 400, "messages is missing"),
        (CHAT, format!("{{\"a\": {}{}}}", "[".repeat(500), "]".repeat(500)), 400, "nests deeper than 64"),
        (CHAT, format!("{{\"a\": [{}1]}}", "1,".repeat(110_000)), 400, "more than 100000 values"),
        (CHAT, format!("{{\"a\": \"{}\"}}", "x".repeat(5 << 20)), 413, "the body has more than"),
        (CHAT, "{}".into(), 400, "messages is missing"),
        (CHAT, messages(json!([])), 400, "messages is empty"),
        (CHAT, messages(json!("Hi")), 400, "messages must be a list"),
        (CHAT, messages(json!([1])), 400, "messages[0] must be an object"),
        (CHAT, messages(json!([{"content": "Hi"}])), 400, "messages[0].role is missing"),
        (CHAT, messages(json!([{"role": "pope", "content": "Hi"}])), 400, "messages[0].role must be"),
        (CHAT, messages(json!([{"role": 1, "content": "Hi"}])), 400, "messages[0].role must be a string"),
        (CHAT, messages(json!([{"role": "user"}])), 400, "messages[0].content is missing"),
        (CHAT, messages(json!([{"role": "user", "content": 1}])), 400, "messages[0].content must be"),
        (
            CHAT,
            messages(json!([{"role": "user", "content": [{"type": "image_url"}]}])),
            400,
            "content[0].type must be text",
        ),
        (CHAT, messages(json!([{"role": "user", "content": [{"type": "text"}]}])), 400, "text is missing"),
        (
            CHAT,
            messages(json!([{"role": "user", "content": "Hi", "mood": "x"}])),
            400,
            "messages[0].mood is not supported",
        ),
        (CHAT, messages(json!([{"role": "assistant", "tool_calls": [{}]}])), 400, "function is missing"),
        (CHAT, messages(json!([{"role": "assistant", "tool_calls": 1}])), 400, "tool_calls must be a list"),
        (CHAT, with(CHAT, "model", json!(7)), 400, "model must be a string"),
        (CHAT, with(CHAT, "temperature", json!(-1)), 400, "temperature must be a number from 0 to 100"),
        (CHAT, with(CHAT, "temperature", json!("hot")), 400, "temperature must be a number"),
        (CHAT, with(CHAT, "top_p", json!(1.5)), 400, "top_p must be a number from 0 to 1"),
        (CHAT, with(CHAT, "top_p", json!(0)), 400, "top_p must be above 0"),
        (CHAT, with(CHAT, "top_k", json!(-3)), 400, "top_k must be a whole number"),
        (CHAT, with(CHAT, "top_k", json!(1.5)), 400, "top_k must be a whole number"),
        (CHAT, with(CHAT, "min_p", json!(2)), 400, "min_p must be"),
        (CHAT, with(CHAT, "repeat_penalty", json!(0)), 400, "repeat_penalty must be above 0"),
        (CHAT, with(CHAT, "repeat_last_n", json!(99_999_999)), 400, "repeat_last_n must be"),
        (CHAT, with(CHAT, "seed", json!(-1)), 400, "seed must be"),
        (CHAT, with(CHAT, "seed", json!("x")), 400, "seed must be"),
        (CHAT, with(CHAT, "max_tokens", json!(0)), 400, "max_tokens must be"),
        (CHAT, with(CHAT, "max_tokens", json!(-5)), 400, "max_tokens must be"),
        (CHAT, with(CHAT, "max_completion_tokens", json!("2")), 400, "max_completion_tokens must be"),
        (CHAT, with(CHAT, "n", json!(0)), 400, "n must be a whole number from 1 to 8"),
        (CHAT, with(CHAT, "n", json!(1000)), 400, "n must be"),
        (CHAT, with(CHAT, "stream", json!("yes")), 400, "stream must be true or false"),
        (CHAT, with(CHAT, "stream_options", json!({})), 400, "only for streams"),
        (CHAT, with(CHAT, "stop", json!(1)), 400, "stop must be a string or a list"),
        (CHAT, with(CHAT, "stop", json!([""])), 400, "stop has an empty string"),
        (CHAT, with(CHAT, "stop", json!(vec!["a"; 17])), 400, "stop has 17 strings"),
        (CHAT, with(CHAT, "stop", json!("x".repeat(2000))), 400, "more than 1024 bytes"),
        (CHAT, with(CHAT, "logprobs", json!("yes")), 400, "logprobs must be true or false"),
        (CHAT, with(CHAT, "top_logprobs", json!(3)), 400, "top_logprobs needs logprobs: true"),
        (CHAT, with(CHAT, "top_logprobs", json!(21)), 400, "top_logprobs must be a whole number from 0 to 20"),
        (TEXT, with(TEXT, "logprobs", json!(6)), 400, "logprobs must be a whole number from 0 to 5"),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": "Hi"}], "logprobs": true, "top_logprobs": 20}).to_string(),
            400,
            "with logprobs of 20 more tokens each, an answer has at most 390 tokens",
        ),
        (CHAT, with(CHAT, "frequency_penalty", json!(2.5)), 400, "frequency_penalty must be a number from -2 to 2"),
        (CHAT, with(CHAT, "presence_penalty", json!("x")), 400, "presence_penalty must be a number from -2 to 2"),
        (CHAT, with(CHAT, "logit_bias", json!(7)), 400, "logit_bias must be an object of tokens"),
        (CHAT, with(CHAT, "logit_bias", json!({"99999999": 1})), 400, "logit_bias must be of tokens of the vocabulary"),
        (CHAT, with(CHAT, "logit_bias", json!({"-1": 1})), 400, "logit_bias must be of tokens of the vocabulary"),
        (CHAT, with(CHAT, "logit_bias", json!({"5": "much"})), 400, "logit_bias must be of numbers"),
        (CHAT, with(CHAT, "logit_bias", json!([[5, 1, 1]])), 400, "logit_bias must be pairs"),
        (CHAT, with(CHAT, "logit_bias", json!(vec![[5, 1]; 1025])), 400, "logit_bias has 1025 tokens"),
        (
            CHAT,
            with(CHAT, "response_format", json!({"type": "json_schema"})),
            400,
            "response_format.json_schema is missing",
        ),
        (
            CHAT,
            with(CHAT, "response_format", json!({"type": "xml"})),
            400,
            "response_format.type must be text, json_object",
        ),
        (CHAT, with(CHAT, "response_format", json!("json")), 400, "response_format must be an object"),
        (CHAT, with(CHAT, "tool_choice", json!("required")), 400, "a call of a tool that is not in tools"),
        (
            CHAT,
            with(CHAT, "tool_choice", json!("always")),
            400,
            "tool_choice must be auto, none, required or a function",
        ),
        (CHAT, with(CHAT, "tool_choice", json!({"type": "function"})), 400, "tool_choice names no function"),
        (CHAT, with(CHAT, "tool_choice", json!({"type": "allowed_tools"})), 400, "tool_choice.type is not supported"),
        (MESSAGES, with(MESSAGES, "tool_choice", json!({"type": "tool"})), 400, "tool_choice.name is missing"),
        (
            RESPONSES,
            with(RESPONSES, "text", json!({"format": {"type": "json_schema"}})),
            400,
            "text.format.schema is missing",
        ),
        (CHAT, with(CHAT, "tools", json!([tool])), 400, "tools are not supported"),
        (CHAT, with(CHAT, "tools", json!({})), 400, "tools must be a list"),
        (CHAT, with(CHAT, "reasoning_effort", json!("high")), 400, "reasoning_effort is not supported"),
        (CHAT, with(CHAT, "chat_template_kwargs", json!({"x": 1})), 400, "chat_template_kwargs.x is not supported"),
        (CHAT, with(CHAT, "functions", json!([])), 400, "functions is not supported"),
        (CHAT, with(CHAT, "grammar", json!("x")), 400, "grammar is not supported"),
        (CHAT, with(CHAT, "chat_template", json!("{{ 1 }}")), 400, "chat_template is not supported"),
        (CHAT, with(CHAT, "a\nb", json!(1)), 400, "is not supported"),
        (CHAT, messages(json!([{"role": "user", "content": "long ".repeat(20_000)}])), 400, "the context holds"),
        (TEXT, "{}".into(), 400, "prompt is missing"),
        // A text of nothing but its beginning.
        (TEXT, with(TEXT, "prompt", json!("")), 200, ""),
        (TEXT, with(TEXT, "prompt", json!(["a", "b"])), 400, "prompt must be a string, or a list of tokens"),
        (TEXT, with(TEXT, "prompt", json!([1, 4_000_000_000u64])), 400, "prompt must be a string, or a list of tokens"),
        (TEXT, with(TEXT, "echo", json!(true)), 400, "echo is not supported"),
        (TEXT, with(TEXT, "suffix", json!("x")), 400, "suffix is not supported"),
        (TEXT, with(TEXT, "best_of", json!(4)), 400, "best_of is not supported"),
        (MESSAGES, "{}".into(), 400, "messages is missing"),
        (MESSAGES, json!({"messages": [{"role": "user", "content": "Hi"}]}).to_string(), 400, "max_tokens is missing"),
        (
            MESSAGES,
            with(MESSAGES, "messages", json!([{"role": "tool", "content": ""}])),
            400,
            "messages[0].role must be",
        ),
        (
            MESSAGES,
            with(MESSAGES, "messages", json!([{"role": "user", "content": [{"type": "image"}]}])),
            400,
            "no block of type",
        ),
        (MESSAGES, with(MESSAGES, "tool_choice", json!({"type": "any"})), 400, "a call of a tool that is not in tools"),
        (MESSAGES, with(MESSAGES, "thinking", json!({"type": "enabled"})), 400, "thinking is not supported"),
        (MESSAGES, with(MESSAGES, "stop_sequences", json!([1])), 400, "stop_sequences must be"),
        (MESSAGES, with(MESSAGES, "container", json!("x")), 400, "container is not supported"),
        ("/v1/messages/count_tokens", "{}".into(), 400, "messages is missing"),
        (RESPONSES, "{}".into(), 400, "input is missing"),
        (RESPONSES, with(RESPONSES, "input", json!([{"type": "item_reference"}])), 400, "no item of type"),
        (
            RESPONSES,
            with(RESPONSES, "previous_response_id", json!("resp_1")),
            400,
            "previous_response_id is not supported",
        ),
        (RESPONSES, with(RESPONSES, "store", json!(true)), 400, "store is not supported"),
        (RESPONSES, with(RESPONSES, "background", json!(true)), 400, "background is not supported"),
        ("/tokenize", "{}".into(), 400, "content is missing"),
        ("/tokenize", json!({"content": 1}).to_string(), 400, "content must be a string"),
        ("/v1/nothing", "{}".into(), 404, "no such path"),
        ("/v1/models", "{}".into(), 405, "does not take POST"),
    ];
    table.push((CHAT, with(CHAT, "user", json!({"deep": [1]})), 200, ""));
    table.extend(schemas());
    table
}

/// Schemas that are wrong, not supported, or bombs.
fn schemas() -> Vec<(&'static str, String, u16, &'static str)> {
    let mut deep = json!({"type": "string"});
    for _ in 0..70 {
        deep = json!({"items": deep});
    }
    let refs: Vec<Value> = (0..60).map(|_| json!({"$ref": "#/$defs/a"})).collect();
    let patterns: Vec<Value> = (0..12).map(|i| json!({"type": "string", "pattern": format!("a{i}.*b")})).collect();
    let properties: serde_json::Map<String, Value> =
        (0..1000).map(|i| (format!("p{i}"), json!({"type": "string", "pattern": format!("[a-z]{{{i}}}")}))).collect();
    let schemas = [
        (json!(7), "response_format.json_schema.schema must be an object that is a JSON schema"),
        (
            json!({"not": {}}),
            "response_format.json_schema.schema cannot be enforced: hotset does not know how to enforce not",
        ),
        (json!({"type": "string", "pattern": "(?=a)"}), "cannot be enforced"),
        (json!({"$ref": "#"}), "no text is as it says"),
        (
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            "no text is as it says",
        ),
        (json!({"$ref": "http://127.0.0.1/x"}), "a $ref must lead to a place in the same schema"),
        (deep, "nests deeper than 64"),
        (json!({"enum": (0..25_000).collect::<Vec<_>>()}), "bytes, and at most 131072 are taken"),
        (json!({"enum": (0..5000).collect::<Vec<_>>()}), "an enum has 5000 values"),
        (json!({"minItems": 4_000_000_000u64}), "minItems must be a whole number of at most 1000"),
        (
            json!({"allOf": [{"anyOf": patterns}, {"anyOf": patterns}, {"anyOf": patterns}, {"anyOf": patterns}]}),
            "combinations",
        ),
        (json!({"allOf": refs, "$defs": {"a": {"allOf": refs}}}), "combinations"),
        (
            json!({"type": "object", "properties": properties}),
            "an object has 1000 properties, and at most 400 are taken",
        ),
    ];
    let format = |schema| json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
    let mut all: Vec<_> =
        schemas.map(|(schema, words)| (CHAT, with(CHAT, "response_format", format(schema)), 400, words)).into();
    // Large, but only what is walked through is ever built.
    let nested = json!({"type": "string", "pattern": "((((a{0,900}){0,900}){0,900}){0,900}){0,900}"});
    all.push((CHAT, with(CHAT, "response_format", format(nested)), 200, ""));
    all
}

/// The sentence of an error, in whichever form.
fn sentence(path: &str, body: &str) -> String {
    let value: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}"));
    if path.starts_with(MESSAGES) {
        assert_eq!(value["type"], "error");
    } else {
        assert!(value["error"].as_object().unwrap().contains_key("param"), "{body}");
    }
    assert!(value["error"]["type"].is_string());
    value["error"]["message"].as_str().unwrap().to_owned()
}

#[test]
fn bad_requests_get_a_sentence_and_the_server_keeps_serving() {
    let server = Server::start(&["-c", "512"]);
    let table = table();
    assert!(table.len() > 60);
    let mut wrong = Vec::new();
    for (path, body, status, words) in &table {
        let (got, reply) = server.post(path, body);
        let shown: String = body.chars().take(200).collect();
        if got != *status {
            wrong.push(format!("{path} {shown}: {got} instead of {status}: {reply}"));
        } else if got != 200 {
            let sentence = sentence(path, &reply);
            if !sentence.contains(words) || sentence.contains('\n') {
                wrong.push(format!("{path} {shown}: {sentence}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What is no HTTP, or not as much of it as was said.
    for (bytes, expected) in [
        (b"GARBAGE\r\n\r\n".to_vec(), "400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: ten\r\n\r\n".to_vec(), "400"),
        (format!("GET /health HTTP/1.1\r\n{}\r\n", "X-A: b\r\n".repeat(100)).into_bytes(), "431"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000)).into_bytes(), "4"),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n{}".to_vec(), "413"),
        (
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\n\xff\xfe\xfd"
                .to_vec(),
            "400",
        ),
    ] {
        let reply = raw(&server.address, &bytes);
        let status = reply.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("{reply:?}"));
        assert!(status.starts_with(expected), "{reply:?}");
    }
    // Clients that leave at once, and one that sends nothing at all.
    for _ in 0..20 {
        drop(std::net::TcpStream::connect(&server.address).unwrap());
    }
    let _silent = std::net::TcpStream::connect(&server.address).unwrap();
    let (status, reply) = server.post(TEXT, &with(TEXT, "temperature", json!(0)));
    assert_eq!(status, 200, "{reply}");
    let metrics = server.get("/metrics").1;
    assert!(metrics.contains("hotset_replies_total{status=\"5xx\"} 0"), "{metrics}");
    server.stop();
}
