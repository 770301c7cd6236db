//! Which versions are loaded, what memory that takes, and who goes cold when it is too much or
//! was not asked for for long. What a request uses stays.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::load::Revision;
use super::version::Version;
use crate::sandbox::Engine;

/// How long a version waits for memory that others use before it gives up.
const WAIT: Duration = Duration::from_secs(5);

/// How often what is loaded is looked through.
const ROUND: Duration = Duration::from_secs(1);

/// What may stay loaded.
#[derive(Debug, Clone, Copy)]
pub struct ResidencyOptions {
    /// A version that was not asked for for so long goes cold; `None`: none does for that.
    pub idle: Option<Duration>,
    /// For what is loaded and for sandboxes together, bytes.
    pub budget: u64,
}

/// Why a version went cold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// Nobody asked for it for long.
    Idle,
    /// Others needed its memory.
    Memory,
}

/// What is loaded now.
pub(super) struct Residency {
    options: ResidencyOptions,
    engine: Arc<Engine>,
    ledger: Arc<Ledger>,
    /// By address, so that one that is loaded again is listed once.
    loaded: Mutex<HashMap<usize, Weak<Version>>>,
}

/// The bytes that are loaded.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    bytes: AtomicU64,
    freed: Notify,
}

/// A revision's part of the ledger, for as long as it is in memory.
#[derive(Debug)]
pub struct Charge {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl Charge {
    /// Of what no budget counts: a revision that is loaded to be examined.
    pub fn none() -> Self {
        Self { ledger: Arc::default(), bytes: 0 }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes it what the revision turned out to take.
    pub(super) fn set(&mut self, bytes: u64) {
        self.ledger.bytes.fetch_add(bytes, Ordering::SeqCst);
        self.ledger.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        self.bytes = bytes;
        self.ledger.freed.notify_waiters();
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        self.ledger.freed.notify_waiters();
    }
}

impl Residency {
    pub(super) fn new(options: ResidencyOptions, engine: Arc<Engine>) -> Self {
        Self { options, engine, ledger: Arc::default(), loaded: Mutex::default() }
    }

    /// Bytes of what is loaded, and of live sandboxes.
    pub(super) fn used(&self) -> (u64, u64) {
        (self.ledger.bytes.load(Ordering::SeqCst), self.engine.sandbox_bytes())
    }

    pub(super) fn budget(&self) -> u64 {
        self.options.budget
    }

    /// Sets `bytes` aside for a version that is to be loaded, for which others may go cold.
    /// What is pinned gets them in any case.
    ///
    /// # Errors
    /// A text: it is more than the budget, or what others use leaves too little.
    pub(super) async fn reserve(&self, bytes: u64, is_pinned: bool) -> Result<Charge, String> {
        let budget = self.options.budget;
        if !is_pinned && bytes > budget {
            return Err(format!("it takes {}, the memory budget is {}", mib(bytes), mib(budget)));
        }
        let until = Instant::now() + WAIT;
        loop {
            let freed = self.ledger.freed.notified();
            if let Some(charge) = self.try_reserve(bytes) {
                return Ok(charge);
            }
            // None goes for what would not fit without it either.
            if (is_pinned || self.could_fit(bytes)) && self.evict_one().await {
                continue;
            }
            if is_pinned {
                self.ledger.bytes.fetch_add(bytes, Ordering::SeqCst);
                return Ok(Charge { ledger: self.ledger.clone(), bytes });
            }
            // Sandboxes end without a word: looked at again soon.
            let soon = Instant::now() + Duration::from_millis(20);
            if soon > until {
                let (loaded, sandboxes) = self.used();
                return Err(format!(
                    "it takes {}, and of the memory budget of {} others use {}",
                    mib(bytes),
                    mib(budget),
                    mib(loaded + sandboxes)
                ));
            }
            // Freed or not: the loop looks.
            let _ = tokio::time::timeout_at(soon.into(), freed).await;
        }
    }

