//! wasi-nn served by the engines: the graphs of one bundle, shared by all its sandboxes. It
//! knows nothing of requests, guests or wire forms: a sandbox hands it a [`Run`], which says
//! until when it may compute and is told how long it did.

mod batch;
mod wasi;

pub use batch::Batching;
pub use wasi::{Context, View, add_to_linker};

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::block_in_place;
use wisp_engine::{Cores, Failure, Graph, Helpers, Value, Watch};

use crate::cpu;
use batch::Batcher;

/// The graphs of one bundle by the names its manifest gives them.
#[derive(Debug, Default)]
pub struct Graphs {
    served: Vec<Arc<Served>>,
    /// Sandboxes that may run them.
    sandboxes: AtomicUsize,
    /// Of the tensors that those hold, bytes.
    held_bytes: AtomicUsize,
}

/// A graph, and who runs several sandboxes' computes of it at once, where that pays.
#[derive(Debug)]
struct Served {
    name: String,
    graph: Graph,
    batcher: Option<Batcher>,
}

impl Graphs {
    pub fn new(graphs: Vec<(String, Graph, Option<Batching>)>) -> Arc<Self> {
        let serve = |(name, graph, batching): (_, _, Option<Batching>)| {
            Arc::new(Served { name, graph, batcher: batching.map(Batcher::new) })
        };
        let served = graphs.into_iter().map(serve).collect();
        Arc::new(Self { served, sandboxes: AtomicUsize::new(0), held_bytes: AtomicUsize::new(0) })
    }

    /// What is held for sandboxes in tensors now, bytes.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    pub fn get(&self, name: &str) -> Option<&Graph> {
        self.served(name).map(|served| &served.graph)
    }

    fn served(&self, name: &str) -> Option<&Arc<Served>> {
        self.served.iter().find(|served| served.name == name)
    }
}

impl Served {
    /// Runs the graph on values in the order of its inputs, and returns what part of the time
    /// was spent for them. `is_alone`: no other sandbox could run it now.
    async fn run(
        &self,
        mut inputs: Vec<Value<'static>>,
        run: &Arc<Run>,
        is_alone: bool,
    ) -> (Result<Vec<Value<'static>>, Failure>, Duration) {
        if let Some(batcher) = &self.batcher
            && let Some(key) = batch::key(&self.graph, &inputs)
        {
            return batcher.run(&self.graph, key, inputs, run, is_alone).await;
        }
        let (started, before) = (Instant::now(), cpu::of_thread());
        let result = self.graph.run(&mut inputs, &**run);
        let cpu = cpu::of_thread().saturating_sub(before);
        run.computed_here(cpu);
        run.spent_in_graph(cpu);
        (result, started.elapsed())
    }
}

/// One request's dealings with the engine.
#[derive(Debug)]
pub struct Run {
    /// No node of a graph is begun after it.
    pub deadline: Instant,
    /// Of CPU time; `None`: as much as fits before the deadline.
    cpu_limit: Option<Duration>,
    graph_bytes: usize,
    /// The cores it computes on, and threads that may help its graphs.
    helpers: Option<Helpers>,
    cancelled: AtomicBool,
    /// CPU time of the polls that ended, and where the thread's clock stood when the one under
    /// way began.
    polled_ns: AtomicU64,
    began_ns: AtomicU64,
    /// Which thread that is.
    polled_by: AtomicUsize,
    made: Instant,
    /// When its guest began in that one, from `made` on; and CPU time so far then, if it is much.
    polled_after_ns: AtomicU64,
    before_guest_ns: AtomicU64,
    /// Of the CPU time, what was spent on others' rows of a batch; and what others spent on these.
    for_others_ns: AtomicU64,
    by_others_ns: AtomicU64,
    /// CPU time that its thread spent in its newest graph, in the poll under way.
    in_graph_ns: AtomicU64,
    /// CPU time that was spent around them: by the threads that polled it, before they did.
    around_ns: AtomicU64,
    /// CPU time of its graphs, whoever ran them.
    compute_cpu_ns: AtomicU64,
    /// The most its sandbox and its tensors took.
    memory_bytes: AtomicU64,
    tensor_bytes: AtomicU64,
    compute_ns: AtomicU64,
    waited_ns: AtomicU64,
    /// How long its thread waited for the quick ones that it left its core to.
    gave_way_ns: AtomicU64,
    /// Whether it gave way on a thread that has others' requests, and stood behind others then.
    has_waited: AtomicBool,
    seen: Mutex<Seen>,
}

