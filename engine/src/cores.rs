//! The cores of a process: who computes on them, and who waits for one. One budget for all requests.
//!
//! What computes for long gives its core up where it can. An operator or an engine that cannot would hold
//! up all others: where it has done so for a while, those who are quick compute beside it.

use std::collections::VecDeque;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The cores that a process computes on. Each is one thread's at a time; who came first has the
/// next that is free, after those who gave theirs up for a while.
#[derive(Debug)]
pub struct Cores {
    count: usize,
    busy: AtomicUsize,
    queue: Mutex<Queue>,
    /// How many wait there, and how many of those are quick.
    waiting: AtomicUsize,
    quick: AtomicUsize,
    /// Cores that were given to somebody who waited, so far.
    given: AtomicUsize,
    /// For how long quick ones had them, so far.
    quick_ns: AtomicU64,
    /// Until when they count as stuck, from `made` on.
    stuck_until_ns: AtomicU64,
    made: Instant,
}

#[derive(Debug)]
struct Queue {
    /// By number.
    waiters: VecDeque<Waiter>,
    /// The next two numbers: who gave way goes before all others.
    of_givers: i64,
    of_others: i64,
}

impl Default for Queue {
    fn default() -> Self {
        Self { waiters: VecDeque::new(), of_givers: i64::MIN, of_others: 0 }
    }
}

#[derive(Debug)]
struct Waiter {
    number: i64,
    is_quick: bool,
    waker: Waker,
}

/// Cores that are somebody's, until it is dropped.
#[derive(Debug)]
pub struct Busy<'a> {
    cores: &'a Cores,
    count: AtomicUsize,
    /// Where it is somebody's who is quick.
    quick_since: Option<Instant>,
}

/// Waits for a core, from when it is made until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    cores: &'a Cores,
    number: i64,
    is_quick: bool,
    has_ended: bool,
}

/// Of one quick one's time no more is counted: it is not.
const MOST_QUICK: Duration = Duration::from_millis(10);

impl Cores {
    /// So many, all of them free.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            count,
            busy: AtomicUsize::new(0),
            queue: Mutex::default(),
            waiting: AtomicUsize::new(0),
            quick: AtomicUsize::new(0),
            given: AtomicUsize::new(0),
            quick_ns: AtomicU64::new(0),
            stuck_until_ns: AtomicU64::new(0),
            made: Instant::now(),
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// A core, if one is free and nobody waits for it.
    pub fn try_take(&self) -> Option<Busy<'_>> {
        let is_free = self.waiting.load(Ordering::Relaxed) == 0 && self.take_free();
        is_free.then(|| Busy::of(self, 1))
    }

    /// The same for what is quick, which computes beside what has all cores stuck.
    pub fn try_take_quick(&self) -> Option<Busy<'_>> {
        let is_given = self.waiting.load(Ordering::Relaxed) == 0
            && (self.take_free() || self.are_stuck() && self.take(2 * self.count));
        is_given.then(|| Busy::of_quick(self))
    }

    /// A core for what is quick: who computes for long gives way to it.
    pub fn take_quick(&self) -> Turn<'_> {
        self.wait(true)
    }

    /// A core for the calling thread, which waits for it.
    pub fn wait_for_one(&self) -> Busy<'_> {
        let wait = || block_on(self.wait(false), None).expect("a wait without end");
        self.try_take().unwrap_or_else(wait)
    }

    /// How many who waited were given one so far.
    pub fn given(&self) -> usize {
        self.given.load(Ordering::Relaxed)
    }

    /// Where nobody was given one since there were so many `given`, they count as stuck: for so long,
    /// unless somebody is. Those who are quick are given as many more meanwhile.
    pub fn find_stuck(&self, given: usize, time: Duration) {
        let queue = self.lock();
        if given == self.given() {
            let until = self.made.elapsed() + time;
            self.stuck_until_ns.store(until.as_nanos() as u64, Ordering::Relaxed);
            self.hand_out(queue);
        }
    }

    fn are_stuck(&self) -> bool {
        let until_ns = self.stuck_until_ns.load(Ordering::Relaxed);
        until_ns > 0 && self.made.elapsed() < Duration::from_nanos(until_ns)
    }

    /// Whether somebody quick waits.
    pub fn are_wanted(&self) -> bool {
        self.quick.load(Ordering::Relaxed) > 0
    }

    /// Whether more compute than there are: some beside what is stuck.
    pub fn are_exceeded(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > self.count
    }

    /// Where somebody quick waits, the calling thread leaves its core to the first of those, and waits for
    /// another: before who never had one where it `goes_first`, else behind all. From `until` on it gives
    /// nothing, or waits no longer and has none: it is to end. Returns how much of its wait was for quick
    /// ones, as far as they ended.
    pub fn give_way(&self, goes_first: bool, until: Instant) -> Option<Duration> {
        let began = Instant::now();
        if !self.are_wanted() || began >= until {
            return None;
        }
        let before_ns = self.quick_ns.load(Ordering::Relaxed);
        let mut queue = self.lock();
        let quick = queue.take_quick()?;
        let is_alone = self.waiting.load(Ordering::SeqCst) == self.quick.load(Ordering::SeqCst);
        let number = if goes_first { queue.push_giver() } else { queue.push(false) };
        self.count_one(false);
        self.discount(&quick);
        self.count_given();
        self.hand_out(queue);
        quick.waker.wake();
        match block_on(Turn { cores: self, number, is_quick: false, has_ended: false }, Some(until))
        {
            // It is the caller's again then, whose own guard gives it back,
            Some(busy) => mem::forget(busy),
            // as it does where there is none.
            None => drop(self.busy.fetch_add(1, Ordering::SeqCst)),
        }
        // Where other long ones wait, too, one of those may have had it meanwhile.
        let most = match is_alone {
            true => MOST_QUICK,
            false => Duration::from_nanos(self.quick_ns.load(Ordering::Relaxed) - before_ns),
        };
        Some(began.elapsed().min(most))
    }

    /// At most so many cores, as far as they are free and nobody waits for them.
    pub(crate) fn spare(&self, most: usize) -> Busy<'_> {
        let free = |busy: usize| match self.waiting.load(Ordering::Relaxed) {
            0 => self.count.saturating_sub(busy).min(most),
            _ => 0,
        };
        let mut count = 0;
        let take = |busy| {
            count = free(busy);
            (count > 0).then_some(busy + count)
        };
        let taken = self.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        Busy::of(self, taken.map_or(0, |_| count))
    }

    fn take_free(&self) -> bool {
        self.take(self.count)
    }

    /// Takes one, if fewer than `most` are taken.
    fn take(&self, most: usize) -> bool {
        let one_more = |busy| (busy < most).then_some(busy + 1);
        self.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_ok()
    }

    fn give_back(&self, count: usize) {
        if count == 0 {
            return;
        }
        // Sequential: either it is seen here that somebody waits, or who waits sees what is free.
        self.busy.fetch_sub(count, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.hand_out(self.lock());
        }
    }

    fn wait(&self, is_quick: bool) -> Turn<'_> {
        let mut queue = self.lock();
        let number = queue.push(is_quick);
        self.count_one(is_quick);
        self.hand_out(queue);
        Turn { cores: self, number, is_quick, has_ended: false }
    }

    /// Gives what is free to those who came first: nobody else can take it then.
    fn hand_out<'a>(&'a self, mut queue: MutexGuard<'a, Queue>) {
        loop {
            let waiter = if let Some(first) = queue.waiters.pop_front_if(|_| self.take_free()) {
                self.count_given();
                first
            } else if self.quick.load(Ordering::SeqCst) > 0
                && self.are_stuck()
                && self.take(2 * self.count)
                && let Some(quick) = queue.take_quick()
            {
                quick
            } else {
                return;
            };
            self.discount(&waiter);
            drop(queue);
            waiter.waker.wake();
            queue = self.lock();
        }
    }

    fn count_one(&self, is_quick: bool) {
        self.quick.fetch_add(usize::from(is_quick), Ordering::SeqCst);
        self.waiting.fetch_add(1, Ordering::SeqCst);
    }

    fn count_given(&self) {
        self.given.fetch_add(1, Ordering::Relaxed);
        self.stuck_until_ns.store(0, Ordering::Relaxed);
    }

    fn discount(&self, waiter: &Waiter) {
        self.quick.fetch_sub(usize::from(waiter.is_quick), Ordering::SeqCst);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn place(&self, number: i64) -> Option<usize> {
        self.waiters.binary_search_by_key(&number, |waiter| waiter.number).ok()
    }

    fn push(&mut self, is_quick: bool) -> i64 {
        let number = self.of_others;
        self.of_others += 1;
        self.waiters.push_back(Waiter { number, is_quick, waker: Waker::noop().clone() });
        number
    }

    fn push_giver(&mut self) -> i64 {
        let number = self.of_givers;
        self.of_givers += 1;
        let place = self.waiters.partition_point(|waiter| waiter.number < number);
        let waker = Waker::noop().clone();
        self.waiters.insert(place, Waiter { number, is_quick: false, waker });
        number
    }

    /// Takes the first of the quick ones out.
    fn take_quick(&mut self) -> Option<Waiter> {
        let place = self.waiters.iter().position(|waiter| waiter.is_quick)?;
        self.waiters.remove(place)
    }
}

