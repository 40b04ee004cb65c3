//! The metrics port.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lemonade_common::{PacketReason, Reason};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::BoxFuture;
use crate::model::Name;
use crate::model::config::StrategyKind;
use crate::strategy::port::Basis;

use super::snapshot::MetricsSnapshot;

/// One connection, told when it ended: who, where, why this backend, how much, how long, how it ended.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// Number of the connection, unique in the process.
    pub id: u64,
    /// When it was accepted.
    pub started: SystemTime,
    /// How long it lived.
    pub duration: Duration,
    /// Frontend it came to.
    pub frontend: Name,
    /// Client.
    pub client: SocketAddr,
    /// Address that the client used.
    pub local: SocketAddr,
    /// Where it went; `None` when it was refused.
    pub route: Option<Route>,
    /// Why it went there.
    pub decision: Option<Decision>,
    /// Backends that were tried in vain, in order.
    pub failed: Box<[Failed]>,
    /// Bytes from client to backend.
    pub bytes_up: u64,
    /// Bytes from backend to client.
    pub bytes_down: u64,
    /// Datagrams, if it was a session of them.
    pub datagrams: Option<Datagrams>,
    /// How it ended.
    pub end: End,
}

/// Datagrams of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagrams {
    /// From client to backend.
    pub up: u64,
    /// From backend to client.
    pub down: u64,
}

/// Where a connection went and why.
#[derive(Clone, Debug)]
pub struct Route {
    /// Pool.
    pub pool: Name,
    /// Backend.
    pub backend: Name,
    /// Address connected to.
    pub address: SocketAddr,
    /// Strategy that picked it.
    pub strategy: StrategyKind,
    /// Candidates it was picked from.
    pub candidates: u32,
    /// Connects made, the successful one included.
    pub attempts: u32,
    /// Whether it won a race against a late first connect.
    pub hedged: bool,
    /// Table version that was consulted; 0 where the kernel picked and does not know.
    pub table_version: u64,
    /// Time its connect took.
    pub connect: Duration,
}

/// Why a backend was picked.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What the strategy went by.
    pub basis: Basis,
    /// Name of the backend that lost, where two were compared.
    pub rival: Option<Name>,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.basis {
            Basis::Former => f.write_str("picked by the process before this one"),
            Basis::Only => f.write_str("the only one that could be picked"),
            Basis::Turn(turn) => write!(f, "its turn (number {turn})"),
            Basis::Passed(turn) => {
                write!(f, "turn {turn} fell to a backend that could not be picked and was given to this one")
            }
            Basis::Slot(slot) => write!(f, "slot {slot} of the ring, by the hash of the client"),
            Basis::Counted => {
                f.write_str("the fewest connections per weight, as the kernel counted them then")
            }
            Basis::Lowest { load, equals: 1 } => write!(f, "lowest load: {load} connections per weight"),
            Basis::Lowest { load, equals } => {
                write!(
                    f,
                    "lowest load: {load} connections per weight, shared by {equals}; its turn among them"
                )
            }
            Basis::Cheaper { cost, rival_cost, .. } => {
                let rival = self.rival.as_ref().map_or("another", Name::as_str);
                write!(f, "cheaper of two drawn at random: cost {cost:.1} against {rival_cost:.1} of {rival}")
            }
        }
    }
}

/// A backend that was tried in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Backend.
    pub backend: Name,
    /// What went wrong.
    pub fault: Fault,
}

/// Why a backend that was tried did not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It refused the connect.
    Refused,
    /// It reset the connection before its first byte.
    Reset,
    /// No route, or somebody said that it cannot be reached.
    Unreachable,
    /// It did not answer in time.
    TimedOut,
    /// This process or host has no descriptor or memory left.
    NoDescriptors,
    /// This host has no local port left towards it.
    NoPorts,
    /// Something else.
    Other,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::Reset,
        Self::Unreachable,
        Self::TimedOut,
        Self::NoDescriptors,
        Self::NoPorts,
        Self::Other,
    ];

    /// Stable name, used in access records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::NoDescriptors => "no_descriptors",
            Self::NoPorts => "no_ports",
            Self::Other => "other",
        }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Both sides closed in order.
    Closed,
    /// The client reset it.
    ClientReset,
    /// The backend reset it.
    BackendReset,
    /// The client no longer acknowledged.
    ClientTimeout,
    /// The backend no longer acknowledged.
    BackendTimeout,
    /// No byte for `idle_timeout`.
    IdleTimeout,
    /// The drain deadline passed.
    DrainDeadline,
    /// It got no backend.
    Refused(#[serde(with = "reason_text")] Reason),
    /// A packet that would have opened or carried it was dropped in the kernel; of these there are events only.
    #[serde(skip)]
    Dropped(PacketReason),
}

