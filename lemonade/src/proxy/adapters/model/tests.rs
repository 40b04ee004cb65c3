use std::collections::BTreeSet;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::control::compile::tests::{backend, config, frontend, next, pool};
use crate::health::port::HealthView;
use crate::model::config::{Protocol, Status, WhenAllDown};
use crate::model::{Backend, Config, Frontend, Pool, StrategyKind};

const PORTS: [u16; 4] = [80, 81, 82, 83];

/// One change of the world: a configuration and which backends, by position, are down.
#[derive(Clone, Debug)]
struct Change {
    config: Arc<Config>,
    down: Vec<bool>,
}

fn backends() -> impl Strategy<Value = Vec<Backend>> {
    let one = (0_u8..4, 0_u32..3, proptest::bool::weighted(0.8));
    btree_map(0_u8..4, one, 1..4).prop_map(|backends| {
        let named = |(name, (host, weight, enabled)): (u8, (u8, u32, bool))| Backend {
            weight,
            enabled,
            ..backend(&format!("b{name}"), host)
        };
        backends.into_iter().map(named).collect()
    })
}

fn pools() -> impl Strategy<Value = Vec<Pool>> {
    let kind = prop_oneof![Just(StrategyKind::RoundRobin), Just(StrategyKind::Adaptive)];
    let choice = prop_oneof![Just(WhenAllDown::Refuse), Just(WhenAllDown::TryAll)];
    vec((kind, choice, backends()), 3).prop_map(|pools| {
        let named = |(name, (strategy, when_all_down, backends))| Pool {
            strategy,
            when_all_down,
            ..pool(&format!("p{name}"), backends)
        };
        (0..3).zip(pools).map(named).collect()
    })
}

/// Frontends that share the ports out among themselves in any way, so that ports change hands.
fn frontends() -> impl Strategy<Value = Vec<Frontend>> {
    (vec(0_usize..4, PORTS.len()), vec((0_usize..3, any::<bool>(), any::<bool>()), 3)).prop_map(
        |(owners, settings)| {
            let listen = |owner: usize| {
                let ports = PORTS.iter().zip(&owners).filter(move |(_, other)| **other == owner);
                ports.map(|(&port, _)| ([127, 0, 0, 1], port).into()).collect::<Vec<SocketAddr>>()
            };
            let named = |(name, &(pool, limited, datagrams)): (usize, &(usize, bool, bool))| Frontend {
                protocol: if datagrams { Protocol::Udp } else { Protocol::Tcp },
                listen: listen(name),
                max_connections: u32::from(limited),
                ..frontend(&format!("f{name}"), 0, &format!("p{pool}"))
            };
            settings.iter().enumerate().map(named).filter(|frontend| !frontend.listen.is_empty()).collect()
        },
    )
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let kept_pools = (pools(), frontends(), vec(proptest::bool::weighted(0.25), 12), 0_usize..4);
    vec(kept_pools, 1..8).prop_map(|steps| {
        let mut last: Option<(Vec<Pool>, Vec<Frontend>)> = None;
        let step = |(new_pools, new_frontends, down, keep): (Vec<Pool>, Vec<Frontend>, Vec<bool>, usize)| {
            // Many changes leave one half as it was, or change the health alone.
            let (pools, frontends) = match (keep, last.take()) {
                (1, Some((_, frontends))) => (new_pools, frontends),
                (2, Some((pools, _))) => (pools, new_frontends),
                (3, Some(both)) => both,
                (_, _) => (new_pools, new_frontends),
            };
            last = Some((pools.clone(), frontends.clone()));
            let used = pools.into_iter().filter(|pool| frontends.iter().any(|f| f.pool == pool.name));
            Change { config: config(used, frontends.clone()), down }
        };
        steps.into_iter().map(step).collect()
    })
}

impl Change {
    fn compile(&self, previous: &DispatchTable) -> DispatchTable {
        let backends = previous.pools.values().flat_map(|entry| &entry.backends);
        let health = HealthView {
            statuses: backends
                .zip(&self.down)
                .map(|(entry, &down)| (entry.ix, if down { Status::Down } else { Status::Up }))
                .collect(),
        };
        next(&self.config, &health, previous)
    }
}

/// The tables that a sequence of changes makes, the empty one first.
fn tables(changes: &[Change]) -> Vec<Arc<DispatchTable>> {
    let mut tables = vec![Arc::default()];
    for change in changes {
        let previous: &Arc<DispatchTable> = tables.last().expect("the empty table is there");
        tables.push(Arc::new(change.compile(previous)));
    }
    tables
}

/// The image of a table, built directly.
fn image(table: &DispatchTable) -> Image {
    let backends = table.pools.values().flat_map(|entry| &entry.backends);
    let listeners = table.frontends.values().flat_map(|entry| {
        let protocol = entry.frontend.protocol;
        entry.frontend.listen.iter().map(move |&address| ((protocol, address), Arc::clone(entry)))
    });
    Image {
        backends: backends.map(|entry| (entry.ix, entry.clone())).collect(),
        pools: table.pools.clone(),
        frontends: table.frontends.clone(),
        listeners: listeners.collect(),
    }
}

