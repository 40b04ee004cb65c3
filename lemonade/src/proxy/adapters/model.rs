//! The plane in memory: it carries no bytes and answers which backend a flow would get.
//!
//! It takes a table as the steps of its plan, one at a time, as a plane with maps in the kernel does.

use std::collections::BTreeMap;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lemonade_common::hash::flow_hash;
use lemonade_common::{BackendIx, FlowKey, FrontendIx};

use crate::BoxFuture;
use crate::control::plan::{MapOp, plan};
use crate::control::table::{BackendEntry, DispatchTable, FrontendEntry, PoolEntry};
use crate::model::Name;
use crate::model::config::Protocol;
use crate::proxy::error::ApplyError;
use crate::proxy::port::{Capabilities, Connection, DrainScope, PlaneCounters, ProxyService, Which};

#[cfg(test)]
mod tests;

/// What a plane's maps hold.
#[derive(Clone, Debug, Default)]
pub struct Image {
    backends: BTreeMap<BackendIx, BackendEntry>,
    pools: BTreeMap<Name, Arc<PoolEntry>>,
    frontends: BTreeMap<FrontendIx, Arc<FrontendEntry>>,
    listeners: BTreeMap<(Protocol, SocketAddr), Arc<FrontendEntry>>,
}

impl Image {
    /// Takes one step.
    pub fn apply(&mut self, op: MapOp) {
        match op {
            MapOp::AddBackend(entry) | MapOp::SetBackend { after: entry, .. } => {
                self.backends.insert(entry.ix, entry);
            }
            MapOp::PutPool { after, .. } => {
                self.pools.insert(after.pool.name.clone(), after);
            }
            MapOp::PutFrontend { after, .. } => {
                self.frontends.insert(after.ix, after);
            }
            MapOp::Listen { address, after, .. } => {
                self.listeners.insert((after.frontend.protocol, address), after);
            }
            MapOp::Unlisten { address, before } => {
                self.listeners.remove(&(before.frontend.protocol, address));
            }
            MapOp::RemoveFrontend(entry) => {
                self.frontends.remove(&entry.ix);
            }
            MapOp::RemovePool(entry) => {
                self.pools.remove(&entry.pool.name);
            }
            MapOp::RemoveBackend(entry) => {
                self.backends.remove(&entry.ix);
            }
        }
    }

    /// Backend of a TCP flow from `client` to `address`, by flow hash among the candidates of its pool.
    pub fn answer(&self, client: SocketAddr, address: SocketAddr) -> Option<BackendIx> {
        let candidates = &self.listeners.get(&(Protocol::Tcp, address))?.pool.candidates;
        let slots = u64::try_from(candidates.len()).ok().filter(|&slots| slots > 0)?;
        let slot = flow_hash(&FlowKey::tcp(client, address), 0) % slots;
        let candidate = candidates.get(usize::try_from(slot).ok()?)?;
        self.backends.contains_key(&candidate.ix).then_some(candidate.ix)
    }
}

/// A plane that keeps an [`Image`] and no connection.
#[derive(Debug, Default)]
pub struct ModelPlane {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    table: Arc<DispatchTable>,
    image: Image,
}

impl ModelPlane {
    /// Backend of a flow, or `None` if nobody listens or none may be picked.
    pub fn answer(&self, client: SocketAddr, address: SocketAddr) -> Option<BackendIx> {
        self.state().image.answer(client, address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProxyService for ModelPlane {
    fn offers(&self) -> Capabilities {
        Capabilities { relays: Vec::new() }
    }

    fn apply(&self, table: Arc<DispatchTable>) -> Result<(), ApplyError> {
        let mut state = self.state();
        for op in plan(&state.table, &table) {
            state.image.apply(op);
        }
        state.table = table;
        Ok(())
    }

    fn drain(&self, scope: DrainScope, _deadline: Duration) -> BoxFuture<u64> {
        self.state().image.listeners.retain(|_, entry| match &scope {
            DrainScope::All => false,
            DrainScope::Removed { frontends, .. } => !frontends.contains(&entry.frontend.name),
        });
        Box::pin(ready(0))
    }

    fn observe(&self) -> PlaneCounters {
        let state = self.state();
        let listeners = state.image.listeners.iter();
        PlaneCounters {
            listeners: listeners
                .map(|(&(_, address), entry)| (entry.frontend.name.clone(), address))
                .collect(),
            live: 0,
            table_version: state.table.version,
        }
    }

    fn connections(&self, _which: Which, _such: &dyn Fn(&Connection) -> bool) -> Vec<Connection> {
        Vec::new()
    }
}
