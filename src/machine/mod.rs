//! What the operating system says about this process and this machine (memory free, memory used, cores to compute on),
//! and the memory that it gives.
//!
//! Linux answers from `/proc` and the cgroup files; elsewhere the answers are `None`, and callers say so.

mod cgroup;
mod cores;
mod watch;

use std::fs;

use memmap2::MmapMut;

pub use cores::{Cores, cores};
pub use watch::MemoryWatch;

/// Bytes of memory that this process may still take: what the machine has available, or what its cgroup leaves.
pub fn available_bytes() -> Option<u64> {
    MemoryWatch::new()?.available_bytes()
}

/// The most memory that this process could ever have: that of the machine, or the limit of its cgroup, in bytes.
pub fn limit_bytes() -> Option<u64> {
    let machine = memory_bytes()?;
    Some(watch::smallest_limit().map_or(machine, |limit| limit.min(machine)))
}

/// Memory of the machine.
pub fn memory_bytes() -> Option<u64> {
    meminfo("MemTotal:")
}

/// The processor's name, where the system knows one.
pub fn cpu_name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = text.lines().find_map(|l| l.strip_prefix("model name"))?.split_once(':')?.1.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(key: &str) -> Option<u64> {
    kib_line(&fs::read_to_string("/proc/meminfo").ok()?, key)
}

/// The largest resident set of this process so far, file pages included, in bytes.
pub fn peak_rss_bytes() -> Option<u64> {
    kib_line(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Makes [`peak_rss_bytes`] start again from what is resident now. False where the system does not let us.
pub fn reset_peak_rss() -> bool {
    // proc(5): 5 resets the peak resident set size.
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The resident set of this process now, file pages included, in bytes.
pub fn rss_bytes() -> Option<u64> {
    kib_line(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Bytes of this program's code, without libraries; 0 where the system does not tell.
pub fn code_bytes() -> u64 {
    let Ok(program) = std::env::current_exe() else { return 0 };
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let length = |line: &str| {
        // Addresses, permissions, offset, device, inode, and a path that may hold spaces.
        let (addresses, rest) = line.split_once(' ')?;
        let is_code = rest.starts_with("r-xp") && rest.ends_with(program.to_str()?);
        let (from, to) = addresses.split_once('-').filter(|_| is_code)?;
        u64::from_str_radix(to, 16).ok()?.checked_sub(u64::from_str_radix(from, 16).ok()?)
    };
    maps.lines().filter_map(length).sum()
}

/// What this process holds in memory of its own (heap, stacks), without the pages of files, in bytes.
pub fn anonymous_bytes() -> Option<u64> {
    kib_line(&fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
}

/// Major faults of this process so far: pages that had to be read from a drive by a thread that touched them.
pub fn major_faults() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name may hold spaces; the fields after its closing parenthesis do not.
    stat.rsplit_once(')')?.1.split_whitespace().nth(9)?.parse().ok()
}

fn kib_line(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Makes the calling thread give way to every other one that has something to do. Where the system does not let us, it
/// stays as it is.
pub fn yield_to_all() {
    // On Linux a priority is a thread's; elsewhere it is the whole process's.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, 19);
}

/// How anonymous memory comes to be used, and so from which size on it is asked for in huge pages: weights are read from end
/// to end, and with 4 KiB pages a token of a large model misses the TLB at every page.
#[derive(Clone, Copy, Debug)]
pub enum Filled {
    /// All of it: pages inside it are used whole. Small memory has hardly any.
    AtOnce,
    /// Part by part, as need be: each might take 2 MiB more than it needs for a while.
    InParts,
}

impl Filled {
    #[cfg(target_os = "linux")]
    const fn huge_from(self) -> usize {
        match self {
            Filled::AtOnce => 4 << 20,
            Filled::InParts => 32 << 20,
        }
    }
}

/// Anonymous memory, in huge pages where it is large.
///
/// # Errors
/// If the system refuses it.
pub fn anonymous(bytes: usize, filled: Filled) -> std::io::Result<MmapMut> {
    let map = MmapMut::map_anon(bytes.max(1))?;
    #[cfg(not(target_os = "linux"))]
    let _ = filled;
    #[cfg(target_os = "linux")]
    if bytes >= filled.huge_from() {
        // A kernel without huge pages goes on without them.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(map)
}