/// Of CPU time and of the clock, after which a run gives way on a thread that has others' requests, too: it
/// was taken for quick.
const NOT_QUICK: Duration = Duration::from_millis(5);

/// After which it sees whether it is over.
const LONGEST_WAIT: Duration = Duration::from_millis(10);

/// Runs that give way on threads which have others' requests, at a time: each takes one more thread.
const MOST_ASIDE: usize = 64;
static RUNS_ASIDE: AtomicUsize = AtomicUsize::new(0);

/// No poll is under way.
const NOT_POLLED: u64 = u64::MAX;

/// What the host knows of a run's computes beside how long they took.
#[derive(Debug, Default)]
struct Seen {
    failure: Option<Failure>,
    /// From the first one's begin to the last one's end.
    span: Option<(Instant, Instant)>,
    /// Rows of the largest run that was made here for others, too.
    led: Option<usize>,
    /// Whether another's run was for this, too.
    has_joined: bool,
}

impl Run {
    /// `cpu_limit` of CPU time, `graph_bytes` that each graph may take, and the cores it computes
    /// on where those are counted.
    pub fn limited(
        deadline: Instant,
        cpu_limit: Option<Duration>,
        graph_bytes: usize,
        helpers: Option<Helpers>,
    ) -> Arc<Self> {
        Arc::new(Self {
            deadline,
            cpu_limit,
            graph_bytes,
            helpers,
            cancelled: AtomicBool::new(false),
            polled_ns: AtomicU64::new(0),
            began_ns: AtomicU64::new(NOT_POLLED),
            polled_by: AtomicUsize::new(0),
            made: Instant::now(),
            polled_after_ns: AtomicU64::new(NOT_POLLED),
            before_guest_ns: AtomicU64::new(0),
            for_others_ns: AtomicU64::new(0),
            by_others_ns: AtomicU64::new(0),
            in_graph_ns: AtomicU64::new(0),
            around_ns: AtomicU64::new(0),
            compute_cpu_ns: AtomicU64::new(0),
            memory_bytes: AtomicU64::new(0),
            tensor_bytes: AtomicU64::new(0),
            compute_ns: AtomicU64::new(0),
            waited_ns: AtomicU64::new(0),
            gave_way_ns: AtomicU64::new(0),
            has_waited: AtomicBool::new(false),
            seen: Mutex::default(),
        })
    }

    /// Ends a compute under way before its next node.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the deadline has passed, the request was cancelled, or its CPU time is used up.
    pub fn is_over(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || Instant::now() >= self.deadline || self.is_spent()
    }

    /// A long run leaves its core to quick ones that wait for it, unless they have had it for longer than
    /// it has computed: beside quick ones without end it has about half.
    pub fn give_way(&self) {
        self.give_way_until(self.deadline);
    }

    fn give_way_until(&self, until: Instant) {
        let are_wanted = |helpers: &&Helpers| helpers.cores.are_wanted();
        let Some(Helpers { cores, .. }) = self.helpers.as_ref().filter(are_wanted) else { return };
        let began = Instant::now();
        while cores.are_wanted() && self.may_give_way(cores) {
            let quick = match cpu::is_set_apart() {
                true => cores.give_way(true, until),
                false => self.give_way_elsewhere(cores, until),
            };
            let Some(quick) = quick else { return };
            self.gave_way_ns.fetch_add(quick.as_nanos() as u64, Ordering::Relaxed);
            if began.elapsed() >= LONGEST_WAIT {
                return;
            }
        }
    }

