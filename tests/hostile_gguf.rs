//! GGUF files made to hurt: each is an error that names the file; nothing panics, nothing allocates on a mere claim.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::dice::Dice;
use common::samples::{Raw, every_value, write_file, write_split_set};
use hotset::gguf::{Extent, Gguf, Header, TensorType, parse, parse_from};
use hotset::input::ReadAt;
use hotset::quant::GgmlType;
use proptest::prelude::*;

/// The system's allocator, remembering the largest request that anyone in this process made.
struct Counting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to `System` with the caller's own arguments; the counter does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System`, as all of this allocator's do.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        LARGEST.fetch_max(new_size, Ordering::Relaxed);
        // SAFETY: `ptr` came from `System`, and the caller's promise about the sizes is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// No file here is larger than 16 KiB; what it makes us allocate must be in proportion.
const MOST_BYTES: usize = 64 << 20;

fn check_allocations() {
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest <= MOST_BYTES, "a single allocation of {largest} bytes");
}

/// Parses bytes that must be an error, and looks for the file's name and these words in it.
#[track_caller]
fn assert_refused(raw: Raw, parts: &[&str]) {
    let error = parse(Path::new("bad.gguf"), &raw.0, 0, Extent::Whole).expect_err("a hostile file was accepted");
    check_allocations();
    let text = error.to_string();
    assert!(text.starts_with("bad.gguf: "), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// A valid file with all types of metadata and some tensors.
fn valid_file() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let tensors: [(&str, &[u64], GgmlType); 3] =
        [("a", &[8, 3], GgmlType::F32), ("b", &[256], GgmlType::Q4_K), ("c", &[32, 2, 2], GgmlType::Q8_0)];
    write_file(&path, &every_value(), &tensors);
    std::fs::read(&path).unwrap()
}

#[test]
fn truncation_at_every_byte_is_an_error() {
    let file = valid_file();
    let whole = parse(Path::new("m.gguf"), &file, 0, Extent::Whole).unwrap();
    let last = whole.tensors.last().unwrap();
    let end = (last.offset + last.bytes.unwrap()) as usize;
    // Without the data only the header counts; its end may lack the padding, too.
    let table_end = (0..=file.len()).find(|&n| parse(Path::new("m.gguf"), &file[..n], 0, Extent::HeaderOnly).is_ok());
    let table_end = table_end.unwrap();
    assert_eq!((table_end as u64).next_multiple_of(32), whole.data_offset);
    for n in 0..table_end {
        let says = format!("the file ends inside its header, after {n} bytes (truncated, or still downloading?): ");
        assert_refused(Raw(file[..n].to_vec()), &[&says]);
    }
    for n in table_end..end {
        assert_refused(Raw(file[..n].to_vec()), &["data of tensor ", "(truncated, or still downloading?)"]);
    }
    parse(Path::new("m.gguf"), &file[..end], 0, Extent::Whole).expect("the padding after the last tensor is optional");
}

#[test]
fn other_formats_and_versions() {
    assert_refused(Raw(b"PK\x03\x04 and more".to_vec()), &["magic", "\"GGUF\"", "PK\\x03\\x04"]);
    assert_refused(Raw(b"FUGG\0\0\0\x03".to_vec()), &["magic"]);
    for version in [0, 1, 4, u32::MAX] {
        assert_refused(Raw(b"GGUF".to_vec()).u32(version).u64(0).u64(0), &["GGUF version", &version.to_string()]);
    }
    for version in [2u32, 3] {
        assert_refused(Raw(b"GGUF".to_vec()).u32(version.swap_bytes()).u64(0).u64(0), &["byte order", "big-endian"]);
    }
}

#[test]
fn counts_that_no_file_can_hold() {
    for n in [1, 100, 1 << 32, u64::MAX / 8, u64::MAX] {
        assert_refused(Raw::header(n, 0), &["tensor count", &n.to_string()]);
        assert_refused(Raw::header(0, n), &["metadata count", &n.to_string()]);
        // A string, and arrays of each element type, strings and arrays included.
        assert_refused(Raw::header(0, 1).str("k").u32(8).u64(n), &["metadata key \"k\""]);
        for ty in 0..13 {
            assert_refused(Raw::header(0, 1).str("k").u32(9).u32(ty).u64(n), &["metadata key \"k\""]);
        }
    }
    for n in [100, 1 << 32, u64::MAX] {
        assert_refused(Raw::header(0, 1).u64(n).bytes(&[0; 40]), &["key of metadata entry 0", &n.to_string()]);
        assert_refused(Raw::header(1, 0).u64(n).bytes(&[0; 40]), &["name of tensor 0", &n.to_string()]);
    }
    assert_refused(Raw::header(1, 0).str("t").u32(u32::MAX).bytes(&[1; 64]), &["\"t\"", "1 to 4 dimensions"]);
}

#[test]
fn metadata_that_breaks_the_format() {
    assert_refused(Raw::header(0, 1).str("k").u32(13).u64(0), &["\"k\"", "value type", "13"]);
    assert_refused(Raw::header(0, 1).str("k").u32(9).u32(13).u64(0), &["\"k\"", "element type", "13"]);
    assert_refused(Raw::header(0, 1).str("k").u32(7).bytes(&[2]), &["\"k\"", "a bool of 0 or 1", "2"]);
    assert_refused(Raw::header(0, 1).str("k").u32(9).u32(7).u64(2).bytes(&[1, 7]), &["\"k\"", "a bool of 0 or 1"]);
    assert_refused(Raw::header(0, 1).u64(1).bytes(&[0xff]).u32(0).u64(0), &["key of metadata entry 0", "UTF-8"]);
    let pre = Raw::header(0, 1).str("tokenizer.ggml.pre").u32(8).u64(2).bytes(&[b'a', 0xff]);
    assert_refused(pre, &["\"tokenizer.ggml.pre\"", "UTF-8", "0xff at 1"]);
    let tokens = Raw::header(0, 1).str("tokenizer.ggml.tokens").u32(9).u32(8).u64(2).str("ok").u64(1).bytes(&[0xc3]);
    assert_refused(tokens, &["\"tokenizer.ggml.tokens\", element 1", "UTF-8"]);
    let twice = Raw::header(0, 2).str("k").u32(0).bytes(&[1]).str("k").u32(0).bytes(&[1]);
    assert_refused(twice, &["\"k\"", "two entries"]);
    let nested = (0..1000).fold(Raw::header(0, 1).str("k").u32(9), |raw, _| raw.u32(9).u64(1));
    assert_refused(nested, &["\"k\"", "at most 4 nested arrays"]);
    for alignment in [0, 3, 48, 1 << 31] {
        let raw = Raw::header(0, 1).str("general.alignment").u32(4).u32(alignment);
        assert_refused(raw, &["general.alignment", "a power of two"]);
    }
    let text = Raw::header(0, 1).str("general.alignment").u32(8).str("32");
    assert_refused(text, &["general.alignment", "an integer", "string \"32\""]);
}

#[test]
fn tensors_that_break_the_format() {
    let one = |dims: &[u64], ty: u32, offset: u64| Raw::header(1, 0).tensor("t", dims, ty, offset).data(4096);
    assert_refused(one(&[], 0, 0), &["\"t\"", "1 to 4 dimensions", "0"]);
    assert_refused(one(&[1; 5], 0, 0), &["\"t\"", "1 to 4 dimensions", "5"]);
    assert_refused(one(&[4, 0], 0, 0), &["\"t\"", "no dimension of zero"]);
    assert_refused(one(&[1 << 32, 1 << 32], 0, 0), &["\"t\"", "elements"]);
    assert_refused(one(&[1 << 63], 0, 0), &["\"t\"", "elements"]);
    assert_refused(one(&[1 << 62], 28, 0), &["\"t\"", "bytes"]);
    assert_refused(one(&[33], 8, 0), &["\"t\"", "whole Q8_0 blocks of 32", "33"]);
    assert_refused(one(&[4], 0, 16), &["\"t\"", "multiple of 32", "16"]);
    assert_refused(one(&[4], 0, 4096), &["data of tensor \"t\"", "inside the file"]);
    assert_refused(one(&[1025], 0, 0), &["data of tensor \"t\"", "inside the file"]);
    assert_refused(one(&[4], 0, u64::MAX - 31), &["\"t\"", "below 2^64"]);
    assert_refused(one(&[1 << 60], 0, (1 << 63) - 32), &["data of tensor \"t\""]);
    // Of an unknown type only the offset is known.
    assert_refused(one(&[4], 99, 4096), &["data of tensor \"t\""]);
    assert_refused(Raw::header(1, 0).u64(1).bytes(&[0xfe; 64]), &["name of tensor 0", "UTF-8"]);
}

#[test]
fn tensors_that_share_a_name_or_bytes() {
    let two =
        |b: (&str, u64), ty: u32| Raw::header(2, 0).tensor("a", &[16], 0, 32).tensor(b.0, &[4], ty, b.1).data(4096);
    assert_refused(two(("a", 128), 0), &["\"a\"", "one tensor of that name"]);
    assert_refused(two(("b", 64), 0), &["tensor \"b\"", "where tensor \"a\" ends"]);
    assert_refused(two(("b", 32), 0), &["at or after byte"]);
    assert_refused(two(("b", 64), 99), &["tensor \"b\"", "where tensor \"a\" ends"]);
    let before = Raw::header(2, 0).tensor("a", &[4], 0, 32).tensor("b", &[16], 0, 0).data(4096);
    assert_refused(before, &["tensor \"a\"", "where tensor \"b\" ends"]);
    let fits = two(("b", 96), 0);
    parse(Path::new("m.gguf"), &fits.0, 0, Extent::Whole).expect("the next aligned byte is free");
}

#[test]
fn an_unknown_type_is_refused_when_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let raw = Raw::header(2, 0).tensor("new", &[7], 99, 0).tensor("old", &[4], 0, 32).data(64);
    std::fs::write(&path, raw.0).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let new = gguf.require("new").unwrap();
    assert_eq!((new.ty, new.bytes, new.row_bytes()), (TensorType::Unknown(99), None, None));
    let text = gguf.read_tensor(new, &mut [0; 7]).unwrap_err().to_string();
    assert!(text.contains("m.gguf: the type of tensor new is not supported"), "{text}");
    gguf.read_tensor(gguf.require("old").unwrap(), &mut [0; 16]).unwrap();
}

