//! The program at XDP, between namespaces whose routes and neighbours are known: bytes are the model's.

use std::time::Duration;

use fastrand::Rng;
use lemonade::proxy::adapters::bpf::Forward;
use lemonade_common::PacketReason as Reason;
use lemonade_common::decide::Verdict;
use lemonade_common::forward::{
    ANSWER_ECHO, DSR_IPIP, DSR_L2, NAT, NAT_GATEWAY, PASS_FRAGMENTS, Service, ServiceKey,
};
use lemonade_common::packet::{ACK, RST, SYN};
use lemonade_tests::netns::Network;
use lemonade_tests::packets::{self, Shape, echo, icmp_error, translated, unwrapped, wrapped};
use lemonade_tests::tables::Tables;
use lemonade_tests::world::{VIP4, VIP6, any_shape, backend, balancer, decided, parse_address, world_in};

use crate::forward::load_for;
use crate::forwarding::interface_index;

const DROP: u32 = 1;
const PASS: u32 = 2;
pub const TX: u32 = 3;
pub const REDIRECT: u32 = 4;

/// Longer than the program at XDP knows a next hop, whatever the kernel's clock.
const TICK: Duration = Duration::from_millis(20);

/// Ethernet addresses of the next hop and of the balancer's interface, towards clients and towards backends.
const TO_CLIENT: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]];
const TO_BACKENDS: [[u8; 6]; 2] = [[2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 2, 2]];

/// The program in a namespace that knows its neighbours.
pub struct Plane<'n> {
    network: &'n Network,
    pub forward: Forward,
    pub outside: u32,
    inside: u32,
}

