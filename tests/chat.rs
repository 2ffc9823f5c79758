//! Conversations to prompts by templates, and models' texts to reasoning, answers and calls: wherever the text is cut.
#![cfg(feature = "chat")]

mod common;
#[path = "chat/forms.rs"]
mod forms;

use hotset::chat::{Delta, Family, Message, Parser, Role, Settings, Template, ToolCall, Tools};
use serde_json::{Value, json};

/// What a text amounts to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    reasoning: String,
    content: String,
    calls: Vec<(String, Value)>,
}

fn tools() -> Vec<Value> {
    let properties = json!({"city": {"type": "string"}, "days": {"type": "integer"}, "zip": {"type": "string"}});
    vec![
        json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": properties}}}),
    ]
}

fn read(template: &str, prompt: &str, pieces: &[&str]) -> Said {
    let mut parser = Parser::new(&Family::of_template(template), Tools::new(&tools()), prompt);
    let mut said = Said::default();
    let mut deltas: Vec<_> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish());
    for delta in deltas {
        match delta {
            Delta::Reasoning(text) => said.reasoning += &text,
            Delta::Content(text) => said.content += &text,
            Delta::Call(ToolCall { name, arguments, .. }) => {
                said.calls.push((name, serde_json::from_str(&arguments).unwrap_or(Value::String(arguments))));
            }
        }
    }
    said
}

/// The text says this however it is cut in three, and in single characters.
#[track_caller]
fn says(template: &str, prompt: &str, text: &str, reasoning: &str, content: &str, calls: &[(&str, Value)]) {
    let calls = calls.iter().map(|(name, arguments)| ((*name).to_owned(), arguments.clone())).collect();
    let expected = Said { reasoning: reasoning.to_owned(), content: content.to_owned(), calls };
    let cuts: Vec<_> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
    assert_eq!(read(template, prompt, &[text]), expected);
    for &a in &cuts {
        assert_eq!(read(template, prompt, &[&text[..a], &text[a..]]), expected, "cut at {a}");
        let b = (a + 9..=text.len()).find(|&b| text.is_char_boundary(b)).unwrap_or(text.len());
        assert_eq!(read(template, prompt, &[&text[..a], &text[a..b], &text[b..]]), expected, "cut at {a} and {b}");
    }
    let each: Vec<_> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
    assert_eq!(read(template, prompt, &each), expected, "cut everywhere");
}

fn paris() -> Value {
    json!({"city": "Paris", "days": 3})
}

#[test]
fn hermes() {
    let template = "<think> </think> <tool_call>";
    says(
        template,
        "<|im_start|>assistant\n",
        "<think>\nA <b>city</b> → ask.\n</think>\n\nLet me look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\"}\n</tool_call>\n",
        "A <b>city</b> → ask.",
        "Let me look.",
        &[("weather", paris()), ("now", json!({}))],
    );
    says(template, "x<think>\n", "still thinking", "still thinking", "", &[]);
    says(template, "x<think>\n\n</think>\n\n", "  a < b </thin k> ", "", "  a < b </thin k> ", &[]);
    // What cannot be read is not lost.
    let broken = "I\n\n<tool_call>{\"name\": </tool_call> end";
    says(template, "", broken, "", broken, &[]);
    says(template, "", "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}", "", "", &[("now", json!({}))]);
}

#[test]
fn qwen_coder() {
    let template = "<tool_call> <function=x> <parameter=y>";
    let call = "<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=zip>\n75001\n</parameter>\n</function>";
    let arguments = json!({"city": "Paris", "days": 3, "zip": "75001"});
    says(
        template,
        "",
        &format!("One moment.\n\n<tool_call>\n{call}\n</tool_call>"),
        "",
        "One moment.",
        &[("weather", arguments.clone())],
    );
    says(template, "", call, "", "", &[("weather", arguments)]);
    let code = "<tool_call><function=write><parameter=text>\nfn main() {\n}\n\n</parameter></function></tool_call>";
    says(template, "", code, "", "", &[("write", json!({"text": "fn main() {\n}\n"}))]);
}

