//! A file that appears whole or not at all: written out of sight, given its name when done, gone if that never comes.
//!
//! One rule for all that the program writes. Links are followed, and stay. What is no regular file (a device, a pipe,
//! `/dev/fd/3`) is opened and written in place. A regular file that is there is replaced only where the caller says so, when
//! the new one is done, and keeps its mode and, where we may, its owner.
//!
//! While it is written the file has no name at all, where Linux lets it: nothing stays behind even if the process is killed
//! or the power fails. Elsewhere it stands beside its place under a name of its own, and is removed when dropped;
//! [`remove_drafts`] is for signals.

mod draft;
mod place;

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Seek, Write},
    path::{Path, PathBuf},
};

use draft::Draft;
pub use draft::remove_all as remove_drafts;
pub use place::FileId;
use place::Place;

use crate::{Error, Result};

/// The path that errors of [`NewFile::standard_output`] name.
pub const STDOUT: &str = "standard output";

/// Small writes are gathered up to this; larger ones pass by.
const BUFFER_BYTES: usize = 128 << 10;

/// See the module. Dropped unfinished, it leaves nothing, and what stood in its place stays.
#[derive(Debug)]
pub struct NewFile {
    /// As the caller has it, for errors.
    path: PathBuf,
    out: BufWriter<File>,
    /// `None` where it has its name already, or is written in place.
    draft: Option<Pending>,
    in_place: bool,
}

/// A draft, and what it will be.
#[derive(Debug)]
struct Pending {
    draft: Draft,
    target: PathBuf,
    replace: bool,
}

impl NewFile {
    /// Starts a file that will replace `path`.
    ///
    /// # Errors
    /// Where the folder is missing or cannot be written, and where there is a folder or a file that cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        Self::open(path, true)
    }

    /// Starts a file that will be `path`, which no regular file must have as its name, now or when it is finished.
    ///
    /// # Errors
    /// As [`NewFile::create`], and where there is such a file.
    pub fn create_new(path: &Path) -> Result<Self> {
        Self::open(path, false)
    }

    /// What is written to standard output, in place.
    ///
    /// # Errors
    /// Where there is none.
    pub fn standard_output() -> Result<Self> {
        let path = PathBuf::from(STDOUT);
        #[cfg(unix)]
        let file = std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned();
        #[cfg(windows)]
        let file = std::os::windows::io::AsHandle::as_handle(&io::stdout()).try_clone_to_owned();
        let file = file.map_err(|e| Error::io(&path, "open", e))?;
        Ok(Self { out: BufWriter::with_capacity(BUFFER_BYTES, file.into()), path, draft: None, in_place: true })
    }

    /// [`NewFile::create`] or, where not `replace`, [`NewFile::create_new`].
    ///
    /// # Errors
    /// As these.
    pub fn open(path: &Path, replace: bool) -> Result<Self> {
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::IsADirectory => Error::file(path, "is a directory"),
            _ => Error::io(path, "create", e),
        };
        let (target, old) = match Place::of(path).map_err(failed)? {
            Place::Special(file) => {
                let out = BufWriter::with_capacity(BUFFER_BYTES, file);
                return Ok(Self { path: path.to_owned(), out, draft: None, in_place: true });
            }
            Place::Taken(..) if !replace => return Err(taken(path)),
            Place::Taken(target, old) => {
                // A rename would pass by what forbids to write the file itself.
                OpenOptions::new().write(true).open(&target).map_err(|e| Error::io(path, "replace", e))?;
                (target, Some(old))
            }
            Place::Free(target) => (target, None),
        };
        let (file, draft) = Draft::create(&target, old.as_ref()).map_err(failed)?;
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        let draft = Some(Pending { draft, target, replace });
        Ok(Self { path: path.to_owned(), out, draft, in_place: false })
    }

    /// As the caller named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is no regular file of its own, so that what was written cannot be read back, and is there at once.
    pub fn in_place(&self) -> bool {
        self.in_place
    }

    /// Takes `bytes` of the drive now, in one piece if it has one, so that a full one is known before the work and not
    /// after it. Where the file system cannot, nothing happens.
    ///
    /// # Errors
    /// Where there is no such room.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        #[cfg(target_os = "linux")]
        if bytes > 0
            && !self.in_place
            && let Err(e) = rustix::fs::fallocate(self.out.get_ref(), rustix::fs::FallocateFlags::empty(), 0, bytes)
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

    /// Waits until all that was written is on the drive.
    ///
    /// # Errors
    /// As [`NewFile::write`].
    pub fn sync(&mut self) -> Result<()> {
        let mut synced = self.out.flush();
        if !self.in_place {
            synced = synced.and_then(|()| self.out.get_ref().sync_all());
        }
        synced.map_err(|e| Error::io(&self.path, "write", e))
    }

    /// [`NewFile::sync`], and a path under which what was written can be read until the file has its name; `None` where it is
    /// written in place. On Linux the page cache lets go of it first, so that it is the drive that answers.
    ///
    /// # Errors
    /// As [`NewFile::write`].
    pub fn read_back(&mut self) -> Result<Option<PathBuf>> {
        self.sync()?;
        let file = self.out.get_ref();
        #[cfg(target_os = "linux")]
        if !self.in_place {
            // Advice: where it is not taken, the bytes are still read again.
            let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
        }
        Ok(self.draft.as_ref().map(|pending| pending.draft.path(file)))
    }

    /// Gives the file its name, under which it grows from now on.
    ///
    /// # Errors
    /// As [`NewFile::write`]; where it must not replace anything, also if there is something by now.
    pub fn publish(&mut self) -> Result<()> {
        self.out.flush().map_err(|e| Error::io(&self.path, "write", e))?;
        let Some(Pending { draft, target, replace }) = self.draft.take() else { return Ok(()) };
        match draft.take_name(self.out.get_ref(), &target, replace) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(taken(&self.path)),
            // What is mounted on a file (containers do) cannot be replaced.
            Err(e) if replace && e.kind() == io::ErrorKind::ResourceBusy => {
                self.write_over(&target).map_err(|e| Error::io(&self.path, "write", e))
            }
            Err(e) => Err(Error::io(&self.path, "give the finished file its name", e)),
        }
    }

    /// Copies the draft into the file that is there.
    fn write_over(&mut self, target: &Path) -> io::Result<()> {
        let mut there = OpenOptions::new().write(true).truncate(true).open(target)?;
        let draft = self.out.get_mut();
        draft.rewind()?;
        io::copy(draft, &mut there)?;
        self.out = BufWriter::with_capacity(BUFFER_BYTES, there);
        Ok(())
    }

    /// [`NewFile::sync`], so that no name stands for bytes that found no room, and [`NewFile::publish`].
    ///
    /// # Errors
    /// As these.
    pub fn finish(mut self) -> Result<()> {
        self.sync()?;
        self.publish()
    }
}

