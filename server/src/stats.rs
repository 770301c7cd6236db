//! What became of a version's requests: counted once, read by the statistics of the protocol
//! and by the metrics alike. Outlives the revision: a version that goes cold keeps its counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Upper bounds of the histograms' buckets, seconds: those of Prometheus' own clients, with two
/// more for models of a millisecond.
pub const BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The counts of one version.
#[derive(Debug, Default)]
pub struct Stats {
    /// Answered, from arrival to answer.
    pub success: Span,
    /// Not answered.
    pub failure: Span,
    /// Of those answered: waiting for a turn.
    pub queue: Span,
    /// Making the sandbox.
    pub sandbox: Span,
    /// The guest before its first graph.
    pub before: Histogram,
    /// From the first graph's begin to the last one's end.
    pub graphs: Histogram,
    /// The guest after its last graph.
    pub after: Histogram,
    /// The guest's own work, all of it.
    pub guest: Span,
    /// The graphs' work, without the guest's in between.
    pub compute: Span,
    /// Requests that wait or run.
    pub pending: AtomicU64,
    /// When the last answer was given, ms since 1970; 0 before the first.
    pub last_ms: AtomicU64,
    /// Answered from the cache.
    pub cached: Span,
    /// Looked for there, and not found.
    pub cache_misses: AtomicU64,
    /// Loads that succeeded.
    pub wakes: Span,
    /// Times it went cold as nobody asked for it.
    pub evicted_idle: AtomicU64,
    /// Times it went cold for others' sake.
    pub evicted_memory: AtomicU64,
    executions: Mutex<BTreeMap<usize, Execution>>,
    failures: Mutex<BTreeMap<&'static str, u64>>,
    traps: Mutex<BTreeMap<&'static str, u64>>,
}

/// Answered requests that ran a graph for as many rows, alone or for others too: how many, and
/// how long in all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Execution {
    pub count: u64,
    pub input_ns: u64,
    pub infer_ns: u64,
    pub output_ns: u64,
}

/// How often, and how long in all.
#[derive(Debug, Default)]
pub struct Span {
    count: AtomicU64,
    ns: AtomicU64,
}

impl Span {
    pub fn add(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub fn ns(&self) -> u64 {
        self.ns.load(Ordering::Relaxed)
    }
}

/// A [`Span`] that also knows how it is spread.
#[derive(Debug, Default)]
pub struct Histogram {
    pub span: Span,
    buckets: [AtomicU64; BUCKETS.len()],
}

impl Histogram {
    fn add(&self, took: Duration) {
        self.span.add(took);
        if let Some(index) = BUCKETS.iter().position(|&bound| took.as_secs_f64() <= bound) {
            self.buckets[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// For each of [`BUCKETS`], how many took so long or less.
    pub fn cumulative(&self) -> [u64; BUCKETS.len()] {
        let mut sum = 0;
        std::array::from_fn(|index| {
            sum += self.buckets[index].load(Ordering::Relaxed);
            sum
        })
    }
}

/// Where an answered request's time went.
#[derive(Debug, Clone, Copy)]
pub struct Phases {
    pub queue: Duration,
    pub sandbox: Duration,
    pub before: Duration,
    pub graphs: Duration,
    pub after: Duration,
    pub guest: Duration,
    pub compute: Duration,
    /// Rows that its graph ran for at once; 1 where it was alone, 0 where another's run did.
    pub batch: usize,
}

impl Stats {
    /// Counts a request in until it is settled; one that is dropped before was cancelled.
    pub fn enter(&self) -> Pending<'_> {
        self.pending.fetch_add(1, Ordering::Relaxed);
        Pending { stats: self, began: std::time::Instant::now(), settled: false }
    }

    /// Runs by how many rows they were for.
    pub fn executions(&self) -> BTreeMap<usize, Execution> {
        self.executions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn touch(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_ms.store(now.as_millis() as u64, Ordering::Relaxed);
    }

    fn execute(&self, phases: &Phases) {
        let mut executions = self.executions.lock().unwrap_or_else(PoisonError::into_inner);
        let execution = executions.entry(phases.batch).or_default();
        execution.count += 1;
        execution.input_ns += (phases.sandbox + phases.before).as_nanos() as u64;
        execution.infer_ns += phases.graphs.as_nanos() as u64;
        execution.output_ns += phases.after.as_nanos() as u64;
    }

    /// How many failed, by the error's kind.
    pub fn failures(&self) -> BTreeMap<&'static str, u64> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many trapped, by the trap's kind.
    pub fn traps(&self) -> BTreeMap<&'static str, u64> {
        self.traps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, kind: &'static str, took: Duration) {
        self.failure.add(took);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry(kind).or_default() += 1;
    }
}

/// A request under way.
pub struct Pending<'a> {
    stats: &'a Stats,
    began: std::time::Instant,
    settled: bool,
}

impl Pending<'_> {
    pub fn succeeded(mut self, phases: Phases) {
        self.settled = true;
        let stats = self.stats;
        stats.success.add(self.began.elapsed());
        stats.queue.add(phases.queue);
        stats.sandbox.add(phases.sandbox);
        stats.before.add(phases.before);
        stats.graphs.add(phases.graphs);
        stats.after.add(phases.after);
        stats.guest.add(phases.guest);
        stats.compute.add(phases.compute);
        if phases.batch > 0 {
            stats.execute(&phases);
        }
        stats.touch();
    }

    /// It was answered from the cache: no sandbox ran.
    pub fn answered_from_cache(mut self) {
        self.settled = true;
        self.stats.success.add(self.began.elapsed());
        self.stats.cached.add(self.began.elapsed());
        self.stats.touch();
    }

    /// `trap` is the kind of trap, if it was one.
    pub fn failed(mut self, kind: &'static str, trap: Option<&'static str>) {
        self.settled = true;
        if let Some(trap) = trap {
            let mut traps = self.stats.traps.lock().unwrap_or_else(PoisonError::into_inner);
            *traps.entry(trap).or_default() += 1;
        }
        self.stats.fail(kind, self.began.elapsed());
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.stats.pending.fetch_sub(1, Ordering::Relaxed);
        if !self.settled {
            self.stats.fail("cancelled", self.began.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_counted_once() {
        let stats = Stats::default();
        let took = Duration::from_millis(3);
        let phases = Phases {
            queue: took,
            sandbox: took,
            before: took,
            graphs: took * 10,
            after: took,
            guest: took * 2,
            compute: took * 10,
            batch: 4,
        };
        stats.enter().succeeded(phases);
        stats.enter().failed("deadline", None);
        drop(stats.enter());
        assert_eq!((stats.success.count(), stats.failure.count()), (1, 2));
        assert_eq!(
            stats.executions().iter().map(|(rows, run)| (*rows, run.count)).collect::<Vec<_>>(),
            [(4, 1)]
        );
        assert_eq!(stats.failures(), BTreeMap::from([("cancelled", 1), ("deadline", 1)]));
        assert_eq!(stats.pending.load(Ordering::Relaxed), 0);
        assert_eq!(stats.graphs.cumulative()[4..6], [0, 1]);
        assert_eq!(stats.before.cumulative()[..3], [0, 0, 1]);
    }
}
