//! wasi-nn served by the engines: the graphs of one bundle, shared by all its sandboxes. It
//! knows nothing of requests, guests or wire forms: a sandbox hands it a [`Run`], which says
//! until when it may compute and is told how long it did.

mod wasi;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wisp_engine::{Failure, Graph};

/// The graphs of one bundle by the names its manifest gives them.
#[derive(Debug, Default)]
pub struct Graphs(Vec<(String, Arc<Graph>)>);

impl Graphs {
    pub fn new(graphs: Vec<(String, Arc<Graph>)>) -> Arc<Self> {
        Arc::new(Self(graphs))
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Graph>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, graph)| graph)
    }
}

/// One request's dealings with the engine.
#[derive(Debug)]
pub struct Run {
    /// No node of a graph is begun after it.
    pub deadline: Instant,
    cancelled: AtomicBool,
    compute_ns: AtomicU64,
    seen: Mutex<Seen>,
}

/// What the host knows of a run's computes beside how long they took.
#[derive(Debug, Default)]
struct Seen {
    failure: Option<Failure>,
    /// From the first one's begin to the last one's end.
    span: Option<(Instant, Instant)>,
}

impl Run {
    pub fn until(deadline: Instant) -> Arc<Self> {
        Arc::new(Self {
            deadline,
            cancelled: AtomicBool::new(false),
            compute_ns: AtomicU64::new(0),
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

    /// The time spent in graphs so far.
    pub fn compute_time(&self) -> Duration {
        Duration::from_nanos(self.compute_ns.load(Ordering::Relaxed))
    }

    /// The last failure, if any. The guest sees wasi-nn's one line; this is what the host knows.
    pub fn failure(&self) -> Option<Failure> {
        self.seen().failure.clone()
    }

    /// From the first compute's begin to the last one's end, if there was any.
    pub fn compute_span(&self) -> Option<(Instant, Instant)> {
        self.seen().span
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, since: Instant, failure: Option<&Failure>) {
        let now = Instant::now();
        self.compute_ns.fetch_add((now - since).as_nanos() as u64, Ordering::Relaxed);
        let mut seen = self.seen();
        seen.span = Some((seen.span.map_or(since, |(first, _)| first), now));
        if failure.is_some() {
            seen.failure = failure.cloned();
        }
    }
}
