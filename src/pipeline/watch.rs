//! Parts of a step, told to whoever measures it: the core itself has no clock.

use std::fmt;

/// A part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Commands, outcomes, deadlines.
    Command,
    /// Telemetry becomes rows.
    Decode,
    /// Rows meet runs, conditions and windows.
    Evaluate,
    /// What the windows gave meets limits; what follows is said.
    Decide,
    /// Alerts are put together.
    Correlate,
}

impl Phase {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Decode => "decode",
            Self::Evaluate => "evaluate",
            Self::Decide => "decide",
            Self::Correlate => "correlate",
        }
    }
}

/// Hears which part of a step begins; the one before ends with it. By default nobody does.
#[derive(Default)]
pub struct Watch(Option<Box<dyn FnMut(Phase) + Send>>);

impl Watch {
    /// Tells `hears`.
    pub fn new(hears: impl FnMut(Phase) + Send + 'static) -> Self {
        Self(Some(Box::new(hears)))
    }

    /// A part begins.
    pub(super) fn enter(&mut self, phase: Phase) {
        if let Some(hears) = &mut self.0 {
            hears(phase);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.0.is_some()).finish()
    }
}
