use std::net::Ipv4Addr;

use lemonade_common::maglev;
use proptest::prelude::*;

use super::*;
use crate::control::compile::compile;
use crate::control::compile::tests::{backend, config, frontend, next, pool};
use crate::control::image::{Op, steps};
use crate::health::port::HealthView;
use crate::model::config::Status;
use crate::model::forward::{Fallback, Forwarding, Hook, Mode};
use crate::model::{Backend, Frontend, Name, Pool, Resolution, StrategyKind, Target as Place};

fn forwarded(name: &str, port: u16, pool: &str) -> Frontend {
    let forward = Forwarding {
        fallback: Fallback::Proxy,
        hook: Hook::Auto,
        mode: Mode::Nat,
        interfaces: None,
        snat_addresses: None,
        snat_ports: None,
        connection_table: 1_024,
        fragments: Fragments::Drop,
    };
    Frontend {
        listen: vec![([192, 0, 2, 1], port).into()],
        forward: Some(forward),
        ..frontend(name, port, pool)
    }
}

fn in_mode(mode: Mode, frontend: Frontend) -> Frontend {
    let forward = frontend.forward.map(|own| Forwarding { mode, ..own });
    Frontend { forward, ..frontend }
}

fn way() -> Way {
    Way { interface: 7, snat: Ipv4Addr::new(10, 0, 0, 254).into(), first_port: 1_024, ports: 1_000 }
}

/// A host from which every backend is reached.
fn ground(table: &DispatchTable) -> Ground {
    let backends = table.pools.values().flat_map(|pool| &pool.backends);
    Ground { ways: backends.map(|own| (own.ix, Ok(way()))).collect(), ..Ground::default() }
}

fn first(
    pools: impl IntoIterator<Item = Pool>,
    frontends: impl IntoIterator<Item = Frontend>,
) -> DispatchTable {
    next(&config(pools, frontends), &HealthView::default(), &DispatchTable::default())
}

fn lowered(table: &DispatchTable) -> Lowered {
    lower(table, &ground(table), &Image::with_room(8))
}

fn why(table: &DispatchTable, ground: &Ground) -> String {
    let lowered = lower(table, ground, &Image::with_room(8));
    assert_eq!((lowered.image.services.len(), lowered.carried.len()), (0, 0));
    lowered.kept.into_values().next().expect("it is kept")
}

/// The maps of the kernel, changed step by step as the adapter does.
#[derive(Clone, Default)]
struct Maps {
    services: BTreeMap<ServiceKey, Service>,
    targets: BTreeMap<u32, Target>,
    rings: BTreeMap<u32, std::sync::Arc<[u32]>>,
}

impl Maps {
    fn of(image: &Image) -> Self {
        let mut maps = Self::default();
        steps(&Image::default(), image).into_iter().for_each(|op| maps.take(op));
        maps
    }

    fn take(&mut self, op: Op) {
        match op {
            Op::PutTarget(ix, target) => drop(self.targets.insert(ix, target)),
            Op::FillRing(number, slots, _) => {
                let names = |service: &Service| service.ring == number || service.previous == number + 1;
                let named = self.services.values().any(names);
                assert!(!named, "ring {number} is filled under the eyes of packets");
                self.rings.insert(number, slots);
            }
            Op::PutService(key, service) => drop(self.services.insert(key, service)),
            Op::RemoveService(key) => drop(self.services.remove(&key)),
            Op::RemoveTarget(ix) => drop(self.targets.remove(&ix)),
        }
    }

    /// Where a flow of this slot goes; `None`: to the proxy.
    fn answer(&self, key: &ServiceKey, slot: usize) -> Option<Target> {
        let service = self.services.get(key)?;
        let ix = *self.rings.get(&service.ring)?.get(slot)?;
        // What a backend weighs and may have is no place: it may be new while the ring is the one before.
        let place = |target: &Target| Target { weight: 0, most: 0, ..*target };
        (ix != maglev::EMPTY).then(|| self.targets.get(&ix).map(place)).flatten()
    }
}

