//! Conversations as a model reads and writes them: messages to a prompt by the model's template, the model's text to reasoning,
//! an answer and calls of tools.
//!
//! Must not know: models, tokens, files, who asks.

mod date;
mod family;
mod json;
mod message;
mod parser;
mod scanner;
mod template;

pub use date::strftime;
pub use family::{Arguments, CallForm, Family, Part, Strings, Tools};
pub use message::{Message, Role, ToolCall};
pub use parser::{Delta, Parser};
pub use template::{Settings, Template};
