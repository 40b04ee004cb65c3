//! The phases of the process's life.

use serde::{Deserialize, Serialize};

/// Phase of the process; it only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Binding and compiling.
    Starting,
    /// Serving.
    Running,
    /// Still accepting, no longer ready.
    LameDuck,
    /// No longer accepting, waiting for connections.
    Draining,
    /// Resetting what is left.
    Forced,
    /// Gone.
    Stopped,
}
