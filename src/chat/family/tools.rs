//! The tools that a client offers, as far as reading a call needs them: the types of parameters that are written without quotes.

use serde_json::Value;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Tools(Vec<(String, Value)>);

impl Tools {
    /// Of tools as `{"type": "function", "function": {"name": …, "parameters": …}}`.
    pub fn new(tools: &[Value]) -> Self {
        let tool = |tool: &Value| {
            let function = &tool["function"];
            Some((function["name"].as_str()?.to_owned(), function["parameters"]["properties"].clone()))
        };
        Self(tools.iter().filter_map(tool).collect())
    }

    /// The value of a parameter that is written as this text: a string where the schema says so, and where it is no JSON.
    pub(super) fn value(&self, tool: &str, parameter: &str, text: &str) -> Value {
        let schema = self.0.iter().find(|(name, _)| name == tool).map(|(_, properties)| &properties[parameter]);
        let as_text = || Value::String(text.to_owned());
        if schema.is_some_and(|schema| schema["type"] == "string") {
            return as_text();
        }
        let text = match text.trim() {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        serde_json::from_str(text).unwrap_or_else(|_| as_text())
    }
}
