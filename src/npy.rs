//! NumPy's `.npy` files: what `hotset logits` writes, and what the golden tests read.
//!
//! Little-endian and C order only. Must not know: what the numbers mean.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::new_file::NewFile;

/// Magic and version 1.0; a u16 header length follows.
const MAGIC: &[u8; 8] = b"\x93NUMPY\x01\x00";

/// NumPy's header of a plain array has some hundred bytes.
const MAX_DICT_BYTES: u32 = 1 << 16;

/// An element that can be written.
pub trait Element: Copy {
    /// NumPy's name for the type.
    const DESCR: &'static str;
    /// The little-endian bytes.
    fn bytes(self) -> [u8; 4];
}

impl Element for f32 {
    const DESCR: &'static str = "<f4";
    fn bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
}

impl Element for i32 {
    const DESCR: &'static str = "<i4";
    fn bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
}

/// Writes an array item by item along its first axis.
#[derive(Debug)]
pub struct NpyWriter<T> {
    out: NewFile,
    shape: Vec<u64>,
    rows: u64,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> NpyWriter<T> {
    /// Begins an array of `shape`, which has at least one axis: `&[n_token, n_vocab]` for logits. The room that it needs is
    /// taken now.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn new(mut out: NewFile, shape: &[usize]) -> Result<NpyWriter<T>> {
        let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        let header = header(T::DESCR, &shape);
        out.reserve(
            shape.iter().fold(4, |bytes: u64, &n| bytes.saturating_mul(n)).saturating_add(header.len() as u64),
        )?;
        out.write(&header)?;
        Ok(NpyWriter { out, shape, rows: 0, element: std::marker::PhantomData })
    }

    /// Appends one item; its length must be the product of all axes but the first.
    ///
    /// # Errors
    /// [`Error::Request`] for another length; what the system says, with the path.
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        let n: u64 = self.shape[1..].iter().product();
        if values.len() as u64 != n {
            return Err(Error::request(
                format!("item {} of {}", self.rows, self.out.path().display()),
                n,
                values.len(),
            ));
        }
        for v in values {
            self.out.write(&v.bytes())?;
        }
        self.rows += 1;
        Ok(())
    }

    /// Gives the file its name. Without this call there is no file.
    ///
    /// # Errors
    /// [`Error::Request`] where items are missing or too many; as [`NewFile::finish`].
    pub fn finish(self) -> Result<()> {
        if self.rows != self.shape[0] {
            let what = format!("the items of {}", self.out.path().display());
            return Err(Error::request(what, self.shape[0], self.rows));
        }
        self.out.finish()
    }
}

/// The start of a file, padded to a multiple of 64 bytes. `descr`: NumPy's name for the type of the elements.
pub(crate) fn header(descr: &str, shape: &[u64]) -> Vec<u8> {
    let shape = match shape {
        [n] => format!("{n},"),
        shape => shape.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
    };
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    let bytes = (MAGIC.len() + 2 + dict.len() + 1).next_multiple_of(64);
    let mut header = MAGIC.to_vec();
    let dict_bytes = u16::try_from(bytes - MAGIC.len() - 2).expect("a shape of a few numbers is short");
    header.extend_from_slice(&dict_bytes.to_le_bytes());
    header.extend_from_slice(dict.as_bytes());
    header.resize(bytes - 1, b' ');
    header.push(b'\n');
    header
}

/// The elements of an array that was read, in C order.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are the element types")]
pub enum Data {
    /// Also what `<f2` is widened to.
    F32(Vec<f32>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    U8(Vec<u8>),
    U16(Vec<u16>),
}

/// An array that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Npy {
    /// Length of each axis, the slowest first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The product of `shape` elements.
    pub data: Data,
    path: PathBuf,
}

impl Npy {
    /// Reads a file.
    ///
    /// # Errors
    /// As [`Npy::from_reader`].
    pub fn read(path: &Path) -> Result<Npy> {
        let file = crate::input::open(path)?;
        let bytes = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
        Npy::from_reader(path, BufReader::new(file), bytes)
    }