#[test]
fn a_frontend_becomes_services_with_a_ring_of_its_candidates() {
    let off = Backend { enabled: false, ..backend("off", 3) };
    let table = first([pool("web", [backend("a", 1), backend("b", 2), off])], [forwarded("f", 80, "web")]);
    let Lowered { image, carried, kept } = lowered(&table);
    assert_eq!((carried.len(), kept.len()), (1, 0));
    let key = service_key(Protocol::Tcp, "192.0.2.1:80".parse().unwrap());
    let service = image.services[&key];
    assert_eq!((service.frontend, service.flags), (table.frontends.keys().next().unwrap().0, 0));
    let ring = &image.rings[&service.ring];
    let indices: BTreeSet<u32> = ring.slots.iter().copied().collect();
    let entries = &table.pools["web"].backends;
    assert_eq!(indices, [entries[0].ix.0, entries[1].ix.0].into(), "what is disabled has no slot");
    assert_eq!(image.targets.len(), 3, "live flows of what is disabled go on");
    let target = image.targets[&entries[0].ix.0];
    assert_eq!((target.port, target.interface), (80_u16.to_be_bytes(), 7));
    assert_eq!(target.snat, mapped(way().snat));
}

#[test]
fn weights_and_sources_are_lowered_as_the_strategy_means_them() {
    let two = || [Backend { weight: 3, ..backend("a", 1) }, backend("b", 2)];
    let share = |strategy| {
        let table = first([Pool { strategy, ..pool("web", two()) }], [forwarded("f", 80, "web")]);
        let image = lowered(&table).image;
        let a = table.pools["web"].backends[0].ix.0;
        let service = *image.services.values().next().unwrap();
        let slots = &image.rings[&service.ring].slots;
        let own = slots.iter().filter(|ix| **ix == a).count() as f64 / slots.len() as f64;
        ((own * 100.0).round(), service.flags)
    };
    assert_eq!(share(StrategyKind::RoundRobin), (50.0, 0));
    assert_eq!(share(StrategyKind::WeightedRoundRobin), (75.0, 0));
    assert_eq!(share(StrategyKind::SourceHash), (75.0, BY_SOURCE));
    // Nothing is measured, so weights alone speak.
    assert_eq!(share(StrategyKind::FastestResponseTime), (75.0, 0));
    assert_eq!(share(StrategyKind::Adaptive), (75.0, 0));
    assert_eq!(share(StrategyKind::LeastConnections), (75.0, LEAST_CONNECTIONS));
}

#[test]
fn connections_are_compared_with_those_elsewhere_and_weights_and_what_is_not_seen_is_said() {
    let two = || [Backend { weight: 3, ..backend("a", 1) }, backend("b", 2)];
    let least = Pool { strategy: StrategyKind::LeastConnections, ..pool("web", two()) };
    let other = pool("other", [backend("c", 3)]);
    let table = first([least, other], [forwarded("f", 80, "web"), forwarded("g", 81, "other")]);
    let mut local = ground(&table);
    local.local = table.frontends.keys().copied().collect();
    let Lowered { image, carried, .. } = lower(&table, &local, &Image::with_room(8));
    assert!(carried.values().all(String::is_empty), "{carried:?}");
    let [a, b] = [0, 1].map(|at| table.pools["web"].backends[at].ix.0);
    let compared = image.counting(|ix| if ix == b { 7 } else { 0 });
    let [(_, choices)] = &compared.into_iter().collect::<Vec<_>>()[..] else {
        panic!("one ring is compared")
    };
    let own: Vec<_> = choices.own[..choices.count as usize].iter().collect();
    let told: Vec<_> = own.iter().map(|own| (own.backend, own.weight, own.elsewhere)).collect();
    assert_eq!(told, [(a, 3, 0), (b, 1, 7)]);
    assert_eq!(image.targets[&a].weight, 3);
    // Sockets of this host go by a ring, which does not know what ends.
    let at_connect = |port| service_key(Protocol::Tcp, SocketAddr::from(([192, 0, 2, 1], port))).at_connect();
    assert_eq!([80, 81].map(|port| image.services.contains_key(&at_connect(port))), [false, true]);
    let passing = [in_mode(Mode::DsrIpip, forwarded("f", 80, "web"))];
    let table = first([Pool { strategy: StrategyKind::LeastConnections, ..pool("web", two()) }], passing);
    let said = lowered(&table).carried.into_values().next().expect("it is carried");
    assert!(said.contains("does not see backends' FIN"), "{said}");
}

