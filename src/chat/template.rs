//! A model's chat template: Jinja as the `transformers` library runs it.
//!
//! The template comes from a file and is not trusted: the steps that it may take are bounded, and so is its output.

use minijinja::{Environment, ErrorKind, Value, context, syntax::SyntaxConfig};
use serde_json::json;

use super::{
    Message,
    date::strftime,
    family::Family,
    json::{of_json, tojson},
};
use crate::{Error, Result};

/// Steps of the template engine that a rendering may take: a conversation of a thousand messages with tools takes less than a
/// million.
const FUEL: u64 = 20_000_000;

/// Bytes that a template may have.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// What a rendering depends on beside the messages.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Tools that the model may call, each as `{"type": "function", "function": …}`.
    pub tools: Vec<serde_json::Value>,
    /// Whether the model thinks first; `None`: as the template has it.
    pub enable_thinking: Option<bool>,
    /// How long it thinks, where the template knows that.
    pub reasoning_effort: Option<String>,
    /// Seconds since 1970, for templates that tell the model the date.
    pub unix_seconds: u64,
}

/// See the module.
pub struct Template {
    /// `None`: there is no template, and messages are continued as plain lines.
    environment: Option<Environment<'static>>,
    family: Family,
    bos: String,
    eos: String,
    knows_thinking: bool,
    knows_effort: bool,
}

impl Template {
    /// A template, with the texts of the tokens that begin and end a text. `None`: messages become lines.
    ///
    /// # Errors
    /// One sentence, if this is no template.
    pub fn new(source: Option<&str>, bos: String, eos: String) -> Result<Self> {
        let text = source.unwrap_or_default();
        if text.len() > MAX_TEMPLATE_BYTES {
            return Err(Error::invalid(format!(
                "the chat template has {} bytes, and at most {MAX_TEMPLATE_BYTES} are read",
                text.len()
            )));
        }
        let environment = source.map(environment).transpose()?;
        Ok(Self {
            environment,
            family: Family::of_template(text),
            bos,
            eos,
            knows_thinking: text.contains("enable_thinking"),
            knows_effort: text.contains("reasoning_effort"),
        })
    }

    /// Whether messages are continued as plain lines, since there is no template.
    pub fn is_plain(&self) -> bool {
        self.environment.is_none()
    }

    /// How the model writes reasoning and calls of tools.
    pub fn family(&self) -> &Family {
        &self.family
    }

    /// Whether `enable_thinking` does anything.
    pub fn knows_thinking(&self) -> bool {
        self.knows_thinking
    }

    /// Whether `reasoning_effort` does anything.
    pub fn knows_effort(&self) -> bool {
        self.knows_effort
    }

    /// The prompt that the model continues with its answer.
    ///
    /// # Errors
    /// One sentence: the template refuses these messages, is wrong, or takes too many steps.
    pub fn render(&self, messages: &[Message], settings: &Settings) -> Result<String> {
        let Some(environment) = &self.environment else { return Ok(as_lines(messages)) };
        let calls = messages.iter().any(|message| !message.tool_calls.is_empty());
        let rendered = self.rendered(environment, messages, settings, false);
        let rendered = match rendered {
            // Templates that put arguments together with other text want them as text.
            Err(_) if calls => self.rendered(environment, messages, settings, true).or(rendered),
            other => other,
        };
        rendered.map_err(|e| Error::invalid(format!("the chat template does not render: {}", sentence(&e))))
    }

    fn rendered(
        &self,
        environment: &Environment<'static>,
        messages: &[Message],
        settings: &Settings,
        arguments_as_text: bool,
    ) -> Result<String, minijinja::Error> {
        let messages: Vec<_> = messages.iter().map(|m| m.for_template(arguments_as_text)).collect();
        let mut values = json!({
            "messages": messages,
            "bos_token": self.bos,
            "eos_token": self.eos,
            "add_generation_prompt": true,
        });
        // Some templates ask whether these are defined, others whether they are none.
        let mut set = |key: &str, value: Option<serde_json::Value>| {
            if let Some(value) = value {
                values[key] = value;
            }
        };
        set("tools", (!settings.tools.is_empty()).then(|| json!(settings.tools)));
        set("enable_thinking", settings.enable_thinking.map(|on| json!(on)));
        set("thinking", settings.enable_thinking.map(|on| json!(on)));
        set("reasoning_effort", settings.reasoning_effort.as_ref().map(|effort| json!(effort)));
        let now = settings.unix_seconds;
        let strftime_now = Value::from_function(move |format: &str| strftime(format, now));
        let template = environment.get_template(NAME)?;
        template.render(context! { strftime_now, ..of_json(&values) })
    }
}

/// The template's name within its environment.
const NAME: &str = "template";

fn environment(source: &str) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("these are no marks that could clash"));
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", |value: &Value, args| tojson(value, args));
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    // The marks of parts that a trainer learns from mean nothing here, and no engine but Python's knows them.
    let source = source.replace("{% generation %}", "").replace("{% endgeneration %}", "");
    let source = source.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "");
    environment
        .add_template_owned(NAME, source)
        .map_err(|e| Error::invalid(format!("the chat template is wrong: {}", sentence(&e))))?;
    Ok(environment)
}

/// What the engine says, in one sentence with its line.
fn sentence(error: &minijinja::Error) -> String {
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it takes too many steps".to_owned(),
        (_, Some(detail)) => detail.to_owned(),
        (kind, None) => kind.to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// Without a template: what was said, a line each, and the model goes on.
fn as_lines(messages: &[Message]) -> String {
    let mut text = String::new();
    for message in messages {
        text.push_str(&message.content);
        if !message.content.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}
