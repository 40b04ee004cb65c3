use std::net::IpAddr;
use std::time::Duration;

use super::*;
use crate::control::plan::plan;
use crate::model::StrategyKind;
use crate::model::config::{
    AccessLog, Admin, Health, HealthKind, Log, LogFormat, Protocol, RelayChoice, Runtime, WhenAllDown,
};

/// A configuration of these pools and frontends, the rest as by default.
pub(crate) fn config(
    pools: impl IntoIterator<Item = Pool>,
    frontends: impl IntoIterator<Item = Frontend>,
) -> Arc<Config> {
    Arc::new(Config {
        runtime: Runtime {
            workers: None,
            drain_timeout: Duration::from_secs(30),
            lame_duck: Duration::ZERO,
            max_connections: None,
            state_dir: None,
            hash_seed: None,
            relay_buffer: 65_536,
            probes_per_second: 100,
        },
        admin: Admin { socket: None, listen: None },
        telemetry: crate::model::config::Telemetry::default(),
        log: Log { level: "info".into(), format: LogFormat::Auto, access: AccessLog::Off },
        frontends: frontends.into_iter().map(|entry| (entry.name.clone(), Arc::new(entry))).collect(),
        pools: pools.into_iter().map(|entry| (entry.name.clone(), Arc::new(entry))).collect(),
    })
}

pub(crate) fn frontend(name: &str, port: u16, pool: &str) -> Frontend {
    Frontend {
        name: Name::new(name),
        listen: vec![([127, 0, 0, 1], port).into()],
        protocol: Protocol::Tcp,
        pool: Name::new(pool),
        forward: None,
        relay: RelayChoice::Auto,
        accelerate_cgroup: None,
        max_connections: 0,
        connect_timeout: Duration::from_secs(1),
        hedge_after: None,
        idle_timeout: Duration::from_secs(60),
        keepalive: None,
        user_timeout: None,
    }
}

pub(crate) fn pool(name: &str, backends: impl IntoIterator<Item = Backend>) -> Pool {
    Pool {
        name: Name::new(name),
        strategy: StrategyKind::RoundRobin,
        retries: 1,
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
        backends: backends.into_iter().collect(),
    }
}

pub(crate) fn backend(name: &str, host: u8) -> Backend {
    Backend {
        name: Name::new(name),
        target: Target::Address(IpAddr::from([10, 0, 0, host]), Some(80)),
        weight: 1,
        max_connections: 0,
        enabled: true,
    }
}

pub(crate) fn next(config: &Arc<Config>, health: &HealthView, previous: &DispatchTable) -> DispatchTable {
    compile(config, previous.config_version + 1, health, &Resolution::default(), previous)
}

fn first(config: &Arc<Config>) -> DispatchTable {
    next(config, &HealthView::default(), &DispatchTable::default())
}

fn entry<'a>(table: &'a DispatchTable, pool: &str, backend: &str) -> &'a BackendEntry {
    let mut backends = table.pools[pool].backends.iter();
    backends.find(|entry| entry.id.name.as_str() == backend).expect("it was configured")
}

fn candidates(table: &DispatchTable, pool: &str) -> Vec<String> {
    let entry = &table.pools[pool];
    entry
        .candidates
        .iter()
        .inspect(|candidate| assert_eq!(entry.backends[candidate.position].ix, candidate.ix))
        .map(|candidate| entry.backends[candidate.position].id.name.to_string())
        .collect()
}

fn health(down: &[BackendIx]) -> HealthView {
    HealthView { statuses: down.iter().map(|&ix| (ix, Status::Down)).collect() }
}

#[test]
fn backends_are_ordered_by_identity_and_ids_differ() {
    let table =
        first(&config([pool("web", [backend("b", 2), backend("a", 9)])], [frontend("f", 8080, "web")]));
    assert_eq!((table.version, table.config_version), (1, 1));
    assert_eq!(candidates(&table, "web"), ["a", "b"]);
    let mut ids: Vec<u32> = table.pools["web"].backends.iter().map(|entry| entry.ix.0).collect();
    ids.extend(table.frontends.keys().map(|ix| ix.0));
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2]);
    assert_eq!(table.next_ix, 3);
}

