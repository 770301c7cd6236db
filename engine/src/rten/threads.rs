//! The threads that rten computes on. It cannot be stopped between operators, and it runs a
//! graph inside a pool of threads, never on the caller's own. So each run has a worker: a thread
//! that calls rten, and a pool of one thread that computes. Whoever asked waits no longer than
//! it wants to; a run that was given up goes on by itself until it ends, and is counted.
//!
//! rten makes a pool of its own beside these, with a thread for each physical core, which then
//! sleeps for good (`RTEN_NUM_THREADS=1` in the environment makes that one thread).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rten::ThreadPool;

use crate::graph::Failure;
use crate::guard::guarded;
use crate::stack;

/// How often a caller looks whether its run is over.
const LOOK: Duration = Duration::from_millis(5);

type Job = Box<dyn FnOnce(&Arc<ThreadPool>) + Send>;

/// Workers without a run; the one used last is on top, as its caches are warm.
static IDLE: Mutex<Vec<Sender<Job>>> = Mutex::new(Vec::new());

/// Of all graphs together, as many times the cores.
const MOST_GIVEN_UP: usize = 4;

/// Runs of any graph that were given up and have not ended.
static ALL_GIVEN_UP: AtomicUsize = AtomicUsize::new(0);

/// Runs of one graph that were given up and have not ended.
#[derive(Debug, Clone, Default)]
pub(super) struct GivenUp(Arc<AtomicUsize>);

impl GivenUp {
    /// # Errors
    /// As many go on as there are cores, of this graph; or so many of all.
    fn check(&self) -> Result<(), Failure> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let (own, all) = (self.0.load(Ordering::Relaxed), ALL_GIVEN_UP.load(Ordering::Relaxed));
        if own < cores && all < MOST_GIVEN_UP * cores {
            return Ok(());
        }
        Err(Failure::Failed(format!(
            "rten still computes {own} runs of it, {all} in all, whose time is over"
        )))
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        ALL_GIVEN_UP.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        ALL_GIVEN_UP.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs `work` on a worker, and waits for it until `is_over`. `given_up` counts its graph's.
///
/// # Errors
/// What `work` returns; it panicked; it was given up; too many that were given up go on.
pub(super) fn run<T: Send + 'static>(
    given_up: &GivenUp,
    work: impl FnOnce(Arc<ThreadPool>) -> Result<T, Failure> + Send + 'static,
    is_over: &(dyn Fn() -> bool + Sync),
) -> Result<T, Failure> {
    if is_over() {
        return Err(Failure::Stopped);
    }
    given_up.check()?;
    let worker = match idle().pop() {
        Some(worker) => worker,
        None => start().map_err(Failure::Failed)?,
    };
    let (sender, receiver) = channel();
    // Set by whoever is done with the run first: the worker, or the caller that gives it up.
    let settled = Arc::new(AtomicBool::new(false));
    let (again, settles, counted) = (worker.clone(), settled.clone(), given_up.clone());
    let job: Job = Box::new(move |pool| {
        let pool = pool.clone();
        let result = guarded(move || work(pool))
            .unwrap_or_else(|panic| Err(Failure::Failed(format!("the engine panicked: {panic}"))));
        idle().push(again);
        // A caller that has gone wants no result.
        let _ = sender.send(result);
        if settles.swap(true, Ordering::AcqRel) {
            counted.take();
        }
    });
    let gone = || Failure::Failed("rten's thread has ended".to_owned());
    worker.send(job).map_err(|_| gone())?;
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => return Err(gone()),
            Err(RecvTimeoutError::Timeout) if is_over() => {
                given_up.add();
                if settled.swap(true, Ordering::AcqRel) {
                    given_up.take();
                    return receiver.recv().unwrap_or_else(|_| Err(gone()));
                }
                return Err(Failure::Stopped);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn idle() -> std::sync::MutexGuard<'static, Vec<Sender<Job>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start() -> Result<Sender<Job>, String> {
    let (sender, jobs) = channel::<Job>();
    let pool = Arc::new(ThreadPool::with_num_threads(1));
    let work = move || jobs.into_iter().for_each(|job| job(&pool));
    let started = builder().spawn(work);
    started.map_err(|error| format!("a thread cannot be started: {error}"))?;
    Ok(sender)
}

fn builder() -> thread::Builder {
    thread::Builder::new().name("rten".to_owned()).stack_size(stack::BYTES)
}