#[test]
fn glm() {
    says(
        "<think></think> <tool_call> <arg_key>",
        "",
        "<think>hm</think>\nSee:\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        "hm",
        "See:",
        &[("weather", paris())],
    );
}

#[test]
fn minimax() {
    says(
        "<minimax:tool_call> </think>",
        "]~b]ai\n<think>\n",
        "So.\n</think>\n\n<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">Paris</parameter>\n<parameter name=\"days\">3</parameter>\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>",
        "So.",
        "",
        &[("weather", paris()), ("now", json!({}))],
    );
}

#[test]
fn deepseek() {
    let template = "</think> <｜tool▁calls▁begin｜>";
    let old = "Sure.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Paris\", \"days\": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    says(template, "", old, "", "Sure.", &[("weather", paris()), ("now", json!({}))]);
    let new = "Because</think>Sure.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Paris\", \"days\": 3}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    says(template, "<｜Assistant｜><think>", new, "Because", "Sure.", &[("weather", paris())]);
}

#[test]
fn mistral() {
    let template = "[THINK] [TOOL_CALLS]";
    let old = "[TOOL_CALLS][{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}, \"id\": \"a1b2c3d4e\"}]";
    says(template, "", old, "", "", &[("weather", paris())]);
    let new = "[THINK]Well.[/THINK]Yes[TOOL_CALLS]weather[ARGS]{\"city\": \"Paris\", \"days\": 3}[TOOL_CALLS]now[CALL_ID]123[ARGS]{}";
    says(template, "", new, "Well.", "Yes", &[("weather", paris()), ("now", json!({}))]);
}

#[test]
fn lfm2() {
    says(
        "<|tool_call_start|>",
        "",
        "<|tool_call_start|>[weather(city=\"Paris\", days=3), f(a='it\\'s', b=[1, -2.5, True, None], c={'k': \"v\"})]<|tool_call_end|>Checking.",
        "",
        "Checking.",
        &[("weather", paris()), ("f", json!({"a": "it's", "b": [1, -2.5, true, null], "c": {"k": "v"}}))],
    );
    for broken in ["[weather(city=\"Paris]", "[f(a=)]", "[f(", "weather", "[f(a=[[[["] {
        let text = format!("<|tool_call_start|>{broken}<|tool_call_end|>");
        says("<|tool_call_start|>", "", &text, "", &text, &[]);
    }
}

#[test]
fn gemma4() {
    says(
        "<|channel> <|tool_call>",
        "",
        "<|channel>thought\nLet me see.\n<channel|>Now:<|tool_call>call:weather{city:<|\"|>Paris<|\"|>,days:3}<tool_call|><|tool_call>call:f{list:[1,true],o:{s:<|\"|>a \"b\", c<|\"|>}}<tool_call|>",
        "Let me see.",
        "Now:",
        &[("weather", paris()), ("f", json!({"list": [1, true], "o": {"s": "a \"b\", c"}}))],
    );
}

#[test]
fn harmony() {
    let template = "<|channel|> <|message|>";
    says(
        template,
        "<|start|>assistant",
        "<|channel|>analysis<|message|>The user asks.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"Paris\", \"days\": 3}",
        "The user asks.",
        "I look.",
        &[("weather", paris())],
    );
    says(
        template,
        "",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>",
        "a",
        "",
        &[("now", json!({}))],
    );
    says(template, "", "<|channel|>final<|message|>2 < 3\n", "", "2 < 3\n", &[]);
    says(template, "", "no channel", "", "no channel", &[]);
}

#[test]
fn without_marks_a_text_is_as_it_is() {
    says(
        "",
        "<think>",
        " <think>a</think>\n<tool_call>{}</tool_call>\n\n",
        "",
        " <think>a</think>\n<tool_call>{}</tool_call>\n\n",
        &[],
    );
}