#[test]
fn limits_are_the_kernels_but_for_sockets_of_this_host() {
    let limited = [Backend { max_connections: 3, ..backend("a", 1) }, backend("b", 2)];
    let frontend = Frontend { max_connections: 5, ..forwarded("f", 80, "web") };
    let table = first([pool("web", limited)], [frontend]);
    let mut local = ground(&table);
    local.local = table.frontends.keys().copied().collect();
    let Lowered { image, carried, .. } = lower(&table, &local, &Image::with_room(8));
    assert_eq!(carried.len(), 1);
    let services: Vec<_> = image.services.iter().map(|(key, own)| (*key, own.most)).collect();
    let key = service_key(Protocol::Tcp, "192.0.2.1:80".parse().unwrap());
    assert_eq!(services, [(key, 5)], "sockets of this host have the proxy");
    let [a, b] = [0, 1].map(|at| table.pools["web"].backends[at].ix.0);
    assert_eq!([a, b].map(|ix| image.targets[&ix].most), [3, 0]);
    let counted = image.counting(|ix| if ix == a { 2 } else { 0 });
    let choices = counted.values().next().expect("backends with limits are compared");
    let told: Vec<_> = choices.own[..2].iter().map(|own| (own.backend, own.elsewhere, own.most)).collect();
    assert_eq!(told, [(a, 2, 3), (b, 0, 0)]);
    let [Op::PutTarget(..), Op::PutTarget(..), Op::FillRing(_, _, choices), ..] =
        &steps(&Image::with_room(8), &image)[..]
    else {
        panic!("targets, then rings")
    };
    assert_eq!(choices.own[0].most, 3, "from the first flow on");
}

#[test]
fn a_slower_backend_has_a_smaller_share() {
    let fast = Pool {
        strategy: StrategyKind::FastestResponseTime,
        ..pool("web", [backend("a", 1), backend("b", 2)])
    };
    let table = first([fast], [forwarded("f", 80, "web")]);
    let entries = &table.pools["web"].backends;
    for (entry, micros) in entries.iter().zip([1_000, 4_000]) {
        entry.cell.connect.observe(std::time::Duration::from_micros(micros), Moment(1));
    }
    let ground = Ground { now: Moment(2), ..ground(&table) };
    let image = lower(&table, &ground, &Image::with_room(8)).image;
    let slots = &image.rings.values().next().unwrap().slots;
    let slow = slots.iter().filter(|ix| **ix == entries[1].ix.0).count() as f64 / slots.len() as f64;
    assert!((0.18..0.22).contains(&slow), "{slow}: a quarter of the other's");
}

#[test]
fn a_ring_of_measured_weights_stays_until_one_is_more_than_a_step_away() {
    let strategy = StrategyKind::FastestResponseTime;
    let fast = Pool { strategy, ..pool("web", [backend("a", 1), backend("b", 2)]) };
    let table = first([fast], [in_mode(Mode::NatGateway, forwarded("f", 80, "web"))]);
    let entries = &table.pools["web"].backends;
    let number = |image: &Image| image.ring_of(&Name::new("web"), false).expect("a ring").0;
    let measured = |before: &Image, micros: [u64; 2]| {
        for (entry, micros) in entries.iter().zip(micros) {
            entry.cell.connect.restart(std::time::Duration::from_micros(micros), Moment(1));
        }
        lower(&table, &ground(&table), before).image
    };
    let image = measured(&Image::with_room(8), [1_000, 1_000]);
    let nearly = measured(&image, [1_000, 1_450]);
    assert_eq!(number(&nearly), number(&image), "half an octave");
    let slower = measured(&nearly, [1_000, 2_100]);
    assert_ne!(number(&slower), number(&image));
    let back = measured(&slower, [1_000, 1_500]);
    assert_eq!(number(&back), number(&slower), "half an octave back");
}

