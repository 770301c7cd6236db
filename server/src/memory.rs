//! Memory: how much of it this process may use, what a thread has taken of it, and giving back
//! what is free. The one module that names the allocator.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use mimalloc::MiMalloc;

/// The process's allocator. glibc's gives freed tensors back to the system and faults them in
/// again at the next request: a 600 KB round trip takes some ten times as long.
///
/// It counts what each thread takes, which is how a loaded model's memory is known whatever its
/// engine keeps it in.
pub struct Allocator(MiMalloc);

thread_local! {
    /// Bytes taken less bytes freed by this thread. Of a type without a destructor, so that it
    /// can be read at any time of a thread's life.
    static NET_BYTES: Cell<isize> = const { Cell::new(0) };
}

impl Allocator {
    pub const fn new() -> Self {
        Self(MiMalloc)
    }
}

impl Default for Allocator {
    fn default() -> Self {
        Self::new()
    }
}

fn count(bytes: isize) {
    NET_BYTES.set(NET_BYTES.get().wrapping_add(bytes));
}

// SAFETY: every call goes to mimalloc as it came; a counter beside it touches no memory of theirs.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { self.0.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(pointer, layout) }
    }
}

/// Runs `work` on this thread, and returns with its result the bytes that it took and did not
/// free: 0 where another allocator is the process's.
pub fn kept<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = NET_BYTES.get();
    let result = work();
    let net = NET_BYTES.get().wrapping_sub(before);
    (result, u64::try_from(net).unwrap_or(0))
}

/// Gives free pages back to the system now. The allocator keeps them for a while otherwise, as
/// what is freed is mostly wanted again soon; a model that was given up is not.
pub fn give_back() {
    // SAFETY: may be called at any time from any thread.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

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
