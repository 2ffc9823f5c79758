//! Little-endian primitives from the start of a file, which is read in pieces as the parser needs them.
//!
//! No mapping: one of a whole file is refused where address space is limited, some file systems have none, and a bad sector
//! or a file that shrinks would be a signal instead of an error. What the parser has passed is dropped, so that the largest
//! vocabulary takes no more than a piece of memory, and the largest array its own bytes once more.
//!
//! Must not know: what the bytes mean.

use std::fmt;
use std::path::Path;

use super::{MAX_HEADER_BYTES, decode_bool};
use crate::error::{Error, Result};
use crate::input::{ReadAt, patiently};

/// Bytes to ask for at once.
const PIECE_BYTES: usize = 256 << 10;

/// See the module.
pub(super) struct Cursor<'a> {
    /// What errors name.
    pub path: &'a Path,
    source: &'a dyn ReadAt,
    /// Bytes of the file.
    len: u64,
    /// A piece of the file.
    window: Vec<u8>,
    /// Position in the file of the window's first byte.
    first: u64,
    /// Bytes of the window that have been taken.
    taken: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of a file of `len` bytes.
    pub fn new(path: &'a Path, source: &'a dyn ReadAt, len: u64) -> Self {
        Self { path, source, len, window: Vec::new(), first: 0, taken: 0 }
    }

    /// Bytes taken so far.
    pub fn pos(&self) -> u64 {
        self.first + self.taken as u64
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: u64, what: fmt::Arguments<'_>) -> Result<&[u8]> {
        if self.room() < n {
            let expected = format!("{n} bytes at byte {}", self.pos());
            let got = format!("more than the {} MiB that a header may have", MAX_HEADER_BYTES >> 20);
            return Err(Error::format(self.path, what.to_string(), expected, got));
        }
        if self.left() < n {
            return Err(self.cut(format!("{what} needs {n} bytes at byte {}", self.pos())));
        }
        let n = n as usize;
        if self.window.len() - self.taken < n {
            self.read(n, what)?;
        }
        self.taken += n;
        Ok(&self.window[self.taken - n..self.taken])
    }

    /// Refuses a count of elements of at least `min_bytes` each that cannot fit what is left.
    pub fn check_count(&self, n: u64, min_bytes: u64, what: fmt::Arguments<'_>) -> Result<()> {
        let most = self.room() / min_bytes;
        if n > most {
            let expected = format!("at most {most}, which is what a header of {} MiB can hold", MAX_HEADER_BYTES >> 20);
            return Err(Error::format(self.path, what.to_string(), expected, n));
        }
        if n * min_bytes > self.left() {
            return Err(self.cut(format!("{what}: {n} elements follow byte {}", self.pos())));
        }
        Ok(())
    }

    /// Bytes left in the file.
    fn left(&self) -> u64 {
        self.len - self.pos()
    }

    /// Bytes that the header may still have.
    fn room(&self) -> u64 {
        MAX_HEADER_BYTES as u64 - self.pos()
    }

    fn cut(&self, what: String) -> Error {
        Error::Truncated { path: self.path.to_owned(), len: self.len, what }
    }

    /// Drops what has been taken and reads until there are `n` bytes that have not. The window grows with what comes, never by
    /// `n`, which is only a claim.
    fn read(&mut self, n: usize, what: fmt::Arguments<'_>) -> Result<()> {
        self.window.drain(..self.taken);
        self.first += self.taken as u64;
        self.taken = 0;
        while self.window.len() < n {
            let (start, at) = (self.window.len(), self.first + self.window.len() as u64);
            let end = (self.len - at).min(PIECE_BYTES as u64) as usize + start;
            self.window.resize(end, 0);
            let came = patiently(|e| e, || self.source.read_at(&mut self.window[start..], at));
            self.window.truncate(start + came.as_ref().map_or(0, |&n| n));
            match came {
                Ok(0) => {
                    self.len = at;
                    return Err(self.cut(format!("{what} needs {n} bytes at byte {}", self.pos())));
                }
                Ok(_) => {}
                Err(e) => return Err(Error::io(self.path, format!("read the header at byte {at} ({what})"), e)),
            }
        }
        Ok(())
    }

    pub fn u32(&mut self, what: fmt::Arguments<'_>) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().expect("took 4 bytes")))
    }

    pub fn u64(&mut self, what: fmt::Arguments<'_>) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().expect("took 8 bytes")))
    }

    pub fn bool(&mut self, what: fmt::Arguments<'_>) -> Result<bool> {
        let byte = self.take(1, what)?[0];
        decode_bool(self.path, byte, what)
    }

    pub fn string(&mut self, what: fmt::Arguments<'_>) -> Result<String> {
        self.text(Strings::Strict, what)
    }

    pub fn text(&mut self, strings: Strings, what: fmt::Arguments<'_>) -> Result<String> {
        let n = self.u64(what)?;
        let path = self.path;
        let bytes = self.take(n, what)?;
        match (std::str::from_utf8(bytes), strings) {
            (Ok(s), _) => Ok(s.to_owned()),
            (Err(_), Strings::Lossy) => Ok(String::from_utf8_lossy(bytes).into_owned()),
            (Err(e), Strings::Strict) => {
                let got = format!("byte {:#04x} at {}", bytes[e.valid_up_to()], e.valid_up_to());
                Err(Error::format(path, what.to_string(), "UTF-8", got))
            }
        }
    }
}

/// What to do with strings that are not UTF-8.
#[derive(Clone, Copy)]
pub(super) enum Strings {
    /// Refuse them.
    Strict,
    /// Each wrong sequence of bytes becomes U+FFFD.
    Lossy,
}
