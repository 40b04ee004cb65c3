//! Where the operator looks and acts: HTTP on a unix socket, and reads also on TCP.

pub mod client;
mod dump;
mod place;
pub mod report;
mod routes;
mod serve;
mod sockets;
pub mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};

use crate::control::ControlState;
use crate::control::journal::Journal;
use crate::health::port::HealthService;
use crate::log::LogHandle;
use crate::metrics::port::MetricsService;
use crate::proxy::port::ProxyService;
use crate::shutdown::Phase;

pub use place::default_socket;
pub use serve::serve;
pub use sockets::{AdminError, AdminSockets, bind};

/// What the admin interface reads and tells.
#[derive(Clone)]
pub struct AdminWiring {
    /// The committed table and how it came to be.
    pub control: watch::Receiver<Arc<ControlState>>,
    /// Phase of the process.
    pub phase: watch::Receiver<Phase>,
    /// Counters and series.
    pub metrics: Arc<dyn MetricsService>,
    /// Histories of backends.
    pub health: Arc<dyn HealthService>,
    /// The data plane.
    pub plane: Arc<dyn ProxyService>,
    /// Where changes are written down.
    pub journal: Arc<Journal>,
    /// The log's filter.
    pub log: LogHandle,
    /// Where a reload is asked for; the text is the cause.
    pub reloads: mpsc::Sender<String>,
    /// When the process started.
    pub started: SystemTime,
    /// The configuration file.
    pub config_file: PathBuf,
    /// What is in the kernel, or why nothing is, in words.
    pub kernel: String,
    /// Worker threads.
    pub workers: usize,
}

#[cfg(test)]
mod tests;
