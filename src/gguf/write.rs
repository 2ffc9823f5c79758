//! Writes GGUF files as a stream: the header first, then each tensor's bytes in the declared order.
//!
//! The file is whole or not there at all ([`crate::new_file`]). Must not know: where the tensor data comes from.

use std::path::{Path, PathBuf};

use super::meta::{encode, encode_str};
use super::{DEFAULT_ALIGNMENT, Metadata, TensorInfo, TensorType, Value, tensor_bytes};
use crate::error::{Error, Result};
use crate::new_file::NewFile;
use crate::quant::GgmlType;

/// Collects metadata and tensor declarations. Nothing is written before [`GgufWriter::start`].
#[derive(Debug)]
pub struct GgufWriter {
    out: NewFile,
    meta: Metadata,
    /// Offsets relative to the data section.
    tensors: Vec<TensorInfo>,
    alignment: u64,
}

impl GgufWriter {
    /// Prepares to write `path` (format version 3). Where the file exists, `overwrite` must be true.
    ///
    /// # Errors
    /// Where `path` exists and may not be replaced, or cannot be written.
    pub fn new(path: &Path, overwrite: bool) -> Result<GgufWriter> {
        NewFile::open(path, overwrite).map(Self::to)
    }

    /// Prepares to write a file that was begun.
    pub fn to(out: NewFile) -> GgufWriter {
        let meta = Metadata::new(out.path());
        GgufWriter { out, meta, tensors: Vec::new(), alignment: DEFAULT_ALIGNMENT }
    }

    /// Adds a metadata entry; a key given twice is an error.
    ///
    /// `general.alignment` also sets the alignment: it must be a `u32`, a power of two up to
    /// [`super::MAX_ALIGNMENT`], and come before tensors.
    pub fn meta(&mut self, key: &str, value: impl Into<Value>) -> Result<&mut Self> {
        let value = value.into();
        if key == "general.alignment" {
            self.alignment = match value {
                Value::U32(a) if super::valid_alignment(a) && self.tensors.is_empty() => u64::from(a),
                _ => {
                    return Err(self.meta.wrong(key, "a u32 power of two up to 2^20, before any tensor", value.kind()));
                }
            };
        }
        self.meta.insert(key.to_owned(), value)?;
        Ok(self)
    }

    /// Declares the next tensor; `dims[0]` is the length of a row.
    ///
    /// # Errors
    /// [`Error::Format`] for 0 or more than 4 dims, a zero dim, or rows that are not whole blocks.
    pub fn tensor(&mut self, name: &str, dims: &[u64], ty: GgmlType) -> Result<&mut Self> {
        let wrong = |expected: &str, got: String| {
            Err(Error::format(self.out.path(), format!("tensor {name:?}"), expected, got))
        };
        if !(1..=4).contains(&dims.len()) {
            return wrong("1 to 4 dimensions", dims.len().to_string());
        }
        let ty = TensorType::Ggml(ty);
        let bytes = tensor_bytes(self.out.path(), name, dims, ty)?;
        let offset = match self.tensors.last() {
            Some(t) => (t.end().expect("no end above 2^63 was let in")).next_multiple_of(self.alignment),
            None => 0,
        };
        if offset.checked_add(bytes.expect("the type is known")).is_none_or(|end| end >= 1 << 63) {
            return wrong("fewer than 2^63 bytes of tensor data", format!("{dims:?} at {offset}"));
        }
        self.tensors.push(TensorInfo { name: name.to_owned(), dims: dims.to_vec(), ty, shard: 0, offset, bytes });
        Ok(self)
    }

    /// Takes the room that the file needs and writes the header.
    ///
    /// # Errors
    /// [`Error::Format`] where a tensor name was declared twice; [`Error::Io`].
    pub fn start(self) -> Result<TensorWriter> {
        super::unique_names(self.out.path(), self.tensors.iter())?;
        let mut header = Vec::new();
        header.extend_from_slice(b"GGUF");
        header.extend_from_slice(&3u32.to_le_bytes());
        header.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(self.meta.len() as u64).to_le_bytes());
        for (key, value) in self.meta.iter() {
            encode_str(key, &mut header);
            header.extend_from_slice(&value.type_id().to_le_bytes());
            encode(value, &mut header);
        }
        for t in &self.tensors {
            encode_str(&t.name, &mut header);
            header.extend_from_slice(&(t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| header.extend_from_slice(&d.to_le_bytes()));
            header.extend_from_slice(&t.ty.id().to_le_bytes());
            header.extend_from_slice(&t.offset.to_le_bytes());
        }
        header.resize(header.len().next_multiple_of(self.alignment as usize), 0);

        let data = self.tensors.last().map_or(0, |t| t.end().expect("checked above").next_multiple_of(self.alignment));
        let mut out = self.out;
        let bytes = header.len() as u64 + data;
        out.reserve(bytes)?;
        let (tensors, alignment) = (self.tensors, self.alignment);
        let mut writer = TensorWriter { out, bytes, tensors, alignment, begun: 0, missing: 0, padded: false };
        writer.out.write(&header)?;
        Ok(writer)
    }
}