#[test]
fn what_cannot_be_lowered_stays_with_the_proxy_and_says_why() {
    let says = |pool: Pool, frontend: Frontend, expected: &str| {
        let table = first([pool], [frontend]);
        let told = why(&table, &ground(&table));
        assert!(told.contains(expected), "{told}");
    };
    let web = || pool("web", [backend("a", 1)]);
    let f = || forwarded("f", 80, "web");
    let sockets = f().forward.map(|own| Forwarding { hook: Hook::Connect, ..own });
    let least = Pool { strategy: StrategyKind::LeastConnections, ..web() };
    says(least, Frontend { forward: sockets, ..f() }, "of those that hook connect makes the end is not seen");
    let passing = || in_mode(Mode::DsrL2, f());
    let unseen = "max_connections of the frontend counts connections that live, and mode dsr-l2 does not see their ends";
    says(web(), Frontend { max_connections: 5, ..passing() }, unseen);
    let full = Backend { max_connections: 5, ..backend("a", 1) };
    says(pool("web", [full.clone()]), passing(), "max_connections of backend web/a");
    let sockets = f().forward.map(|own| Forwarding { hook: Hook::Connect, ..own });
    says(pool("web", [full]), Frontend { forward: sockets, ..f() }, "hook connect does not see their ends");
    let six = Frontend { listen: vec!["[2001:db8::1]:80".parse().unwrap()], ..f() };
    says(web(), six, "pool web has no IPv6 backend");

    let table = first([web()], [f()]);
    let ix = table.pools["web"].backends[0].ix;
    let mut local = ground(&table);
    local.ways.insert(ix, Err(NoWay::Local));
    assert!(why(&table, &local).contains("(10.0.0.1) is on this host"));
    let blocked = [(*table.frontends.keys().next().unwrap(), "no interface".to_owned())];
    assert_eq!(why(&table, &Ground { blocked: blocked.into(), ..ground(&table) }), "no interface");
    let lowered = lower(&table, &ground(&table), &Image::with_room(0));
    assert!(lowered.kept.into_values().next().unwrap().contains("every ring"));
}

#[test]
fn a_backend_without_a_way_gets_nothing_and_is_named() {
    let table = first([pool("web", [backend("a", 1), backend("b", 2)])], [forwarded("f", 80, "web")]);
    let (a, b) = (table.pools["web"].backends[0].ix, table.pools["web"].backends[1].ix);
    let mut ground = ground(&table);
    ground.ways.insert(a, Err(NoWay::Unreachable("no route leads to 10.0.0.1".to_owned())));
    let Lowered { image, carried, .. } = lower(&table, &ground, &Image::with_room(8));
    assert!(carried.values().next().unwrap().contains("web/a gets nothing: no route"));
    assert!(image.rings.values().all(|ring| ring.slots.iter().all(|ix| *ix == b.0)));
}

#[test]
fn each_ip_version_has_a_ring_of_its_backends() {
    let six = Backend { target: Place::Address("fd00::9".parse().unwrap(), Some(80)), ..backend("six", 9) };
    let both = Frontend {
        listen: vec!["192.0.2.1:80".parse().unwrap(), "[2001:db8::1]:80".parse().unwrap()],
        ..forwarded("f", 80, "web")
    };
    let table = first([pool("web", [backend("four", 1), six])], [both]);
    let image = lowered(&table).image;
    assert_eq!((image.services.len(), image.rings.len()), (2, 2));
    for (key, service) in &image.services {
        let v6 = key.address[..12] != mapped(Ipv4Addr::UNSPECIFIED.into())[..12];
        let ix = image.rings[&service.ring].slots[0];
        let target = image.targets[&ix];
        assert_eq!(target.address[..12] != mapped(Ipv4Addr::UNSPECIFIED.into())[..12], v6);
    }
}

#[test]
fn pools_that_do_not_change_keep_their_ring_and_nothing_is_written() {
    let table = first(
        [pool("web", [backend("a", 1)]), pool("api", [backend("b", 2)])],
        [forwarded("f", 80, "web"), forwarded("g", 81, "web"), forwarded("h", 82, "api")],
    );
    let image = lowered(&table).image;
    assert_eq!(image.rings.len(), 2, "frontends of one pool share its ring");
    let again = lower(&table, &ground(&table), &image).image;
    assert_eq!(again, image);
    assert_eq!(steps(&image, &again), []);
}

