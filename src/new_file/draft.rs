//! A file while it is written: without a name where the system lets it, else beside its place under one of its own.

use std::{
    fs::{self, File, Metadata},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use tempfile::{Builder, TempPath};

use super::place::folder_of;

/// How a draft's name begins, where it must have one.
const PREFIX: &str = ".hotset-";

/// Drafts with names, for [`remove_all`].
static NAMED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// What is known of a draft besides its open file. Dropped, it is gone.
#[derive(Debug)]
pub enum Draft {
    /// No name: nothing is left of it whatever ends the process.
    #[cfg(target_os = "linux")]
    Unnamed,
    /// A name that must be removed.
    Named(Named),
}

/// A draft's own name, which [`remove_all`] knows.
#[derive(Debug)]
pub struct Named(Option<TempPath>);

impl Drop for Named {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            named().retain(|p| *p != *path);
        }
    }
}

fn named() -> MutexGuard<'static, Vec<PathBuf>> {
    NAMED.lock().expect("nobody panics while holding it")
}

/// Removes all drafts that have names, and lets no new one begin while what it returns is held. Only for a process that ends
/// at once, on a signal: those who write them are not told.
pub fn remove_all() -> MutexGuard<'static, Vec<PathBuf>> {
    let mut all = named();
    all.drain(..).for_each(|path| drop(fs::remove_file(path)));
    all
}

impl Draft {
    /// A new file in the folder of `target`, which gets the owner and mode of the one that it will replace.
    ///
    /// # Errors
    /// What the system says of the folder.
    pub fn create(target: &Path, old: Option<&Metadata>) -> io::Result<(File, Self)> {
        #[cfg(target_os = "linux")]
        let (file, draft) = match unnamed::create(folder_of(target))? {
            Some(file) => (file, Draft::Unnamed),
            None => Self::create_named(target)?,
        };
        #[cfg(not(target_os = "linux"))]
        let (file, draft) = Self::create_named(target)?;
        if let Some(old) = old {
            keep_owner_and_mode(&file, old)?;
        }
        Ok((file, draft))
    }

    /// As [`Draft::create`] where the file system has only files with names.
    pub fn create_named(target: &Path) -> io::Result<(File, Self)> {
        let mut builder = Builder::new();
        builder.prefix(PREFIX);
        // As for any new file; what the user masks is taken off.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        // The error's own text has the draft's name, which nobody knows.
        let mut all = named();
        let (file, path) = builder.tempfile_in(folder_of(target)).map_err(|e| io::Error::from(e.kind()))?.into_parts();
        all.push(path.to_path_buf());
        Ok((file, Draft::Named(Named(Some(path)))))
    }

    /// A path that opens the draft, whose open file is `file`.
    pub fn path(&self, file: &File) -> PathBuf {
        match self {
            #[cfg(target_os = "linux")]
            Draft::Unnamed => unnamed::path(file),
            Draft::Named(named) => {
                let _ = file;
                named.0.as_ref().expect("a name is only taken when the draft is given up").to_path_buf()
            }
        }
    }

    /// Makes it `target`, in one step.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] where there is such a file, unless `replace`; what the system says.
    pub fn take_name(self, file: &File, target: &Path, replace: bool) -> io::Result<()> {
        match self {
            #[cfg(target_os = "linux")]
            Draft::Unnamed => unnamed::take_name(file, target, replace),
            Draft::Named(mut named) => {
                let path = named.0.take().expect("a name is only taken when the draft is given up");
                let draft = path.to_path_buf();
                let done = if replace { path.persist(target) } else { path.persist_noclobber(target) };
                self::named().retain(|p| *p != draft);
                done.map_err(|e| e.error)
            }
        }
    }
}

/// Who may read a file does not change because it is written anew.
pub fn keep_owner_and_mode(file: &File, old: &Metadata) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) && fchown(file, Some(old.uid()), Some(old.gid())).is_err() {
            // Only root may give a file away; its group perhaps.
            let _ = fchown(file, None, Some(old.gid()));
        }
    }
    // After the owner, whose change takes some bits off.
    file.set_permissions(old.permissions())
}

/// Files without names (`O_TMPFILE`). They are what lets a repack of hundreds of GB be killed and leave nothing: any draft
/// with a name stays behind then.
#[cfg(target_os = "linux")]
mod unnamed {
    use std::{
        fs::{File, OpenOptions},
        io,
        os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
        path::{Path, PathBuf},
    };

    use rustix::{
        fs::{AtFlags, CWD, OFlags, linkat},
        io::Errno,
    };

    use super::{Builder, PREFIX, folder_of};

    pub fn path(file: &File) -> PathBuf {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    }

    /// `None` where the file system cannot, or where a name could not be given later.
    pub fn create(folder: &Path) -> io::Result<Option<File>> {
        let flags = OFlags::TMPFILE.bits() as i32;
        match OpenOptions::new().read(true).write(true).mode(0o666).custom_flags(flags).open(folder) {
            Ok(file) => Ok(path(&file).symlink_metadata().is_ok().then_some(file)),
            Err(e) => match Errno::from_io_error(&e) {
                // The last two are kernels and file systems that do not know the flag.
                Some(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
                _ => Err(e),
            },
        }
    }

    fn link(file: &File, to: &Path) -> io::Result<()> {
        Ok(linkat(CWD, path(file), CWD, to, AtFlags::SYMLINK_FOLLOW)?)
    }

    pub fn take_name(file: &File, to: &Path, replace: bool) -> io::Result<()> {
        match link(file, to) {
            Err(e) if replace && e.kind() == io::ErrorKind::AlreadyExists => {
                // There is no link that replaces: a name beside it, for the microseconds until the rename.
                let beside = Builder::new().prefix(PREFIX).make_in(folder_of(to), |path| link(file, path))?;
                beside.into_temp_path().persist(to).map_err(|e| e.error)
            }
            done => done,
        }
    }
}
