//! `hotset serve`: what clients get is what `hotset run` prints, however they ask; nobody is lost, and the server ends cleanly.
#![cfg(all(target_os = "linux", feature = "serve"))]

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Stdio,
    time::{Duration, Instant},
};

use common::{opened::Folder, program::command, server::Server};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");
const PROMPT: &str = "Once upon a time there was a king";

/// What `hotset run` makes of the prompt, greedily.
fn run(prompt: &str, tokens: &str) -> String {
    let mut run = command(env!("CARGO_BIN_EXE_hotset"));
    run.args(["run", MODEL, prompt, "-n", tokens, "--temp", "0", "--no-echo", "-q", "--threads", "1", "--warm", "off"]);
    let output = run.stdin(Stdio::null()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn json_of((status, body): (u16, String)) -> Value {
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// The data of a stream's events.
fn events((status, body): (u16, String)) -> Vec<Value> {
    assert_eq!(status, 200, "{body}");
    let data = body.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

fn greedy(more: Value) -> Value {
    let mut body = json!({"temperature": 0, "max_tokens": 24});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn completions_are_what_run_prints() {
    let server = Server::start(&[]);
    let expected = run(PROMPT, "24");
    let reply = json_of(server.post("/v1/completions", &greedy(json!({"prompt": PROMPT})).to_string()));
    let text = reply["choices"][0]["text"].as_str().unwrap();
    assert_eq!(format!("{text}\n"), if text.ends_with('\n') { format!("{expected}\n") } else { expected.clone() });
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(reply["usage"]["completion_tokens"], 24);
    assert_eq!(reply["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let timings = &reply["timings"];
    assert!(timings["hit"].as_u64().unwrap() + timings["miss"].as_u64().unwrap() > 0, "{timings}");
    assert_eq!(timings["prompt_n"], reply["usage"]["prompt_tokens"]);

    // The same as a stream, of a prompt that is there already.
    let body = greedy(json!({"prompt": PROMPT, "stream": true, "stream_options": {"include_usage": true}}));
    let chunks = events(server.post("/v1/completions", &body.to_string()));
    let streamed: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    assert_eq!(streamed, text, "reuse changes nothing");
    let usage = &chunks.last().unwrap()["usage"];
    let (prompt, cached) = (&usage["prompt_tokens"], &usage["prompt_tokens_details"]["cached_tokens"]);
    assert_eq!(prompt.as_u64().unwrap() - 1, cached.as_u64().unwrap(), "all but the token whose logits are wanted");

    // A stop string, tokens as a prompt, and several answers.
    let word = text.split(' ').nth(5).unwrap();
    let reply = json_of(server.post("/v1/completions", &greedy(json!({"prompt": PROMPT, "stop": [word]})).to_string()));
    let stopped = reply["choices"][0]["text"].as_str().unwrap();
    assert_eq!((stopped, &reply["choices"][0]["finish_reason"]), (text.split_once(word).unwrap().0, &json!("stop")));
    let body = json!({"content": PROMPT, "add_special": true}).to_string();
    let tokens = json_of(server.post("/tokenize", &body))["tokens"].clone();
    let reply = json_of(server.post("/v1/completions", &greedy(json!({"prompt": tokens})).to_string()));
    assert_eq!(reply["choices"][0]["text"], text);
    let sampled = |seed: u64| {
        let body = json!({"prompt": PROMPT, "max_tokens": 16, "n": 2, "seed": seed}).to_string();
        let reply = json_of(server.post("/v1/completions", &body));
        [0, 1].map(|i| reply["choices"][i]["text"].as_str().unwrap().to_owned())
    };
    let (first, again, next) = (sampled(5), sampled(5), sampled(6));
    assert_eq!((&first, &first[1]), (&again, &next[0]), "a seed for each answer");
    assert_ne!(first[0], first[1]);
    server.stop();
}

#[test]
fn chats_in_every_form_say_the_same() {
    let folder = Folder::new();
    let template = folder.path().join("t.jinja");
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}<tool_call><think></think>{% if tools %}{% endif %}";
    // Marks stand in a comment, so that the prompt has none.
    let source = source.replace("<tool_call><think></think>", "{# <tool_call> </think> #}assistant:");
    std::fs::write(&template, source).unwrap();
    let server = Server::start(&["--chat-template", template.to_str().unwrap(), "--alias", "small"]);
    let expected = run("user: Hi\nassistant:", "12");
    let expected = expected.strip_suffix('\n').unwrap_or(&expected);
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let body = |more: Value| {
        let mut body = json!({"messages": messages, "temperature": 0, "max_tokens": 12});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let reply = json_of(server.post("/v1/chat/completions", &body(json!({}))));
    let text = reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!((text.as_str(), &reply["model"]), (expected, &json!("small")));
    let chunks = events(server.post("/v1/chat/completions", &body(json!({"stream": true}))));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let streamed: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, text);
    let tool = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    assert_eq!(
        json_of(server.post("/v1/chat/completions", &body(json!({"tools": tool}))))["choices"][0]["message"]["content"],
        text.as_str()
    );

    let reply = json_of(server.post("/v1/messages", &body(json!({}))));
    assert_eq!((&reply["content"][0]["text"], &reply["stop_reason"]), (&json!(text), &json!("max_tokens")));
    let tokens =
        json_of(server.post("/v1/messages/count_tokens", &json!({"messages": messages}).to_string()))["input_tokens"]
            .as_u64();
    let usage = &reply["usage"];
    assert_eq!(
        tokens,
        Some(usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap())
    );
    let stream = events(server.post("/v1/messages", &body(json!({"stream": true}))));
    let kinds: Vec<_> =
        stream.iter().map(|e| e["type"].as_str().unwrap()).filter(|kind| *kind != "content_block_delta").collect();
    assert_eq!(kinds, ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]);
    let streamed: String = stream.iter().filter_map(|e| e["delta"]["text"].as_str()).collect();
    assert_eq!(streamed, text);

    let ask =
        |stream: bool| json!({"input": "Hi", "temperature": 0, "max_output_tokens": 12, "stream": stream}).to_string();
    let reply = json_of(server.post("/v1/responses", &ask(false)));
    assert_eq!((&reply["output"][0]["content"][0]["text"], &reply["status"]), (&json!(text), &json!("incomplete")));
    let stream = events(server.post("/v1/responses", &ask(true)));
    assert!(stream.iter().enumerate().all(|(i, e)| e["sequence_number"] == i), "{stream:?}");
    let deltas = stream.iter().filter(|e| e["type"] == "response.output_text.delta");
    assert_eq!(deltas.filter_map(|e| e["delta"].as_str()).collect::<String>(), text);
    assert_eq!(stream.last().unwrap()["response"]["output"][0]["content"][0]["text"], text.as_str());
    server.stop();
}

#[test]
fn the_key_is_asked_for_and_paths_tell_what_they_are_for() {
    let server = Server::start(&["--api-key", "sesame"]);
    for (headers, status) in [
        ("", 401),
        ("Authorization: Bearer sesam\r\n", 401),
        ("Authorization: Bearer sesame2\r\n", 401),
        ("Authorization: sesame\r\n", 401),
        ("Authorization: Bearer sesame\r\n", 200),
        ("x-api-key: sesame\r\n", 200),
    ] {
        assert_eq!(server.request("GET", "/v1/models", "", headers).0, status, "{headers}");
    }
    assert_eq!(server.get("/health").0, 200);
    let key = "x-api-key: sesame\r\n";
    let models: Value = serde_json::from_str(&server.request("GET", "/v1/models", "", key).1).unwrap();
    assert_eq!(models["data"][0]["id"], "moe-s-q4_0");
    let metrics = server.request("GET", "/metrics", "", key).1;
    for name in [
        "hotset_replies_total{status=\"4xx\"} 4",
        "hotset_memory_budget_bytes ",
        "part=\"slots\"",
        "hotset_context_size_tokens",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
    server.stop();
}

/// Sends a request and does not wait for its reply.
fn begin(server: &Server, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(600))).unwrap();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    stream
}

fn rest(mut stream: TcpStream) -> String {
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

/// The value of a metric.
fn metric(server: &Server, name: &str) -> f64 {
    let text = server.get("/metrics").1;
    let line =
        text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name}: {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(300), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An answer of as many tokens as the context holds.
const ENDLESS: &str = r#"{"prompt": "Once", "max_tokens": 1000000, "ignore_eos": true, "stream": true}"#;

#[test]
fn a_full_queue_says_so_and_clients_that_leave_make_room() {
    let server = Server::start(&["--queue", "2", "-c", "1024", "--parallel", "1"]);
    let long = begin(&server, ENDLESS);
    wait_until("the first runs", || metric(&server, "hotset_requests_running") == 1.0);
    let waiting = [begin(&server, ENDLESS), begin(&server, ENDLESS)];
    wait_until("two wait", || metric(&server, "hotset_requests_queued") == 2.0);
    let full = rest(begin(&server, ENDLESS));
    assert!(full.starts_with("HTTP/1.1 429") && full.to_lowercase().contains("retry-after: 1"), "{full}");
    // They leave, and the next one is answered.
    drop((long, waiting));
    wait_until("nobody waits", || metric(&server, "hotset_requests_queued") == 0.0);
    let (status, _) = server.post("/v1/completions", r#"{"prompt": "Hi", "max_tokens": 1}"#);
    assert_eq!(status, 200);
    assert_eq!(metric(&server, "hotset_requests_queued"), 0.0);
    server.stop();
}

#[test]
fn many_clients_at_once_are_all_answered_alike() {
    for parallel in ["1", "3"] {
        many_clients(&Server::start(&["--queue", "64", "-c", "256", "--parallel", parallel]));
    }
}

fn many_clients(server: &Server) {
    let prompts: Vec<_> = (0..4).map(|i| format!("The {} king", ["first", "second", "third", "fourth"][i])).collect();
    let ask = |prompt: &str| {
        let reply = json_of(
            server.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 8, "temperature": 0}).to_string()),
        );
        reply["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let alone: Vec<_> = prompts.iter().map(|prompt| ask(prompt)).collect();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..32)
            .map(|i| {
                (
                    i,
                    scope.spawn({
                        let (ask, prompts) = (&ask, &prompts);
                        move || ask(&prompts[i % 4])
                    }),
                )
            })
            .collect();
        for (i, client) in clients {
            assert_eq!(client.join().unwrap(), alone[i % 4]);
        }
    });
}

/// A budget of little more than the least: experts have to be read, and whatever four clients want, the process stays within.
#[test]
fn four_busy_clients_stay_within_the_budget() {
    let least = {
        let mut serve = command(env!("CARGO_BIN_EXE_hotset"));
        serve.args(["serve", MODEL, "--port", "0", "-c", "512", "--parallel", "4", "--threads", "1"]);
        let said = serve.args(["--memory", "4096B"]).stdin(Stdio::null()).output().unwrap().stderr;
        let said = String::from_utf8(said).unwrap();
        let least = said.split("at least ").nth(1).unwrap_or_else(|| panic!("{said}"));
        least.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let budget = (least + (2 << 20)).to_string();
    let server = Server::start(&["-c", "512", "--parallel", "4", "--memory", &budget]);
    std::thread::scope(|scope| {
        for client in 0..4 {
            let server = &server;
            scope.spawn(move || {
                for turn in 0..3 {
                    // Of other lengths and beginnings, so that sequences are given up and copied.
                    let prompt = format!("{} {client}{turn} ", "The king ").repeat(3 + 9 * ((client + turn) % 4));
                    let body = json!({"prompt": prompt, "max_tokens": 16, "ignore_eos": true, "logprobs": 5});
                    json_of(server.post("/v1/completions", &body.to_string()));
                }
            });
        }
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_nonzero())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells the peak");
    let peak = peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
    let (budget, read) = (budget.parse::<u64>().unwrap(), metric(&server, "hotset_read_bytes_total"));
    assert!(peak <= budget, "{peak} of {budget} bytes");
    assert!(read > 4e6, "experts are read again and again: {read} bytes");
    server.stop();
}

/// Two conversations that run at once say, turn by turn, what each says alone, and each goes on from what was kept of it.
#[test]
fn interleaved_conversations_are_those_alone() {
    let server = Server::start(&["--parallel", "2", "-c", "512"]);
    let begins = ["Once upon a time there was a king", "The sea was calm, and nobody on the ship"];
    let turn = |text: &str| {
        let reply = json_of(server.post("/v1/completions", &greedy(json!({"prompt": text})).to_string()));
        (reply["choices"][0]["text"].as_str().unwrap().to_owned(), reply["usage"].clone())
    };
    std::thread::scope(|scope| {
        for begin in begins {
            scope.spawn(move || {
                let mut text = begin.to_owned();
                for n in 0..3 {
                    let expected = run(&text, "24");
                    let (said, usage) = turn(&text);
                    assert_eq!(said.trim_end_matches('\n'), expected.trim_end_matches('\n'), "{begin}, turn {n}");
                    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
                    assert!(n == 0 || cached + 16 > usage["prompt_tokens"].as_u64().unwrap(), "{usage}");
                    text = format!("{text}{said} And then the");
                }
            });
        }
    });
    // Answers of one request: its prompt is computed once, whichever comes first.
    let prompt = "A long time ago, in a small house at the end of a street, there lived a woman who had never seen the sea but knew all \
                  of its songs, and taught them to every child that came by";
    let reply = json_of(server.post("/v1/completions", &greedy(json!({"prompt": prompt, "n": 4})).to_string()));
    let texts: Vec<_> = (0..4).map(|i| reply["choices"][i]["text"].as_str().unwrap()).collect();
    let expected = run(prompt, "24");
    assert!(texts.iter().all(|text| text.trim_end_matches('\n') == expected.trim_end_matches('\n')), "{texts:?}");
    assert!(
        metric(&server, "hotset_cached_tokens_total")
            >= 3.0 * (reply["usage"]["prompt_tokens"].as_f64().unwrap() - 1.0)
    );
    server.stop();
}

#[test]
fn probabilities_penalties_and_biases_are_those_of_the_model() {
    let server = Server::start(&["-c", "512"]);
    let chosen = |more: Value| json_of(server.post("/v1/completions", &greedy(more).to_string()));
    let plain = chosen(json!({"prompt": PROMPT, "logprobs": 3}));
    let probs = &plain["choices"][0]["logprobs"];
    let (tokens, top) = (probs["tokens"].as_array().unwrap(), probs["top_logprobs"].as_array().unwrap());
    assert_eq!((tokens.len(), top.len()), (24, 24));
    for i in 0..24 {
        let own = probs["token_logprobs"][i].as_f64().unwrap();
        let best = top[i].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert!(own <= 0.0 && own == best, "the likeliest token is chosen: {probs}");
        let sum: f64 = top[i].as_object().unwrap().values().map(|p| p.as_f64().unwrap().exp()).sum();
        assert!(sum <= 1.0001, "{probs}");
    }
    let text: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert!(text.starts_with(plain["choices"][0]["text"].as_str().unwrap().trim_end()), "{text:?}");
    assert_eq!(probs["text_offset"][1], tokens[0].as_str().unwrap().len());

    // As a chat, whole and in chunks.
    let body = |more: Value| {
        let mut body =
            greedy(json!({"messages": [{"role": "user", "content": "Hi"}], "logprobs": true, "top_logprobs": 2}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let whole = json_of(server.post("/v1/chat/completions", &body(json!({}))))["choices"][0]["logprobs"].clone();
    let content = whole["content"].as_array().unwrap();
    assert_eq!(content.len(), 24);
    assert_eq!(content[0]["top_logprobs"][0]["token"], content[0]["token"]);
    let chunks = events(server.post("/v1/chat/completions", &body(json!({"stream": true}))));
    let streamed = chunks.iter().filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array()).flatten();
    assert_eq!(streamed.collect::<Vec<_>>(), content.iter().collect::<Vec<_>>());

    // A token that is forbidden does not come, and one that is wanted much does.
    let first =
        json_of(server.post("/tokenize", &json!({"content": plain["choices"][0]["text"]}).to_string()))["tokens"][0]
            .clone();
    let forbidden = chosen(json!({"prompt": PROMPT, "logit_bias": {first.to_string(): -100}, "logprobs": 0}));
    assert_ne!(forbidden["choices"][0]["logprobs"]["tokens"][0], tokens[0]);
    let wanted = chosen(json!({"prompt": PROMPT, "logit_bias": [[first, 100]], "logprobs": 0}));
    let wanted = wanted["choices"][0]["logprobs"]["tokens"].as_array().unwrap().clone();
    assert!(wanted.iter().all(|token| *token == tokens[0]), "{wanted:?}");
    // Penalties: what came often comes less often.
    let repeats = |more: Value| {
        let mut all = json!({"prompt": "la la la la la la", "max_tokens": 48, "logprobs": 0, "repeat_last_n": 256});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = chosen(all);
        let tokens: std::collections::BTreeSet<_> = reply["choices"][0]["logprobs"]["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_str().unwrap().to_owned())
            .collect();
        tokens.len()
    };
    let without = repeats(json!({}));
    for more in [json!({"frequency_penalty": 2.0}), json!({"presence_penalty": 2.0}), json!({"repeat_penalty": 2.0})] {
        assert!(repeats(more.clone()) > without, "{more}: {without}");
    }
    server.stop();
}

#[test]
fn the_page_shows_what_the_engine_does() {
    let server = Server::start(&["--api-key", "sesame", "--parallel", "2", "-c", "512"]);
    let (status, page) = server.get("/");
    assert_eq!(status, 200, "the page itself asks for no key");
    // What the page asks for is what there is.
    for path in ["/v1/chat/completions", "/state"] {
        assert!(page.contains(&format!("fetch(\"{path}\"")), "{path}");
    }
    assert!(!page.contains("src=") && !page.contains("<link"), "nothing comes from elsewhere");
    assert_eq!(server.get("/state").0, 401);
    let key = "x-api-key: sesame\r\n";
    let state = || json_of(server.request("GET", "/state", "", key));
    let before = state();
    // Each field that the page reads of the state is there.
    let fields = page
        .match_indices("state.")
        .map(|(at, _)| page[at + 6..].split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap());
    let mut n = 0;
    for field in fields {
        assert!(before.get(field).is_some(), "{field}: {before}");
        n += 1;
    }
    assert!(n >= 10, "{n}");
    let count = |state: &Value| {
        let rows = state["residency"].as_array().unwrap();
        rows.iter().flat_map(|row| row.as_str().unwrap().bytes()).filter(|digit| *digit != b'0').count()
    };
    let ask = greedy(json!({"prompt": PROMPT})).to_string();
    let reply = json_of(server.request("POST", "/v1/completions", &ask, key));
    // The engine is looked at once the answer has gone out.
    wait_until("the answer is listed, and over", || {
        let state = state();
        state["requests"].as_array().unwrap().len() == 1 && state["running"] == 0
    });
    wait_until("experts are in memory", || count(&state()) > count(&before));
    let after = state();
    assert_eq!(after["requests"][0]["prompt_tokens"], reply["usage"]["prompt_tokens"]);
    assert_eq!(after["requests"][0]["generated_tokens"], 24);
    let rows = after["residency"].as_array().unwrap();
    assert!(rows.iter().all(|row| row.as_str().unwrap().bytes().all(|digit| digit.is_ascii_digit())));
    let parts: u64 = after["memory"].as_array().unwrap().iter().map(|part| part["bytes"].as_u64().unwrap()).sum();
    assert!(parts <= after["budget_bytes"].as_u64().unwrap() && parts > 0);
    assert_eq!((&after["parallel"], &after["running"], &after["model"]), (&json!(2), &json!(0), &json!("moe-s-q4_0")));
    server.stop();
}

#[test]
fn slots_go_back_to_the_system_while_nobody_asks() {
    let server = Server::start(&["--idle-release", "3s", "--parallel", "1"]);
    let resident = || {
        let state = json_of(server.get("/state"));
        let rows = state["residency"].as_array().unwrap().clone();
        rows.iter().flat_map(|row| row.as_str().unwrap().bytes()).filter(|digit| *digit != b'0').count()
    };
    let ask = || {
        json_of(server.post("/v1/completions", &greedy(json!({"prompt": PROMPT})).to_string()))["choices"][0]["text"]
            .clone()
    };
    let text = ask();
    wait_until("experts are in memory", || resident() > 0);
    let used = resident();
    wait_until("slots are released", || resident() < used / 2);
    let (left, held) = (resident(), metric(&server, "hotset_resident_bytes"));
    assert_eq!(ask(), text, "an answer is the same");
    wait_until("slots come back", || resident() > 2 * left);
    assert!(metric(&server, "hotset_resident_bytes") > held);
    server.stop();
}

#[test]
fn a_server_that_ends_finishes_what_is_short_and_fails_the_rest_plainly() {
    let server = Server::start(&["-c", "1024", "--parallel", "1"]);
    let short = begin(&server, r#"{"prompt": "Once", "max_tokens": 8, "ignore_eos": true}"#);
    wait_until("it runs, or has", || {
        metric(&server, "hotset_requests_running") == 1.0 || metric(&server, "hotset_generated_tokens_total") > 0.0
    });
    let waits = begin(&server, r#"{"prompt": "Once", "max_tokens": 2, "ignore_eos": true}"#);
    wait_until("the other waits", || {
        metric(&server, "hotset_requests_queued") == 1.0 || metric(&server, "hotset_generated_tokens_total") > 0.0
    });
    kill_process(server.pid(), Signal::TERM).unwrap();
    let reply = rest(short);
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("\"completion_tokens\":8"), "{reply}");
    let reply = rest(waits);
    assert!(reply.starts_with("HTTP/1.1 200") || reply.contains("shutting down"), "{reply}");
}

/// A schema, a forced call and both at once, in every form that a client may ask in; the answer to a plain request stays what it was.
#[test]
fn answers_have_the_form_that_was_asked_for() {
    let folder = Folder::new();
    let template = folder.path().join("t.jinja");
    let source = "{# <tool_call> #}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    std::fs::write(&template, source).unwrap();
    let server = Server::start(&["--chat-template", template.to_str().unwrap(), "-c", "512", "--parallel", "2"]);
    let schema = json!({
        "type": "object", "required": ["name", "ages"], "additionalProperties": false,
        "properties": {"name": {"type": "string", "maxLength": 6},
                       "ages": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "maxItems": 2}},
    });
    let fits = |value: &Value| {
        let ages = value["ages"].as_array().is_some_and(|list| list.len() <= 2 && list.iter().all(Value::is_u64));
        assert!(ages && value["name"].as_str().is_some_and(|name| name.chars().count() <= 6), "{value}");
    };
    let parsed = |text: &Value| fits(&serde_json::from_str(text.as_str().unwrap()).unwrap());
    let messages = json!([{"role": "user", "content": "Tell me of a king"}]);
    let ask = |more: Value| {
        let mut body = json!({"messages": messages, "temperature": 0, "max_tokens": 100});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let plain = json_of(server.post("/v1/chat/completions", &ask(json!({"max_tokens": 8}))));
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    let reply = json_of(server.post("/v1/chat/completions", &ask(json!({"response_format": format}))));
    let said = &reply["choices"][0];
    parsed(&said["message"]["content"]);
    assert_eq!(said["finish_reason"], "stop");
    let chunks = events(server.post("/v1/chat/completions", &ask(json!({"response_format": format, "stream": true}))));
    let streamed: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(json!(streamed), said["message"]["content"]);
    let body = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 100, "response_format": format}).to_string();
    parsed(&json_of(server.post("/v1/completions", &body))["choices"][0]["text"]);
    let format = json!({"type": "json_schema", "name": "x", "schema": schema});
    let body =
        json!({"input": "Hi", "temperature": 0, "max_output_tokens": 100, "text": {"format": format}}).to_string();
    parsed(&json_of(server.post("/v1/responses", &body))["output"][0]["content"][0]["text"]);

    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": schema}});
    let tools = json!([tool("crown"), tool("bury")]);
    let forced = json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false});
    let reply = json_of(server.post("/v1/chat/completions", &ask(forced)));
    let said = &reply["choices"][0];
    assert_eq!((&said["finish_reason"], &said["message"]["content"]), (&json!("tool_calls"), &Value::Null));
    parsed(&said["message"]["tool_calls"][0]["function"]["arguments"]);
    let named =
        json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "bury"}}, "stream": true});
    let chunks = events(server.post("/v1/chat/completions", &ask(named)));
    let calls: Vec<&Value> = chunks
        .iter()
        .map(|c| &c["choices"][0]["delta"]["tool_calls"][0]["function"])
        .filter(|c| !c.is_null())
        .collect();
    assert!(matches!(calls[..], [call] if call["name"] == "bury"), "{calls:?}");
    parsed(&calls[0]["arguments"]);
    let tool = json!({"name": "crown", "input_schema": schema});
    for choice in [json!({"type": "any", "disable_parallel_tool_use": true}), json!({"type": "tool", "name": "crown"})]
    {
        let reply = json_of(server.post("/v1/messages", &ask(json!({"tools": [tool], "tool_choice": choice}))));
        assert_eq!((&reply["stop_reason"], &reply["content"][0]["name"]), (&json!("tool_use"), &json!("crown")));
        fits(&reply["content"][0]["input"]);
    }
    let tool = json!({"type": "function", "name": "crown", "parameters": schema});
    let body =
        json!({"input": "Hi", "temperature": 0, "tools": [tool], "tool_choice": {"type": "function", "name": "crown"}});
    let reply = json_of(server.post("/v1/responses", &body.to_string()));
    assert_eq!((&reply["output"][0]["type"], &reply["output"][0]["name"]), (&json!("function_call"), &json!("crown")));
    parsed(&reply["output"][0]["arguments"]);
    // Two things at once that exclude each other, and a call that is not there.
    let both = json!({"tools": tools, "tool_choice": "required", "response_format": {"type": "json_object"}});
    for (body, words) in [
        (both, "can have no other form"),
        (json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "x"}}}), "not in tools"),
        (json!({"tools": tools, "parallel_tool_calls": false}), "one call at most is enforced only where"),
    ] {
        let (status, reply) = server.post("/v1/chat/completions", &ask(body));
        assert!(status == 400 && reply.contains(words), "{reply}");
    }
    let again = json_of(server.post("/v1/chat/completions", &ask(json!({"max_tokens": 8}))));
    assert_eq!(again["choices"], plain["choices"]);
    server.stop();
}
