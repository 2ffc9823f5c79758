//! GGUF files on disk: one file or a split set, parsed once, then read by position.
//!
//! Nothing is mapped: see `cursor.rs`.
//! Must not know: caches, experts, direct I/O. Those take [`Shard::file`] and the offsets.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Extent, Header, Metadata, TensorInfo, parse_from, unique_names};
use crate::error::{Error, Result};
use crate::input::{self, ReadAt, patiently, read_full_at};
use crate::quant::GgmlType;

/// One file of a model.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Where it was opened.
    pub path: PathBuf,
    /// The open file, for positional reads.
    pub file: Arc<File>,
    /// Its length in bytes when it was opened.
    pub len: u64,
}

impl Shard {
    /// Fills `buf` from byte `offset` of the file.
    ///
    /// # Errors
    /// [`Error::Io`] that names file, length and offset, also where the file ends first.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        read_at(&self.path, &*self.file, offset, buf, format_args!(""))
    }
}

/// An opened model: a single file, or all the files of a split set.
#[derive(Clone, Debug)]
pub struct Gguf {
    shards: Vec<Shard>,
    meta: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

impl Gguf {
    /// Opens a file, or the whole split set that the file is a part of.
    ///
    /// # Errors
    /// What [`super::parse`] reports, and a sentence that names the file where one of a set is missing or does not belong.
    pub fn open(path: &Path) -> Result<Gguf> {
        Self::open_extent(path, Extent::Whole)
    }

    /// [`Gguf::open`] without the demand that tensor data is there: for planning with a partial download.
    pub fn open_header(path: &Path) -> Result<Gguf> {
        Self::open_extent(path, Extent::HeaderOnly)
    }

    fn open_extent(path: &Path, extent: Extent) -> Result<Gguf> {
        let named = SplitName::of(path);
        let index = named.as_ref().map_or(0, |n| n.number - 1);
        let (shard, header) = open_shard(path, index, extent, "open")?;
        let count = header.meta.u32("split.count")?.unwrap_or(1).max(1) as usize;
        if count == 1 {
            // A lone file may carry a set's name, or the metadata of a merged set.
            let mut header = header;
            header.tensors.iter_mut().for_each(|t| t.shard = 0);
            return Self::assemble(vec![(shard, header)]);
        }
        let Some(named) = named.filter(|n| n.count == count) else {
            let expected = format!("NAME-0000i-of-{count:05}.gguf, as split.count is {count}");
            return Err(Error::format(path, "file name of a split set", expected, path.display()));
        };
        let mut first = Some((shard, header));
        let mut parts = Vec::new();
        for i in 0..count {
            let part = match first.take_if(|_| i == index) {
                Some(part) => part,
                None => {
                    let action = format!("open shard {} of {count} of the split set of {}", i + 1, path.display());
                    open_shard(&named.path(i + 1), i, extent, &action)?
                }
            };
            check_member(&part.0.path, &part.1.meta, i, count)?;
            parts.push(part);
        }
        let gguf = Self::assemble(parts)?;
        let total = gguf.tensors.len() as u64;
        match gguf.meta.u64("split.tensors.count")? {
            Some(n) if n != total => {
                Err(gguf.meta.wrong("split.tensors.count", format!("{total}, which the {count} shards hold"), n))
            }
            _ => Ok(gguf),
        }
    }

    /// Joins parsed files; the first one's metadata is the model's.
    fn assemble(parts: Vec<(Shard, Header)>) -> Result<Gguf> {
        let (mut shards, mut tensors, mut metas) = (Vec::new(), Vec::new(), Vec::new());
        for (shard, header) in parts {
            shards.push(shard);
            tensors.extend(header.tensors);
            metas.push(header.meta);
        }
        let meta = metas.swap_remove(0);
        let index = unique_names(&shards[0].path, tensors.iter())?;
        Ok(Gguf { shards, meta, tensors, index })
    }

    /// The file, or the first of the set.
    pub fn path(&self) -> &Path {
        &self.shards[0].path
    }

    /// The files, in the set's order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The metadata (of a set: the first file's, which carries the model's).
    pub fn meta(&self) -> &Metadata {
        &self.meta
    }

