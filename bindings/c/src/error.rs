//! What went wrong, by code and by sentence, and the fence at which panics stop.

use std::{
    ffi::{CString, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
};

use hotset::Error;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Code {
    /// All went well.
    Ok = 0,
    /// An argument is NULL that must not be.
    NullArgument = 1,
    /// The caller asked for something that cannot be: an unknown name, a number out of its range, text that is not UTF-8.
    Invalid = 2,
    /// The operating system refused something.
    Io = 3,
    /// A file's contents are wrong, or the file is not whole.
    BadFile = 4,
    /// The file is sound, and asks for something that hotset does not have.
    Unsupported = 5,
    /// The memory budget is too small: `hotset_error_least_bytes` has the smallest one that would do.
    BudgetTooSmall = 6,
    /// The caller's buffer is too small: the length that was written says how large it must be.
    BufferTooSmall = 7,
    /// The session is in use, by another thread or by the callback's own caller.
    Busy = 8,
    /// hotset has a bug. The session can only be closed.
    Panic = 9,
}

/// An error. Owned by whoever received it, until `hotset_error_free`.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    least_bytes: u64,
    message: CString,
}

impl Failure {
    /// One sentence with its code.
    pub(crate) fn new(code: Code, sentence: impl Into<String>) -> Self {
        let sentence = sentence.into().replace('\0', "\\0");
        let message = CString::new(sentence).expect("every NUL was replaced");
        Self { code, least_bytes: 0, message }
    }
    pub(crate) fn null(what: &str) -> Self {
        Self::new(Code::NullArgument, format!("{what} is NULL"))
    }
    pub(crate) fn invalid(sentence: impl Into<String>) -> Self {
        Self::new(Code::Invalid, sentence)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Io { .. } => Code::Io,
            Error::Format { .. } | Error::Truncated { .. } | Error::File { .. } => Code::BadFile,
            Error::Unsupported { .. } => Code::Unsupported,
            Error::BudgetTooSmall { .. } => Code::BudgetTooSmall,
            _ => Code::Invalid,
        };
        let least_bytes = if let Error::BudgetTooSmall { least, .. } = error { least } else { 0 };
        Self { least_bytes, ..Self::new(code, error.to_string()) }
    }
}

/// Runs `f`, stops a panic, and hands what went wrong to the caller.
///
/// # Safety
/// `error` is NULL or can be written.
pub(crate) unsafe fn call(error: *mut *mut Failure, f: impl FnOnce() -> Result<(), Failure>) -> Code {
    // What a panic leaves half done is behind the session's lock, which it poisons.
    let done = catch_unwind(AssertUnwindSafe(f));
    let panicked = || Failure::new(Code::Panic, "hotset has a bug: an invariant does not hold (see standard error)");
    let failure = done.unwrap_or_else(|_| Err(panicked())).err();
    let code = failure.as_ref().map_or(Code::Ok, |failure| failure.code);
    if !error.is_null() {
        let failure = failure.map_or(ptr::null_mut(), |failure| Box::into_raw(Box::new(failure)));
        // SAFETY: not NULL, so the caller says that it can be written.
        unsafe { error.write(failure) };
    }
    code
}

/// The error's code; `HOTSET_CODE_OK` for NULL.
///
/// # Safety
/// `error` is NULL, or from a call of this library and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_error_code(error: *const Failure) -> Code {
    // SAFETY: the caller's promise.
    unsafe { error.as_ref() }.map_or(Code::Ok, |error| error.code)
}

/// The error as one sentence in UTF-8, which lives as long as the error; an empty one for NULL.
///
/// # Safety
/// `error` is NULL, or from a call of this library and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_error_message(error: *const Failure) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { error.as_ref() }.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// The smallest budget that would do, in bytes, of a `HOTSET_CODE_BUDGET_TOO_SMALL`; else 0.
///
/// # Safety
/// `error` is NULL, or from a call of this library and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_error_least_bytes(error: *const Failure) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { error.as_ref() }.map_or(0, |error| error.least_bytes)
}

/// Frees an error. NULL is no error.
///
/// # Safety
/// `error` is NULL, or from a call of this library and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hotset_error_free(error: *mut Failure) {
    if !error.is_null() {
        // SAFETY: `call` made it by `Box::into_raw`, and the caller says that it was not freed.
        drop(unsafe { Box::from_raw(error) });
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::CStr, ptr::null_mut};

    use super::*;

    #[test]
    fn a_panic_is_a_code_and_a_sentence() {
        let mut error = null_mut();
        // SAFETY: the error can be written, is the call's, and is freed once.
        unsafe {
            assert_eq!(call(&mut error, || panic!("on purpose: a test of the fence")), Code::Panic);
            assert_eq!(hotset_error_code(error), Code::Panic);
            assert!(CStr::from_ptr(hotset_error_message(error)).to_str().unwrap().contains("hotset has a bug"));
            hotset_error_free(error);
            assert_eq!(call(&mut error, || Ok(())), Code::Ok);
        }
        assert!(error.is_null());
    }

    #[test]
    fn a_sentence_has_no_nul() {
        assert_eq!(Failure::invalid("a\0b").message.to_str(), Ok("a\\0b"));
    }
}