#[test]
fn what_stays_keeps_its_index_and_its_counters_and_what_leaves_is_closed() {
    let before =
        first(&config([pool("web", [backend("a", 1), backend("b", 2)])], [frontend("f", 8080, "web")]));
    entry(&before, "web", "b").cell.opened.store(7, Ordering::Relaxed);
    before.pools["web"].cell.cursor.store(5, Ordering::Relaxed);
    let settings = config([pool("web", [backend("b", 2), backend("c", 3)])], [frontend("f", 8081, "web")]);
    let after = next(&settings, &HealthView::default(), &before);
    let (old, kept) = (entry(&before, "web", "b"), entry(&after, "web", "b"));
    assert_eq!(kept.ix, old.ix);
    assert!(Arc::ptr_eq(&kept.cell, &old.cell));
    assert!(Arc::ptr_eq(&before.pools["web"].cell, &after.pools["web"].cell), "turns go on");
    assert!(entry(&after, "web", "c").ix.0 >= before.next_ix, "a new one takes a new index");
    let (old, kept) = (before.frontends.first_key_value(), after.frontends.first_key_value());
    let ((old_ix, old), (kept_ix, kept)) = (old.expect("one"), kept.expect("one"));
    assert_eq!(old_ix, kept_ix);
    assert!(Arc::ptr_eq(&old.cell, &kept.cell));

    commit_cells(&before, &after);
    let closed = |entry: &BackendEntry| entry.cell.closed.load(Ordering::Relaxed);
    assert!(closed(entry(&before, "web", "a")), "workers on the old table do not pick it either");
    assert!(!closed(entry(&after, "web", "b")) && !closed(entry(&after, "web", "c")));

    let without = next(&config([], []), &HealthView::default(), &after);
    commit_cells(&after, &without);
    assert!(closed(entry(&after, "web", "b")), "a pool that leaves takes its backends along");

    let again = next(&settings, &HealthView::default(), &without);
    assert!(entry(&again, "web", "b").ix.0 >= without.next_ix, "an index is never used twice");
}

#[test]
fn disabled_weightless_and_down_backends_are_no_candidates() {
    let off = Backend { enabled: false, ..backend("off", 1) };
    let zero = Backend { weight: 0, ..backend("zero", 2) };
    let settings =
        config([pool("web", [off, zero, backend("ill", 3), backend("well", 4)])], [frontend("f", 1, "web")]);
    let all = first(&settings);
    let view = health(&[entry(&all, "web", "ill").ix]);
    let table = next(&settings, &view, &all);
    assert_eq!(candidates(&table, "web"), ["well"]);
    commit_cells(&all, &table);
    assert!(entry(&table, "web", "ill").cell.closed.load(Ordering::Relaxed));
    let table = next(&settings, &HealthView::default(), &table);
    commit_cells(&all, &table);
    assert!(!entry(&table, "web", "ill").cell.closed.load(Ordering::Relaxed), "it comes back");
    assert!(entry(&table, "web", "off").cell.closed.load(Ordering::Relaxed));
}

#[test]
fn a_change_of_guard_leaves_no_moment_without_an_open_backend() {
    let settings = config([pool("web", [backend("a", 1), backend("b", 2)])], [frontend("f", 1, "web")]);
    let all = first(&settings);
    let (a, b) = (entry(&all, "web", "a"), entry(&all, "web", "b"));
    let only_a = next(&settings, &health(&[b.ix]), &all);
    commit_cells(&all, &only_a);
    let only_b = next(&settings, &health(&[a.ix]), &only_a);
    let closed = || [a, b].map(|entry| entry.cell.closed.load(Ordering::Relaxed));
    assert_eq!(closed(), [false, true]);
    open_cells(&only_a, &only_b);
    assert_eq!(closed(), [false, false], "both tables find their candidate open while they change");
    commit_cells(&only_a, &only_b);
    assert_eq!(closed(), [true, false]);
}

#[test]
fn fail_open_tries_all_that_are_enabled_once_none_is_up() {
    let zero = Backend { weight: 0, ..backend("zero", 3) };
    let open =
        Pool { when_all_down: WhenAllDown::TryAll, ..pool("web", [backend("a", 1), backend("b", 2), zero]) };
    let settings = config([open.clone()], [frontend("f", 1, "web")]);
    let up = first(&settings);
    let (a, b) = (entry(&up, "web", "a").ix, entry(&up, "web", "b").ix);
    assert_eq!(candidates(&next(&settings, &health(&[a]), &up), "web"), ["b"]);
    assert_eq!(candidates(&next(&settings, &health(&[a, b]), &up), "web"), ["a", "b"]);
    let refuse = config([Pool { when_all_down: WhenAllDown::Refuse, ..open }], [frontend("f", 1, "web")]);
    assert_eq!(candidates(&next(&refuse, &health(&[a, b]), &up), "web"), Vec::<String>::new());
}

