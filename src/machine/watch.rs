//! How much memory is left, asked again and again: files stay open, and an answer costs some 25 µs.

use std::{
    fs::{self, File},
    io::{Read, Seek},
    path::Path,
};

use super::cgroup::{self, Version};

/// Longer than any of the files read here: a cgroup's `memory.stat` has 2 to 3 KB.
const MOST_TEXT: u64 = 32 << 10;

/// Watches what memory this process may still take and what it holds. See [`MemoryWatch::new`].
#[derive(Debug)]
pub struct MemoryWatch {
    meminfo: File,
    status: Option<File>,
    pressure: Option<File>,
    groups: Vec<Group>,
    text: String,
}

/// A memory cgroup that may have a limit.
#[derive(Debug)]
struct Group {
    version: Version,
    limit: File,
    /// Where version 2 begins to slow its tasks down.
    high: Option<File>,
    usage: File,
    stat: Option<File>,
}

impl MemoryWatch {
    /// Opens what the system has to say about this process's memory: `/proc`, and its memory cgroup (version 1 or 2) with
    /// those above it. `None` where it says nothing.
    pub fn new() -> Option<Self> {
        let meminfo = File::open("/proc/meminfo").ok()?;
        let folders = cgroup::folders("memory");
        let own = folders.iter().find(|(version, _)| *version == Version::V2);
        let own = own.and_then(|(_, folder)| File::open(folder.join("memory.pressure")).ok());
        let mut watch = Self {
            meminfo,
            status: File::open("/proc/self/status").ok(),
            pressure: own.or_else(|| File::open("/proc/pressure/memory").ok()),
            groups: folders.iter().filter_map(|(version, folder)| Group::open(*version, folder)).collect(),
            text: String::new(),
        };
        watch.available_bytes()?;
        Some(watch)
    }

    /// Bytes that this process may still take: what the machine has available, or what a cgroup's limit leaves.
    pub fn available_bytes(&mut self) -> Option<u64> {
        let (text, total, machine) = (&mut self.text, "MemTotal:", "MemAvailable:");
        let meminfo = read(&mut self.meminfo, text)?;
        let (total, machine) = (super::kib_line(meminfo, total)?, super::kib_line(meminfo, machine)?);
        let left = self.groups.iter_mut().filter_map(|group| group.left(total, text)).min();
        Some(left.map_or(machine, |left| left.min(machine)))
    }

    /// Bytes that this process holds in memory of its own (heap, slots, stacks), without the pages of files.
    pub fn anonymous_bytes(&mut self) -> Option<u64> {
        super::kib_line(read(self.status.as_mut()?, &mut self.text)?, "RssAnon:")
    }

    /// Time so far, in microseconds, in which some task had to wait for memory: pressure stall information of this
    /// process's cgroup (v2) or of the machine. `None` where the system keeps no account.
    pub fn stall_us(&mut self) -> Option<u64> {
        stall_total(read(self.pressure.as_mut()?, &mut self.text)?)
    }
}

impl Group {
    fn open(version: Version, folder: &Path) -> Option<Self> {
        let (limit, usage) = files(version);
        let open = |name| File::open(folder.join(name)).ok();
        let (limit, usage) = (open(limit)?, open(usage)?);
        Some(Self { version, limit, high: open("memory.high"), usage, stat: open("memory.stat") })
    }

    /// What the limit leaves; `None` without one, or with one above what the machine has.
    fn left(&mut self, machine: u64, text: &mut String) -> Option<u64> {
        let hard = number(read(&mut self.limit, text)?);
        let high = self.high.as_mut().and_then(|high| number(read(high, text)?));
        let limit = hard.into_iter().chain(high).min().filter(|&limit| limit <= machine)?;
        let usage = number(read(&mut self.usage, text)?)?;
        // Page cache counts as used and is given back on demand.
        let stat = self.stat.as_mut().and_then(|stat| read(stat, text));
        let cache = stat.and_then(|stat| file_pages(self.version, stat)).unwrap_or(0);
        Some(limit.saturating_sub(usage.saturating_sub(cache)))
    }
}

