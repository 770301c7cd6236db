//! What can go wrong with a request, in no protocol's words. A variant exists because a caller
//! acts on it; `api` maps each to a status, the texts are for clients: they name the thing,
//! what was expected and what came. Causes go to the log, where the error is handled.

use std::time::Duration;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The client's request is wrong.
    #[error("{0}")]
    InvalidInput(String),
    #[error("unknown model `{0}`")]
    UnknownModel(String),
    #[error("model `{model}` has no version `{version}`, it has {known}")]
    UnknownVersion { model: String, version: String, known: String },
    #[error("nothing is served at `{0}`")]
    UnknownPath(String),
    #[error("method {method} is not allowed at `{path}`")]
    WrongMethod { method: String, path: String },
    /// The model is known and did not load.
    #[error("model `{model}` is not ready: {reason}")]
    NotReady { model: String, reason: String },
    #[error("the body has more than {limit} bytes, the limit here")]
    TooLarge { limit: usize },
    /// The client stopped sending in mid-body, or was too slow.
    #[error("the body did not arrive: {0}")]
    BodyLost(String),
    /// Well-formed, and more than this model or server does.
    #[error("{0}")]
    Unsupported(String),
    #[error("model `{model}` is overloaded: {waiting} requests wait already")]
    Overloaded { model: String, waiting: usize },
    #[error("model `{model}` did not answer within {deadline:?}")]
    Deadline { model: String, deadline: Duration },
    /// The guest broke off: it trapped.
    #[error("the guest of model `{model}` trapped: {reason}")]
    GuestTrap { model: String, kind: &'static str, reason: String },
    #[error("the guest of model `{model}` needs more than its {limit_mib} MiB of memory")]
    GuestMemory { model: String, limit_mib: usize },
    #[error("model `{model}` used up the {limit:?} of CPU time that a request may have")]
    CpuLimit { model: String, limit: Duration },
    /// The guest answered with its own internal error, or with what its contract forbids.
    #[error("the guest of model `{model}` failed: {reason}")]
    GuestFailed { model: String, reason: String },
    /// The graph could not be run.
    #[error("the graph of model `{model}` failed: {reason}")]
    Compute { model: String, reason: String },
    #[error("the graph of model `{model}` needs more than its {limit_mib} MiB of memory")]
    GraphMemory { model: String, limit_mib: usize },
    /// What it would take is all in use: bodies, or the instances that sandboxes are made of.
    #[error("no room for now: {0}")]
    NoRoom(String),
    /// What was to be deployed is not fit to be served.
    #[error("the bundle is refused: {0}")]
    BundleRefused(String),
    /// It contradicts what is deployed, or what else goes on.
    #[error("{0}")]
    Conflict(String),
    /// Who asks may not.
    #[error("{0}")]
    Unauthorized(String),
    /// What nobody may here, as the server is set.
    #[error("{0}")]
    Forbidden(String),
    /// The disk, or what lies on it.
    #[error("storage: {0}")]
    Storage(String),
    /// A registry of bundles.
    #[error("registry: {0}")]
    Registry(String),
    /// The server's own fault.
    #[error("internal error: {0}")]
    Internal(String),
}

/// A text from a guest or a client, fit for a log line: control characters are escaped.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => line.extend(character.escape_debug()),
            false => line.push(character),
        }
    }
    line
}

impl Error {
    /// The kind of trap it was, if it was one.
    pub fn trap(&self) -> Option<&'static str> {
        match self {
            Error::GuestTrap { kind, .. } => Some(kind),
            _ => None,
        }
    }

    /// A short name of the variant for headers, logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::InvalidInput(_) => "invalid-input",
            Error::UnknownModel(_) => "unknown-model",
            Error::UnknownVersion { .. } => "unknown-version",
            Error::UnknownPath(_) => "unknown-path",
            Error::WrongMethod { .. } => "wrong-method",
            Error::NotReady { .. } => "not-ready",
            Error::TooLarge { .. } => "too-large",
            Error::BodyLost(_) => "body-lost",
            Error::Unsupported(_) => "unsupported",
            Error::Overloaded { .. } => "overloaded",
            Error::Deadline { .. } => "deadline",
            Error::GuestTrap { .. } => "guest-trap",
            Error::GuestMemory { .. } => "guest-memory",
            Error::CpuLimit { .. } => "cpu-limit",
            Error::GuestFailed { .. } => "guest-failed",
            Error::Compute { .. } => "compute",
            Error::GraphMemory { .. } => "graph-memory",
            Error::NoRoom(_) => "no-room",
            Error::BundleRefused(_) => "bundle-refused",
            Error::Conflict(_) => "conflict",
            Error::Unauthorized(_) => "unauthorized",
            Error::Forbidden(_) => "forbidden",
            Error::Storage(_) => "storage",
            Error::Registry(_) => "registry",
            Error::Internal(_) => "internal",
        }
    }
}