impl<'a> Future for Turn<'a> {
    type Output = Busy<'a>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Busy<'a>> {
        let mut queue = self.cores.lock();
        if let Some(place) = queue.place(self.number) {
            queue.waiters[place].waker.clone_from(context.waker());
            return Poll::Pending;
        }
        drop(queue);
        self.has_ended = true;
        Poll::Ready(match self.is_quick {
            true => Busy::of_quick(self.cores),
            false => Busy::of(self.cores, 1),
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let mut queue = self.cores.lock();
        let waiter = queue.place(self.number).and_then(|place| queue.waiters.remove(place));
        match waiter {
            Some(waiter) => self.cores.discount(&waiter),
            // It was given one, which it does not take.
            None => {
                drop(queue);
                self.cores.give_back(1);
            }
        }
    }
}

impl<'a> Busy<'a> {
    fn of(cores: &'a Cores, count: usize) -> Self {
        Self { cores, count: AtomicUsize::new(count), quick_since: None }
    }

    fn of_quick(cores: &'a Cores) -> Self {
        Self { cores, count: AtomicUsize::new(1), quick_since: Some(Instant::now()) }
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether somebody quick waits for one.
    pub(crate) fn are_wanted(&self) -> bool {
        self.cores.are_wanted()
    }

    /// Gives back one of those that there are, before the others.
    pub(crate) fn give_one_back(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.cores.give_back(1);
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Some(since) = self.quick_since {
            let ns = since.elapsed().min(MOST_QUICK).as_nanos() as u64;
            self.cores.quick_ns.fetch_add(ns, Ordering::Relaxed);
        }
        self.cores.give_back(*self.count.get_mut());
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

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// `None` where it is not ready by then.
fn block_on<F: Future>(future: F, until: Option<Instant>) -> Option<F::Output> {
    let mut future = pin!(future);
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut context = Context::from_waker(&waker);
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        match left {
            None => thread::park(),
            Some(Duration::ZERO) => return None,
            Some(left) => thread::park_timeout(left),
        }
    }
}

#[cfg(test)]
#[path = "cores_tests.rs"]
mod tests;
