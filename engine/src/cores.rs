//! The cores of a process and how many are busy: one budget for all runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The cores that a process computes on, and how many threads do now.
#[derive(Debug)]
pub struct Cores {
    count: usize,
    busy: AtomicUsize,
}

/// Threads that compute, until it is dropped.
#[derive(Debug)]
pub struct Busy<'a> {
    cores: &'a Cores,
    threads: usize,
}

impl Cores {
    /// So many, none of them busy.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { count, busy: AtomicUsize::new(0) })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// One thread more computes; it is not asked whether a core is free.
    pub fn enter(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy { cores: self, threads: 1 }
    }

    /// At most so many threads more, as far as cores are free.
    pub(crate) fn spare(&self, most: usize) -> Busy<'_> {
        let free = |busy: usize| self.count.saturating_sub(busy).min(most);
        let taken = self.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |busy| {
            (free(busy) > 0).then(|| busy + free(busy))
        });
        Busy { cores: self, threads: taken.map_or(0, free) }
    }
}

impl Busy<'_> {
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.cores.busy.fetch_sub(self.threads, Ordering::Relaxed);
    }
}

/// What a run may compute on beside its caller's thread.
#[derive(Debug, Clone)]
pub struct Helpers {
    /// Which of them are free is asked at each operator.
    pub cores: Arc<Cores>,
    /// Threads beside the caller's; those beyond the other cores never come.
    pub most: usize,
}
