//! The forward plane's program, run on packets that go nowhere: what leaves is compared with the model's.

use std::time::Duration;

use fastrand::Rng;
use lemonade::proxy::adapters::bpf::Forward;
use lemonade_common::PacketReason as Reason;
use lemonade_common::decide::Verdict;
use lemonade_common::forward::Service;
use lemonade_common::packet::{ACK, FIN, RST, SYN};
use lemonade_tests::packets::{self, Shape, icmp_error, translated};
use lemonade_tests::skip::full;
use lemonade_tests::tables::Tables;
use lemonade_tests::world::{
    VIP4, VIP6, any_shape, backend, balancer, decided, parse_address, service_key, target, world,
};

/// Actions of tc.
pub const PASS: u32 = u32::MAX;
pub const DROP: u32 = 2;
pub const REDIRECT: u32 = 7;

/// The tables of the model, in the kernel.
pub fn load(tables: &Tables) -> Forward {
    load_for(tables, 1 << 16)
}

/// With room for so many entries of flows.
pub fn load_for(tables: &Tables, entries: u32) -> Forward {
    let mut forward = Forward::load(entries, 2, tables.seed).expect("the program passes the verifier");
    for (ring, slots) in tables.rings.iter().enumerate() {
        forward.fill_ring(ring as u32, slots);
    }
    for (ix, target) in &tables.targets {
        forward.put_target(*ix, *target).expect("there is room");
    }
    for (key, service) in &tables.services {
        forward.put_service(*key, *service).expect("there is room");
    }
    forward
}

pub fn run(forward: &mut Forward, packet: &[u8]) -> (u32, Vec<u8>) {
    let trial = forward.trial(packet, 1).expect("a trial");
    (trial.action, trial.packet)
}

/// Runs a packet, and says which reason was counted for it.
pub fn reason(forward: &mut Forward, packet: &[u8]) -> (u32, Reason) {
    let before = forward.reasons();
    let (action, _) = run(forward, packet);
    let counted =
        Reason::ALL.into_iter().filter(|reason| forward.reasons()[reason.index()] != before[reason.index()]);
    let counted: Vec<_> = counted.collect();
    assert_eq!(counted.len(), 1, "one packet, one reason: {counted:?}");
    (action, counted[0])
}

#[test]
fn what_leaves_is_what_the_model_says_in_both_directions() {
    let tables = world();
    let mut forward = load(&tables);
    let mut random = Rng::with_seed(11);
    for _ in 0..4_000 {
        let mut shape = any_shape(&mut random);
        let v6 = shape.from.is_ipv6();
        shape.to = parse_address(if v6 { VIP6 } else { VIP4 });
        shape.flags = SYN;
        let bytes = shape.build();
        let Verdict::Forward(model, Reason::Opened) = decided(&tables, &bytes, 1) else {
            continue;
        };
        let (action, out) = run(&mut forward, &bytes);
        assert_eq!(action, REDIRECT, "{shape:?}");
        let said = packets::read(&out).unwrap_or_else(|why| panic!("{why}: {shape:?}"));
        assert_eq!(out, translated(&bytes, said.from, said.to), "{shape:?}");
        // The model knows of the same flows, so it takes the same ports.
        assert_eq!(
            (said.to.port().to_be_bytes(), said.from.port().to_be_bytes()),
            (model.dport, model.sport)
        );
        assert_eq!(said.from.ip(), balancer(v6, 0).ip());
        assert_eq!(said.to, backend(model.backend, v6));
        let answer = Shape { from: said.to, to: said.from, flags: SYN | ACK, ..shape.clone() }.build();
        let (action, back) = run(&mut forward, &answer);
        assert_eq!((action, back), (REDIRECT, translated(&answer, shape.to, shape.from)), "{shape:?}");
        let more = Shape { flags: ACK, ..shape.clone() }.build();
        let (action, on) = run(&mut forward, &more);
        assert_eq!((action, on), (REDIRECT, translated(&more, said.from, said.to)), "{shape:?}");
    }
    let flows = forward.flows().expect("the table is read");
    assert_eq!(flows.len(), tables.flows.borrow().len());
    for (key, flow) in &flows {
        let model = tables.flows.borrow()[key];
        assert_eq!((flow.leaves(), flow.backend), (model.leaves(), model.backend));
        assert!(flow.packets.get() >= 1, "{key:?}");
    }
}

/// Completes the handshake that a SYN began, which left as `out`.
pub fn complete(forward: &mut Forward, syn: &Shape, out: &[u8]) {
    let said = packets::read(out).expect("well-formed");
    let answer = Shape { from: said.to, to: said.from, flags: SYN | ACK, ..syn.clone() };
    for packet in [answer, Shape { flags: ACK, ..syn.clone() }] {
        assert_eq!(run(forward, &packet.build()).0, REDIRECT);
    }
}

/// Packets of a property.
fn rounds() -> u32 {
    if full() { 10_000_000 } else { 100_000 }
}