    /// Parses a file's bytes; `path` is what errors name.
    ///
    /// # Errors
    /// As [`Npy::from_reader`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Npy> {
        Npy::from_reader(path, bytes, bytes.len() as u64)
    }

    /// Reads an array of at most `most` bytes, and not a byte more than its header says: what inflates without end is
    /// an error after the first byte too many. `path` is what errors name.
    ///
    /// # Errors
    /// [`Error::Format`] for what is no `.npy` or is longer than allowed, [`Error::Unsupported`] for other types, byte
    /// orders or Fortran order, [`Error::Io`] for what cannot be read.
    pub fn from_reader(path: &Path, mut reader: impl Read, most: u64) -> Result<Npy> {
        let dict = read_dict(path, &mut reader)?;
        let field =
            |name: &str| field(&dict, name).ok_or_else(|| Error::format(path, "header", format!("'{name}'"), &dict));
        let fortran = field("fortran_order")?;
        if !fortran.starts_with("False") {
            return Err(Error::unsupported(path, "array order", "C", "Fortran"));
        }
        let shape = parse_shape(field("shape")?)
            .ok_or_else(|| Error::format(path, "header", "a shape of numbers in parentheses", &dict))?;
        let descr = field("descr")?.trim_start_matches('\'').split('\'').next().unwrap_or_default();
        let width = match descr {
            "|u1" | "<u1" => 1,
            "<u2" | "<f2" => 2,
            "<f4" | "<i4" => 4,
            "<i8" => 8,
            _ => return Err(Error::unsupported(path, "element type", "<f2, <f4, <i4, <i8, |u1 or <u2", descr)),
        };
        let Some(want) = body_bytes(&shape, width).filter(|&bytes| bytes <= most) else {
            let got = format!("the shape {shape:?} of {width} bytes each");
            return Err(Error::format(path, "array data", format!("at most {most} bytes"), got));
        };
        let mut body = Vec::new();
        reader.take(want + 1).read_to_end(&mut body).map_err(|e| Error::io(path, "read", e))?;
        if body.len() as u64 != want {
            let expected = format!("the elements of shape {shape:?} in {width} bytes each");
            let got = if body.len() as u64 > want { "more".to_owned() } else { format!("{} bytes", body.len()) };
            return Err(Error::format(path, "array data", expected, got));
        }
        let data = match descr {
            "<f4" => Data::F32(words(&body).map(f32::from_le_bytes).collect()),
            "<f2" => Data::F32(words(&body).map(|w| half::f16::from_le_bytes(w).to_f32()).collect()),
            "<i4" => Data::I32(words(&body).map(i32::from_le_bytes).collect()),
            "<i8" => Data::I64(words(&body).map(i64::from_le_bytes).collect()),
            "<u2" => Data::U16(words(&body).map(u16::from_le_bytes).collect()),
            _ => Data::U8(body),
        };
        Ok(Npy { shape, data, path: path.to_owned() })
    }

    /// Bytes that the elements take in memory.
    pub fn heap_bytes(&self) -> u64 {
        let (n, width) = match &self.data {
            Data::F32(v) => (v.len(), 4),
            Data::I32(v) => (v.len(), 4),
            Data::I64(v) => (v.len(), 8),
            Data::U8(v) => (v.len(), 1),
            Data::U16(v) => (v.len(), 2),
        };
        n as u64 * width
    }

    /// The elements, where they are f32 (or were f16).
    pub fn f32s(&self) -> Result<&[f32]> {
        if let Data::F32(v) = &self.data { Ok(v) } else { Err(self.wrong("f32")) }
    }

    /// The elements, where they are i32.
    pub fn i32s(&self) -> Result<&[i32]> {
        if let Data::I32(v) = &self.data { Ok(v) } else { Err(self.wrong("i32")) }
    }

    /// The elements, where they are u8.
    pub fn u8s(&self) -> Result<&[u8]> {
        if let Data::U8(v) = &self.data { Ok(v) } else { Err(self.wrong("u8")) }
    }

    /// That the elements are of another type than expected.
    pub(crate) fn wrong(&self, expected: &str) -> Error {
        let got = match self.data {
            Data::F32(_) => "f32",
            Data::I32(_) => "i32",
            Data::I64(_) => "i64",
            Data::U8(_) => "u8",
            Data::U16(_) => "u16",
        };
        Error::format(&self.path, "element type", expected, got)
    }
}

