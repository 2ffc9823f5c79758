//! Files that are read: opened only where they are regular files, read by position, and patient with errors that pass.
//!
//! One place decides which errors pass ([`Retries`]), so that headers, dense tensors, embedding rows and experts survive the
//! same faults of a drive on every read path.
//!
//! Must not know: what the bytes mean.

use std::{
    fs::{File, FileType},
    io::{self, Read},
    path::Path,
    time::Duration,
};

use crate::error::{Error, Result};

/// How often a read that the system puts off (`EAGAIN`, `ENOMEM`) is tried again: about a second in all.
const PUT_OFF: u32 = 10;

/// How often a read is tried again after an error of the drive (`EIO`) or of the network to it. The kernel has tried as well by
/// then, and a dying drive takes seconds for each.
const FAILED: u32 = 3;

/// How often in a row a read may be interrupted. Some file systems do so whenever a signal is pending.
const INTERRUPTED: u32 = 1000;

/// The first pause before another try; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(1);

/// How often one read has been tried again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retries {
    put_off: u32,
    failed: u32,
    interrupted: u32,
}

impl Retries {
    /// How long to wait before the read is tried again after `error`; `None`: the error stands.
    pub fn pause_after(&mut self, error: &io::Error) -> Option<Duration> {
        use io::ErrorKind::{Interrupted, OutOfMemory, TimedOut, WouldBlock};
        let (count, most) = match error.kind() {
            Interrupted => (&mut self.interrupted, INTERRUPTED),
            WouldBlock | OutOfMemory => (&mut self.put_off, PUT_OFF),
            TimedOut => (&mut self.failed, FAILED),
            _ if is_drive_error(error) => (&mut self.failed, FAILED),
            _ => return None,
        };
        if *count == most {
            return None;
        }
        *count += 1;
        Some(if error.kind() == Interrupted { Duration::ZERO } else { PAUSE * (1 << (*count - 1)) })
    }
}

/// `EIO`, for which the standard library has no name.
fn is_drive_error(error: &io::Error) -> bool {
    #[cfg(unix)]
    return error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    // ERROR_READ_FAULT, ERROR_CRC
    #[cfg(not(unix))]
    return matches!(error.raw_os_error(), Some(30 | 23));
}

/// Calls `read` until it succeeds or fails for good; `source` finds the system's error in its own.
pub fn patiently<T, E>(source: impl Fn(&E) -> &io::Error, mut read: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let mut retries = Retries::default();
    loop {
        let error = match read() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match retries.pause_after(source(&error)) {
            Some(pause) => std::thread::sleep(pause),
            None => return Err(error),
        }
    }
}

/// Something with bytes at positions: a file, or what a test puts in its place.
pub trait ReadAt {
    /// Reads up to `buf.len()` bytes from byte `offset` on; 0 at the end.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    #[cfg(unix)]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buf, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(self, buf, offset)
    }
}

impl ReadAt for &[u8] {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

/// Fills `buf` from byte `offset` on. Short and interrupted reads are continued.
///
/// # Errors
/// What the system says, or `UnexpectedEof`, each with the number of bytes that came before.
pub fn read_full_at(source: &(impl ReadAt + ?Sized), buf: &mut [u8], offset: u64) -> Result<(), (usize, io::Error)> {
    let (mut done, mut interrupted) = (0, 0);
    while done < buf.len() {
        match source.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => return Err((done, io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends there"))),
            Ok(n) => (done, interrupted) = (done + n, 0),
            Err(e) if e.kind() == io::ErrorKind::Interrupted && interrupted < INTERRUPTED => interrupted += 1,
            // Of another kind: a caller that is patient need not count to the limit again.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err((done, io::Error::other(e))),
            Err(e) => return Err((done, e)),
        }
    }
    Ok(())
}

/// Opens a regular file; `action` is what an error says that we could not do.
///
/// # Errors
/// [`Error::Io`], which says what it is where it is no regular file: one cannot read a pipe by position, and to open it would wait
/// for somebody to write.
pub fn open_as(path: &Path, action: &str) -> Result<File> {
    let failed = |source| Error::io(path, action, source);
    let regular = |kind: FileType| match kind.is_file() {
        true => Ok(()),
        false => Err(failed(io::Error::other(format!("it is {}, not a regular file", name_of(kind))))),
    };
    regular(std::fs::metadata(path).map_err(failed)?.file_type())?;
    let file = File::open(path).map_err(failed)?;
    // Once more, since the path may lead elsewhere by now.
    regular(file.metadata().map_err(failed)?.file_type())?;
    Ok(file)
}

/// Opens a regular file.
///
/// # Errors
/// As [`open_as`].
pub fn open(path: &Path) -> Result<File> {
    open_as(path, "open")
}

/// All of a regular file that has at most `most` bytes.
///
/// # Errors
/// As [`open_as`]; a longer file.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    read_limited(path, open(path)?, most, "the most that is read of such a file")
}

/// All that comes from `source`, which is at `path`, if it is at most `most` bytes; `limit` says what these are.
///
/// # Errors
/// [`Error::Io`] for what cannot be read, and for more bytes.
pub fn read_limited(path: &Path, source: impl Read, most: u64, limit: &str) -> Result<Vec<u8>> {
    let failed = |e| Error::io(path, "read", e);
    let mut bytes = Vec::new();
    source.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        let text = format!("it is longer than {}, {limit}", crate::human_bytes(most));
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, text)));
    }
    Ok(bytes)
}

