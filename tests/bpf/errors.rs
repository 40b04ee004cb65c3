//! ICMP errors about translated flows, in both directions: the quoted packet is the one that the receiver had sent.

use std::net::IpAddr;

use fastrand::Rng;
use lemonade_common::PacketReason as Reason;
use lemonade_common::decide::Verdict;
use lemonade_common::forward::{NAT, NAT_GATEWAY};
use lemonade_common::packet::{ACK, SYN};
use lemonade_tests::packets::{Shape, icmp_error, readdressed_error};
use lemonade_tests::tables::Tables;
use lemonade_tests::world::{VIP4, VIP6, any_shape, backend, balancer, decided, parse_address, world_in};

use crate::forward::{REDIRECT, load, run};

/// Opens flows and reports errors about their packets from both sides; `leaves` runs a packet from outside or not, and says
/// what leaves.
pub fn both_ways(tables: &Tables, mut leaves: impl FnMut(&[u8], bool) -> Vec<u8>) {
    let mut random = Rng::with_seed(51);
    for _ in 0..500 {
        let mut shape = any_shape(&mut random);
        let v6 = shape.from.is_ipv6();
        // What is quoted is cut by its sender, and extension headers are not looked for in it.
        shape.options.clear();
        shape.to = parse_address(if v6 { VIP6 } else { VIP4 });
        shape.flags = SYN;
        let Verdict::Forward(model, Reason::Opened) = decided(tables, &shape.build(), 1) else { continue };
        leaves(&shape.build(), true);
        let to = backend(model.backend, v6);
        let own = if model.src == lemonade_common::flow::mapped(shape.from.ip()) {
            shape.from
        } else {
            balancer(v6, u16::from_be_bytes(model.sport))
        };
        let (kind, header) = if v6 { (2, 40) } else { (3, 20) };
        let mut quoted = header + random.usize(8..280);
        // Of half a checksum nothing can be told, and nobody looks at it.
        if shape.protocol == 6 && quoted == header + 17 {
            quoted += 1;
        }
        let router = |outside: bool| -> IpAddr {
            let router = match (v6, outside) {
                (false, true) => "10.1.0.77",
                (false, false) => "10.0.0.77",
                (true, true) => "fd01::77",
                (true, false) => "fd00::77",
            };
            router.parse().expect("an address")
        };
        // A router on the way to the backend could not carry what left.
        let (sent, left) = (shape.clone(), Shape { from: own, to, ..shape.clone() });
        let left = Shape { flags: ACK, ..left }.build();
        let sent = Shape { flags: ACK, ..sent }.build();
        let error = icmp_error(router(false), kind, &left, quoted);
        let told = readdressed_error(&error, shape.to.ip(), &sent);
        assert_eq!(leaves(&error, false), told, "{shape:?} quoted {quoted}");
        // A router on the way to the client could not carry the answer.
        let answer = Shape { from: to, to: own, flags: ACK, ..shape.clone() }.build();
        let passed = Shape { from: shape.to, to: shape.from, flags: ACK, ..shape.clone() }.build();
        let error = icmp_error(router(true), kind, &passed, quoted);
        let told = readdressed_error(&error, own.ip(), &answer);
        assert_eq!(leaves(&error, true), told, "{shape:?} quoted {quoted}");
    }
}

#[test]
fn at_tc_errors_are_translated_both_ways() {
    for mode in [NAT, NAT_GATEWAY] {
        let tables = world_in(mode);
        let mut forward = load(&tables);
        both_ways(&tables, |packet, _| {
            let (action, out) = run(&mut forward, packet);
            assert_eq!(action, REDIRECT, "{packet:02x?}");
            out
        });
        assert!(forward.reasons()[Reason::IcmpError.index()] > 500);
    }
}
