//! Where in the table a connection stands that was made by a process before this one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lemonade_common::{BackendIx, FrontendIx};

use super::table::{BackendEntry, BackendId, DispatchTable, FrontendEntry, PoolEntry};
use crate::model::config::{Protocol, Status};
use crate::model::{Backend, Frontend, Name, Pool, Target};
use crate::strategy;

/// Name of a frontend, pool or backend that is no longer configured.
pub const GONE: &str = "gone";

/// A connection that a former process has made.
#[derive(Clone, Copy, Debug)]
pub struct Former {
    /// Address that its client used.
    pub local: SocketAddr,
    /// Address of its backend.
    pub backend: SocketAddr,
    /// Time for which it may be idle.
    pub idle: Duration,
}

/// Entry and position of the backend for a connection of the frontend that `is` the one. What is no longer configured gets
/// an entry of its own outside the table; `None` if the table is empty.
pub fn place(
    table: &DispatchTable,
    former: &Former,
    is: impl Fn(&Name) -> bool,
) -> Option<(Arc<FrontendEntry>, usize)> {
    let known = table.frontends.values().find(|entry| is(&entry.frontend.name));
    let known = known.filter(|entry| entry.frontend.protocol == Protocol::Tcp);
    if let Some(entry) = known {
        let at = |backend: &BackendEntry| backend.id.address(former.local.port()) == former.backend;
        if let Some(position) = entry.pool.backends.iter().position(at) {
            return Some((Arc::clone(entry), position));
        }
    }
    let pool = gone_pool(&table.pools.values().next()?.pool, former.backend);
    let entry = match known {
        Some(known) => FrontendEntry {
            ix: known.ix,
            frontend: Arc::clone(&known.frontend),
            pool,
            cell: Arc::clone(&known.cell),
        },
        None => FrontendEntry {
            ix: FrontendIx(u32::MAX),
            frontend: gone_frontend(&table.frontends.values().next()?.frontend, former),
            pool,
            cell: Arc::default(),
        },
    };
    Some((Arc::new(entry), 0))
}

fn gone_frontend(any: &Frontend, former: &Former) -> Arc<Frontend> {
    Arc::new(Frontend {
        name: Name::new(GONE),
        listen: vec![former.local],
        pool: Name::new(GONE),
        idle_timeout: former.idle,
        ..any.clone()
    })
}

fn gone_pool(any: &Pool, address: SocketAddr) -> Arc<PoolEntry> {
    let name = Name::new(GONE);
    let backend = Backend {
        name: name.clone(),
        target: Target::Address(address.ip(), Some(address.port())),
        weight: 0,
        max_connections: 0,
        enabled: false,
    };
    let id =
        BackendId { pool: name.clone(), name: name.clone(), ip: address.ip(), port: Some(address.port()) };
    let pool = Pool { name, backends: vec![backend.clone()], ..any.clone() };
    Arc::new(PoolEntry {
        strategy: strategy::build(pool.strategy, &[]),
        pool: Arc::new(pool),
        backends: vec![BackendEntry {
            ix: BackendIx(u32::MAX),
            id,
            backend,
            status: Status::Down,
            cell: Arc::default(),
        }],
        candidates: Vec::new(),
        cell: Arc::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::compile::tests::{backend, config, frontend, next, pool};
    use crate::health::port::HealthView;

    #[test]
    fn a_connection_finds_its_frontend_and_backend_or_gets_its_own() {
        let mut other = backend("b", 1);
        other.target = Target::Address("192.0.2.9".parse().unwrap(), Some(81));
        let config = config([pool("p", [backend("a", 1), other])], [frontend("f", 80, "p")]);
        let table = next(&config, &HealthView::default(), &DispatchTable::default());
        let entry = table.frontends.values().next().unwrap();
        let local = "192.0.2.1:80".parse().unwrap();
        let former = |backend| Former { local, backend, idle: Duration::from_secs(9) };
        let b = former(entry.pool.backends[1].id.address(local.port()));
        let named = |name: &'static str| move |own: &Name| own.as_str() == name;

        let (found, position) = place(&table, &b, named("f")).unwrap();
        assert!(Arc::ptr_eq(&found, entry) && position == 1);

        let elsewhere = former("192.0.2.77:9".parse().unwrap());
        let (found, position) = place(&table, &elsewhere, named("f")).unwrap();
        assert!(Arc::ptr_eq(&found.cell, &entry.cell), "it counts for its frontend");
        assert_eq!(found.pool.backends[position].id.address(80), elsewhere.backend);

        let (found, _) = place(&table, &b, named("former")).unwrap();
        assert!(!Arc::ptr_eq(&found.cell, &entry.cell));
        assert_eq!((found.frontend.name.as_str(), found.frontend.idle_timeout.as_secs()), (GONE, 9));
        assert!(place(&DispatchTable::default(), &b, named("f")).is_none());
    }
}
