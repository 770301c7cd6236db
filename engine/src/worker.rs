//! Threads for what may not end, or may take any memory: rten's runs, runs of plans whose sizes
//! depend on values, the making of plans that a run asks for. Whoever asked waits no longer than
//! it wants to. What was given up goes on by itself until it ends, and is counted; what asked for
//! more memory than it may never ends, and is counted too.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::cores::{Cores, Helpers};
use crate::graph::{Failure, Watch};
use crate::guard::guarded;
use crate::memory::{Bound, Lost};
use crate::{clock, stack};

/// How often a caller looks whether its run is over.
const LOOK: Duration = Duration::from_millis(5);

type Job = Box<dyn FnOnce() + Send>;

/// Workers without a run; the one used last is on top, as its caches are warm.
static IDLE: Mutex<Vec<Sender<Job>>> = Mutex::new(Vec::new());

/// Of all graphs together, as many times the cores.
const MOST_GIVEN_UP: usize = 4;

/// Runs of one graph that are stopped for good within [`WINDOW`]: each holds a thread or two, asleep.
const MOST_LOST: usize = 16;
const WINDOW: Duration = Duration::from_secs(60);

/// And of all graphs together, ever: from then on those that lost any are not run.
const MOST_LOST_OF_ALL: usize = 512;

static ALL: Counts = Counts::new();

/// One graph's runs that were given up or stopped for good.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    up: AtomicUsize,
    lost: Mutex<Loss>,
}

/// What runs that were stopped for good have left behind.
#[derive(Debug, Default)]
struct Loss {
    runs: usize,
    bytes: usize,
    /// When the last few were.
    recent: VecDeque<Instant>,
}

impl Counts {
    const fn new() -> Self {
        let loss = Loss { runs: 0, bytes: 0, recent: VecDeque::new() };
        Self { up: AtomicUsize::new(0), lost: Mutex::new(loss) }
    }

