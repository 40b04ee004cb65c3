//! What is decided on packets, and what they become.

use std::collections::HashMap;

use fastrand::Rng;
use lemonade_common::PacketReason as Reason;
use lemonade_common::decide::{LINGER, TableView as _, Verdict};
use lemonade_common::forward::{
    ANSWERED, BY_SOURCE, DOWN, FIN_DOWN, FIN_UP, PASS_FRAGMENTS, Service, Target,
};
use lemonade_common::hash::flow_hash;
use lemonade_common::maglev::{EMPTY, SLOTS, slot};
use lemonade_common::packet::{ACK, FIN, RST, SYN};
use lemonade_tests::packets::{self, Shape, icmp_error, translated};
use lemonade_tests::tables::{Tables, rewritten};

use lemonade_tests::world::{
    INSIDE, OUTSIDE, PORTS, VIP4, VIP6, any_shape, backend, balancer, decided, parse_address, read,
    service_key, target, world,
};

fn passed(verdict: Verdict<'_>) -> Reason {
    match verdict {
        Verdict::Pass(reason) => reason,
        other => panic!("{other:?}"),
    }
}

fn dropped(verdict: Verdict<'_>) -> Reason {
    match verdict {
        Verdict::Drop(reason) => reason,
        other => panic!("{other:?}"),
    }
}

