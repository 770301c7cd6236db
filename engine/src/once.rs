//! What is made once, by whoever first wants it, for all who do.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::memory::Bound;

/// As `OnceLock`, but that a maker that is stopped for good (see [`Bound`]) does not
/// have the others wait for ever.
pub(crate) struct Once<T> {
    state: Mutex<State<T>>,
    ended: Condvar,
}

enum State<T> {
    Unmade,
    BeingMade,
    Made(T),
}

impl<T: Clone + 'static> Once<T> {
    pub(crate) fn made(value: T) -> Self {
        Self { state: Mutex::new(State::Made(value)), ended: Condvar::new() }
    }

    pub(crate) fn get(&self) -> Option<T> {
        match &*self.lock() {
            State::Made(value) => Some(value.clone()),
            State::Unmade | State::BeingMade => None,
        }
    }

    /// What is made, by `make` if nobody has begun; `lost` where its maker took more memory than
    /// it may. If `make` panics, the next begins anew.
    pub(crate) fn get_or_make(self: &Arc<Self>, lost: T, make: impl FnOnce() -> T) -> T {
        let mut state = self.lock();
        loop {
            match &*state {
                State::Made(value) => return value.clone(),
                State::BeingMade => {
                    state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                State::Unmade => break,
            }
        }
        *state = State::BeingMade;
        drop(state);
        let making = Making(self);
        let once = self.clone();
        // Nobody has any of it before it is made.
        let bound = Bound::enter(usize::MAX, Box::new(move |_| once.end(State::Made(lost))));
        let value = make();
        drop(bound);
        self.end(State::Made(value.clone()));
        std::mem::forget(making);
        value
    }

    fn end(&self, state: State<T>) {
        *self.lock() = state;
        self.ended.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Its maker panicked, if it is dropped.
struct Making<'a, T: Clone + 'static>(&'a Once<T>);

impl<T: Clone + 'static> Drop for Making<'_, T> {
    fn drop(&mut self) {
        self.0.end(State::Unmade);
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self { state: Mutex::new(State::Unmade), ended: Condvar::new() }
    }
}

impl<T> fmt::Debug for Once<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Once")
    }
}