    fn lost(&self) -> MutexGuard<'_, Loss> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Given {
    /// `memory`: what the run may take.
    ///
    /// # Errors
    /// As many go on as there are cores, of this graph, or so many of all; or too many were
    /// stopped for good, or have left too much behind.
    fn check(&self, memory: usize) -> Result<(), Failure> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let read = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let (own, all) = (read(&self.0.up), read(&ALL.up));
        if own >= cores || all >= MOST_GIVEN_UP * cores {
            return Err(Failure::Failed(format!(
                "the engine still computes {own} runs of it, {all} in all, whose time is over"
            )));
        }
        let mut loss = self.0.lost();
        loss.recent.retain(|when| when.elapsed() < WINDOW);
        let (recent, runs, kept) = (loss.recent.len(), loss.runs, loss.bytes);
        drop(loss);
        if recent >= MOST_LOST {
            return Err(Failure::OutOfMemory(format!(
                "{recent} runs of it asked for more memory than they may within {WINDOW:?}"
            )));
        }
        let all = ALL.lost();
        if runs > 0 && (kept > memory || all.bytes > memory || all.runs >= MOST_LOST_OF_ALL) {
            let (of_all, kept) = (all.runs, all.bytes >> 20);
            return Err(Failure::OutOfMemory(format!(
                "{runs} runs of it, {of_all} in all, asked for more memory than they may, and keep {kept} MiB: start the server anew"
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

    fn lost(&self, bytes: usize) {
        for counts in [&*self.0, &ALL] {
            let mut loss = counts.lost();
            loss.runs += 1;
            loss.bytes += bytes;
        }
        self.0.lost().recent.push_back(Instant::now());
    }
}

type SendLost = Box<dyn FnOnce(usize) + Send>;

/// What a worker's run is held to, and what it has used.
pub(crate) struct Bounds {
    memory: usize,
    meter: Arc<Meter>,
    /// Set by whoever is done with the run first: the worker, or the caller that gives it up.
    settled: Arc<AtomicBool>,
    lost: Mutex<Option<SendLost>>,
    /// Where the caller computes on a core that others may want.
    cores: Option<Arc<Cores>>,
    /// Has the caller give way, and waits until it has.
    give_way: Box<dyn Fn() + Send + Sync>,
    /// Of CPU time, before which it does not ask again.
    asks_at_ns: AtomicU64,
}

/// Of CPU time, from one time that a worker's run gives way to the next, as to ask its caller takes a
/// few tens of microseconds.
const ASKS_EACH: Duration = Duration::from_micros(200);

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
        let lost: Lost<'static> = lost.map_or_else(|| Box::new(|_| ()) as _, |lost| lost as _);
        *self.meter.under_way() = Some(clock::Since::now());
        Entered { _bound: Bound::enter(self.memory, lost), meter: self.meter.clone() }
    }
}

/// As the run itself asks on the worker's thread.
impl Watch for Bounds {
    /// Whether nobody waits for it any more.
    fn is_over(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// It is the caller who has a core.
    fn give_way(&self) {
        if !self.cores.as_ref().is_some_and(|cores| cores.are_wanted()) {
            return;
        }
        let spent_ns = self.meter.ns();
        if spent_ns < self.asks_at_ns.load(Ordering::Relaxed) {
            return;
        }
        (self.give_way)();
        self.asks_at_ns.store(spent_ns + ASKS_EACH.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// What a worker and its caller tell each other of a run.
struct Talk<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

enum State<T> {
    /// The worker computes, and the caller waits.
    Computes,
    /// The other way round: the caller may give way.
    Waits,
    Ended(Result<T, Failure>),
}

impl<T> Talk<T> {
    fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::Computes), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, state: State<T>) {
        *self.lock() = state;
        self.changed.notify_all();
    }

    /// The worker's: waits until the caller has given way, or goes.
    fn give_way(&self, is_given_up: &AtomicBool) {
        let mut state = self.lock();
        if is_given_up.load(Ordering::Acquire) {
            return;
        }
        *state = State::Waits;
        self.changed.notify_all();
        while matches!(*state, State::Waits) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The caller's: what it was told, after some time at the latest.
    fn hear(&self) -> State<T> {
        let computes = |state: &mut State<T>| matches!(state, State::Computes);
        let heard = self.changed.wait_timeout_while(self.lock(), LOOK, computes);
        let mut state = heard.unwrap_or_else(PoisonError::into_inner).0;
        match &*state {
            State::Computes => State::Computes,
            State::Waits => State::Waits,
            State::Ended(_) => mem::replace(&mut *state, State::Computes),
        }
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
/// its graph's. It may take what `watch` says, and `beside` it, bytes.
///
/// # Errors
/// What `work` returns; it panicked; it was given up; it asked for too much memory; too many did
/// so before.
pub(crate) fn run<T: Send + 'static>(
    given: &Given,
    (watch, beside): (&dyn Watch, usize),
    work: impl FnOnce(&Bounds) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    if watch.is_over() {
        return Err(Failure::Stopped);
    }
    let memory = watch.memory().saturating_add(beside);
    given.check(memory)?;
    let worker = match idle().pop() {
        Some(worker) => worker,
        None => start().map_err(Failure::Failed)?,
    };
    let talk = Talk::new();
    let (settled, meter) = (Arc::new(AtomicBool::new(false)), Arc::new(Meter::default()));
    let end = {
        let (talk, settled, given) = (talk.clone(), settled.clone(), given.clone());
        move |result| {
            // A caller that has gone does not hear it.
            talk.tell(State::Ended(result));
            if settled.swap(true, Ordering::AcqRel) {
                given.down();
            }
        }
    };
    let (lost_end, lost_given) = (end.clone(), given.clone());
    let lost = move |bytes| {
        lost_given.lost(bytes);
        let most = memory >> 20;
        lost_end(Err(Failure::OutOfMemory(format!("asked for more than {most} MiB of memory"))));
    };
    let lost: Mutex<Option<SendLost>> = Mutex::new(Some(Box::new(lost)));
    let cores = watch.helpers().map(|Helpers { cores, .. }| cores);
    let give_way = {
        let (talk, settled) = (talk.clone(), settled.clone());
        Box::new(move || talk.give_way(&settled))
    };
    let bounds = Bounds {
        memory,
        meter: meter.clone(),
        settled: settled.clone(),
        lost,
        cores,
        give_way,
        asks_at_ns: AtomicU64::new(0),
    };
    let again = worker.clone();
    let job: Job = Box::new(move || {
        let result = guarded(move || work(&bounds))
            .unwrap_or_else(|panic| Err(Failure::Failed(format!("the engine panicked: {panic}"))));
        idle().push(again);
        end(result);
    });
    worker.send(job).map_err(|_| Failure::Failed("the engine's thread has ended".to_owned()))?;
    let mut told_ns = 0;
    let mut tell = || {
        let spent_ns = meter.ns();
        watch.computed_elsewhere(Duration::from_nanos(spent_ns.saturating_sub(told_ns)));
        told_ns = spent_ns;
    };
    loop {
        let heard = talk.hear();
        tell();
        match heard {
            State::Ended(result) => return result,
            State::Waits => {
                watch.give_way();
                talk.tell(State::Computes);
            }
            State::Computes => {}
        }
        if watch.is_over() {
            given.up();
            if !settled.swap(true, Ordering::AcqRel) {
                // One that waits just now goes on, and ends.
                talk.tell(State::Computes);
                return Err(Failure::Stopped);
            }
            given.down();
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
