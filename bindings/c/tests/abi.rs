//! The functions called as C calls them, with what C gets wrong: NULL, sizes, names, bytes that are no text, calls at the wrong time.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr::{null, null_mut},
};

use hotset_c::*;

fn model() -> CString {
    CString::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/moe-s-q4_0.gguf")).unwrap()
}

fn options() -> OpenOptions {
    OpenOptions {
        size: size_of::<OpenOptions>(),
        memory_bytes: 0,
        policy: null(),
        prefetch: null(),
        io: null(),
        kv: null(),
        n_ctx: 64,
        n_batch: 0,
        threads: 1,
        io_depth: 0,
        session_only: 1,
        fill: 0,
    }
}

fn text_options() -> TextOptions {
    TextOptions {
        size: size_of::<TextOptions>(),
        stop: null(),
        n_stop: 0,
        seed: 0,
        max_tokens: 4,
        temperature: 0.0,
        top_k: 0,
        top_p: 0.0,
        min_p: 0.0,
        repeat_penalty: 0.0,
        repeat_last_n: 0,
        ignore_end: 0,
    }
}

fn open(options: &OpenOptions) -> Result<*mut Session, (Code, String)> {
    let mut session = null_mut();
    // SAFETY: all of these live until the call returns.
    told(|error| unsafe { hotset_open(model().as_ptr(), options, &mut session, error) })?;
    Ok(session)
}

/// The code and the sentence of a call that failed.
fn told(call: impl FnOnce(*mut *mut Failure) -> Code) -> Result<(), (Code, String)> {
    let mut error = null_mut();
    let code = call(&mut error);
    // SAFETY: the error is NULL or the call's, and freed once.
    let (same, sentence) = unsafe {
        let sentence = CStr::from_ptr(hotset_error_message(error)).to_str().unwrap().to_owned();
        let same = hotset_error_code(error);
        hotset_error_free(error);
        (same, sentence)
    };
    assert_eq!(code, same);
    assert_eq!(code == Code::Ok, sentence.is_empty());
    if code == Code::Ok { Ok(()) } else { Err((code, sentence)) }
}

struct Heard {
    session: *mut Session,
    text: Vec<u8>,
    /// What calls on the session from inside the callback said.
    inside: Vec<Code>,
}

unsafe extern "C" fn hear(text: *const c_char, len: usize, user: *mut c_void) -> c_int {
    // SAFETY: the test passes its own, which nobody else uses meanwhile.
    let heard = unsafe { &mut *user.cast::<Heard>() };
    // SAFETY: the library gives so many bytes and a NUL.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len + 1) };
    assert_eq!(bytes[len], 0);
    heard.text.extend_from_slice(&bytes[..len]);
    // SAFETY: the session is open, and both calls are refused.
    heard.inside.extend(unsafe { [hotset_reset(heard.session, null_mut()), hotset_close(heard.session)] });
    1
}

fn generate(session: *mut Session, prompt: &[u8], options: &TextOptions) -> Result<(Heard, Finish), (Code, String)> {
    let mut heard = Heard { session, text: Vec::new(), inside: Vec::new() };
    let (user, mut finish) = ((&raw mut heard).cast::<c_void>(), Finish::End);
    let (text, len) = (prompt.as_ptr().cast::<c_char>(), prompt.len());
    // SAFETY: all of these live until the call returns.
    told(|error| unsafe { hotset_generate(session, text, len, options, Some(hear), user, &mut finish, error) })?;
    Ok((heard, finish))
}

#[test]
fn null_is_an_error_and_never_a_crash() {
    let session = open(&options()).unwrap();
    let mut out = null_mut();
    let path = model();
    // SAFETY: NULL is what each of these takes, or refuses.
    unsafe {
        for code in [
            hotset_open(null(), null(), &mut out, null_mut()),
            hotset_open(path.as_ptr(), null(), null_mut(), null_mut()),
            hotset_feed(null_mut(), null(), 0, null_mut()),
            hotset_feed(session, null(), 3, null_mut()),
            hotset_decode(null_mut(), 0, null_mut()),
            hotset_logits(null(), null_mut(), 0, null_mut(), null_mut()),
            hotset_logits(session, null_mut(), 0, null_mut(), null_mut()),
            hotset_set_memory(null_mut(), 1, null_mut()),
            hotset_reset(null_mut(), null_mut()),
            hotset_get_stats(session, null_mut(), null_mut()),
            hotset_tokenize(null(), null(), 0, 0, 0, null_mut(), 0, null_mut(), null_mut()),
            hotset_tokenize(session, null(), 5, 0, 0, null_mut(), 0, null_mut(), null_mut()),
            hotset_detokenize(session, null(), 5, null_mut(), 0, null_mut(), null_mut()),
            hotset_generate(session, c"a".as_ptr(), 1, null(), None, null_mut(), null_mut(), null_mut()),
            hotset_generate(session, null(), 1, null(), Some(hear), null_mut(), null_mut(), null_mut()),
        ] {
            assert_eq!(code, Code::NullArgument);
        }
        assert_eq!(hotset_close(null_mut()), Code::Ok);
        assert_eq!(hotset_error_code(null()), Code::Ok);
        assert_eq!(hotset_error_least_bytes(null()), 0);
        hotset_error_free(null_mut());
        assert_eq!(hotset_close(session), Code::Ok);
    }
    assert!(out.is_null());
}