fn assert_same(seen: &Image, expected: &Image) {
    fn pointers<K: Clone, V>(map: &BTreeMap<K, Arc<V>>) -> Vec<(K, *const V)> {
        map.iter().map(|(key, entry)| (key.clone(), Arc::as_ptr(entry))).collect()
    }
    let backends = |image: &Image| -> Vec<_> {
        image
            .backends
            .values()
            .map(|entry| (entry.ix, entry.id.clone(), entry.backend.clone(), entry.status))
            .collect()
    };
    assert_eq!(backends(seen), backends(expected));
    assert_eq!(pointers(&seen.pools), pointers(&expected.pools));
    assert_eq!(pointers(&seen.frontends), pointers(&expected.frontends));
    assert_eq!(pointers(&seen.listeners), pointers(&expected.listeners));
}

/// Nothing in a map points to what is not in a map.
fn assert_whole(image: &Image) {
    for entry in image.listeners.values() {
        assert!(image.frontends.contains_key(&entry.ix), "{} listens and is not there", entry.frontend.name);
        for candidate in &entry.pool.candidates {
            assert!(
                image.backends.contains_key(&candidate.ix),
                "{} is picked and is not there",
                candidate.ix
            );
        }
    }
    for entry in image.frontends.values() {
        assert!(image.pools.contains_key(&entry.frontend.pool), "{} has no pool", entry.frontend.name);
    }
}

fn flows() -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
    let clients = (1000..1012).map(|port| SocketAddr::from(([198, 51, 100, 7], port)));
    clients.flat_map(|client| PORTS.map(|port| (client, SocketAddr::from(([127, 0, 0, 1], port)))))
}

proptest! {
    /// P1: the plan leads from the image of one table to that of the other.
    #[test]
    fn a_plan_arrives(changes in changes()) {
        for pair in tables(&changes).windows(2) {
            let mut seen = image(&pair[0]);
            plan(&pair[0], &pair[1]).into_iter().for_each(|op| seen.apply(op));
            assert_same(&seen, &image(&pair[1]));
        }
    }

    /// P2: on the way each flow gets the backend of one of the two tables, and no map dangles.
    #[test]
    fn every_step_is_safe(changes in changes()) {
        for pair in tables(&changes).windows(2) {
            let (before, after) = (image(&pair[0]), image(&pair[1]));
            let mut seen = before.clone();
            for op in plan(&pair[0], &pair[1]) {
                let words = op.to_string();
                seen.apply(op);
                assert_whole(&seen);
                for (client, address) in flows() {
                    let answer = seen.answer(client, address);
                    prop_assert!(
                        [before.answer(client, address), after.answer(client, address)].contains(&answer),
                        "after \"{words}\" {client} at {address} gets {answer:?}"
                    );
                }
            }
        }
    }

    /// P3: no change, no step; also when the same text was read and compiled again.
    #[test]
    fn nothing_to_do_is_nothing_done(changes in changes()) {
        let tables = tables(&changes);
        for table in &tables {
            prop_assert!(plan(table, table).is_empty());
        }
        let (last, change) = (&tables[tables.len() - 1], &changes[changes.len() - 1]);
        let backends = last.pools.values().flat_map(|entry| &entry.backends);
        let health = HealthView { statuses: backends.map(|entry| (entry.ix, entry.status)).collect() };
        let again = config(
            change.config.pools.values().map(|pool| (**pool).clone()),
            change.config.frontends.values().map(|frontend| (**frontend).clone()),
        );
        prop_assert!(plan(last, &next(&again, &health, last)).is_empty());
    }

    /// P4: an index stands for one backend or frontend for ever, and its cell with it.
    #[test]
    fn an_index_keeps_its_meaning(changes in changes()) {
        let mut meanings = BTreeMap::new();
        let mut given = BTreeSet::new();
        for table in tables(&changes) {
            for entry in table.pools.values().flat_map(|entry| &entry.backends) {
                let meaning = (entry.id.clone(), Arc::as_ptr(&entry.cell));
                prop_assert_eq!(meanings.entry(entry.ix).or_insert_with(|| meaning.clone()), &meaning);
                prop_assert!(entry.ix.0 < table.next_ix);
                given.insert(entry.ix.0);
            }
            for (ix, entry) in &table.frontends {
                prop_assert_eq!(ix, &entry.ix);
                prop_assert!(ix.0 < table.next_ix && !given.contains(&ix.0), "{ix} is a backend's too");
            }
        }
    }

    /// The plane as a whole ends where the last table is, whatever came before.
    #[test]
    fn the_plane_follows_the_table(changes in changes()) {
        let plane = ModelPlane::default();
        for table in tables(&changes) {
            let expected = image(&table);
            plane.apply(Arc::clone(&table)).expect("it binds nothing");
            prop_assert_eq!(plane.observe().table_version, table.version);
            for (client, address) in flows() {
                prop_assert_eq!(plane.answer(client, address), expected.answer(client, address));
            }
        }
    }
}

#[test]
fn a_drained_frontend_answers_no_more() {
    let settings = config([pool("p", [backend("a", 1)])], [frontend("f", 80, "p"), frontend("g", 81, "p")]);
    let plane = ModelPlane::default();
    plane
        .apply(Arc::new(next(&settings, &HealthView::default(), &DispatchTable::default())))
        .expect("it binds nothing");
    let client = ([198, 51, 100, 7], 5000).into();
    let answers = || [80, 81].map(|port| plane.answer(client, ([127, 0, 0, 1], port).into()).is_some());
    assert_eq!(answers(), [true, true]);
    drop(plane.drain(
        DrainScope::Removed { frontends: [Name::new("f")].into(), backends: [].into() },
        Duration::ZERO,
    ));
    assert_eq!(answers(), [false, true]);
    drop(plane.drain(DrainScope::All, Duration::ZERO));
    assert_eq!(answers(), [false, false]);
}
