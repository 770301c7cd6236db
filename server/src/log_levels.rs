//! Which levels of the log are on beside the operator's filter: clients of the protocol may
//! switch them while the server runs. One value for the process, as its log is one.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Level;

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLevels {
    pub info: bool,
    pub warning: bool,
    pub error: bool,
    /// wisp's own debug lines from 1, and its trace lines from 2, whatever the filter says.
    pub verbose: u32,
}

const INFO: u64 = 1 << 32;
const WARNING: u64 = 1 << 33;
const ERROR: u64 = 1 << 34;

static LEVELS: AtomicU64 = AtomicU64::new(INFO | WARNING | ERROR);

impl LogLevels {
    /// What is on now.
    pub fn now() -> Self {
        let bits = LEVELS.load(Ordering::Relaxed);
        let is_set = |flag| bits & flag != 0;
        let (info, warning, error) = (is_set(INFO), is_set(WARNING), is_set(ERROR));
        Self { info, warning, error, verbose: bits as u32 }
    }

    /// Has this hold from now on.
    pub fn set(self) {
        let Self { info, warning, error, verbose } = self;
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(info, INFO) | flag(warning, WARNING) | flag(error, ERROR);
        LEVELS.store(flags | u64::from(verbose), Ordering::Relaxed);
        // Each place that logs remembers whether it does.
        tracing::callsite::rebuild_interest_cache();
    }

    /// Whether what the operator's filter lets through is logged.
    pub fn lets_through(self, level: Level) -> bool {
        match level {
            Level::ERROR => self.error,
            Level::WARN => self.warning,
            Level::INFO => self.info,
            _ => true,
        }
    }

    /// The most that is logged of wisp's own, beyond the filter.
    pub fn verbose_level(self) -> Option<Level> {
        match self.verbose {
            0 => None,
            1 => Some(Level::DEBUG),
            _ => Some(Level::TRACE),
        }
    }
}
