//! The engines there are, by name.

use std::fmt;

/// Which engine runs a graph. Their answers agree; their speed and what they can load differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineKind {
    Tract,
    Rten,
    /// Only where [`crate::OnnxRuntime::open`] has loaded its library.
    OnnxRuntime,
}

impl EngineKind {
    pub const ALL: [Self; 3] = [Self::Tract, Self::Rten, Self::OnnxRuntime];

    /// Those that can be had, in the order they are tried.
    pub fn available() -> Vec<Self> {
        let is_there =
            |engine: &Self| *engine != Self::OnnxRuntime || crate::OnnxRuntime::is_open();
        Self::ALL.into_iter().filter(is_there).collect()
    }

    /// As it is written in settings and answers: `tract`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tract => "tract",
            Self::Rten => "rten",
            Self::OnnxRuntime => "onnxruntime",
        }
    }

    /// The engine of that name, if there is one.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.name() == name)
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