/// Whether something is there that is no regular file: not to be read, and not to be written unasked, since to open a pipe waits
/// for its other end.
pub fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| !meta.is_file())
}

fn name_of(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe";
        } else if kind.is_socket() {
            return "a socket";
        } else if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    if kind.is_dir() { "a directory" } else { "something else" }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Bytes whose reads fail or come short as a script says; `None`: as asked for.
    struct Scripted {
        bytes: Vec<u8>,
        script: RefCell<Vec<Option<io::Result<usize>>>>,
    }

    impl ReadAt for Scripted {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            match self.script.borrow_mut().pop().flatten() {
                Some(Err(e)) => Err(e),
                Some(Ok(most)) => {
                    let n = most.min(buf.len());
                    (&self.bytes[..]).read_at(&mut buf[..n], offset)
                }
                None => (&self.bytes[..]).read_at(buf, offset),
            }
        }
    }

    fn read(script: Vec<Option<io::Result<usize>>>) -> Result<Vec<u8>, io::Error> {
        let source = Scripted { bytes: (0..100).collect(), script: RefCell::new(script) };
        let mut buf = vec![0; 50];
        patiently(|(_, e): &(usize, io::Error)| e, || read_full_at(&source, &mut buf, 25)).map_err(|(_, e)| e)?;
        Ok(buf)
    }

    fn os(code: i32) -> Option<io::Result<usize>> {
        Some(Err(io::Error::from_raw_os_error(code)))
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn errors_that_pass_are_survived_and_others_stand() {
        let right: Vec<u8> = (25..75).collect();
        // EINTR, EIO, EAGAIN, ENOMEM, ETIMEDOUT, short reads, and some of each.
        for script in [
            vec![os(4)],
            vec![os(5)],
            vec![os(5), Some(Ok(7)), os(5)],
            (0..10).map(|_| os(11)).collect(),
            vec![os(12), os(110)],
            vec![Some(Ok(1)), os(4), Some(Ok(30)), os(4)],
        ] {
            let text = format!("{script:?}");
            assert_eq!(read(script).unwrap(), right, "{text}");
        }
        for (script, code) in [
            (vec![os(13)], 13),
            ((0..4).map(|_| os(5)).collect(), 5),
            ((0..11).map(|_| os(11)).collect(), 11),
            (vec![os(9), os(5), os(5)], 9),
        ] {
            assert_eq!(read(script).unwrap_err().raw_os_error(), Some(code));
        }
        assert_eq!(read((0..=INTERRUPTED).map(|_| os(4)).collect()).unwrap_err().kind(), io::ErrorKind::Other);
        let end = read(vec![Some(Ok(0))]).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn no_more_is_read_than_the_limit() {
        let path = Path::new("endless");
        let text = read_limited(path, io::repeat(b'x'), 2048, "the limit").unwrap_err().to_string();
        assert_eq!(text, "endless: cannot read: it is longer than 2.0 KiB, the limit");
        assert_eq!(read_limited(path, &[7; 2048][..], 2048, "the limit").unwrap().len(), 2048);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_refused_by_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let socket = folder.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let device = Path::new("/dev/zero");
        for (path, name) in
            [(&*pipe, "a pipe"), (&*socket, "a socket"), (device, "a device"), (folder.path(), "a directory")]
        {
            let text = open(path).unwrap_err().to_string();
            assert_eq!(text, format!("{}: cannot open: it is {name}, not a regular file", path.display()));
        }
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        open(&file).unwrap();
    }
}
