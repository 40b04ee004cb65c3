//! What is read from packets, well-formed or not.

use std::net::SocketAddr;

use fastrand::Rng;
use lemonade_common::FlowKey;
use lemonade_common::flow::mapped;
use lemonade_common::packet::{Kind, NoFlow, Oddity, parse};
use lemonade_tests::packets::{Shape, icmp_error};

use lemonade_tests::world::{any_shape, parse_address};

fn key(from: SocketAddr, to: SocketAddr, protocol: u8) -> FlowKey {
    FlowKey {
        src: mapped(from.ip()),
        dst: mapped(to.ip()),
        sport: from.port().to_be_bytes(),
        dport: to.port().to_be_bytes(),
        protocol: u32::from(protocol),
    }
}

#[test]
fn every_well_formed_packet_is_read_as_it_was_made() {
    let mut random = Rng::with_seed(1);
    for _ in 0..20_000 {
        let mut shape = any_shape(&mut random);
        shape.tags = (0..random.usize(..3)).map(|_| random.u16(..)).collect();
        let packet = parse(&shape.build()[..]).unwrap_or_else(|why| panic!("{why:?}: {shape:?}"));
        assert_eq!(packet.key, key(shape.from, shape.to, shape.protocol), "{shape:?}");
        assert_eq!((packet.kind, packet.odd, packet.ttl), (Kind::Flow, None, shape.ttl), "{shape:?}");
        assert_eq!(packet.tagged, !shape.tags.is_empty());
        assert_eq!(packet.flags, if shape.protocol == 6 { shape.flags } else { 0 });
    }
}

#[test]
fn torn_and_changed_packets_are_read_without_harm() {
    let mut random = Rng::with_seed(2);
    for _ in 0..100_000 {
        let mut bytes = any_shape(&mut random).build();
        for _ in 0..random.usize(..4) {
            let at = random.usize(..bytes.len().min(80));
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(..=bytes.len()));
        // A later fragment has no transport header.
        if let Ok(packet) = parse(&bytes[..])
            && packet.kind != Kind::LaterFragment
        {
            assert!(usize::from(packet.transport) + 8 <= bytes.len(), "{bytes:02x?}");
        }
    }
}

#[test]
fn more_than_two_tags_are_not_read() {
    let shape = Shape { tags: vec![1, 2, 3], ..Shape::tcp("10.0.0.1:1", "10.0.0.2:2", 2) };
    assert_eq!(parse(&shape.build()[..]), Err(NoFlow::NotIp));
}

#[test]
fn options_fragments_and_bad_lengths_are_odd() {
    let options = Shape { options: vec![1; 8], ..Shape::tcp("10.0.0.1:1", "10.0.0.2:2", 2) };
    let odd = |bytes: &[u8]| parse(bytes).map(|packet| packet.odd);
    assert_eq!(odd(&options.build()), Ok(Some(Oddity::Options)));
    let plain = Shape::tcp("10.0.0.1:1", "10.0.0.2:2", 2).carrying(b"data").build();
    let changed = |at: usize, to: u8| {
        let mut bytes = plain.clone();
        bytes[at] = to;
        bytes
    };
    assert_eq!(odd(&changed(20, 0x20)), Ok(Some(Oddity::Fragment)));
    let later = parse(&changed(21, 0x01)[..]).map(|packet| packet.kind);
    assert_eq!(later, Ok(Kind::LaterFragment));
    assert_eq!(odd(&changed(16, 0x01)), Ok(Some(Oddity::BadLength)), "longer than its frame");
    assert_eq!(odd(&changed(46, 0x40)), Ok(Some(Oddity::BadLength)), "a TCP header of 16 bytes");
    assert_eq!(odd(&changed(46, 0xf0)), Ok(Some(Oddity::BadLength)), "a TCP header beyond the packet");
    assert_eq!(odd(&changed(14, 0x44)), Err(NoFlow::Torn), "an IP header of 16 bytes");
    assert_eq!(odd(&changed(14, 0x65)), Err(NoFlow::Torn), "IPv6 by its version only");
    let padded = [&plain[..], &[0; 6]].concat();
    assert_eq!(odd(&padded), Ok(None), "what pads a frame is no part of the packet");
}

#[test]
fn extension_headers_are_walked_to_a_bound() {
    let chain = |headers: &[[u8; 8]], first: u8| {
        let mut bytes = Shape::tcp("[fd00::1]:1", "[fd00::2]:2", 2).build();
        let segment = bytes.split_off(54);
        bytes[20] = first;
        bytes[18..20].copy_from_slice(&((segment.len() + headers.len() * 8) as u16).to_be_bytes());
        headers.iter().for_each(|header| bytes.extend(header));
        bytes.extend(segment);
        bytes
    };
    let read = |bytes: Vec<u8>| parse(&bytes[..]).map(|packet| (packet.key.dport, packet.odd));
    let pad = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let fragment = |offset: u16, more: u8| {
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        [6, 0, high, low, 0, 0, 0, 1]
    };
    assert_eq!(read(chain(&[pad(60), pad(6)], 0)), Ok(([0, 2], None)));
    assert_eq!(read(chain(&[pad(60), pad(60), pad(60), pad(6)], 0)), Ok(([0, 2], None)));
    assert_eq!(read(chain(&[pad(60), pad(60), pad(60), pad(60), pad(6)], 0)), Err(NoFlow::OtherProtocol));
    assert_eq!(read(chain(&[pad(6)], 43)), Ok(([0, 2], Some(Oddity::Options))), "a routing header");
    assert_eq!(read(chain(&[fragment(0, 1)], 44)), Ok(([0, 2], Some(Oddity::Fragment))));
    let later = parse(&chain(&[fragment(1, 0)], 44)[..]).map(|packet| (packet.kind, packet.key.dport));
    assert_eq!(later, Ok((Kind::LaterFragment, [0; 2])), "its ports are in the first");
}

#[test]
fn an_icmp_error_has_the_key_of_the_flow_in_its_direction() {
    for (from, to, router, kind) in [
        ("10.0.0.254:20000", "10.0.0.1:8080", "10.0.0.77", 3),
        ("[fd00::ff]:20000", "[fd00::1]:8080", "[fd00::77]", 2),
    ] {
        let sent = Shape::udp(from, to, &[7; 100]).build();
        let router = parse_address(&format!("{router}:0")).ip();
        // Eight bytes of the inner payload suffice.
        let header = if router.is_ipv4() { 20 } else { 40 };
        let error = icmp_error(router, kind, &sent, header + 8);
        let packet = parse(&error[..]).expect("an error about a flow");
        assert_eq!(packet.kind, Kind::IcmpError);
        assert_eq!(packet.key, key(parse_address(to), parse_address(from), 17));
        assert_eq!(parse(&error[..error.len() - 5]), Err(NoFlow::Torn), "no ports in what is quoted");
    }
}
