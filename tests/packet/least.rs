//! Connections that are counted where packets are forwarded, and the choice by their counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use lemonade::model::{BackendCell, Moment};
use lemonade::strategy::adapters::LeastConnections;
use lemonade::strategy::port::{Candidate, PoolView, StrategyService as _};
use lemonade_common::decide::{TableView as _, Verdict};
use lemonade_common::forward::{
    DOWN, DSR_L2, FIN_UP, LEAST_CONNECTIONS, NAT, NAT_GATEWAY, Target, answers_pass_by, ended,
};
use lemonade_common::least::{Choices, Load, SCANNED};
use lemonade_common::maglev::{EMPTY, SLOTS};
use lemonade_common::packet::{ACK, FIN, RST, SYN};
use lemonade_common::{BackendIx, FlowKey, PacketReason as Reason};
use lemonade_tests::packets::{self, Shape};
use lemonade_tests::tables::{Tables, rewritten};
use lemonade_tests::world::{VIP4, decided, read, target, world, world_in};

/// The services of a mode go by counts, with these weights of the three backends of IPv4.
fn counting(mode: u32, weights: [u32; 3]) -> Tables {
    let mut tables = world_in(mode);
    for service in tables.services.values_mut() {
        service.flags |= LEAST_CONNECTIONS;
    }
    tables.choices.insert(0, Choices::of((0..).zip(weights)));
    tables.now.set(1);
    tables
}

/// Live flows of each backend, as the entries say.
fn entries(tables: &Tables) -> HashMap<u32, u64> {
    let mut live = HashMap::new();
    for flow in tables.flows.borrow().values() {
        if flow.state.get() as u32 & DOWN == 0 && !ended(flow.state()) {
            *live.entry(flow.backend).or_default() += 1;
        }
    }
    live
}

fn counted(tables: &Tables) -> HashMap<u32, u64> {
    let loads = tables.loads.borrow();
    loads.iter().filter(|(_, load)| load.live > 0).map(|(backend, load)| (*backend, load.live)).collect()
}

/// Forgets a flow, as the control plane does: each of its directions.
fn forget(tables: &Tables, key: &FlowKey) {
    let flow = tables.flows.borrow().get(key).copied();
    let Some(flow) = flow else { return };
    if !answers_pass_by(flow.mode) {
        tables.remove(&flow.leaves().reversed());
    }
    tables.remove(key);
}

#[test]
fn counts_are_the_flows_that_live_whatever_comes() {
    for mode in [NAT, NAT_GATEWAY, DSR_L2] {
        let mut tables = Tables { half_open_room: 24, room: 180, ..counting(mode, [1, 2, 3]) };
        for n in 0..3 {
            tables.targets.insert(n, Target { ports: 24, ..target(n) });
        }
        let mut random = Rng::with_seed(71 + u64::from(mode));
        let mut reasons: HashMap<Reason, u32> = HashMap::new();
        // Ways that flows have led, so that answers come from where they went.
        let mut answers: HashMap<u16, Shape> = HashMap::new();
        let mut now = 1;
        for _ in 0..200_000 {
            now += random.u64(..20_000_000);
            tables.now.set(now);
            let port = random.u16(1..120);
            let up = Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN);
            let flags = [SYN, SYN, ACK, ACK, FIN | ACK, FIN | ACK, RST][random.usize(..7)];
            let shape = match answers.get(&port) {
                Some(down) if random.bool() => {
                    Shape { flags: if flags == SYN { SYN | ACK } else { flags }, ..down.clone() }
                }
                _ => Shape { flags, ..up.clone() },
            };
            let bytes = shape.build();
            let verdict = decided(&tables, &bytes, now);
            if let Verdict::Forward(flow, reason) = verdict {
                *reasons.entry(reason).or_default() += 1;
                if reason == Reason::Opened && mode != DSR_L2 {
                    let said = packets::read(&rewritten(&bytes, &read(&bytes), flow)).expect("well-formed");
                    answers.insert(port, Shape { from: said.to, to: said.from, ..up.clone() });
                }
            }
            if random.u8(..40) == 0 {
                forget(&tables, &read(&up.build()).key);
            }
            assert_eq!(counted(&tables), entries(&tables), "mode {mode}");
        }
        assert!(reasons[&Reason::Opened] > 1_000, "{reasons:?}");
        assert!(mode == DSR_L2 || tables.replaced.get() > 0, "handshakes made room for others");
        let keys: Vec<FlowKey> = tables.flows.borrow().keys().copied().collect();
        for key in keys {
            tables.remove(&key);
        }
        assert_eq!(counted(&tables), HashMap::new(), "mode {mode}");
    }
}

/// A choice of the model, for a ring of `weights` whose backends have `live` flows.
fn chosen(tables: &mut Tables, weights: &[u32], live: &[u32], hash: u64) -> u32 {
    tables.choices.insert(0, Choices::of((0..).zip(weights.iter().copied())));
    let loads = (0..).zip(live).map(|(n, live)| (n, Load { live: u64::from(*live), ..Load::default() }));
    tables.loads.replace(loads.collect());
    tables.least(0, hash)
}

