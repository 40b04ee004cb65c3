//! The dispatch table: the one immutable, versioned snapshot that every plane consumes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lemonade_common::{BackendIx, FrontendIx};

use super::indices::Indices;
use crate::model::config::{Protocol, RelayChoice, Status};
use crate::model::relay::KernelRelay;
use crate::model::{Backend, BackendCell, Config, Frontend, FrontendCell, Name, Pool, PoolCell};
use crate::strategy::port::{Candidate, StrategyService};

/// Snapshot of routes, strategies, timeouts and health.
#[derive(Debug, Default)]
pub struct DispatchTable {
    /// Grows by one with each commit; 0 is the empty table before the first.
    pub version: u64,
    /// Version of the configuration in it; health changes leave it alone.
    pub config_version: u64,
    /// The configuration it was compiled from; `None` only in the empty table.
    pub config: Option<Arc<Config>>,
    /// Frontends by index.
    pub frontends: BTreeMap<FrontendIx, Arc<FrontendEntry>>,
    /// Pools by name.
    pub pools: BTreeMap<Name, Arc<PoolEntry>>,
    /// Next index to give out; indices are never reused.
    pub next_ix: u32,
    /// In the empty table, who had which index in a process before this one.
    pub remembered: Indices,
}

impl DispatchTable {
    /// Whether the backend `id` stands in it.
    pub fn has_backend(&self, id: &BackendId) -> bool {
        self.pools.get(&id.pool).is_some_and(|entry| entry.has_backend(id))
    }
}

/// A frontend with all that one of its connections needs.
#[derive(Debug)]
pub struct FrontendEntry {
    /// Identity.
    pub ix: FrontendIx,
    /// Settings.
    pub frontend: Arc<Frontend>,
    /// Its pool.
    pub pool: Arc<PoolEntry>,
    /// Live state.
    pub cell: Arc<FrontendCell>,
}

impl FrontendEntry {
    /// Whether connections of it may pass to relay `splice`, as far as the configuration says: it is asked for, or `auto` takes it
    /// for clients and backends that are not both, or one of them, on loopback only, where packets meet no program.
    pub fn splices(&self) -> bool {
        let Frontend { relay, protocol, forward, .. } = &*self.frontend;
        if *relay != RelayChoice::Auto {
            return relay.takes(KernelRelay::Splice);
        }
        let beyond = |ip: IpAddr| !ip.to_canonical().is_loopback();
        *protocol == Protocol::Tcp
            && forward.is_none()
            && !self.frontend.on_loopback()
            && self.pool.backends.iter().any(|backend| beyond(backend.id.ip))
    }
}

/// A pool with its strategy and the backends that may be picked.
#[derive(Debug)]
pub struct PoolEntry {
    /// Settings.
    pub pool: Arc<Pool>,
    /// All backends, ordered by identity.
    pub backends: Vec<BackendEntry>,
    /// Those that may be picked: enabled, weight above 0 and up (or all, failing open).
    pub candidates: Vec<Candidate>,
    /// Picks among `candidates`.
    pub strategy: Arc<dyn StrategyService>,
    /// Live state.
    pub cell: Arc<PoolCell>,
}

impl PoolEntry {
    /// Whether the backend `id` stands in it; they are ordered by identity.
    pub fn has_backend(&self, id: &BackendId) -> bool {
        self.backends.binary_search_by(|backend| backend.id.cmp(id)).is_ok()
    }
}

/// One address of one backend.
#[derive(Debug, Clone)]
pub struct BackendEntry {
    /// Identity, fixed while [`BackendId`] is in the table.
    pub ix: BackendIx,
    /// What makes it the same backend over reloads.
    pub id: BackendId,
    /// Settings.
    pub backend: Backend,
    /// Health as read when the table was compiled.
    pub status: Status,
    /// Live state.
    pub cell: Arc<BackendCell>,
}

/// What makes a backend the same one over reloads and restarts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId {
    /// Its pool.
    pub pool: Name,
    /// Its name.
    pub name: Name,
    /// Its address; a host name that resolves to several addresses is several backends.
    pub ip: IpAddr,
    /// Its port; `None` takes the port that the client used.
    pub port: Option<u16>,
}

impl BackendId {
    /// Address to connect to for a client that used `client_port`.
    pub fn address(&self, client_port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(client_port))
    }

    /// What its places in rings are made from.
    pub fn ring_identity(&self) -> Arc<str> {
        format!("{self} {}", self.address(0)).into()
    }
}

impl std::fmt::Display for BackendId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.pool, self.name)
    }
}