    /// All tensors, in file order, shard after shard.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// Its row of [`Gguf::tensors`].
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The tensor of that name; its absence is an [`Error::Format`].
    pub fn require(&self, name: &str) -> Result<&TensorInfo> {
        self.tensor(name)
            .ok_or_else(|| Error::format(self.path(), format!("tensor {name}"), "present", "no such tensor"))
    }

    /// Path of the file that a tensor of this model lies in.
    pub fn path_of(&self, tensor: &TensorInfo) -> &Path {
        &self.shards[tensor.shard].path
    }

    /// The tensor's type, once its shape is `dims` (row length first) and there is arithmetic for the type.
    ///
    /// # Errors
    /// Names the tensor, and the shape or type that it has.
    pub fn computable(&self, tensor: &TensorInfo, dims: &[usize]) -> Result<GgmlType> {
        let path = self.path_of(tensor);
        if !tensor.dims.iter().copied().eq(dims.iter().map(|&d| d as u64)) {
            let what = format!("tensor {}", tensor.name);
            return Err(Error::format(path, what, format!("shape {dims:?}"), format!("{:?}", tensor.dims)));
        }
        let ty = tensor.ggml_type(path)?;
        if !ty.is_computable() {
            let what = format!("the type of tensor {}", tensor.name);
            return Err(Error::unsupported(path, what, "a type with kernels", ty));
        }
        Ok(ty)
    }

    /// Reads a whole tensor into `buf`, which must have its length.
    ///
    /// # Errors
    /// [`Error::Io`] that names file, tensor, length and offset, also where the file has shrunk since;
    /// [`Error::Unsupported`] for a tensor of unknown type; [`Error::Request`] for a `buf` of another length.
    pub fn read_tensor(&self, tensor: &TensorInfo, buf: &mut [u8]) -> Result<()> {
        let bytes = tensor.require_bytes(self.path_of(tensor))?;
        if bytes != buf.len() as u64 {
            return Err(Error::request(
                format!("buffer for tensor {}", tensor.name),
                format!("{bytes} bytes"),
                buf.len(),
            ));
        }
        self.read_tensor_part(tensor, 0, buf)
    }

    /// Reads `buf.len()` bytes from byte `start` of a tensor: some of its rows, one of its experts.
    ///
    /// # Errors
    /// As [`Gguf::read_tensor`]; a part that is not inside the tensor is an [`Error::Request`].
    pub fn read_tensor_part(&self, tensor: &TensorInfo, start: u64, buf: &mut [u8]) -> Result<()> {
        let Shard { path, file, .. } = &self.shards[tensor.shard];
        read_part(path, &**file, tensor, start, buf)
    }

    /// Something that reads parts of one tensor, and outlives this.
    pub fn reader(&self, tensor: &TensorInfo) -> TensorReader {
        let Shard { path, file, len } = &self.shards[tensor.shard];
        TensorReader { shard: Shard { path: path.clone(), file: file.clone(), len: *len }, tensor: tensor.clone() }
    }
}

/// Reads parts of one tensor, without the metadata of its model.
pub struct TensorReader {
    shard: Shard,
    tensor: TensorInfo,
}

impl TensorReader {
    /// Tells the system that `len` bytes from `start` on will be read, so that it can fetch several such parts at once. A hint:
    /// what goes wrong shows when they are read.
    pub fn announce(&self, start: u64, len: usize) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            let len = std::num::NonZeroU64::new(len as u64);
            let offset = self.tensor.offset + start;
            let _ = rustix::fs::fadvise(&*self.shard.file, offset, len, rustix::fs::Advice::WillNeed);
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let _ = (start, len);
    }

    /// As [`Gguf::read_tensor_part`].
    ///
    /// # Errors
    /// As [`Gguf::read_tensor_part`].
    pub fn read(&self, start: u64, buf: &mut [u8]) -> Result<()> {
        read_part(&self.shard.path, &*self.shard.file, &self.tensor, start, buf)
    }
}