#[test]
fn the_choice_is_that_of_the_proxy() {
    let mut random = Rng::with_seed(72);
    for _ in 0..2_000 {
        let n = random.usize(1..=SCANNED);
        let most = [1, 2, 5][random.usize(..3)];
        let weights: Vec<u32> = (0..n).map(|_| random.u32(1..=most)).collect();
        let candidates: Vec<Candidate> = (0..)
            .zip(&weights)
            .map(|(ix, weight)| Candidate {
                ix: BackendIx(ix),
                identity: ix.to_string().into(),
                position: ix as usize,
                weight: *weight,
                max_connections: 0,
                cell: Arc::new(BackendCell::default()),
            })
            .collect();
        let cursor = AtomicU64::new(0);
        let mut tables = world();
        for _ in 0..20 {
            let live: Vec<u32> = (0..n).map(|_| random.u32(..=most)).collect();
            for (candidate, live) in candidates.iter().zip(&live) {
                candidate.cell.live.store(*live, Ordering::Relaxed);
            }
            let view = PoolView {
                candidates: &candidates,
                cursor: &cursor,
                now: Moment(0),
                entropy: 0,
                seed: 0,
                excluded: &[],
                desperate: false,
            };
            let key = read(&Shape::tcp("10.9.9.9:1", VIP4, SYN).build()).key;
            let proxy = LeastConnections.pick(&view, &key).expect("one is eligible").candidate.ix.0;
            assert_eq!(chosen(&mut tables, &weights, &live, random.u64(..)), proxy, "{weights:?} {live:?}");
            let burden =
                |at: usize| f64::from(if live[at] == 0 { 0 } else { live[at] + 1 }) / f64::from(weights[at]);
            let least = (0..n).map(burden).fold(f64::INFINITY, f64::min);
            assert!((burden(proxy as usize) - least).abs() < 1e-9, "{weights:?} {live:?}: {proxy}");
        }
    }
}

#[test]
fn connections_elsewhere_count_too_and_without_backends_there_is_none() {
    let mut tables = world();
    tables.choices.insert(0, Choices::of([(0, 1), (1, 1)]));
    tables.choices.get_mut(&0).expect("it was put").own[0].elsewhere = 3;
    assert!((0..10).all(|hash| tables.least(0, hash) == 1));
    assert_eq!(tables.least(7, 1), EMPTY);
    tables.rings[1] = vec![EMPTY; SLOTS as usize];
    tables.choices.insert(1, Choices::default());
    assert_eq!(tables.least(1, 1), EMPTY);
}

/// More backends than are looked at: flows that stay spread as the weights are, with no herd and few beyond their share.
#[test]
fn of_many_backends_the_lighter_of_two_is_taken() {
    let count = 40;
    let mut tables = world();
    let weights: Vec<u32> = (0..count).map(|n| 1 + n % 2).collect();
    let order: Vec<u32> =
        (0..count).flat_map(|n| std::iter::repeat_n(n, weights[n as usize] as usize)).collect();
    tables.rings[0] = (0..SLOTS).map(|slot| order[slot as usize % order.len()]).collect();
    tables.choices.insert(0, Choices::of((0..).zip(weights.iter().copied())));
    assert_eq!(tables.choices[&0].count, 0, "they are too many");
    for (n, weight) in (0..).zip(&weights) {
        tables.targets.insert(n, Target { weight: *weight, ..target(0) });
    }
    let mut random = Rng::with_seed(73);
    let mut most_in_row = (EMPTY, 0, 0);
    for _ in 0..6_000 {
        let backend = tables.least(0, random.u64(..));
        tables.loads.borrow_mut().entry(backend).or_default().live += 1;
        let (last, row, most) = most_in_row;
        let row = if last == backend { row + 1 } else { 1 };
        most_in_row = (backend, row, row.max(most));
    }
    for (n, weight) in (0..).zip(&weights) {
        let live = tables.live(n);
        // 100 for each part of weight; a draw without comparison strays by 30.
        assert!(live.abs_diff(100 * weight) <= 8 * weight, "backend {n} of weight {weight} has {live}");
    }
    assert!(most_in_row.2 <= 4, "{} in a row", most_in_row.2);
}

#[test]
fn new_flows_go_by_counts_and_what_is_not_written_down_by_the_ring() {
    let tables = counting(DSR_L2, [1, 1, 1]);
    tables.loads.replace([0, 1].map(|n| (n, Load { live: 5, ..Load::default() })).into());
    let syn = |port: u16| Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN);
    for port in 1..5 {
        let Verdict::Forward(flow, Reason::Opened) = decided(&tables, &syn(port).build(), 1) else {
            panic!("it opens a flow");
        };
        assert_eq!(flow.backend, 2);
    }
    tables.admitted.set(Some(0));
    let by_ring = |port: u16, flags: u8| match decided(&tables, &Shape { flags, ..syn(port) }.build(), 1) {
        Verdict::Forward(flow, Reason::Unrecorded) => flow.backend,
        other => panic!("{other:?}"),
    };
    for port in 100..200 {
        assert_eq!(by_ring(port, SYN), by_ring(port, ACK), "packets that follow find the same");
    }
    let ring: std::collections::HashSet<u32> = (100..200).map(|port| by_ring(port, SYN)).collect();
    assert_eq!(ring.len(), 3);
    assert_eq!(tables.live(2), 4, "they do not count");
}

