//! The folder in which a hub's tools keep what they downloaded: `models--OWNER--REPO` with `blobs` (files by hash), `snapshots`
//! (a folder per commit, of links to blobs) and `refs` (the commit of each revision). Nothing is stored twice.

use std::{
    collections::HashSet,
    env, fs, io,
    path::{Path, PathBuf},
};

use hotset::{Error, Result};

use super::{Name, Remote, choose};

/// One repository's folder.
pub struct Repo {
    /// `OWNER/REPO`.
    pub name: String,
    folder: PathBuf,
}

/// `HF_HUB_CACHE`; `hub` in `HF_HOME`; else `huggingface/hub` in the user's cache folder.
///
/// # Errors
/// If none is known.
pub fn folder() -> Result<PathBuf> {
    let set = |key: &str| env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(".cache"));
    let cache = || set("XDG_CACHE_HOME").filter(|path| path.is_absolute()).or_else(home);
    set("HF_HUB_CACHE")
        .or_else(|| set("HF_HOME").map(|path| path.join("hub")))
        .or_else(|| cache().map(|path| path.join("huggingface/hub")))
        .ok_or_else(|| Error::invalid("there is no folder for models: set HF_HUB_CACHE, HF_HOME or HOME"))
}

/// Every repository in a cache folder that has a model, by name.
///
/// # Errors
/// A folder that cannot be read; that there is none is no error.
pub fn repos(folder: &Path) -> Result<Vec<Repo>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::io(folder, "list", e))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut repos: Vec<_> = names
        .filter_map(|entry| {
            let (owner, name) = entry.strip_prefix("models--")?.split_once("--")?;
            Some(Repo { name: format!("{owner}/{name}"), folder: folder.join(&entry) })
        })
        .collect();
    repos.retain(|repo| repo.models().is_ok_and(|models| !models.is_empty()));
    repos.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(repos)
}

/// The first file of a model that has been downloaded whole.
///
/// # Errors
/// A sentence where several models could be meant.
pub fn find(name: &Name) -> Result<Option<PathBuf>> {
    let repo = Repo::of(&folder()?, &name.repo);
    let models = repo.models()?;
    if models.is_empty() {
        return Ok(None);
    }
    let model = choose::choose(&name.repo, models, name.wanted.as_deref()).map_err(Error::invalid)?;
    Ok(repo.snapshots()?.into_iter().map(|snapshot| snapshot.join(&model.files[0].name)).find(|path| path.is_file()))
}

impl Repo {
    /// The folder of a repository, which may not be there yet.
    pub fn of(cache: &Path, repo: &str) -> Self {
        Self { name: repo.to_owned(), folder: cache.join(format!("models--{}", repo.replace('/', "--"))) }
    }

    /// Makes the folders of a commit.
    ///
    /// # Errors
    /// What the system says.
    pub fn prepare(&self) -> Result<()> {
        ["blobs", "refs", "snapshots"].iter().try_for_each(|name| {
            let folder = self.folder.join(name);
            fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "create the folder", e))
        })
    }

    /// Where a file's bytes are.
    pub fn blob(&self, file: &Remote) -> PathBuf {
        self.folder.join("blobs").join(&file.blob)
    }

    /// Gives a downloaded file its name in the snapshot of a commit. Returns the path.
    ///
    /// # Errors
    /// What the system says.
    pub fn link(&self, commit: &str, file: &Remote) -> Result<PathBuf> {
        let path = self.folder.join("snapshots").join(commit).join(&file.name);
        let parent = path.parent().expect("a file in a folder");
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create the folder", e))?;
        if path.exists() {
            return Ok(path);
        }
        let up = "../".repeat(2 + file.name.matches('/').count());
        // A link to a blob that is gone.
        let _ = fs::remove_file(&path);
        link(&format!("{up}blobs/{}", file.blob), &self.blob(file), &path).map_err(|e| Error::io(&path, "link", e))?;
        Ok(path)
    }

    /// Says which commit a revision is.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.folder.join("refs").join(revision);
        fs::write(&path, commit).map_err(|e| Error::io(&path, "write", e))
    }

    /// Folders of commits, that of `main` first.
    fn snapshots(&self) -> Result<Vec<PathBuf>> {
        let folder = self.folder.join("snapshots");
        let Ok(entries) = fs::read_dir(&folder) else { return Ok(Vec::new()) };
        let main = fs::read_to_string(self.folder.join("refs/main")).unwrap_or_default();
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort_by_key(|path| (!path.ends_with(main.trim()), path.clone()));
        Ok(paths)
    }

    /// The models that are there, whole.
    ///
    /// # Errors
    /// What the system says.
    pub fn models(&self) -> Result<Vec<choose::Model>> {
        let mut files: Vec<Remote> = Vec::new();
        for snapshot in self.snapshots()? {
            for (name, bytes) in files_below(&snapshot, 3) {
                let blob = fs::canonicalize(snapshot.join(&name)).ok();
                let blob = blob.and_then(|path| Some(path.file_name()?.to_str()?.to_owned())).unwrap_or_default();
                if !files.iter().any(|known| known.name == name) {
                    files.push(Remote { name, bytes, sha256: None, blob });
                }
            }
        }
        Ok(choose::models(&files))
    }

    /// Where a model's first file is.
    ///
    /// # Errors
    /// What the system says.
    pub fn path_of(&self, model: &choose::Model) -> Result<Option<PathBuf>> {
        Ok(self.snapshots()?.into_iter().map(|s| s.join(&model.files[0].name)).find(|path| path.is_file()))
    }

    /// Removes a model's files: from every snapshot, and the blobs that nothing else links to. Without `model` all of the
    /// repository goes. Returns the bytes freed.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self, model: Option<&choose::Model>) -> Result<u64> {
        let Some(model) = model else {
            let bytes = files_below(&self.folder.join("blobs"), 1).into_iter().map(|(_, bytes)| bytes).sum();
            fs::remove_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, "remove", e))?;
            return Ok(bytes);
        };
        let mut kept = HashSet::new();
        for snapshot in self.snapshots()? {
            for (name, _) in files_below(&snapshot, 3) {
                let path = snapshot.join(&name);
                if model.files.iter().any(|file| file.name == name) {
                    fs::remove_file(&path).map_err(|e| Error::io(&path, "remove", e))?;
                } else {
                    kept.extend(fs::canonicalize(&path).ok());
                }
            }
        }
        let mut freed = 0;
        for file in &model.files {
            let Ok(blob) = fs::canonicalize(self.blob(file)) else { continue };
            if !kept.contains(&blob) {
                freed += fs::metadata(&blob).map_or(0, |m| m.len());
                fs::remove_file(&blob).map_err(|e| Error::io(&blob, "remove", e))?;
            }
        }
        if self.models()?.is_empty() && kept.is_empty() {
            fs::remove_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, "remove", e))?;
        }
        Ok(freed)
    }
}

#[cfg(unix)]
fn link(relative: &str, _blob: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

/// Links need rights that few users of Windows have: one more name for the same bytes instead.
#[cfg(not(unix))]
fn link(_relative: &str, blob: &Path, path: &Path) -> io::Result<()> {
    fs::hard_link(blob, path)
}

/// Files below a folder, to a depth, with their lengths. Links count as what they lead to.
fn files_below(folder: &Path, depth: usize) -> Vec<(String, u64)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(meta) = fs::metadata(entry.path()) else { continue };
        if meta.is_file() {
            files.push((name, meta.len()));
        } else if meta.is_dir() && depth > 1 {
            let below = files_below(&entry.path(), depth - 1);
            files.extend(below.into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        }
    }
    files
}
