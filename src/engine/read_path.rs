//! Which read path suits a model, a budget and a drive, where nobody says which: `--io auto`.
//!
//! * Every expert has a slot: plain reads. Each is read once, and there is nothing to win.
//! * Beside the budget the machine has memory for the experts: plain reads, since the page cache will hold them.
//! * Otherwise the drive is probed, and the answer is kept in a small file if one is named, so that the next start is quick.

use std::{collections::VecDeque, fs, path::Path, time::Duration};

use super::{Options, make_plan};
use crate::{
    Error, Result,
    blueprint::Blueprint,
    expert::ExpertStore,
    gguf::Gguf,
    id::ExpertId,
    input,
    io::{Extents, IoEngine, IoKind, Limits, Rates, probe},
    machine,
    new_file::NewFile,
    plan::Plan,
};

/// Time that a probe may take. With reads in flight at its end and opening, it takes a little more.
const PROBE_TIME: Duration = Duration::from_millis(200);

/// A probe reads at most this share of the experts: small models must not wait longer than they can win.
const PROBE_SHARE: u64 = 4;

/// Answers that the file keeps.
const MAX_KEPT: usize = 64;

/// Bytes that they take at most.
const MAX_KEPT_BYTES: u64 = 1 << 20;

/// An engine, and why it is this one.
pub struct Chosen {
    pub engine: Box<dyn IoEngine>,
    /// `None` where the caller named it.
    pub reason: Option<String>,
}

/// Why experts are read through the page cache without a look at the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainReads {
    /// Each is read once, into its slot.
    AllHaveSlots,
    /// Beside the budget there is memory for all of them.
    FitThePageCache,
}

impl PlainReads {
    fn reason(self) -> &'static str {
        match self {
            PlainReads::AllHaveSlots => "every expert has a slot",
            PlainReads::FitThePageCache => "the page cache has room for all experts",
        }
    }
}

/// Whether a session with this plan, of which nobody says how it reads, reads through the page cache in any case. `None`:
/// the drive is asked.
pub fn plain_reads(plan: &Plan, store: &ExpertStore) -> Option<PlainReads> {
    let n_expert = store.layers().len() * store.n_expert();
    if plan.slots.iter().sum::<usize>() >= n_expert {
        return Some(PlainReads::AllHaveSlots);
    }
    let room = machine::available_bytes().map_or(0, |free| free.saturating_sub(plan.budget_bytes));
    (room > expert_bytes(store)).then_some(PlainReads::FitThePageCache)
}

/// Of all of them.
fn expert_bytes(store: &ExpertStore) -> u64 {
    store.layers().iter().map(|l| l.expert_bytes() * store.n_expert() as u64).sum()
}

/// The engine that `options` ask for, or the one that suits.
///
/// # Errors
/// A path that was asked for and does not work here; a budget or a context that does not work.
pub fn choose(gguf: &Gguf, blueprint: &Blueprint, store: &ExpertStore, options: &Options) -> Result<Chosen> {
    let start = |(kind, depth): (IoKind, usize)| {
        let engine = kind.build(store.files().clone(), options.io_depth.unwrap_or(depth));
        engine.map_err(|e| Error::invalid(format!("the read path {} does not work here: {e}", kind.name())))
    };
    if let Some(kind) = options.io {
        return Ok(Chosen { engine: start((kind, kind.default_depth()))?, reason: None });
    }
    let plain = start((IoKind::Pread, IoKind::Pread.default_depth()))?;
    let plan = make_plan(gguf, blueprint, store, options, plain.layout())?;
    if let Some(plainly) = plain_reads(&plan, store) {
        return Ok(Chosen { engine: plain, reason: Some(plainly.reason().to_owned()) });
    }
    let (rates, how) = rates(store, expert_bytes(store), options.io_memory.as_deref());
    let mut reason = format!("{how} {rates}");
    match rates.best().filter(|&(kind, _)| kind != IoKind::Pread).map(start) {
        // Whole blocks take a little more.
        Some(Ok(engine)) if make_plan(gguf, blueprint, store, options, engine.layout()).is_ok() => {
            return Ok(Chosen { engine, reason: Some(reason) });
        }
        Some(Ok(_)) => reason += ", but the budget is too small for whole blocks",
        Some(Err(e)) => reason += &format!(", but now: {e}"),
        None => {}
    }
    Ok(Chosen { engine: plain, reason: Some(reason) })
}

