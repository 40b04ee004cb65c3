//! The data-plane port: a plane takes tables, drains and tells what it carries.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::BoxFuture;
use crate::control::table::{BackendId, DispatchTable};
use crate::model::Name;

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
}
