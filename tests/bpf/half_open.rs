//! The forward plane's program under a flood, run on packets that go nowhere.

use lemonade::proxy::adapters::bpf::Forward;
use lemonade_common::PacketReason as Reason;
use lemonade_common::half_open::half_open_room;
use lemonade_common::packet::{ACK, SYN};
use lemonade_tests::packets::Shape;
use lemonade_tests::world::{VIP4, service_key, target, world};

use crate::forward::{DROP, PASS, REDIRECT, complete, reason, run};

/// Directions of flows in the table, so that there is room for 32 handshakes.
const ENTRIES: u32 = 256;

fn syn(port: u16) -> Shape {
    Shape::tcp(&format!("10.9.9.9:{port}"), VIP4, SYN)
}

fn load() -> Forward {
    let tables = world();
    let mut forward = Forward::load(ENTRIES, 2, tables.seed).expect("the program passes the verifier");
    forward.fill_ring(0, &tables.rings[0]);
    for n in 0..3 {
        forward.put_target(n, target(n)).expect("there is room");
    }
    let service = tables.services[&service_key(VIP4, 6)];
    forward.put_service(service_key(VIP4, 6), service).expect("there is room");
    forward
}

#[test]
fn handshakes_make_room_for_others_and_connections_do_not() {
    let mut forward = load();
    let room = half_open_room(ENTRIES) as usize;
    for port in 1..=20 {
        let (_, out) = run(&mut forward, &syn(port).build());
        complete(&mut forward, &syn(port), &out);
    }
    // Connections are in the queue too until others need the room.
    let opened = (1_000..1_100).filter(|port| run(&mut forward, &syn(*port).build()).0 == REDIRECT).count();
    assert_eq!(opened, room, "no more than there is room for, while all are new");
    assert_eq!(reason(&mut forward, &syn(1_100).build()), (DROP, Reason::HalfOpenFull));
    assert_eq!((forward.flows().expect("it is read").len(), forward.replaced()), (2 * (20 + room), 0));
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(reason(&mut forward, &syn(1_200).build()), (REDIRECT, Reason::Opened));
    assert_eq!((forward.flows().expect("it is read").len(), forward.replaced()), (2 * (20 + room), 1));
    let late = Shape { flags: ACK, ..syn(1_000) }.build();
    assert_eq!(reason(&mut forward, &late), (PASS, Reason::UnknownFlow), "the oldest is gone");
    for port in 1..=20 {
        let more = Shape { flags: ACK, ..syn(port) }.build();
        assert_eq!(reason(&mut forward, &more), (REDIRECT, Reason::Forwarded), "connections stay");
    }
}
