//! Sessions on [`Tiny`] models, and what they say where there can be none.

use std::path::{Path, PathBuf};

use hotset::{
    Error, Result,
    gguf::Gguf,
    session::{Options, Session},
};

use super::tiny::Tiny;

/// A folder for files, gone with the test.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// An empty one.
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
    /// Writes `model.gguf`.
    pub fn write(&self, tiny: &Tiny) -> PathBuf {
        let path = self.path().join("model.gguf");
        tiny.write(&path);
        path
    }
}

/// One thread; the budget bears no process.
pub fn options() -> Options {
    Options { threads: Some(1), process_bytes: Some(0), ..Options::default() }
}

/// A session on the file.
pub fn open_with(path: &Path, options: Options) -> Result<Session> {
    Session::open(Gguf::open(path)?, &options, &mut |_, _| {})
}

/// A session on the file.
pub fn open(path: &Path) -> Result<Session> {
    open_with(path, options())
}

/// The model must be refused in one sentence that names its file and holds these words.
#[track_caller]
pub fn refused(tiny: &Tiny, words: &[&str]) -> String {
    let folder = Folder::new();
    let path = folder.write(tiny);
    match open(&path) {
        Ok(_) => panic!("accepted, though {words:?}"),
        Err(e) => is_sentence(&path, &e, words),
    }
}

/// The model must open, and then answer a prompt in one sentence that names its file and holds these words, and a decoded token
/// in one that holds the first of them.
#[track_caller]
pub fn stops(tiny: &Tiny, words: &[&str]) -> String {
    let folder = Folder::new();
    let path = folder.write(tiny);
    match open(&path).unwrap().decode(3) {
        Ok(_) => panic!("decoded, though {words:?}"),
        Err(e) => is_sentence(&path, &e, &words[..1]),
    };
    match logits(open(&path).unwrap()) {
        Ok(_) => panic!("answered, though {words:?}"),
        Err(e) => is_sentence(&path, &e, words),
    }
}

#[track_caller]
fn is_sentence(path: &Path, error: &Error, words: &[&str]) -> String {
    let text = error.to_string();
    assert!(text.starts_with(&format!("{}: ", path.display())), "{text}");
    assert!(!text.contains('\n'), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    text
}

/// The bits of the logits of a prompt and two decoded tokens.
pub fn logits(mut session: Session) -> Result<Vec<u32>> {
    let mut bits = Vec::new();
    bits.extend(session.feed(&[3, 1, 4, 1, 5], &mut |_| {})?.iter().map(|x| x.to_bits()));
    for token in [9, 2] {
        bits.extend(session.decode(token)?.iter().map(|x| x.to_bits()));
    }
    Ok(bits)
}

/// [`logits`] of the model in a file.
pub fn bits_of(tiny: &Tiny) -> Vec<u32> {
    let folder = Folder::new();
    logits(open(&folder.write(tiny)).unwrap()).unwrap()
}
