//! Counters at one moment, as plain numbers; see `aggregating` for how they are read.

use std::time::SystemTime;

use lemonade_common::{BackendIx, FrontendIx, PacketReason, Reason};
use serde::{Deserialize, Serialize};

use crate::model::cell::BUCKETS;
use crate::model::config::{Name, Status, StrategyKind};
use crate::model::relay::{Findings, KernelRelay, RelayCounters};
use crate::model::tcp::TcpCounters;

/// Everything counted, at one moment.
#[derive(Clone, Debug)]
pub struct MetricsSnapshot {
    /// When it was taken.
    pub at: SystemTime,
    /// Version of the table it was read through.
    pub table_version: u64,
    /// Version of the configuration in that table.
    pub config_version: u64,
    /// The process.
    pub process: ProcessCounters,
    /// Relays in the kernel.
    pub relays: Vec<RelaySnapshot>,
    /// The forward plane.
    pub forward: ForwardCounters,
    /// Frontends in the table.
    pub frontends: Vec<FrontendCounters>,
    /// Pools in the table.
    pub pools: Vec<PoolCounters>,
}

/// Whether a relay in the kernel may be used, and how that was found out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RelaySnapshot {
    /// Which.
    pub relay: KernelRelay,
    /// Whether new connections may use it.
    pub usable: bool,
    /// Self-tests and canaries that failed since the start.
    pub failed: u64,
    /// Why it may or may not be used, and its self-tests.
    pub findings: Findings,
}

/// Counters of the forward plane; see [`ForwardCell`](crate::model::forward::ForwardCell).
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "fields mirror ForwardCell, documented there")]
pub struct ForwardCounters {
    pub live: u64,
    pub opened: u64,
    pub closed: u64,
    pub entries: u64,
    pub room: u64,
    pub replaced: u64,
    pub packets: [u64; PacketReason::COUNT],
    pub words: String,
}

/// Counters of the process, the flows of the forward plane among its connections; see
/// [`ProcessCell`](crate::model::ProcessCell).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "fields mirror ProcessCell, documented there")]
pub struct ProcessCounters {
    pub live: u64,
    pub opened: u64,
    pub closed: u64,
    pub accept_pauses: u64,
    pub events_dropped: u64,
    pub telemetry_dropped: u64,
    pub telemetry_failures: u64,
    pub health_transitions: u64,
    pub probes: u64,
    pub reloads_accepted: u64,
    pub reloads_refused: u64,
    pub last_reload_failed: bool,
}

/// Counters of one frontend; see [`FrontendCell`](crate::model::FrontendCell).
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "fields mirror FrontendCell, documented there")]
pub struct FrontendCounters {
    pub ix: FrontendIx,
    pub name: Name,
    pub pool: Name,
    pub live: u64,
    pub opened: u64,
    pub closed: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// `None` with protocol = "tcp".
    pub datagrams: Option<DatagramCounters>,
    pub refused: [u64; Reason::COUNT],
    pub plane: PlaneChoice,
    pub relays: [RelayCounters; KernelRelay::COUNT],
    pub connect_seconds: HistogramCounts,
    pub session_seconds: HistogramCounts,
}

/// Who serves a frontend; see [`PlaneCell`](crate::model::forward::PlaneCell).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaneChoice {
    /// Whether it asks for the forward plane.
    pub asked: bool,
    /// Whether its packets pass through the kernel.
    pub forwarded: bool,
    /// Why, in words; empty where nothing is to be said.
    pub why: String,
}

/// Datagrams of one frontend; see [`FrontendCell`](crate::model::FrontendCell).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "fields mirror FrontendCell, documented there")]
pub struct DatagramCounters {
    pub up: u64,
    pub down: u64,
    pub lost_up: u64,
    pub lost_down: u64,
}

/// Counts of a histogram; bounds are [`BUCKETS`].
#[derive(Clone, Debug, Default)]
pub struct HistogramCounts {
    /// Observations per bucket, not cumulative.
    pub counts: [u64; BUCKETS.len() + 1],
    /// Sum in seconds.
    pub sum: f64,
}

/// Counters of one pool; see [`PoolCell`](crate::model::PoolCell).
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "fields mirror PoolCell, documented there")]
pub struct PoolCounters {
    pub name: Name,
    pub strategy: StrategyKind,
    pub queued: u64,
    pub retries: u64,
    pub hedges: u64,
    pub budget_exhausted: u64,
    pub backends: Vec<BackendCounters>,
}

/// Counters of one backend; see [`BackendCell`](crate::model::BackendCell).
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "fields mirror BackendCell, documented there")]
pub struct BackendCounters {
    pub ix: BackendIx,
    pub name: Name,
    pub address: String,
    pub status: Status,
    pub enabled: bool,
    pub weight: u32,
    pub max_connections: u32,
    pub live: u64,
    pub connecting: u64,
    pub picks: u64,
    pub opened: u64,
    pub failures: u64,
    pub resets: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub connect_us: Option<u64>,
    pub first_byte_us: Option<u64>,
    pub tcp: Option<TcpCounters>,
}
