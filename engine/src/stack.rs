//! Threads with as much stack as an engine may want.

use std::cell::Cell;
use std::io;
use std::thread;

use crate::graph::LoadError;

/// rten follows a line of nodes by recursion, a few hundred bytes of stack for each, when it reads
/// or runs a graph. What is not used costs nothing.
const BYTES: usize = 128 << 20;

thread_local! {
    /// Whether this thread has such a stack.
    static HAS_STACK: Cell<bool> = const { Cell::new(false) };
}

/// Starts a thread of its own for `work`, with such a stack.
///
/// # Errors
/// There is no thread to be had.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let started = builder(name).spawn(|| {
        HAS_STACK.set(true);
        work();
    });
    started.map(drop)
}

/// Does `work` on a thread of its own, with such a stack; its panic is
/// the caller's. Within itself it is a plain call, so that who counts what a thread allocates
/// counts what an engine does.
///
/// # Errors
/// There is no thread to be had.
pub fn with_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, LoadError> {
    if HAS_STACK.get() {
        return Ok(work());
    }
    let work = || {
        HAS_STACK.set(true);
        work()
    };
    thread::scope(|scope| {
        let started = builder("load").spawn_scoped(scope, work);
        let started =
            started.map_err(|error| LoadError(format!("a thread cannot be started: {error}")))?;
        started.join().map_or_else(|panic| std::panic::resume_unwind(panic), Ok)
    })
}

fn builder(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned()).stack_size(BYTES)
}
