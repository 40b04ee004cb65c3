//! `max_connections` as the kernel keeps them: the model's, whatever comes.

use fastrand::Rng;
use lemonade::proxy::adapters::bpf::Forward;
use lemonade_common::PacketReason as Reason;
use lemonade_common::decide::Verdict;
use lemonade_common::forward::{BY_SOURCE, LEAST_CONNECTIONS, Target};
use lemonade_common::least::{Choice, Choices};
use lemonade_common::maglev::SLOTS;
use lemonade_common::packet::{ACK, FIN, RST, SYN};
use lemonade_common::place::{of_backend, of_frontend};
use lemonade_tests::packets::{self, Shape};
use lemonade_tests::tables::Tables;
use lemonade_tests::world::{VIP4, backend, decided, target, world};

use crate::forward::{DROP, REDIRECT, load, reason, run};

fn syn(port: u16) -> Shape {
    Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN)
}

/// The tables of a world with limits, and the kernel's.
fn limited(flags: u32, frontend: u32, limits: [u32; 3]) -> (Tables, Forward) {
    let mut tables = world();
    for service in tables.services.values_mut() {
        service.flags |= flags;
        service.most = frontend;
    }
    for (n, most) in (0..).zip(limits) {
        tables.targets.insert(n, Target { most, ..target(n) });
    }
    let choice = |(backend, most)| Choice { backend, weight: 1, elsewhere: 0, most };
    let choices = Choices::among((0..).zip(limits).map(choice));
    tables.choices.insert(0, choices);
    let mut forward = load(&tables);
    forward.put_choices(0, &choices).expect("there is such a ring");
    (0..3).for_each(|n| forward.count_live(n).expect("there is room"));
    forward.count_frontend(1).expect("there is room");
    (tables, forward)
}

fn live(forward: &Forward) -> [u64; 3] {
    [0, 1, 2].map(|n| forward.load_of(n).expect("it counts").live)
}

#[test]
fn limits_are_the_models_whatever_comes() {
    const LIMITS: [u32; 3] = [5, 9, 13];
    for (flags, most) in [(0, 0), (BY_SOURCE, 22), (LEAST_CONNECTIONS, 24)] {
        let (tables, mut forward) = limited(flags, most, LIMITS);
        let mut random = Rng::with_seed(93);
        let mut refused = 0;
        for _ in 0..6_000 {
            let port = random.u16(1..80);
            let flags = [SYN, SYN, ACK, FIN | ACK, RST][random.usize(..5)];
            let bytes = Shape { flags, ..syn(port) }.build();
            let (model, chosen) = match decided(&tables, &bytes, 1) {
                Verdict::Forward(flow, Reason::Opened) => (Reason::Opened, Some(flow.backend)),
                Verdict::Forward(_, reason) | Verdict::Drop(reason) | Verdict::Pass(reason) => (reason, None),
                Verdict::Echo => panic!("nobody asks for one"),
            };
            if matches!(model, Reason::BackendsFull | Reason::FrontendLimit) {
                refused += 1;
                assert_eq!(reason(&mut forward, &bytes), (DROP, model));
                continue;
            }
            let (_, out) = run(&mut forward, &bytes);
            if let Some(chosen) = chosen {
                let said = packets::read(&out).expect("well-formed");
                assert_eq!(said.to, backend(chosen, false));
                let answer = Shape { from: said.to, to: said.from, ..syn(port) };
                for flags in [SYN | ACK, FIN | ACK].into_iter().take(random.usize(..3)) {
                    let bytes = Shape { flags, ..answer.clone() }.build();
                    decided(&tables, &bytes, 1);
                    assert_eq!(run(&mut forward, &bytes).0, REDIRECT);
                }
            }
            let now = live(&forward);
            assert!(now.into_iter().zip(LIMITS).all(|(live, most)| live <= u64::from(most)), "{now:?}");
            let loads = tables.loads.borrow();
            assert_eq!(now, [0, 1, 2].map(|n| loads.get(&n).map_or(0, |load| load.live)));
            assert_eq!(forward.live_of_frontend(1), tables.frontends.borrow().get(&1).copied());
        }
        assert!(refused > 100, "{refused}");
        let keys: Vec<_> = forward.flows().expect("it is read").into_iter().map(|(key, _)| key).collect();
        forward.forget(&keys);
        assert_eq!((live(&forward), forward.live_of_frontend(1)), ([0; 3], Some(0)));
    }
}

#[test]
fn what_the_proxy_has_counts_too() {
    let (_, mut forward) = limited(0, 5, [2; 3]);
    for (whose, count) in [(of_backend(0), 2), (of_backend(1), 7), (of_frontend(1), 3)] {
        forward.put_elsewhere(whose, count).expect("there is room");
    }
    for port in 1..=2 {
        let (action, out) = run(&mut forward, &syn(port).build());
        assert_eq!((action, packets::read(&out).expect("well").to), (REDIRECT, backend(2, false)));
    }
    assert_eq!(reason(&mut forward, &syn(3).build()), (DROP, Reason::FrontendLimit));
    forward.forget_elsewhere(of_frontend(1));
    assert_eq!(reason(&mut forward, &syn(3).build()), (DROP, Reason::BackendsFull));
    forward.forget_elsewhere(of_backend(1));
    assert_eq!(reason(&mut forward, &syn(3).build()), (REDIRECT, Reason::Opened));
}

#[test]
fn a_full_backend_of_many_is_passed_over() {
    let mut tables = world();
    let count = 40;
    tables.rings[0] = (0..SLOTS).map(|slot| slot % count).collect();
    tables.targets = (0..count).map(|n| (n, Target { most: 5, ..target(n % 3) })).collect();
    for (n, target) in &mut tables.targets {
        target.address[14] = 1 + *n as u8;
    }
    tables.choices.insert(0, Choices::default());
    let mut forward = load(&tables);
    (0..count).for_each(|n| forward.count_live(n).expect("there is room"));
    for port in 1..=5 * count as u16 {
        assert_eq!(run(&mut forward, &syn(port).build()).0, REDIRECT, "{port}");
    }
    assert!((0..count).all(|n| forward.load_of(n).expect("it counts").live == 5));
    assert_eq!(reason(&mut forward, &syn(999).build()), (DROP, Reason::BackendsFull));
}
