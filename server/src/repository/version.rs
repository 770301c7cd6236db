//! One version of a model: cold until somebody asks for it, then loaded once while all who want
//! it wait.

use std::fmt;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot, watch};

use super::load::{LoadOptions, Revision, load};
use super::residency::{Charge, Eviction, Residency, discard};
use super::state::State;
use crate::bundle::{Bundle, Loading, SourceFiles, Task};
use crate::digest::Digest;
use crate::error::Error;
use crate::stats::Stats;
use crate::store::{Store, VersionRecord};
use crate::turns::Waiting;

/// How long one version may take to load.
const LOADING_DEADLINE: Duration = Duration::from_secs(180);

/// A stored version that failed is tried again at the first request after this.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// And sooner where there was no memory for it.
const RETRY_MEMORY_AFTER: Duration = Duration::from_secs(1);

/// What loading needs, shared by all versions.
pub(super) struct Loader {
    pub(super) options: LoadOptions,
    /// How long a caller waits for a version that loads.
    pub(super) patience: Duration,
    /// Versions that load at a time.
    pub(super) turns: Arc<Semaphore>,
    pub(super) residency: Residency,
}

/// Where a version's bundle lies.
pub(super) enum Origin {
    /// Served from where its developer has it.
    Path(PathBuf),
    Stored(Box<VersionRecord>, Arc<Store>),
    /// Listed, never served.
    Nowhere,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Path(path) => write!(formatter, "the bundle at {}", path.display()),
            Origin::Stored(stored, _) => write!(formatter, "the stored bundle {}", stored.digest),
            Origin::Nowhere => write!(formatter, "a bundle that failed"),
        }
    }
}

/// A version and what has become of it.
pub struct Version {
    pub model: String,
    pub label: String,
    pub(super) origin: Origin,
    pub stats: Arc<Stats>,
    loader: Arc<Loader>,
    state: watch::Sender<Loaded>,
    loads: AtomicU64,
    /// Callers that wait for it to be loaded.
    waiting: AtomicUsize,
    /// What it took when it was last loaded; 0 where it was not yet.
    last_bytes: AtomicU64,
}

#[derive(Clone)]
enum Loaded {
    Cold,
    /// With the number of the load, as one may be given up and another begun.
    Waking(u64),
    Ready(Arc<Revision>),
    /// With the reason, and when it may be tried again, if ever.
    Failed(String, Option<Instant>),
    /// Cold, and stays so until it is loaded by name.
    Unloaded,
}

impl Version {
    pub(super) fn new(model: &str, label: &str, origin: Origin, loader: &Arc<Loader>) -> Arc<Self> {
        let (model, label) = (model.to_owned(), label.to_owned());
        let state = watch::Sender::new(Loaded::Cold);
        let stats = Arc::default();
        let (loader, loads, last_bytes) = (loader.clone(), AtomicU64::new(0), AtomicU64::new(0));
        let waiting = AtomicUsize::new(0);
        Arc::new(Self { model, label, origin, stats, loader, state, loads, waiting, last_bytes })
    }

    /// Has it fail for good.
    pub(super) fn fail(&self, reason: String) {
        self.state.send_replace(Loaded::Failed(reason, None));
    }

    pub fn state(&self) -> State {
        match &*self.state.borrow() {
            Loaded::Cold => State::Cold,
            Loaded::Waking(_) => State::Waking,
            Loaded::Ready(revision) if Arc::strong_count(revision) > 1 => State::Prepared,
            Loaded::Ready(revision) => State::Idle(revision.idle_for()),
            Loaded::Failed(reason, _) => State::Failed(reason.clone()),
            Loaded::Unloaded => State::Unloaded,
        }
    }

    /// Whether a request to it will be answered: it is loaded, or will be and was examined when
    /// it was deployed.
    pub fn is_ready(&self) -> bool {
        match self.state() {
            State::Prepared | State::Idle(_) => true,
            State::Cold | State::Waking => self.digest().is_some(),
            State::Failed(_) | State::Unloaded => false,
        }
    }

    /// Whether it is in memory.
    pub fn is_loaded(&self) -> bool {
        matches!(&*self.state.borrow(), Loaded::Ready(_))
    }

    /// When it is loaded, and for how long. What is served from a path stays as it was found.
    pub fn loading(&self) -> Loading {
        match &self.origin {
            Origin::Stored(stored, _) => stored.loading,
            Origin::Path(_) | Origin::Nowhere => Loading::Pinned,
        }
    }

    /// The memory it takes: now if it is loaded, else what it would take as far as is known.
    pub fn memory_bytes(&self) -> u64 {
        match &*self.state.borrow() {
            Loaded::Ready(revision) => revision.charge.bytes(),
            _ => self.expected_bytes(),
        }
    }

    fn expected_bytes(&self) -> u64 {
        match (self.last_bytes.load(Ordering::Relaxed), &self.origin) {
            // Weights are copied into the form that the kernels want.
            (0, Origin::Stored(stored, _)) => stored.loaded_bytes.unwrap_or(2 * stored.bytes),
            (last, _) => last,
        }
    }

