//! A model in its budget, and the sequence of tokens that it has seen.

use std::{
    ffi::c_char,
    path::Path,
    sync::{Mutex, MutexGuard, TryLockError},
};

use hotset::{Gguf, Tokenizer};

use crate::{
    error::{Code, Failure, call},
    memory::{array, give, put, read, string},
    options::OpenOptions,
};

/// A model within a budget, its tokenizer, and the sequence of tokens that went through it.
pub struct Session(Mutex<Inner>);

pub(crate) struct Inner {
    pub session: hotset::Session,
    pub tokenizer: Tokenizer,
}

/// The session, for this call alone.
///
/// # Safety
/// `session` is NULL, or from `hotset_open` and not closed before the guard is gone.
pub(crate) unsafe fn lock<'a>(session: *const Session) -> Result<MutexGuard<'a, Inner>, Failure> {
    // SAFETY: the caller's promise.
    let session = unsafe { session.as_ref() }.ok_or_else(|| Failure::null("session"))?;
    match session.0.try_lock() {
        Ok(inner) => Ok(inner),
        Err(TryLockError::WouldBlock) => Err(Failure::new(Code::Busy, "the session is in use by another call")),
        Err(TryLockError::Poisoned(_)) => {
            Err(Failure::new(Code::Panic, "an earlier call broke the session, which can only be closed"))
        }
    }
}

fn open(path: &str, options: &hotset::Options) -> hotset::Result<Inner> {
    let gguf = Gguf::open(Path::new(path))?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let session = hotset::Session::open(gguf, options, &mut |_, _| {})?;
    Ok(Inner { session, tokenizer })
}

/// Opens a model file (GGUF; of a split set any file) within a budget: loads the dense weights and makes the slots for experts.
/// `*out` becomes the session, to be closed by `hotset_close`, or NULL. `options` may be NULL: all defaults.
///
/// # Safety
/// `path` and the strings of `options` are NULL or end in NUL; `options` has the size that it says, and `out` and `error` can be
/// written, unless they are NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_open(
    path: *const c_char,
    options: *const OpenOptions,
    out: *mut *mut Session,
    error: *mut *mut Failure,
) -> Code {
    let opened = || {
        // SAFETY: the caller's promise, as in the next three.
        unsafe { put(out, std::ptr::null_mut()) };
        if out.is_null() {
            return Err(Failure::null("out"));
        }
        // SAFETY: see above.
        let path = unsafe { string(path, "path") }?.ok_or_else(|| Failure::null("path"))?;
        // SAFETY: see above.
        let options = unsafe { read(options).and_then(|options| options.library()) }?;
        let session = Box::new(Session(Mutex::new(open(path, &options)?)));
        // SAFETY: see above.
        unsafe { put(out, Box::into_raw(session)) };
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { call(error, opened) }
}

/// Closes a session and frees what it holds; no other call may use it from then on. From inside the session's callback it is refused
/// with `HOTSET_CODE_BUSY`, and the session stays open. NULL is no error.
///
/// # Safety
/// `session` is NULL, or from `hotset_open` and not closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_close(session: *mut Session) -> Code {
    let closed = || {
        // SAFETY: the caller's promise, as in the next one.
        if let Some(open) = unsafe { session.as_ref() } {
            if let Err(TryLockError::WouldBlock) = open.0.try_lock() {
                return Err(Failure::new(Code::Busy, "the session is in use by another call"));
            }
            // SAFETY: `hotset_open` made it by `Box::into_raw`, and nobody uses it.
            drop(unsafe { Box::from_raw(session) });
        }
        Ok(())
    };
    // SAFETY: NULL: nothing is written.
    unsafe { call(std::ptr::null_mut(), closed) }
}

/// Runs tokens after those that the session holds, as a prompt: in batches, each expert read at most once for a batch. The last one's
/// logits are there for `hotset_logits` then. If it fails, the session is as before.
///
/// # Safety
/// `session` is NULL or open, `tokens` is NULL or has `n_tokens`, and `error` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_feed(
    session: *mut Session,
    tokens: *const u32,
    n_tokens: usize,
    error: *mut *mut Failure,
) -> Code {
    let fed = || {
        // SAFETY: the caller's promise, as in the next one.
        let tokens = unsafe { array(tokens, n_tokens, "tokens") }?;
        // SAFETY: see above.
        unsafe { lock(session) }?.session.feed(tokens, &mut |_| {})?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { call(error, fed) }
}

/// Runs one token after those that the session holds, and gives logits for `hotset_logits`. If it fails, the session is as before.
///
/// # Safety
/// `session` is NULL or open, and `error` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_decode(session: *mut Session, token: u32, error: *mut *mut Failure) -> Code {
    let decoded = || {
        // SAFETY: the caller's promise.
        unsafe { lock(session) }?.session.decode(token)?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { call(error, decoded) }
}

/// Copies the logits that the last token gave, one for each token of the vocabulary, and says how many there are. With `logits` NULL
/// it says only that.
///
/// # Safety
/// `session` is NULL or open, `logits` is NULL or has room for `capacity`, and `n_logits` and `error` are NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_logits(
    session: *const Session,
    logits: *mut f32,
    capacity: usize,
    n_logits: *mut usize,
    error: *mut *mut Failure,
) -> Code {
    let given = || {
        // SAFETY: the caller's promise, as in the next one.
        let inner = unsafe { lock(session) }?;
        if !logits.is_null() && inner.session.n_past() == 0 {
            return Err(Failure::invalid("there are no logits before the first token"));
        }
        // SAFETY: see above.
        unsafe { give(inner.session.logits(), logits, capacity, n_logits) }
    };
    // SAFETY: the caller's promise.
    unsafe { call(error, given) }
}

/// Sets another budget while the session is open, from `least_bytes` of its statistics to `most_bytes`. Memory goes back to the system
/// at once, or is used again; what is computed stays the same.
///
/// # Safety
/// `session` is NULL or open, and `error` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_set_memory(session: *mut Session, memory_bytes: u64, error: *mut *mut Failure) -> Code {
    let set = || {
        // SAFETY: the caller's promise.
        unsafe { lock(session) }?.session.set_memory(memory_bytes)?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { call(error, set) }
}

/// Forgets the session's tokens, for a new text. Experts stay in memory.
///
/// # Safety
/// `session` is NULL or open, and `error` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_reset(session: *mut Session, error: *mut *mut Failure) -> Code {
    let reset = || {
        // SAFETY: the caller's promise.
        unsafe { lock(session) }?.session.reset();
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { call(error, reset) }
}

#[cfg(test)]
mod tests {
    use std::ptr::{null, null_mut};

    use super::*;

    #[test]
    fn a_session_that_a_panic_broke_can_only_be_closed() {
        let path =
            std::ffi::CString::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/moe-s-q4_0.gguf")).unwrap();
        let mut session = null_mut();
        // SAFETY: strings end in NUL, and the session is open until it is closed once.
        unsafe {
            assert_eq!(hotset_open(path.as_ptr(), null(), &mut session, null_mut()), Code::Ok);
            let broken = || {
                let _inner = lock(session)?;
                panic!("on purpose: a test of the fence");
            };
            assert_eq!(call(null_mut(), broken), Code::Panic);
            assert_eq!(hotset_reset(session, null_mut()), Code::Panic);
            assert_eq!(hotset_decode(session, 1, null_mut()), Code::Panic);
            assert_eq!(hotset_close(session), Code::Ok);
        }
    }
}