#[test]
fn files_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.gguf");
    let empty = folder.path().join("empty.gguf");
    std::fs::write(&empty, []).unwrap();
    for (path, part) in
        [(&*missing, "cannot open"), (&*empty, "the file is empty"), (folder.path(), "it is a directory")]
    {
        let text = Gguf::open(path).unwrap_err().to_string();
        assert!(text.starts_with(&path.display().to_string()) && text.contains(part), "{text}");
    }
}

#[test]
fn reads_outside_a_tensor_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    write_file(&path, &[], &[("t", &[4], GgmlType::F32)]);
    let gguf = Gguf::open(&path).unwrap();
    let t = gguf.require("t").unwrap();
    for (start, n) in [(0, 17), (16, 1), (1, 16), (u64::MAX, 1)] {
        let text = gguf.read_tensor_part(t, start, &mut vec![0; n]).unwrap_err().to_string();
        assert!(text.contains("part of tensor t: expected inside its 16 bytes"), "{text}");
    }
    assert!(gguf.read_tensor(t, &mut [0; 15]).unwrap_err().to_string().contains("expected 16 bytes, got 15"));
}

/// Writes a set of three, lets `harm` change it, and returns what opening its `first` file says.
fn harmed_set(first: usize, harm: impl Fn(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let paths = write_split_set(folder.path(), 3);
    harm(folder.path());
    Gguf::open(&paths[first]).unwrap_err().to_string()
}

#[test]
fn split_sets_with_a_part_missing_or_foreign() {
    let second = "m-00002-of-00003.gguf";
    for first in [0, 2] {
        let text = harmed_set(first, |folder| std::fs::remove_file(folder.join(second)).unwrap());
        assert!(text.contains(&format!("{second}: cannot open shard 2 of 3 of the split set")), "{text}");
        assert_eq!(text.matches("m-00002").count(), 1, "{text}");
    }
    let text = harmed_set(0, |folder| {
        std::fs::copy(folder.join("m-00003-of-00003.gguf"), folder.join(second)).unwrap();
    });
    assert!(text.contains(&format!("{second}: metadata key \"split.no\": expected 1, got 2")), "{text}");

    let replace = |folder: &Path, meta: &[(String, hotset::gguf::Value)], tensor: &str| {
        write_file(&folder.join(second), meta, &[(tensor, &[4], GgmlType::F32)]);
    };
    let meta = |no: u16, count: u16| vec![("split.no".to_owned(), no.into()), ("split.count".to_owned(), count.into())];
    let text = harmed_set(0, |folder| replace(folder, &meta(1, 9), "t1"));
    assert!(text.contains(&format!("{second}: metadata key \"split.count\": expected 3, got 9")), "{text}");
    let text = harmed_set(0, |folder| replace(folder, &[], "t1"));
    assert!(text.contains(&format!("{second}: metadata key \"split.count\"")), "{text}");
    let text = harmed_set(0, |folder| replace(folder, &meta(1, 3), "t0"));
    assert!(text.contains("tensor \"t0\": expected one tensor of that name"), "{text}");
    let text = harmed_set(0, |folder| write_file(&folder.join(second), &meta(1, 3), &[]));
    assert!(text.contains("\"split.tensors.count\": expected 2, which the 3 shards hold, got 3"), "{text}");
    let text = harmed_set(0, |folder| std::fs::write(folder.join(second), "GGUF").unwrap());
    assert!(text.contains(&format!("{second}: the file ends inside its header, after 4 bytes")), "{text}");

    let folder = tempfile::tempdir().unwrap();
    let renamed = folder.path().join("model.gguf");
    std::fs::rename(&write_split_set(folder.path(), 2)[0], &renamed).unwrap();
    let text = Gguf::open(&renamed).unwrap_err().to_string();
    assert!(text.contains("file name of a split set: expected NAME-0000i-of-00002.gguf"), "{text}");
}

/// What a drive does to one read.
#[derive(Clone, Copy)]
enum Drive {
    /// Gives a part of what was asked for, or fails in a way that passes.
    Moody,
    /// Cannot read this byte; what comes before it comes.
    BadSector(u64),
    /// Has lost what begins here.
    Shrunk(u64),
}

/// A file in memory, on a drive.
struct Source<'a> {
    bytes: &'a [u8],
    drive: Drive,
    dice: RefCell<Dice>,
}

