//! The threads that rten computes on. It runs a graph inside a pool of threads, never on the
//! caller's own: one pool of one thread for each run at a time, so that a run takes one core and
//! none waits for another.
//!
//! rten makes a pool of its own beside these, with a thread for each physical core, which then
//! sleeps for good (`RTEN_NUM_THREADS=1` in the environment makes that one thread).

use std::sync::{Arc, Mutex, PoisonError};

use rten::ThreadPool;

/// Pools that no run uses; the one used last is on top, as its caches are warm.
static IDLE: Mutex<Vec<Arc<ThreadPool>>> = Mutex::new(Vec::new());

/// Takes an idle thread, or starts one: there are as many as runs were under way at a time.
pub(super) fn borrow() -> Borrowed {
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    Borrowed(idle.unwrap_or_else(|| Arc::new(ThreadPool::with_num_threads(1))))
}

/// A pool of one thread, for one run; goes back when it is dropped.
pub(super) struct Borrowed(Arc<ThreadPool>);

impl Borrowed {
    pub(super) fn pool(&self) -> Arc<ThreadPool> {
        self.0.clone()
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(self.0.clone());
    }
}