/// The smallest limit on this process's memory that a cgroup sets, its own or one above it; `None` without one.
pub(super) fn smallest_limit() -> Option<u64> {
    let limits = cgroup::folders("memory").into_iter();
    let limits =
        limits.filter_map(|(version, folder)| number(&fs::read_to_string(folder.join(files(version).0)).ok()?));
    limits.min()
}

/// The files of a memory cgroup that have its limit and its usage.
fn files(version: Version) -> (&'static str, &'static str) {
    match version {
        Version::V1 => ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        Version::V2 => ("memory.max", "memory.current"),
    }
}

/// A file of one number; `None` for `max`, which is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The whole file from its start.
fn read<'a>(file: &mut File, text: &'a mut String) -> Option<&'a str> {
    text.clear();
    file.rewind().ok()?;
    file.take(MOST_TEXT).read_to_string(text).ok()?;
    Some(text)
}

/// `total` of the line `some`.
fn stall_total(text: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix("some "))?.rsplit_once("total=")?.1.trim().parse().ok()
}

/// Reclaimable file pages in a cgroup's `memory.stat`, with those of the cgroups below it, as its usage has them.
fn file_pages(version: Version, stat: &str) -> Option<u64> {
    let number = |key: &str| stat.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<u64>().ok());
    let (inactive, active) = match version {
        // Plain keys are the cgroup's own pages only.
        Version::V1 => ("total_inactive_file ", "total_active_file "),
        Version::V2 => ("inactive_file ", "active_file "),
    };
    Some(number(inactive)? + number(active).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_pages_are_those_of_the_cgroup_and_all_below_it() {
        let v1 = "cache 9\ninactive_file 4096\nactive_file 8192\ntotal_inactive_file 40960\ntotal_active_file 81920\n";
        assert_eq!(file_pages(Version::V1, v1), Some(122_880));
        assert_eq!(file_pages(Version::V2, "file 9\ninactive_file 4096\nactive_file 8192\n"), Some(12_288));
        assert_eq!(file_pages(Version::V1, "cache 9\n"), None);
    }

    #[test]
    fn a_limit_leaves_what_is_neither_used_nor_cache_and_no_limit_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut text = String::new();
        let mut left = |limit: &str, usage: &str, stat: &str| {
            for (name, text) in [("memory.max", limit), ("memory.current", usage), ("memory.stat", stat)] {
                fs::write(folder.path().join(name), text).unwrap();
            }
            Group::open(Version::V2, folder.path()).unwrap().left(1 << 30, &mut text)
        };
        let stat = "inactive_file 1000\nactive_file 500\n";
        assert_eq!(left("10000\n", "4000\n", stat), Some(7500));
        assert_eq!(left("10000\n", "12000\n", stat), Some(0));
        assert_eq!(left("10000\n", "1000\n", stat), Some(10_000), "the cache is no more than what is used");
        assert_eq!(left("10000\n", "4000\n", ""), Some(6000));
        assert_eq!(left("max\n", "4000\n", stat), None);
        fs::write(folder.path().join("memory.high"), "9000\n").unwrap();
        assert_eq!([left("max\n", "4000\n", stat), left("5000\n", "4000\n", stat)], [Some(6500), Some(2500)]);
        fs::remove_file(folder.path().join("memory.high")).unwrap();
        assert_eq!(left("9223372036854771712\n", "4000\n", stat), None, "version 1 says so much");
        assert!(Group::open(Version::V1, folder.path()).is_none());
    }

    #[test]
    fn stalls_are_the_total_of_some_tasks() {
        let text = "some avg10=0.00 avg60=0.10 avg300=0.05 total=421\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(stall_total(text), Some(421));
        assert_eq!(stall_total("full total=7\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_watch_sees_what_this_process_takes() {
        let mut watch = MemoryWatch::new().expect("Linux has /proc/meminfo");
        let before = watch.anonymous_bytes().unwrap();
        let taken = std::hint::black_box(vec![7u8; 256 << 20]);
        let held = watch.anonymous_bytes().unwrap() - before;
        // Half: other tests of this process take and free memory meanwhile.
        assert!(held > taken.len() as u64 / 2, "{held}");
        assert!(watch.available_bytes().unwrap() > 0);
        assert!(watch.available_bytes().unwrap() <= crate::machine::limit_bytes().unwrap());
    }
}
