//! Relay `splice` where the path is not as wide as it looks: errors about packets that were sent on, packets that do not fit,
//! and fragments.

use std::net::IpAddr;

use fastrand::Rng;
use lemonade_common::csum;
use lemonade_common::packet::ACK;
use lemonade_common::splice::Count;
use lemonade_tests::netns::Network;
use lemonade_tests::packets::{icmp_error, too_big};
use lemonade_tests::segments::Segment;

use crate::splice::{DATA, DROP, Flow, NEXT, REDIRECT, SLOT, V4, V6};

/// Unreachable, and what too big is over IPv6.
const KINDS: [[u8; 2]; 2] = [[3, 3], [2, 1]];

fn router(flow: &Flow) -> IpAddr {
    let text = if flow.ends[0][0].is_ipv4() { "10.0.0.77" } else { "fd00::77" };
    text.parse().expect("an address")
}

impl Flow {
    fn run(&self, packet: &[u8]) -> (u32, Vec<u8>) {
        let trial = self.splice.trial(false, packet).expect("a trial");
        (trial.action, trial.packet)
    }
}

#[test]
fn errors_from_beyond_go_to_the_peer_that_sent_what_they_quote() {
    let mut random = Rng::with_seed(41);
    for (family, addresses) in [V4, V6].into_iter().enumerate() {
        let flow = Flow::start(addresses, &mut random);
        flow.hand_over();
        for (at, kind) in [(0, KINDS[family][0]), (1, KINDS[family][1])] {
            let mut sent = flow.segment(at, DATA, &[7; 900]);
            sent.sequence = sent.sequence.wrapping_add(random.u32(..1 << 30));
            let model = flow.model(at, &sent);
            let (action, out) = flow.arrives(&sent);
            assert_eq!((action, &out), (REDIRECT, &model.build()));
            // As its sender sent it, but for what no sender looks at.
            let quote = Segment { ack: model.ack, window: model.window, ..sent.clone() }.build();
            for quoted in [[28, 48][family], 70, 400, 2000] {
                let error = icmp_error(router(&flow), kind, &out, quoted);
                let wanted = icmp_error(flow.ends[at][1].ip(), kind, &quote, quoted);
                assert_eq!(flow.run(&error), (REDIRECT, wanted), "{quoted} bytes of the packet of side {at}");
            }
        }
        assert_eq!(flow.splice.counts()[Count::Errors as usize], 8);
    }
}

#[test]
fn errors_that_are_not_about_what_was_sent_on_are_left_as_they_are() {
    for (family, addresses) in [V4, V6].into_iter().enumerate() {
        let flow = Flow::start(addresses, &mut Rng::with_seed(42));
        let [peer, own] = flow.ends[1];
        let [end, sent] = flow.numbers[1];
        let about = |sequence: u32| {
            let packet = Segment::new(own, peer, ACK, sequence, end).build();
            icmp_error(router(&flow), KINDS[family][0], &packet, 500)
        };
        assert_eq!(flow.run(&about(sent)), (NEXT, about(sent)), "the proxy's socket has the flow");
        flow.hand_over();
        let mine = about(sent.wrapping_sub(1));
        assert_eq!(flow.run(&mine), (NEXT, mine), "it is about bytes that the proxy's socket sent");
        assert_eq!(flow.run(&about(sent)).0, REDIRECT);
        let stranger =
            Segment::new("10.0.0.9:5".parse().expect("an address"), V4[3].parse().expect("one"), ACK, 1, 1);
        let error = icmp_error("10.0.0.77".parse().expect("an address"), 3, &stranger.build(), 500);
        assert_eq!(flow.run(&error), (NEXT, error));
        flow.splice.halt(SLOT);
        assert_eq!(flow.run(&about(sent)).0, DROP);
    }
}

