//! CPU time of a thread, read by others, too.

use std::mem::MaybeUninit;

/// A thread's CPU time since a moment.
pub(crate) struct Since {
    /// `None`: the system does not tell.
    clock: Option<libc::clockid_t>,
    began_ns: u64,
}

impl Since {
    /// Of this thread, from now on.
    pub(crate) fn now() -> Self {
        let clock = of_this_thread();
        Self { clock, began_ns: clock.and_then(read).unwrap_or(0) }
    }

    /// What it has come to; 0 once the thread has ended.
    pub(crate) fn ns(&self) -> u64 {
        self.clock.and_then(read).unwrap_or(0).saturating_sub(self.began_ns)
    }
}

fn of_this_thread() -> Option<libc::clockid_t> {
    let mut clock = 0;
    // SAFETY: this thread lives, and the clock's name has a place.
    let status = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
    (status == 0).then_some(clock)
}

fn read(clock: libc::clockid_t) -> Option<u64> {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: a place for the time, which is read only if it was written.
    let time = unsafe {
        if libc::clock_gettime(clock, time.as_mut_ptr()) != 0 {
            return None;
        }
        time.assume_init()
    };
    // A thread's clock starts at 0 and never goes back.
    Some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
