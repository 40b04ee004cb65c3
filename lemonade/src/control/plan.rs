//! What changes between two dispatch tables, in an order in which every step is safe.

mod words;

pub use words::process_changes;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::config::Protocol;

use super::table::{BackendEntry, DispatchTable, FrontendEntry, PoolEntry};

/// One step from a table to the next; its text is a line of the journal.
///
/// Entries come whole and immutable: a flow is routed by its listening address to a frontend entry, which holds its
/// pool entry. So a step that puts an entry moves no flow, and [`MapOp::Listen`] moves all flows of one address at once.
#[derive(Clone, Debug)]
pub enum MapOp {
    /// A backend comes.
    AddBackend(BackendEntry),
    /// A backend's settings or status change.
    SetBackend {
        /// As it was.
        before: BackendEntry,
        /// As it will be.
        after: BackendEntry,
    },
    /// A pool comes, or changes in settings, backends or candidates.
    PutPool {
        /// As it was; `None`: it is new.
        before: Option<Arc<PoolEntry>>,
        /// As it will be.
        after: Arc<PoolEntry>,
    },
    /// A frontend comes, or changes in settings or pool.
    PutFrontend {
        /// As it was; `None`: it is new.
        before: Option<Arc<FrontendEntry>>,
        /// As it will be.
        after: Arc<FrontendEntry>,
    },
    /// New flows to an address go by this entry from now on.
    Listen {
        /// Address.
        address: SocketAddr,
        /// By which they went; `None`: nobody listened.
        before: Option<Arc<FrontendEntry>>,
        /// By which they go.
        after: Arc<FrontendEntry>,
    },
    /// Nobody listens on an address any more.
    Unlisten {
        /// Address.
        address: SocketAddr,
        /// By which flows to it went.
        before: Arc<FrontendEntry>,
    },
    /// A frontend leaves.
    RemoveFrontend(Arc<FrontendEntry>),
    /// A pool leaves.
    RemovePool(Arc<PoolEntry>),
    /// A backend leaves.
    RemoveBackend(BackendEntry),
}

/// Steps from `previous` to `next`: backends, pools and frontends come and change, listeners move, then what is left
/// over goes. After any number of them each flow is answered as in one of the two tables.
///
/// Entries that the tables share are passed over, so the cost follows the change.
pub fn plan(previous: &DispatchTable, next: &DispatchTable) -> Vec<MapOp> {
    let mut ops = Vec::new();
    let mut gone = Vec::new();
    let changed_pools: Vec<_> = next
        .pools
        .iter()
        .map(|(name, after)| (previous.pools.get(name), after))
        .filter(|(before, after)| !before.is_some_and(|before| Arc::ptr_eq(before, after)))
        .collect();
    for (before, after) in &changed_pools {
        backends(before.map_or(&[], |before| &before.backends), &after.backends, &mut ops, &mut gone);
    }
    ops.extend(
        changed_pools
            .iter()
            .map(|(before, after)| MapOp::PutPool { before: before.cloned(), after: Arc::clone(after) }),
    );
    let left_pools: Vec<_> = previous
        .pools
        .iter()
        .filter(|(name, _)| !next.pools.contains_key(*name))
        .map(|(_, pool)| pool)
        .collect();
    for pool in &left_pools {
        backends(&pool.backends, &[], &mut ops, &mut gone);
    }
    let left_frontends = frontends(previous, next, &mut ops);
    ops.extend(left_frontends.into_iter().map(MapOp::RemoveFrontend));
    ops.extend(left_pools.into_iter().map(|pool| MapOp::RemovePool(Arc::clone(pool))));
    ops.extend(gone.into_iter().map(MapOp::RemoveBackend));
    ops
}

/// Steps for the backends of one pool; those that leave are put into `gone`, for the end.
fn backends(
    before: &[BackendEntry],
    after: &[BackendEntry],
    ops: &mut Vec<MapOp>,
    gone: &mut Vec<BackendEntry>,
) {
    let find = |entries: &[BackendEntry], entry: &BackendEntry| {
        entries.binary_search_by(|other| other.id.cmp(&entry.id)).ok()
    };
    for entry in after {
        match find(before, entry).map(|found| &before[found]) {
            None => ops.push(MapOp::AddBackend(entry.clone())),
            Some(was) if was.backend != entry.backend || was.status != entry.status => {
                ops.push(MapOp::SetBackend { before: was.clone(), after: entry.clone() });
            }
            Some(_) => {}
        }
    }
    gone.extend(before.iter().filter(|entry| find(after, entry).is_none()).cloned());
}

/// Steps for frontends and their listeners; returns the frontends that leave.
fn frontends(
    previous: &DispatchTable,
    next: &DispatchTable,
    ops: &mut Vec<MapOp>,
) -> Vec<Arc<FrontendEntry>> {
    let differing = |table: &DispatchTable, other: &DispatchTable| -> Vec<Arc<FrontendEntry>> {
        let same = |entry: &Arc<FrontendEntry>| {
            other.frontends.get(&entry.ix).is_some_and(|there| Arc::ptr_eq(there, entry))
        };
        table.frontends.values().filter(|entry| !same(entry)).map(Arc::clone).collect()
    };
    let (old, new) = (differing(previous, next), differing(next, previous));
    ops.extend(new.iter().map(|after| MapOp::PutFrontend {
        before: previous.frontends.get(&after.ix).cloned(),
        after: Arc::clone(after),
    }));
    let mut left = listeners(&old);
    for (key, after) in listeners(&new) {
        ops.push(MapOp::Listen { address: key.1, before: left.remove(&key), after });
    }
    ops.extend(left.into_iter().map(|((_, address), before)| MapOp::Unlisten { address, before }));
    old.into_iter().filter(|entry| !next.frontends.contains_key(&entry.ix)).collect()
}

fn listeners(entries: &[Arc<FrontendEntry>]) -> BTreeMap<(Protocol, SocketAddr), Arc<FrontendEntry>> {
    let of = |entry: &Arc<FrontendEntry>| {
        let entry = Arc::clone(entry);
        let addresses = entry.frontend.listen.clone().into_iter();
        addresses.map(move |address| ((entry.frontend.protocol, address), Arc::clone(&entry)))
    };
    entries.iter().flat_map(of).collect()
}
