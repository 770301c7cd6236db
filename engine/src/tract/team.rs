//! Threads that help a run's own where cores are free. An operator whose work can be shared asks for
//! them anew each time, so that they go as soon as another run wants their core.

use std::cell::{Cell, RefCell};
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};
use wisp_kernels::{Room, Team};

use super::bodies;
use crate::clock;
use crate::cores::{Busy, Helpers};
use crate::graph::Watch;

/// How long a helper looks for the next operator's work before it sleeps, and its caller for the
/// helpers' end: to be woken takes tens of microseconds on a virtual machine, an operator some
/// hundred.
const SPIN: Duration = Duration::from_micros(100);

thread_local! {
    /// A run's own: helpers have others.
    static ROOM: RefCell<Room> = RefCell::new(Room::pausing(pause));
    /// Of the run that this thread computes.
    static MEMBERS: RefCell<Option<Members>> = const { RefCell::new(None) };
    static WIDTH: Cell<usize> = const { Cell::new(1) };
    /// Whether this thread's operator is helped just now.
    static IS_HELPED: Cell<bool> = const { Cell::new(false) };
}

struct Members {
    may: Helpers,
    helpers: Vec<Helper>,
    /// CPU time of the helpers that nobody was told of.
    untold_ns: u64,
}

/// Does `work`, in which operators may share what they do as `watch` allows.
pub(crate) fn with<T>(watch: &dyn Watch, work: impl FnOnce() -> T) -> T {
    let Some(mut may) = watch.helpers() else { return work() };
    // Work that is cut for threads that never come takes longer.
    may.most = may.most.min(may.cores.count().saturating_sub(1));
    if may.most == 0 {
        return work();
    }
    WIDTH.set(may.most + 1);
    MEMBERS.set(Some(Members { may, helpers: Vec::new(), untold_ns: 0 }));
    let _end = End(watch);
    work()
}

/// Tells `watch` what helpers have spent so far.
pub(crate) fn tell(watch: &dyn Watch) {
    if WIDTH.get() > 1 {
        let untold = MEMBERS.with_borrow_mut(|members| {
            members.as_mut().map_or(0, |members| std::mem::take(&mut members.untold_ns))
        });
        watch.computed_elsewhere(Duration::from_nanos(untold));
    }
}

struct End<'a>(&'a dyn Watch);

impl Drop for End<'_> {
    fn drop(&mut self) {
        tell(self.0);
        WIDTH.set(1);
        if let Some(members) = MEMBERS.take() {
            idle().extend(members.helpers);
        }
    }
}

/// Within a kernel. While helpers have cores for it, the operator is done soon, and they leave first.
fn pause() {
    if !IS_HELPED.get() {
        bodies::pause();
    }
}

/// Whoever may help the thread that asks.
pub(crate) struct OfThread;

// SAFETY: parts are counted out one by one; whoever gives them out waits for all helpers.
unsafe impl Team for OfThread {
    fn width(&self) -> usize {
        WIDTH.get()
    }

    fn share(&self, parts: usize, work: &(dyn Fn(usize, &mut Room) + Sync)) {
        let work_alone = || {
            ROOM.with_borrow_mut(|room| (0..parts).for_each(|part| work(part, room)));
        };
        if parts <= 1 {
            return work_alone();
        }
        MEMBERS.with_borrow_mut(|members| match members {
            Some(members) => members.share(parts, work),
            None => work_alone(),
        });
    }
}

