//! What a run reads and what it writes: no output is an input of the same run, and no two outputs are one file.
//!
//! Files are told apart by what they are, not by name: links, hard links and `/dev/fd/3` do not hide one. How each is written
//! is [`hotset::new_file`]'s to know.

use std::path::Path;

use hotset::{
    Error, Result,
    gguf::Gguf,
    new_file::{FileId, NewFile},
};

use super::interrupt;

/// The option of every verb that writes a file.
#[derive(clap::Args, Default)]
pub struct Force {
    /// Replace output files that exist
    #[arg(long)]
    pub force: bool,
}

/// See the module.
pub struct Outputs {
    force: bool,
    /// Each file, and what else it is to the run: "it is the model, which this run reads".
    known: Vec<(FileId, String)>,
    /// What goes to standard output.
    printed: Option<String>,
}

impl Outputs {
    /// Of a run that may replace what is there if `force`.
    pub fn new(force: &Force) -> Self {
        let mut new = Self { force: force.force, known: Vec::new(), printed: None };
        new.know_input(FileId::of_stdin(), "standard input");
        new
    }

    /// The run reads this file (`-` is standard input): `what` is "the trace", say.
    pub fn reads(&mut self, what: &str, path: &Path) {
        if path.as_os_str() != "-" {
            self.know_input(FileId::of(path), what);
        }
    }

    /// The run reads all files of this model.
    pub fn reads_model(&mut self, gguf: &Gguf) {
        gguf.shards().iter().for_each(|shard| self.reads("the model", &shard.path));
    }

    /// The run prints `what` on standard output.
    pub fn prints(&mut self, what: &str) {
        self.known.extend(FileId::of_stdout().map(|id| (id, format!("it already takes {what}"))));
        self.printed = Some(what.to_owned());
    }

    /// Begins the file that `option` names (`-` is standard output). One that is there is refused unless forced.
    ///
    /// # Errors
    /// An input, another output, or what [`NewFile::open`] refuses.
    pub fn create(&mut self, option: &str, path: &Path) -> Result<NewFile> {
        self.open(option, path, self.force)
    }

    /// As [`Outputs::create`], for what replaces a file that is there.
    ///
    /// # Errors
    /// As [`Outputs::create`].
    pub fn replace(&mut self, option: &str, path: &Path) -> Result<NewFile> {
        self.open(option, path, true)
    }

    fn open(&mut self, option: &str, path: &Path, replace: bool) -> Result<NewFile> {
        let refused = |name: &dyn std::fmt::Display, why: &str| {
            Err(Error::invalid(format!("{name} cannot take what {option} writes: {why}")))
        };
        if path.as_os_str() == "-" {
            if let Some(printed) = &self.printed {
                return refused(&"standard output", &format!("it already takes {printed}"));
            }
            self.prints(&format!("what {option} writes"));
            return NewFile::standard_output();
        }
        let id = FileId::of(path);
        if let Some((_, why)) = self.known.iter().find(|(known, _)| Some(known) == id.as_ref()) {
            return refused(&path.display(), why);
        }
        // Before there is a draft, so that no signal comes between.
        interrupt::remove_drafts_at_the_end()?;
        let file = NewFile::open(path, replace)?;
        self.known.extend(id.map(|id| (id, format!("it already takes what {option} writes"))));
        Ok(file)
    }

    fn know_input(&mut self, id: Option<FileId>, what: &str) {
        self.known.extend(id.map(|id| (id, format!("it is {what}, which this run reads"))));
    }
}
