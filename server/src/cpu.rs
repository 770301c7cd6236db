//! A thread's CPU time, all of which is somebody's: what is not measured itself, as the runtime's
//! own work between two tasks, is charged to whoever comes next.

use std::cell::Cell;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

thread_local! {
    /// Up to where this thread's clock is charged, ns.
    static CHARGED_NS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// CPU time that this thread has used so far.
pub fn of_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // The clock starts at 0 and never goes back.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// From now on this thread's CPU time is charged.
pub fn begin() {
    if CHARGED_NS.get().is_none() {
        take();
    }
}

/// What this thread has used since the last time, in ns, and where its clock stands: the caller
/// charges it to somebody. The first time, nothing.
pub fn take() -> (u64, u64) {
    let now_ns = of_thread().as_nanos() as u64;
    let charged_ns = CHARGED_NS.replace(Some(now_ns));
    (charged_ns.map_or(0, |charged_ns| now_ns.saturating_sub(charged_ns)), now_ns)
}
