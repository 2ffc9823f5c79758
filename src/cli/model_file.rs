//! Where models are: a file, one that was downloaded from a hub, or the bundled one, which `hotset run` uses when no model is
//! named.
//!
//! A program that was built where `assets/` has the model carries a copy, so that it runs without anything beside it. That
//! copy is the last resort: a file is read expert by expert, so it has to be one. The published crate is too small for it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use hotset::{Error, Result, gguf::Gguf, new_file::NewFile};

use super::hub::{Name, cache};

/// The bundled model's file name.
const NAME: &str = "moe-s-q4_0.gguf";

/// The copy in the program, if it was there to be embedded (`build.rs`). Its pages stay on disk until somebody touches them.
#[cfg(bundled_model)]
static EMBEDDED: Option<&[u8]> = Some(include_bytes!("../../assets/moe-s-q4_0.gguf"));
#[cfg(not(bundled_model))]
static EMBEDDED: Option<&[u8]> = None;

/// The bundled model: `$HOTSET_MODEL`; `assets/` here; beside the program; the build tree; else the embedded copy in the
/// user's cache folder.
///
/// # Errors
/// If there is no model anywhere; if the cache folder cannot be written.
pub fn find() -> Result<PathBuf> {
    if let Some(path) = env::var_os("HOTSET_MODEL").filter(|p| !p.is_empty()) {
        return Ok(path.into());
    }
    match candidates().into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => {
            let model = EMBEDDED.ok_or_else(none_bundled)?;
            unpack(model, &cache_folder()?)
        }
    }
}

fn none_bundled() -> Error {
    Error::invalid(
        "no model is named, and this build has none inside: name one (hotset pull OWNER/REPO:QUANT gets one), \
         or set HOTSET_MODEL to a file; a build from the repository has a small one",
    )
}

/// Opens a model that is named by its path, or as `OWNER/REPO:QUANT` where it has been downloaded.
///
/// # Errors
/// As [`Gguf::open`]; several models that could be meant.
pub fn open(given: &Path) -> Result<Gguf> {
    Gguf::open(&located(given)?)
}

/// The same of a file that may have its header only.
///
/// # Errors
/// As [`open`].
pub fn open_header(given: &Path) -> Result<Gguf> {
    Gguf::open_header(&located(given)?)
}

fn located(given: &Path) -> Result<PathBuf> {
    let name = given.to_str().and_then(|text| text.parse::<Name>().ok());
    let Some(name) = name.filter(|_| given.symlink_metadata().is_err()) else { return Ok(given.to_owned()) };
    // Without a folder for downloads there are none.
    let found = cache::folder().ok().map(|_| cache::find(&name)).transpose()?.flatten();
    match found {
        Some(path) => Ok(path),
        None if given.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf")) => Ok(given.to_owned()),
        None => Err(Error::file(
            given,
            format!("there is no such file, and no such download (hotset pull {name} gets one)"),
        )),
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("assets")];
    if let Some(folder) = env::current_exe().ok().as_deref().and_then(Path::parent) {
        folders.extend(["", "../assets", "../share/hotset"].map(|f| folder.join(f)));
    }
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets"));
    folders.into_iter().map(|f| f.join(NAME)).collect()
}

/// `$XDG_CACHE_HOME/hotset`, or `~/.cache/hotset`.
///
/// # Errors
/// If neither is known.
pub fn cache_folder() -> Result<PathBuf> {
    // The specification: a relative path is to be ignored.
    let xdg = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || env::home_dir().filter(|h| h.is_absolute()).map(|h| h.join(".cache"));
    let folder = xdg.or_else(home).ok_or_else(|| {
        Error::invalid("there is no folder for the bundled model: set XDG_CACHE_HOME, HOME or HOTSET_MODEL")
    })?;
    Ok(folder.join("hotset"))
}

/// Writes the embedded `model` into `folder`, once for each version of the program. Whole or not at all: others may be
/// about to read it, or to write it too.
fn unpack(model: &[u8], folder: &Path) -> Result<PathBuf> {
    let path = folder.join(format!("{}-{NAME}", env!("CARGO_PKG_VERSION")));
    if fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() == model.len() as u64) {
        return Ok(path);
    }
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create the cache folder", e))?;
    let mut file = NewFile::create(&path)?;
    file.write(model)?;
    file.finish()?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_copy_is_written_once_and_again_where_it_broke() {
        let folder = tempfile::tempdir().unwrap();
        let model = b"GGUF, and so on";
        let path = unpack(model, folder.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), model);
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(unpack(model, folder.path()).unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written, "not written again");
        fs::write(&path, b"GGUF").unwrap();
        unpack(model, folder.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), model);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no partial file stays");
    }

    #[test]
    fn a_clone_has_a_model_inside_and_a_program_without_one_says_so() {
        assert!(EMBEDDED.is_some_and(|model| model.starts_with(b"GGUF")));
        assert!(none_bundled().to_string().contains("hotset pull"));
    }
}