fn text(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

impl<'n> Plane<'n> {
    fn start(network: &'n Network, tables: &mut Tables) -> Self {
        Self::start_for(network, tables, 1 << 16)
    }

    /// With room for so many entries of flows.
    pub fn start_for(network: &'n Network, tables: &mut Tables, entries: u32) -> Self {
        for (device, [far, own], net) in [("to_client", TO_CLIENT, 1), ("to_backends", TO_BACKENDS, 2)] {
            network.balancer.ip(&format!("link set {device} address {}", text(own)));
            for hop in [format!("10.77.{net}.1"), format!("fd77:{net}::1")] {
                let lladdr = text(far);
                network
                    .balancer
                    .ip(&format!("neigh replace {hop} lladdr {lladdr} dev {device} nud permanent"));
            }
        }
        for (to, hop, device) in [
            ("10.0.0.0/24", "10.77.2.1", "to_backends"),
            ("fd00::/64", "fd77:2::1", "to_backends"),
            ("10.0.0.0/8", "10.77.1.1", "to_client"),
            ("fd00::/8", "fd77:1::1", "to_client"),
        ] {
            network.balancer.ip(&format!("route replace {to} via {hop} dev {device}"));
        }
        let [outside, inside] = network.balancer.enter(|| {
            for family in ["ipv4", "ipv6"] {
                let switch = format!("/proc/sys/net/{family}/conf/all/forwarding");
                std::fs::write(&switch, "1").unwrap_or_else(|error| panic!("{switch}: {error}"));
            }
            ["to_client", "to_backends"].map(interface_index)
        });
        for target in tables.targets.values_mut() {
            target.interface = inside;
        }
        let mut forward = load_for(tables, entries);
        network.balancer.enter(|| {
            for device in ["to_client", "to_backends"] {
                forward.attach_xdp(device, true).expect("veth takes programs");
            }
        });
        // The interface of clients is that of the model's packets too.
        tables.outside = outside;
        Self { network, forward, outside, inside }
    }

    fn run(&mut self, packet: &[u8], interface: u32) -> (u32, Vec<u8>) {
        let forward = &mut self.forward;
        let trial = self.network.balancer.enter(|| forward.trial_xdp(packet, interface, 1)).expect("a trial");
        (trial.action, trial.packet)
    }

    /// Runs a packet that must leave by the other interface; what is left of it behind its Ethernet addresses, which are
    /// checked.
    pub fn leaves(&mut self, packet: &[u8], from: u32) -> Vec<u8> {
        let (action, mut out) = self.run(packet, from);
        assert_eq!(action, REDIRECT, "{packet:02x?}");
        let [far, own] = if from == self.outside { TO_BACKENDS } else { TO_CLIENT };
        assert_eq!((&out[..6], &out[6..12]), (&far[..], &own[..]));
        out[..12].copy_from_slice(&packet[..12]);
        out
    }

    /// Runs a packet from outside, and says which reason was counted for it.
    fn reason(&mut self, packet: &[u8]) -> (u32, Reason) {
        let before = self.forward.reasons();
        let (action, _) = self.run(packet, self.outside);
        let after = self.forward.reasons();
        let counted =
            Reason::ALL.into_iter().filter(|reason| after[reason.index()] != before[reason.index()]);
        let counted: Vec<_> = counted.collect();
        assert_eq!(counted.len(), 1, "one packet, one reason: {counted:?}");
        (action, counted[0])
    }
}

fn any_client(random: &mut Rng) -> Shape {
    let mut shape = any_shape(random);
    shape.to = parse_address(if shape.from.is_ipv6() { VIP6 } else { VIP4 });
    Shape { flags: SYN, ..shape }
}

fn both_ways(test: &str, mode: u32) {
    let Some(network) = Network::start(test) else { return };
    let mut tables = world_in(mode);
    let mut plane = Plane::start(&network, &mut tables);
    let (outside, inside) = (plane.outside, plane.inside);
    let mut random = Rng::with_seed(41);
    for _ in 0..2_000 {
        let shape = any_client(&mut random);
        let (bytes, v6) = (shape.build(), shape.from.is_ipv6());
        let model = match decided(&tables, &bytes, 1) {
            Verdict::Forward(model, Reason::Opened) => model,
            Verdict::Drop(_) => continue,
            other => panic!("{other:?}: {shape:?}"),
        };
        let out = plane.leaves(&bytes, outside);
        let more = Shape { flags: ACK, class: 9, ..shape.clone() }.build();
        if mode == DSR_IPIP {
            let outer_v6 = model.backend >= 3;
            let (from, to) = (balancer(outer_v6, 0).ip(), backend(model.backend, outer_v6).ip());
            let label = if outer_v6 { model.port_delta } else { 0 };
            assert_eq!(out, wrapped(&bytes, from, to, label), "{shape:?}");
            assert_eq!(plane.leaves(&more, outside), wrapped(&more, from, to, label), "{shape:?}");
            continue;
        }
        if mode == DSR_L2 {
            assert_eq!((out, plane.leaves(&more, outside)), (bytes, more), "{shape:?}");
            continue;
        }
        let said = packets::read(&out).unwrap_or_else(|why| panic!("{why}: {shape:?}"));
        assert_eq!(said.to, backend(model.backend, v6));
        assert_eq!(said.from.port().to_be_bytes(), model.sport);
        assert_eq!(out, translated(&bytes, said.from, said.to), "{shape:?}");
        assert_eq!(plane.leaves(&more, outside), translated(&more, said.from, said.to), "{shape:?}");
        let answer = Shape { from: said.to, to: said.from, flags: SYN | ACK, ..shape.clone() }.build();
        assert_eq!(plane.leaves(&answer, inside), translated(&answer, shape.to, shape.from), "{shape:?}");
    }
    let flows = plane.forward.flows().expect("the table is read");
    assert_eq!(flows.len(), tables.flows.borrow().len());
}

#[test]
fn at_xdp_nat_leaves_what_the_model_says() {
    both_ways("at_xdp_nat_leaves_what_the_model_says", NAT);
}

#[test]
fn at_xdp_the_gateway_leaves_what_the_model_says() {
    both_ways("at_xdp_the_gateway_leaves_what_the_model_says", NAT_GATEWAY);
}

#[test]
fn at_xdp_packets_leave_over_the_link_as_they_are() {
    both_ways("at_xdp_packets_leave_over_the_link_as_they_are", DSR_L2);
}

#[test]
fn at_xdp_packets_leave_wrapped() {
    both_ways("at_xdp_packets_leave_wrapped", DSR_IPIP);
}

#[test]
fn at_xdp_packets_for_nobody_are_left_as_they_are() {
    let test = "at_xdp_packets_for_nobody_are_left_as_they_are";
    let Some(network) = Network::start(test) else { return };
    let mut plane = Plane::start(&network, &mut world_in(DSR_IPIP));
    let mut random = Rng::with_seed(42);
    let rounds = if lemonade_tests::skip::full() { 10_000_000 } else { 100_000 };
    let (forward, outside) = (&mut plane.forward, plane.outside);
    network.balancer.enter(|| {
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
            let Ok(trial) = forward.trial_xdp(&bytes, outside, 1) else { continue };
            assert_eq!((trial.action, trial.packet), (PASS, bytes), "{shape:?}");
        }
    });
    assert!(plane.forward.flows().expect("the table is read").is_empty());
    println!("{rounds} packets: {:?}", plane.forward.reasons());
}

