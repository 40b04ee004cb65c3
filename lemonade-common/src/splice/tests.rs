extern crate std;

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::header::{
    Header, LEAST, Places, Segment, Shift, delta, length, places, read, renew, translate, window,
};
use super::*;
use crate::csum;

/// Options in the order in which they stand.
#[derive(Clone, Debug)]
enum Opt {
    Nothing,
    Stamp(u32, u32),
    Sack(Vec<(u32, u32)>),
    Other(u8, Vec<u8>),
}

fn options() -> impl Strategy<Value = Vec<Opt>> {
    let option = prop_oneof![
        4 => Just(Opt::Nothing),
        3 => any::<(u32, u32)>().prop_map(|(value, echo)| Opt::Stamp(value, echo)),
        3 => prop::collection::vec(any::<(u32, u32)>(), 1..=4).prop_map(Opt::Sack),
        1 => (9_u8.., prop::collection::vec(any::<u8>(), 0..12)).prop_map(|(kind, bytes)| Opt::Other(kind, bytes)),
    ];
    prop::collection::vec(option, 0..8)
}

/// A header with the options that there is room for, and those that it has; each kind with numbers once.
fn header(fixed: [u8; LEAST], options: &[Opt]) -> (Header, Vec<Opt>) {
    let (mut bytes, mut kept): (Vec<u8>, Vec<Opt>) = (fixed.to_vec(), Vec::new());
    for option in options {
        let mut one = Vec::new();
        match option {
            Opt::Nothing => one.push(1),
            Opt::Stamp(value, echo) => {
                one.extend([8, 10]);
                one.extend(value.to_be_bytes());
                one.extend(echo.to_be_bytes());
            }
            Opt::Sack(blocks) => {
                one.extend([5, 2 + 8 * blocks.len() as u8]);
                blocks.iter().for_each(|(from, to)| {
                    one.extend(from.to_be_bytes());
                    one.extend(to.to_be_bytes());
                });
            }
            Opt::Other(kind, value) => {
                one.extend([*kind, 2 + value.len() as u8]);
                one.extend(value);
            }
        }
        let same = |other: &Opt| std::mem::discriminant(other) == std::mem::discriminant(option);
        let once = matches!(option, Opt::Stamp(..) | Opt::Sack(_)) && kept.iter().any(same);
        if !once && bytes.len() + one.len() <= 60 {
            bytes.extend(one);
            kept.push(option.clone());
        }
    }
    while bytes.len() % 4 != 0 {
        bytes.push(0);
    }
    bytes[12] = (bytes.len() / 4 * 16) as u8;
    let mut header = [0; 64];
    header[..bytes.len()].copy_from_slice(&bytes);
    (header, kept)
}

fn found(header: &Header) -> Places {
    let mut found = Places::default();
    places(header, &mut found);
    found
}

fn shift() -> impl Strategy<Value = Shift> {
    (any::<[u8; 4]>(), any::<[u32; 5]>()).prop_map(|(ports, [sequence, ack, blocks, value, echo])| Shift {
        ports,
        sequence,
        ack,
        blocks: Some(blocks),
        scales: [7, 7],
        value,
        echo,
    })
}

