//! Rewrites a model so that each expert is one read: gate, up and down side by side, from a block's first byte.
//!
//! A plain GGUF has all gates of a layer in one tensor, all ups in the next, all downs in a third. An expert is three
//! reads of places that lie far apart and that begin and end within blocks, which direct I/O can only read whole.
//!
//! # The layout
//!
//! Every expert's matrices become tensors of their own, `blk.N.ffn_gate.E.weight`, then `up`, then `down`, then expert
//! E + 1, in a file whose `general.alignment` is 4096. This is the layout of the first Mixtral files, put into an order.
//! All else is copied as it is. Why not one opaque tensor for a layer's experts, with a header of 48 rows instead of
//! 18,432 (Qwen3-30B-A3B; 1.2 MiB)? Because names, types and shapes stay in the tensor table, where any GGUF tool sees
//! them and the loader's checks hold; the metadata says what was done, and no reader has to believe it. The price is up
//! to 4095 bytes of padding behind a matrix. A real model has none, as its matrices are multiples of 4096 bytes; the
//! experts of 150 KiB of a 245M model grow by 3 %.
//!
//! llama.cpp does not load it (tried: "tensor 'blk.0.ffn_gate_exps.weight' not found"): it wants the experts of a layer in
//! one tensor a role, and a GGUF tensor is contiguous, so no file can be right for both.
//!
//! # What may go wrong
//!
//! The file takes its name only when every tensor's bytes have been read back and compared with the source's:
//! [`crate::new_file`]. What cannot be read back, such as a pipe, is written and not checked. Memory does not grow with the
//! tensors.
//!
//! Must not know: caches, arithmetic, terminals.

use std::{ops::ControlFlow, path::Path};

use crate::{
    Error, Result, arch,
    blueprint::single_name,
    expert::{BLOCK_BYTES, ExpertStore, Matrix, REPACK_KEY, REPACK_VERSION, repack_version},
    gguf::{Gguf, GgufWriter, TensorInfo, Value},
    model::refuse_missing,
    new_file::{FileId, NewFile},
    quant::GgmlType,
};

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes are written.
    Copy,
    /// They are read back, from the drive where the system can be told so, and compared with the source's.
    Check,
}

/// What was done.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// MoE layers.
    pub layers: usize,
    /// Experts of all layers.
    pub experts: usize,
    /// Tensors written and compared.
    pub tensors: usize,
    /// Length of the new file.
    pub bytes: u64,
    /// Whether it was read back and compared; not where it was written in place, as to a pipe.
    pub checked: bool,
}

/// Told the bytes done and the bytes in all of a step; may ask for an end.
pub type Watch<'a> = dyn FnMut(Step, u64, u64) -> ControlFlow<()> + 'a;

/// Bytes copied and compared at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Writes `source`, repacked, to a new file `out`: see [`repack_to`].
///
/// # Errors
/// Where `out` exists or is a file of `source`, and as [`repack_to`].
pub fn repack(source: &Gguf, out: &Path, watch: &mut Watch<'_>) -> Result<Option<Report>> {
    // A clearer word than that it exists.
    if let Some(id) = FileId::of(out)
        && source.shards().iter().any(|shard| FileId::of(&shard.path).as_ref() == Some(&id))
    {
        return Err(Error::file(out, "is a file of the model itself"));
    }
    repack_to(source, NewFile::create_new(out)?, watch)
}