    /// For how long nobody has used it, if it is loaded and may go cold now.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        if self.loading() == Loading::Pinned {
            return None;
        }
        match &*self.state.borrow() {
            Loaded::Ready(revision) if self.is_free(revision) => Some(revision.idle_for()),
            _ => None,
        }
    }

    /// Whether nobody uses it, or waited for it and is about to.
    fn is_free(&self, revision: &Arc<Revision>) -> bool {
        Arc::strong_count(revision) == 1 && self.waiting.load(Ordering::SeqCst) == 0
    }

    /// Goes cold if nobody has used it for so long, and returns what it had loaded.
    pub(super) fn retire(&self, idle: Duration, why: Eviction) -> Option<Arc<Revision>> {
        let mut retired = None;
        self.state.send_if_modified(|state| {
            // Whoever uses it holds it, and nobody can take hold of it meanwhile.
            let is_free = matches!(state, Loaded::Ready(revision)
                if self.is_free(revision) && revision.idle_for() >= idle);
            if is_free && let Loaded::Ready(revision) = mem::replace(state, Loaded::Cold) {
                retired = Some(revision);
            }
            is_free
        });
        if retired.is_some() {
            let count = match why {
                Eviction::Idle => &self.stats.evicted_idle,
                Eviction::Memory => &self.stats.evicted_memory,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
        retired
    }

    /// Requests that wait for their turn now.
    pub fn waiting(&self) -> usize {
        match &*self.state.borrow() {
            Loaded::Ready(revision) => revision.gate.waiting(),
            _ => 0,
        }
    }

    /// Requests that wait for it to be loaded.
    pub fn waiting_to_load(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// What the host holds for its guests in tensors now, bytes.
    pub fn held_tensor_bytes(&self) -> usize {
        match &*self.state.borrow() {
            Loaded::Ready(revision) => revision.graphs.held_bytes(),
            _ => 0,
        }
    }

    /// Its digest, if it is stored.
    pub fn digest(&self) -> Option<&Digest> {
        match &self.origin {
            Origin::Stored(stored, _) => Some(&stored.digest),
            Origin::Path(_) | Origin::Nowhere => None,
        }
    }

    /// What kind of model it is, as far as that is known: of a path, once it is loaded.
    pub fn task(&self) -> Option<Task> {
        match (&*self.state.borrow(), &self.origin) {
            (Loaded::Ready(revision), _) => revision.task,
            (_, Origin::Stored(stored, _)) => stored.task,
            (_, Origin::Path(_) | Origin::Nowhere) => None,
        }
    }

    /// The revision, loaded now where it is cold.
    ///
    /// # Errors
    /// It cannot be loaded, or takes too long to.
    pub async fn revision(self: &Arc<Self>) -> Result<Arc<Revision>, Error> {
        if let Loaded::Ready(revision) = &*self.state.borrow() {
            revision.touch();
            return Ok(revision.clone());
        }
        let waiting = Waiting::enter(&self.waiting);
        if waiting.before > self.loader.options.queue {
            return Err(Error::Overloaded { model: self.model.clone(), waiting: waiting.before });
        }
        let settled = tokio::time::timeout(self.loader.patience, self.settle()).await;
        let not_ready = |reason: &str| {
            Err(Error::NotReady { model: self.model.clone(), reason: reason.to_owned() })
        };
        match settled {
            Ok(Loaded::Ready(revision)) => Ok(revision),
            // Of what is stored they speak of the server's own files.
            Ok(Loaded::Failed(..)) if self.digest().is_some() => {
                not_ready("it could not be loaded: the server's log says why")
            }
            Ok(Loaded::Failed(reason, _)) => not_ready(&reason),
            Ok(Loaded::Unloaded) => not_ready("it was unloaded by a client"),
            Ok(Loaded::Cold | Loaded::Waking(_)) | Err(_) => not_ready("it is still loading"),
        }
    }

    /// Wakes it until it is loaded or cannot be: it may go cold between the two.
    async fn settle(self: &Arc<Self>) -> Loaded {
        let mut seen = self.state.subscribe();
        loop {
            self.wake();
            let is_awake = |state: &Loaded| !matches!(state, Loaded::Waking(_));
            // The sender is this version's own.
            let Ok(state) = seen.wait_for(is_awake).await.map(|state| state.clone()) else {
                return Loaded::Cold;
            };
            if !matches!(state, Loaded::Cold) {
                return state;
            }
        }
    }

    /// Starts loading where nobody has yet.
    pub(super) fn wake(self: &Arc<Self>) {
        let number = self.loads.fetch_add(1, Ordering::Relaxed);
        let is_mine = self.state.send_if_modified(|state| {
            let start = match state {
                Loaded::Cold => true,
                Loaded::Failed(_, again) => again.is_some_and(|again| Instant::now() >= again),
                Loaded::Waking(_) | Loaded::Ready(_) | Loaded::Unloaded => false,
            };
            if start {
                *state = Loaded::Waking(number);
            }
            start
        });
        if is_mine {
            tokio::spawn(self.clone().fill(number));
        }
    }

    /// The revision, loaded now even if it failed before or was unloaded.
    ///
    /// # Errors
    /// As [`Version::revision`].
    pub async fn load(self: &Arc<Self>) -> Result<Arc<Revision>, Error> {
        self.allow();
        self.revision().await
    }

    /// Has it be loaded when it is asked for, even if it failed before or was unloaded.
    pub fn allow(&self) {
        self.state.send_if_modified(|state| {
            let again = match state {
                Loaded::Unloaded => true,
                Loaded::Failed(..) => !matches!(self.origin, Origin::Nowhere),
                Loaded::Cold | Loaded::Waking(_) | Loaded::Ready(_) => false,
            };
            if again {
                *state = Loaded::Cold;
            }
            again
        });
    }

    /// Gives the revision up until it is loaded by name; requests in flight keep theirs. What
    /// has failed for good stays so.
    pub fn unload(&self) {
        self.give_up(Loaded::Unloaded, |state| {
            !matches!(state, Loaded::Failed(_, None) | Loaded::Unloaded)
        });
    }

    /// Gives the revision up; requests in flight keep theirs.
    pub(super) fn cool(&self) {
        self.give_up(Loaded::Cold, |state| matches!(state, Loaded::Ready(_)));
    }

    fn give_up(&self, then: Loaded, may: impl FnOnce(&Loaded) -> bool) {
        let mut before = None;
        self.state.send_if_modified(|state| {
            let may = may(state);
            before = may.then(|| mem::replace(state, then));
            may
        });
        if let Some(Loaded::Ready(revision)) = before {
            discard(revision);
        }
    }

    async fn fill(self: Arc<Self>, number: u64) {
        let is_pinned = self.loading() == Loading::Pinned;
        let reserved = self.loader.residency.reserve(self.expected_bytes(), is_pinned).await;
        // Never closed.
        let turn = self.loader.turns.clone().acquire_owned().await;
        // It may have been unloaded while it waited, and loaded by another.
        if !matches!(&*self.state.borrow(), Loaded::Waking(waited) if *waited == number) {
            return;
        }
        let started = Instant::now();
        let (outcome, retry_after) = match reserved {
            Ok(charge) => (self.load_on_thread(charge).await, RETRY_AFTER),
            Err(reason) => (Err(reason), RETRY_MEMORY_AFTER),
        };
        drop(turn);
        let elapsed_ms = started.elapsed().as_millis() as u64;
        let (model, version) = (&self.model, &self.label);
        let state = match outcome {
            Ok(revision) => {
                let bytes = revision.charge.bytes();
                tracing::info!(model, version, elapsed_ms, bytes, "model is ready");
                self.last_bytes.store(bytes, Ordering::Relaxed);
                self.stats.wakes.add(started.elapsed());
                Loaded::Ready(revision)
            }
            Err(reason) => {
                tracing::error!(model, version, elapsed_ms, "model failed: {reason}");
                // What lies at a path was wrong and stays so until a restart; what is stored was
                // examined, so it is the machine that is not well.
                let again = self.digest().map(|_| Instant::now() + retry_after);
                Loaded::Failed(reason, again)
            }
        };
        // It may have been unloaded meanwhile.
        self.state.send_if_modified(|now| {
            let is_waited_for = matches!(now, Loaded::Waking(waited) if *waited == number);
            if is_waited_for {
                *now = state;
            }
            is_waited_for
        });
        self.loader.residency.admit(&self).await;
    }

    /// A model that the engine cannot stomach must not take the others along: a panic, or a
    /// graph that is optimised for ever, fails this one only. (Its thread cannot be ended, and
    /// is left: so it is none of the runtime's, which would wait for it at the end.)
    async fn load_on_thread(self: &Arc<Self>, charge: Charge) -> Result<Arc<Revision>, String> {
        let (send, loaded) = oneshot::channel();
        let version = self.clone();
        let thread = thread::Builder::new().name("wisp-load".into()).spawn(move || {
            // Nobody listens any more where it came too late.
            let _ = send.send(version.load_here(charge));
        });
        thread.map_err(|error| format!("no thread to load it on: {error}"))?;
        match tokio::time::timeout(LOADING_DEADLINE, loaded).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err("loading panicked".to_owned()),
            Err(_) => Err(format!("loading took longer than {LOADING_DEADLINE:?}")),
        }
    }

    fn load_here(&self, charge: Charge) -> Result<Arc<Revision>, String> {
        let bundle = match &self.origin {
            Origin::Path(path) => SourceFiles::open(path)
                .and_then(|source| source.bundle())
                .map_err(|error| error.to_string())?,
            Origin::Stored(stored, store) => {
                let bundle = store.bundle(&stored.digest).map_err(|error| error.to_string())?;
                let (engines, batch_sizes) = (stored.engine_kinds(), stored.batch_sizes());
                Bundle { engines, batch_sizes, ..bundle }
            }
            Origin::Nowhere => return Err("it has no bundle".to_owned()),
        };
        let options = &self.loader.options;
        load(&self.model, &self.label, &bundle, options, self.stats.clone(), charge)
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        self.cool();
    }
}