#[test]
fn packets_for_nobody_are_left_as_they_are() {
    let mut forward = load(&world());
    let mut random = Rng::with_seed(12);
    let rounds = rounds();
    for _ in 0..rounds {
        let mut shape = any_shape(&mut random);
        shape.tags = (0..random.usize(..3).saturating_sub(1)).map(|_| random.u16(..)).collect();
        let mut bytes = shape.build();
        for _ in 0..random.usize(..3) {
            // Anything but the addresses may be wrong.
            let at = random.usize(14..22);
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(20..=bytes.len().max(20)));
        let Ok(trial) = forward.trial(&bytes, 1) else { continue };
        assert_eq!(trial.action, PASS, "{shape:?}");
        assert_eq!(trial.packet, bytes, "{shape:?}");
    }
    assert!(forward.flows().expect("the table is read").is_empty());
    println!("{rounds} packets: {:?}", forward.reasons());
}

#[test]
fn changed_packets_for_a_service_leave_well_formed_or_not_at_all() {
    let mut forward = load(&world());
    let mut random = Rng::with_seed(13);
    let rounds = rounds();
    let mut sent = 0;
    for round in 1..=rounds {
        if round % 50_000 == 0 {
            // A full table would let nothing more through.
            println!("{sent} of {round} sent: {:?}", forward.reasons());
            forward = load(&world());
        }
        let mut shape = any_shape(&mut random);
        shape.to = parse_address(if shape.from.is_ipv6() { VIP6 } else { VIP4 });
        let mut bytes = shape.build();
        let well_formed = random.bool();
        if !well_formed {
            for _ in 0..random.usize(1..4) {
                let at = random.usize(14..bytes.len().min(75));
                bytes[at] = random.u8(..);
            }
        }
        let before = packets::read(&bytes);
        let Ok(trial) = forward.trial(&bytes, 1) else { continue };
        match trial.action {
            REDIRECT => {
                sent += 1;
                assert_eq!(trial.packet.len(), bytes.len());
                // What was right stays right; a wrong checksum is not mended on the way.
                if before.is_ok() {
                    let after = packets::read(&trial.packet);
                    let after = after.unwrap_or_else(|why| panic!("{why}: {bytes:02x?}"));
                    assert_eq!(trial.packet, translated(&bytes, after.from, after.to));
                }
            }
            PASS => assert_eq!(trial.packet, bytes),
            DROP => {}
            other => panic!("action {other}"),
        }
    }
    assert!(sent > rounds / 5, "only {sent} of {rounds} were sent");
}

#[test]
fn each_reason_is_counted_once_for_its_packet() {
    let mut tables = world();
    tables.targets.insert(0, lemonade_common::forward::Target { ports: 1, ..target(0) });
    // All of IPv4 goes to the backend that has one port.
    tables.rings[0].fill(0);
    let empty = Service { ring: 1, frontend: 2, ..Service::default() };
    tables.services.insert(service_key("192.0.2.11:80", 6), empty);
    let mut forward = load(&tables);
    let syn = Shape::tcp("10.9.9.9:5000", VIP4, SYN);
    assert_eq!(reason(&mut forward, &syn.build()), (REDIRECT, Reason::Opened));
    assert_eq!(reason(&mut forward, &syn.build()), (REDIRECT, Reason::Forwarded));
    let second = Shape::tcp("10.9.9.9:5001", VIP4, SYN).build();
    assert_eq!(reason(&mut forward, &second), (DROP, Reason::PortsExhausted));
    let late = Shape::tcp("10.9.9.9:5002", VIP4, ACK).build();
    assert_eq!(reason(&mut forward, &late), (PASS, Reason::UnknownFlow));
    let options = Shape { options: vec![1; 4], ..syn.clone() }.build();
    assert_eq!(reason(&mut forward, &options), (DROP, Reason::Options));
    let last = Shape { ttl: 1, ..syn.clone() }.build();
    assert_eq!(reason(&mut forward, &last), (DROP, Reason::HopLimit));
    let tagged = Shape { tags: vec![7], ..syn.clone() }.build();
    assert_eq!(reason(&mut forward, &tagged), (PASS, Reason::Tagged));
    forward.fill_ring(0, &vec![lemonade_common::maglev::EMPTY; lemonade_common::maglev::SLOTS as usize]);
    assert_eq!(reason(&mut forward, &second), (PASS, Reason::NoBackend));
    assert_eq!(reason(&mut forward, &syn.build()), (REDIRECT, Reason::Forwarded), "a live flow stays");
    let mut fragment = Shape::udp("10.9.9.9:5000", VIP4, &[1; 64]).build();
    fragment[20] = 0x20;
    assert_eq!(reason(&mut forward, &fragment), (DROP, Reason::Fragment));
    forward.remove_service(service_key(VIP4, 6));
    assert_eq!(reason(&mut forward, &second), (PASS, Reason::NotOurs));
    let stranger = Shape::udp("10.5.5.5:1", "10.6.6.6:2", &[0; 64]).build();
    let foreign = icmp_error(parse_address("10.0.0.77:0").ip(), 3, &stranger, 100);
    assert_eq!(reason(&mut forward, &foreign), (PASS, Reason::OtherProtocol));
}