/// Writes `source`, repacked, to `out`. `None` if `watch` asked for an end: then nothing is left of it.
///
/// # Errors
/// Where `source` is repacked already, is no model that hotset runs, has no data yet, or has a tensor of unknown type;
/// what the system says about a read or a write; where the bytes that were read back are others. In each case nothing is
/// left.
pub fn repack_to(source: &Gguf, out: NewFile, watch: &mut Watch<'_>) -> Result<Option<Report>> {
    let out_path = out.path().to_owned();
    let mut writer = GgufWriter::to(out);
    let store = experts_of(source)?;
    refuse_missing(source)?;
    if let Some(version) = repack_version(source)? {
        let expected = "a file that is not repacked already";
        return Err(Error::request(source.path().display().to_string(), expected, format!("{REPACK_KEY} {version}")));
    }
    let tensors = tensors(source, &store)?;
    let meta = metadata(source);
    for (key, value) in &meta {
        writer.meta(key, value.clone())?;
    }
    for t in &tensors {
        writer.tensor(&t.name, &t.dims, t.ty)?;
    }
    let mut writer = writer.start()?;
    let mut job = Job::new(source, &tensors, watch);
    let copied = job.run(Step::Copy, &mut |t, at, bytes| {
        if at == 0 {
            writer.begin(&t.name)?;
        }
        writer.write(bytes)
    })?;
    if copied.is_break() {
        return Ok(None);
    }
    let written = writer.read_back()?;
    if let Some(path) = &written {
        let copy = Gguf::open(path).map_err(|e| unlike(&out_path, e))?;
        check_header(&copy, &meta, &tensors, &out_path)?;
        if check_bytes(&mut job, &copy, &out_path)?.is_break() {
            return Ok(None);
        }
    }
    let bytes = writer.bytes();
    writer.finish()?;
    let layers = store.layers().len();
    let (experts, checked) = (layers * store.n_expert(), written.is_some());
    Ok(Some(Report { layers, experts, tensors: tensors.len(), bytes, checked }))
}

fn experts_of(gguf: &Gguf) -> Result<ExpertStore> {
    ExpertStore::new(gguf, arch::blueprint(gguf)?.experts())
}

/// The new file's metadata: the source's in its order, without what made it one of a set, and what was done.
fn metadata(source: &Gguf) -> Vec<(String, Value)> {
    const ALIGNMENT: &str = "general.alignment";
    let alignment = || (ALIGNMENT.to_owned(), Value::U32(BLOCK_BYTES as u32));
    let kept = source.meta().iter().filter(|(key, _)| !key.starts_with("split."));
    let mut meta: Vec<_> =
        kept.map(|(key, value)| if key == ALIGNMENT { alignment() } else { (key.to_owned(), value.clone()) }).collect();
    if source.meta().get(ALIGNMENT).is_none() {
        meta.push(alignment());
    }
    let layout = format!("each expert's gate, up and down side by side, from a multiple of {BLOCK_BYTES} bytes");
    meta.push((REPACK_KEY.to_owned(), REPACK_VERSION.into()));
    meta.push(("hotset.repack.layout".to_owned(), layout.into()));
    meta.push(("hotset.repack.program".to_owned(), concat!("hotset ", env!("CARGO_PKG_VERSION")).into()));
    meta
}

/// A tensor of the new file, and where the source has its bytes.
struct Tensor {
    name: String,
    dims: Vec<u64>,
    ty: GgmlType,
    shard: usize,
    offset: u64,
    bytes: u64,
}

impl Tensor {
    fn whole(source: &Gguf, t: &TensorInfo) -> Result<Self> {
        let path = source.path_of(t);
        let (ty, bytes) = (t.ggml_type(path)?, t.require_bytes(path)?);
        Ok(Self { name: t.name.clone(), dims: t.dims.clone(), ty, shard: t.shard, offset: t.offset, bytes })
    }

    fn of_expert(name: String, m: &Matrix) -> Self {
        let dims = vec![m.cols as u64, m.rows as u64];
        Self { name, dims, ty: m.ty, shard: m.at.file.into(), offset: m.at.offset, bytes: m.at.len as u64 }
    }
}