/// Decides on a packet that goes on; what it becomes, by which interface, and why.
fn forwarded(tables: &Tables, bytes: &[u8], now: u64) -> (Vec<u8>, u32, Reason) {
    match decided(tables, bytes, now) {
        Verdict::Forward(flow, reason) => (rewritten(bytes, &read(bytes), flow), flow.interface, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flow_goes_to_the_backend_of_its_slot_and_its_answers_come_back() {
    let tables = world();
    let mut random = Rng::with_seed(3);
    for _ in 0..20_000 {
        let mut shape = any_shape(&mut random);
        let v6 = shape.from.is_ipv6();
        shape.to = parse_address(if v6 { VIP6 } else { VIP4 });
        shape.flags = SYN;
        let bytes = shape.build();
        let (out, interface, reason) = forwarded(&tables, &bytes, 1);
        assert_eq!((interface, reason), (INSIDE, Reason::Opened));
        let said = packets::read(&out).unwrap_or_else(|why| panic!("{why}: {shape:?}"));
        // The ring of the world names backends by the slot's number.
        let ring_slot = slot(flow_hash(&read(&bytes).key, 42));
        assert_eq!(said.to, backend(ring_slot % 3 + if v6 { 3 } else { 0 }, v6));
        assert_eq!(said.from.ip(), balancer(v6, 0).ip());
        let offset = u32::from(said.from.port()) - u32::from(PORTS.0);
        assert!(offset < PORTS.1, "{}", said.from);
        assert_eq!(out, translated(&bytes, said.from, said.to), "{shape:?}");
        // The answer, and what follows in both directions.
        let answer = Shape { from: said.to, to: said.from, flags: SYN | ACK, ..shape.clone() }.build();
        let (back, interface, reason) = forwarded(&tables, &answer, 2);
        assert_eq!((interface, reason), (OUTSIDE, Reason::Forwarded));
        assert_eq!(back, translated(&answer, shape.to, shape.from), "{shape:?}");
        let more = Shape { flags: ACK, ..shape.clone() }.build();
        let (on, _, reason) = forwarded(&tables, &more, 3);
        assert_eq!((on, reason), (translated(&more, said.from, said.to), Reason::Forwarded));
    }
}

#[test]
fn packets_for_no_service_are_left_alone() {
    let tables = world();
    let mut random = Rng::with_seed(4);
    for _ in 0..100_000 {
        let shape = any_shape(&mut random);
        assert_eq!(passed(decided(&tables, &shape.build(), 1)), Reason::NotOurs, "{shape:?}");
    }
    assert!(tables.flows.borrow().is_empty());
    // The service's address with another port, and its port with another protocol, are none either.
    let other = Shape::tcp("10.9.9.9:5000", "192.0.2.10:81", SYN);
    assert_eq!(passed(decided(&tables, &other.build(), 1)), Reason::NotOurs);
    let tagged = Shape { tags: vec![5], ..Shape::tcp("10.9.9.9:5000", VIP4, SYN) };
    assert_eq!(passed(decided(&tables, &tagged.build(), 1)), Reason::Tagged);
}

#[test]
fn only_a_syn_opens_a_connection() {
    let tables = world();
    for flags in [0, ACK, FIN | ACK, RST, SYN | ACK, SYN | FIN, SYN | RST] {
        let packet = Shape::tcp("10.9.9.9:5000", VIP4, flags).build();
        assert_eq!(passed(decided(&tables, &packet, 1)), Reason::UnknownFlow, "flags {flags:02x}");
    }
    assert!(tables.flows.borrow().is_empty());
}

#[test]
fn odd_packets_for_a_service_are_dropped_and_fragments_as_it_says() {
    let mut tables = world();
    let options = Shape { options: vec![1; 4], ..Shape::tcp("10.9.9.9:5000", VIP4, SYN) };
    assert_eq!(dropped(decided(&tables, &options.build(), 1)), Reason::Options);
    let last_hop = Shape { ttl: 1, ..Shape::tcp("10.9.9.9:5000", VIP4, SYN) };
    assert_eq!(dropped(decided(&tables, &last_hop.build(), 1)), Reason::HopLimit);
    let mut fragment = Shape::udp("10.9.9.9:5000", VIP4, &[1; 64]).build();
    fragment[20] = 0x20;
    assert_eq!(dropped(decided(&tables, &fragment, 1)), Reason::Fragment);
    let service = tables.services.get_mut(&service_key(VIP4, 17)).expect("it is served");
    service.flags |= PASS_FRAGMENTS;
    assert_eq!(passed(decided(&tables, &fragment, 1)), Reason::Fragment);
}

#[test]
fn fragments_of_a_flow_that_is_known_go_where_the_service_says() {
    let mut tables = world();
    for protocol in [6, 17] {
        tables.services.get_mut(&service_key(VIP4, protocol)).expect("it is served").flags |= PASS_FRAGMENTS;
    }
    for (whole, left) in
        [(Shape::udp("10.9.9.9:5000", VIP4, &[1; 64]), true), (Shape::tcp("10.9.9.9:5000", VIP4, SYN), false)]
    {
        let mut packet = whole.build();
        assert!(matches!(decided(&tables, &packet, 1), Verdict::Forward(..)));
        packet[20] = 0x20;
        let verdict = decided(&tables, &packet, 1);
        // The host would reset a connection that it does not have.
        let told = if left { passed(verdict) } else { dropped(verdict) };
        assert_eq!(told, Reason::Fragment);
    }
}

#[test]
fn without_a_backend_the_host_refuses() {
    let mut tables = world();
    tables.rings[0] = vec![EMPTY; SLOTS as usize];
    let packet = Shape::tcp("10.9.9.9:5000", VIP4, SYN).build();
    assert_eq!(passed(decided(&tables, &packet, 1)), Reason::NoBackend);
    tables.rings[0] = vec![99; SLOTS as usize];
    assert_eq!(passed(decided(&tables, &packet, 1)), Reason::NoBackend, "a backend that is not there");
    assert!(tables.flows.borrow().is_empty());
}

#[test]
fn ports_never_serve_two_flows_and_their_end_is_counted() {
    let mut tables = world();
    for n in 0..3 {
        tables.targets.insert(n, Target { ports: 64, ..target(n) });
    }
    let mut used = HashMap::new();
    let mut exhausted = 0;
    for port in 1_000..2_000_u16 {
        let packet = Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN).build();
        match decided(&tables, &packet, 1) {
            Verdict::Forward(flow, Reason::Opened) => {
                let before = used.insert((flow.sport, flow.dst), port);
                assert_eq!(before, None, "one port for two flows");
            }
            Verdict::Drop(Reason::PortsExhausted) => exhausted += 1,
            other => panic!("{other:?}"),
        }
    }
    // Sixteen tries find a free port of 64 until few are left.
    assert!((170..=192).contains(&used.len()), "{} of 192 ports found", used.len());
    assert_eq!(used.len() + exhausted, 1_000);
    assert_eq!(tables.flows.borrow().len(), used.len() * 2, "half a flow is left");
}

#[test]
fn ports_of_ended_flows_serve_again_when_there_are_no_others() {
    let mut tables = world();
    for n in 0..3 {
        tables.targets.insert(n, Target { ports: 1, ..target(n) });
    }
    let first = Shape::tcp("10.9.9.9:5000", VIP4, SYN);
    let (out, ..) = forwarded(&tables, &first.build(), 1);
    let said = packets::read(&out).expect("well-formed");
    let chosen = |port: u16| {
        let packet = Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN).build();
        backend(slot(flow_hash(&read(&packet).key, 42)) % 3, false)
    };
    let rival = (5_001..).find(|port| chosen(*port) == said.to).expect("a third of them");
    let rival = Shape::tcp(&format!("10.9.9.9:{rival}"), VIP4, SYN).build();
    assert_eq!(dropped(decided(&tables, &rival, 2)), Reason::PortsExhausted);
    let reset = Shape { from: said.to, to: said.from, flags: RST, ..first.clone() }.build();
    forwarded(&tables, &reset, 3);
    assert_eq!(dropped(decided(&tables, &rival, LINGER)), Reason::PortsExhausted, "it ended just now");
    let (out, ..) = forwarded(&tables, &rival, LINGER + 4);
    assert_eq!(packets::read(&out).expect("well-formed").from, said.from);
    assert_eq!(tables.flows.borrow().len(), 2, "the former flow is gone");
    let late = Shape { flags: ACK, ..first }.build();
    assert_eq!(passed(decided(&tables, &late, LINGER + 5)), Reason::UnknownFlow);
}

#[test]
fn a_client_may_use_its_port_again_after_the_end() {
    let tables = world();
    let syn = Shape::tcp("10.9.9.9:5000", VIP4, SYN);
    let (out, ..) = forwarded(&tables, &syn.build(), 1);
    let said = packets::read(&out).expect("well-formed");
    let (_, _, reason) = forwarded(&tables, &syn.build(), 2);
    assert_eq!(reason, Reason::Forwarded, "a SYN sent again keeps its flow");
    let up = Shape { flags: FIN | ACK, ..syn.clone() }.build();
    let down = Shape { from: said.to, to: said.from, flags: FIN | ACK, ..syn.clone() }.build();
    forwarded(&tables, &up, 3);
    let (_, _, reason) = forwarded(&tables, &syn.build(), 4);
    assert_eq!(reason, Reason::Forwarded, "half-closed is not ended");
    forwarded(&tables, &down, 5);
    let last = Shape { flags: ACK, ..syn.clone() }.build();
    assert_eq!(forwarded(&tables, &last, 6).2, Reason::Forwarded, "the last ACK still arrives");
    assert_eq!(forwarded(&tables, &syn.build(), 7).2, Reason::Opened);
    assert_eq!(tables.flows.borrow().len(), 2);
}

#[test]
fn each_direction_writes_words_of_its_own() {
    // The two directions are often on two cores: a word that both wrote lost one of two FINs that came at once.
    let tables = world();
    let syn = Shape::tcp("10.9.9.9:5000", VIP4, SYN);
    let (out, ..) = forwarded(&tables, &syn.build(), 1);
    let said = packets::read(&out).expect("well-formed");
    let answer = Shape { from: said.to, to: said.from, flags: FIN | ACK, ..syn.clone() }.build();
    let words = || {
        let of = |bytes: &[u8]| {
            let flow = tables.flow(&read(bytes).key).expect("it is there");
            (flow.state.get() & !u64::from(DOWN), flow.told.get())
        };
        (of(&syn.build()), of(&answer))
    };
    forwarded(&tables, &Shape { flags: FIN | ACK, ..syn.clone() }.build(), 2);
    let up = u64::from(FIN_UP);
    assert_eq!(words(), ((up, 0), (0, up)));
    forwarded(&tables, &answer, 3);
    let down = u64::from(FIN_DOWN | ANSWERED);
    assert_eq!(words(), ((up, down), (down, up)));
}

#[test]
fn a_full_table_drops_and_keeps_no_half_flows() {
    let tables = Tables { room: 3, ..world() };
    let syn = |port: u16| Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN).build();
    forwarded(&tables, &syn(1), 1);
    assert_eq!(dropped(decided(&tables, &syn(2), 1)), Reason::TableFull);
    assert_eq!(tables.flows.borrow().len(), 2);
}