    /// Gives way on a thread that has others' requests, too. Whoever waits may be one that it would poll:
    /// another thread does so meanwhile.
    fn give_way_elsewhere(&self, cores: &Cores, until: Instant) -> Option<Duration> {
        let before = RUNS_ASIDE.fetch_add(1, Ordering::Relaxed);
        // Who was taken for quick came by its core before others who are not: once.
        let goes_first = self.has_waited.load(Ordering::Relaxed);
        let give_way = || block_in_place(|| cores.give_way(goes_first, until));
        let quick = (before < MOST_ASIDE).then(give_way).flatten();
        self.has_waited.fetch_or(quick.is_some(), Ordering::Relaxed);
        RUNS_ASIDE.fetch_sub(1, Ordering::Relaxed);
        quick
    }

    fn may_give_way(&self, cores: &Cores) -> bool {
        let is_quick = |cpu| {
            // Beside what is stuck it would then wait for that.
            let most = if cores.are_exceeded() { 2 * NOT_QUICK } else { NOT_QUICK };
            // On a new thread a sandbox takes milliseconds; and the system may have halted it since.
            let polled_after_ns = self.polled_after_ns.load(Ordering::Relaxed);
            let not_quick_at = Duration::from_nanos(polled_after_ns).saturating_add(most);
            let before = Duration::from_nanos(self.before_guest_ns.load(Ordering::Relaxed));
            cpu < before + most || self.made.elapsed() < not_quick_at
        };
        let cpu = self.cpu();
        let gave_way = Duration::from_nanos(self.gave_way_ns.load(Ordering::Relaxed));
        cpu >= gave_way && (cpu::is_set_apart() || !is_quick(cpu))
    }

    pub fn guest_begins(&self) {
        let after = self.made.elapsed();
        if after > NOT_QUICK / 2 {
            self.before_guest_ns.store(self.cpu().as_nanos() as u64, Ordering::Relaxed);
        }
        self.polled_after_ns.store(after.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Whether its CPU time is used up.
    pub fn is_spent(&self) -> bool {
        self.cpu_limit.is_some_and(|limit| self.cpu() > limit)
    }

    /// The time spent in graphs so far; of a run with others its part.
    pub fn compute_time(&self) -> Duration {
        Duration::from_nanos(self.compute_ns.load(Ordering::Relaxed))
    }

    /// The time spent waiting for others to run with, and their parts of the runs.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited_ns.load(Ordering::Relaxed))
    }

    /// The last failure, if any. The guest sees wasi-nn's one line; this is what the host knows.
    pub fn failure(&self) -> Option<Failure> {
        self.seen().failure.clone()
    }

    /// From the first compute's begin to the last one's end, if there was any.
    pub fn compute_span(&self) -> Option<(Instant, Instant)> {
        self.seen().span
    }

    /// Rows that its largest run was for; 1 where nobody joined it, 0 where it joined another's.
    pub fn batch(&self) -> usize {
        let seen = self.seen();
        seen.led.unwrap_or(usize::from(!seen.has_joined))
    }

    fn lead(&self, rows: usize) {
        let mut seen = self.seen();
        seen.led = seen.led.max(Some(rows));
    }

    fn join(&self) {
        self.seen().has_joined = true;
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, since: Instant, computed: Duration, failure: Option<&Failure>) {
        let now = Instant::now();
        let waited = (now - since).saturating_sub(computed);
        self.compute_ns.fetch_add(computed.as_nanos() as u64, Ordering::Relaxed);
        self.waited_ns.fetch_add(waited.as_nanos() as u64, Ordering::Relaxed);
        let mut seen = self.seen();
        seen.span = Some((seen.span.map_or(since, |(first, _)| first), now));
        if failure.is_some() {
            seen.failure = failure.cloned();
        }
    }
}

/// CPU time and memory.
impl Run {
    /// Runs `work`, all of whose CPU time counts as this run's.
    pub async fn metered<F: Future>(&self, work: F) -> F::Output {
        let mut work = pin!(work);
        poll_fn(|context| {
            let _turn = Polled::begin(self);
            work.as_mut().poll(context)
        })
        .await
    }

    /// CPU time so far: its guest's and its graphs', its part of those run with others'. The one
    /// under way counts for the thread that polls it.
    pub fn cpu(&self) -> Duration {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let here = load(&self.polled_ns) + self.polled_for().as_nanos() as u64;
        let all = here + load(&self.by_others_ns);
        Duration::from_nanos(all.saturating_sub(load(&self.for_others_ns)))
    }