impl Members {
    fn share(&mut self, parts: usize, work: &(dyn Fn(usize, &mut Room) + Sync)) {
        let Self { may, helpers, untold_ns } = self;
        let spare = may.cores.spare(may.most.min(parts - 1));
        while helpers.len() < spare.count() {
            let waiting = idle().pop();
            // Where no thread is to be had, the caller does it all.
            let start = || Helper::start(may.cores.count() - 1);
            let Some(helper) = waiting.or_else(start) else { break };
            helpers.push(helper);
        }
        // Nobody computes on those.
        (helpers.len()..spare.count()).for_each(|_| spare.give_one_back());
        // For others: there are never more of them than cores beside one caller's.
        if helpers.len() > spare.count() {
            idle().extend(helpers.drain(spare.count()..));
        }
        let core = sched_getcpu();
        helpers.iter_mut().for_each(|helper| helper.keep_off(core));
        let job = Job {
            work,
            spare: &spare,
            parts,
            next: AtomicUsize::new(0),
            has_panicked: AtomicBool::new(false),
            spent_ns: AtomicU64::new(0),
            caller: thread::current(),
        };
        {
            // Waits for the helpers even where this thread's own part panics.
            let _all = WaitForHelpers { job: &job, helpers, untold_ns };
            IS_HELPED.set(!helpers.is_empty());
            for helper in &*helpers {
                helper.give(&job);
            }
            ROOM.with_borrow_mut(|room| {
                while job.work_on_one(room) {
                    IS_HELPED.set(spare.count() > 0);
                }
            });
        }
        assert!(!job.has_panicked.into_inner(), "a helper panicked");
    }
}

/// One operator's work.
struct Job<'a> {
    work: &'a (dyn Fn(usize, &mut Room) + Sync),
    /// The helpers' cores.
    spare: &'a Busy<'a>,
    parts: usize,
    next: AtomicUsize,
    has_panicked: AtomicBool,
    spent_ns: AtomicU64,
    caller: Thread,
}

impl Job<'_> {
    /// Whether there was a part left.
    fn work_on_one(&self, room: &mut Room) -> bool {
        let part = self.next.fetch_add(1, Ordering::Relaxed);
        let is_left = part < self.parts;
        if is_left {
            (self.work)(part, room);
        }
        is_left
    }

    /// A helper's work: until nothing is left, or its core is wanted, which it gives back.
    fn help(&self, room: &mut Room) {
        let work = AssertUnwindSafe(|| while !self.spare.are_wanted() && self.work_on_one(room) {});
        if catch_unwind(work).is_err() {
            self.has_panicked.store(true, Ordering::Relaxed);
        }
        self.spare.give_one_back();
    }
}

struct WaitForHelpers<'a> {
    job: &'a Job<'a>,
    helpers: &'a [Helper],
    untold_ns: &'a mut u64,
}

impl Drop for WaitForHelpers<'_> {
    fn drop(&mut self) {
        IS_HELPED.set(false);
        // Nobody begins a part any more if this thread's own panicked.
        self.job.next.fetch_max(self.job.parts, Ordering::Relaxed);
        // Whoever has not woken up yet is not waited for.
        for helper in self.helpers {
            wait_until(SPIN, || !helper.has(self.job), thread::park);
        }
        *self.untold_ns += self.job.spent_ns.load(Ordering::Relaxed);
    }
}

/// Looks for a while, then sleeps until it is unparked, and so on: a helper that woke up too late for
/// one operator is there for the next.
fn wait_until(spin: Duration, holds: impl Fn() -> bool, mut sleep: impl FnMut()) {
    loop {
        let until = Instant::now() + spin;
        // After each wake-up at least once, as it may be the last one, even where the system took the
        // core away for all of that time.
        loop {
            for _ in 0..64 {
                if holds() {
                    return;
                }
                spin_loop();
            }
            if Instant::now() >= until {
                break;
            }
        }
        sleep();
    }
}

/// In a helper's place for jobs while it works on the one that lay there.
static TAKEN: AtomicU8 = AtomicU8::new(0);

fn taken() -> *mut Job<'static> {
    ptr::from_ref(&TAKEN).cast_mut().cast()
}

/// A thread that waits for a job.
struct Helper {
    /// Null where it has none; one that was given; or [`taken`].
    job: Arc<AtomicPtr<Job<'static>>>,
    thread: Thread,
    id: Pid,
    /// The core that it keeps off.
    off: Option<usize>,
}