#[test]
fn a_client_keeps_its_backend_where_the_source_decides() {
    let mut tables = world();
    let service = Service { frontend: 1, flags: BY_SOURCE, ..Service::default() };
    tables.services.insert(service_key(VIP4, 6), service);
    let mut used = HashMap::new();
    for client in 0..60 {
        for port in 1..20 {
            let packet = Shape::tcp(&format!("10.9.9.{client}:{port}"), VIP4, SYN).build();
            let to = packets::read(&forwarded(&tables, &packet, 1).0).expect("well-formed").to;
            assert_eq!(*used.entry(client).or_insert(to), to, "client {client} has two backends");
        }
    }
    let chosen: std::collections::HashSet<_> = used.values().collect();
    assert_eq!(chosen.len(), 3);
}

#[test]
fn an_icmp_error_about_a_flow_goes_where_the_flow_goes() {
    let tables = world();
    for (client, vip, router) in
        [("10.9.9.9:5000", VIP4, "10.0.0.77:0"), ("[fd09::9]:5000", VIP6, "[fd00::77]:0")]
    {
        let (out, ..) = forwarded(&tables, &Shape::udp(client, vip, &[1; 600]).build(), 1);
        let kind = if vip == VIP4 { 3 } else { 2 };
        let error = icmp_error(parse_address(router).ip(), kind, &out, 100);
        let Verdict::Forward(flow, Reason::IcmpError) = decided(&tables, &error, 2) else {
            panic!("it is about a flow");
        };
        assert_eq!(flow.interface, OUTSIDE);
        assert_eq!(flow.leaves(), read(&Shape::udp(vip, client, &[]).build()).key);
        let stranger = Shape::udp("10.5.5.5:1", "10.6.6.6:2", &[0; 64]).build();
        let foreign = icmp_error(parse_address("10.0.0.77:0").ip(), 3, &stranger, 100);
        assert_eq!(passed(decided(&tables, &foreign, 2)), Reason::OtherProtocol);
    }
}
