//! How likely the tokens of an answer were: what requests ask for, and what replies say.

use serde_json::{Value, json};

use super::{engine::Probs, error::ApiError, fields::Fields};
use crate::{generate::Rules, tokenizer::Tokenizer};

type Result<T> = std::result::Result<T, ApiError>;

/// Tokens beside each chosen one at most, in chat and in completions.
const MAX_TOP: u64 = 20;
const MAX_TOP_PLAIN: u64 = 5;

/// Tokens, chosen and beside, of an answer at most: they are held until it is complete.
pub const MAX_ENTRIES: usize = 8192;

/// `logprobs` and `top_logprobs` of a chat.
pub fn of_chat(fields: &mut Fields) -> Result<Option<usize>> {
    let on = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, MAX_TOP)?;
    match top {
        Some(top) if !on && top > 0 => Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs: true")),
        top => Ok(on.then(|| top.unwrap_or(0) as usize)),
    }
}

/// `logprobs` of a completion.
pub fn of_completion(fields: &mut Fields) -> Result<Option<usize>> {
    Ok(fields.integer("logprobs", 0, MAX_TOP_PLAIN)?.map(|n| n as usize))
}

/// Refuses what would take too much memory before it is sent.
pub fn check(top: Option<usize>, rules: &Rules, prompt: usize, n_ctx: usize) -> Result<()> {
    let Some(top) = top else { return Ok(()) };
    let tokens = rules.max_tokens.unwrap_or(usize::MAX).min((n_ctx + 1).saturating_sub(prompt));
    let most = MAX_ENTRIES / (1 + top);
    if tokens <= most {
        return Ok(());
    }
    let sentence = format!("with logprobs of {top} more tokens each, an answer has at most {most} tokens (max_tokens)");
    Err(ApiError::field("logprobs", sentence))
}

fn bytes(tokenizer: &Tokenizer, token: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokenizer.append_bytes(token, true, &mut bytes);
    bytes
}

/// JSON has no infinity; so unlikely a token is never drawn, but may be among the likeliest of a strange model.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// `logprobs` of a choice of a chat.
pub fn chat(probs: &[Probs], tokenizer: &Tokenizer) -> Value {
    let one = |token: u32, logprob: f32| {
        let bytes = bytes(tokenizer, token);
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": finite(logprob), "bytes": bytes})
    };
    let entry = |p: &Probs| {
        let mut entry = one(p.token, p.logprob);
        entry["top_logprobs"] = p.top.iter().map(|&(token, logprob)| one(token, logprob)).collect();
        entry
    };
    json!({"content": probs.iter().map(entry).collect::<Vec<_>>(), "refusal": null})
}

/// `logprobs` of a choice of a completion. `offset`: bytes of the text of tokens before these, which is moved on.
pub fn completion(probs: &[Probs], tokenizer: &Tokenizer, offset: &mut usize) -> Value {
    let text = |token: u32| String::from_utf8_lossy(&bytes(tokenizer, token)).into_owned();
    let offsets = probs.iter().map(|p| {
        let at = *offset;
        *offset += text(p.token).len();
        at
    });
    let offsets: Vec<_> = offsets.collect();
    let top = |p: &Probs| p.top.iter().map(|&(t, l)| (text(t), json!(finite(l)))).collect::<serde_json::Map<_, _>>();
    json!({
        "tokens": probs.iter().map(|p| text(p.token)).collect::<Vec<_>>(),
        "token_logprobs": probs.iter().map(|p| finite(p.logprob)).collect::<Vec<_>>(),
        "top_logprobs": probs.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}
