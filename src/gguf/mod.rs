//! GGUF, the file format: header, metadata and tensor table, parsed from bytes; files and split sets; a writer.
//!
//! The input is not trusted. Every count, length and offset is checked against the bytes that are left before it
//! is used, nothing is allocated by a number that the file merely claims, and nothing here panics on input.
//!
//! Names and token texts must be UTF-8. llama.cpp takes any bytes, but the format says UTF-8, every converter writes it
//! (byte tokens as `<0x0A>` or in GPT-2's alphabet; so do all 19 vocabularies in llama.cpp's own tree), and a lossy reading
//! could give two tokens one text. Other strings are for people, or are compared with a few known ones: a wrong byte in them
//! is read as U+FFFD and costs nobody the model.
//!
//! Must not know: what a key or a tensor means, how types are computed with.

mod cursor;
mod file;
mod holes;
mod meta;
mod reader;
mod write;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use self::cursor::{Cursor, Strings};
use crate::error::{Error, Result};
use crate::input::ReadAt;
use crate::quant::{GgmlType, foreign_type};

pub use file::{Gguf, Shard, TensorReader};
pub use meta::{Array, Metadata, Value};
pub use reader::Reader;
pub use write::{GgufWriter, TensorWriter};

/// The alignment of tensor data in bytes where the file names none.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// Most bytes that header, metadata and tensor table may take together. The largest vocabularies need 20 MB; the
/// limit bounds what a hostile file can make us allocate (a 24-byte `String` for each 8-byte empty one).
pub const MAX_HEADER_BYTES: usize = 128 << 20;

/// Largest alignment: a limit on what padding can make anyone write. Files in use have 32.
pub const MAX_ALIGNMENT: u32 = 1 << 20;

/// What the keys begin with whose strings are token texts, or merged to such.
const TOKENIZER_PREFIX: &str = "tokenizer.ggml.";

/// Most arrays within arrays. No known file nests at all.
const MAX_DEPTH: usize = 4;

/// A tensor's element type: one that ggml has, or a number that this build does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// A type whose size is known.
    Ggml(GgmlType),
    /// Kept opaque, so that a file can be listed and its other tensors used.
    Unknown(u32),
}

impl TensorType {
    /// ggml's number.
    pub fn id(self) -> u32 {
        match self {
            TensorType::Ggml(ty) => ty.id(),
            TensorType::Unknown(id) => id,
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorType::Ggml(ty) => ty.fmt(f),
            TensorType::Unknown(id) => match foreign_type(*id) {
                Some((name, whose)) => write!(f, "{name} ({whose})"),
                None => write!(f, "unknown type {id}"),
            },
        }
    }
}

/// One row of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, unique in the file and in a split set.
    pub name: String,
    /// 1 to 4 lengths, none zero, their product below 2^63; `dims[0]` is the length of a row.
    pub dims: Vec<u64>,
    /// Element type.
    pub ty: TensorType,
    /// Index into [`Gguf::shards`].
    pub shard: usize,
    /// First byte, counted from the start of that shard's file.
    pub offset: u64,
    /// Length in bytes; `None` where the type is unknown.
    pub bytes: Option<u64>,
}

impl TensorInfo {
    /// The type, or an [`Error::Unsupported`] where it is unknown. `path` is for the error.
    pub fn ggml_type(&self, path: &Path) -> Result<GgmlType> {
        match self.ty {
            TensorType::Ggml(ty) => Ok(ty),
            TensorType::Unknown(id) => Err(Error::unsupported(
                path,
                format!("the type of tensor {}", self.name),
                "one of ggml's types that this build knows",
                match foreign_type(id) {
                    Some((name, whose)) => format!("{name}, type number {id} of {whose}"),
                    None => format!("type number {id}"),
                },
            )),
        }
    }

    /// Length in bytes, or an [`Error::Unsupported`] where the type is unknown. `path` is for the error.
    pub fn require_bytes(&self, path: &Path) -> Result<u64> {
        self.ggml_type(path)?;
        Ok(self.bytes.expect("the parser sets bytes for every known type"))
    }

