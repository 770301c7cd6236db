//! CPU time that the server itself spends on requests: HTTP, JSON, checks, scheduling. No request
//! has a thread of its own, so it is measured by connection: what its polls take beside sandboxes
//! is the newest request's.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::cpu;
use crate::usage::Totals;

thread_local! {
    /// Of the connection that this thread polls.
    static POLLED: RefCell<Option<Arc<Overhead>>> = const { RefCell::new(None) };
}

/// One connection's.
#[derive(Debug, Default)]
pub struct Overhead {
    /// Whose it is; nobody's until it is known which model is asked.
    totals: Mutex<Option<Weak<Totals>>>,
    /// What is not charged yet.
    owed_ns: AtomicU64,
}

impl Overhead {
    /// Does `work` for a connection, all of it or one of its streams.
    pub async fn metered<F: Future>(self: Arc<Self>, work: F) -> F::Output {
        let mut work = pin!(work);
        poll_fn(|context| {
            let outer = POLLED.replace(Some(self.clone()));
            let (between_ns, _) = cpu::take_between();
            let polled = work.as_mut().poll(context);
            POLLED.set(outer);
            self.owed_ns.fetch_add(between_ns + cpu::take().0, Ordering::Relaxed);
            self.charge();
            polled
        })
        .await
    }

    fn charge(&self) {
        if let Some(totals) = &*self.totals() {
            let owed_ns = self.owed_ns.swap(0, Ordering::Relaxed);
            // Gone with a version of long ago, where it is not there.
            totals.upgrade().into_iter().for_each(|totals| totals.served(owed_ns));
        }
    }

    fn totals(&self) -> MutexGuard<'_, Option<Weak<Totals>>> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request has come on the connection that this thread polls. For whom is not known yet; what is
/// owed was spent on no model.
pub fn begin() {
    with_polled(|overhead| {
        *overhead.totals() = None;
        overhead.owed_ns.store(0, Ordering::Relaxed);
    });
}

/// The request that this thread works on is for these totals.
pub fn belongs_to(totals: &Arc<Totals>) {
    with_polled(|overhead| *overhead.totals() = Some(Arc::downgrade(totals)));
}

fn with_polled(work: impl Fn(&Overhead)) {
    POLLED.with_borrow(|polled| polled.iter().for_each(|overhead| work(overhead)));
}
