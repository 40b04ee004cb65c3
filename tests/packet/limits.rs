//! `max_connections` where packets are forwarded: never passed, and whoever has room is found, as in the proxy.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use lemonade::model::{BackendCell, Moment};
use lemonade::strategy::adapters::{LeastConnections, SourceHash};
use lemonade::strategy::maglev::{Share, ring};
use lemonade::strategy::port::{Candidate, PoolView, StrategyService};
use lemonade_common::decide::{TableView as _, Verdict};
use lemonade_common::forward::{BY_SOURCE, DOWN, DSR_L2, LEAST_CONNECTIONS, NAT, NAT_GATEWAY, Target, ended};
use lemonade_common::least::{Choice, Choices, Load};
use lemonade_common::maglev::SLOTS;
use lemonade_common::packet::{ACK, FIN, RST, SYN};
use lemonade_common::place::{of_backend, of_frontend};
use lemonade_common::{BackendIx, PacketReason as Reason};
use lemonade_tests::packets::{self, Shape};
use lemonade_tests::tables::{Tables, rewritten};
use lemonade_tests::world::{VIP4, decided, read, target, world_in};

/// Three backends of IPv4 with these limits, behind a frontend with this one, in a mode.
fn limited(mode: u32, flags: u32, frontend: u32, limits: [u32; 3]) -> Tables {
    let mut tables = world_in(mode);
    for service in tables.services.values_mut() {
        service.flags |= flags;
        service.most = frontend;
    }
    for (n, most) in (0..).zip(limits) {
        tables.targets.insert(n, Target { most, ..target(n) });
    }
    let choice = |(backend, most)| Choice { backend, weight: 1, elsewhere: 0, most };
    tables.choices.insert(0, Choices::among((0..).zip(limits).map(choice)));
    tables.now.set(1);
    tables
}

fn syn(port: u16) -> Shape {
    Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN)
}

fn live(tables: &Tables) -> [u64; 3] {
    [0, 1, 2].map(|n| tables.loads.borrow().get(&n).map_or(0, |load| load.live))
}

fn of_the_frontend(tables: &Tables) -> u64 {
    tables.frontends.borrow().get(&1).copied().unwrap_or(0)
}

/// Whatever comes, in whatever order: no limit is passed, counts are the entries, and who is refused finds all full.
#[test]
fn limits_are_never_passed_and_nobody_is_refused_while_there_is_room() {
    const LIMITS: [u32; 3] = [5, 9, 13];
    for (mode, flags, most) in [
        (NAT, 0, 0),
        (NAT, BY_SOURCE, 22),
        (NAT, LEAST_CONNECTIONS, 24),
        (NAT_GATEWAY, LEAST_CONNECTIONS, 0),
        (NAT_GATEWAY, 0, 20),
    ] {
        let tables = limited(mode, flags, most, LIMITS);
        let mut random = Rng::with_seed(91 + u64::from(mode + flags));
        let mut reasons: HashMap<Reason, u32> = HashMap::new();
        let mut answers: HashMap<u16, Shape> = HashMap::new();
        for now in 1..60_000 {
            tables.now.set(now);
            let port = random.u16(1..80);
            let flags = [SYN, SYN, ACK, FIN | ACK, RST][random.usize(..5)];
            let shape = match answers.get(&port) {
                Some(down) if random.bool() => {
                    Shape { flags: if flags == SYN { SYN | ACK } else { flags }, ..down.clone() }
                }
                // What is in the midst of a flow that nobody knows would be adopted, whatever the limits.
                _ => Shape { flags: if mode == NAT { flags } else { SYN }, ..syn(port) },
            };
            let bytes = shape.build();
            let (before, frontend) = (live(&tables), of_the_frontend(&tables));
            let reason = match decided(&tables, &bytes, now) {
                Verdict::Forward(flow, reason) => {
                    if reason == Reason::Opened {
                        let said = packets::read(&rewritten(&bytes, &read(&bytes), flow)).expect("well");
                        answers.insert(port, Shape { from: said.to, to: said.from, ..syn(port) });
                    }
                    reason
                }
                Verdict::Drop(reason) | Verdict::Pass(reason) => reason,
                Verdict::Echo => panic!("nobody asks for one"),
            };
            *reasons.entry(reason).or_default() += 1;
            match reason {
                Reason::BackendsFull => assert_eq!(before, LIMITS.map(u64::from), "each is full"),
                Reason::FrontendLimit => assert_eq!(frontend, u64::from(most), "it is at its limit"),
                _ => {}
            }
            let now = live(&tables);
            assert!(now.into_iter().zip(LIMITS).all(|(live, most)| live <= u64::from(most)), "{now:?}");
            assert_eq!(now.into_iter().sum::<u64>(), of_the_frontend(&tables));
            assert!(most == 0 || of_the_frontend(&tables) <= u64::from(most));
            let mut entries = [0; 3];
            for flow in tables.flows.borrow().values() {
                if flow.state.get() as u32 & DOWN == 0 && !ended(flow.state()) {
                    entries[flow.backend as usize] += 1;
                }
            }
            assert_eq!(now, entries, "what counts are the entries");
        }
        let refused = if most == 0 { Reason::BackendsFull } else { Reason::FrontendLimit };
        assert!(reasons[&refused] > 100 && reasons[&Reason::Opened] > 1_000, "{reasons:?}");
        assert!(most == 0 || !reasons.contains_key(&Reason::BackendsFull), "{reasons:?}");
    }
}

