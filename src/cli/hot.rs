//! Lists of hot experts in files: what `--pin` and `--warm` read, what `--save-hot` and a warm start write. Beside the list
//! of a warm start lies what the last tokens used, where policy or prefetcher go by past tokens.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use hotset::{
    Result, arch, engine::Engine, expert::HotList, gguf::Gguf, input, new_file::NewFile, retrieval::Retrieval,
    trace::file::TraceReader,
};

use super::{made, model_file, out::note, text::read_list};

/// A line of a list takes less.
const LINE_BYTES: u64 = 32;

/// Where a warm start's list comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Warm {
    /// Nowhere: there is none.
    Off,
    /// The user's cache folder, where the last run left it.
    Auto,
    /// A file.
    File(PathBuf),
}

impl FromStr for Warm {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "off" => Warm::Off,
            "auto" => Warm::Auto,
            file => Warm::File(file.into()),
        })
    }
}

/// What a run starts from, read before the engine takes the model.
pub struct Start {
    pin: Option<HotList>,
    warm: Option<HotList>,
    /// Where the next warm start looks, where that is asked for.
    memory: Option<PathBuf>,
}

impl Start {
    /// Reads the lists for a model.
    ///
    /// # Errors
    /// A file that was named and cannot be read, or is no list of this model's experts. What the last run left is only
    /// ever a help: if it is broken, it is as good as none.
    pub fn read(gguf: &Gguf, pin: Option<&Path>, warm: &Warm) -> Result<Self> {
        let blueprint = arch::blueprint(gguf)?;
        let (n_layer, n_expert) = (blueprint.n_moe(), blueprint.n_expert);
        let list = |path: &Path| HotList::parse(&read_list(path)?, path, n_layer, n_expert);
        let pin = pin.map(list).transpose()?;
        let memory = match warm {
            Warm::Auto => memory(gguf),
            Warm::Off | Warm::File(_) => None,
        };
        let warm = match warm {
            Warm::Off => None,
            Warm::Auto => memory.as_deref().and_then(|path| remembered(path, n_layer, n_expert)),
            Warm::File(path) => Some(list(path)?),
        };
        Ok(Self { pin, warm, memory })
    }

    /// Tells an engine that has just been opened.
    ///
    /// # Errors
    /// More pins than there is room for.
    pub fn apply(&self, engine: &mut Engine) -> Result<()> {
        if let Some(list) = &self.pin {
            engine.pin(list)?;
        }
        if let Some(list) = &self.warm {
            engine.warm(list);
        }
        if let Some(path) = self.memory.as_deref().map(past_file).filter(|path| path.exists()) {
            restore_past(&path, engine);
        }
        Ok(())
    }

    /// Leaves the next warm start what this run used, and half of what those before it did. Says nothing if it cannot: the
    /// next start is a cold one then.
    pub fn remember(&self, engine: &Engine) {
        let hot = engine.hot();
        if let Some(path) = self.memory.as_deref().filter(|path| !hot.is_empty() && !input::is_special(path)) {
            let older = self.warm.clone().unwrap_or_default();
            let _ = path.parent().map(fs::create_dir_all);
            let written = |mut file: NewFile| {
                file.write(hot.after(&older).to_text().as_bytes())?;
                file.publish() // not worth waiting for the drive
            };
            let _ = NewFile::create(path).and_then(written);
            if let Some(past) = engine.past() {
                let written = |mut file: NewFile| {
                    file.write(&past)?;
                    file.publish()
                };
                let _ = NewFile::create(&past_file(path)).and_then(written);
            }
        }
    }
}

/// Writes a list.
///
/// # Errors
/// Where the file cannot be written.
pub fn write(mut file: NewFile, list: &HotList) -> Result<()> {
    file.write(list.to_text().as_bytes())?;
    file.finish()
}

/// How often the tokens of a trace used each expert.
///
/// # Errors
/// A file that is no trace.
pub fn of_trace(path: &Path) -> Result<HotList> {
    let mut trace = TraceReader::open(path)?;
    let (n_layer, n_expert) = (trace.header().n_layer, trace.header().n_expert);
    let mut uses = vec![0; n_layer * n_expert];
    while let Some(event) = trace.next_event()? {
        event.routed.iter().for_each(|r| uses[usize::from(r.id.layer) * n_expert + usize::from(r.id.expert)] += 1);
    }
    Ok(HotList::from_uses(&uses, n_expert))
}

/// The file that a warm start of this model uses. It goes by the tensor table, not by the path; models of one
/// shape share it, which costs them reads and nothing else.
fn memory(gguf: &Gguf) -> Option<PathBuf> {
    let folder = model_file::cache_folder().ok()?;
    Some(folder.join("hot").join(format!("{}.txt", made::model_id(gguf))))
}

/// Where the tokens lie that go with a list.
fn past_file(list: &Path) -> PathBuf {
    list.with_extension("ring")
}

/// Gives an engine the last run's tokens. A file that is broken is said to be, and is no reason not to run.
fn restore_past(path: &Path, engine: &mut Engine) {
    if !engine.keeps_past() {
        return;
    }
    let experts = engine.blueprint();
    let most = Retrieval::max_saved_bytes(experts.n_moe(), experts.n_expert);
    let told = match input::read(path, most) {
        Ok(bytes) => engine.restore_past(&bytes).err().map(|why| format!("{}: {why}", path.display())),
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = told {
        note(format_args!("the last run's tokens are not used: {why}"));
    }
}

/// The last run's list, if there is a sound one.
fn remembered(path: &Path, n_layer: usize, n_expert: usize) -> Option<HotList> {
    let most = LINE_BYTES * (1 + n_layer as u64 * n_expert as u64);
    let text = String::from_utf8(input::read(path, most).ok()?).ok()?;
    HotList::parse(&text, path, n_layer, n_expert).ok()
}
