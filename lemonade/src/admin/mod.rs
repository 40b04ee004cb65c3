//! Where the operator looks and acts: HTTP on a unix socket, and reads also on TCP.

pub mod client;
pub mod connections;
mod dashboard;
mod dump;
pub mod events;
mod feed;
pub mod foresee;
pub mod forward;
pub mod openapi;
mod place;
mod query;
pub mod reads;
mod removed;
pub mod report;
mod routes;
mod serve;
mod sockets;
pub mod status;
pub mod steer;
pub(crate) mod table;
pub mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};

use crate::control::ControlState;
use crate::control::journal::Journal;
use crate::control::order::Order;
use crate::health::port::{HealthService, HealthView};
use crate::log::LogHandle;
use crate::metrics::port::MetricsService;
use crate::model::Resolution;
use crate::proxy::clock::Clock;
use crate::proxy::port::ProxyService;
use crate::proxy::tap::Tap;
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
    /// Held by whoever waits for the outcome of a reload.
    pub reloading: Arc<tokio::sync::Mutex<()>>,
    /// Where changes of backends are asked for.
    pub orders: mpsc::Sender<Order>,
    /// Health as it is now.
    pub health_view: watch::Receiver<Arc<HealthView>>,
    /// Addresses of host names as they are now.
    pub resolution: watch::Receiver<Arc<Resolution>>,
    /// Readers of events.
    pub readers: Arc<std::sync::atomic::AtomicUsize>,
    /// Events on their way to these readers.
    pub feed: Arc<std::sync::Mutex<feed::Feed>>,
    /// What happens to connections.
    pub tap: Tap,
    /// The data plane's clock.
    pub clock: Clock,
    /// Seed of the flow hash.
    pub seed: u64,
    /// Environment variables that override keys of the configuration.
    pub environment: Vec<(String, String)>,
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