    /// Elements in a row: `dims[0]`.
    pub fn row_len(&self) -> u64 {
        self.dims[0]
    }

    /// Number of rows: the product of the dims above the first.
    pub fn rows(&self) -> u64 {
        self.dims[1..].iter().product()
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Bytes of a row; `None` where the type is unknown.
    pub fn row_bytes(&self) -> Option<u64> {
        match self.ty {
            TensorType::Ggml(ty) => ty.row_bytes(self.row_len()),
            TensorType::Unknown(_) => None,
        }
    }

    /// One past the last byte, for overlap checks: a tensor of unknown type counts as one byte.
    fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.bytes.unwrap_or(1))
    }
}

/// What a file's first bytes say.
#[derive(Clone, Debug)]
pub struct Header {
    /// Format version: 2 or 3.
    pub version: u32,
    /// The metadata.
    pub meta: Metadata,
    /// The tensor table, in file order.
    pub tensors: Vec<TensorInfo>,
    /// Alignment of tensor data in bytes, a power of two.
    pub alignment: u64,
    /// Where tensor data begins, in bytes from the start of the file.
    pub data_offset: u64,
}

/// How much of a file there must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Header and all tensor data.
    Whole,
    /// The header alone: tensor data may be missing (a partial download).
    HeaderOnly,
}

/// Parses one file's header, metadata and tensor table.
///
/// `bytes` is the file from its first byte: all of it for [`Extent::Whole`]. `path` is what errors name, `shard`
/// what each [`TensorInfo::shard`] gets.
///
/// # Errors
/// [`Error::Truncated`] where the bytes end inside the header, [`Error::Format`] where they break the format,
/// [`Error::Unsupported`] for another version or byte order.
pub fn parse(path: &Path, bytes: &[u8], shard: usize, extent: Extent) -> Result<Header> {
    parse_from(path, &bytes, bytes.len() as u64, shard, extent)
}

/// [`parse`] of a `source` of `len` bytes, of which only the header is read, piece by piece.
///
/// # Errors
/// As [`parse`]; [`Error::Io`] for what cannot be read.
pub fn parse_from(path: &Path, source: &dyn ReadAt, len: u64, shard: usize, extent: Extent) -> Result<Header> {
    let mut cursor = Cursor::new(path, source, len);
    let version = parse_version(&mut cursor)?;
    let n_tensors = cursor.u64(format_args!("tensor count"))?;
    let n_entries = cursor.u64(format_args!("metadata count"))?;
    let meta = parse_metadata(&mut cursor, n_entries)?;
    let alignment = match meta.u32("general.alignment")? {
        None => DEFAULT_ALIGNMENT,
        Some(a) if valid_alignment(a) => u64::from(a),
        Some(a) => return Err(meta.wrong("general.alignment", format!("a power of two up to {MAX_ALIGNMENT}"), a)),
    };
    let mut tensors = parse_tensor_table(&mut cursor, n_tensors, alignment, shard)?;
    let data_offset = cursor.pos().next_multiple_of(alignment);
    place_tensors(path, &mut tensors, data_offset)?;
    if extent == Extent::Whole {
        check_inside(path, &tensors, len)?;
    }
    Ok(Header { version, meta, tensors, alignment, data_offset })
}

fn valid_alignment(a: u32) -> bool {
    a.is_power_of_two() && a <= MAX_ALIGNMENT
}

/// Magic and version. The version's byte order is the only mark that a big-endian file carries.
fn parse_version(cursor: &mut Cursor<'_>) -> Result<u32> {
    let magic = cursor.take(4, format_args!("magic"))?;
    if magic != b"GGUF" {
        let got = format!("\"{}\"", magic.escape_ascii());
        return Err(Error::format(cursor.path, "magic", "\"GGUF\"", got));
    }
    let version = cursor.u32(format_args!("version"))?;
    match version {
        2 | 3 => Ok(version),
        v if matches!(v.swap_bytes(), 1..=0xffff) => {
            Err(Error::unsupported(cursor.path, "byte order", "a little-endian file", "a big-endian one"))
        }
        v => Err(Error::unsupported(cursor.path, "GGUF version", "2 or 3", v)),
    }
}