    /// CPU time of the poll under way, on the thread that polls it; to others, none.
    pub fn polled_for(&self) -> Duration {
        match self.began_ns.load(Ordering::Relaxed) {
            NOT_POLLED => Duration::ZERO,
            _ if self.polled_by.load(Ordering::Relaxed) != cpu::this_thread() => Duration::ZERO,
            began_ns => cpu::of_thread().saturating_sub(Duration::from_nanos(began_ns)),
        }
    }

    /// The same without the newest graph.
    pub fn guest_polled_for(&self) -> Duration {
        let in_graph = Duration::from_nanos(self.in_graph_ns.load(Ordering::Relaxed));
        self.polled_for().saturating_sub(in_graph)
    }

    fn spent_in_graph(&self, cpu: Duration) {
        self.in_graph_ns.store(cpu.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Of [`Run::cpu`], its graphs'.
    pub fn compute_cpu(&self) -> Duration {
        Duration::from_nanos(self.compute_cpu_ns.load(Ordering::Relaxed))
    }

    /// CPU time that the server spent on it, beside [`Run::cpu`].
    pub fn cpu_around(&self) -> Duration {
        Duration::from_nanos(self.around_ns.load(Ordering::Relaxed))
    }

    /// Notes CPU time that the server spent on it elsewhere.
    pub fn served(&self, ns: u64) {
        self.around_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// The most bytes that its sandbox and its tensors held.
    pub fn peak_memory(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed) + self.tensor_bytes.load(Ordering::Relaxed)
    }

    /// Notes what its sandbox's memories have grown to.
    pub fn holds_memory(&self, bytes: usize) {
        self.memory_bytes.fetch_max(bytes as u64, Ordering::Relaxed);
    }

    fn holds_tensors(&self, bytes: usize) {
        self.tensor_bytes.fetch_max(bytes as u64, Ordering::Relaxed);
    }

    /// CPU time that a graph took for it.
    fn computed_here(&self, cpu: Duration) {
        self.compute_cpu_ns.fetch_add(cpu.as_nanos() as u64, Ordering::Relaxed);
    }

    /// A graph of its, or that it runs for others too, ran on another thread.
    fn ran_elsewhere(&self, cpu: Duration) {
        cpu::spent_elsewhere(cpu);
        self.by_others_ns.fetch_add(cpu.as_nanos() as u64, Ordering::Relaxed);
    }

    /// A graph ran for it, on the thread that polls `leader`.
    fn computed_by(&self, leader: &Self, cpu: Duration) {
        self.computed_here(cpu);
        self.by_others_ns.fetch_add(cpu.as_nanos() as u64, Ordering::Relaxed);
        leader.for_others_ns.fetch_add(cpu.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Watch for Run {
    fn is_over(&self) -> bool {
        self.is_over()
    }

    fn memory(&self) -> usize {
        self.graph_bytes
    }

    fn helpers(&self) -> Option<Helpers> {
        self.helpers.clone()
    }

    fn give_way(&self) {
        self.give_way();
    }

    fn computed_elsewhere(&self, cpu: Duration) {
        self.ran_elsewhere(cpu);
        self.computed_here(cpu);
    }
}

/// A poll under way.
struct Polled<'a>(&'a Run);

impl<'a> Polled<'a> {
    fn begin(run: &'a Run) -> Self {
        let (before_ns, now_ns) = cpu::take_between();
        run.around_ns.fetch_add(before_ns, Ordering::Relaxed);
        run.polled_by.store(cpu::this_thread(), Ordering::Relaxed);
        run.in_graph_ns.store(0, Ordering::Relaxed);
        if run.polled_after_ns.load(Ordering::Relaxed) != NOT_POLLED {
            run.guest_begins();
        }
        run.began_ns.store(now_ns, Ordering::Relaxed);
        Self(run)
    }
}

impl Drop for Polled<'_> {
    fn drop(&mut self) {
        self.0.began_ns.store(NOT_POLLED, Ordering::Relaxed);
        self.0.polled_ns.fetch_add(cpu::take().0, Ordering::Relaxed);
    }
}