#[test]
fn where_answers_pass_by_a_flow_counts_until_it_is_reset_or_forgotten() {
    let tables = counting(DSR_L2, [1, 1, 1]);
    let syn = |port: u16| Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN);
    for port in [1, 2] {
        for flags in [SYN, ACK, FIN | ACK] {
            decided(&tables, &Shape { flags, ..syn(port) }.build(), 1);
        }
    }
    let total = || counted(&tables).values().sum::<u64>();
    assert_eq!(total(), 2, "the backend's FIN is not seen");
    decided(&tables, &Shape { flags: RST, ..syn(1) }.build(), 1);
    assert_eq!(total(), 1);
    let key = read(&syn(2).build()).key;
    assert_eq!(tables.flow(&key).expect("it is there").state() & FIN_UP, FIN_UP);
    forget(&tables, &key);
    assert_eq!(total(), 0);
}

#[test]
fn the_first_answer_tells_how_long_it_took() {
    let tables = counting(NAT, [1, 1, 1]);
    let syn = Shape::tcp("10.9.9.9:1", VIP4, SYN);
    let bytes = syn.build();
    tables.now.set(1_000);
    let Verdict::Forward(flow, _) = decided(&tables, &bytes, 1) else { panic!("it opens a flow") };
    let (backend, said) =
        (flow.backend, packets::read(&rewritten(&bytes, &read(&bytes), flow)).expect("well"));
    let answer = Shape { from: said.to, to: said.from, flags: SYN | ACK, ..syn };
    tables.now.set(251_000);
    for (later, flags) in [(0, SYN | ACK), (90_000, SYN | ACK), (9_000_000, ACK), (9_100_000, FIN | ACK)] {
        tables.now.set(251_000 + later);
        decided(&tables, &Shape { flags, ..answer.clone() }.build(), 2);
        let told = Load { live: 1, answers: 1, waited: 250_000, refused: 0 };
        assert_eq!(tables.loads.borrow()[&backend], told, "its end is no answer");
    }
}

#[test]
fn a_reset_in_answer_to_a_syn_is_a_refusal_and_no_other_is() {
    for mode in [NAT, NAT_GATEWAY] {
        let tables = counting(mode, [1, 1, 1]);
        // What the client and the backend say after the SYN, and how often that is a refusal and an answer.
        for (n, said, expected) in [
            (1, &[(true, RST | ACK)][..], (1, 0)),
            (2, &[(true, RST | ACK), (true, RST | ACK)], (1, 0)),
            (3, &[(true, SYN | ACK), (true, RST | ACK)], (0, 1)),
            (4, &[(true, SYN | ACK), (false, ACK), (true, FIN | ACK), (false, FIN | ACK)], (0, 1)),
            (5, &[(false, RST), (true, RST | ACK)], (0, 0)),
        ] {
            tables.loads.borrow_mut().clear();
            let syn = Shape::tcp(&format!("10.9.9.9:{n}"), VIP4, SYN);
            let bytes = syn.build();
            let Verdict::Forward(flow, Reason::Opened) = decided(&tables, &bytes, 1) else { panic!("{n}") };
            let backend = flow.backend;
            let there = packets::read(&rewritten(&bytes, &read(&bytes), flow)).expect("well-formed");
            for (down, flags) in said {
                let shape = if *down {
                    Shape { from: there.to, to: there.from, flags: *flags, ..syn.clone() }
                } else {
                    Shape { flags: *flags, ..syn.clone() }
                };
                decided(&tables, &shape.build(), 2);
            }
            let load = tables.loads.borrow()[&backend];
            assert_eq!((load.refused, load.answers), expected, "mode {mode}, flow {n}");
        }
    }
    // Of a flow that was found in its middle nobody knows what a reset is the answer to.
    let tables = counting(NAT_GATEWAY, [1, 1, 1]);
    let middle = Shape::tcp("10.9.9.9:9", VIP4, ACK);
    let bytes = middle.build();
    let Verdict::Forward(flow, Reason::Adopted) = decided(&tables, &bytes, 1) else {
        panic!("it is adopted")
    };
    let there = packets::read(&rewritten(&bytes, &read(&bytes), flow)).expect("well-formed");
    decided(&tables, &Shape { from: there.to, to: there.from, flags: RST, ..middle }.build(), 2);
    assert!(tables.loads.borrow().values().all(|load| (load.refused, load.answers) == (0, 0)));
}