#[test]
fn at_xdp_what_cannot_be_sent_is_left_to_tc() {
    let test = "at_xdp_what_cannot_be_sent_is_left_to_tc";
    let Some(network) = Network::start(test) else { return };
    let mut plane = Plane::start(&network, &mut world_in(DSR_IPIP));
    let syn = Shape::tcp("10.9.9.9:5000", VIP4, SYN);
    assert_eq!(plane.reason(&syn.build()), (REDIRECT, Reason::Opened));
    assert_eq!(plane.reason(&syn.build()), (REDIRECT, Reason::Forwarded));
    // 1,460 bytes of data fill an Ethernet frame, so that no other header fits in front.
    let full = Shape { flags: ACK, ..syn.clone() }.carrying(&[0; 1460]).build();
    assert_eq!(plane.reason(&full), (PASS, Reason::LeftToTc));
    let fitting = Shape { flags: ACK, ..syn.clone() }.carrying(&[0; 1420]).build();
    assert_eq!(plane.reason(&fitting), (REDIRECT, Reason::Forwarded));
    for hop in ["10.77.2.1", "fd77:2::1"] {
        network.balancer.ip(&format!("neigh del {hop} dev to_backends"));
    }
    std::thread::sleep(TICK);
    assert_eq!(plane.reason(&syn.build()), (PASS, Reason::NoNeighbour));
    network.balancer.ip("route del 10.0.0.0/24");
    network.balancer.ip("route del fd00::/64");
    // Nothing is known of what was no success.
    assert_eq!(plane.reason(&syn.build()), (PASS, Reason::LeftToTc));
}

#[test]
fn at_xdp_a_change_of_the_way_is_seen_a_tick_later() {
    let test = "at_xdp_a_change_of_the_way_is_seen_a_tick_later";
    let Some(network) = Network::start(test) else { return };
    let mut plane = Plane::start(&network, &mut world_in(NAT));
    let outside = plane.outside;
    for (client, vip, hop, other, to) in [
        ("10.9.9.9:5000", VIP4, "10.77.2.1", "10.77.2.9", "10.0.0.0/24"),
        ("[fd09::9]:5000", VIP6, "fd77:2::1", "fd77:2::9", "fd00::/64"),
    ] {
        let syn = Shape::tcp(client, vip, SYN).build();
        plane.leaves(&syn, outside);
        let changes = [
            (format!("neigh replace {hop} lladdr 02:00:00:00:02:08 dev to_backends nud permanent"), 8),
            (format!("neigh replace {other} lladdr 02:00:00:00:02:09 dev to_backends nud permanent"), 8),
            (format!("route replace {to} via {other} dev to_backends"), 9),
        ];
        for (change, far) in changes {
            network.balancer.ip(&change);
            std::thread::sleep(TICK);
            let (action, out) = plane.run(&syn, outside);
            assert_eq!((action, &out[..6]), (REDIRECT, &[2, 0, 0, 0, 2, far][..]), "{change}");
        }
    }
}