impl End {
    /// Every end of a connection that had got a backend.
    pub const SERVED: [Self; 7] = [
        Self::Closed,
        Self::ClientReset,
        Self::BackendReset,
        Self::ClientTimeout,
        Self::BackendTimeout,
        Self::IdleTimeout,
        Self::DrainDeadline,
    ];

    /// Stable name, used in access records and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::ClientTimeout => "client_timeout",
            Self::BackendTimeout => "backend_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::DrainDeadline => "drain_deadline",
            Self::Refused(reason) => reason.as_str(),
            Self::Dropped(reason) => reason.as_str(),
        }
    }
}

mod reason_text {
    use lemonade_common::Reason;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(reason.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Reason, D::Error> {
        let text = String::deserialize(deserializer)?;
        let found = Reason::ALL.into_iter().find(|reason| reason.as_str() == text);
        found.ok_or_else(|| serde::de::Error::custom(format_args!("unknown reason `{text}`")))
    }
}

/// Takes access records from the data plane. Must not block: a full sink drops and counts.
pub trait Recorder: Send + Sync {
    /// Whether the record of connection `id` is wanted; the data plane does not build it otherwise.
    fn wants(&self, id: u64) -> bool;

    /// Takes one record.
    fn record(&self, record: AccessRecord);
}

/// One second of a time series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Sample {
    /// Connections live at its end.
    pub live: u64,
    /// Connections opened in it.
    pub opened: u64,
    /// Connections refused in it.
    pub refused: u64,
    /// Bytes from clients to backends in it.
    pub bytes_up: u64,
    /// Bytes from backends to clients in it.
    pub bytes_down: u64,
}

/// Time series of one name, oldest first, a second apart, 10 minutes at most.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Samples, oldest first.
    pub samples: Vec<Sample>,
}

/// One second of a backend's time series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BackendSample {
    /// Connections live at its end.
    pub live: u32,
    /// Times it was picked in it.
    pub picks: u32,
    /// Connects that failed and resets in it.
    pub failures: u32,
    /// Moving average of the time to its first byte at its end, microseconds; 0: not measured.
    pub first_byte_us: u32,
    /// Moving average of its connect time at its end, microseconds; 0: not measured.
    pub connect_us: u32,
}

/// Time series of one address of one backend, oldest first, a second apart, 10 minutes at most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BackendSeries {
    /// Pool.
    pub pool: String,
    /// Backend.
    pub name: String,
    /// Address.
    pub address: String,
    /// Samples, oldest first.
    pub samples: Vec<BackendSample>,
}

/// Reads counters and keeps their history.
pub trait MetricsService: Send + Sync {
    /// Takes a sample each second until `stop`.
    fn run(self: Arc<Self>, stop: CancellationToken) -> BoxFuture<()>;

    /// Counters now.
    fn snapshot(&self) -> MetricsSnapshot;

    /// Series of the process (`None`) or of one frontend.
    fn series(&self, frontend: Option<&Name>) -> Series;

    /// Series of each backend in the table that has one.
    fn backend_series(&self) -> Vec<BackendSeries>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::fixture::name;

    #[test]
    fn a_decision_names_what_it_went_by() {
        let why = |basis, rival: Option<&str>| Decision { basis, rival: rival.map(name) }.to_string();
        let cheaper = Basis::Cheaper { cost: 12.0, rival: 1, rival_cost: 345.67 };
        assert_eq!(why(cheaper, Some("b")), "cheaper of two drawn at random: cost 12.0 against 345.7 of b");
        assert_eq!(
            why(Basis::Lowest { load: 1.5, equals: 1 }, None),
            "lowest load: 1.5 connections per weight"
        );
        assert!(why(Basis::Passed(7), None).contains("turn 7"));
    }
}
