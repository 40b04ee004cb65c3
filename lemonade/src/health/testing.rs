//! Tables for tests.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use lemonade_common::{BackendIx, FlowKey};

use crate::control::table::{BackendEntry, BackendId, DispatchTable, PoolEntry};
use crate::model::config::{Health, HealthKind, Status, WhenAllDown};
use crate::model::{Backend, Name, Pool, StrategyKind, Target};
use crate::strategy::port::{Basis, Lowering, Pick, PoolView, StrategyService};

#[derive(Debug)]
struct First;

impl StrategyService for First {
    fn strategy(&self) -> StrategyKind {
        StrategyKind::RoundRobin
    }

    fn pick<'a>(&self, view: &PoolView<'a>, _flow: &FlowKey) -> Option<Pick<'a>> {
        view.candidates.first().map(|candidate| Pick { candidate, basis: Basis::Only })
    }

    fn lower(&self, _view: &PoolView<'_>) -> Lowering {
        Lowering::NotOffloadable("it is for tests")
    }
}

pub(super) fn health() -> Health {
    Health {
        kind: HealthKind::Tcp,
        interval: Duration::from_secs(2),
        fast_interval: Duration::from_millis(500),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
        initial: Status::Up,
        port: None,
    }
}

pub(super) fn address(ix: u32) -> SocketAddr {
    SocketAddr::new(ip(ix), 9000)
}

fn ip(ix: u32) -> IpAddr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(127, 1, 0, 0)) + ix).into()
}

pub(super) fn pool(name: &str, health: Health, backends: impl IntoIterator<Item = u32>) -> PoolEntry {
    let backends = backends.into_iter().map(|ix| {
        let (pool, own) = (Name::new(name), Name::new(format!("b{ix}")));
        let target = Target::Address(ip(ix), Some(9000));
        BackendEntry {
            ix: BackendIx(ix),
            id: BackendId { pool, name: own.clone(), ip: ip(ix), port: Some(9000) },
            backend: Backend { name: own, target, weight: 1, max_connections: 0, enabled: true },
            status: Status::Up,
            cell: Arc::default(),
        }
    });
    let settings = Pool {
        name: Name::new(name),
        strategy: StrategyKind::RoundRobin,
        retries: 2,
        retry_budget: 0.2,
        when_all_down: WhenAllDown::Refuse,
        queue: 0,
        queue_timeout: Duration::from_secs(1),
        source: None,
        health,
        backends: Vec::new(),
    };
    PoolEntry {
        pool: Arc::new(settings),
        backends: backends.collect(),
        candidates: Vec::new(),
        strategy: Arc::new(First),
        cell: Arc::default(),
    }
}

/// A table of pools with a budget for 1,000 probes a second.
pub(super) fn table(pools: impl IntoIterator<Item = Arc<PoolEntry>>) -> Arc<DispatchTable> {
    let pools: BTreeMap<_, _> = pools.into_iter().map(|entry| (entry.pool.name.clone(), entry)).collect();
    Arc::new(DispatchTable { config: Some(Arc::new(config())), pools, ..DispatchTable::default() })
}

fn config() -> crate::model::Config {
    use crate::model::config::{AccessLog, Admin, Log, LogFormat, Runtime};
    crate::model::Config {
        runtime: Runtime {
            workers: None,
            drain_timeout: Duration::from_secs(30),
            lame_duck: Duration::ZERO,
            max_connections: None,
            state_dir: None,
            hash_seed: None,
            relay_buffer: 65_536,
            probes_per_second: 1000,
        },
        admin: Admin { socket: None, listen: None },
        telemetry: crate::model::config::Telemetry::default(),
        log: Log { level: "info".to_owned(), format: LogFormat::Auto, access: AccessLog::Off },
        frontends: BTreeMap::new(),
        pools: BTreeMap::new(),
    }
}
