//! A file that appears whole or not at all: written beside its place, moved there when done, gone if that never comes.

use std::{
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// See the module. Dropped unfinished, it leaves nothing, and what stood in its place stays.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
}

impl NewFile {
    /// Starts a file that will replace `path`.
    ///
    /// # Errors
    /// Where the folder is missing or cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |e| Error::io(path, "create", e);
        if path.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let file = NamedTempFile::new_in(folder).map_err(failed)?;
        Ok(Self { path: path.to_owned(), out: BufWriter::new(file) })
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

    /// Moves the file to its place.
    ///
    /// # Errors
    /// As [`NewFile::write`].
    pub fn finish(self) -> Result<()> {
        let path = self.path;
        let failed = |e| Error::io(&path, "write", e);
        let file = self.out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.persist(&path).map_err(|e| failed(e.error))?;
        Ok(())
    }
}