#[test]
fn a_flow_that_began_before_a_change_finds_its_backend_by_the_ring_before() {
    let of = |mode, weight| {
        let two = [backend("a", 1), Backend { weight, ..backend("b", 2) }];
        let web = Pool { strategy: StrategyKind::WeightedRoundRobin, ..pool("web", two) };
        first([web], [in_mode(mode, forwarded("f", 80, "web"))])
    };
    let table = of(Mode::DsrIpip, 1);
    let image = lowered(&table).image;
    let service = *image.services.values().next().unwrap();
    assert_eq!((service.mode, service.previous), (Mode::DsrIpip.number(), 0), "there was none before");
    let changed = of(Mode::DsrIpip, 3);
    let after = lower(&changed, &ground(&changed), &image).image;
    let flipped = *after.services.values().next().unwrap();
    assert_eq!((flipped.previous, flipped.ring != service.ring), (service.ring + 1, true));
    assert!(!after.free.contains(&service.ring), "nobody fills it");
    let again = of(Mode::DsrIpip, 5);
    let third = lower(&again, &ground(&again), &after).image;
    assert!(third.free.contains(&service.ring), "one is enough");
    let nat = of(Mode::Nat, 7);
    let fourth = lower(&nat, &ground(&nat), &third).image;
    assert_eq!(fourth.services.values().next().unwrap().previous, 0);
    assert_eq!(fourth.free.len() + fourth.held().len(), 8);
}

#[test]
fn wrapped_ipv4_goes_to_backends_of_either_version() {
    let six = Backend { target: Place::Address("fd00::9".parse().unwrap(), Some(80)), ..backend("six", 9) };
    let both = Frontend {
        listen: vec!["192.0.2.1:80".parse().unwrap(), "[2001:db8::1]:80".parse().unwrap()],
        ..in_mode(Mode::DsrIpip, forwarded("f", 80, "web"))
    };
    let table = first([pool("web", [backend("four", 1), six])], [both]);
    let image = lowered(&table).image;
    let sharing: Vec<usize> =
        image.services.values().map(|own| image.rings[&own.ring].shares.len()).collect();
    assert_eq!(sharing.iter().sum::<usize>(), 3, "{sharing:?}: two for IPv4, one for IPv6");
}

/// Backends by host with weight and whether they are down, whether the source decides, frontends, and their mode.
type Shape = (Vec<(u8, u32, bool)>, bool, u8, usize);

/// Tables that follow each other: strategies, weights, backends, health, frontends and modes change.
fn any_table() -> impl Strategy<Value = Shape> {
    (prop::collection::vec((1_u8..6, 0_u32..4, any::<bool>()), 0..5), any::<bool>(), 0_u8..3, 0_usize..4)
}

