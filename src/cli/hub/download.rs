//! One file from a hub into the cache: in pieces, resumed where it stopped, checked before it takes its name.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use hotset::{Error, Result};
use sha2::{Digest, Sha256};

use super::{Hub, Remote};

/// A connection that stalls is given up after some minutes for each piece, and never costs more than one.
const PIECE: u64 = 64 << 20;

/// Bytes
const BUFFER: usize = 256 << 10;

/// How often in a row no byte may come.
const TRIES: u32 = 5;

const PAUSE: Duration = Duration::from_millis(500);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It was there.
    Before,
    /// So many bytes came now; the others had come before.
    Now(u64),
}

/// Brings `file` to `blob`. `progress` is told the bytes that are there.
///
/// # Errors
/// A hub or a drive that fails: what has come is kept in `blob.incomplete`, and the next call goes on from there. Bytes that
/// are not those that the hub promised: they are removed.
pub fn download(
    hub: &Hub,
    (repo, commit): (&str, &str),
    file: &Remote,
    blob: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Fetched> {
    if fs::metadata(blob).is_ok_and(|m| m.is_file() && m.len() == file.bytes) {
        progress(file.bytes);
        return Ok(Fetched::Before);
    }
    let mut part = Part::open(blob, file)?;
    let before = part.have;
    let mut tries = 0;
    while part.have < file.bytes {
        progress(part.have);
        let had = part.have;
        let to = (had + PIECE).min(file.bytes);
        let came = hub.read(repo, commit, file, had, to).and_then(|(start, body)| part.append(start, body, progress));
        tries = if part.have > had { 0 } else { tries + 1 };
        match came {
            Ok(()) => {}
            // The drive does not get better by asking the hub again.
            Err(e @ Error::Io { .. }) => return Err(e),
            Err(e) if tries >= TRIES => {
                let kept = hotset::human_bytes(part.have);
                return Err(Error::invalid(format!("{e}; {kept} are kept: the same command goes on from there")));
            }
            Err(_) => std::thread::sleep(PAUSE * (1 << tries)),
        }
        if tries >= TRIES {
            return Err(Error::invalid(format!("{repo}: the hub sends nothing of {}", file.name)));
        }
    }
    part.finish(blob, file)?;
    progress(file.bytes);
    Ok(Fetched::Now(file.bytes.saturating_sub(before)))
}

fn hash_all(file: &mut File, hash: &mut Sha256) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    let mut buf = vec![0; BUFFER];
    loop {
        match file.read(&mut buf)? {
            0 => return Ok(()),
            n => hash.update(&buf[..n]),
        }
    }
}

/// The bytes that have come.
struct Part {
    path: PathBuf,
    out: File,
    hash: Sha256,
    have: u64,
    bytes: u64,
}

impl Part {
    /// What an earlier call left, or nothing.
    fn open(blob: &Path, file: &Remote) -> Result<Self> {
        let path = blob.with_file_name(format!("{}.incomplete", file.blob));
        let options = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut out = options.map_err(|e| Error::io(&path, "create", e))?;
        match out.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::invalid(format!("{}: another process is downloading it", path.display())));
            }
            // A file system without locks has to do without.
            Err(TryLockError::Error(_)) => {}
        }
        let have = out.metadata().map_err(|e| Error::io(&path, "look at", e))?.len();
        let have = if have > file.bytes { 0 } else { have };
        out.set_len(have).map_err(|e| Error::io(&path, "shorten", e))?;
        let mut hash = Sha256::new();
        hash_all(&mut out, &mut hash).map_err(|e| Error::io(&path, "read", e))?;
        Ok(Self { path, out, hash, have, bytes: file.bytes })
    }

    /// Adds what comes, which begins at byte `start` of the file.
    fn append(&mut self, start: u64, mut body: impl Read, progress: &mut dyn FnMut(u64)) -> Result<()> {
        if start != self.have {
            // A hub that knows no ranges begins at the beginning.
            self.out.set_len(0).map_err(|e| Error::io(&self.path, "shorten", e))?;
            (self.hash, self.have) = (Sha256::new(), 0);
        }
        let mut buf = vec![0; BUFFER];
        loop {
            let n = match body.read(&mut buf) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) => return Err(Error::invalid(format!("the connection broke: {e}"))),
            };
            if self.have + n as u64 > self.bytes {
                return Err(Error::invalid("the hub sends more bytes than it promised".to_owned()));
            }
            self.out.write_all(&buf[..n]).map_err(|e| Error::io(&self.path, "write", e))?;
            self.hash.update(&buf[..n]);
            self.have += n as u64;
            progress(self.have);
        }
    }

    /// Checks all and gives it its name.
    fn finish(self, blob: &Path, file: &Remote) -> Result<()> {
        let got = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        if let Some(expected) = file.sha256.as_ref().filter(|expected| **expected != got) {
            fs::remove_file(&self.path).map_err(|e| Error::io(&self.path, "remove", e))?;
            let name = &file.name;
            return Err(Error::invalid(format!(
                "{name} came damaged, and was removed: SHA-256 is {got}, not {expected}"
            )));
        }
        self.out.sync_all().map_err(|e| Error::io(&self.path, "write", e))?;
        fs::rename(&self.path, blob).map_err(|e| Error::io(blob, "name", e))
    }
}
