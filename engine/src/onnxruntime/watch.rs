//! Ends runs whose time is over. ONNX Runtime asks nobody while it computes, but looks at a flag
//! between nodes, which another thread may set: one thread does it for all runs.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{mem, thread};

use ort_sys::OrtRunOptions;

use super::OnnxRuntime;
use super::handle::Handle;
use crate::guard::guarded;

/// How often runs are looked at: a run learns at most so much too late that it is over.
const PERIOD: Duration = Duration::from_millis(10);

/// Looks without any run after which the thread waits to be woken. Waking it for each of many
/// short runs would cost more than to go on looking.
const IDLE_LOOKS: u32 = 100;

type IsOver<'a> = &'a (dyn Fn() -> bool + Sync);

static STATE: Mutex<State> =
    Mutex::new(State { runs: Vec::new(), next: 0, started: false, asleep: false });
static WAKE: Condvar = Condvar::new();

struct State {
    runs: Vec<Run>,
    next: u64,
    started: bool,
    asleep: bool,
}

struct Run {
    id: u64,
    runtime: &'static OnnxRuntime,
    options: *mut OrtRunOptions,
    is_over: IsOver<'static>,
}

// SAFETY: ONNX Runtime documents that the flag may be set from any thread; the function may be
// called from any, being `Sync`.
unsafe impl Send for Run {}

/// Does `work`, a run with these options, and lets it fail soon after `is_over` says so.
pub(super) fn watched<T>(
    runtime: &'static OnnxRuntime,
    options: &Handle<OrtRunOptions>,
    is_over: IsOver<'_>,
    work: impl FnOnce() -> T,
) -> T {
    // SAFETY: only the lifetime changes. The thread uses the entry under the lock only, and
    // `Entry` takes it out before this function ends, in a panic too.
    let is_over = unsafe { mem::transmute::<IsOver<'_>, IsOver<'static>>(is_over) };
    let _entry = Entry::new(runtime, options.get(), is_over);
    work()
}

/// A run's place in the list.
struct Entry(u64);

impl Entry {
    fn new(
        runtime: &'static OnnxRuntime,
        options: *mut OrtRunOptions,
        is_over: IsOver<'static>,
    ) -> Self {
        let mut state = lock();
        let id = state.next;
        state.next += 1;
        state.runs.push(Run { id, runtime, options, is_over });
        if !state.started {
            // Without the thread runs end by themselves; the next one tries again.
            let thread = thread::Builder::new().name("onnxruntime-watch".into());
            state.started = thread.spawn(look).is_ok();
        } else if state.asleep {
            WAKE.notify_one();
        }
        Self(id)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock().runs.retain(|run| run.id != self.0);
    }
}

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look() {
    let mut idle_looks = 0;
    loop {
        thread::sleep(PERIOD);
        let mut state = lock();
        idle_looks = if state.runs.is_empty() { idle_looks + 1 } else { 0 };
        // Of a caller's own code: where it panics its run is over, and the others are looked at.
        let is_over = |run: &&Run| guarded(|| (run.is_over)()).unwrap_or(true);
        for run in state.runs.iter().filter(is_over) {
            // SAFETY: a run in the list is under way, so its options live.
            let status = unsafe { (run.runtime.api.RunOptionsSetTerminate)(run.options) };
            // It cannot fail for options that live; the text is released all the same.
            let _ = run.runtime.check(status);
        }
        if idle_looks > IDLE_LOOKS {
            state.asleep = true;
            let mut state = WAKE
                .wait_while(state, |state| state.runs.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            state.asleep = false;
            idle_looks = 0;
        }
    }
}