fn read_part(path: &Path, file: &impl ReadAt, tensor: &TensorInfo, start: u64, buf: &mut [u8]) -> Result<()> {
    let bytes = tensor.require_bytes(path)?;
    let len = buf.len() as u64;
    if start.checked_add(len).is_none_or(|end| end > bytes) {
        let what = format!("part of tensor {}", tensor.name);
        return Err(Error::request(what, format!("inside its {bytes} bytes"), format!("{len} bytes at {start}")));
    }
    read_at(path, file, tensor.offset + start, buf, format_args!(" of tensor {}", tensor.name))
}

/// Fills `buf` from byte `offset` of the file, as patiently as experts are read; `of` ends what an error says was tried.
fn read_at(path: &Path, file: &impl ReadAt, offset: u64, buf: &mut [u8], of: fmt::Arguments<'_>) -> Result<()> {
    let len = buf.len();
    patiently(|(_, e)| e, || read_full_at(file, buf, offset))
        .map_err(|(got, source)| Error::io(path, format!("read {len} bytes at {offset}{of} (got {got})"), source))
}

/// Opens and parses one file; `action` is what an error says that we could not do.
fn open_shard(path: &Path, index: usize, extent: Extent, action: &str) -> Result<(Shard, Header)> {
    let file = input::open_as(path, action)?;
    let len = file.metadata().map_err(|e| Error::io(path, action, e))?.len();
    if len == 0 {
        return Err(Error::io(path, action, std::io::Error::other("the file is empty")));
    }
    let header = parse_from(path, &file, len, index, extent)?;
    Ok((Shard { path: path.to_owned(), file: Arc::new(file), len }, header))
}

/// Refuses a file whose metadata says that it belongs elsewhere.
fn check_member(path: &Path, meta: &Metadata, index: usize, count: usize) -> Result<()> {
    let wrong = |what: &str, expected: usize, got: u32| {
        Err(Error::format(path, format!("metadata key {what:?}"), expected, got))
    };
    match (meta.require_u32("split.count")?, meta.require_u32("split.no")?) {
        (n, _) if n as usize != count => wrong("split.count", count, n),
        (_, no) if no as usize != index => wrong("split.no", index, no),
        _ => Ok(()),
    }
}

/// `NAME-00002-of-00003.gguf`, taken apart.
struct SplitName {
    folder: PathBuf,
    name: String,
    /// From 1.
    number: usize,
    count: usize,
}

impl SplitName {
    fn of(path: &Path) -> Option<SplitName> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, number) = rest.rsplit_once('-')?;
        let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(count) || !digits(number) {
            return None;
        }
        let (number, count) = (number.parse().ok()?, count.parse().ok()?);
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        (1..=count).contains(&number).then(|| SplitName { folder, name: name.to_owned(), number, count })
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.join(format!("{}-{number:05}-of-{:05}.gguf", self.name, self.count))
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io};

    use super::*;
    use crate::gguf::TensorType;

    /// A drive whose first reads fail with this error.
    struct Failing(io::ErrorKind, Cell<u32>);

    impl ReadAt for Failing {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            if self.1.get() > 0 {
                self.1.set(self.1.get() - 1);
                return Err(self.0.into());
            }
            buf[0] = offset as u8;
            Ok(1)
        }
    }

    #[test]
    fn tensors_are_read_as_patiently_as_experts() {
        let ty = TensorType::Ggml(GgmlType::F32);
        let tensor = TensorInfo { name: "t".to_owned(), dims: vec![8], ty, shard: 0, offset: 64, bytes: Some(32) };
        let read = |kind, times| {
            let mut buf = [0; 8];
            read_part(Path::new("m.gguf"), &Failing(kind, Cell::new(times)), &tensor, 4, &mut buf).map(|()| buf)
        };
        for (kind, times) in
            [(io::ErrorKind::Interrupted, 9), (io::ErrorKind::WouldBlock, 9), (io::ErrorKind::TimedOut, 3)]
        {
            assert_eq!(read(kind, times).unwrap(), [68, 69, 70, 71, 72, 73, 74, 75]);
        }
        let text = read(io::ErrorKind::TimedOut, 4).unwrap_err().to_string();
        assert_eq!(text, "m.gguf: cannot read 8 bytes at 68 of tensor t (got 0): timed out");
    }
}
