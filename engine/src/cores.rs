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
/// next that is free.
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
    /// Until when they count as stuck, from `made` on.
    stuck_until_ns: AtomicU64,
    made: Instant,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    /// By number.
    waiters: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    is_quick: bool,
    waker: Waker,
}

/// Cores that are somebody's, until it is dropped.
#[derive(Debug)]
pub struct Busy<'a> {
    cores: &'a Cores,
    count: AtomicUsize,
}

/// Waits for a core, from when it is made until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    cores: &'a Cores,
    number: u64,
    has_ended: bool,
}

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
        is_given.then(|| Busy::of(self, 1))
    }

    /// A core for what is quick: who computes for long gives way to it.
    pub fn take_quick(&self) -> Turn<'_> {
        self.wait(true)
    }

    /// A core for the calling thread, which waits for it.
    pub fn wait_for_one(&self) -> Busy<'_> {
        self.try_take().unwrap_or_else(|| block_on(self.wait(false)))
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

    /// Where somebody quick waits, the calling thread leaves its core to whoever came first, and waits
    /// for its next turn. Returns how long it did.
    pub fn give_way(&self) -> Duration {
        if !self.are_wanted() {
            return Duration::ZERO;
        }
        let began = Instant::now();
        self.give_back(1);
        // It is the caller's again, whose own guard gives it back.
        mem::forget(self.wait_for_one());
        began.elapsed()
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
        let number = queue.next;
        queue.next += 1;
        queue.waiters.push_back(Waiter { number, is_quick, waker: Waker::noop().clone() });
        self.count_one(is_quick);
        self.hand_out(queue);
        Turn { cores: self, number, has_ended: false }
    }

    /// Gives what is free to those who came first: nobody else can take it then.
    fn hand_out<'a>(&'a self, mut queue: MutexGuard<'a, Queue>) {
        loop {
            let waiter = if let Some(first) = queue.waiters.pop_front_if(|_| self.take_free()) {
                self.given.fetch_add(1, Ordering::Relaxed);
                self.stuck_until_ns.store(0, Ordering::Relaxed);
                first
            } else if self.are_stuck()
                && let Some(place) = queue.waiters.iter().position(|waiter| waiter.is_quick)
                && self.take(2 * self.count)
                && let Some(quick) = queue.waiters.remove(place)
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

    fn discount(&self, waiter: &Waiter) {
        self.quick.fetch_sub(usize::from(waiter.is_quick), Ordering::SeqCst);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn place(&self, number: u64) -> Option<usize> {
        self.waiters.binary_search_by_key(&number, |waiter| waiter.number).ok()
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
        Poll::Ready(Busy::of(self.cores, 1))
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
        Self { cores, count: AtomicUsize::new(count) }
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

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_given(turn: &mut Turn<'_>) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        match Pin::new(&mut *turn).poll(&mut context) {
            // Kept as given: the next poll would say so again.
            Poll::Ready(busy) => {
                mem::forget(busy);
                turn.has_ended = false;
                true
            }
            Poll::Pending => false,
        }
    }

    #[test]
    fn who_came_first_has_the_next_core() {
        let cores = Cores::new(2);
        let (first, _second) = (cores.try_take().expect("free"), cores.try_take().expect("free"));
        let (mut third, mut fourth) = (cores.take_quick(), cores.take_quick());
        assert!(!is_given(&mut third) && !is_given(&mut fourth) && cores.are_wanted());
        drop(first);
        assert!(is_given(&mut third) && !is_given(&mut fourth));
        assert!(cores.try_take().is_none(), "it is nobody else's");
        // Given, and not taken.
        drop(third);
        assert!(is_given(&mut fourth) && !cores.are_wanted());
    }

    #[test]
    fn who_waits_no_longer_is_passed_over() {
        let cores = Cores::new(1);
        let only = cores.try_take().expect("free");
        let (gone, mut next) = (cores.take_quick(), cores.take_quick());
        drop(gone);
        assert!(cores.are_wanted());
        drop(only);
        assert!(is_given(&mut next));
        drop(next);
        assert!(cores.try_take().is_some());
        assert_eq!(cores.busy.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn quick_ones_compute_beside_what_has_all_cores_stuck() {
        let (cores, long_time) = (Cores::new(1), Duration::from_secs(1000));
        let stuck = cores.wait_for_one();
        let mut long = cores.wait(false);
        let (mut first, mut second) = (cores.take_quick(), cores.take_quick());
        cores.find_stuck(cores.given() + 1, long_time);
        cores.find_stuck(cores.given(), Duration::ZERO);
        assert!(!is_given(&mut first), "somebody was given one, or it is over");
        cores.find_stuck(cores.given(), long_time);
        assert!(is_given(&mut first) && !is_given(&mut second) && !is_given(&mut long));
        drop(first);
        assert!(is_given(&mut second) && cores.try_take_quick().is_none());
        drop(second);
        assert!(cores.try_take_quick().is_none(), "somebody waits, who came first");
        drop(stuck);
        assert!(is_given(&mut long) && !cores.are_stuck());
        assert!(cores.try_take_quick().is_none());
        cores.find_stuck(cores.given(), long_time);
        drop(cores.try_take_quick().expect("one more"));
        drop(long);
        assert_eq!(cores.busy.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn who_gives_way_waits_for_its_next_turn() {
        let cores = Cores::new(1);
        thread::scope(|scope| {
            let _long = cores.wait_for_one();
            assert_eq!(cores.give_way(), Duration::ZERO, "nobody quick waits");
            let quick = scope.spawn(|| drop(block_on(cores.take_quick())));
            while !cores.are_wanted() {
                thread::yield_now();
            }
            assert_eq!(cores.spare(1).count(), 0);
            assert!(!cores.give_way().is_zero());
            quick.join().expect("no panic");
            assert!(cores.try_take().is_none(), "the long one has it again");
        });
    }

    #[test]
    fn no_core_is_lost_and_none_is_two_threads() {
        let cores = Cores::new(2);
        let inside = AtomicUsize::new(0);
        let enter = || assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
        let leave = || assert!(inside.fetch_sub(1, Ordering::SeqCst) > 0);
        thread::scope(|scope| {
            for number in 0..6 {
                let (cores, enter, leave) = (&cores, &enter, &leave);
                scope.spawn(move || {
                    for turn in 0..3000 {
                        let is_quick = number % 2 == 0;
                        if is_quick && turn % 7 == 0 {
                            // Some leave while they wait.
                            let mut turn = cores.take_quick();
                            let mut context = Context::from_waker(Waker::noop());
                            let _ = Pin::new(&mut turn).poll(&mut context);
                            continue;
                        }
                        let _busy = match is_quick {
                            true => block_on(cores.take_quick()),
                            false => cores.wait_for_one(),
                        };
                        enter();
                        let spare = cores.spare(1);
                        (0..spare.count()).for_each(|_| enter());
                        (0..spare.count()).for_each(|_| leave());
                        drop(spare);
                        leave();
                        if !is_quick {
                            cores.give_way();
                        }
                    }
                });
            }
        });
        assert_eq!(cores.busy.load(Ordering::SeqCst), 0);
        assert_eq!(cores.waiting.load(Ordering::SeqCst), 0);
        assert!(!cores.are_wanted());
    }
}
