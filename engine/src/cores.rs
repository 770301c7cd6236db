//! The cores of a process and how many are busy: one budget for all runs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The cores that a process computes on, and how many threads do now.
#[derive(Debug)]
pub struct Cores {
    count: usize,
    busy: AtomicUsize,
    /// Threads that gave way, and what wakes them.
    aside: AtomicUsize,
    lock: Mutex<()>,
    freed: Condvar,
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
        Arc::new(Self {
            count,
            busy: AtomicUsize::new(0),
            aside: AtomicUsize::new(0),
            lock: Mutex::new(()),
            freed: Condvar::new(),
        })
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

    /// Whether more threads compute than there are cores.
    pub fn are_short(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > self.count
    }

    /// Where more threads compute than there are cores, the calling one, which is one of them, waits
    /// until one is free, but no longer than `most`. Returns how long it did.
    pub fn give_way(&self, most: Duration) -> Duration {
        if !self.are_short() || most.is_zero() {
            return Duration::ZERO;
        }
        let began = Instant::now();
        // Sequential: whoever is done either sees that one waits, or is seen to be done.
        self.aside.fetch_add(1, Ordering::SeqCst);
        self.busy.fetch_sub(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.take_free() {
            let left = most.saturating_sub(began.elapsed());
            if left.is_zero() {
                self.busy.fetch_add(1, Ordering::SeqCst);
                break;
            }
            let waited = self.freed.wait_timeout(guard, left);
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.aside.fetch_sub(1, Ordering::SeqCst);
        began.elapsed()
    }

    fn take_free(&self) -> bool {
        let one_more = |busy| (busy < self.count).then_some(busy + 1);
        self.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_ok()
    }

    /// At most so many threads more, as far as cores are free.
    pub(crate) fn spare(&self, most: usize) -> Busy<'_> {
        let aside = self.aside.load(Ordering::Relaxed);
        let free = |busy: usize| self.count.saturating_sub(busy + aside).min(most);
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
        self.cores.busy.fetch_sub(self.threads, Ordering::SeqCst);
        if self.cores.aside.load(Ordering::SeqCst) > 0 {
            // Taken once: who is about to wait is not missed.
            drop(self.cores.lock.lock());
            // More than one may be free now.
            self.cores.freed.notify_all();
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn who_gives_way_goes_on_when_a_core_is_free() {
        let cores = Cores::new(1);
        let _long = cores.enter();
        assert_eq!(cores.give_way(Duration::MAX), Duration::ZERO, "there was a core for all");
        let quick = cores.enter();
        thread::scope(|scope| {
            let waits = scope.spawn(|| cores.give_way(Duration::MAX));
            while cores.are_short() {
                thread::yield_now();
            }
            drop(quick);
            assert!(!waits.join().expect("no panic").is_zero());
        });
        assert_eq!(cores.busy.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn who_gives_way_goes_on_after_its_time() {
        let cores = Cores::new(1);
        let _both = (cores.enter(), cores.enter());
        let most = Duration::from_millis(1);
        assert!(cores.give_way(most) >= most);
        assert!(cores.are_short());
    }
}