/// The second half of a [`GgufWriter`]: takes the tensors' bytes. Dropped unfinished, it removes what it wrote.
#[derive(Debug)]
pub struct TensorWriter {
    out: NewFile,
    /// Length of the whole file.
    bytes: u64,
    tensors: Vec<TensorInfo>,
    alignment: u64,
    /// Tensors begun so far.
    begun: usize,
    /// Bytes that the tensor begun last still lacks.
    missing: u64,
    /// The last tensor's padding is there.
    padded: bool,
}

impl TensorWriter {
    /// Length of the whole file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Begins the next tensor, which must be `name`, after the last one got all its bytes.
    pub fn begin(&mut self, name: &str) -> Result<()> {
        self.check_complete()?;
        let bytes = match self.tensors.get(self.begun) {
            Some(t) if t.name == name => t.bytes.expect("the writer declares known types only"),
            Some(t) => return Err(Error::request("next tensor to write", &t.name, name)),
            None => return Err(Error::request("next tensor to write", "none, all are written", name)),
        };
        self.pad()?;
        self.missing = bytes;
        self.begun += 1;
        Ok(())
    }

    /// Appends bytes to the tensor that was begun; more than it has room for is an [`Error::Request`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self.missing.checked_sub(bytes.len() as u64) {
            Some(left) => self.missing = left,
            None => {
                let what = format!("data of tensor {}", self.current());
                return Err(Error::request(what, format!("at most {} more bytes", self.missing), bytes.len()));
            }
        }
        self.out.write(bytes)
    }

    /// [`TensorWriter::begin`] and all the bytes at once.
    pub fn write_tensor(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.begin(name)?;
        self.write(bytes)
    }

    /// Where what was written can be read until [`TensorWriter::finish`], if at all, once every tensor has its bytes: see
    /// [`NewFile::read_back`].
    ///
    /// # Errors
    /// [`Error::Request`] where tensor bytes are missing; [`Error::Io`].
    pub fn read_back(&mut self) -> Result<Option<PathBuf>> {
        self.complete()?;
        self.out.read_back()
    }

    /// Flushes all to the device and gives the file its name.
    ///
    /// # Errors
    /// [`Error::Request`] where tensor bytes are missing, or where `overwrite` is false and the target has appeared
    /// since; [`Error::Io`]. In each case the target is untouched.
    pub fn finish(mut self) -> Result<()> {
        self.complete()?;
        self.out.finish()
    }

    /// Adds the padding behind the last tensor, once.
    fn complete(&mut self) -> Result<()> {
        self.check_complete()?;
        if let Some(t) = self.tensors.get(self.begun) {
            return Err(Error::request("tensors written", format!("all, {} too", t.name), self.begun));
        }
        if std::mem::replace(&mut self.padded, true) { Ok(()) } else { self.pad() }
    }

    fn current(&self) -> &str {
        self.begun.checked_sub(1).map_or("(none begun)", |i| &self.tensors[i].name)
    }

    fn check_complete(&self) -> Result<()> {
        if self.missing > 0 {
            let what = format!("data of tensor {}", self.current());
            return Err(Error::request(what, format!("{} more bytes", self.missing), "the end"));
        }
        Ok(())
    }

    /// Zeros up to the alignment, after the tensor begun last.
    fn pad(&mut self) -> Result<()> {
        let Some(i) = self.begun.checked_sub(1) else { return Ok(()) };
        let end = self.tensors[i].end().expect("GgufWriter::tensor has checked the sum");
        let padding = (end.next_multiple_of(self.alignment) - end) as usize;
        self.out.write(&vec![0; padding])
    }
}
