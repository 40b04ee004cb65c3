//! Modes that keep the client's address: what packets become, and who has a flow that the table does not know.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use fastrand::Rng;
use lemonade_common::PacketReason as Reason;
use lemonade_common::decide::{LINGER, Verdict};
use lemonade_common::forward::{BY_PORT, DSR_IPIP, DSR_L2, Flow, NAT_GATEWAY, Target};
use lemonade_common::maglev::{EMPTY, SLOTS};
use lemonade_common::packet::{ACK, FIN, RST, SYN};
use lemonade_tests::packets::{Shape, icmp_error, translated, unwrapped, wrapped};
use lemonade_tests::tables::{Tables, changed};
use lemonade_tests::world::{
    INSIDE, OUTSIDE, VIP4, VIP6, any_shape, backend, balancer, decided, parse_address, read, service_key,
    target, world_in,
};

const MODES: [u32; 3] = [NAT_GATEWAY, DSR_L2, DSR_IPIP];

/// Decides on a packet that goes on; what it becomes, its entry, and why.
fn sent<'t>(tables: &'t Tables, bytes: &[u8], now: u64) -> (Vec<u8>, &'t Flow, Reason) {
    match decided(tables, bytes, now) {
        Verdict::Forward(flow, reason) => (changed(bytes, &read(bytes), flow), flow, reason),
        other => panic!("{other:?}"),
    }
}

fn any_client(random: &mut Rng, flags: u8) -> Shape {
    let mut shape = any_shape(random);
    shape.to = parse_address(if shape.from.is_ipv6() { VIP6 } else { VIP4 });
    Shape { flags, ..shape }
}

#[test]
fn by_the_gateway_the_client_keeps_its_address_and_answers_come_from_the_service() {
    let tables = world_in(NAT_GATEWAY);
    let mut random = Rng::with_seed(21);
    for _ in 0..20_000 {
        let shape = any_client(&mut random, SYN);
        let bytes = shape.build();
        let (out, flow, reason) = sent(&tables, &bytes, 1);
        assert_eq!((flow.interface, reason), (INSIDE, Reason::Opened));
        let to = backend(flow.backend, shape.from.is_ipv6());
        assert_eq!(out, translated(&bytes, shape.from, to), "{shape:?}");
        let answer = Shape { from: to, to: shape.from, flags: SYN | ACK, ..shape.clone() }.build();
        let (back, flow, reason) = sent(&tables, &answer, 2);
        assert_eq!((flow.interface, reason), (OUTSIDE, Reason::Forwarded));
        assert_eq!(back, translated(&answer, shape.to, shape.from), "{shape:?}");
    }
}

#[test]
fn two_services_of_one_backend_cannot_both_have_a_client_that_keeps_its_port() {
    let mut tables = world_in(NAT_GATEWAY);
    tables.rings[0].fill(0);
    let other = "192.0.2.11:80";
    let service = tables.services[&service_key(VIP4, 6)];
    tables.services.insert(service_key(other, 6), service);
    let first = Shape::tcp("10.9.9.9:5000", VIP4, SYN);
    let second = Shape::tcp("10.9.9.9:5000", other, SYN).build();
    sent(&tables, &first.build(), 1);
    let refused = decided(&tables, &second, 2);
    assert!(matches!(refused, Verdict::Drop(Reason::PortsExhausted)), "{refused:?}");
    assert_eq!(tables.flows.borrow().len(), 2);
    // What the first leaves behind serves the second.
    sent(&tables, &Shape { flags: RST, ..first }.build(), 3);
    let (out, ..) = sent(&tables, &second, LINGER + 4);
    assert_eq!(out, translated(&second, parse_address("10.9.9.9:5000"), backend(0, false)));
    assert_eq!(tables.flows.borrow().len(), 2);
}

#[test]
fn half_a_flow_that_was_left_is_made_whole() {
    let tables = world_in(NAT_GATEWAY);
    let syn = Shape::tcp("10.9.9.9:5000", VIP4, SYN).build();
    sent(&tables, &syn, 1);
    tables.flows.borrow_mut().remove(&read(&syn).key);
    assert_eq!(sent(&tables, &syn, 2).2, Reason::Opened);
    assert_eq!(tables.flows.borrow().len(), 2);
}

#[test]
fn over_the_link_packets_stay_as_they_are() {
    let tables = world_in(DSR_L2);
    let mut random = Rng::with_seed(22);
    for _ in 0..20_000 {
        let shape = any_client(&mut random, SYN);
        let (out, flow, reason) = sent(&tables, &shape.build(), 1);
        assert_eq!((out, reason), (shape.build(), Reason::Opened));
        assert_eq!((flow.dst, flow.interface), (target(flow.backend).address, INSIDE));
    }
}

