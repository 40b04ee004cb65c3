//! What the proxy's own packets tell their peers of windows, before and behind a hand-over.

use fastrand::Rng;
use lemonade_common::packet::ACK;
use lemonade_common::splice::Count;
use lemonade_common::splice::lull::{NONE, OPENS};
use lemonade_tests::segments::Segment;

use crate::splice::{DATA, DROP, Flow, NEXT, SLOT, V4, V6};

/// A packet of the own socket to the peer of a side, from so many bytes before the end of what it has sent.
fn own(flow: &Flow, at: usize, flags: u8, behind: u32, data: &[u8]) -> Segment {
    let ([peer, own], [end, sent]) = (flow.ends[at], flow.numbers[at]);
    let stamp = Some((77, 5));
    Segment { stamp, data: data.to_vec(), ..Segment::new(own, peer, flags, sent.wrapping_sub(behind), end) }
}

#[test]
fn windows_are_closed_for_a_time_and_opened_by_a_probe() {
    for addresses in [V4, V6] {
        let flow = Flow::start(addresses, &mut Rng::with_seed(31));
        for at in 0..2 {
            // The peer acknowledges all that was sent to it.
            flow.arrives(&flow.segment(at, ACK, &[]));
            let packets = [own(&flow, at, ACK, 0, &[]), own(&flow, at, DATA, 9, &[7; 9])];
            let probe = own(&flow, at, ACK, 1, &[]);
            let as_is = || packets.iter().all(|packet| flow.leaves(packet) == (NEXT, packet.build()));
            assert!(as_is());
            // Until the end of all time, and until the host's first moment.
            flow.splice.set_lull(SLOT, u64::MAX);
            for packet in packets.iter().chain([&probe]) {
                let closed = Segment { window: 0, ..packet.clone() };
                assert_ne!(packet.window, 0);
                assert_eq!(flow.leaves(packet), (NEXT, closed.build()));
            }
            flow.splice.set_lull(SLOT, OPENS + 1);
            assert!(as_is());
            flow.splice.set_lull(SLOT, OPENS);
            assert!(as_is());
            let heard = Segment { sequence: flow.numbers[at][1], ..probe.clone() };
            assert_eq!(flow.leaves(&probe), (NEXT, heard.build()));
            flow.splice.set_lull(SLOT, NONE);
            assert_eq!(flow.leaves(&probe), (NEXT, probe.build()));
        }
        assert_eq!(flow.splice.counts()[Count::NotSent as usize], 0);
    }
}

#[test]
fn behind_the_hand_over_a_probe_tells_the_window_of_the_other_side() {
    for addresses in [V4, V6] {
        let flow = Flow::start(addresses, &mut Rng::with_seed(32));
        flow.splice.set_lull(SLOT, u64::MAX);
        flow.hand_over();
        for at in 0..2 {
            let bare = own(&flow, at, ACK, 0, &[]);
            flow.splice.set_lull(SLOT, u64::MAX);
            assert_eq!(flow.leaves(&bare), (NEXT, bare.build()), "no window is closed any more");
            flow.splice.set_windows(SLOT, [1_234, 567]);
            flow.splice.set_lull(SLOT, OPENS);
            assert_eq!(flow.leaves(&bare), (NEXT, bare.build()));
            // Some of what it had sent may be on its way: its socket probes from where that begins.
            for behind in [1, 700] {
                let probe = own(&flow, at, ACK, behind, &[]);
                let opens = Segment { window: [1_234, 567][at], ..bare.clone() };
                assert_eq!(flow.leaves(&probe), (NEXT, opens.build()));
            }
            let again = own(&flow, at, DATA, 9, &[7; 9]);
            assert_eq!(flow.leaves(&again), (NEXT, again.build()));
            let beyond = own(&flow, at, DATA, 0, &[7; 9]);
            assert_eq!(flow.leaves(&beyond).0, DROP);
        }
    }
}
