//! Handshakes that nobody completes, and those beside them that somebody does.

use lemonade_common::PacketReason as Reason;
use lemonade_common::decide::{LINGER, Verdict};
use lemonade_common::forward::{ESTABLISHED, NAT_GATEWAY, Target};
use lemonade_common::half_open::PROTECTED;
use lemonade_common::packet::{ACK, RST, SYN};
use lemonade_tests::packets::{self, Shape};
use lemonade_tests::tables::{Tables, rewritten};
use lemonade_tests::world::{VIP4, decided, read, target, world, world_in};

fn syn(port: u16) -> Shape {
    Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN)
}

fn reason(tables: &Tables, shape: &Shape, now: u64) -> Reason {
    match decided(tables, &shape.build(), now) {
        Verdict::Forward(_, reason) | Verdict::Drop(reason) | Verdict::Pass(reason) => reason,
        Verdict::Echo => Reason::Echo,
    }
}

/// The backend's answer to a SYN that opens a flow.
fn answered(tables: &Tables, syn: &Shape, now: u64) -> Shape {
    let bytes = syn.build();
    let Verdict::Forward(flow, Reason::Opened) = decided(tables, &bytes, now) else {
        panic!("it opens a flow");
    };
    let said = packets::read(&rewritten(&bytes, &read(&bytes), flow)).expect("well-formed");
    Shape { from: said.to, to: said.from, flags: SYN | ACK, ..syn.clone() }
}

/// A client that is there: SYN, the backend's answer, the client's acknowledgement.
fn connected(tables: &Tables, port: u16, now: u64) {
    let answer = answered(tables, &syn(port), now);
    assert_eq!(reason(tables, &answer, now), Reason::Forwarded);
    assert_eq!(reason(tables, &Shape { flags: ACK, ..syn(port) }, now), Reason::Forwarded);
}

fn small(mode: u32) -> Tables {
    Tables { half_open_room: 8, ..world_in(mode) }
}

#[test]
fn a_flood_takes_no_more_than_its_room_and_no_connection() {
    for mode in [lemonade_common::forward::NAT, NAT_GATEWAY] {
        let tables = small(mode);
        for port in 1..=20 {
            connected(&tables, port, 1);
        }
        let mut now = 1;
        for port in 1_000..3_000 {
            now += PROTECTED;
            answered(&tables, &syn(port), now);
        }
        assert_eq!(tables.flows.borrow().len(), 2 * (20 + 8), "twenty connections and eight handshakes");
        assert_eq!(tables.replaced.get(), 2_000 - 8);
        for port in 1..=20 {
            assert_eq!(reason(&tables, &Shape { flags: ACK, ..syn(port) }, now), Reason::Forwarded);
        }
        let late = Shape { flags: ACK, ..syn(1_000) };
        let expected = if mode == NAT_GATEWAY { Reason::Adopted } else { Reason::UnknownFlow };
        assert_eq!(reason(&tables, &late, now), expected);
    }
}

#[test]
fn the_third_packet_makes_a_connection_and_no_other_does() {
    let tables = small(0);
    let state = || tables.flows.borrow()[&read(&syn(5).build()).key].state() & ESTABLISHED;
    let answer = answered(&tables, &syn(5), 1);
    reason(&tables, &Shape { flags: ACK, ..syn(5) }, 1);
    assert_eq!(state(), 0, "nobody has answered the client yet");
    reason(&tables, &answer, 1);
    reason(&tables, &syn(5), 1);
    reason(&tables, &Shape { flags: RST, ..syn(5) }, 1);
    assert_eq!(state(), 0, "a SYN again, or a reset, is none");
    reason(&tables, &Shape { flags: ACK, ..syn(5) }, 1);
    assert_eq!(state(), ESTABLISHED);
}

#[test]
fn handshakes_that_began_just_now_are_left_their_time() {
    let tables = small(0);
    for port in 1..=8 {
        assert_eq!(reason(&tables, &syn(port), 1), Reason::Opened);
    }
    assert_eq!(reason(&tables, &syn(9), PROTECTED), Reason::HalfOpenFull);
    assert_eq!(tables.flows.borrow().len(), 16, "what is refused leaves nothing");
    assert_eq!(reason(&tables, &syn(1), PROTECTED), Reason::Forwarded, "the first is there still");
    assert_eq!(reason(&tables, &syn(9), PROTECTED + 1), Reason::Opened);
    assert_eq!(reason(&tables, &Shape { flags: ACK, ..syn(1) }, PROTECTED + 1), Reason::UnknownFlow);
}

#[test]
fn connections_leave_the_room_to_others_at_once() {
    let tables = small(0);
    for port in 1..=100 {
        connected(&tables, port, 1);
    }
    assert_eq!((tables.flows.borrow().len(), tables.replaced.get()), (200, 0));
}

#[test]
fn a_handshake_of_the_past_does_not_end_another_of_the_same_client() {
    let tables = small(0);
    let answer = answered(&tables, &syn(1), 1);
    reason(&tables, &Shape { flags: RST, ..answer }, 1);
    assert_eq!(reason(&tables, &syn(1), 2), Reason::Opened, "the client tries again");
    for port in 2..=7 {
        assert_eq!(reason(&tables, &syn(port), 2), Reason::Opened);
    }
    assert_eq!(reason(&tables, &syn(8), 3 + PROTECTED), Reason::Opened, "the first try makes room");
    assert_eq!(tables.replaced.get(), 0);
    assert_eq!(reason(&tables, &syn(1), 3 + PROTECTED), Reason::Forwarded, "the second one stays");
}

#[test]
fn ports_of_handshakes_serve_again_when_there_are_no_others() {
    let mut tables = world();
    for n in 0..3 {
        tables.targets.insert(n, Target { ports: 1, ..target(n) });
    }
    tables.rings[0].fill(0);
    assert_eq!(reason(&tables, &syn(1), 1), Reason::Opened);
    assert_eq!(reason(&tables, &syn(2), LINGER), Reason::PortsExhausted);
    connected(&tables, 3, LINGER + 1);
    assert_eq!(reason(&tables, &syn(4), 5 * LINGER), Reason::PortsExhausted, "a connection keeps its port");
}
