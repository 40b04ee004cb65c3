//! A small table to read counters from, for tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lemonade_common::{BackendIx, FlowKey, FrontendIx};

use crate::control::table::{BackendEntry, BackendId, DispatchTable, FrontendEntry, PoolEntry};
use crate::control::{ControlState, Reload};
use crate::metrics::port::{AccessRecord, Decision, End, Failed, Fault, Route};
use crate::model::config::{
    AccessLog, Admin, Backend, Config, Frontend, Health, HealthKind, Log, LogFormat, Pool, Protocol,
    RelayChoice, Runtime, Status, StrategyKind, Target, Telemetry, WhenAllDown,
};
use crate::model::{BackendCell, FrontendCell, Name, PoolCell};
use crate::strategy::port::{Basis, Lowering, Pick, PoolView, StrategyService};

#[derive(Debug)]
struct Never;

impl StrategyService for Never {
    fn strategy(&self) -> StrategyKind {
        StrategyKind::RoundRobin
    }

    fn pick<'a>(&self, _view: &PoolView<'a>, _flow: &FlowKey) -> Option<Pick<'a>> {
        None
    }

    fn lower(&self, _view: &PoolView<'_>) -> Lowering {
        Lowering::NotOffloadable("it is for tests")
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text)
}

/// A state whose table has these frontends, all on pool `web`, and these backends in it.
pub(crate) fn state(frontends: &[&str], backends: &[&str]) -> ControlState {
    let pool = pool_entry("web", 0, backends);
    let frontends: BTreeMap<_, _> =
        (100_000..).map(FrontendIx).zip(frontends.iter().map(|name| frontend(name))).collect();
    let config = Config {
        runtime: Runtime {
            workers: Some(2),
            drain_timeout: Duration::from_secs(30),
            lame_duck: Duration::from_secs(2),
            max_connections: None,
            state_dir: None,
            hash_seed: Some("a secret seed".to_owned()),
            relay_buffer: 65_536,
            probes_per_second: 200,
        },
        admin: Admin { socket: None, listen: None },
        log: Log { level: "info".to_owned(), format: LogFormat::Auto, access: AccessLog::On },
        telemetry: Telemetry::default(),
        frontends: frontends.values().map(|frontend| (frontend.name.clone(), Arc::clone(frontend))).collect(),
        pools: BTreeMap::from([(name("web"), Arc::clone(&pool.pool))]),
    };
    let entry = |(ix, frontend): (FrontendIx, Arc<Frontend>)| {
        let entry =
            FrontendEntry { ix, frontend, pool: Arc::clone(&pool), cell: Arc::new(FrontendCell::default()) };
        (ix, Arc::new(entry))
    };
    let table = DispatchTable {
        version: 7,
        config_version: 3,
        config: Some(Arc::new(config)),
        frontends: frontends.into_iter().map(entry).collect(),
        pools: BTreeMap::from([(name("web"), Arc::clone(&pool))]),
        next_ix: 200_000,
        ..DispatchTable::default()
    };
    ControlState {
        table: Arc::new(table),
        accepted: Reload { version: 3, at: SystemTime::UNIX_EPOCH, cause: "start".to_owned() },
        refused: None,
        ..ControlState::at_start(SystemTime::UNIX_EPOCH, Arc::default())
    }
}

/// A pool whose backends have the addresses 192.0.2.N:80 and indices from `first` on; equal names are one host's addresses.
pub(crate) fn pool_entry(pool: &str, first: u32, backends: &[&str]) -> Arc<PoolEntry> {
    let entries: Vec<_> = backends
        .iter()
        .zip(first..)
        .map(|(own, ix)| {
            let [_, _, high, low] = ix.to_be_bytes();
            let ip = std::net::Ipv4Addr::new(192, 0, high.wrapping_add(2), low).into();
            BackendEntry {
                ix: BackendIx(ix),
                id: BackendId { pool: name(pool), name: name(own), ip, port: Some(80) },
                backend: Backend {
                    name: name(own),
                    target: Target::Address(ip, Some(80)),
                    weight: 1,
                    max_connections: 0,
                    enabled: true,
                },
                status: Status::Up,
                cell: Arc::new(BackendCell::default()),
            }
        })
        .collect();
    let settings = Pool {
        name: name(pool),
        strategy: StrategyKind::RoundRobin,
        retries: 2,
        retry_budget: 0.2,
        when_all_down: WhenAllDown::Refuse,
        queue: 0,
        queue_timeout: Duration::from_secs(1),
        source: None,
        health: Health {
            kind: HealthKind::Tcp,
            interval: Duration::from_secs(2),
            fast_interval: Duration::from_millis(500),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            initial: Status::Up,
            port: None,
        },
        backends: entries.iter().map(|entry| entry.backend.clone()).collect(),
    };
    Arc::new(PoolEntry {
        pool: Arc::new(settings),
        backends: entries,
        candidates: Vec::new(),
        strategy: Arc::new(Never),
        cell: Arc::new(PoolCell::default()),
    })
}

fn frontend(own: &str) -> Arc<Frontend> {
    Arc::new(Frontend {
        name: name(own),
        listen: vec!["127.0.0.1:0".parse().expect("a literal address")],
        protocol: Protocol::Tcp,
        pool: name("web"),
        forward: None,
        relay: RelayChoice::Auto,
        accelerate_cgroup: None,
        max_connections: 0,
        connect_timeout: Duration::from_secs(1),
        hedge_after: None,
        idle_timeout: Duration::from_secs(600),
        keepalive: None,
        user_timeout: None,
    })
}

/// A connection that ended well.
pub(crate) fn record(id: u64) -> AccessRecord {
    AccessRecord {
        id,
        started: SystemTime::UNIX_EPOCH,
        duration: Duration::from_millis(1_500),
        frontend: name("web"),
        client: "192.0.2.9:5000".parse().expect("a literal address"),
        local: "127.0.0.1:8080".parse().expect("a literal address"),
        route: Some(Route {
            pool: name("web"),
            backend: name("a"),
            address: "192.0.2.1:80".parse().expect("a literal address"),
            strategy: StrategyKind::RoundRobin,
            candidates: 3,
            attempts: 2,
            hedged: false,
            table_version: 7,
            connect: Duration::from_micros(250),
        }),
        decision: Some(Decision { basis: Basis::Turn(5), rival: None }),
        failed: Box::new([Failed { backend: name("b"), fault: Fault::Refused }]),
        bytes_up: 10,
        bytes_down: 2_048,
        datagrams: None,
        end: End::Closed,
    }
}