/// The drive's figures, kept or new, and how they were come by.
fn rates(store: &ExpertStore, expert_bytes: u64, memory: Option<&Path>) -> (Rates, &'static str) {
    let key = key(store, expert_bytes);
    let mut kept = memory.map(kept).unwrap_or_default();
    if let Some((_, rates)) = kept.iter().find(|(k, _)| Some(k) == key.as_ref()) {
        return (rates.clone(), "probed earlier:");
    }
    let n_layer = store.layers().len();
    let id = |layer: usize, expert: usize| ExpertId { layer: layer as u16, expert: expert as u16 };
    let ids = (0..n_layer).flat_map(|l| (0..store.n_expert()).map(move |e| id(l, e)));
    let reads: Vec<Extents> = ids.map(|id| store.extents(id)).collect();
    let limits = Limits { time: PROBE_TIME, bytes: expert_bytes / PROBE_SHARE };
    let rates = probe(store.files(), &reads, &store.slot_parts(0..n_layer), limits);
    if let (Some(memory), Some(key)) = (memory, key) {
        kept.truncate(MAX_KEPT - 1);
        kept.push_front((key, rates.clone()));
        // Without it the next start probes again, which is no reason not to run.
        let _ = keep(memory, &kept);
    }
    (rates, "probed")
}

/// What the figures belong to: the drive, the files, the size of the experts, and this program's read paths.
fn key(store: &ExpertStore, expert_bytes: u64) -> Option<String> {
    let mut key = format!("{} {expert_bytes}", env!("CARGO_PKG_VERSION"));
    for (_, file) in store.files().iter() {
        let meta = file.metadata().ok()?;
        let changed = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos();
        key += &format!(" {} {} {changed}", place(&meta), meta.len());
    }
    Some(key)
}

#[cfg(unix)]
fn place(meta: &fs::Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    format!("{}:{}", meta.dev(), meta.ino())
}

#[cfg(not(unix))]
fn place(_: &fs::Metadata) -> String {
    String::new()
}

/// The file's answers, newest first; none if it is missing or not ours.
fn kept(path: &Path) -> VecDeque<(String, Rates)> {
    input::read(path, MAX_KEPT_BYTES).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn keep(path: &Path, kept: &VecDeque<(String, Rates)>) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create the cache folder", e))?;
    }
    if input::is_special(path) {
        return Ok(());
    }
    let mut file = NewFile::create(path)?;
    file.write(format!("{:#}\n", serde_json::json!(kept)).as_bytes())?;
    file.publish() // not worth waiting for the drive
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundled() -> (Gguf, Blueprint, ExpertStore) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/moe-s-q4_0.gguf");
        let gguf = Gguf::open(&path).unwrap();
        let blueprint = crate::arch::blueprint(&gguf).unwrap();
        let store = ExpertStore::new(&gguf, blueprint.experts()).unwrap();
        (gguf, blueprint, store)
    }

    #[test]
    fn figures_are_kept_by_model_and_a_broken_file_is_as_good_as_none() {
        let (_, _, store) = bundled();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/drives.json");
        let (first, how) = rates(&store, 1000, Some(&path));
        assert_eq!((how, first.best().is_some()), ("probed", true), "{first}");
        assert_eq!(rates(&store, 1000, Some(&path)), (first.clone(), "probed earlier:"));
        // Other experts are other figures, and both stay.
        assert_eq!(rates(&store, 2000, Some(&path)).1, "probed");
        assert_eq!(rates(&store, 1000, Some(&path)), (first, "probed earlier:"));
        assert_eq!(rates(&store, 2000, Some(&path)).1, "probed earlier:");
        for broken in ["", "{}", "[[1, 2]]", "[[\"key\", {\"rates\": 7}]]"] {
            fs::write(&path, broken).unwrap();
            assert_eq!(rates(&store, 1000, Some(&path)).1, "probed");
            assert_eq!(rates(&store, 1000, Some(&path)).1, "probed earlier:");
        }
        for n in 0..2 * MAX_KEPT as u64 {
            rates(&store, 5000 + n, Some(&path));
        }
        assert_eq!(kept(&path).len(), MAX_KEPT);
        assert_eq!(rates(&store, 1000, None).1, "probed", "nowhere to keep them");
    }

    #[test]
    fn where_there_is_nothing_to_win_nothing_is_probed() {
        let (gguf, blueprint, store) = bundled();
        let choose = |options| choose(&gguf, &blueprint, &store, &options).unwrap();
        let all = choose(Options { memory_bytes: Some(1 << 30), ..Options::default() });
        assert_eq!((all.engine.name(), all.reason.as_deref()), ("pread", Some("every expert has a slot")));
        let few = choose(Options { memory_bytes: Some(10 << 20), process_bytes: Some(0), ..Options::default() });
        if machine::available_bytes().is_some_and(|free| free > 1 << 30) {
            let reason = "the page cache has room for all experts";
            assert_eq!((few.engine.name(), few.reason.as_deref()), ("pread", Some(reason)));
        }
        let asked = choose(Options { io: Some(IoKind::Pread), io_depth: Some(3), ..Options::default() });
        assert_eq!((asked.engine.name(), asked.engine.depth(), asked.reason), ("pread", 3, None));
    }
}
