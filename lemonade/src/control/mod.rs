//! The control plane: compiles configuration and health into the dispatch table and hands it to the planes.

pub mod compile;
pub mod controller;
pub mod explain;
pub mod image;
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
pub mod table;

use std::sync::Arc;
use std::time::SystemTime;

use overrides::Overrides;
use table::DispatchTable;

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
    /// What was changed at run time; the table's configuration is the file with these laid over it.
    pub overrides: Arc<Overrides>,
    /// Configurations decided on, good or bad, and who asked for the last.
    pub decided: (u64, String),
}

impl ControlState {
    /// The state before the first commit.
    pub fn at_start(at: SystemTime) -> Self {
        Self {
            table: Arc::default(),
            accepted: Reload { version: 0, at, cause: "start".to_owned() },
            refused: None,
            pending_restart: Vec::new(),
            file: None,
            overrides: Arc::default(),
            decided: (0, String::new()),
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
