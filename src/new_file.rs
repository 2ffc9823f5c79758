//! A file that appears whole or not at all: written out of sight, given its name when done, gone if that never comes.
//!
//! One that must not replace anything has no name at all while it is written, where Linux lets it (`O_TMPFILE`): then
//! nothing stays behind even if the process is killed or the power fails, and the name is given only if nobody has it,
//! in one step. Elsewhere it stands beside its place under a name of its own, and is removed when dropped.

use std::{
    fs::File,
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// Small writes are gathered up to this; larger ones pass by.
const BUFFER_BYTES: usize = 128 << 10;

/// See the module. Dropped unfinished, it leaves nothing, and what stood in its place stays.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    replace: bool,
    out: BufWriter<Draft>,
}

#[derive(Debug)]
enum Draft {
    Named(NamedTempFile),
    #[cfg(target_os = "linux")]
    Unnamed(File),
}

impl Draft {
    fn file(&self) -> &File {
        match self {
            Draft::Named(file) => file.as_file(),
            #[cfg(target_os = "linux")]
            Draft::Unnamed(file) => file,
        }
    }

    /// A path that opens the draft.
    fn path(&self) -> PathBuf {
        match self {
            Draft::Named(file) => file.path().to_owned(),
            #[cfg(target_os = "linux")]
            Draft::Unnamed(file) => unnamed::path(file),
        }
    }

    fn take_name(self, path: &Path, replace: bool) -> io::Result<()> {
        match self {
            Draft::Named(file) if replace => file.persist(path).map(drop).map_err(|e| e.error),
            Draft::Named(file) => file.persist_noclobber(path).map(drop).map_err(|e| e.error),
            #[cfg(target_os = "linux")]
            Draft::Unnamed(file) => unnamed::take_name(&file, path),
        }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Draft {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file().seek(to)
    }
}

/// Files without names.
#[cfg(target_os = "linux")]
mod unnamed {
    use std::{
        fs::{File, OpenOptions},
        io,
        os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
        path::{Path, PathBuf},
    };

    use rustix::fs::{AtFlags, CWD, OFlags, linkat};

    pub fn path(file: &File) -> PathBuf {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    }

    /// `None` where the file system cannot, or where a name could not be given later.
    pub fn create(folder: &Path) -> Option<File> {
        let flags = OFlags::TMPFILE.bits() as i32;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(folder).ok()?;
        path(&file).symlink_metadata().is_ok().then_some(file)
    }