/// The new file's tensors in its order: first all but the routed experts, as the source has them, then those.
fn tensors(source: &Gguf, store: &ExpertStore) -> Result<Vec<Tensor>> {
    let mut experts = Vec::with_capacity(store.layers().len() * store.n_expert() * 3);
    for layer in store.layers() {
        for e in 0..store.n_expert() {
            let roles = layer.matrices(e).into_iter().enumerate().filter_map(|(role, m)| Some((role, m?)));
            experts.extend(roles.map(|(role, m)| Tensor::of_expert(single_name(layer.block, role, e), &m)));
        }
    }
    // By what was taken, not by name: a tensor that only looks like an expert's is copied.
    let mut taken: Vec<_> = experts.iter().map(|t| (t.shard, t.offset)).collect();
    taken.sort_unstable();
    let is_taken = |t: &TensorInfo| {
        let next = taken.get(taken.partition_point(|&at| at < (t.shard, t.offset)));
        next.is_some_and(|&(shard, at)| shard == t.shard && at - t.offset < t.bytes.unwrap_or(0))
    };
    let rest = source.tensors().iter().filter(|t| !is_taken(t)).map(|t| Tensor::whole(source, t));
    rest.chain(experts.into_iter().map(Ok)).collect()
}

/// Takes a piece of a tensor.
type Each<'a> = dyn FnMut(&Tensor, u64, &[u8]) -> Result<()> + 'a;

/// The source's bytes on their way, once to be written and once to be compared.
struct Job<'a, 'w> {
    source: &'a Gguf,
    tensors: &'a [Tensor],
    total: u64,
    chunk: Vec<u8>,
    watch: &'a mut Watch<'w>,
}

impl<'a, 'w> Job<'a, 'w> {
    fn new(source: &'a Gguf, tensors: &'a [Tensor], watch: &'a mut Watch<'w>) -> Self {
        let total = tensors.iter().map(|t| t.bytes).sum();
        Self { source, tensors, total, chunk: vec![0; CHUNK_BYTES], watch }
    }

    /// Gives `each` every tensor's bytes piece by piece, with the first one's position in the tensor.
    fn run(&mut self, step: Step, each: &mut Each<'_>) -> Result<ControlFlow<()>> {
        let mut done = 0;
        for t in self.tensors {
            for at in (0..t.bytes).step_by(CHUNK_BYTES) {
                let chunk = &mut self.chunk[..(t.bytes - at).min(CHUNK_BYTES as u64) as usize];
                self.source.shards()[t.shard].read(t.offset + at, chunk)?;
                each(t, at, chunk)?;
                done += chunk.len() as u64;
                if (self.watch)(step, done, self.total).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Metadata and tensor table, read back, are what was meant; and hotset finds each expert in one place.
fn check_header(copy: &Gguf, meta: &[(String, Value)], tensors: &[Tensor], out: &Path) -> Result<()> {
    // The words are for numbers that are none, which equal nothing.
    let same = |a: &Value, b: &Value| a == b || format!("{a:?}") == format!("{b:?}");
    let as_written = copy.meta().len() == meta.len()
        && meta.iter().zip(copy.meta().iter()).all(|((k, v), (key, value))| k == key && same(v, value));
    if !as_written {
        return Err(unlike(out, "other metadata"));
    }
    let same = |(t, got): (&Tensor, &TensorInfo)| {
        t.name == got.name && t.dims == got.dims && t.ty.id() == got.ty.id() && got.bytes == Some(t.bytes)
    };
    if tensors.len() != copy.tensors().len() || !tensors.iter().zip(copy.tensors()).all(same) {
        return Err(unlike(out, "another tensor table"));
    }
    let store = experts_of(copy).map_err(|e| unlike(out, e))?;
    assert!(store.layers().iter().all(|l| l.is_one_read()), "tensors in this order and alignment make one read");
    Ok(())
}

/// Every tensor's bytes, read back, are the source's.
fn check_bytes(job: &mut Job<'_, '_>, copy: &Gguf, out: &Path) -> Result<ControlFlow<()>> {
    let mut theirs = vec![0; CHUNK_BYTES];
    job.run(Step::Check, &mut |t, at, bytes| {
        let theirs = &mut theirs[..bytes.len()];
        copy.read_tensor_part(copy.require(&t.name)?, at, theirs).map_err(|e| unlike(out, e))?;
        match bytes.iter().zip(&*theirs).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(i) => Err(unlike(out, format!("another byte {} of tensor {}", at + i as u64, t.name))),
        }
    })
}

/// The new file, read back, is not what was written.
fn unlike(out: &Path, got: impl ToString) -> Error {
    Error::format(out, "the new file, read back", "what was written", got)
}
