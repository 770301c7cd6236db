//! wasi-nn served by the engines: the graphs of one bundle, shared by all its sandboxes. It
//! knows nothing of requests, guests or wire forms: a sandbox hands it a [`Run`], which says
//! until when it may compute and is told how long it did.

mod batch;
mod wasi;

pub use batch::Batching;
pub use wasi::{Context, View, add_to_linker};

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wisp_engine::{Failure, Graph, Value};

use batch::Batcher;

/// The graphs of one bundle by the names its manifest gives them.
#[derive(Debug, Default)]
pub struct Graphs {
    served: Vec<Arc<Served>>,
    /// Sandboxes that may run them.
    sandboxes: AtomicUsize,
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
        Arc::new(Self { served, sandboxes: AtomicUsize::new(0) })
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
        let started = Instant::now();
        let result = self.graph.run(&mut inputs, &|| run.is_over());
        (result, started.elapsed())
    }
}

/// One request's dealings with the engine.
#[derive(Debug)]
pub struct Run {
    /// No node of a graph is begun after it.
    pub deadline: Instant,
    cancelled: AtomicBool,
    compute_ns: AtomicU64,
    waited_ns: AtomicU64,
    seen: Mutex<Seen>,
}

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
    pub fn until(deadline: Instant) -> Arc<Self> {
        Arc::new(Self {
            deadline,
            cancelled: AtomicBool::new(false),
            compute_ns: AtomicU64::new(0),
            waited_ns: AtomicU64::new(0),
            seen: Mutex::default(),
        })
    }

    /// Ends a compute under way before its next node.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the deadline has passed or the request was cancelled.
    pub fn is_over(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || Instant::now() >= self.deadline
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