#[test]
fn packets_are_wrapped_in_either_family() {
    let tables = world_in(DSR_IPIP);
    let mut random = Rng::with_seed(23);
    let (mut kinds, mut labels) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..20_000 {
        let shape = any_client(&mut random, SYN);
        let bytes = shape.build();
        let (out, flow, reason) = sent(&tables, &bytes, 1);
        assert_eq!((flow.interface, reason), (INSIDE, Reason::Opened));
        let outer_v6 = flow.backend >= 3;
        let to = backend(flow.backend, outer_v6).ip();
        let (inner, from, _, label) = unwrapped(&out).expect("an outer header");
        assert_eq!(inner, bytes);
        assert_eq!(from, balancer(outer_v6, 0).ip());
        assert_eq!(out, wrapped(&bytes, from, to, label), "{shape:?}");
        // Whatever comes later is wrapped alike.
        let more = Shape { flags: ACK, class: 3, ..shape.clone() }.build();
        assert_eq!(sent(&tables, &more, 2).0, wrapped(&more, from, to, label), "{shape:?}");
        kinds.insert((shape.from.is_ipv6(), outer_v6));
        labels.insert(label);
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), [(false, false), (false, true), (true, true)]);
    assert!(labels.len() > 10_000, "{} flow labels of 15000 flows over IPv6", labels.len());
}

#[test]
fn outer_sources_are_spread_over_as_many_addresses_as_there_are() {
    let mut tables = world_in(DSR_IPIP);
    for n in 0..6 {
        tables.targets.insert(n, Target { ports: 16, ..target(n) });
    }
    let mut seen: HashMap<IpAddr, u32> = HashMap::new();
    for port in 1..4_000 {
        let syn = Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN).build();
        let (_, from, ..) = unwrapped(&sent(&tables, &syn, 1).0).expect("an outer header");
        *seen.entry(from).or_default() += 1;
    }
    // 10.0.0.254 and the fifteen after it, fd00::ff and the fifteen after it.
    assert_eq!(seen.len(), 32, "{seen:?}");
    assert!(seen.contains_key(&"10.0.1.13".parse().unwrap()), "{seen:?}");
    assert!(seen.contains_key(&"fd00::10e".parse().unwrap()), "{seen:?}");
    assert!(seen.values().all(|n| (60..200).contains(n)), "{seen:?}");
}

#[test]
fn a_packet_of_an_unknown_flow_asks_the_ring_before_this_one_first() {
    for mode in MODES {
        let mut tables = world_in(mode);
        tables.rings = vec![vec![0; SLOTS as usize], vec![1; SLOTS as usize]];
        let service = tables.services.get_mut(&service_key(VIP4, 6)).expect("it is served");
        (service.ring, service.previous) = (1, 1);
        let at = |port: u16, flags: u8| Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, flags).build();
        assert_eq!(sent(&tables, &at(1, SYN), 1).1.backend, 1, "a new flow asks the new ring");
        let (_, flow, reason) = sent(&tables, &at(2, ACK), 1);
        assert_eq!((flow.backend, reason), (0, Reason::Adopted), "mode {mode}");
        assert_eq!(sent(&tables, &at(2, ACK), 2).2, Reason::Forwarded, "it was written down");
        let (_, flow, reason) = sent(&tables, &at(3, FIN | ACK), 1);
        assert_eq!((flow.backend, reason), (0, Reason::Adopted));
        // A reset finds its backend and leaves nothing behind.
        let before = tables.flows.borrow().len();
        let (_, flow, reason) = sent(&tables, &at(4, RST), 1);
        assert_eq!((flow.backend, reason), (0, Reason::Unrecorded));
        assert_eq!(tables.flows.borrow().len(), before);
        // The ring before may have been empty there, or name a backend that is gone.
        tables.rings[0].fill(EMPTY);
        assert_eq!(sent(&tables, &at(5, ACK), 1).1.backend, 1);
        tables.rings[0].fill(99);
        assert_eq!(sent(&tables, &at(6, ACK), 1).1.backend, 1);
        let service = tables.services.get_mut(&service_key(VIP4, 6)).expect("it is served");
        service.previous = 0;
        assert_eq!(sent(&tables, &at(7, ACK), 1).1.backend, 1);
    }
}

