//! Modes that keep the client's address, as the program at tc performs them: bytes are the model's.

use std::net::TcpListener;

use fastrand::Rng;
use lemonade::proxy::adapters::bpf::Forward;
use lemonade_common::PacketReason as Reason;
use lemonade_common::decide::Verdict;
use lemonade_common::forward::{DSR_IPIP, DSR_L2, NAT_GATEWAY};
use lemonade_common::maglev::SLOTS;
use lemonade_common::packet::{ACK, FIN, RST, SYN};
use lemonade_tests::packets::{Shape, icmp_error, translated, unwrapped, wrapped};
use lemonade_tests::world::{
    VIP4, VIP6, any_shape, backend, balancer, decided, parse_address, service_key, world_in,
};

use crate::forward::{PASS, REDIRECT, load, reason, run};

const ROUNDS: usize = 4_000;

fn any_client(random: &mut Rng) -> Shape {
    let mut shape = any_shape(random);
    shape.to = parse_address(if shape.from.is_ipv6() { VIP6 } else { VIP4 });
    Shape { flags: SYN, ..shape }
}

fn leaves(forward: &mut Forward, packet: &[u8]) -> Vec<u8> {
    let (action, out) = run(forward, packet);
    assert_eq!(action, REDIRECT, "{packet:02x?}");
    out
}

#[test]
fn by_the_gateway_what_leaves_is_what_the_model_says_in_both_directions() {
    let tables = world_in(NAT_GATEWAY);
    let mut forward = load(&tables);
    let mut random = Rng::with_seed(31);
    for _ in 0..ROUNDS {
        let shape = any_client(&mut random);
        let bytes = shape.build();
        let Verdict::Forward(model, Reason::Opened) = decided(&tables, &bytes, 1) else {
            panic!("it opens a flow: {shape:?}");
        };
        let to = backend(model.backend, shape.from.is_ipv6());
        assert_eq!(leaves(&mut forward, &bytes), translated(&bytes, shape.from, to), "{shape:?}");
        let answer = Shape { from: to, to: shape.from, flags: SYN | ACK, ..shape.clone() }.build();
        assert_eq!(leaves(&mut forward, &answer), translated(&answer, shape.to, shape.from), "{shape:?}");
        let more = Shape { flags: ACK, ..shape.clone() }.build();
        assert_eq!(leaves(&mut forward, &more), translated(&more, shape.from, to), "{shape:?}");
    }
    let mut flows = forward.flows().expect("the table is read");
    assert_eq!(flows.len(), tables.flows.borrow().len());
    flows.retain(|(key, flow)| tables.flows.borrow()[key].leaves() != flow.leaves());
    assert!(flows.is_empty(), "{flows:?}");
}

#[test]
fn over_the_link_packets_leave_as_they_are() {
    let mut forward = load(&world_in(DSR_L2));
    let mut random = Rng::with_seed(32);
    for _ in 0..ROUNDS {
        let bytes = any_client(&mut random).build();
        assert_eq!(leaves(&mut forward, &bytes), bytes);
    }
    assert_eq!(forward.flows().expect("the table is read").len(), ROUNDS);
}

#[test]
fn packets_leave_wrapped_in_either_family() {
    let tables = world_in(DSR_IPIP);
    let mut forward = load(&tables);
    let mut random = Rng::with_seed(33);
    let mut kinds = std::collections::BTreeSet::new();
    for _ in 0..ROUNDS {
        let shape = any_client(&mut random);
        let bytes = shape.build();
        let Verdict::Forward(model, Reason::Opened) = decided(&tables, &bytes, 1) else {
            panic!("it opens a flow: {shape:?}");
        };
        let outer_v6 = model.backend >= 3;
        let (from, to) = (balancer(outer_v6, 0).ip(), backend(model.backend, outer_v6).ip());
        let label = if outer_v6 { model.port_delta } else { 0 };
        assert_eq!(leaves(&mut forward, &bytes), wrapped(&bytes, from, to, label), "{shape:?}");
        let more = Shape { flags: ACK, class: 5, ..shape.clone() }.build();
        assert_eq!(leaves(&mut forward, &more), wrapped(&more, from, to, label), "{shape:?}");
        kinds.insert((shape.from.is_ipv6(), outer_v6));
    }
    assert_eq!(kinds.len(), 3, "4in4, 4in6 and 6in6");
    assert_eq!(forward.flows().expect("the table is read").len(), ROUNDS);
}