proptest! {
    #[test]
    fn translated_and_translated_back_a_header_is_as_before(
        fixed in any::<[u8; LEAST]>(), options in options(), shift in shift(),
    ) {
        let (before, _) = header(fixed, &options);
        let places = found(&before);
        let mut after = before;
        translate(&mut after, &places, &shift);
        prop_assert_eq!(found(&after), places);
        let back = Shift {
            ports: [before[0], before[1], before[2], before[3]],
            sequence: 0_u32.wrapping_sub(shift.sequence),
            ack: u32::from_be_bytes([before[8], before[9], before[10], before[11]]),
            blocks: shift.blocks.map(|by| 0_u32.wrapping_sub(by)),
            value: 0_u32.wrapping_sub(shift.value),
            echo: 0_u32.wrapping_sub(shift.echo),
            ..shift
        };
        translate(&mut after, &places, &back);
        prop_assert_eq!(after, before);
    }

    #[test]
    fn every_number_of_a_header_is_translated_and_nothing_else(
        fixed in any::<[u8; LEAST]>(), options in options(), shift in shift(), told in any::<bool>(),
    ) {
        let (before, kept) = header(fixed, &options);
        let mut after = before;
        let shift = Shift { blocks: shift.blocks.filter(|_| told), ..shift };
        translate(&mut after, &found(&before), &shift);
        let number = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let moved = kept.into_iter().flat_map(|option| match (option, shift.blocks) {
            (Opt::Stamp(value, echo), _) => {
                vec![Opt::Stamp(value.wrapping_add(shift.value), echo.wrapping_add(shift.echo))]
            }
            (Opt::Sack(blocks), Some(by)) => {
                let edge = |edge: u32| edge.wrapping_add(by);
                vec![Opt::Sack(blocks.into_iter().map(|(from, to)| (edge(from), edge(to))).collect())]
            }
            (Opt::Sack(blocks), None) => vec![Opt::Nothing; 2 + 8 * blocks.len()],
            (same @ (Opt::Nothing | Opt::Other(..)), _) => vec![same],
        });
        let mut wanted = fixed;
        wanted[..4].copy_from_slice(&shift.ports);
        wanted[4..8].copy_from_slice(&number(&fixed[4..]).wrapping_add(shift.sequence).to_be_bytes());
        if fixed[13] & 0x10 != 0 {
            wanted[8..12].copy_from_slice(&shift.ack.to_be_bytes());
        }
        prop_assert_eq!(after, header(wanted, &moved.collect::<Vec<_>>()).0);
    }

    #[test]
    fn the_checksum_changes_as_if_it_were_computed_anew(
        fixed in any::<[u8; LEAST]>(), options in options(), shift in shift(),
    ) {
        let (mut before, _) = header(fixed, &options);
        before[16..18].copy_from_slice(&[0, 0]);
        let sum = csum::finish(csum::sum(&before));
        let mut after = before;
        translate(&mut after, &found(&before), &shift);
        let updated = csum::update(sum, delta(&before, &after));
        prop_assert_eq!(updated, csum::finish(csum::sum(&after)));
    }

    #[test]
    fn any_bytes_are_read_without_going_astray(bytes in prop::collection::vec(any::<u8>(), 60)) {
        let mut header = [0; 64];
        header[..60].copy_from_slice(&bytes);
        let places = found(&header);
        let end = length(&header);
        prop_assert!(places.stamp == 0 || places.stamp >= LEAST && places.stamp + 10 <= end);
        prop_assert!(places.sack == 0 || places.sack >= LEAST && places.sack + 2 + 8 * places.blocks <= end);
        prop_assert!(places.blocks <= 4);
        let mut after = header;
        translate(&mut after, &places, &Shift { value: 9, echo: 9, blocks: Some(9), ..Shift::default() });
        prop_assert_eq!(&after[60..], &[0; 4]);
    }

    #[test]
    fn a_window_says_no_more_than_it_did_and_is_never_closed_by_a_scale(
        told in any::<u16>(), by in 0_u8..15, read_by in 0_u8..15,
    ) {
        let read = u64::from(window(told, [by, read_by])) << read_by;
        let bytes = u64::from(told) << by;
        prop_assert_eq!(read == 0, bytes == 0);
        prop_assert!(read <= bytes.max(1 << read_by));
        let room = 0xffff_u64 << read_by;
        prop_assert!(read + (1 << read_by) > bytes.min(room), "{} of {}", read, bytes);
        prop_assert_eq!(window(told, [by, by]), told);
    }

    #[test]
    fn what_one_side_counts_up_to_is_where_its_bytes_end(
        start in any::<u64>(), lengths in prop::collection::vec(0_u32..100_000, 1..50), order in any::<u64>(),
    ) {
        let start = start >> 1;
        let side = Side::default();
        side.end.set(start);
        let mut at = start as u32;
        let mut segments: Vec<Segment> = lengths.iter().map(|&length| {
            let segment = Segment { sequence: at, length, flags: ACK, ..Segment::default() };
            at = segment.end();
            segment
        }).collect();
        // Some come again, and late.
        let again = segments[order as usize % segments.len()];
        segments.push(again);
        segments.swap(0, order as usize % lengths.len());
        for segment in &segments {
            note(&side, segment, 1);
        }
        let bytes: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
        prop_assert_eq!(side.end.get() - start, bytes);
    }
}

