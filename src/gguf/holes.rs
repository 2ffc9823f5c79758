//! Tensors whose bytes were never written: what a download leaves that takes its whole length first.
//!
//! Only file systems that tell of holes tell of them, and a copy has zeros instead; a hole is evidence, its absence none.

use super::{Gguf, Shard, TensorInfo};

/// Holes of a file that are looked at. A download has some thousands of pieces at most; copies of sparse files may have
/// more holes, in places that hold zeros anyway.
const MAX_HOLES: usize = 1 << 16;

impl Gguf {
    /// The tensors that lie wholly in a hole of their file, in file order: all their bytes are zero.
    pub fn hollow_tensors(&self) -> Vec<&TensorInfo> {
        let mut hollow = Vec::new();
        for (i, shard) in self.shards().iter().enumerate() {
            let holes = holes(shard);
            let covered = |t: &TensorInfo| {
                // The only hole that can cover it is the last that starts at or before it.
                let before = holes.partition_point(|hole| hole.start <= t.offset);
                let end = t.bytes.and_then(|n| t.offset.checked_add(n));
                before > 0 && end.is_some_and(|end| end <= holes[before - 1].end)
            };
            hollow.extend(self.tensors().iter().filter(|t| t.shard == i && covered(t)));
        }
        hollow
    }
}

/// The holes of a file, in order; the end of the file is none. A file that cannot say has none.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple", target_os = "freebsd"))]
fn holes(shard: &Shard) -> Vec<std::ops::Range<u64>> {
    use rustix::fs::{SeekFrom, seek};
    let mut holes = Vec::new();
    let mut at = 0;
    // All reads say where they read, so that it does not matter where this leaves the file.
    while holes.len() < MAX_HOLES
        && let Ok(start) = seek(&shard.file, SeekFrom::Hole(at))
        && start < shard.len
    {
        // No data behind it: the hole reaches the end.
        let end = seek(&shard.file, SeekFrom::Data(start)).unwrap_or(shard.len);
        if end <= start {
            break;
        }
        holes.push(start..end);
        at = end;
        if at >= shard.len {
            break;
        }
    }
    holes
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple", target_os = "freebsd")))]
fn holes(_: &Shard) -> Vec<std::ops::Range<u64>> {
    Vec::new()
}
