//! The data-plane port: a plane takes tables, drains and tells what it carries.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::BoxFuture;
use crate::control::table::{BackendId, DispatchTable};
pub use crate::metrics::port::Decision;
use crate::metrics::port::{End, Failed, Route};
use crate::model::{Moment, Name};

use super::error::ApplyError;

/// What a plane can carry on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Relays, best first.
    pub relays: Vec<&'static str>,
}

/// Which connections a drain covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrainScope {
    /// All of them: the process is going away.
    All,
    /// Those that exist now of frontends and backends that left the table.
    Removed {
        /// Frontends, by name.
        frontends: BTreeSet<Name>,
        /// Backends, by identity.
        backends: BTreeSet<BackendId>,
    },
}

/// What a plane carries now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaneCounters {
    /// Addresses it accepts on, with real ports, by frontend.
    pub listeners: Vec<(Name, SocketAddr)>,
    /// Connections it carries.
    pub live: u64,
    /// Version of its table.
    pub table_version: u64,
}

/// A connection at one moment, or as it ended.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Number, unique in the process; 0 for a flow of packets in the kernel, which has none.
    pub id: u64,
    /// Client.
    pub client: SocketAddr,
    /// Address that the client used.
    pub local: SocketAddr,
    /// When it was accepted.
    pub started: Moment,
    /// Frontend it came to.
    pub frontend: Name,
    /// Pool of that frontend.
    pub pool: Name,
    /// Data plane that has it.
    pub plane: &'static str,
    /// How its bytes are moved.
    pub relay: &'static str,
    /// Where it went; `None` as long as no backend is connected.
    pub route: Option<Route>,
    /// Why it went there.
    pub decision: Option<Decision>,
    /// Backends that were tried in vain, in order.
    pub failed: Box<[Failed]>,
    /// Bytes from client to backend.
    pub bytes_up: u64,
    /// Bytes from backend to client.
    pub bytes_down: u64,
    /// Whole seconds without a byte.
    pub idle_seconds: u32,
    /// How and when it ended; `None` while it lives.
    pub end: Option<(End, Moment)>,
}

/// Which connections to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that exist.
    Live,
    /// The last that ended, refused ones among them; bounded.
    Ended,
}

/// A data plane.
pub trait ProxyService: Send + Sync {
    /// What it can carry.
    fn offers(&self) -> Capabilities;

    /// Takes a table as a whole: new listeners are bound before old ones close.
    ///
    /// # Errors
    /// Every listener that cannot be bound; then nothing has changed.
    fn apply(&self, table: Arc<DispatchTable>) -> Result<(), ApplyError>;

    /// Stops accepting in `scope` and waits for its connections; resets what is left after `deadline`.
    /// What has come back into the table by then is let go on. Returns the number of connections that were reset.
    fn drain(&self, scope: DrainScope, deadline: Duration) -> BoxFuture<u64>;

    /// What it carries now.
    fn observe(&self) -> PlaneCounters;

    /// Those of the connections that it carries or has carried that `such` lets through, in no order; traffic does not
    /// wait for the list.
    fn connections(&self, which: Which, such: &dyn Fn(&Connection) -> bool) -> Vec<Connection>;
}