#[test]
fn structs_of_other_versions_are_understood_or_refused() {
    // A newer one: what this version does not know must be zero.
    #[repr(C)]
    struct Newer {
        known: OpenOptions,
        more: [u64; 2],
    }
    let mut newer = Newer { known: options(), more: [0; 2] };
    newer.known.size = size_of::<Newer>();
    let opened = |newer: &Newer| {
        let mut session = null_mut();
        let from = (&raw const *newer).cast::<OpenOptions>();
        // SAFETY: all of these live until the call returns, and the options have the size that they say.
        let told = told(|error| unsafe { hotset_open(model().as_ptr(), from, &mut session, error) });
        // SAFETY: open, or NULL.
        assert_eq!(unsafe { hotset_close(session) }, Code::Ok);
        told
    };
    assert_eq!(opened(&newer), Ok(()));
    newer.more[1] = 1;
    let (code, sentence) = opened(&newer).unwrap_err();
    assert!(code == Code::Invalid && sentence.contains("does not know"), "{sentence}");
    for size in [0, 8, size_of::<OpenOptions>() - 1, 1 << 20, usize::MAX] {
        let (code, sentence) = open(&OpenOptions { size, ..options() }).unwrap_err();
        assert!(code == Code::Invalid && sentence.contains("sizeof(hotset_options)"), "{sentence}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let name = c"fastest".as_ptr();
    let bad = [
        (OpenOptions { policy: name, ..options() }, "policy must be one of lfu-adaptive"),
        (OpenOptions { prefetch: name, ..options() }, "prefetch must be one of auto"),
        (OpenOptions { io: name, ..options() }, "io must be one of pread"),
        (OpenOptions { kv: name, ..options() }, "kv must be one of "),
        (OpenOptions { policy: c"\xff".as_ptr(), ..options() }, "policy is not UTF-8"),
        (OpenOptions { session_only: 2, ..options() }, "session_only must be 0 or 1, not 2"),
        (OpenOptions { fill: 7, ..options() }, "fill must be 0 or 1, not 7"),
        (OpenOptions { n_ctx: u32::MAX, ..options() }, "context length 4294967295"),
    ];
    for (options, expected) in bad {
        let (code, sentence) = open(&options).unwrap_err();
        assert!(code == Code::Invalid && sentence.starts_with(expected), "{expected}: {sentence}");
    }
    let session = open(&OpenOptions { kv: c"q8_0".as_ptr(), policy: c"lru".as_ptr(), ..options() }).unwrap();
    let empty = [c"".as_ptr()];
    let bad = [
        (TextOptions { temperature: f32::NAN, ..text_options() }, "temperature must be"),
        (TextOptions { top_p: -1.0, ..text_options() }, "top_p must be"),
        (TextOptions { ignore_end: 3, ..text_options() }, "ignore_end must be 0 or 1"),
        (TextOptions { stop: empty.as_ptr(), n_stop: 1, ..text_options() }, "a stop string is empty"),
    ];
    for (options, expected) in bad {
        let (code, sentence) = generate(session, b"a", &options).err().unwrap();
        assert!(code == Code::Invalid && sentence.starts_with(expected), "{expected}: {sentence}");
    }
    assert!(generate(session, b"\xff\xfe", &text_options()).err().unwrap().1.contains("prompt is not UTF-8"));
    // SAFETY: open, and closed once.
    assert_eq!(unsafe { hotset_close(session) }, Code::Ok);
}

#[test]
fn a_session_is_refused_to_a_second_call_and_works_after_it() {
    let session = open(&options()).unwrap();
    let (heard, finish) = generate(session, b"Once upon a time", &text_options()).unwrap();
    assert!(finish == Finish::Length && !heard.text.is_empty() && heard.inside.len() >= 8);
    assert!(heard.inside.iter().all(|&code| code == Code::Busy), "{:?}", heard.inside);
    // SAFETY: the session is open.
    unsafe { assert_eq!(hotset_reset(session, null_mut()), Code::Ok) };
    let (again, _) = generate(session, b"Once upon a time", &text_options()).unwrap();
    assert_eq!(again.text, heard.text);
    // SAFETY: open, and closed once.
    assert_eq!(unsafe { hotset_close(session) }, Code::Ok);
}

#[test]
fn a_stop_string_ends_the_text_and_a_full_context_too() {
    let session = open(&options()).unwrap();
    let whole =
        generate(session, b"Once upon a time", &TextOptions { max_tokens: 30, ..text_options() }).unwrap().0.text;
    let whole = String::from_utf8(whole).unwrap();
    let word = whole.split_whitespace().nth(5).unwrap();
    let (text, stop) = (CString::new(word).unwrap(), TextOptions { max_tokens: 30, n_stop: 1, ..text_options() });
    // SAFETY: the session is open.
    unsafe { assert_eq!(hotset_reset(session, null_mut()), Code::Ok) };
    let (heard, finish) =
        generate(session, b"Once upon a time", &TextOptions { stop: [text.as_ptr()].as_ptr(), ..stop }).unwrap();
    assert_eq!(finish, Finish::Stop);
    assert_eq!(String::from_utf8(heard.text).unwrap(), whole[..whole.find(word).unwrap()]);
    let endless = TextOptions { max_tokens: 0, ignore_end: 1, ..text_options() };
    assert_eq!(generate(session, b" and", &endless).unwrap().1, Finish::Context);
    let (code, sentence) = generate(session, b" and", &endless).err().unwrap();
    assert!(code == Code::Invalid && sentence.contains("context of 64 tokens"), "{sentence}");
    // SAFETY: open, and closed once.
    assert_eq!(unsafe { hotset_close(session) }, Code::Ok);
}

#[test]
fn buffers_say_how_large_they_must_be() {
    let session = open(&options()).unwrap();
    let (text, mut n, mut tokens) = ("The old king", 0, [u32::MAX; 16]);
    let (from, len) = (text.as_ptr().cast::<c_char>(), text.len());
    let mut call = |tokens: *mut u32, room| {
        // SAFETY: text and buffer have the lengths that are named.
        let told = told(|error| unsafe { hotset_tokenize(session, from, len, 0, 0, tokens, room, &mut n, error) });
        (told.map_err(|(code, _)| code), n)
    };
    let (asked, count) = call(null_mut(), 0);
    assert!(asked.is_ok() && count >= 3);
    assert_eq!(call(tokens.as_mut_ptr(), count - 1), (Err(Code::BufferTooSmall), count));
    assert_eq!(tokens, [u32::MAX; 16], "nothing is written");
    assert_eq!(call(tokens.as_mut_ptr(), count), (Ok(()), count));
    assert_eq!(tokens[count], u32::MAX);
    let (mut bytes, mut len) = ([0u8; 64], 0);
    let to = bytes.as_mut_ptr().cast::<c_char>();
    // SAFETY: tokens and buffer have the lengths that are named.
    told(|error| unsafe { hotset_detokenize(session, tokens.as_ptr(), count, to, 64, &mut len, error) }).unwrap();
    assert_eq!(&bytes[..len], text.as_bytes());
    let mut logits = vec![0.0; 1];
    let mut read = |room: &mut Vec<f32>| {
        // SAFETY: the buffer has the length that is named.
        told(|error| unsafe { hotset_logits(session, room.as_mut_ptr(), room.len(), &mut n, error) })
    };
    assert_eq!(read(&mut logits).unwrap_err().0, Code::Invalid, "before the first token");
    // SAFETY: tokens have the length that is named.
    told(|error| unsafe { hotset_feed(session, tokens.as_ptr(), count, error) }).unwrap();
    assert_eq!(read(&mut logits).unwrap_err().0, Code::BufferTooSmall);
    let mut all = vec![0.0; 1 << 18];
    read(&mut all).unwrap();
    assert!(n > 100 && all[..n].iter().any(|&x| x != 0.0) && all[n..].iter().all(|&x| x == 0.0));
    // SAFETY: open, and closed once.
    assert_eq!(unsafe { hotset_close(session) }, Code::Ok);
}