#[test]
fn a_host_is_one_backend_per_address_and_none_before_it_resolves() {
    let host = Backend { target: Target::Host("db.local".into(), None), ..backend("db", 0) };
    let settings = config([pool("db", [host])], [frontend("f", 5432, "db")]);
    let empty = first(&settings);
    assert!(empty.pools["db"].backends.is_empty());
    let resolved = |hosts: &[u8]| Resolution {
        hosts: [("db.local".into(), hosts.iter().map(|&host| IpAddr::from([10, 0, 0, host])).collect())]
            .into(),
    };
    let two = compile(&settings, 1, &HealthView::default(), &resolved(&[1, 2]), &empty);
    assert_eq!(two.pools["db"].backends.len(), 2);
    assert_eq!(two.pools["db"].backends[0].id.address(5432), ([10, 0, 0, 1], 5432).into());
    let moved = compile(&settings, 1, &HealthView::default(), &resolved(&[2, 3]), &two);
    assert_eq!(moved.pools["db"].backends[0].ix, two.pools["db"].backends[1].ix);
    let same = compile(&settings, 1, &HealthView::default(), &resolved(&[2, 3]), &moved);
    assert!(Arc::ptr_eq(&same.pools["db"], &moved.pools["db"]));
}

#[test]
fn only_what_changed_is_built_anew() {
    let pools = || [pool("api", [backend("a", 1)]), pool("web", [backend("a", 2), backend("b", 3)])];
    let frontends = || [frontend("f", 1, "api"), frontend("g", 2, "web")];
    let before = first(&config(pools(), frontends()));
    let shared = |after: &DispatchTable, pool: &str, name: &str| {
        let find = |table: &DispatchTable| {
            let mut entries = table.frontends.values();
            entries.find(|entry| entry.frontend.name.as_str() == name).map(Arc::clone).expect("one")
        };
        (Arc::ptr_eq(&before.pools[pool], &after.pools[pool]), Arc::ptr_eq(&find(&before), &find(after)))
    };
    let read_again = next(&config(pools(), frontends()), &HealthView::default(), &before);
    assert_eq!(shared(&read_again, "api", "f"), (true, true));
    assert_eq!(shared(&read_again, "web", "g"), (true, true));
    let ill = next(&config(pools(), frontends()), &health(&[entry(&before, "web", "b").ix]), &before);
    assert_eq!(shared(&ill, "api", "f"), (true, true));
    assert_eq!(shared(&ill, "web", "g"), (false, false));
    let unknown = health(&[BackendIx(4000)]);
    assert_eq!(shared(&next(&config(pools(), frontends()), &unknown, &before), "web", "g"), (true, true));
}

#[test]
fn one_change_among_ten_thousand_backends_builds_one_pool() {
    let settings = |changed: u32| {
        let weight = |p, b| if (p, b) == (500, 5) { changed } else { 1 };
        let backends =
            |p| (0..10).map(move |b| Backend { weight: weight(p, b), ..backend(&format!("backend{b}"), b) });
        let pools = (0..1000).map(|p| pool(&format!("pool{p}"), backends(p)));
        let frontends = (0..1000).map(|p| frontend(&format!("front{p}"), 1000 + p, &format!("pool{p}")));
        config(pools, frontends)
    };
    let before = first(&settings(1));
    let after = next(&settings(2), &HealthView::default(), &before);
    let built = |(name, entry): &(&Name, &Arc<PoolEntry>)| !Arc::ptr_eq(&before.pools[*name], entry);
    let names: Vec<_> = after.pools.iter().filter(built).map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["pool500"]);
    assert_eq!(plan(&before, &after).len(), 4, "backend, pool, frontend, listener");
}

#[test]
fn equal_inputs_compile_to_equal_tables() {
    let settings = || config([pool("web", [backend("b", 2), backend("a", 1)])], [frontend("f", 1, "web")]);
    let told = |table: &DispatchTable| -> Vec<_> {
        let backends = table.pools.values().flat_map(|entry| &entry.backends);
        backends.map(|entry| (entry.ix, entry.id.clone(), entry.status)).collect()
    };
    assert_eq!(told(&first(&settings())), told(&first(&settings())));
}