impl ReadAt for Source<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = match self.drive {
            Drive::Moody => {
                let mut dice = self.dice.borrow_mut();
                match dice.below(8) {
                    0 => return Err(io::ErrorKind::Interrupted.into()),
                    1 => return Err(io::ErrorKind::WouldBlock.into()),
                    _ => offset + 1 + dice.below(buf.len().min(100_000)) as u64,
                }
            }
            Drive::BadSector(at) if at <= offset => return Err(io::Error::other("bad sector")),
            Drive::BadSector(at) | Drive::Shrunk(at) => at,
        };
        let bytes = &self.bytes[..self.bytes.len().min(end as usize)];
        (&bytes[bytes.len().min(offset as usize)..]).read_at(buf, 0)
    }
}

/// [`parse_from`] from a drive.
fn parse_on(drive: Drive, seed: u64, bytes: &[u8]) -> hotset::Result<Header> {
    let source = Source { bytes, drive, dice: RefCell::new(Dice(seed)) };
    parse_from(Path::new("m.gguf"), &source, bytes.len() as u64, 0, Extent::Whole)
}

/// A vocabulary of some pieces, then what [`valid_file`] has.
fn long_file() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let tokens: Vec<String> = (0..40_000).map(|i| format!("token {i} {}", "x".repeat(i % 40))).collect();
    let mut meta = vec![("tokens".to_owned(), tokens.into()), ("scores".to_owned(), vec![0.5f32; 100_000].into())];
    meta.extend(every_value());
    write_file(&path, &meta, &[("a", &[8, 3], GgmlType::F32)]);
    std::fs::read(&path).unwrap()
}

