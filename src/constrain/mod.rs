//! Answers of a given form: a JSON schema, or a call of a tool in the format of the model's family. A grammar says after each
//! token which ones may come next, and the sampler takes no other. The grammars are those of the `llguidance` crate.
//!
//! Schemas come from clients and are not trusted: their size is bounded, and so is what compiling and following them takes.
//!
//! Must not know: models, who asks, HTTP.

mod answer;
mod calls;
mod grammar;
mod schema;
mod vocabulary;

pub use answer::{Answer, Tool};
pub use vocabulary::Vocabulary;
