//! Text to tokens and back, and text out of a model.

use std::ffi::{c_char, c_int, c_void};

use hotset::{
    Sampler,
    generate::{self, Event, Speaker, generate},
};

use crate::{
    error::{Code, Failure, call},
    memory::{array, flag, give, put, read, text},
    options::TextOptions,
    session::{Inner, Session, lock},
};

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Finish {
    /// The model ended it.
    End = 0,
    /// A stop string came.
    Stop = 1,
    /// It has as many tokens as were asked for.
    Length = 2,
    /// The context is full.
    Context = 3,
    /// The callback wanted no more.
    Cancelled = 4,
}

impl From<generate::Finish> for Finish {
    fn from(finish: generate::Finish) -> Self {
        match finish {
            generate::Finish::End(_) => Self::End,
            generate::Finish::Stop(_) => Self::Stop,
            generate::Finish::Length => Self::Length,
            generate::Finish::Context => Self::Context,
            generate::Finish::Cancelled => Self::Cancelled,
        }
    }
}

/// Called with each piece of the text: `len` bytes of UTF-8 and a NUL, which live until it returns. A piece is empty where a token
/// completes no character, and after each batch of a long prompt, so that every call is a chance to stop. Returns 0 to stop, anything
/// else to go on. It must not use the session, whose calls are refused meanwhile, nor leave by an exception or longjmp.
pub type OnText = Option<unsafe extern "C" fn(text: *const c_char, len: usize, user: *mut c_void) -> c_int>;

/// Tokens of `len` bytes of text. `add_special` (0 or 1) puts the beginning and end tokens around it that the model's file asks for;
/// `parse_special` reads control tokens that are spelled out in the text, such as those of chat templates, as such.
///
/// `*n_tokens` becomes the number of tokens, also if `tokens` is NULL, which is no error, or too small, which is
/// `HOTSET_CODE_BUFFER_TOO_SMALL`.
///
/// # Safety
/// `session` is NULL or open, `text` is NULL or has `len` bytes, `tokens` is NULL or has room for `capacity`, and `n_tokens` and `error`
/// are NULL or can be written.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no other way to say it")]
pub unsafe extern "C" fn hotset_tokenize(
    session: *const Session,
    text: *const c_char,
    len: usize,
    add_special: u32,
    parse_special: u32,
    tokens: *mut u32,
    capacity: usize,
    n_tokens: *mut usize,
    error: *mut *mut Failure,
) -> Code {
    let done = || {
        // SAFETY: the caller's promise, as in the next two.
        let given = unsafe { self::text(text, len, "text") }?;
        let (add, parse) = (flag(add_special, "add_special")?, flag(parse_special, "parse_special")?);
        // SAFETY: see above.
        let encoded = unsafe { lock(session) }?.tokenizer.encode(given, add, parse);
        // SAFETY: see above.
        unsafe { give(&encoded, tokens, capacity, n_tokens) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(error, done) }
}

/// The text of a sequence of tokens from its beginning, without control tokens: UTF-8, and not ended by a NUL.
///
/// `*len` becomes the number of bytes, also if `text` is NULL, which is no error, or too small, which is
/// `HOTSET_CODE_BUFFER_TOO_SMALL`.
///
/// # Safety
/// `session` is NULL or open, `tokens` is NULL or has `n_tokens`, `text` is NULL or has room for `capacity` bytes, and `len` and
/// `error` are NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_detokenize(
    session: *const Session,
    tokens: *const u32,
    n_tokens: usize,
    text: *mut c_char,
    capacity: usize,
    len: *mut usize,
    error: *mut *mut Failure,
) -> Code {
    let done = || {
        // SAFETY: the caller's promise, as in the next two.
        let tokens = unsafe { array(tokens, n_tokens, "tokens") }?;
        // SAFETY: see above.
        let decoded = unsafe { lock(session) }?.tokenizer.decode(tokens);
        // SAFETY: see above.
        unsafe { give(decoded.as_bytes(), text.cast::<u8>(), capacity, len) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(error, done) }
}

/// Runs `prompt`, of `len` bytes, after the tokens that the session holds, then token after token, and calls `on_text` with each piece
/// of the text, until the model, a limit or the callback ends it; `*finish` says which. Control tokens that are spelled out in the
/// prompt are read as such. The session then holds prompt and text, but for the text's last token, which has not run yet.
///
/// `options` may be NULL: all defaults.
///
/// # Safety
/// `session` is NULL or open, `prompt` is NULL or has `len` bytes, `options` is NULL or has the size that it says, `on_text` is NULL or
/// takes `user`, and `finish` and `error` are NULL or can be written.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no other way to say it")]
pub unsafe extern "C" fn hotset_generate(
    session: *mut Session,
    prompt: *const c_char,
    len: usize,
    options: *const TextOptions,
    on_text: OnText,
    user: *mut c_void,
    finish: *mut Finish,
    error: *mut *mut Failure,
) -> Code {
    let done = || {
        // SAFETY: the caller's promise, as in the next three.
        let prompt = unsafe { text(prompt, len, "prompt") }?;
        let on_text = on_text.ok_or_else(|| Failure::null("on_text"))?;
        // SAFETY: see above.
        let options = unsafe { read(options) }?;
        // SAFETY: see above.
        let rules = unsafe { options.rules() }?;
        // SAFETY: see above.
        let mut inner = unsafe { lock(session) }?;
        let Inner { session, tokenizer } = &mut *inner;
        let mut sampler = Sampler::new(options.sampling(), session.blueprint().n_vocab)?;
        let tokens = tokenizer.encode(prompt, session.n_past() == 0, true);
        let mut piece = Vec::new();
        let mut give = |text: &str| {
            piece.clear();
            piece.extend_from_slice(text.as_bytes());
            piece.push(0);
            // SAFETY: `piece` has the text and a NUL and stays as it is meanwhile; the caller says that the function takes `user`.
            unsafe { on_text(piece.as_ptr().cast::<c_char>(), text.len(), user) != 0 }
        };
        let speaker = Speaker { session, tokenizer, sampler: &mut sampler };
        let ended = generate(speaker, &tokens, &rules, &mut |_, event| {
            Ok::<_, hotset::Error>(match event {
                Event::Prompt { .. } => give(""),
                Event::Token { text, .. } => give(text),
                Event::Rest("") | Event::Decoded => true,
                Event::Rest(text) => give(text),
            })
        })?;
        // SAFETY: the caller's promise.
        unsafe { put(finish, ended.into()) };
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { call(error, done) }
}
