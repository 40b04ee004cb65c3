//! The health port.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lemonade_common::BackendIx;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::BoxFuture;
use crate::control::table::DispatchTable;
use crate::model::config::{HealthKind, Status};

/// Status of every backend that health knows; one it does not know has its pool's initial status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthView {
    /// By backend.
    pub statuses: BTreeMap<BackendIx, Status>,
}

/// What the data plane noticed of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Which backend.
    pub backend: BackendIx,
    /// What happened.
    pub kind: SignalKind,
}

/// Kind of a passive signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalKind {
    /// A connect succeeded; sent only for a backend that had failed before.
    Connected,
    /// A connect was refused or unreachable.
    ConnectFailed,
    /// A connect took longer than allowed.
    ConnectTimedOut,
    /// It reset a connection before it sent a byte.
    Reset,
}

/// A change of status, for log, journal and metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// Which backend, as `pool/name`.
    pub backend: String,
    /// Its address.
    pub address: String,
    /// Status now.
    pub status: Status,
    /// Why, in words: `3 failed probes in a row: connection refused`.
    pub cause: String,
}

/// One outcome in a backend's history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// When.
    pub at: SystemTime,
    /// Whether it counts as success.
    pub ok: bool,
    /// `probe` or the passive signal, and what was seen: `probe: HTTP 503`.
    pub detail: String,
    /// How long it took.
    pub took: Duration,
}

/// History of one backend: its last outcomes, newest last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Status now.
    pub status: Status,
    /// Since when.
    pub since: SystemTime,
    /// Successes (positive) or failures (negative) in a row.
    pub streak: i32,
    /// Last outcomes, newest last.
    pub outcomes: Vec<Outcome>,
}

/// What health reads and tells; each channel is made once, in `app::build`.
#[derive(Debug)]
pub struct HealthWiring {
    /// The committed table: its backends are the targets.
    pub targets: watch::Receiver<Arc<DispatchTable>>,
    /// Passive signals.
    pub signals: mpsc::Receiver<Signal>,
    /// Where statuses are published, only when one changed.
    pub view: watch::Sender<Arc<HealthView>>,
    /// Where transitions are told; bounded, a full channel drops and counts.
    pub transitions: mpsc::Sender<Transition>,
}

/// Watches backends and publishes their status.
pub trait HealthService: Send + Sync {
    /// Runs until `stop`; never ends by itself.
    fn run(self: Arc<Self>, wiring: HealthWiring, stop: CancellationToken) -> BoxFuture<()>;

    /// History of every backend it knows.
    fn histories(&self) -> BTreeMap<BackendIx, History>;
}

/// Why a probe did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// The backend failed it, in words: `connection refused`.
    Backend(String),
    /// It could not be made for want of descriptors, ports or memory here; says nothing about the backend.
    Local(String),
}

/// Makes one probe. Its adapters are the real one and a scripted one.
pub trait Prober: Send + Sync + 'static {
    /// Probes `target` within `timeout`, from `source` if given; success carries what was seen (`HTTP 200`).
    fn probe(
        &self,
        target: SocketAddr,
        source: Option<IpAddr>,
        kind: &HealthKind,
        timeout: Duration,
    ) -> BoxFuture<Result<String, ProbeError>>;
}
