//! The forward plane's counts of live flows, and the choice by them, as the kernel keeps them: those of the model.

use fastrand::Rng;
use lemonade::proxy::adapters::bpf::Forward;
use lemonade_common::decide::Verdict;
use lemonade_common::forward::{DOWN, Forgotten, LEAST_CONNECTIONS, Target, ended};
use lemonade_common::least::Choices;
use lemonade_common::maglev::SLOTS;
use lemonade_common::packet::{ACK, FIN, RST, SYN};
use lemonade_common::{FlowKey, PacketReason as Reason};
use lemonade_tests::packets::{self, Shape};
use lemonade_tests::tables::Tables;
use lemonade_tests::world::{VIP4, backend, decided, service_key, target, world};

use crate::forward::{REDIRECT, complete, load, run};

fn syn(port: u16) -> Shape {
    Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN)
}

/// The tables of a world that goes by counts, and the kernel's.
fn counting(weights: [u32; 3]) -> (Tables, Forward) {
    let mut tables = world();
    for service in tables.services.values_mut() {
        service.flags |= LEAST_CONNECTIONS;
    }
    let choices = Choices::of((0..).zip(weights));
    tables.choices.insert(0, choices);
    let mut forward = load(&tables);
    forward.put_choices(0, &choices).expect("there is such a ring");
    (0..3).for_each(|n| forward.count_live(n).expect("there is room"));
    (tables, forward)
}

fn live(forward: &Forward) -> [u64; 3] {
    [0, 1, 2].map(|n| forward.load_of(n).expect("it counts").live)
}

/// Live flows of each backend, as the kernel's entries say.
fn entries(forward: &Forward) -> [u64; 3] {
    let mut live = [0; 3];
    for (_, flow) in forward.flows().expect("the table is read") {
        if flow.state.get() as u32 & DOWN == 0 && !ended(flow.state()) {
            live[flow.backend as usize] += 1;
        }
    }
    live
}

#[test]
fn new_flows_go_where_the_model_says_and_counts_are_the_flows_that_live() {
    for weights in [[1, 1, 1], [1, 2, 3]] {
        let (tables, mut forward) = counting(weights);
        let mut random = Rng::with_seed(81);
        for _ in 0..4_000 {
            let port = random.u16(1..300);
            let flags = [SYN, SYN, ACK, FIN | ACK, RST][random.usize(..5)];
            let bytes = Shape { flags, ..syn(port) }.build();
            let model = match decided(&tables, &bytes, 1) {
                Verdict::Forward(flow, Reason::Opened) => Some(flow.backend),
                _ => None,
            };
            let (action, out) = run(&mut forward, &bytes);
            if let Some(chosen) = model {
                assert_eq!(action, REDIRECT);
                let said = packets::read(&out).expect("well-formed");
                assert_eq!(said.to, backend(chosen, false));
                let answer = Shape { from: said.to, to: said.from, ..syn(port) };
                for flags in [SYN | ACK, FIN | ACK].into_iter().take(random.usize(..3)) {
                    let bytes = Shape { flags, ..answer.clone() }.build();
                    decided(&tables, &bytes, 1);
                    assert_eq!(run(&mut forward, &bytes).0, REDIRECT);
                }
            }
            let loads = tables.loads.borrow();
            let model = [0, 1, 2].map(|n| loads.get(&n).map_or(0, |load| load.live));
            assert_eq!(live(&forward), model);
        }
        assert_eq!(live(&forward), entries(&forward));
        assert!(live(&forward).iter().sum::<u64>() > 50);
        let loads = [0, 1, 2].map(|n| forward.load_of(n).expect("it counts"));
        assert!(loads.iter().all(|load| load.answers > 50 && load.waited > 0), "{loads:?}");
        for (n, load) in (0..).zip(loads) {
            assert_eq!(load.answers, tables.loads.borrow()[&n].answers, "backend {n}");
        }
        forget_all(&mut forward);
        assert_eq!(live(&forward), [0; 3]);
    }
}

fn forget_all(forward: &mut Forward) {
    let keys: Vec<FlowKey> =
        forward.flows().expect("the table is read").into_iter().map(|(key, _)| key).collect();
    assert!(keys.len() > 100, "several lists");
    forward.forget(&keys);
    assert!(forward.flows().expect("the table is read").is_empty());
}

#[test]
fn a_flow_that_a_packet_came_for_is_not_forgotten() {
    let (_, mut forward) = counting([1, 1, 1]);
    let out = run(&mut forward, &syn(1).build()).1;
    complete(&mut forward, &syn(1), &out);
    let flows = forward.flows().expect("the table is read");
    let asked = |change: u64| -> Vec<Forgotten> {
        flows.iter().map(|(key, flow)| Forgotten { key: *key, seen: flow.seen.get() - change }).collect()
    };
    assert_eq!(forward.forget_unless_seen(&asked(1)), [false, false]);
    assert_eq!((forward.flows().expect("read").len(), live(&forward).iter().sum::<u64>()), (2, 1));
    assert_eq!(forward.forget_unless_seen(&asked(0)), [true, true]);
    assert_eq!((forward.flows().expect("read").len(), live(&forward)), (0, [0; 3]));
    assert_eq!(forward.forget_unless_seen(&asked(0)), [false, false]);
    assert_eq!(live(&forward), [0; 3]);
}

#[test]
fn handshakes_that_make_room_for_others_count_no_longer() {
    let tables = world();
    let mut forward = Forward::load(256, 2, tables.seed).expect("the program passes the verifier");
    forward.fill_ring(0, &vec![0; SLOTS as usize]);
    forward.put_target(0, target(0)).expect("there is room");
    forward.count_live(0).expect("there is room");
    let key = service_key(VIP4, 6);
    forward.put_service(key, tables.services[&key]).expect("there is room");
    for port in 1..=32 {
        assert_eq!(run(&mut forward, &syn(port).build()).0, REDIRECT);
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    for port in 101..=120 {
        assert_eq!(run(&mut forward, &syn(port).build()).0, REDIRECT);
    }
    assert_eq!((forward.replaced(), forward.load_of(0).expect("it counts").live), (20, 32));
}

#[test]
fn of_many_backends_two_are_compared() {
    let mut tables = world();
    let count = 32;
    tables.rings[0] = (0..SLOTS).map(|slot| slot % count).collect();
    tables.targets = (0..count).map(|n| (n, Target { ports: 20, ..target(n % 3) })).collect();
    for service in tables.services.values_mut() {
        service.flags |= LEAST_CONNECTIONS;
    }
    // Each at an address of its own.
    for (n, target) in &mut tables.targets {
        target.address[15] = 10 + *n as u8;
    }
    tables.choices.insert(0, Choices::default());
    let mut forward = load(&tables);
    (0..count).for_each(|n| forward.count_live(n).expect("there is room"));
    for port in 1..=320 {
        let bytes = syn(port).build();
        let Verdict::Forward(flow, Reason::Opened) = decided(&tables, &bytes, 1) else {
            panic!("it opens a flow")
        };
        let out = packets::read(&run(&mut forward, &bytes).1).expect("well-formed");
        let expected = format!("10.0.0.{}", 10 + flow.backend);
        assert_eq!(out.to.ip().to_string(), expected);
    }
    let live: Vec<u64> = (0..count).map(|n| forward.load_of(n).expect("it counts").live).collect();
    assert!(live.iter().all(|live| (7..=13).contains(live)), "{live:?}");
}
