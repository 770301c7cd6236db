//! Threads for what may not end, or may take any memory: rten's runs, runs of plans whose sizes
//! depend on values, the making of plans that a run asks for. Whoever asked waits no longer than
//! it wants to. What was given up goes on by itself until it ends, and is counted; what asked for
//! more memory than it may never ends, and is counted too.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::graph::{Failure, Watch};
use crate::guard::guarded;
use crate::memory::Bound;
use crate::{clock, stack};

/// How often a caller looks whether its run is over.
const LOOK: Duration = Duration::from_millis(5);

type Job = Box<dyn FnOnce() + Send>;

/// Workers without a run; the one used last is on top, as its caches are warm.
static IDLE: Mutex<Vec<Sender<Job>>> = Mutex::new(Vec::new());

/// Of all graphs together, as many times the cores.
const MOST_GIVEN_UP: usize = 4;

/// Runs that were stopped for good, of one graph and of all: each holds a thread or two, asleep.
const MOST_LOST: [usize; 2] = [32, 256];

static ALL: Counts = Counts::new();

/// One graph's runs that were given up or stopped for good.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    up: AtomicUsize,
    lost: AtomicUsize,
}

impl Counts {
    const fn new() -> Self {
        Self { up: AtomicUsize::new(0), lost: AtomicUsize::new(0) }
    }
}

impl Given {
    /// # Errors
    /// As many go on as there are cores, of this graph, or so many of all; or too many were
    /// stopped for good.
    fn check(&self) -> Result<(), Failure> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let read = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let (own, all) = (read(&self.0.up), read(&ALL.up));
        if own >= cores || all >= MOST_GIVEN_UP * cores {
            return Err(Failure::Failed(format!(
                "the engine still computes {own} runs of it, {all} in all, whose time is over"
            )));
        }
        let (own, all) = (read(&self.0.lost), read(&ALL.lost));
        if own >= MOST_LOST[0] || all >= MOST_LOST[1] {
            return Err(Failure::Failed(format!(
                "{own} runs of it, {all} in all, asked for more memory than they may: load it anew, or start the server anew"
            )));
        }
        Ok(())
    }

    fn up(&self) {
        self.0.up.fetch_add(1, Ordering::Relaxed);
        ALL.up.fetch_add(1, Ordering::Relaxed);
    }

    fn down(&self) {
        self.0.up.fetch_sub(1, Ordering::Relaxed);
        ALL.up.fetch_sub(1, Ordering::Relaxed);
    }

    fn lost(&self) {
        self.0.lost.fetch_add(1, Ordering::Relaxed);
        ALL.lost.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a worker's run is held to, and what it has used.
pub(crate) struct Bounds {
    memory: usize,
    meter: Arc<Meter>,
    /// Set by whoever is done with the run first: the worker, or the caller that gives it up.
    settled: Arc<AtomicBool>,
    lost: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Bounds {
    /// Does `work` on this thread, which is metered, and stops for good if it asks for too much
    /// memory.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let _entered = self.enter();
        work()
    }

    /// As [`Bounds::within`], until what is returned is dropped, on the same thread.
    pub(crate) fn enter(&self) -> Entered {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).take();
        let lost: Box<dyn FnOnce()> = lost.map_or_else(|| Box::new(|| ()) as _, |lost| lost as _);
        *self.meter.under_way() = Some(clock::Since::now());
        Entered { _bound: Bound::enter(self.memory, lost), meter: self.meter.clone() }
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }
}

/// A thread within a run's bounds.
pub(crate) struct Entered {
    _bound: Bound,
    meter: Arc<Meter>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(since) = self.meter.under_way().take() {
            self.meter.spent_ns.fetch_add(since.ns(), Ordering::Relaxed);
        }
    }
}

/// Of one run's CPU time, whichever thread spends it.
#[derive(Default)]
struct Meter {
    spent_ns: AtomicU64,
    under_way: Mutex<Option<clock::Since>>,
}

impl Meter {
    fn under_way(&self) -> MutexGuard<'_, Option<clock::Since>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ns(&self) -> u64 {
        let under_way = self.under_way();
        self.spent_ns.load(Ordering::Relaxed) + under_way.as_ref().map_or(0, clock::Since::ns)
    }
}

/// Runs `work` on a worker, and waits for it until `watch` says that it is over. `given` counts
/// its graph's.
///
/// # Errors
/// What `work` returns; it panicked; it was given up; it asked for too much memory; too many did
/// so before.
pub(crate) fn run<T: Send + 'static>(
    given: &Given,
    watch: &dyn Watch,
    work: impl FnOnce(&Bounds) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    if watch.is_over() {
        return Err(Failure::Stopped);
    }
    given.check()?;
    let worker = match idle().pop() {
        Some(worker) => worker,
        None => start().map_err(Failure::Failed)?,
    };
    let (sender, receiver) = channel();
    let (settled, meter) = (Arc::new(AtomicBool::new(false)), Arc::new(Meter::default()));
    let end = {
        let (settled, given) = (settled.clone(), given.clone());
        move |result| {
            // A caller that has gone wants no result.
            let _ = sender.send(result);
            if settled.swap(true, Ordering::AcqRel) {
                given.down();
            }
        }
    };
    let memory = watch.memory();
    let (lost_end, lost_given) = (end.clone(), given.clone());
    let lost = move || {
        lost_given.lost();
        let most = memory >> 20;
        lost_end(Err(Failure::OutOfMemory(format!("asked for more than {most} MiB of memory"))));
    };
    let lost: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(Some(Box::new(lost)));
    let bounds = Bounds { memory, meter: meter.clone(), settled: settled.clone(), lost };
    let again = worker.clone();
    let job: Job = Box::new(move || {
        let result = guarded(move || work(&bounds))
            .unwrap_or_else(|panic| Err(Failure::Failed(format!("the engine panicked: {panic}"))));
        idle().push(again);
        end(result);
    });
    let gone = || Failure::Failed("the engine's thread has ended".to_owned());
    worker.send(job).map_err(|_| gone())?;
    let mut told_ns = 0;
    let mut tell = || {
        let spent_ns = meter.ns();
        watch.computed_elsewhere(Duration::from_nanos(spent_ns.saturating_sub(told_ns)));
        told_ns = spent_ns;
    };
    loop {
        let received = receiver.recv_timeout(LOOK);
        tell();
        match received {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => return Err(gone()),
            Err(RecvTimeoutError::Timeout) if watch.is_over() => {
                given.up();
                if settled.swap(true, Ordering::AcqRel) {
                    given.down();
                    return receiver.recv().unwrap_or_else(|_| Err(gone()));
                }
                return Err(Failure::Stopped);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn idle() -> MutexGuard<'static, Vec<Sender<Job>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start() -> Result<Sender<Job>, String> {
    let (sender, jobs) = channel::<Job>();
    let work = move || jobs.into_iter().for_each(|job| job());
    let started = stack::spawn("engine", work);
    started.map_err(|error| format!("a thread cannot be started: {error}"))?;
    Ok(sender)
}
