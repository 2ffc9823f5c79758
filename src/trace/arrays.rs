//! The arrays of an `.npz` or a lone `.npy` that an import reads, within a limit on what they inflate to.
//!
//! Must not know: what a trace makes of them.

use std::{
    collections::BTreeMap,
    io::{BufReader, Read},
    path::Path,
};

use zip::{ZipArchive, result::ZipError};

use super::file::{Header, MAX_BYTES};
use crate::{
    Error, Result, input, machine,
    npy::{Data, Npy},
};

/// Arrays of an import at most, whatever memory there is: deflate makes 4 GiB of 4 MB.
const MAX_ARRAY_BYTES: u64 = 4 << 30;

/// Names of arrays that mean something to an import.
const KNOWN: [&str; 11] = [
    "experts",
    "ids",
    "n_expert",
    "prompt_start",
    "probs",
    "pred_mid_plus1",
    "weights",
    "phase",
    "batch",
    "position",
    "pred_mid_plus1_score",
];

/// Arrays by name; a lone `.npy` has the empty name.
pub(super) type Arrays = BTreeMap<String, Npy>;

/// Integers of any type, in C order.
pub(super) struct Ints<'a>(&'a Npy);

impl<'a> Ints<'a> {
    /// # Errors
    /// If these are floating-point numbers.
    pub fn new(npy: &'a Npy) -> Result<Self> {
        if matches!(npy.data, Data::F32(_)) { Err(npy.wrong("integers")) } else { Ok(Self(npy)) }
    }

    pub fn at(&self, i: usize) -> i64 {
        match &self.0.data {
            Data::I32(v) => i64::from(v[i]),
            Data::I64(v) => v[i],
            Data::U8(v) => i64::from(v[i]),
            Data::U16(v) => i64::from(v[i]),
            Data::F32(_) => unreachable!("new lets no floats in"),
        }
    }
}

/// The arrays of `path` that an import knows, and a trace's header, if there.
///
/// # Errors
/// What is no such file, and arrays that need more memory than half of what is free.
pub(super) fn read(path: &Path) -> Result<(Arrays, Option<Header>)> {
    // Half: an array is in memory twice while it is read, as bytes and as numbers.
    let free = machine::available_bytes().unwrap_or(u64::MAX);
    read_within(path, MAX_ARRAY_BYTES.min(free / 2))
}

/// As [`read`], with arrays of `limit` bytes at most, all together.
fn read_within(path: &Path, limit: u64) -> Result<(Arrays, Option<Header>)> {
    let file = BufReader::new(input::open(path)?);
    if path.extension().is_some_and(|e| e == "npy") {
        return Ok((BTreeMap::from([(String::new(), Npy::from_reader(path, file, limit)?)]), None));
    }
    let broken = |e: ZipError| Error::format(path, "the archive", "an .npz", e);
    let mut archive = ZipArchive::new(file).map_err(broken)?;
    let (mut arrays, mut header, mut left) = (BTreeMap::new(), None, limit);
    for i in 0..archive.len() {
        let member = archive.by_index(i).map_err(broken)?;
        let full = member.name().map_err(broken)?.into_owned();
        let name = full.strip_suffix(".npy").unwrap_or(&full);
        if full == "header.json" {
            header = Some(read_header(path, member)?);
        } else if KNOWN.contains(&name) {
            let npy = Npy::from_reader(&path.join(name), member, left)?;
            left = left.saturating_sub(npy.heap_bytes());
            if arrays.insert(name.to_owned(), npy).is_some() {
                return Err(Error::format(path, "the archive", format!("one array named {name}"), "two"));
            }
        }
    }
    Ok((arrays, header))
}

fn read_header(path: &Path, member: impl Read) -> Result<Header> {
    let mut bytes = Vec::new();
    member.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read header.json", e))?;
    if bytes.len() > MAX_BYTES {
        return Err(Error::format(path, "header.json", format!("at most {MAX_BYTES} bytes"), "more"));
    }
    serde_json::from_slice(&bytes).map_err(|e| Error::format(path, "header.json", "the header of a trace", e))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::npy;

    /// An archive whose `experts` are `n` zeros of shape `shape`.
    fn archive(path: &Path, shape: &[u64], n: usize) {
        let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
        for name in ["experts.npy", "weights.npy", "unknown.npy"] {
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(&npy::header("|u1", shape)).unwrap();
            zip.write_all(&vec![0; n]).unwrap();
        }
        zip.finish().unwrap();
    }

    #[test]
    fn what_inflates_is_limited_array_by_array_and_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let error = |limit| read_within(&path, limit).unwrap_err().to_string();
        archive(&path, &[1000, 100, 10], 1_000_000);
        assert!(std::fs::metadata(&path).unwrap().len() < 20_000);
        assert_eq!(read_within(&path, 2_000_000).unwrap().0.len(), 2, "of the third nothing is known");
        let (first, second) = (error(999_999), error(1_999_999));
        assert!(first.contains("experts") && first.contains("at most 999999 bytes"), "{first}");
        assert!(second.contains("weights") && second.contains("at most 999999 bytes"), "{second}");
        // The header says less than there is: it is not read to its end.
        archive(&path, &[10, 10, 10], 1_000_000);
        let longer = error(2_000);
        assert!(longer.contains("[10, 10, 10]") && longer.contains("got more"), "{longer}");
    }
}