fn table_of((backends, by_source, frontends, mode): &Shape, previous: &DispatchTable) -> DispatchTable {
    let mut own: BTreeMap<u8, Backend> = BTreeMap::new();
    for (host, weight, _) in backends {
        own.insert(*host, Backend { weight: *weight, ..backend(&format!("b{host}"), *host) });
    }
    let strategy = if *by_source { StrategyKind::SourceHash } else { StrategyKind::WeightedRoundRobin };
    let web = Pool { strategy, ..pool("web", own.into_values()) };
    let frontends = (0..*frontends)
        .map(|n| in_mode(Mode::ALL[*mode], forwarded(&format!("f{n}"), 80 + u16::from(n), "web")));
    let config = config([web], frontends);
    let table = compile(&config, 1, &HealthView::default(), &Resolution::default(), previous);
    let down: Vec<Name> =
        backends.iter().filter(|(.., down)| *down).map(|(host, ..)| Name::new(format!("b{host}"))).collect();
    let statuses = table.pools["web"]
        .backends
        .iter()
        .filter(|entry| down.contains(&entry.id.name))
        .map(|entry| (entry.ix, Status::Down))
        .collect();
    compile(&config, 1, &HealthView { statuses }, &Resolution::default(), previous)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn each_prefix_of_the_steps_sends_each_flow_where_one_of_the_tables_does(
        tables in prop::collection::vec(any_table(), 2..6),
    ) {
        let (mut table, mut image) = (DispatchTable::default(), Image::with_room(4));
        let (mut maps, mut filled) = (Maps::default(), BTreeMap::new());
        let mut seen: BTreeMap<u32, [u8; 16]> = BTreeMap::new();
        for shape in &tables {
            let next = table_of(shape, &table);
            let after = lower(&next, &ground(&next), &image).image;
            let (from, to) = (Maps::of(&image), Maps::of(&after));
            filled.extend(image.rings.iter().map(|(number, ring)| (*number, ring.slots.clone())));
            let keys: BTreeSet<ServiceKey> =
                image.services.keys().chain(after.services.keys()).copied().collect();
            let slots = (0..maglev::SLOTS as usize).step_by(997);
            for op in steps(&image, &after) {
                maps.take(op);
                for (key, slot) in keys.iter().flat_map(|key| slots.clone().map(move |slot| (key, slot))) {
                    let answer = maps.answer(key, slot);
                    prop_assert!(
                        answer == from.answer(key, slot) || answer == to.answer(key, slot),
                        "{answer:?}"
                    );
                }
            }
            // All of the steps together make the image of the next table.
            prop_assert_eq!(&maps.services, &after.services);
            prop_assert_eq!(&maps.targets, &after.targets);
            for (number, ring) in &after.rings {
                prop_assert_eq!(&maps.rings[number], &ring.slots);
            }
            for before in after.services.values().filter_map(|service| service.previous.checked_sub(1)) {
                prop_assert_eq!(&maps.rings[&before], &filled[&before], "the ring before is as it was");
            }
            for (ix, target) in &after.targets {
                let known = seen.entry(*ix).or_insert(target.address);
                prop_assert_eq!(*known, target.address, "an index means the same backend for ever");
            }
            let numbers: BTreeSet<u32> = after.free.iter().copied().chain(after.held()).collect();
            prop_assert_eq!(after.free.len() + after.held().len(), 4, "none is free and held");
            prop_assert_eq!(numbers, (0..4).collect(), "no ring gets lost");
            (table, image) = (next, after);
        }
    }
}

#[test]
fn what_is_for_sockets_has_keys_that_packets_have_not_and_backends_on_this_host() {
    let hooked = |hook| {
        let asks = forwarded("f", 80, "web");
        let forward = asks.forward.map(|own| Forwarding { hook, ..own });
        first([pool("web", [backend("a", 1), backend("b", 2)])], [Frontend { forward, ..asks }])
    };
    let key = service_key(Protocol::Tcp, "192.0.2.1:80".parse().unwrap());
    let table = hooked(Hook::Connect);
    let ix = *table.frontends.keys().next().unwrap();
    let own = table.pools["web"].backends.iter().map(|own| own.ix);
    // Both backends are on this host, which forbids packets alone.
    let ways = own.map(|ix| (ix, Err(NoWay::Local))).collect();
    let local = Ground { ways, local: [ix].into(), ..Ground::default() };
    let Lowered { image, carried, .. } = lower(&table, &local, &Image::with_room(8));
    assert_eq!(carried.len(), 1);
    assert_eq!(image.services.keys().collect::<Vec<_>>(), [&key.at_connect()]);
    assert_eq!(image.targets.len(), 2);
    let slots = &image.rings[&image.services[&key.at_connect()].ring].slots;
    assert_eq!(slots.iter().copied().collect::<BTreeSet<u32>>().len(), 2);
    // With another hook both are served, by one ring.
    let table = hooked(Hook::Auto);
    let both = Ground { local: [*table.frontends.keys().next().unwrap()].into(), ..ground(&table) };
    let image = lower(&table, &both, &Image::with_room(8)).image;
    assert_eq!(image.services.len(), 2);
    assert_eq!(image.services[&key], image.services[&key.at_connect()]);
    let alone = lower(&table, &ground(&table), &Image::with_room(8)).image;
    assert_eq!(alone.services.keys().collect::<Vec<_>>(), [&key], "nobody names a cgroup");
}