fn parse_metadata(cursor: &mut Cursor<'_>, n: u64) -> Result<Metadata> {
    // The shortest entry: an empty key, a type, one byte.
    cursor.check_count(n, 8 + 4 + 1, format_args!("metadata count"))?;
    let mut meta = Metadata::new(cursor.path);
    for i in 0..n {
        let key = cursor.string(format_args!("key of metadata entry {i}"))?;
        let what = format_args!("metadata key {key:?}");
        let ty = cursor.u32(what)?;
        let strings = if key.starts_with(TOKENIZER_PREFIX) { Strings::Strict } else { Strings::Lossy };
        let value = parse_value(cursor, ty, strings, what)?;
        meta.insert(key, value)?;
    }
    Ok(meta)
}

fn parse_value(cursor: &mut Cursor<'_>, ty: u32, strings: Strings, what: fmt::Arguments<'_>) -> Result<Value> {
    if let Some(scalar) = meta::decode_scalar(ty, |n| cursor.take(n as u64, what)) {
        return scalar;
    }
    match ty {
        7 => cursor.bool(what).map(Value::Bool),
        8 => cursor.text(strings, what).map(Value::String),
        9 => parse_array(cursor, MAX_DEPTH, strings, what).map(Value::Array),
        _ => Err(Error::format(cursor.path, what.to_string(), "a value type from 0 to 12", ty)),
    }
}

/// `depth`: how many arrays may still nest, this one included.
fn parse_array(cursor: &mut Cursor<'_>, depth: usize, strings: Strings, what: fmt::Arguments<'_>) -> Result<Array> {
    if depth == 0 {
        return Err(Error::format(cursor.path, what.to_string(), format!("at most {MAX_DEPTH} nested arrays"), "more"));
    }
    let ty = cursor.u32(what)?;
    let n = cursor.u64(what)?;
    if let Some(plain) = meta::decode_array(ty, n, |bytes| cursor.take(bytes, what)) {
        return plain;
    }
    // Vectors grow with what was read, never by `n`, which is only a claim.
    match ty {
        7 => {
            let path = cursor.path;
            let bytes = cursor.take(n, what)?;
            bytes.iter().map(|&b| decode_bool(path, b, what)).collect::<Result<_>>().map(Array::Bool)
        }
        8 => {
            cursor.check_count(n, 8, what)?;
            let text = |i| cursor.text(strings, format_args!("{what}, element {i}"));
            (0..n).map(text).collect::<Result<_>>().map(Array::String)
        }
        9 => {
            cursor.check_count(n, 4 + 8, what)?;
            (0..n).map(|_| parse_array(cursor, depth - 1, strings, what)).collect::<Result<_>>().map(Array::Array)
        }
        _ => Err(Error::format(cursor.path, what.to_string(), "an element type from 0 to 12", ty)),
    }
}

fn decode_bool(path: &Path, byte: u8, what: fmt::Arguments<'_>) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        b => Err(Error::format(path, what.to_string(), "a bool of 0 or 1", b)),
    }
}