#[test]
fn at_xdp_a_packet_leaves_by_the_interface_that_it_came_from() {
    let test = "at_xdp_a_packet_leaves_by_the_interface_that_it_came_from";
    let Some(network) = Network::start(test) else { return };
    let mut plane = Plane::start(&network, &mut world_in(DSR_IPIP));
    let syn = Shape::tcp("10.9.9.9:5000", VIP4, SYN).build();
    let inside = plane.inside;
    let (action, out) = plane.run(&syn, inside);
    assert_eq!(action, TX);
    assert_eq!((&out[..6], &out[6..12]), (&TO_BACKENDS[0][..], &TO_BACKENDS[1][..]));
    assert_eq!(unwrapped(&out).expect("an outer header").0[14..], syn[14..]);
}

#[test]
fn at_xdp_errors_are_translated_both_ways() {
    let test = "at_xdp_errors_are_translated_both_ways";
    let Some(network) = Network::start(test) else { return };
    let mut tables = world_in(NAT);
    let mut plane = Plane::start(&network, &mut tables);
    let (outside, inside) = (plane.outside, plane.inside);
    crate::errors::both_ways(&tables, |packet, from_outside| {
        plane.leaves(packet, if from_outside { outside } else { inside })
    });
}

#[test]
fn at_xdp_whole_addresses_answer_echoes_and_judge_fragments() {
    let test = "at_xdp_whole_addresses_answer_echoes_and_judge_fragments";
    let Some(network) = Network::start(test) else { return };
    let mut plane = Plane::start(&network, &mut world_in(NAT));
    for (client, vip) in [("10.9.9.9:0", VIP4), ("[fd09::9]:0", VIP6)] {
        let (client, vip) = (parse_address(client).ip(), parse_address(vip).ip());
        let (asked, answered) = (echo(client, vip, false, 55), echo(vip, client, true, 64));
        let outside = plane.outside;
        assert_eq!(plane.reason(&asked), (PASS, Reason::OtherProtocol));
        let whole = ServiceKey::whole(lemonade_common::flow::mapped(vip));
        let service = Service { flags: ANSWER_ECHO, ..Service::default() };
        plane.forward.put_service(whole, service).expect("there is room");
        let (action, out) = plane.run(&asked, outside);
        assert_eq!(action, TX);
        assert_eq!((&out[..6], &out[6..12]), (&asked[6..12], &asked[..6]));
        assert_eq!(out[12..], answered[12..]);
    }
    let mut later = Shape::udp("10.9.9.9:5000", VIP4, &[1; 64]).build();
    later[21] = 8;
    assert_eq!(plane.reason(&later), (DROP, Reason::Fragment));
    let whole = ServiceKey::whole(lemonade_common::flow::mapped(parse_address(VIP4).ip()));
    let service = Service { flags: PASS_FRAGMENTS, ..Service::default() };
    plane.forward.put_service(whole, service).expect("there is room");
    assert_eq!(plane.reason(&later), (PASS, Reason::Fragment));
    plane.forward.remove_service(whole);
    assert_eq!(plane.reason(&later), (PASS, Reason::LaterFragment));
}

#[test]
fn at_xdp_resets_of_unknown_flows_find_their_backend() {
    let test = "at_xdp_resets_of_unknown_flows_find_their_backend";
    let Some(network) = Network::start(test) else { return };
    let mut plane = Plane::start(&network, &mut world_in(DSR_L2));
    let reset = Shape::tcp("10.9.9.9:5000", VIP4, RST).build();
    assert_eq!(plane.reason(&reset), (REDIRECT, Reason::Unrecorded));
    let error =
        icmp_error(parse_address("10.1.0.77:0").ip(), 3, &Shape::tcp(VIP4, "10.9.9.9:5000", ACK).build(), 60);
    assert_eq!(plane.reason(&error), (REDIRECT, Reason::IcmpError));
    assert!(plane.forward.flows().expect("the table is read").is_empty());
}