/// The header's dictionary. The reader then stands at the elements.
fn read_dict(path: &Path, reader: &mut impl Read) -> Result<String> {
    let mut take = |n: u64| {
        let mut bytes = Vec::new();
        reader.take(n).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
        Ok::<_, Error>(bytes)
    };
    let wrong = || Error::format(path, "header", "a .npy header of version 1 to 3", "something else");
    let start = take(8)?;
    // Version 1 has a u16 header length, 2 and 3 a u32.
    let bytes = match start.strip_prefix(b"\x93NUMPY") {
        Some([1, _]) => take(2)?.first_chunk().map(|n| u32::from(u16::from_le_bytes(*n))),
        Some([2 | 3, _]) => take(4)?.first_chunk().map(|n| u32::from_le_bytes(*n)),
        _ => None,
    };
    let bytes = bytes.ok_or_else(wrong)?;
    if bytes > MAX_DICT_BYTES {
        return Err(Error::format(path, "header", format!("at most {MAX_DICT_BYTES} bytes"), bytes));
    }
    let dict = take(bytes.into())?;
    let whole = dict.len() as u64 == u64::from(bytes);
    String::from_utf8(dict).ok().filter(|_| whole).ok_or_else(wrong)
}

/// Bytes of the elements; `None` if even the axes that are not empty multiply to more than a computer has. NumPy draws
/// the line there, too, so that nobody meets an empty array with an axis of 2^61.
fn body_bytes(shape: &[usize], width: u64) -> Option<u64> {
    let all = shape.iter().filter(|&&n| n > 0).try_fold(width, |bytes, &n| bytes.checked_mul(n as u64))?;
    let all = Some(all).filter(|&bytes| bytes <= i64::MAX as u64)?;
    Some(if shape.contains(&0) { 0 } else { all })
}

/// What follows `'name':` in the header dictionary.
fn field<'a>(dict: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = dict.split_once(&format!("'{name}':"))?;
    Some(rest.trim_start())
}

fn parse_shape(text: &str) -> Option<Vec<usize>> {
    let (inner, _) = text.strip_prefix('(')?.split_once(')')?;
    inner.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| s.parse().ok()).collect()
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let mut w = NpyWriter::new(NewFile::create(&path).unwrap(), &[2, 3]).unwrap();
        w.write(&[1.0f32, -0.5, f32::MAX]).unwrap();
        w.write(&[0.0, 2.0, 3.0]).unwrap();
        assert!(w.write(&[0.0; 2]).is_err(), "an item of another length");
        w.finish().unwrap();
        let a = Npy::read(&path).unwrap();
        assert_eq!((a.shape.as_slice(), a.f32s().unwrap()), (&[2, 3][..], &[1.0, -0.5, f32::MAX, 0.0, 2.0, 3.0][..]));
        assert!(a.i32s().unwrap_err().to_string().contains("a.npy"));

        assert!(NpyWriter::<i32>::new(NewFile::create(&path).unwrap(), &[1]).unwrap().finish().is_err(), "none of one");
        let mut w = NpyWriter::new(NewFile::create(&path).unwrap(), &[5]).unwrap();
        for i in 0..5 {
            w.write(&[i - 2]).unwrap();
        }
        w.finish().unwrap();
        let a = Npy::read(&path).unwrap();
        assert_eq!((a.shape.as_slice(), a.i32s().unwrap()), (&[5][..], &[-2, -1, 0, 1, 2][..]));
    }

    #[test]
    fn broken_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let mut w = NpyWriter::new(NewFile::create(&path).unwrap(), &[1, 2, 2]).unwrap();
        w.write(&[1i32, 2, 3, 4]).unwrap();
        w.finish().unwrap();
        let good = std::fs::read(&path).unwrap();
        for n in 0..good.len() {
            let e = Npy::parse(&path, &good[..n]).unwrap_err().to_string();
            assert!(e.contains("a.npy"), "{e}");
        }
        let text = |from: &str, to: &str| {
            let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut bytes = good.clone();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            Npy::parse(&path, &bytes).unwrap_err().to_string()
        };
        assert!(text("<i4", ">i4").contains("element type"));
        assert!(text("False", "True ").contains("Fortran"));
        assert!(text("(1, 2, 2)", "(9, 2, 2)").contains("array data"));
        assert!(text("(1, 2, 2)", "(-, 2, 2)").contains("shape"));
    }
}
