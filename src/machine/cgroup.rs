//! Which cgroup folders may limit this process: its own and all above it, in version 1 and 2 of the interface.
//!
//! Must not know: what a controller's files mean.

use std::{fs, path::PathBuf};

/// Which files a cgroup folder has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller.
    V1,
    /// One hierarchy for all.
    V2,
}

/// The folders that may limit what `controller` rules for this process, its own first; none where there are no cgroups.
pub fn folders(controller: &str) -> Vec<(Version, PathBuf)> {
    folders_of(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default(), controller)
}

/// As [`folders`], by the text of `/proc/PID/cgroup`. Not all of them need to exist: in a container the paths may be the
/// host's, and then only the mount's own root answers.
fn folders_of(own: &str, controller: &str) -> Vec<(Version, PathBuf)> {
    let mut found = Vec::new();
    for line in own.lines() {
        // number of the hierarchy : controllers : path
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (version, root) = match controllers {
            "" => (Version::V2, PathBuf::from("/sys/fs/cgroup")),
            c if c.split(',').any(|c| c == controller) => {
                (Version::V1, PathBuf::from("/sys/fs/cgroup").join(controller))
            }
            _ => continue,
        };
        let own = root.join(path.trim_start_matches('/'));
        found.extend(own.ancestors().take_while(|at| at.starts_with(&root)).map(|at| (version, at.to_owned())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(own: &str, controller: &str, expected: &[(Version, &str)]) {
        let expected: Vec<_> = expected.iter().map(|&(version, path)| (version, PathBuf::from(path))).collect();
        assert_eq!(folders_of(own, controller), expected);
    }

    #[test]
    fn folders_go_from_the_own_one_to_the_root_of_each_hierarchy_that_counts() {
        let hybrid = "9:name=systemd:/\n4:memory:/a/b:c\n2:cpu,cpuacct:/\n0::/unit\n";
        let unified = [(Version::V2, "/sys/fs/cgroup/unit"), (Version::V2, "/sys/fs/cgroup")];
        let memory = ["/a/b:c", "/a", ""].map(|path| format!("/sys/fs/cgroup/memory{path}"));
        let memory: Vec<_> = memory.iter().map(|path| (Version::V1, path.as_str())).chain(unified).collect();
        check(hybrid, "memory", &memory);
        check(hybrid, "cpu", &[(Version::V1, "/sys/fs/cgroup/cpu"), unified[0], unified[1]]);
        check("0::/\n", "cpu", &[(Version::V2, "/sys/fs/cgroup")]);
        check("", "cpu", &[]);
        check("nonsense\n0:\n", "cpu", &[]);
    }
}
