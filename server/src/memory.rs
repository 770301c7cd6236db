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
    group_limit().into_iter().chain(machine).min()
}

/// The least limit of the control groups that this process is in, of either version.
fn group_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
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
            let text = fs::read_to_string(Path::new(root).join(folder).join(file)).ok()?;
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
}