proptest! {
    #[test]
    fn bytes_keep_their_places_and_none_is_acknowledged_before_it_was_sent(
        starts in any::<[u32; 2]>(), shifts in any::<[u32; 2]>(), had in any::<[u16; 2]>(),
        steps in prop::collection::vec((0_usize..2, 0_u32..5_000, 0_u32..200_000), 1..60),
    ) {
        let leg = |at: usize| Leg {
            sequence: shifts[at],
            acknowledgement: 0_u32.wrapping_sub(shifts[1 - at]),
            ..Leg::default()
        };
        let (legs, sides) = ([leg(0), leg(1)], [Side::default(), Side::default()]);
        let received = [0, 1].map(|at: usize| starts[at].wrapping_add(had[at].into()));
        for at in 0..2 {
            sides[at].end.set(received[at].into());
            sides[at].received.set(received[at]);
            sides[at].owed.set(received[1 - at].wrapping_add(shifts[1 - at]));
        }
        for (at, length, behind) in steps {
            let (side, other) = (&sides[at], &sides[1 - at]);
            // It acknowledges no more than it was sent, and no less than where the stream began.
            let sent = (other.end.get() as u32).wrapping_sub(starts[1 - at]);
            let ack = starts[1 - at].wrapping_add(shifts[1 - at]).wrapping_add(sent.saturating_sub(behind));
            let segment = Segment { sequence: side.end.get() as u32, length, ack, flags: ACK, stamp: None };
            note(side, &segment, 1);
            let told = acknowledgement(side, &segment).wrapping_add(legs[at].acknowledgement);
            prop_assert!(!before(told, received[1 - at]), "the proxy's socket has acknowledged that much");
            prop_assert!(!before(other.end.get() as u32, told), "beyond what was sent");
            let place = segment.sequence.wrapping_add(legs[at].sequence);
            prop_assert_eq!(place.wrapping_add(legs[1 - at].acknowledgement), segment.sequence);
            for at in 0..2 {
                let told = receipt(&legs[at], &sides[at], &sides[1 - at]);
                prop_assert!(!before(told, received[at]) && !before(sides[at].end.get() as u32, told));
            }
        }
    }
}

fn ack(ack: u32) -> Segment {
    Segment { ack, flags: ACK, ..Segment::default() }
}

#[test]
fn the_proxys_socket_gets_what_it_needs_and_the_other_side_the_rest() {
    let side = Side::default();
    side.owed.set(1000);
    let meets = |segment: Segment| {
        let owes = note(&side, &segment, 1);
        fate(FORWARD | 7, &side, &segment, owes)
    };
    assert_eq!(meets(ack(400)), Fate::Stack, "it may have to send again");
    assert_eq!(meets(ack(400)), Fate::Stack, "a duplicate tells it so");
    assert_eq!(meets(Segment { length: 5, ..ack(700) }), Fate::Forward, "data are for the other side");
    assert_eq!(meets(ack(1000)), Fate::Stack, "now it has nothing left");
    assert_eq!(meets(ack(1000)), Fate::Forward, "a duplicate about what was sent on");
    assert_eq!(meets(ack(1200)), Fate::Forward);
    assert_eq!(meets(ack(900)), Fate::Forward, "an old one is no use to anybody and harms nobody");
    side.ack.set(500);
    let owes = note(&side, &ack(1300), 2);
    assert_eq!(fate(FORWARD, &side, &ack(1300), owes), Fate::Forward, "beyond what it has sent");
    assert_eq!(fate(5, &side, &ack(400), true), Fate::Stack, "not handed over yet");
    assert_eq!(fate(FORWARD | HALT, &side, &ack(400), true), Fate::Drop);
    assert_eq!(acknowledgement(&side, &ack(700)), 1000, "the proxy has taken charge of it");
    assert_eq!(acknowledgement(&side, &ack(1001)), 1001);
}

