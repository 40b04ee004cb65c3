//! Single packets that the program tells of: those that open a flow or go nowhere, and only while somebody listens.

use lemonade_common::PacketReason as Reason;
use lemonade_common::notice::NOBODY;
use lemonade_common::packet::{ACK, SYN};
use lemonade_tests::packets::Shape;
use lemonade_tests::world::{VIP4, world};

use crate::forward::{load, reason};

#[test]
fn what_opens_a_flow_or_is_dropped_is_told_while_somebody_listens() {
    let mut forward = load(&world());
    let open = |port: u16| Shape::tcp(&format!("192.0.2.9:{port}"), VIP4, SYN).build();
    assert_eq!(reason(&mut forward, &open(1)).1, Reason::Opened);
    assert_eq!(forward.notices(10), [], "nobody listens");

    forward.listen(true).expect("a map of one element");
    assert_eq!(reason(&mut forward, &open(2)).1, Reason::Opened);
    let stranger = Shape::tcp("192.0.2.9:3", "198.51.100.99:80", ACK).build();
    assert_eq!(reason(&mut forward, &stranger).1, Reason::NotOurs);
    let mut dying = Shape::tcp("192.0.2.9:2", VIP4, ACK);
    dying.ttl = 1;
    assert_eq!(reason(&mut forward, &dying.build()).1, Reason::HopLimit);

    let told = forward.notices(10);
    assert_eq!(
        told.iter().map(|own| own.reason()).collect::<Vec<_>>(),
        [Some(Reason::Opened), Some(Reason::HopLimit)]
    );
    assert_eq!(told[0].key.sport, 2_u16.to_be_bytes());
    assert!(told[0].backend != NOBODY && told[1].backend == NOBODY, "{told:?}");

    forward.listen(false).expect("a map of one element");
    assert_eq!(reason(&mut forward, &open(4)).1, Reason::Opened);
    assert_eq!(forward.notices(10), []);
}

#[test]
fn without_room_packets_go_on_and_what_is_not_told_is_counted() {
    const MANY: u16 = 6_000;
    let mut forward = load(&world());
    forward.listen(true).expect("a map of one element");
    for port in 1..=MANY {
        let (action, _) =
            crate::forward::run(&mut forward, &Shape::tcp(&format!("192.0.2.9:{port}"), VIP4, SYN).build());
        assert_eq!(action, crate::forward::REDIRECT);
    }
    let told = forward.notices(usize::from(MANY)).len() as u64;
    assert!(told > 1_000 && forward.untold() > 0);
    assert_eq!(told + forward.untold(), u64::from(MANY));
}