#[test]
fn packets_of_the_hosts_own_connections_go_to_the_host() {
    for mode in MODES {
        let mut tables = world_in(mode);
        let packet = Shape::tcp("10.9.9.9:5000", VIP4, ACK).build();
        tables.own.insert(read(&packet).key);
        let verdict = decided(&tables, &packet, 1);
        assert!(matches!(verdict, Verdict::Pass(Reason::UnknownFlow)), "{verdict:?}");
        assert!(tables.flows.borrow().is_empty());
    }
}

#[test]
fn above_the_rate_the_ring_alone_decides() {
    for mode in [DSR_L2, DSR_IPIP] {
        let tables = world_in(mode);
        tables.admitted.set(Some(10));
        let mut reasons = HashMap::new();
        let syn = |port: u16| Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN).build();
        for port in 1..=50 {
            let (out, flow, reason) = sent(&tables, &syn(port), 1);
            *reasons.entry(reason).or_insert(0) += 1;
            // The same flow goes the same way once there is room for it.
            tables.admitted.set(tables.admitted.get().map(|_| 1));
            if reason == Reason::Unrecorded {
                assert_eq!(sent(&tables, &syn(port), 2).0, out, "backend {}", flow.backend);
            }
            tables.admitted.set(Some(10_u32.saturating_sub(u32::from(port))));
        }
        assert_eq!(reasons, HashMap::from([(Reason::Opened, 10), (Reason::Unrecorded, 40)]));
    }
}

#[test]
fn a_client_may_use_its_port_again_where_the_backends_fin_is_not_seen() {
    let mut tables = world_in(DSR_IPIP);
    let syn = Shape::tcp("10.9.9.9:5000", VIP4, SYN);
    let first = sent(&tables, &syn.build(), 1).1.backend;
    tables.rings[0].fill(first + 1);
    assert_eq!(sent(&tables, &syn.build(), 2).1.backend, first, "a SYN sent again keeps its flow");
    sent(&tables, &Shape { flags: FIN | ACK, ..syn.clone() }.build(), 3);
    assert_eq!(sent(&tables, &Shape { flags: ACK, ..syn.clone() }.build(), 4).1.backend, first);
    let (_, flow, reason) = sent(&tables, &syn.build(), 5);
    assert_eq!((flow.backend, reason), (first + 1, Reason::Opened));
    assert_eq!(tables.flows.borrow().len(), 1);
}

#[test]
fn errors_about_what_a_backend_sent_find_it() {
    for mode in [DSR_L2, DSR_IPIP] {
        for (client, vip, router) in
            [("10.9.9.9:5000", VIP4, "10.1.0.77:0"), ("[fd09::9]:5000", VIP6, "[fd01::77]:0")]
        {
            let tables = world_in(mode);
            // The backend answered the client, and a router on the way could not carry it.
            let answer =
                Shape { from: parse_address(vip), to: parse_address(client), ..Shape::tcp(client, vip, ACK) };
            let kind = if vip == VIP4 { 3 } else { 2 };
            let error = icmp_error(parse_address(router).ip(), kind, &answer.build(), 100);
            let (out, flow, reason) = sent(&tables, &error, 1);
            assert_eq!(reason, Reason::IcmpError);
            assert!(tables.flows.borrow().is_empty(), "an error writes nothing down");
            let backend = flow.backend;
            if mode == DSR_IPIP {
                assert_eq!(unwrapped(&out).expect("an outer header").0, error);
            } else {
                assert_eq!(out, error);
            }
            assert_eq!(sent(&tables, &Shape::tcp(client, vip, ACK).build(), 2).1.backend, backend);
            assert_eq!(sent(&tables, &error, 3).1.backend, backend, "the table says the same");
        }
    }
}

#[test]
fn a_service_may_take_every_port_and_go_by_the_port_alone() {
    let mut tables = world_in(DSR_IPIP);
    let service = tables.services.remove(&service_key(VIP4, 6)).expect("it is served");
    tables.services.insert(
        service_key(VIP4, 6).any_port(),
        lemonade_common::forward::Service { flags: BY_PORT, ..service },
    );
    let chosen = |client: u8, port: u16| {
        let syn = Shape::tcp(&format!("10.9.9.{client}:5000"), &format!("192.0.2.10:{port}"), SYN).build();
        sent(&tables, &syn, 1).1.backend
    };
    let backends: BTreeSet<u32> = (1..60).map(|port| chosen(1, port)).collect();
    assert_eq!(backends.len(), 6);
    for port in 1..60 {
        assert!((2..10).all(|client| chosen(client, port) == chosen(1, port)), "port {port}");
    }
}
