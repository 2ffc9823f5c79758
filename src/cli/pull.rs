//! `hotset pull`: a model from a hub, with what it will do on this machine before its gigabytes come.

use std::{cell::RefCell, fs, io, io::Read, path::Path, path::PathBuf, process::ExitCode};

use hotset::{
    Error, Result,
    gguf::{Extent, parse_from},
    human_bytes,
    input::ReadAt,
};

use super::{
    Ended, Stop,
    hub::{Fetched, Hub, Listing, Name, Remote, cache, cache::Repo, choose, choose::Model, download},
    out::{Out, Progress, folded, note},
    plan,
};

/// Download a model from a hub (Hugging Face)
///
/// Reads the file's header first and says what the model will do here, then downloads it into the folder that the hub's own
/// tools use. A download that was interrupted goes on where it stopped; every file is checked against the hub's SHA-256. Any
/// verb takes OWNER/REPO:QUANT as the model's name then.
#[derive(clap::Args)]
pub struct Args {
    /// OWNER/REPO, and a type or a file where it has several: OWNER/REPO:Q4_K_M
    #[arg(value_name = "OWNER/REPO[:QUANT]")]
    name: Name,
    /// A branch, a tag or a commit
    #[arg(long, value_name = "NAME", default_value = "main", value_parser = revision)]
    revision: String,
    /// Say what would be downloaded and what to expect of it, and stop
    #[arg(long)]
    dry_run: bool,
    /// Download a model that hotset cannot run, too
    #[arg(long)]
    force: bool,
}

fn revision(text: &str) -> Result<String, String> {
    let ok = super::hub::is_plain(text);
    ok.then(|| text.to_owned()).ok_or_else(|| "expected letters, digits, dots, dashes and underscores".to_owned())
}

/// How much of a header is fetched at once. Bytes
const PIECE: u64 = 4 << 20;

/// No known header is a quarter as long. Bytes
const MAX_HEADER: u64 = 512 << 20;

/// The verb.
pub fn run(args: &Args) -> Ended {
    let hub = Hub::from_env()?;
    let repo_name = &args.name.repo;
    let listing = hub.list(repo_name, &args.revision)?;
    let models = choose::models(&listing.files);
    let model = choose::choose(repo_name, models, args.name.wanted.as_deref()).map_err(Stop::usage)?;
    let full_name = format!("{repo_name}:{}", model.label);
    let files = if model.files.len() == 1 { "1 file".to_owned() } else { format!("{} files", model.files.len()) };
    note(format_args!("{full_name}: {} in {files}", human_bytes(model.bytes())));
    let cannot = expect(&hub, repo_name, &listing, &model, &full_name);
    if let Err(e) = &cannot {
        note(format_args!("hotset cannot run it: {e}"));
    }
    if args.dry_run {
        return Ok(if cannot.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if cannot.is_err() && !args.force {
        return Err(Error::invalid("nothing was downloaded (--force downloads it all the same)").into());
    }
    let folder = cache::folder()?;
    let repo = Repo::of(&folder, repo_name);
    repo.prepare()?;
    fits(&folder, &repo, &model)?;
    let path = fetch(&hub, &repo, &listing, &model)?;
    repo.set_ref(&args.revision, &listing.commit)?;
    note(format_args!("run it with: hotset run {full_name} \"…\""));
    Out::new().text(&format!("{}\n", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Says what the model does here, from its files' headers.
///
/// # Errors
/// Why it does not run.
fn expect(hub: &Hub, repo: &str, listing: &Listing, model: &Model, name: &str) -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "create a folder in", e))?;
    let mut first = None;
    for file in &model.files {
        let base = file.name.rsplit('/').next().expect("a name has a last part");
        let path = folder.path().join(base);
        let header = RemoteHeader { hub, repo, commit: &listing.commit, file, bytes: RefCell::default() };
        let parsed = parse_from(Path::new(&file.name), &header, file.bytes, 0, Extent::HeaderOnly);
        parsed?;
        fs::write(&path, header.bytes.borrow().as_slice()).map_err(|e| Error::io(&path, "write", e))?;
        first.get_or_insert(path);
    }
    let outlook = plan::of_header(&first.expect("a model has a file"), name)?;
    folded(format_args!("{outlook}"), 0);
    Ok(())
}

/// A file on the hub, of which as much has been fetched as was asked for.
struct RemoteHeader<'a> {
    hub: &'a Hub,
    repo: &'a str,
    commit: &'a str,
    file: &'a Remote,
    bytes: RefCell<Vec<u8>>,
}

impl ReadAt for RemoteHeader<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut bytes = self.bytes.borrow_mut();
        let end = (offset + buf.len() as u64).min(self.file.bytes);
        if end > MAX_HEADER {
            return Err(io::Error::other("the header is longer than any known one"));
        }
        while (bytes.len() as u64) < end {
            let from = bytes.len() as u64;
            let to = (from + PIECE).min(self.file.bytes);
            let (start, body) = self.hub.read(self.repo, self.commit, self.file, from, to).map_err(io::Error::other)?;
            // A hub that knows no ranges begins at the beginning.
            let body = &mut body.take(to - start);
            let skipped = io::copy(&mut body.take(from - start), &mut io::sink())?;
            let n = body.take(to - from).read_to_end(&mut bytes)?;
            if skipped < from - start || n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let at = offset.min(bytes.len() as u64) as usize;
        (&bytes[at..]).read(buf)
    }
}

/// Refuses a model that the drive has no room for.
fn fits(folder: &Path, repo: &Repo, model: &Model) -> Result<()> {
    let missing: u64 = model.files.iter().filter(|f| !repo.blob(f).exists()).map(|f| f.bytes).sum();
    let free = free_bytes(folder);
    match free {
        Some(free) if free < missing => Err(Error::invalid(format!(
            "{}: {} are free, and {} are still to come (HF_HUB_CACHE names another folder)",
            folder.display(),
            human_bytes(free),
            human_bytes(missing)
        ))),
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let fs = rustix::fs::statvfs(folder).ok()?;
    Some(fs.f_bavail.saturating_mul(fs.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// Downloads and links all files. Returns the first one's path.
fn fetch(hub: &Hub, repo: &Repo, listing: &Listing, model: &Model) -> Result<PathBuf> {
    let (progress, total) = (Progress::bytes("downloading", false), model.bytes());
    let (mut done, mut came, mut first) = (0, 0, None);
    for file in &model.files {
        let blob = repo.blob(file);
        let fetched =
            download(hub, (&repo.name, &listing.commit), file, &blob, &mut |n| progress.set(done + n, total))?;
        if let Fetched::Now(bytes) = fetched {
            came += bytes;
        }
        done += file.bytes;
        first.get_or_insert(repo.link(&listing.commit, file)?);
    }
    drop(progress);
    match came {
        0 => note(format_args!("all of it was there")),
        _ => note(format_args!("{} downloaded and checked", human_bytes(came))),
    }
    Ok(first.expect("a model has a file"))
}