    pub fn take_name(file: &File, to: &Path) -> io::Result<()> {
        Ok(linkat(CWD, path(file), CWD, to, AtFlags::SYMLINK_FOLLOW)?)
    }
}

impl NewFile {
    /// Starts a file that will replace `path`.
    ///
    /// # Errors
    /// Where the folder is missing or cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::io(path, "create", io::ErrorKind::IsADirectory.into()));
        }
        Self::draft(path, true)
    }

    /// Starts a file that will be `path`, which nothing must have as its name, now or when it is finished.
    ///
    /// # Errors
    /// As [`NewFile::create`], and where there is such a file.
    pub fn create_new(path: &Path) -> Result<Self> {
        Self::refuse_taken(path)?;
        Self::draft(path, false)
    }

    /// # Errors
    /// Where something has this name already.
    pub fn refuse_taken(path: &Path) -> Result<()> {
        if path.symlink_metadata().is_ok() { Err(taken(path)) } else { Ok(()) }
    }

    fn draft(path: &Path, replace: bool) -> Result<Self> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let named = || -> Result<Draft> {
            let builder = tempfile::Builder::new();
            // As for any new file; what the user masks is taken off.
            #[cfg(unix)]
            let builder = {
                let mut builder = builder;
                builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
                builder
            };
            Ok(Draft::Named(builder.tempfile_in(folder).map_err(|e| Error::io(path, "create", e))?))
        };
        #[cfg(target_os = "linux")]
        let draft = match if replace { None } else { unnamed::create(folder) } {
            Some(file) => Draft::Unnamed(file),
            None => named()?,
        };
        #[cfg(not(target_os = "linux"))]
        let draft = named()?;
        Ok(Self { path: path.to_owned(), replace, out: BufWriter::with_capacity(BUFFER_BYTES, draft) })
    }

    /// Takes `bytes` of the drive now, in one piece if it has one, so that a full one is known before the work and not
    /// after it. Where the file system cannot, nothing happens.
    ///
    /// # Errors
    /// Where there is no such room.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        #[cfg(target_os = "linux")]
        if bytes > 0
            && let Err(e) =
                rustix::fs::fallocate(self.out.get_ref().file(), rustix::fs::FallocateFlags::empty(), 0, bytes)
            && e != rustix::io::Errno::OPNOTSUPP
            && e != rustix::io::Errno::NOSYS
        {
            return Err(Error::io(&self.path, format!("reserve {bytes} bytes"), e.into()));
        }
        #[cfg(not(target_os = "linux"))]
        let _ = bytes;
        Ok(())
    }

    /// Appends.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io(&self.path, "write", e))
    }

    /// Writes over what stands at the start.
    ///
    /// # Errors
    /// As [`NewFile::write`].
    pub fn rewrite_start(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.out.seek(SeekFrom::Start(0)).and_then(|_| self.out.write_all(bytes));
        written.map_err(|e| Error::io(&self.path, "write the header", e))
    }

    /// Waits until all that was written is on the drive.
    ///
    /// # Errors
    /// As [`NewFile::write`].
    pub fn sync(&mut self) -> Result<()> {
        let synced = self.out.flush().and_then(|()| self.out.get_ref().file().sync_all());
        synced.map_err(|e| Error::io(&self.path, "write", e))
    }

    /// [`NewFile::sync`], and a path under which what was written can be read until [`NewFile::finish`]. On Linux the
    /// page cache lets go of it first, so that it is the drive that answers.
    ///
    /// # Errors
    /// As [`NewFile::write`].
    pub fn read_back(&mut self) -> Result<PathBuf> {
        self.sync()?;
        let draft = self.out.get_ref();
        #[cfg(target_os = "linux")]
        {
            // Advice: where it is not taken, the bytes are still read again.
            let _ = rustix::fs::fadvise(draft.file(), 0, None, rustix::fs::Advice::DontNeed);
        }
        Ok(draft.path())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// As [`NewFile::write`]; where it must not replace anything, also if there is something by now.
    pub fn finish(self) -> Result<()> {
        let (path, replace) = (self.path, self.replace);
        let draft = self.out.into_inner().map_err(|e| Error::io(&path, "write", e.into_error()))?;
        draft.take_name(&path, replace).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => taken(&path),
            _ => Error::io(&path, "give the finished file its name", e),
        })
    }
}

fn taken(path: &Path) -> Error {
    Error::request(path.display().to_string(), "no such file yet, since nothing is replaced unasked", "one")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands in the folder.
    fn names(folder: &Path) -> Vec<PathBuf> {
        std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect()
    }

    /// The ways of file systems that have unnamed files, and of those that have not.
    fn both_ways(path: &Path) -> [NewFile; 2] {
        let named = NewFile::draft(path, true).unwrap();
        [NewFile::create_new(path).unwrap(), NewFile { replace: false, ..named }]
    }

    #[test]
    fn the_name_comes_last_and_takes_nobodys_place() {
        for way in 0..2 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("new");
            let start = || both_ways(&path).into_iter().nth(way).unwrap();
            let mut file = start();
            file.reserve(1 << 16).unwrap();
            file.write(b"whole").unwrap();
            assert!(std::fs::read(file.read_back().unwrap()).unwrap().starts_with(b"whole"));
            assert!(!path.exists());
            drop(file);
            assert!(names(folder.path()).is_empty(), "nothing stays of an unfinished file");

            let (mut first, mut second) = (start(), start());
            first.write(b"whole").unwrap();
            second.write(b"late").unwrap();
            first.finish().unwrap();
            let text = second.finish().unwrap_err().to_string();
            assert!(text.starts_with(path.to_str().unwrap()) && text.contains("no such file yet"), "{text}");
            assert_eq!((std::fs::read(&path).unwrap(), names(folder.path())), (b"whole".to_vec(), vec![path.clone()]));
            assert!(NewFile::create_new(&path).is_err());
            let mut over = NewFile::create(&path).unwrap();
            over.write(b"other").unwrap();
            over.finish().unwrap();
            assert_eq!((std::fs::read(&path).unwrap(), names(folder.path())), (b"other".to_vec(), vec![path.clone()]));
        }
        assert!(NewFile::create_new(Path::new("/no/such/folder/new")).unwrap_err().to_string().starts_with("/no/such"));
    }
}