/// How many there are; they stay.
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// Helpers without a run; the one used last is on top.
static IDLE: Mutex<Vec<Helper>> = Mutex::new(Vec::new());

fn idle() -> MutexGuard<'static, Vec<Helper>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Helper {
    /// One more, unless there are so many already.
    fn start(most: usize) -> Option<Self> {
        let count = |started| (started < most).then_some(started + 1);
        STARTED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).ok()?;
        let helper = Self::try_start();
        if helper.is_none() {
            STARTED.fetch_sub(1, Ordering::Relaxed);
        }
        helper
    }

    fn try_start() -> Option<Self> {
        let job: Arc<AtomicPtr<Job<'static>>> = Arc::default();
        let theirs = job.clone();
        let (sender, receiver) = mpsc::channel();
        let started = thread::Builder::new().name("wisp-help".to_owned()).spawn(move || {
            // Whoever started it waits for its name.
            let _ = sender.send((thread::current(), gettid()));
            help(&theirs);
        });
        started.ok()?;
        let (thread, id) = receiver.recv().ok()?;
        Some(Self { job, thread, id, off: None })
    }

    /// Lets it run on all cores of the calling thread's but that one, which is the caller's own. After
    /// a pause the kernel often wakes it just there, and lets both wait for each other.
    fn keep_off(&mut self, core: usize) {
        if self.off.replace(core) == Some(core) {
            return;
        }
        let Ok(mut cores) = sched_getaffinity(None) else { return };
        if cores.count() > 1 && core < CpuSet::MAX_CPU {
            cores.unset(core);
            // Where the system does not want it, it places the thread itself.
            let _ = sched_setaffinity(Some(self.id), &cores);
        }
    }

    fn give(&self, job: &Job<'_>) {
        let given = ptr::from_ref(job).cast_mut().cast();
        let free = ptr::null_mut();
        // Never in the place of another: its giver would take it for done.
        let place = &self.job;
        let was = place.compare_exchange(free, given, Ordering::Release, Ordering::Relaxed);
        debug_assert!(was.is_ok(), "a helper has one caller, who has waited for its last job");
        if was.is_ok() {
            self.thread.unpark();
        }
    }

    /// Whether it works on that job, which is taken back where it has not begun.
    fn has(&self, job: &Job<'_>) -> bool {
        let given = ptr::from_ref(job).cast_mut().cast();
        let place = &self.job;
        let found =
            place.compare_exchange(given, ptr::null_mut(), Ordering::Acquire, Ordering::Acquire);
        found == Err(taken())
    }
}

fn help(slot: &AtomicPtr<Job<'static>>) {
    let mut room = Room::default();
    let mut since = clock::Since::now();
    loop {
        let mut naps = 0;
        let sleep = || {
            thread::park();
            naps += 1;
            // What it looked around for after its last run is the next one's; what it was woken for in
            // vain, as that was taken back, is nobody's. A job that it saw before it slept has woken it
            // once more.
            if naps > 2 {
                since = clock::Since::now();
            }
        };
        wait_until(SPIN, || !slot.load(Ordering::Relaxed).is_null(), sleep);
        let take = |given: *mut Job<'static>| (!given.is_null()).then(taken);
        let given = slot.fetch_update(Ordering::Acquire, Ordering::Relaxed, take);
        let Ok(job) = given else { continue };
        // SAFETY: whoever gave the job keeps it until it has taken it back, which leaves null here, or
        // this helper has emptied the place, which is after the last that it does with it.
        let Some(job) = (unsafe { job.as_ref() }) else { continue };
        job.help(&mut room);
        job.spent_ns.fetch_add(since.ns(), Ordering::Relaxed);
        since = clock::Since::now();
        let caller = job.caller.clone();
        slot.store(ptr::null_mut(), Ordering::Release);
        caller.unpark();
    }
}

#[cfg(test)]
#[path = "team_tests.rs"]
mod tests;
