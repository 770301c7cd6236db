//! Memory: how much of it this process may use.

use std::fs;
use std::path::Path;

/// Bytes that this process may have: the least of its control groups' limits and the machine's.
pub fn available() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|info| {
        let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
        Some(kib << 10)
    });
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = group_limit(&groups, |file| fs::read_to_string(file).ok());
    limit.into_iter().chain(machine).min()
}

/// The least limit of these control groups, of either version, and of those that they are in; `read`
/// reads a file.
fn group_limit(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let folders = Path::new(path.trim_start_matches('/')).ancestors();
        let limits = folders.filter_map(|folder| {
            let text = read(&Path::new(root).join(folder).join(file))?;
            // "max" where there is none.
            text.trim().parse::<u64>().ok()
        });
        limits.min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_some_memory() {
        assert!(available().is_some_and(|bytes| bytes > 16 << 20));
    }

    #[test]
    fn the_least_limit_of_all_control_groups_counts() {
        let files = [
            ("/sys/fs/cgroup/memory.max", "max\n"),
            ("/sys/fs/cgroup/box/memory.max", "4096\n"),
            ("/sys/fs/cgroup/box/wisp/memory.max", "8192\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/old/memory.limit_in_bytes", "2048\n"),
        ];
        let read = |file: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == file);
            found.map(|(_, text)| (*text).to_owned())
        };
        let least = |groups: &str| group_limit(groups, read);
        assert_eq!(least("0::/box/wisp\n"), Some(4096));
        assert_eq!(least("0::/\n"), None);
        let both = "5:cpu,cpuacct:/old\n4:memory:/old\n0::/box/wisp\n";
        assert_eq!(least(both), Some(2048));
        assert_eq!(least("5:cpu,cpuacct:/old\n"), None);
        assert_eq!(least("nonsense"), None);
    }
}
