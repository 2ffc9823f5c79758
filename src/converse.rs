//! What a conversation needs of a model's file: its tokenizer, its chat template, and both together. `hotset chat` and the server
//! use it.

use std::sync::OnceLock;

use crate::{
    Error, Result,
    chat::{Message, Settings, Template},
    constrain::{Answer, Vocabulary},
    gguf::Gguf,
    sampler::Constraint,
    tokenizer::Tokenizer,
};

/// See the module.
pub struct Converser {
    /// The model's own.
    pub tokenizer: Tokenizer,
    /// The model's own, or the one that was named instead.
    pub template: Template,
    /// The text of the token that begins a text.
    bos: String,
    /// Built when the form of an answer is to be enforced for the first time; or why it cannot be.
    vocabulary: OnceLock<std::result::Result<Vocabulary, String>>,
}

/// What the model is to continue.
pub struct Prompt {
    /// As the template has it.
    pub text: String,
    /// Never empty.
    pub tokens: Vec<u32>,
}

impl Converser {
    /// Of a model, with its own template unless there is another one.
    ///
    /// # Errors
    /// What is wrong with the tokenizer or the template, in one sentence.
    pub fn new(gguf: &Gguf, template: Option<&str>) -> Result<Self> {
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        let source = match template {
            Some(source) => Some(source),
            None => gguf.meta().str("tokenizer.chat_template")?,
        };
        let text_of = |token: Option<u32>| {
            let mut bytes = Vec::new();
            token.inspect(|&token| tokenizer.append_bytes(token, true, &mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let bos = text_of(tokenizer.bos());
        let template = Template::new(source, bos.clone(), text_of(tokenizer.eos()))?;
        Ok(Self { template, bos, tokenizer, vocabulary: OnceLock::new() })
    }

    /// The prompt that these messages make.
    ///
    /// # Errors
    /// What the template says; a prompt without tokens.
    pub fn prompt(&self, messages: &[Message], settings: &Settings) -> Result<Prompt> {
        let text = self.template.render(messages, settings)?;
        // Most templates write the first token themselves.
        let begins = !self.bos.is_empty() && text.starts_with(&self.bos);
        let tokens = self.tokenizer.encode(&text, !begins, true);
        if tokens.is_empty() {
            return Err(Error::invalid("the prompt has no tokens"));
        }
        Ok(Prompt { text, tokens })
    }

    /// What holds the answer to `prompt` to this form; with no prompt, a text from its first token.
    ///
    /// # Errors
    /// Names what cannot be enforced, and why.
    pub fn constraint(&self, answer: &Answer, prompt: Option<&str>) -> Result<Box<dyn Constraint>> {
        let build = || Vocabulary::new(&self.tokenizer, &self.visible()).map_err(|e| e.to_string());
        let vocabulary = self.vocabulary.get_or_init(build).as_ref().map_err(|e| Error::invalid(e.as_str()))?;
        match prompt {
            Some(prompt) => answer.of_chat(self.template.family(), prompt, &self.tokenizer, vocabulary),
            None => answer.of_text(&self.tokenizer, vocabulary),
        }
    }

    /// Control tokens that a parser of the model's text has to see.
    pub fn visible(&self) -> Vec<u32> {
        let marks = self.template.family().visible();
        marks.into_iter().filter_map(|mark| self.tokenizer.special_token(mark)).collect()
    }
}
