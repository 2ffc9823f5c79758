//! How many threads may compute at a time: the one place that knows.
//!
//! Cores, not logical CPUs: two threads of one core share its vector units and its caches, and the kernels fill both
//! alone. Of these, what the affinity mask allows, and no more than the CPU quota of the cgroups pays for: a thread past
//! the quota makes the kernel stop all of them together for the rest of each period.

use std::{fmt, fs, path::Path};

use super::cgroup::{self, Version};

/// What this process may compute on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cores {
    /// Cores that the affinity mask allows at least one CPU of.
    pub allowed: usize,
    /// CPUs' worth of time that the tightest cgroup gives, if one limits it.
    pub quota: Option<f64>,
}

impl Cores {
    /// Threads that compute where nobody asked for a number: a core each, within the quota, at least one.
    pub fn threads(&self) -> usize {
        // A quota of 2.5 CPUs pays for two threads.
        let paid = self.quota.map_or(usize::MAX, |q| q as usize);
        self.allowed.min(paid).max(1)
    }
}

impl fmt::Display for Cores {
    /// As in "2 cores allowed", "2 cores allowed, quota of 1.5 CPUs".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} core{} allowed", self.allowed, if self.allowed == 1 { "" } else { "s" })?;
        match self.quota {
            Some(quota) => write!(f, ", quota of {quota:.1} CPU{}", if quota == 1.0 { "" } else { "s" }),
            None => Ok(()),
        }
    }
}

/// What the system says now.
pub fn cores() -> Cores {
    let allowed = match allowed_cpus() {
        Some(cpus) => count_cores(&cpus, siblings),
        None => std::thread::available_parallelism().map_or(1, |n| n.get()),
    };
    let quotas = cgroup::folders("cpu").into_iter().filter_map(|(version, folder)| quota(version, &folder));
    Cores { allowed, quota: quotas.reduce(f64::min) }
}

/// CPUs of the calling thread's affinity mask.
#[cfg(target_os = "linux")]
fn allowed_cpus() -> Option<Vec<usize>> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    // Fails where the kernel's mask is larger than a CpuSet.
    let set = sched_getaffinity(None).ok()?;
    Some((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()).filter(|cpus: &Vec<_>| !cpus.is_empty())
}

/// No such mask here.
#[cfg(not(target_os = "linux"))]
fn allowed_cpus() -> Option<Vec<usize>> {
    None
}

/// The CPUs that share `cpu`'s core, itself included.
fn siblings(cpu: usize) -> Option<Vec<usize>> {
    let folder = format!("/sys/devices/system/cpu/cpu{cpu}/topology");
    // The second is the older name.
    let names = ["core_cpus_list", "thread_siblings_list"];
    names.iter().find_map(|name| cpu_list(&fs::read_to_string(Path::new(&folder).join(name)).ok()?))
}

/// Cores of the CPUs in `allowed`: a core counts with the first of its CPUs that is allowed. A CPU of unknown siblings
/// counts as a core.
fn count_cores(allowed: &[usize], siblings: impl Fn(usize) -> Option<Vec<usize>>) -> usize {
    let is_first = |&&cpu: &&usize| {
        let before = |s: &usize| *s < cpu && allowed.contains(s);
        !siblings(cpu).is_some_and(|s| s.iter().any(before))
    };
    allowed.iter().filter(is_first).count()
}

/// CPUs in a list as the kernel writes it: `0-3,8`.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        // No machine has a core of so many CPUs.
        if last.checked_sub(first)? > 1 << 12 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// CPUs' worth of time that a cgroup folder gives, if it limits it.
fn quota(version: Version, folder: &Path) -> Option<f64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    match version {
        Version::V1 => quota_of(&read("cpu.cfs_quota_us")?, &read("cpu.cfs_period_us")?),
        Version::V2 => {
            let text = read("cpu.max")?;
            let (quota, period) = text.trim().split_once(' ')?;
            quota_of(quota, period)
        }
    }
}

/// Microseconds of CPU time in each period, as a number of CPUs; -1 and `max` mean no limit.
fn quota_of(quota: &str, period: &str) -> Option<f64> {
    let [quota, period] = [quota, period].map(|text| text.trim().parse::<u64>().ok().filter(|&n| n > 0));
    Some(quota? as f64 / period? as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_read_as_the_kernel_writes_them() {
        assert_eq!(cpu_list("0\n"), Some(vec![0]));
        assert_eq!(cpu_list("0,64\n"), Some(vec![0, 64]));
        assert_eq!(cpu_list("2-3,10-12\n"), Some(vec![2, 3, 10, 11, 12]));
        for wrong in ["", "a", "3-1", "0-", "0-18446744073709551615"] {
            assert_eq!(cpu_list(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_core_counts_once_and_only_if_one_of_its_cpus_is_allowed() {
        // Four cores: CPU n and n + 4.
        let smt = |cpu: usize| cpu_list(&format!("{},{}\n", cpu % 4, cpu % 4 + 4));
        assert_eq!(count_cores(&[0, 1, 2, 3, 4, 5, 6, 7], smt), 4);
        assert_eq!(count_cores(&[0, 4], smt), 1);
        assert_eq!(count_cores(&[4, 5], smt), 2);
        assert_eq!(count_cores(&[0, 5], smt), 2);
        assert_eq!(count_cores(&[0, 1], |cpu| cpu_list(&format!("{cpu}\n"))), 2);
        assert_eq!(count_cores(&[0, 1, 2], |_| None), 3);
    }

    #[test]
    fn quotas_read_in_both_versions() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(quota(Version::V1, folder.path()), None);
        write("cpu.cfs_period_us", "100000\n");
        for (text, cpus) in [("-1\n", None), ("150000\n", Some(1.5)), ("0\n", None), ("x\n", None)] {
            write("cpu.cfs_quota_us", text);
            assert_eq!(quota(Version::V1, folder.path()), cpus, "{text}");
        }
        let v2 = [("max 100000\n", None), ("200000 100000\n", Some(2.0)), ("50000 100000\n", Some(0.5)), ("1\n", None)];
        for (text, cpus) in v2 {
            write("cpu.max", text);
            assert_eq!(quota(Version::V2, folder.path()), cpus, "{text}");
        }
    }

    #[test]
    fn threads_are_cores_within_the_quota() {
        let threads = |allowed, quota| Cores { allowed, quota }.threads();
        assert_eq!(threads(8, None), 8);
        assert_eq!(threads(8, Some(2.5)), 2);
        assert_eq!(threads(8, Some(0.5)), 1);
        assert_eq!(threads(2, Some(64.0)), 2);
        let said = |allowed, quota| Cores { allowed, quota }.to_string();
        assert_eq!(said(2, None), "2 cores allowed");
        assert_eq!(said(1, Some(0.5)), "1 core allowed, quota of 0.5 CPUs");
    }

    #[test]
    fn this_machine_has_a_core() {
        let here = cores();
        assert!(here.allowed >= 1 && here.threads() <= here.allowed);
    }
}
