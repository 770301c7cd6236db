//! wasi-nn served by tract: the graphs of one bundle, shared by all its sandboxes. Only this
//! room names tract. It knows nothing of requests, guests or wire forms: a sandbox hands it a
//! [`Run`], which says until when it may compute and is told how long it did.

mod graph;
mod plans;
mod wasi;

pub use graph::{Graph, GraphError};

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    failure: Mutex<Option<Failure>>,
}

/// Why a compute failed. The guest sees wasi-nn's one line; this is what the host knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The tensors are not what the graph takes.
    Refused(String),
    /// The graph broke while it ran.
    Failed(String),
    /// The deadline passed, or the client has gone.
    Stopped,
}

impl Run {
    pub fn until(deadline: Instant) -> Arc<Self> {
        Arc::new(Self {
            deadline,
            cancelled: AtomicBool::new(false),
            compute_ns: AtomicU64::new(0),
            failure: Mutex::new(None),
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

    /// The last failure, if any.
    pub fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn record(&self, since: Instant, failure: Option<&Failure>) {
        self.compute_ns.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        if let Some(failure) = failure {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.clone());
        }
    }
}