#[test]
fn a_flow_that_comes_to_nothing_gives_its_place_back() {
    let mut tables = limited(NAT, 0, 3, [0; 3]);
    for n in 0..3 {
        tables.targets.insert(n, Target { ports: 1, ..target(n) });
    }
    tables.room = 4;
    tables.half_open_room = 5;
    let mut seen: HashMap<Reason, u32> = HashMap::new();
    for port in 1..60 {
        if let Verdict::Drop(reason) = decided(&tables, &syn(port).build(), 1) {
            *seen.entry(reason).or_default() += 1;
        }
        let flows = tables.flows.borrow();
        let entries = flows.values().filter(|flow| flow.state.get() as u32 & DOWN == 0).count();
        drop(flows);
        assert_eq!(of_the_frontend(&tables), entries as u64);
        assert_eq!(live(&tables).into_iter().sum::<u64>(), of_the_frontend(&tables));
    }
    assert!(seen.contains_key(&Reason::HalfOpenFull), "{seen:?}");
    assert!(seen.contains_key(&Reason::TableFull) || seen.contains_key(&Reason::PortsExhausted), "{seen:?}");
}

#[test]
fn what_began_before_is_never_refused_but_counts() {
    let tables = limited(NAT_GATEWAY, 0, 2, [1; 3]);
    for port in 1..=6 {
        let middle = Shape { flags: ACK, ..syn(port) }.build();
        assert!(matches!(decided(&tables, &middle, 1), Verdict::Forward(_, Reason::Adopted)));
    }
    assert_eq!((live(&tables).into_iter().sum::<u64>(), of_the_frontend(&tables)), (6, 6));
    assert!(matches!(decided(&tables, &syn(7).build(), 1), Verdict::Drop(Reason::FrontendLimit)));
}

#[test]
fn what_the_proxy_has_counts_too() {
    let mut tables = limited(NAT, 0, 5, [2; 3]);
    tables.elsewhere = [(of_backend(0), 2), (of_backend(1), 7), (of_frontend(1), 4)].into();
    assert!(matches!(decided(&tables, &syn(1).build(), 1), Verdict::Forward(flow, _) if flow.backend == 2));
    assert!(matches!(decided(&tables, &syn(2).build(), 1), Verdict::Drop(Reason::FrontendLimit)));
    tables.elsewhere.remove(&of_frontend(1));
    assert!(matches!(decided(&tables, &syn(2).build(), 1), Verdict::Forward(flow, _) if flow.backend == 2));
    assert!(matches!(decided(&tables, &syn(3).build(), 1), Verdict::Drop(Reason::BackendsFull)));
}