#[test]
fn a_full_table_drops_what_would_open_a_flow() {
    let tables = world();
    let mut forward = Forward::load(4, 2, tables.seed).expect("the program passes the verifier");
    forward.fill_ring(0, &tables.rings[0]);
    for n in 0..3 {
        forward.put_target(n, target(n)).expect("there is room");
    }
    forward.put_service(service_key(VIP4, 6), Service::default()).expect("there is room");
    let mut actions = Vec::new();
    for port in 1..40 {
        let syn = Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN);
        let (action, out) = run(&mut forward, &syn.build());
        actions.push(action);
        if action == REDIRECT {
            complete(&mut forward, &syn, &out);
        }
    }
    assert!(forward.reasons()[Reason::TableFull.index()] > 0, "{actions:?}");
    assert!(actions.contains(&REDIRECT) && actions.contains(&DROP), "{actions:?}");
    assert_eq!(forward.flows().expect("the table is read").len() % 2, 0, "half a flow is left");
}

#[test]
fn the_end_of_a_flow_is_written_in_both_directions() {
    let mut forward = load(&world());
    let syn = Shape::tcp("10.9.9.9:5000", VIP4, SYN);
    let said = packets::read(&run(&mut forward, &syn.build()).1).expect("well-formed");
    let state = |forward: &Forward| {
        let flows = forward.flows().expect("the table is read");
        let states: Vec<u32> = flows.iter().map(|(_, flow)| flow.state() & !1).collect();
        assert!(states.len() == 2 && states[0] == states[1], "{states:?}");
        states[0]
    };
    assert_eq!(state(&forward), 0);
    let answer = |flags: u8| Shape { from: said.to, to: said.from, flags, ..syn.clone() }.build();
    run(&mut forward, &answer(SYN | ACK));
    assert_eq!(state(&forward), 2);
    run(&mut forward, &Shape { flags: ACK, ..syn.clone() }.build());
    assert_eq!(state(&forward), 2 | 32);
    run(&mut forward, &answer(FIN | ACK));
    assert_eq!(state(&forward), 2 | 8 | 32);
    run(&mut forward, &Shape { flags: FIN | ACK, ..syn.clone() }.build());
    assert_eq!(state(&forward), 2 | 4 | 8 | 32);
    run(&mut forward, &answer(RST));
    assert_eq!(state(&forward), 2 | 4 | 8 | 16 | 32);
}

#[test]
fn rings_are_apart_and_services_flip_from_one_to_the_other() {
    let tables = world();
    let mut forward = load(&tables);
    let seen = |forward: &mut Forward, port: u16| {
        let packet = Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN).build();
        packets::read(&run(forward, &packet).1).expect("well-formed").to
    };
    let used: std::collections::HashSet<_> = (1..50).map(|port| seen(&mut forward, port)).collect();
    assert_eq!(used.len(), 3);
    forward.fill_ring(1, &vec![2; lemonade_common::maglev::SLOTS as usize]);
    forward
        .put_service(service_key(VIP4, 6), Service { frontend: 1, ring: 1, ..Service::default() })
        .expect("there is room");
    let used: std::collections::HashSet<_> = (50..100).map(|port| seen(&mut forward, port)).collect();
    assert_eq!(used, [backend(2, false)].into());
}

/// Prints what a packet of an established flow costs; judged by people, since a timed test is none.
#[test]
fn the_cost_of_an_established_flow_is_shown() {
    let mut forward = load(&world());
    let stranger = Shape::tcp("10.9.9.9:5000", "10.8.8.8:80", ACK).carrying(&[0; 64]).build();
    let best = |forward: &mut Forward, packet: &[u8]| -> Duration {
        (0..5).map(|_| forward.trial(packet, 100_000).expect("a trial").took).min().unwrap_or_default()
    };
    let nobody = best(&mut forward, &stranger);
    for (family, client, vip) in [("IPv4", "10.9.9.9:5000", VIP4), ("IPv6", "[fd09::9]:5000", VIP6)] {
        let syn = Shape { ttl: 255, ..Shape::tcp(client, vip, SYN) };
        run(&mut forward, &syn.build());
        // The program changes the packet, so the second run of a trial sees what leaves the first: it is for nobody.
        let packet = Shape { flags: ACK, ..syn }.carrying(&[0; 64]).build();
        let one =
            (0..2_000).map(|_| forward.trial(&packet, 1).expect("a trial").took).min().unwrap_or_default();
        println!("{family}: {one:?} established (one run at a time), {nobody:?} for nobody");
        assert!(one > Duration::ZERO);
    }
}