fn taken(path: &Path) -> Error {
    Error::invalid(format!("{} already exists (use --force to replace it)", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands in the folder.
    fn names(folder: &Path) -> Vec<PathBuf> {
        let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        names.sort();
        names
    }

    /// A new file on file systems that have unnamed files, or one as on those that have not.
    fn start(path: &Path, replace: bool, named: bool) -> NewFile {
        let file = NewFile::open(path, replace).unwrap();
        if !named {
            return file;
        }
        let target = file.draft.unwrap().target;
        let (out, draft) = Draft::create_named(&target).unwrap();
        let draft = Some(Pending { draft, target, replace });
        NewFile { path: path.to_owned(), out: BufWriter::new(out), draft, in_place: false }
    }

    #[test]
    fn the_name_comes_last_and_takes_nobodys_place() {
        for named in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("new");
            let start = |replace| start(&path, replace, named);
            let mut file = start(false);
            file.reserve(1 << 16).unwrap();
            file.write(b"whole").unwrap();
            assert!(std::fs::read(file.read_back().unwrap().unwrap()).unwrap().starts_with(b"whole"));
            assert!(!path.exists());
            drop(file);
            assert!(names(folder.path()).is_empty(), "nothing stays of an unfinished file");

            let (mut first, mut second) = (start(false), start(false));
            first.write(b"whole").unwrap();
            second.write(b"late").unwrap();
            first.finish().unwrap();
            let text = second.finish().unwrap_err().to_string();
            assert_eq!(text, format!("{} already exists (use --force to replace it)", path.display()));
            assert_eq!((std::fs::read(&path).unwrap(), names(folder.path())), (b"whole".to_vec(), vec![path.clone()]));
            assert_eq!(NewFile::create_new(&path).unwrap_err().to_string(), text);
            let mut over = start(true);
            over.write(b"other").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"whole");
            over.publish().unwrap();
            assert_eq!((std::fs::read(&path).unwrap(), names(folder.path())), (b"other".to_vec(), vec![path.clone()]));
            over.write(b" bytes").unwrap();
            over.finish().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"other bytes", "it grows under its name");
        }
        assert!(NewFile::create_new(Path::new("/no/such/folder/new")).unwrap_err().to_string().starts_with("/no/such"));
    }

    #[test]
    fn drafts_with_names_can_be_removed_from_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        let (first, second) = (start(&one, false, true), start(&two, false, true));
        assert!(names(folder.path()).len() == 2);
        second.finish().unwrap();
        drop(remove_drafts());
        assert_eq!(names(folder.path()), [two], "nothing but drafts");
        drop(first);
    }

    #[cfg(unix)]
    #[test]
    fn what_replaces_a_file_has_its_mode_and_owner_and_links_stay() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
        for named in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let (link, file) = (folder.path().join("link"), folder.path().join("file"));
            symlink("file", &link).unwrap();
            std::fs::write(&file, "old").unwrap();
            let is_root = chown(&file, Some(12), Some(34)).is_ok();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
            let mut new = NewFile::create(&link).unwrap();
            if named {
                let old = std::fs::metadata(&file).unwrap();
                let (out, draft) = Draft::create_named(&file).unwrap();
                draft::keep_owner_and_mode(&out, &old).unwrap();
                new.out = BufWriter::new(out);
                new.draft.as_mut().unwrap().draft = draft;
            }
            new.write(b"new").unwrap();
            new.finish().unwrap();
            let meta = file.symlink_metadata().unwrap();
            assert_eq!((meta.mode() & 0o7777, std::fs::read(&file).unwrap()), (0o640, b"new".to_vec()));
            assert!(meta.is_file() && link.is_symlink() && (!is_root || (meta.uid(), meta.gid()) == (12, 34)));
        }
    }
}