#[test]
fn own_packets_pass_until_the_hand_over_and_never_end_the_flow_after_it() {
    let side = Side::default();
    side.owed.set(1000);
    let from = |flags, sequence, length| Segment { flags, sequence, length, ..Segment::default() };
    for flags in [ACK, FIN | ACK, RST, RST | ACK] {
        assert_eq!(own(12, &side, &from(flags, 1000, 9)), Own::Pass);
    }
    let meets = |state, segment| own(state, &side, &segment);
    assert_eq!(meets(FORWARD | 12, from(ACK, 1000, 0)), Own::Renewed, "it may not have acknowledged yet");
    assert_eq!(meets(FORWARD, from(FIN | ACK, 1000, 0)), Own::Drop);
    assert_eq!(meets(FORWARD, from(FIN | ACK, 900, 100)), Own::Renewed, "bytes that the peer needs go first");
    assert_eq!(meets(FORWARD, from(RST | ACK, 1000, 0)), Own::Drop);
    assert_eq!(meets(FORWARD, from(SYN, 1000, 0)), Own::Drop);
    assert_eq!(meets(FORWARD, from(ACK, 900, 101)), Own::Drop, "not all was sent before the hand-over");
    assert_eq!(meets(FORWARD, from(ACK, 1001, 0)), Own::Drop, "behind its own FIN");
    assert_eq!(meets(FORWARD | HALT, from(RST | ACK, 1000, 0)), Own::Renewed, "this one is meant");
    assert_eq!(meets(FORWARD | HALT, from(ACK, 1000, 0)), Own::Drop);
    note(&side, &ack(950), 1);
    assert_eq!(meets(FORWARD, from(ACK, 900, 50)), Own::Drop, "the peer has it");
    assert_eq!(meets(FORWARD, from(ACK, 900, 51)), Own::Renewed);
}

#[test]
fn an_own_packet_tells_what_was_sent_on_and_nothing_else() {
    let mut fixed = [0x10; LEAST];
    fixed[13] = ACK | FIN;
    let options = [Opt::Nothing, Opt::Nothing, Opt::Stamp(100, 50), Opt::Sack(vec![(1, 2), (3, 4)])];
    let before = header(fixed, &options).0;
    let places = found(&before);
    for (ack, stamp) in [(7, Some(99)), (u32::MAX, Some(101)), (0, None)] {
        let mut bytes = before;
        renew(&mut bytes, &places, None, ack, stamp);
        let after = read(&bytes, &places, 0);
        assert_eq!((after.ack, after.flags), (ack, ACK), "earlier or later");
        assert_eq!(after.stamp, Some((stamp.unwrap_or(100), 50)));
        assert_eq!(found(&bytes), Places { sack: 0, blocks: 0, ..places });
        assert_eq!(after.sequence, 0x1010_1010);
    }
    let mut bytes = before;
    renew(&mut bytes, &places, Some(7), 8, None);
    assert_eq!(read(&bytes, &places, 0).sequence, 7);
}

#[test]
fn what_reached_the_proxys_socket_too_late_is_not_acknowledged() {
    // Positions of the client are 5000 higher towards the backend.
    let (side, other, leg) = (Side::default(), Side::default(), Leg { sequence: 5000, ..Leg::default() });
    side.received.set(2000);
    other.owed.set(5000 + 2000);
    assert_eq!(receipt(&leg, &side, &other), 2000, "nothing was sent on");
    note(&other, &ack(5000 + 1900), 1);
    assert_eq!(receipt(&leg, &side, &other), 2000, "the proxy has taken charge of all that it had");
    note(&other, &ack(5000 + 2300), 1);
    assert_eq!(receipt(&leg, &side, &other), 2300);
}

#[test]
fn a_stream_may_be_longer_than_all_sequence_numbers() {
    let (side, other, leg) = (Side::default(), Side::default(), Leg::default());
    for of in [&side, &other] {
        of.owed.set(u32::MAX - 10);
        of.received.set(u32::MAX - 10);
    }
    let mut place = u32::MAX - 10;
    for step in 0..40 {
        // A window at a time, 10 GiB in all.
        place = place.wrapping_add(1 << 28);
        let owes = note(&side, &ack(place), 1);
        note(&other, &ack(place), 1);
        if step > 0 {
            assert_eq!(fate(FORWARD | 7, &side, &ack(place), owes), Fate::Forward, "step {step}");
        }
        assert_eq!(acknowledgement(&side, &ack(place)), place, "step {step}");
        assert_eq!(receipt(&leg, &side, &other), place, "step {step}");
        let sequence = place.wrapping_add(1 << 27);
        assert_eq!(errors::fate(FORWARD | 7, &side, sequence), Fate::Forward, "step {step}");
    }
}

