//! The control plane: compiles configuration and health into the dispatch table and hands it to the planes.

pub mod compile;
pub mod controller;
pub mod explain;
pub mod former;
pub mod image;
pub mod indices;
pub mod journal;
pub mod lower;
pub mod order;
pub mod overrides;
pub mod plan;
pub mod preview;
#[cfg(target_os = "linux")]
pub mod relays;
pub mod resolve;
#[cfg(target_os = "linux")]
pub mod short_way;
pub mod signals;
pub mod splices;
pub mod table;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use overrides::Overrides;
use table::{BackendEntry, DispatchTable, FrontendEntry};

use crate::model::Config;

/// What the controller committed last, and what it refused last; published for health and admin.
#[derive(Clone, Debug)]
pub struct ControlState {
    /// The committed table.
    pub table: Arc<DispatchTable>,
    /// How the configuration in it came to be.
    pub accepted: Reload,
    /// The newest configuration seen, if it was refused; `None` when the newest is the accepted one.
    pub refused: Option<Refusal>,
    /// Settings that changed in the file but take effect only at the next start, in words.
    pub pending_restart: Vec<String>,
    /// The configuration as the file has it; `None` only before the first.
    pub file: Option<Arc<Config>>,
    /// What left the table while connections of it live.
    pub leaving: Vec<Leaving>,
    /// What was changed at run time; the table's configuration is the file with these laid over it.
    pub overrides: Arc<Overrides>,
    /// Configurations decided on, good or bad, and who asked for the last.
    pub decided: (u64, String),
}

impl ControlState {
    /// The state before the first commit, with the empty table that it follows.
    pub fn at_start(at: SystemTime, none: Arc<DispatchTable>) -> Self {
        Self {
            table: none,
            accepted: Reload { version: 0, at, cause: "start".to_owned() },
            refused: None,
            pending_restart: Vec::new(),
            file: None,
            leaving: Vec::new(),
            overrides: Arc::default(),
            decided: (0, String::new()),
        }
    }
}

/// A frontend or backend that is no longer in the table, with its live state.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// What it is.
    pub what: Left,
    /// When its connections are reset; `None`: they may go on, since the file still has it.
    pub until: Option<SystemTime>,
}

/// What left.
#[derive(Clone, Debug)]
pub enum Left {
    /// A frontend.
    Frontend(Arc<FrontendEntry>),
    /// A backend.
    Backend(BackendEntry),
}

impl Left {
    /// Connections of it that live.
    pub fn live(&self) -> u64 {
        match self {
            Self::Frontend(entry) => u64::from(entry.cell.live.load(Ordering::Relaxed)),
            Self::Backend(entry) => u64::from(entry.cell.live.load(Ordering::Relaxed)),
        }
    }
}

/// How a configuration was accepted.
#[derive(Clone, Debug)]
pub struct Reload {
    /// Configuration version.
    pub version: u64,
    /// When.
    pub at: SystemTime,
    /// Who asked: `start`, `file changed`, `SIGHUP`.
    pub cause: String,
}

/// A configuration that was refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// When.
    pub at: SystemTime,
    /// Who asked.
    pub cause: String,
    /// Every error, one a line.
    pub errors: String,
}