#[test]
fn the_sender_is_told_of_what_does_not_fit_the_way_out() {
    let Some(network) = Network::start("the_sender_is_told_of_what_does_not_fit_the_way_out") else { return };
    // Packets of a trial seem to come from loopback and to leave by it.
    network.balancer.ip("link set lo mtu 1400");
    network.balancer.enter(|| {
        for addresses in [V4, V6] {
            let flow = Flow::start(addresses, &mut Rng::with_seed(43));
            flow.splice.set_way(SLOT, 1, 1);
            assert_eq!(flow.splice.seen(SLOT, 1).leaves_by, 1);
            flow.hand_over();
            let header = flow.segment(0, DATA, &[]).build().len() - 14;
            let exact = flow.segment(0, DATA, &vec![1; 1400 - header]);
            assert_eq!(flow.arrives(&exact), (REDIRECT, flow.model(0, &exact).build()));
            let larger = flow.segment(0, DATA, &vec![1; 1401 - header]);
            assert_eq!(flow.arrives(&larger), (REDIRECT, too_big(&larger.build(), 1400)));
            assert_eq!(flow.splice.counts()[Count::TooBig as usize], 1);
        }
    });
}

/// Cuts a packet behind `at` bytes of what IP carries.
fn cut(packet: &[u8], at: usize) -> [Vec<u8>; 2] {
    let (v4, id) = (packet[12] == 0x08, [0x12, 0x34, 0x56, 0x78]);
    let header = if v4 { 34 } else { 54 };
    let part = |offset: usize, data: &[u8], more: bool| {
        let mut out = packet[..header].to_vec();
        let place = (offset / 8) as u16;
        if v4 {
            out[16..18].copy_from_slice(&((20 + data.len()) as u16).to_be_bytes());
            out[18..20].copy_from_slice(&id[2..]);
            out[20..22].copy_from_slice(&(place | u16::from(more) << 13).to_be_bytes());
            seal(&mut out);
        } else {
            out[18..20].copy_from_slice(&((8 + data.len()) as u16).to_be_bytes());
            out[20] = 44;
            out.extend([6, 0]);
            out.extend((place << 3 | u16::from(more)).to_be_bytes());
            out.extend(id);
        }
        out.extend(data);
        out
    };
    let data = &packet[header..];
    [part(0, &data[..at], true), part(at, &data[at..], false)]
}

/// The packet that two fragments are of, which differs from `whole` in nothing that fragments lack.
fn joined([first, second]: [Vec<u8>; 2], whole: &[u8]) -> Vec<u8> {
    let (header, data) = if whole[12] == 0x08 { (34, 34) } else { (54, 62) };
    let mut out = first[..header].to_vec();
    assert_eq!(second[26..header], first[26..header], "both have the same addresses");
    if whole[12] == 0x08 {
        assert_eq!(
            (csum::fold(csum::sum(&first[14..34])), csum::fold(csum::sum(&second[14..34]))),
            (0xffff, 0xffff)
        );
        out[16..22].copy_from_slice(&whole[16..22]);
        seal(&mut out);
    } else {
        out[18..21].copy_from_slice(&whole[18..21]);
    }
    out.extend(&first[data..]);
    out.extend(&second[data..]);
    out
}

/// Sets the checksum of an IPv4 header.
fn seal(packet: &mut [u8]) {
    packet[24..26].copy_from_slice(&[0, 0]);
    let sum = csum::finish(csum::sum(&packet[14..34]));
    packet[24..26].copy_from_slice(&sum);
}

#[test]
fn fragments_follow_the_first_of_their_packet() {
    for addresses in [V4, V6] {
        let flow = Flow::start(addresses, &mut Rng::with_seed(44));
        let segment = flow.segment(0, DATA, &(0..=255).cycle().take(1_000).collect::<Vec<u8>>());
        let parts = cut(&segment.build(), 400);
        let run = || [flow.run(&parts[0]), flow.run(&parts[1])];
        assert_eq!(run(), parts.clone().map(|part| (NEXT, part)), "the stack puts them together");
        flow.hand_over();
        assert_eq!(flow.run(&parts[1]), (NEXT, parts[1].clone()), "its first has not come");
        let [(first, one), (second, other)] = run();
        assert_eq!([first, second], [REDIRECT; 2]);
        let whole = flow.model(0, &segment).build();
        assert_eq!(joined([one, other], &whole), whole);
        assert_eq!(flow.splice.counts()[Count::Fragments as usize], 1);
        flow.splice.halt(SLOT);
        assert_eq!(run()[0].0, DROP);
    }
}
