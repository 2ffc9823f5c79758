//! Where an output goes: which file a path leads to, and what stands there.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    path::{Path, PathBuf},
};

/// Links on one path at most, as Linux has it.
const MAX_LINKS: usize = 40;

/// What stands where a path leads.
pub enum Place {
    /// Nothing yet.
    Free(PathBuf),
    /// A regular file, which a finished one can replace.
    Taken(PathBuf, Metadata),
    /// A device, a pipe or an open descriptor (`/dev/fd/3`), which can only be written as it is.
    Special(File),
}

impl Place {
    /// Follows links, the last one too where it dangles, and opens what is no regular file. That waits for a pipe's reader,
    /// as a shell does.
    ///
    /// # Errors
    /// A folder, a loop of links, or what the system says.
    pub fn of(path: &Path) -> io::Result<Self> {
        let (target, is_descriptor) = follow(path)?;
        if is_descriptor {
            return open_descriptor(&target).map(Place::Special);
        }
        match fs::metadata(&target) {
            Ok(meta) if meta.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(meta) if meta.is_file() => Ok(Place::Taken(target, meta)),
            Ok(_) => open_as_it_is(&target).map(Place::Special),
            Err(e) if e.kind() == io::ErrorKind::NotFound && names_a_file(&target) && folder_of(&target).is_dir() => {
                Ok(Place::Free(target))
            }
            Err(e) => Err(e),
        }
    }
}

/// `folder/` and `folder/..` can only be folders.
fn names_a_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| path.as_os_str().as_encoded_bytes().ends_with(name.as_encoded_bytes()))
}

/// The end of a chain of links, and whether it is one of the kernel's links to open files, whose text is not a path.
fn follow(path: &Path) -> io::Result<(PathBuf, bool)> {
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        if is_descriptor(&at) {
            return Ok((at, true));
        }
        match fs::read_link(&at) {
            Ok(to) => at = at.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => return Ok((at, false)),
        }
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

/// The folder that `path` lies in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where `/dev/fd/3` and `/proc/self/fd/3` lie. There is nothing else there that can be written.
#[cfg(target_os = "linux")]
fn is_descriptor(path: &Path) -> bool {
    let is_link = path.symlink_metadata().is_ok_and(|m| m.is_symlink());
    is_link && folder_of(path).file_name().is_some_and(|name| name == "fd") && in_proc(folder_of(path))
}

#[cfg(target_os = "linux")]
fn in_proc(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

#[cfg(not(target_os = "linux"))]
fn is_descriptor(path: &Path) -> bool {
    folder_of(path) == Path::new("/dev/fd")
}

/// Of a regular file, what is there stays, and ours comes after it: whoever opened the descriptor has decided on the rest.
fn open_descriptor(path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    if let Some(stream) = own_stream(path) {
        return stream.map(File::from);
    }
    let meta = fs::metadata(path)?;
    if meta.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if meta.is_file() { OpenOptions::new().append(true).open(path) } else { open_as_it_is(path) }
}

/// Standard output or error by such a path. Opened anew it would have a position of its own, and the next line on it would
/// be written over what we wrote.
#[cfg(unix)]
fn own_stream(path: &Path) -> Option<io::Result<std::os::fd::OwnedFd>> {
    use std::os::fd::AsFd;
    let own = |name: &str| fs::canonicalize(name).ok();
    let folder = fs::canonicalize(folder_of(path)).ok()?;
    if own("/proc/self/fd").or(own("/dev/fd"))? != folder {
        return None;
    }
    match path.file_name()?.to_str()? {
        "1" => Some(io::stdout().as_fd().try_clone_to_owned()),
        "2" => Some(io::stderr().as_fd().try_clone_to_owned()),
        _ => None,
    }
}

fn open_as_it_is(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    {
        // A terminal that is written to must not become the one that can interrupt us.
        let flags = rustix::fs::OFlags::NOCTTY.bits() as i32;
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
    }
    options.open(path)
}

/// What tells a file from all others, by whatever name it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileId {
    /// Of a file that is there: device and inode.
    Node(u64, u64),
    /// Of one that is not there yet, or where the system has no such numbers: its path without links.
    Path(PathBuf),
}

impl FileId {
    /// `None` for what many may use at once, such as `/dev/null` or a terminal, and where there can be no file.
    pub fn of(path: &Path) -> Option<Self> {
        let (target, _) = follow(path).ok()?;
        match fs::metadata(&target) {
            Ok(meta) => node(&meta, &target),
            Err(_) => Some(FileId::Path(fs::canonicalize(folder_of(&target)).ok()?.join(target.file_name()?))),
        }
    }

    /// That of standard input.
    pub fn of_stdin() -> Option<Self> {
        #[cfg(unix)]
        return of_stream(std::os::fd::AsFd::as_fd(&io::stdin()));
        #[cfg(not(unix))]
        None
    }

    /// That of standard output.
    pub fn of_stdout() -> Option<Self> {
        #[cfg(unix)]
        return of_stream(std::os::fd::AsFd::as_fd(&io::stdout()));
        #[cfg(not(unix))]
        None
    }
}

#[cfg(unix)]
fn of_stream(stream: std::os::fd::BorrowedFd<'_>) -> Option<FileId> {
    let file = File::from(stream.try_clone_to_owned().ok()?);
    node(&file.metadata().ok()?, Path::new(""))
}

#[cfg(unix)]
fn node(meta: &Metadata, _: &Path) -> Option<FileId> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    (!meta.file_type().is_char_device()).then(|| FileId::Node(meta.dev(), meta.ino()))
}

#[cfg(not(unix))]
fn node(_: &Metadata, path: &Path) -> Option<FileId> {
    fs::canonicalize(path).ok().map(FileId::Path)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_to_a_file_that_may_not_be_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        symlink("sub/end", at("first")).unwrap();
        symlink("../new", at("sub/end")).unwrap();
        assert!(matches!(Place::of(&at("first")).unwrap(), Place::Free(p) if p == at("sub/../new")));
        assert_eq!(FileId::of(&at("first")), FileId::of(&at("new")));
        assert_ne!(FileId::of(&at("first")), FileId::of(&at("other")));
        fs::write(at("new"), "").unwrap();
        fs::hard_link(at("new"), at("twin")).unwrap();
        assert!(matches!(Place::of(&at("first")).unwrap(), Place::Taken(..)));
        assert_eq!(FileId::of(&at("first")), FileId::of(&at("twin")));
        symlink("round", at("round")).unwrap();
        for bad in ["round", "sub", "sub/", "sub/..", "none/", "none/new", "new/", ""] {
            assert!(Place::of(&at(bad)).is_err(), "{bad}");
        }
        assert!(Place::of(Path::new("")).is_err());
    }
}