/// The table; offsets are still relative to the data section.
fn parse_tensor_table(cursor: &mut Cursor<'_>, n: u64, alignment: u64, shard: usize) -> Result<Vec<TensorInfo>> {
    // The shortest row: an empty name, one dim, type, offset.
    cursor.check_count(n, 8 + 4 + 8 + 4 + 8, format_args!("tensor count"))?;
    let mut tensors = Vec::new();
    for i in 0..n {
        let name = cursor.string(format_args!("name of tensor {i}"))?;
        let what = format_args!("tensor {name:?}");
        let n_dims = cursor.u32(what)?;
        if !(1..=4).contains(&n_dims) {
            return Err(Error::format(cursor.path, what.to_string(), "1 to 4 dimensions", n_dims));
        }
        let dims = (0..n_dims).map(|_| cursor.u64(what)).collect::<Result<Vec<u64>>>()?;
        let id = cursor.u32(what)?;
        let ty = GgmlType::from_id(id).map_or(TensorType::Unknown(id), TensorType::Ggml);
        let offset = cursor.u64(what)?;
        if !offset.is_multiple_of(alignment) {
            let expected = format!("an offset that is a multiple of {alignment}");
            return Err(Error::format(cursor.path, what.to_string(), expected, offset));
        }
        let bytes = tensor_bytes(cursor.path, &name, &dims, ty)?;
        tensors.push(TensorInfo { name, dims, ty, shard, offset, bytes });
    }
    Ok(tensors)
}

/// Length in bytes of a tensor of these dims, all checks included; `None` where the type is unknown.
fn tensor_bytes(path: &Path, name: &str, dims: &[u64], ty: TensorType) -> Result<Option<u64>> {
    let wrong = |expected: &str, got: String| Err(Error::format(path, format!("tensor {name:?}"), expected, got));
    if dims.contains(&0) {
        return wrong("no dimension of zero", format!("{dims:?}"));
    }
    let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n < 1 << 63);
    if elements.is_none() {
        return wrong("fewer than 2^63 elements", format!("{dims:?}"));
    }
    let TensorType::Ggml(ggml) = ty else { return Ok(None) };
    if !dims[0].is_multiple_of(ggml.block_len() as u64) {
        let expected = format!("rows of whole {ggml} blocks of {} elements", ggml.block_len());
        return wrong(&expected, format!("rows of {}", dims[0]));
    }
    let bytes = dims[1..].iter().try_fold(ggml.row_bytes(dims[0]), |n, &d| Some(n?.checked_mul(d))).flatten();
    match bytes {
        Some(n) if n < 1 << 63 => Ok(Some(n)),
        _ => wrong("fewer than 2^63 bytes", format!("{dims:?} of {ggml}")),
    }
}

/// Makes offsets absolute and refuses duplicate names and overlaps.
fn place_tensors(path: &Path, tensors: &mut [TensorInfo], data_offset: u64) -> Result<()> {
    for t in tensors.iter_mut() {
        let relative = t.offset;
        let placed = relative.checked_add(data_offset);
        t.offset = placed.unwrap_or(u64::MAX);
        if t.end().is_none() {
            return Err(Error::format(path, format!("tensor {:?}", t.name), "an offset below 2^64", relative));
        }
    }
    unique_names(path, tensors.iter())?;
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|t| t.offset);
    for pair in by_offset.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        let a_end = a.end().expect("checked above");
        if a_end > b.offset {
            let expected = format!("an offset at or after byte {a_end}, where tensor {:?} ends", a.name);
            return Err(Error::format(path, format!("tensor {:?}", b.name), expected, format!("byte {}", b.offset)));
        }
    }
    Ok(())
}

/// Index of each name, or an error for a name that comes twice.
fn unique_names<'a>(path: &Path, tensors: impl Iterator<Item = &'a TensorInfo>) -> Result<HashMap<String, usize>> {
    let mut index = HashMap::new();
    for (i, t) in tensors.enumerate() {
        if index.insert(t.name.clone(), i).is_some() {
            return Err(Error::format(path, format!("tensor {:?}", t.name), "one tensor of that name", "two"));
        }
    }
    Ok(index)
}

fn check_inside(path: &Path, tensors: &[TensorInfo], file_len: u64) -> Result<()> {
    for t in tensors {
        let end = t.end().expect("place_tensors has checked the sum");
        if end > file_len {
            let expected = format!("bytes {} to {end} inside the file", t.offset);
            let got = format!("a file of {file_len} bytes (truncated, or still downloading?)");
            return Err(Error::format(path, format!("data of tensor {:?}", t.name), expected, got));
        }
    }
    Ok(())
}
