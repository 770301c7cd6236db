//! Turns of a bounded number: who waits with the lowest level goes first, and among those who
//! came first. Knows neither models nor requests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// What is given out, and who waits for it.
#[derive(Debug)]
pub struct Turns(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    next: u64,
    /// By level and arrival.
    waiting: BTreeMap<(u32, u64), oneshot::Sender<()>>,
}

/// A turn, given back when it is dropped.
#[derive(Debug)]
pub struct Turn(Arc<Turns>);

impl Turns {
    pub fn new(turns: usize) -> Self {
        Self(Mutex::new(State { free: turns, next: 0, waiting: BTreeMap::new() }))
    }

    /// A turn, if one is free.
    pub fn try_take(self: &Arc<Self>) -> Option<Turn> {
        let mut state = self.lock();
        state.free = state.free.checked_sub(1)?;
        Some(Turn(self.clone()))
    }

    /// Waits for a turn; whoever gives up waiting loses nothing but its place.
    pub async fn take(self: &Arc<Self>, level: u32) -> Turn {
        let mut waiter = {
            let mut state = self.lock();
            if let Some(free) = state.free.checked_sub(1) {
                state.free = free;
                return Turn(self.clone());
            }
            let (sender, given) = oneshot::channel();
            let key = (level, state.next);
            state.next += 1;
            state.waiting.insert(key, sender);
            Waiter { turns: self, key, given, taken: false }
        };
        // An error would mean that the sender was dropped unused, which only the waiter does.
        let _ = (&mut waiter.given).await;
        waiter.taken = true;
        Turn(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn give_back(&mut self) {
        while let Some((_, waiter)) = self.waiting.pop_first() {
            if waiter.send(()).is_ok() {
                return;
            }
        }
        self.free += 1;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.lock().give_back();
    }
}

struct Waiter<'a> {
    turns: &'a Turns,
    key: (u32, u64),
    given: oneshot::Receiver<()>,
    taken: bool,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut state = self.turns.lock();
        // No longer listed: the turn was given to this waiter, who does not take it.
        if state.waiting.remove(&self.key).is_none() {
            state.give_back();
        }
    }
}

/// One who waits, counted until it goes.
pub struct Waiting<'a> {
    count: &'a AtomicUsize,
    /// Those who waited when it came.
    pub before: usize,
}

impl<'a> Waiting<'a> {
    pub fn enter(count: &'a AtomicUsize) -> Self {
        Self { count, before: count.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    async fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let mut future = Some(future);
        poll_fn(|context| {
            let polled = future.take().expect("polled once").poll(context);
            Poll::Ready(match polled {
                Poll::Ready(output) => Some(output),
                Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn the_lowest_level_goes_first() {
        let turns = Arc::new(Turns::new(1));
        let held = turns.try_take().expect("free");
        assert!(turns.try_take().is_none());
        let (mut low, mut high) = (pin!(turns.take(3)), pin!(turns.take(1)));
        let mut later = pin!(turns.take(1));
        for waiter in [low.as_mut(), high.as_mut(), later.as_mut()] {
            assert!(poll_once(waiter).await.is_none());
        }
        drop(held);
        assert!(poll_once(low.as_mut()).await.is_none());
        let first = poll_once(high.as_mut()).await.expect("its turn");
        assert!(poll_once(later.as_mut()).await.is_none());
        drop(first);
        drop(poll_once(later.as_mut()).await.expect("its turn"));
        drop(poll_once(low.as_mut()).await.expect("its turn"));
        assert!(turns.try_take().is_some());
    }

    #[tokio::test]
    async fn who_gives_up_passes_the_turn_on() {
        let turns = Arc::new(Turns::new(1));
        let held = turns.try_take().expect("free");
        let mut last = pin!(turns.take(2));
        {
            let (mut gone, mut given) = (pin!(turns.take(0)), pin!(turns.take(1)));
            assert!(poll_once(gone.as_mut()).await.is_none());
            assert!(poll_once(given.as_mut()).await.is_none());
            assert!(poll_once(last.as_mut()).await.is_none());
            gone.set(turns.take(0));
            drop(held);
        }
        drop(poll_once(last.as_mut()).await.expect("its turn"));
        assert!(turns.try_take().is_some());
    }
}