/// Both legs of a flow whose client's positions are 5000 higher towards the backend, and the backend's 700 lower towards the
/// client.
fn legs() -> [Leg; 2] {
    let back = 0_u32.wrapping_sub(700);
    [
        Leg { sequence: 5000, acknowledgement: 700, ..Leg::default() },
        Leg { sequence: back, acknowledgement: 0_u32.wrapping_sub(5000), side: 1, ..Leg::default() },
    ]
}

#[test]
fn a_syn_begins_another_connection_once_the_flow_is_over_and_not_before() {
    let legs = legs();
    let fin = |sequence, ack| Segment { sequence, ack, flags: FIN | ACK, ..Segment::default() };
    let ends = |steps: &[(usize, Segment)]| {
        let sides = [Side::default(), Side::default()];
        for (at, segment) in steps {
            note(&sides[*at], segment, 1);
        }
        let tried = |at: usize, flags| reopened(FORWARD | 3, &legs[at], &sides[at], &sides[1 - at], flags);
        assert!(!tried(0, ACK) && !tried(1, ACK), "it is no SYN");
        let over = tried(0, SYN);
        assert_eq!(over, tried(0, ACK), "what follows is the new connection's");
        assert!(!tried(1, ACK), "the other leg is as before");
        assert_eq!(over, tried(1, SYN | ACK));
        over
    };
    // Client and backend end at 100 and 9000, which the other one knows as 5100 and 8300.
    let both = [(0, fin(100, 8200)), (1, fin(9000, 5101))];
    assert!(!ends(&[]) && !ends(&both[..1]) && !ends(&both[1..]));
    assert!(!ends(&both), "the last FIN is not acknowledged");
    assert!(!ends(&[both[0], both[1], (0, ack(8300))]));
    assert!(ends(&[both[0], both[1], (0, ack(8301))]));
    assert!(!ends(&[(0, fin(100, 8200)), (1, fin(9000, 5100)), (0, ack(8301))]), "nor is the first here");
    let sides = [Side::default(), Side::default()];
    assert!(!reopened(HALT, &legs[0], &sides[0], &sides[1], SYN), "the proxy's sockets have it");
    assert!(reopened(FORWARD | HALT, &legs[0], &sides[0], &sides[1], SYN));
    sides[1].marks.set(RESET);
    assert!(reopened(FORWARD, &legs[1], &sides[1], &sides[0], SYN));
    sides[0].marks.set(0);
    assert!(reopened(FORWARD, &legs[0], &sides[0], &sides[1], SYN));
}

#[test]
fn a_reset_counts_where_the_other_side_takes_it_for_one() {
    // Positions of the client are 5000 higher towards the backend.
    let (side, other) = (Side::default(), Side::default());
    let leg = Leg { sequence: 5000, ..Leg::default() };
    side.end.set(3000);
    note(&other, &ack(5000 + 2500), 1);
    let reset = |sequence: u32| {
        side.marks.set(0);
        note_reset(&side, &other, &leg, &Segment { sequence, flags: RST, ..Segment::default() });
        side.marks.get() & RESET != 0
    };
    assert!(reset(3000) && reset(2500));
    assert!(!reset(2499), "before what is acknowledged");
    assert!(!reset(3001), "beyond what was sent");
    assert!(!reset(3000 + (1 << 31)));
}

#[test]
fn the_end_of_a_stream_is_behind_its_fin() {
    let side = Side::default();
    side.end.set(u64::from(u32::MAX) - 4);
    note(&side, &Segment { sequence: u32::MAX - 4, length: 10, flags: FIN | ACK, ..Segment::default() }, 77);
    assert_eq!((side.end.get(), side.seen.get()), (u64::from(u32::MAX) + 7, 77));
    assert_eq!((side.fin.get(), side.marks.get()), (6, ACKED | FINISHED));
}

#[test]
fn a_leg_has_the_bytes_of_its_fields() {
    let leg = Leg {
        slot: 1,
        side: 2,
        sequence: 3,
        acknowledgement: 4,
        address_delta: 5,
        scales: [6, 7],
        ..Leg::default()
    };
    let bytes = leg.to_bytes();
    assert_eq!(bytes[36..56].chunks(4).map(|word| word[0]).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(bytes[56..], [6, 7, 0, 0, 0, 0, 0, 0]);
    let full = Leg { src: [8; 16], dst: [9; 16], sport: [10, 11], dport: [12, 13], ..leg };
    assert_eq!(Leg::from_bytes(&full.to_bytes()), full);
}
