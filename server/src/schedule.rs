//! Who computes where, and who waits. Quick requests run on the thread that read them: a hop to
//! another thread costs as much as a small sandbox. Long ones run on threads of their own, where
//! guests take turns at each tick: so a long guest or graph does not hold up health. Which is which is
//! measured. Neither is polled without a core of its own: no more threads compute than there are cores,
//! unless all of them do so without a pause.

use std::future::poll_fn;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, block_in_place};
use tokio::time::timeout_at;
use wisp_engine::{Busy, Cores};

use crate::cpu::{self, Crowd};
use crate::error::Error;
use crate::turns::{Turn, Turns, Waiting};

/// A model whose requests take less than this on average runs inline. A hop costs some 10 µs
/// and a health check may wait this long: both are lost beside it.
const QUICK: Duration = Duration::from_millis(2);

/// Of CPU time, after which a request leaves the thread that read it. Before, what holds it up where it
/// was taken for quick is no more than what any request may meet: code that is not in a cache, say.
const MOST_INLINE: Duration = Duration::from_millis(20);

/// Where quick requests wait for a core, guests are interrupted again after so long: one may have
/// computed for less than it has given way, or have given way to another since.
const HURRY: Duration = Duration::from_millis(1);

/// How long a quick request waits in which nobody is given a core. Then all are held by what cannot give
/// way: an operator of tract's or rten's own, a host's copy of megabytes, a run of ONNX Runtime.
const PATIENCE: Duration = Duration::from_millis(8);

/// How long others go beside that at once, before one waits again to see whether it still does.
const STUCK: Duration = Duration::from_millis(50);

/// The share of the newest request in a model's average: 1 / 8.
const NEWEST_SHIFT: u32 = 3;

/// The threads of a process, its cores, and how many sandboxes may live.
pub struct Scheduler {
    /// `None` only while it is being dropped.
    long: Option<Runtime>,
    cores: Arc<Cores>,
    /// Requests that run on the thread that read them now.
    inline: AtomicUsize,
    live: Arc<Semaphore>,
    long_tasks: Arc<Crowd>,
    /// Has the guests that run give way soon.
    hurry: Box<dyn Fn() + Send + Sync>,
    /// When somebody called it again, from `made` on.
    hurried_us: AtomicU64,
    made: Instant,
}

/// One model's share: how many of its requests run and wait, and what one costs.
pub struct Gate {
    runs: Runs,
    turns: Arc<Turns>,
    waiting: AtomicUsize,
    queue: usize,
    average_ns: AtomicU64,
    average_bytes: AtomicU64,
}

/// What is known of a model's runs before any.
#[derive(Debug, Clone, Copy, Default)]
pub struct Runs {
    /// They are not inline: where a helper leaves, who waits for its core may be one whom the run's own
    /// thread would poll.
    pub are_helped: bool,
    /// They are inline until they first wait, as for each other: who then runs for all takes as long as all.
    pub are_batched: bool,
}

/// Why a request did not run, or not to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// That many wait already.
    QueueFull(usize),
    Deadline,
    /// The work panicked.
    Panicked,
}

impl Scheduler {
    /// So many threads that compute at a time, and `live` sandboxes. `hurry` is called where a quick
    /// request has to wait for a core, and has the guests that run ask whether they should give way.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn new(
        cores: usize,
        live: usize,
        hurry: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let long_tasks = Crowd::new(cores);
        let theirs = long_tasks.clone();
        let long = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores)
            .thread_name("wisp-compute")
            .on_thread_start(move || theirs.take_thread())
            .enable_time()
            .build()?;
        Ok(Self {
            long: Some(long),
            cores: Cores::new(cores),
            inline: AtomicUsize::new(0),
            live: Arc::new(Semaphore::new(live)),
            long_tasks,
            hurry: Box::new(hurry),
            hurried_us: AtomicU64::new(0),
            made: Instant::now(),
        })
    }

    /// Runs `work`, whose inputs have so many bytes, when it is its turn, and returns what it gave and
    /// how long it waited. Of those who wait for the same gate, the lowest `level` goes first.
    ///
    /// # Errors
    /// Too many wait already, or the deadline passed while waiting or running.
    pub async fn run<F>(
        &self,
        gate: &Arc<Gate>,
        level: u32,
        deadline: Instant,
        bytes: usize,
        work: F,
    ) -> Result<(F::Output, Duration), Refused>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let arrived = Instant::now();
        let turn = gate.enter(level, deadline).await?;
        let slot = acquire(&self.live, deadline).await?;
        let mut work = Timed::new(work, gate.clone(), bytes);
        if gate.is_quick(bytes)
            && !(gate.runs.are_helped && self.cores.count() > 1)
            && let Some(output) = self.run_inline(&mut work, deadline).await?
        {
            return finished(output, arrived);
        }
        // The guards go along: a run that outlives its request keeps its place until it ends.
        let long = self.long.as_ref().expect("present until dropped");
        let member = self.long_tasks.join();
        let is_given_up = work.is_given_up.clone();
        let cores = self.cores.clone();
        let task = long.spawn(async move {
            let output = poll_fn(|context| {
                let _core = cores.wait_for_one();
                Pin::new(&mut work).poll(context)
            });
            let output = output.await;
            drop((turn, slot, member));
            output
        });
        let _abort = AbortOnDrop { task: task.abort_handle(), is_given_up };
        match timeout_at(deadline.into(), task).await {
            Ok(Ok(output)) => finished(output, arrived),
            Ok(Err(_)) => Err(Refused::Panicked),
            Err(_) => Err(Refused::Deadline),
        }
    }
}