/// Of more backends than are looked at one by one too.
#[test]
fn a_full_backend_of_many_is_passed_over() {
    let count = 40;
    for flags in [0, LEAST_CONNECTIONS] {
        let mut tables = limited(NAT, flags, 0, [0; 3]);
        tables.rings[0] = (0..SLOTS).map(|slot| slot % count).collect();
        tables.choices.insert(0, Choices::default());
        tables.targets = (0..count).map(|n| (n, Target { most: 10, ..target(n % 3) })).collect();
        // Each at an address of its own.
        for (n, target) in &mut tables.targets {
            target.address[14] = 1 + *n as u8;
        }
        for port in 1..=10 * count as u16 {
            let verdict = decided(&tables, &syn(port).build(), 1);
            assert!(matches!(verdict, Verdict::Forward(_, Reason::Opened)), "{port}: {verdict:?}");
        }
        assert!((0..count).all(|n| tables.live(n) == 10));
        assert!(matches!(decided(&tables, &syn(999).build(), 1), Verdict::Drop(Reason::BackendsFull)));
    }
}

#[test]
fn in_the_modes_that_see_no_ends_a_flow_that_is_not_written_down_counts_nowhere() {
    let tables = limited(DSR_L2, 0, 0, [0; 3]);
    tables.admitted.set(Some(0));
    assert!(matches!(decided(&tables, &syn(1).build(), 1), Verdict::Forward(_, Reason::Unrecorded)));
    assert_eq!((live(&tables), of_the_frontend(&tables)), ([0; 3], 0));
}

/// The proxy's strategies and the kernel's choice, with the same connections and limits: the same backend, or none.
#[test]
fn who_is_passed_over_is_passed_over_by_the_proxy() {
    let mut random = Rng::with_seed(92);
    for by_source in [false, true] {
        for _ in 0..60 {
            let limits: [u32; 3] = std::array::from_fn(|_| random.u32(..4));
            let candidates: Vec<Candidate> = (0..)
                .zip(limits)
                .map(|(ix, max_connections)| Candidate {
                    ix: BackendIx(ix),
                    identity: ix.to_string().into(),
                    position: ix as usize,
                    weight: 1,
                    max_connections,
                    cell: Arc::new(BackendCell::default()),
                })
                .collect();
            let flags = if by_source { BY_SOURCE } else { LEAST_CONNECTIONS };
            let mut tables = limited(NAT, flags, 0, limits);
            let share =
                |own: &Candidate| Share { value: own.ix.0, identity: own.identity.to_string(), weight: 1 };
            tables.rings[0] = ring(&candidates.iter().map(share).collect::<Vec<_>>());
            let strategy: &dyn StrategyService =
                if by_source { &SourceHash::new(&candidates) } else { &LeastConnections };
            let cursor = AtomicU64::new(0);
            for n in 0..20_u16 {
                let live: [u32; 3] = std::array::from_fn(|_| random.u32(..5));
                for (candidate, live) in candidates.iter().zip(live) {
                    candidate.cell.live.store(live, Ordering::Relaxed);
                }
                let load = |live: u32| Load { live: u64::from(live), ..Load::default() };
                tables.loads.replace((0..).zip(live.map(load)).collect());
                let view = PoolView {
                    candidates: &candidates,
                    cursor: &cursor,
                    now: Moment(0),
                    entropy: 0,
                    seed: tables.seed,
                    excluded: &[],
                    desperate: false,
                };
                let from = format!("10.9.{}.{}:{}", random.u8(..), random.u8(..), 1 + n);
                let bytes = Shape::tcp(&from, VIP4, SYN).build();
                let proxy = strategy.pick(&view, &read(&bytes).key).map(|pick| pick.candidate.ix.0);
                let kernel = match decided(&tables, &bytes, 1) {
                    Verdict::Forward(flow, Reason::Opened) => Some(flow.backend),
                    Verdict::Drop(Reason::BackendsFull) => None,
                    other => panic!("{other:?}"),
                };
                assert_eq!(kernel, proxy, "live {live:?} of {limits:?}");
            }
        }
    }
}
