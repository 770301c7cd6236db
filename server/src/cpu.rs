//! A thread's CPU time, all of which is somebody's: what is not measured itself, as the runtime's
//! own work between two tasks, is charged to whoever comes next. And whether others want it.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

thread_local! {
    /// Up to where this thread's clock is charged, ns.
    static CHARGED_NS: Cell<Option<u64>> = const { Cell::new(None) };
    /// What other threads have computed for its tasks.
    static ELSEWHERE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// Whom this thread works for, if for those alone.
    static CROWD: RefCell<Option<Arc<Crowd>>> = const { RefCell::new(None) };
}

/// Tasks that have some threads to themselves.
#[derive(Debug)]
pub struct Crowd {
    threads: usize,
    tasks: AtomicUsize,
}

impl Crowd {
    pub fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self { threads, tasks: AtomicUsize::new(0) })
    }

    /// From now on the calling thread is one of theirs.
    pub fn take_thread(self: &Arc<Self>) {
        CROWD.set(Some(self.clone()));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tasks.load(Ordering::Relaxed) == 0
    }

    /// One more of them, until what is returned is dropped.
    pub fn join(self: &Arc<Self>) -> Member {
        self.tasks.fetch_add(1, Ordering::Relaxed);
        Member(self.clone())
    }
}

/// A task that lives.
#[derive(Debug)]
pub struct Member(Arc<Crowd>);

impl Drop for Member {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Another thread has computed for this one's task for so long.
pub fn spent_elsewhere(cpu: Duration) {
    ELSEWHERE.set(ELSEWHERE.get() + cpu);
}

/// CPU time that this thread, and others for it, have used so far.
pub fn for_thread() -> Duration {
    of_thread() + ELSEWHERE.get()
}

/// Whether anybody else may wait for this thread.
pub fn is_wanted() -> bool {
    CROWD.with_borrow(|crowd| {
        crowd.as_ref().is_none_or(|crowd| crowd.tasks.load(Ordering::Relaxed) > crowd.threads)
    })
}

/// Whether this thread is one of those that some tasks have to themselves.
pub fn is_set_apart() -> bool {
    CROWD.with_borrow(Option::is_some)
}

/// CPU time that this thread has used so far.
pub fn of_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // The clock starts at 0 and never goes back.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The runtime's own work between two tasks takes no longer. What does was somebody else's: a
/// thread of the runtime may have done a blocking job.
const MOST_BETWEEN_NS: u64 = 1_000_000;

/// What this thread has used since the last time, if it was between two tasks, in ns; and where
/// its clock stands.
pub fn take_between() -> (u64, u64) {
    let (between_ns, now_ns) = take();
    (if between_ns <= MOST_BETWEEN_NS { between_ns } else { 0 }, now_ns)
}

/// Which thread this is: a number that no other living one has.
pub fn this_thread() -> usize {
    CHARGED_NS.with(|here| std::ptr::from_ref(here).addr())
}

/// What this thread has used since the last time, in ns, and where its clock stands: the caller
/// charges it to somebody. The first time, nothing.
pub fn take() -> (u64, u64) {
    let now_ns = of_thread().as_nanos() as u64;
    let charged_ns = CHARGED_NS.replace(Some(now_ns));
    (charged_ns.map_or(0, |charged_ns| now_ns.saturating_sub(charged_ns)), now_ns)
}