impl Scheduler {
    /// Polls `work` on the thread that read it until it ends; or, `None`, it has computed for too long for
    /// that, or waits and may have to run for others, too.
    async fn run_inline<F: Future>(
        &self,
        work: &mut Timed<F>,
        deadline: Instant,
    ) -> Result<Option<<Timed<F> as Future>::Output>, Refused> {
        loop {
            let core = self.core(deadline).await?;
            let inline = Waiting::enter(&self.inline);
            // Beside as many as are stuck inline, it has the network's last thread: another takes over.
            let is_last = inline.before >= self.cores.count();
            let polled = poll_fn(|context| {
                let mut poll = || Pin::new(&mut *work).poll(context);
                Poll::Ready(if is_last { block_in_place(poll) } else { poll() })
            });
            let polled = polled.await;
            drop((core, inline));
            if let Poll::Ready(output) = polled {
                return Ok(Some(output));
            }
            if work.spent >= MOST_INLINE || work.gate.runs.are_batched {
                return Ok(None);
            }
            let is_woken = timeout_at(deadline.into(), woken()).await.is_ok();
            // By the deadline, it may be.
            if !is_woken || Instant::now() >= deadline {
                return Err(Refused::Deadline);
            }
        }
    }
}

/// Lets others go on before, and any thread go on with the task. (tokio's `yield_now` keeps it to this one.)
async fn go_on_later() {
    let mut was_polled = false;
    poll_fn(|context| {
        if mem::replace(&mut was_polled, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits until the task is woken, once.
async fn woken() {
    let mut was_polled = false;
    poll_fn(|_| match mem::replace(&mut was_polled, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

fn finished<T>(
    (output, began): (thread::Result<T>, Instant),
    arrived: Instant,
) -> Result<(T, Duration), Refused> {
    let output = output.map_err(|_| Refused::Panicked)?;
    Ok((output, began - arrived))
}

/// Work that measures the CPU time of its polls, whoever polls it, and tells its gate when it ends or is
/// given up. A panic becomes its output. It also says when it was first polled.
struct Timed<F> {
    work: Pin<Box<F>>,
    gate: Arc<Gate>,
    bytes: usize,
    began: Option<Instant>,
    spent: Duration,
    has_ended: bool,
    /// Set by whoever waits for it no longer: how soon it ends then says nothing.
    is_given_up: Arc<AtomicBool>,
}

impl<F: Future> Timed<F> {
    fn new(work: F, gate: Arc<Gate>, bytes: usize) -> Self {
        let (began, spent, has_ended) = (None, Duration::ZERO, false);
        let is_given_up = Arc::default();
        Self { work: Box::pin(work), gate, bytes, began, spent, has_ended, is_given_up }
    }
}

impl<F: Future> Future for Timed<F> {
    type Output = (thread::Result<F::Output>, Instant);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let before = cpu::for_thread();
        let began = *self.began.get_or_insert_with(Instant::now);
        let polled = catch_unwind(AssertUnwindSafe(|| self.work.as_mut().poll(context)));
        self.spent += cpu::for_thread().saturating_sub(before);
        self.has_ended = !matches!(polled, Ok(Poll::Pending));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready((Ok(output), began)),
            Err(panic) => Poll::Ready((Err(panic), began)),
        }
    }
}

impl<F> Drop for Timed<F> {
    fn drop(&mut self) {
        let has_ended = self.has_ended && !self.is_given_up.load(Ordering::Relaxed);
        match (self.began, has_ended) {
            (None, _) => {}
            (Some(_), true) => self.gate.record(self.spent, self.bytes),
            (Some(_), false) => self.gate.record_at_least(self.spent, self.bytes),
        }
    }
}

impl Scheduler {
    /// Whether a request runs on the thread that read it.
    pub fn runs_inline(&self) -> bool {
        self.inline.load(Ordering::Relaxed) > 0
    }

    /// The cores that requests compute on.
    pub fn cores(&self) -> Arc<Cores> {
        self.cores.clone()
    }

    /// A core for a quick request, for which guests and kernels are asked to give way.
    async fn core(&self, deadline: Instant) -> Result<Busy<'_>, Refused> {
        if let Some(core) = self.cores.try_take_quick() {
            return Ok(core);
        }
        let (mut given, mut since) = (self.cores.given(), Instant::now());
        let turn = self.cores.take_quick();
        let mut turn = pin!(turn);
        if !self.long_tasks.is_empty() {
            (self.hurry)();
        }
        loop {
            let until = deadline.min(Instant::now() + HURRY);
            match timeout_at(until.into(), &mut turn).await {
                Ok(core) => return Ok(core),
                Err(_) if until == deadline => return Err(Refused::Deadline),
                Err(_) => {}
            }
            self.hurry_again();
            if given != self.cores.given() {
                (given, since) = (self.cores.given(), Instant::now());
            } else if since.elapsed() >= PATIENCE {
                self.cores.find_stuck(given, STUCK);
                // Who was given one just now may be next on this thread, where no other finds it.
                go_on_later().await;
            }
        }
    }
}

impl Scheduler {
    /// However many wait.
    fn hurry_again(&self) {
        let now_us = self.made.elapsed().as_micros() as u64;
        let last_us = self.hurried_us.load(Ordering::Relaxed);
        if now_us >= last_us + HURRY.as_micros() as u64 / 2 {
            self.hurried_us.store(now_us, Ordering::Relaxed);
            (self.hurry)();
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // Dropping a runtime waits for its threads, which an async context must not.
        if let Some(long) = self.long.take() {
            long.shutdown_background();
        }
    }
}

impl Gate {
    /// At most `concurrency` run and `queue` wait at a time.
    pub fn new(concurrency: usize, queue: usize, runs: Runs) -> Self {
        Self {
            runs,
            turns: Arc::new(Turns::new(concurrency)),
            waiting: AtomicUsize::new(0),
            queue,
            average_ns: AtomicU64::new(u64::MAX),
            average_bytes: AtomicU64::new(0),
        }
    }

    /// Requests that wait for their turn now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether one more may wait: to be asked before a request's body is read.
    ///
    /// # Errors
    /// Too many wait already.
    pub fn check(&self, model: &str) -> Result<(), Error> {
        match self.waiting() {
            waiting if waiting > 0 && waiting >= self.queue => {
                Err(Error::Overloaded { model: model.to_owned(), waiting })
            }
            _ => Ok(()),
        }
    }

    async fn enter(&self, level: u32, deadline: Instant) -> Result<Turn, Refused> {
        if let Some(turn) = self.turns.try_take() {
            return Ok(turn);
        }
        let waiting = Waiting::enter(&self.waiting);
        if waiting.before >= self.queue {
            return Err(Refused::QueueFull(waiting.before));
        }
        timeout_at(deadline.into(), self.turns.take(level)).await.map_err(|_| Refused::Deadline)
    }

    /// Unknown counts as long: the first request pays the hop. So does one of inputs so much larger
    /// than the others' that it may take long.
    fn is_quick(&self, bytes: usize) -> bool {
        let usual = self.average_bytes.load(Ordering::Relaxed).max(1);
        let times = (bytes as u64 / usual).max(1);
        let expected = self.average_ns.load(Ordering::Relaxed).saturating_mul(times);
        expected < QUICK.as_nanos() as u64
    }

    /// Of a run that was given up: a model whose clients leave early is not quick for that.
    fn record_at_least(&self, took: Duration, bytes: usize) {
        if took.as_nanos() as u64 > self.average_ns.load(Ordering::Relaxed) {
            self.record(took, bytes);
        }
    }

    fn record(&self, took: Duration, bytes: usize) {
        let took = took.as_nanos() as u64;
        let is_first = self.average_ns.load(Ordering::Relaxed) == u64::MAX;
        for (average, newest) in [(&self.average_ns, took), (&self.average_bytes, bytes as u64)] {
            let before = average.load(Ordering::Relaxed);
            let next = match is_first {
                true => newest,
                false => before - (before >> NEWEST_SHIFT) + (newest >> NEWEST_SHIFT),
            };
            // Two at once may lose one of them: it is an average.
            average.store(next, Ordering::Relaxed);
        }
    }
}

async fn acquire(
    semaphore: &Arc<Semaphore>,
    deadline: Instant,
) -> Result<OwnedSemaphorePermit, Refused> {
    if let Ok(permit) = semaphore.clone().try_acquire_owned() {
        return Ok(permit);
    }
    let permit = timeout_at(deadline.into(), semaphore.clone().acquire_owned()).await;
    Ok(permit.map_err(|_| Refused::Deadline)?.expect("semaphores here are never closed"))
}

struct AbortOnDrop {
    task: AbortHandle,
    is_given_up: Arc<AtomicBool>,
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.is_given_up.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