    /// Whether there is room for so many bytes once all that is not in use has gone.
    fn could_fit(&self, bytes: u64) -> bool {
        let idle = self.versions().into_iter().filter(|version| version.idle_for().is_some());
        let idle: u64 = idle.map(|version| version.memory_bytes()).sum();
        let (loaded, sandboxes) = self.used();
        loaded.saturating_sub(idle) + sandboxes + bytes <= self.options.budget
    }

    fn try_reserve(&self, bytes: u64) -> Option<Charge> {
        let room = self.options.budget.saturating_sub(self.engine.sandbox_bytes());
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= room);
        let taken = self.ledger.bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits);
        taken.ok().map(|_| Charge { ledger: self.ledger.clone(), bytes })
    }

    /// Lists a version that has just been loaded, and has others go where it turned out larger
    /// than was set aside.
    pub(super) async fn admit(&self, version: &Arc<Version>) {
        self.lock().insert(Arc::as_ptr(version).addr(), Arc::downgrade(version));
        self.trim().await;
    }

    async fn trim(&self) {
        while self.is_over() && self.evict_one().await {}
    }

    fn is_over(&self) -> bool {
        let (loaded, sandboxes) = self.used();
        loaded + sandboxes > self.options.budget
    }

    /// Has the version go cold that nobody has used for longest. False where all are in use.
    async fn evict_one(&self) -> bool {
        let mut idle: Vec<_> = self
            .versions()
            .into_iter()
            .filter_map(|version| Some((version.idle_for()?, version)))
            .collect();
        idle.sort_by_key(|(idle_for, _)| std::cmp::Reverse(*idle_for));
        for (_, version) in idle {
            if retire(&version, Duration::ZERO, Eviction::Memory).await {
                return true;
            }
        }
        false
    }

    /// Has go cold what nobody asked for for long, and more where memory is short; for ever.
    pub(super) async fn tend(&self) {
        let round = self.options.idle.map_or(ROUND, |idle| ROUND.min(idle / 4));
        loop {
            tokio::time::sleep(round.max(Duration::from_millis(10))).await;
            if let Some(idle) = self.options.idle {
                for version in self.versions() {
                    if version.idle_for().is_some_and(|idle_for| idle_for >= idle) {
                        retire(&version, idle, Eviction::Idle).await;
                    }
                }
            }
            self.trim().await;
        }
    }

    /// Those that are loaded; the others are forgotten.
    fn versions(&self) -> Vec<Arc<Version>> {
        let mut loaded = self.lock();
        let mut versions = Vec::with_capacity(loaded.len());
        loaded.retain(|_, version| {
            let version = version.upgrade().filter(|version| version.is_loaded());
            let is_loaded = version.is_some();
            versions.extend(version);
            is_loaded
        });
        versions
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Weak<Version>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has it go cold if nobody has used it for so long. Its memory is given back to the system
/// before this returns.
async fn retire(version: &Arc<Version>, idle: Duration, why: Eviction) -> bool {
    let Some(revision) = version.retire(idle, why) else { return false };
    let bytes = revision.charge.bytes();
    if let Some(freed) = discard(revision) {
        // It does not panic, and a runtime that ends has nothing to free for.
        let _ = freed.await;
    }
    let (model, version) = (&version.model, &version.label);
    let reason = match why {
        Eviction::Idle => "nobody asked for it",
        Eviction::Memory => "its memory was needed",
    };
    tracing::info!(model, version, bytes, "model is cold: {reason}");
    true
}

/// Frees it where that holds nobody up, as a large model takes milliseconds, and gives its memory
/// back to the system.
pub(super) fn discard(revision: Arc<Revision>) -> Option<JoinHandle<()>> {
    // Without a runtime the process is about to end.
    let runtime = Handle::try_current().ok()?;
    Some(runtime.spawn_blocking(move || {
        drop(revision);
        wisp_engine::memory::collect();
    }))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
