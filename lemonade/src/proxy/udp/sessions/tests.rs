use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn key(n: u8) -> Key {
    // Neighbours in each part of the key, so that a part left out of it would show.
    Key {
        client: SocketAddr::from(([192, 0, 2, n & 1], 5000 + u16::from(n >> 1 & 1))),
        local: IpAddr::from([10, 0, 0, n >> 2 & 1]),
    }
}

proptest! {
    /// Whatever the order of datagrams and ends, a datagram finds the session begun last for its key, and none after it
    /// has ended; a late end of an earlier one does nothing.
    #[test]
    fn a_datagram_finds_its_own_session(steps in prop::collection::vec((0_u8..8, 0_u8..3, 0_usize..64), 1..200)) {
        let mut sessions = Sessions::default();
        let mut model: BTreeMap<u8, u64> = BTreeMap::new();
        let mut tickets: Vec<(u8, u64, Ticket)> = Vec::new();
        let mut next = 0;
        for (n, step, which) in steps {
            match step {
                0 => prop_assert_eq!(sessions.find(&key(n)), model.get(&n)),
                1 => {
                    next += 1;
                    tickets.push((n, next, sessions.begin(key(n), next)));
                    model.insert(n, next);
                }
                _ if tickets.is_empty() => {}
                _ => {
                    let (n, own, ticket) = tickets.swap_remove(which % tickets.len());
                    sessions.end(&ticket);
                    if model.get(&n) == Some(&own) {
                        model.remove(&n);
                    }
                }
            }
            let mut held: Vec<u64> = sessions.iter().copied().collect();
            let mut expected: Vec<u64> = model.values().copied().collect();
            held.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(held, expected);
        }
    }

    /// An answer is timed once for each time that the client began to wait, and never longer than it did.
    #[test]
    fn a_wait_is_timed_from_the_first_unanswered_datagram(steps in prop::collection::vec((any::<bool>(), 1_u64..9), 1..100)) {
        let mut exchange = Exchange::default();
        let (mut now, mut asked, mut up, mut down) = (0, None, 0, 0);
        for (is_up, took) in steps {
            now += took;
            if is_up {
                exchange.sent(2, Moment(now));
                up += 2;
                asked = asked.or(Some(now));
            } else {
                let waited = exchange.answered(3, Moment(now));
                down += 3;
                prop_assert_eq!(waited, asked.take().map(|asked| Duration::from_micros(now - asked)));
            }
        }
        prop_assert_eq!((exchange.up, exchange.down), (up, down));
    }
}

#[test]
fn a_flood_leaves_no_room_behind() {
    let mut sessions = Sessions::default();
    let local = IpAddr::from([10, 0, 0, 1]);
    let client = |n: u16| SocketAddr::from(([192, 0, 2, 1], n));
    let tickets: Vec<Ticket> =
        (0..20_000).map(|n| sessions.begin(Key { client: client(n), local }, ())).collect();
    tickets.iter().for_each(|ticket| sessions.end(ticket));
    assert!(
        sessions.by_key.is_empty() && sessions.by_key.capacity() <= 2048,
        "{}",
        sessions.by_key.capacity()
    );
}

#[test]
fn refusals_are_told_up_to_a_number_per_second() {
    let mut quota = Quota::default();
    let mut told = |at: u64| (0..100).filter(|n| quota.tell(Moment(at + n))).count();
    assert_eq!([told(1_000_000), told(1_500_000), told(2_000_000)], [10, 0, 10]);
}

#[test]
fn forged_senders_leave_half_of_the_places() {
    assert_eq!([limit(7, 100), limit(0, 100), limit(0, 1), limit(0, 0), limit(7, 0)], [7, 50, 1, 0, 7]);
}