#[test]
fn a_header_comes_in_pieces_however_the_drive_behaves() {
    let bytes = long_file();
    let path = Path::new("m.gguf");
    let whole = parse(path, &bytes, 0, Extent::Whole).unwrap();
    assert!(whole.data_offset > 1 << 20, "one piece is no test");
    for seed in 0..5 {
        let read = parse_on(Drive::Moody, seed, &bytes).unwrap();
        assert!(read.meta.iter().eq(whole.meta.iter()), "seed {seed}");
        assert_eq!((read.tensors, read.data_offset), (whole.tensors.clone(), whole.data_offset));
    }
    // What the parser has no need of may be broken.
    let end = (0..32).find(|n| parse(path, &bytes[..whole.data_offset as usize - n], 0, Extent::HeaderOnly).is_err());
    let end = whole.data_offset - (end.unwrap() as u64 - 1);
    parse_on(Drive::BadSector(end), 0, &bytes).unwrap();
    parse_on(Drive::Shrunk(end), 0, &bytes).unwrap();
    for at in (0..end).step_by(99_991).chain([end - 1]) {
        let text = parse_on(Drive::BadSector(at), 0, &bytes).unwrap_err().to_string();
        assert!(text.starts_with("m.gguf: cannot read the header at byte ") && text.ends_with("bad sector"), "{text}");
        let text = parse_on(Drive::Shrunk(at), 0, &bytes).unwrap_err().to_string();
        assert!(text.starts_with(&format!("m.gguf: the file ends inside its header, after {at} bytes")), "{text}");
    }
    check_allocations();
}

