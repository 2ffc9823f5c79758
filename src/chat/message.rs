//! What is said in a conversation.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// Instructions, as newer clients name them.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool that the model has called.
    Tool,
}

/// A tool that the model calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Ties the answer of the tool to the call. Empty where the model gives none.
    #[serde(default)]
    pub id: String,
    /// The tool.
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// What the model thought before it said that.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reasoning: String,
    /// What the model calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The name of who says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message that is nothing but text.
    pub fn text(role: Role, content: impl Into<String>) -> Self {
        let content = content.into();
        Self { role, content, reasoning: String::new(), tool_calls: Vec::new(), tool_call_id: None, name: None }
    }

    /// The message as templates expect it. Some read a call's arguments as an object, others as a text.
    pub(super) fn for_template(&self, arguments_as_text: bool) -> Value {
        let mut map = serde_json::Map::new();
        map.insert("role".to_owned(), json!(self.role));
        map.insert("content".to_owned(), json!(self.content));
        if !self.reasoning.is_empty() {
            map.insert("reasoning_content".to_owned(), json!(self.reasoning));
            // The same under the name that gpt-oss uses.
            map.insert("thinking".to_owned(), json!(self.reasoning));
        }
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().map(|call| {
                let parsed = || serde_json::from_str(&call.arguments).ok();
                let arguments = if arguments_as_text { None } else { parsed() };
                let arguments = arguments.unwrap_or_else(|| json!(call.arguments));
                json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
            });
            map.insert("tool_calls".to_owned(), calls.collect());
        }
        if let Some(id) = &self.tool_call_id {
            map.insert("tool_call_id".to_owned(), json!(id));
        }
        if let Some(name) = &self.name {
            map.insert("name".to_owned(), json!(name));
        }
        Value::Object(map)
    }
}
