//! What has become of a version, as operators see it.

use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Costs nothing until it is asked for.
    Cold,
    /// On its way from cold to prepared.
    Waking,
    /// In memory, and in use.
    Prepared,
    /// In memory, and unused for so long.
    Idle(Duration),
    /// With the reason.
    Failed(String),
    /// By a client; answers nothing until it is loaded again.
    Unloaded,
}

impl State {
    pub const NAMES: [&'static str; 6] =
        ["cold", "waking", "prepared", "idle", "failed", "unloaded"];

    pub fn name(&self) -> &'static str {
        let [cold, waking, prepared, idle, failed, unloaded] = Self::NAMES;
        match self {
            State::Cold => cold,
            State::Waking => waking,
            State::Prepared => prepared,
            State::Idle(_) => idle,
            State::Failed(_) => failed,
            State::Unloaded => unloaded,
        }
    }
}