/// A template in the manner of the published ones.
const CHATML: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\nTools:\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- "\n" }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' and loop.first %}{{ raise_exception('a tool cannot begin') }}{% endif %}
    {%- if message.role == "developer" %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message.content.strip() }}
    {%- for call in message.tool_calls or [] %}
        {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson if call.function.arguments is mapping else call.function.arguments }}
        {{- '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
{{- strftime_now('%d %b %Y') if date is defined }}"#;

fn template(source: &str) -> Template {
    Template::new(Some(source), "<s>".to_owned(), "</s>".to_owned()).unwrap()
}

#[test]
fn a_template_renders_as_transformers_does() {
    let mut call = Message::text(Role::Assistant, "");
    let arguments = r#"{"zeta": 1, "city": "Zürich"}"#.to_owned();
    call.tool_calls.push(ToolCall { id: "1".to_owned(), name: "weather".to_owned(), arguments });
    let messages = [
        Message::text(Role::User, " Hi "),
        call,
        Message::text(Role::Tool, "rain"),
        Message::text(Role::Developer, "x"),
    ];
    let tool = json!({"type": "function", "function": {"name": "weather", "b": [1, 2.0, null], "a": "<é>"}});
    let settings = Settings { tools: vec![tool], enable_thinking: Some(false), ..Settings::default() };
    let expected = "<|im_start|>system\nTools:\n\
        {\"type\": \"function\", \"function\": {\"name\": \"weather\", \"b\": [1, 2.0, null], \"a\": \"<é>\"}}\n<|im_end|>\n\
        <|im_start|>user\nHi<|im_end|>\n\
        <|im_start|>assistant\n\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"zeta\": 1, \"city\": \"Zürich\"}}\n</tool_call><|im_end|>\n\
        <|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
    assert_eq!(template(CHATML).render(&messages, &settings).unwrap(), expected);
    assert!(template(CHATML).knows_thinking() && !template(CHATML).knows_effort());
    let date = Settings { unix_seconds: 951_782_400, ..Settings::default() };
    assert_eq!(
        template("{{ bos_token }}{{ strftime_now('%d %b %Y') }}{{ eos_token }}").render(&[], &date).unwrap(),
        "<s>29 Feb 2000</s>"
    );
    // One that joins arguments to text gets them as text.
    let joins = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ 'call ' + c.function.arguments }}{% endfor %}{% endfor %}";
    assert_eq!(
        template(joins).render(&messages, &Settings::default()).unwrap(),
        r#"call {"zeta": 1, "city": "Zürich"}"#
    );
}

#[test]
fn what_does_not_render_is_said_in_one_sentence() {
    let user = [Message::text(Role::User, "Hi")];
    for (source, words) in [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}", "too many steps"),
        ("\n\n{{ nothing.at_all }}", "line 3"),
        ("{{ messages | unknown_filter }}", "unknown"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages[0].content / 2 }}", "does not render"),
    ] {
        let source = Template::new(Some(source), String::new(), String::new());
        let told = match source.and_then(|t| t.render(&user, &Settings::default())) {
            Ok(text) => panic!("rendered {text:?}, though {words}"),
            Err(e) => e.to_string(),
        };
        assert!(told.contains("chat template") && told.contains(words) && !told.contains('\n'), "{told}");
    }
    for (source, words) in [("{% if %}", "chat template is wrong"), (&"x".repeat(2 << 20), "bytes")] {
        let told = Template::new(Some(source), String::new(), String::new()).err().expect("no template").to_string();
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn without_a_template_messages_are_lines() {
    let plain = Template::new(None, String::new(), String::new()).unwrap();
    let messages =
        [Message::text(Role::User, "Once"), Message::text(Role::Assistant, "upon\n"), Message::text(Role::User, "a")];
    assert_eq!(plain.render(&messages, &Settings::default()).unwrap(), "Once\nupon\na\n");
    assert!(plain.is_plain() && !plain.family().has_calls());
}