/// Whatever the bytes are: a result that names the file, and every tensor that passed lies inside the file.
fn any_answer_but_a_panic(bytes: &[u8]) -> Result<(), TestCaseError> {
    for extent in [Extent::HeaderOnly, Extent::Whole] {
        match parse(Path::new("any.gguf"), bytes, 0, extent) {
            Err(e) => prop_assert!(e.to_string().starts_with("any.gguf: "), "{e}"),
            Ok(header) if extent == Extent::Whole => {
                for t in &header.tensors {
                    prop_assert!(t.offset + t.bytes.unwrap_or(1) <= bytes.len() as u64);
                    prop_assert_eq!(t.row_bytes().map(|n| n * t.rows()), t.bytes);
                }
            }
            Ok(_) => {}
        }
    }
    check_allocations();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = VALID.with(|v| v.clone());
        for (at, value) in changes {
            let n = bytes.len();
            bytes[at.index(n)] = value;
        }
        any_answer_but_a_panic(&bytes)?;
    }

    #[test]
    fn words_of_a_file_replaced_by_extremes_never_panic(
        at in any::<prop::sample::Index>(),
        word in prop::sample::select(vec![0, 1, 1 << 31, 1 << 32, i64::MAX as u64, 1 << 63, u64::MAX - 31, u64::MAX]),
    ) {
        let mut bytes = VALID.with(|v| v.clone());
        let start = at.index(bytes.len() - 8);
        bytes[start..start + 8].copy_from_slice(&word.to_le_bytes());
        any_answer_but_a_panic(&bytes)?;
    }

    #[test]
    fn noise_behind_a_good_start_never_panics(tail in prop::collection::vec(any::<u8>(), 0..600), n in 0u64..4) {
        any_answer_but_a_panic(&Raw::header(n, n).bytes(&tail).0)?;
    }
}

thread_local! {
    static VALID: Vec<u8> = valid_file();
}
