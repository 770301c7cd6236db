//! Fresh sandboxes of verified guests. Only this room (with `nn`) names wasmtime. It knows
//! nothing of models, protocols or files: it is given bytes, limits and a deadline.
//!
//! [`Engine`] → [`Guest`] (a prepared component, ready to instantiate) → [`Sandbox`] (one
//! instance for one request, consumed by running).

mod bindings;
mod describe;
mod engine;
mod guest;
mod host;
mod output;
mod pool;

pub use describe::ComponentInfo;
pub use engine::Engine;
pub use guest::{Code, Guest, PrepareError, Prepared, Snapshot};
pub use host::BundleView;
pub use pool::{PoolOptions, PoolReport};

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{PoolConcurrencyLimitError, Store, Trap};

use crate::nn::Run;
use crate::tensor::{Parameter, Tensor};
use host::Host;

/// What one sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of linear memory, bytes.
    pub memory_bytes: usize,
    /// Of tensors that the host holds for it, bytes.
    pub tensor_bytes: usize,
    /// Of what one run of a graph takes beside its inputs, bytes.
    pub graph_bytes: usize,
    /// Of data that one host call may take from the guest, bytes.
    pub hostcall_bytes: usize,
    /// Tensors, graphs, contexts and streams held at a time.
    pub handles: usize,
    /// Of stdout, stderr and log lines together, bytes; what comes after is dropped.
    pub output_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 20,
            tensor_bytes: 256 << 20,
            graph_bytes: 256 << 20,
            hostcall_bytes: 64 << 20,
            handles: 256,
            output_bytes: 16 << 10,
        }
    }
}

/// One request as a guest gets it.
#[derive(Debug)]
pub struct Request {
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<String>,
    pub parameters: Vec<(String, Parameter)>,
}

/// A guest's answer.
#[derive(Debug)]
pub struct Response {
    pub outputs: Vec<Tensor>,
    pub parameters: Vec<(String, Parameter)>,
}

/// How a sandbox ended without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The guest's own answers, by the contract's words.
    InvalidInput(String),
    Unsupported(String),
    Internal(String),
    /// The guest broke off.
    Trap {
        /// A short name, of few.
        kind: &'static str,
        reason: String,
    },
    /// A memory or table, or what it holds in tensors, grew past its limit, and the guest did
    /// not survive that.
    Memory,
    /// The deadline passed, or the request was cancelled.
    Stopped,
    /// It used up its CPU time.
    Spent,
    /// The pool has no instance left: a guest of many core modules takes several slots.
    NoRoom,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Store and instance.
    pub start: Duration,
    /// The guest's own code and its host calls, graphs left out.
    pub guest: Duration,
    /// The graphs.
    pub compute: Duration,
    /// Waiting for other sandboxes to run a graph with.
    pub waited: Duration,
    /// Of the guest's time, what came before its first graph; all of it where it ran none.
    pub before: Duration,
    /// And what came after its last.
    pub after: Duration,
    /// Rows that its largest run was for; 1 where nobody joined it, 0 where it joined another's.
    pub batch: usize,
}

/// One instance for one request. Running consumes it: nothing a request leaves in it can be
/// seen by another.
pub struct Sandbox {
    store: Store<Host>,
    guest: Arc<Guest>,
    run: Arc<Run>,
    created: Instant,
}

impl Sandbox {
    /// Sets up store, limits and deadline; nothing of the guest runs yet.
    pub fn new(guest: &Arc<Guest>, run: &Arc<Run>) -> Self {
        let created = Instant::now();
        let store = guest.store(run);
        Self { store, guest: guest.clone(), run: run.clone(), created }
    }

    /// Instantiates the guest and asks it, once. Yields to the executor where it is interrupted,
    /// so that a long guest shares its thread.
    ///
    /// # Errors
    /// The [`Fault`] it ended with.
    pub async fn run(mut self, request: Request) -> (Result<Response, Fault>, Timings) {
        let instance = self.guest.instantiate(&mut self.store).await;
        let started = Instant::now();
        self.run.guest_begins();
        let answer = match instance {
            Ok(instance) => instance.infer(&mut self.store, request).await,
            Err(error) => Err(error),
        };
        let (ended, compute, waited) = (Instant::now(), self.run.compute_time(), self.run.waited());
        let (first, last) = self.run.compute_span().unwrap_or((ended, ended));
        let timings = Timings {
            start: started - self.created,
            guest: (ended - started).saturating_sub(compute + waited),
            compute,
            waited,
            before: first - started,
            after: ended - last,
            batch: self.run.batch(),
        };
        let result = match answer {
            Ok(Ok(response)) => Ok(response),
            // A guest that hides a stopped compute behind an error of its own is late all the same.
            Ok(Err(_)) if self.run.is_over() => Err(self.stopped()),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(self.fault(&error)),
        };
        (result, timings)
    }

    /// Instantiates the guest and drops it: what a sandbox costs before it does anything.
    ///
    /// # Errors
    /// The guest's start functions trapped, or its memories are over the limits.
    pub async fn instantiate(mut self) -> Result<(), Fault> {
        let instance = self.guest.instantiate(&mut self.store).await;
        instance.map(drop).map_err(|error| self.fault(&error))
    }

    fn stopped(&self) -> Fault {
        if self.run.is_spent() { Fault::Spent } else { Fault::Stopped }
    }

    fn fault(&self, error: &wasmtime::Error) -> Fault {
        if self.run.is_over() {
            return self.stopped();
        }
        if self.store.data().growth_denied() {
            return Fault::Memory;
        }
        if error.is::<PoolConcurrencyLimitError>() {
            return Fault::NoRoom;
        }
        Fault::Trap { kind: trap_kind(error), reason: guest::root_cause(error) }
    }
}

fn trap_kind(error: &wasmtime::Error) -> &'static str {
    match error.downcast_ref() {
        Some(Trap::UnreachableCodeReached) => "unreachable",
        Some(Trap::MemoryOutOfBounds) => "memory-out-of-bounds",
        Some(Trap::StackOverflow) => "stack-overflow",
        Some(Trap::IntegerDivisionByZero) => "division-by-zero",
        Some(Trap::IntegerOverflow | Trap::BadConversionToInteger) => "integer-overflow",
        Some(Trap::TableOutOfBounds | Trap::IndirectCallToNull | Trap::BadSignature) => {
            "bad-indirect-call"
        }
        Some(_) => "other",
        // The host broke a call off: what it was asked for is not to be had.
        None => "host-call",
    }
}