#[test]
fn unknown_flows_ask_the_ring_before_this_one_and_resets_leave_nothing() {
    for mode in [NAT_GATEWAY, DSR_L2, DSR_IPIP] {
        let mut tables = world_in(mode);
        tables.rings = vec![vec![0; SLOTS as usize], vec![1; SLOTS as usize]];
        let service = tables.services.get_mut(&service_key(VIP4, 6)).expect("it is served");
        (service.ring, service.previous) = (1, 1);
        let mut forward = load(&tables);
        let at = |port: u16, flags: u8| Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, flags).build();
        assert_eq!(reason(&mut forward, &at(1, SYN)), (REDIRECT, Reason::Opened));
        assert_eq!(reason(&mut forward, &at(2, ACK)), (REDIRECT, Reason::Adopted));
        assert_eq!(reason(&mut forward, &at(2, ACK)), (REDIRECT, Reason::Forwarded));
        assert_eq!(reason(&mut forward, &at(3, FIN | ACK)), (REDIRECT, Reason::Adopted));
        let flows = forward.flows().expect("the table is read");
        let of = |port: u16| {
            let found = flows.iter().find(|(key, _)| key.sport == port.to_be_bytes());
            found.expect("it was written down").1.backend
        };
        assert_eq!((of(1), of(2), of(3)), (1, 0, 0), "mode {mode}");
        assert_eq!(reason(&mut forward, &at(4, RST)), (REDIRECT, Reason::Unrecorded));
        assert_eq!(forward.flows().expect("the table is read").len(), flows.len());
    }
}

#[test]
fn packets_of_the_hosts_own_connections_go_to_the_host() {
    let mut forward = load(&world_in(DSR_IPIP));
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(any).expect("loopback is up");
        let vip = listener.local_addr().expect("a bound socket");
        let service = world_in(DSR_IPIP).services[&service_key(VIP4, 6)];
        forward.put_service(service_key(&vip.to_string(), 6), service).expect("there is room");
        let client = std::net::TcpStream::connect(vip).expect("it listens");
        let own = client.local_addr().expect("a connected socket").to_string();
        let packet = Shape::tcp(&own, &vip.to_string(), ACK).build();
        assert_eq!(reason(&mut forward, &packet), (PASS, Reason::UnknownFlow));
        // One that merely listens has no say in it.
        let mut other = vip;
        other.set_ip(client.local_addr().expect("a connected socket").ip());
        let stranger =
            Shape::tcp(&std::net::SocketAddr::new(other.ip(), 1).to_string(), &vip.to_string(), ACK);
        assert_eq!(reason(&mut forward, &stranger.build()), (REDIRECT, Reason::Adopted));
    }
}

#[test]
fn above_the_rate_flows_are_sent_on_and_not_written_down() {
    let mut forward = load(&world_in(DSR_IPIP));
    forward.limit_new_flows(1).expect("a number");
    for port in 1..=200 {
        run(&mut forward, &Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN).build());
    }
    let reasons = forward.reasons();
    let [opened, unrecorded] = [Reason::Opened, Reason::Unrecorded].map(|reason| reasons[reason.index()]);
    assert_eq!(opened + unrecorded, 200);
    // A few seconds at most have begun, on a few cores.
    assert!(opened >= 1 && unrecorded >= 100, "{opened} of 200 written down at one a second");
    assert_eq!(forward.flows().expect("the table is read").len() as u64, opened);
}

#[test]
fn errors_about_what_a_backend_sent_find_it() {
    for mode in [DSR_L2, DSR_IPIP] {
        for (client, vip, router) in
            [("10.9.9.9:5000", VIP4, "10.1.0.77:0"), ("[fd09::9]:5000", VIP6, "[fd01::77]:0")]
        {
            let mut forward = load(&world_in(mode));
            let (from, to) = (parse_address(vip), parse_address(client));
            let answer = Shape { from, to, ..Shape::tcp(client, vip, ACK) };
            let kind = if vip == VIP4 { 3 } else { 2 };
            let error = icmp_error(parse_address(router).ip(), kind, &answer.build(), 100);
            let out = leaves(&mut forward, &error);
            let more = Shape::tcp(client, vip, ACK).build();
            let next = leaves(&mut forward, &more);
            if mode == DSR_IPIP {
                let (inner, _, backend, _) = unwrapped(&out).expect("an outer header");
                assert_eq!(inner, error);
                assert_eq!(unwrapped(&next).expect("an outer header").2, backend);
            } else {
                assert_eq!((out, next), (error, more));
            }
        }
    }
}
