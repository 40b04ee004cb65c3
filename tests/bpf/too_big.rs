//! Packets that are larger than the way to their backend takes: their sender is told, and sends smaller ones.

use lemonade_common::PacketReason as Reason;
use lemonade_common::forward::{DSR_IPIP, NAT};
use lemonade_common::packet::{ACK, SYN};
use lemonade_tests::netns::Network;
use lemonade_tests::packets::{Shape, icmp_error, too_big};
use lemonade_tests::world::{VIP4, VIP6, parse_address, world_in};

use crate::forward::{DROP, REDIRECT, load, reason, run};
use crate::forwarding::interface_index;

#[test]
fn the_sender_of_a_packet_that_is_too_big_is_told_what_fits() {
    let Some(network) = Network::start("the_sender_of_a_packet_that_is_too_big_is_told_what_fits") else {
        return;
    };
    for (mode, client, vip, device, backends, mtu) in [
        (NAT, "10.9.9.9:5000", VIP4, 1400, 0..3, 1400),
        (NAT, "[fd09::9]:5000", VIP6, 1400, 3..6, 1400),
        (DSR_IPIP, "10.9.9.9:5000", VIP4, 1500, 0..1, 1480),
        (DSR_IPIP, "10.9.9.9:5000", VIP4, 1500, 3..4, 1460),
        (DSR_IPIP, "[fd09::9]:5000", VIP6, 1500, 3..4, 1460),
    ] {
        network.balancer.ip(&format!("link set to_backends mtu {device}"));
        let mut tables = world_in(mode);
        let inside = network.balancer.enter(|| interface_index("to_backends"));
        for target in tables.targets.values_mut() {
            target.interface = inside;
        }
        for ring in &mut tables.rings {
            ring.fill(backends.start);
        }
        let mut forward = load(&tables);
        let syn = Shape::tcp(client, vip, SYN);
        let header = if syn.from.is_ipv4() { 40 } else { 60 };
        let exact = vec![7; mtu as usize - header];
        let ack = |payload: &[u8]| Shape { flags: ACK, ..syn.clone() }.carrying(payload).build();
        network.balancer.enter(|| {
            assert_eq!(reason(&mut forward, &syn.build()), (REDIRECT, Reason::Opened));
            assert_eq!(reason(&mut forward, &ack(&exact)), (REDIRECT, Reason::Forwarded));
            let larger = ack(&[&exact[..], &[7]].concat());
            assert_eq!(reason(&mut forward, &larger), (REDIRECT, Reason::TooBig));
            let (_, told) = run(&mut forward, &larger);
            assert_eq!(told, too_big(&larger, mtu), "mode {mode} from {client}");
            // Nobody is told of an error.
            let answer = Shape { from: syn.to, to: syn.from, ..syn.clone() }.carrying(&[1; 1600]).build();
            let error =
                icmp_error(parse_address(client).ip(), if header == 40 { 3 } else { 1 }, &answer, 1500);
            assert_eq!(reason(&mut forward, &error), (DROP, Reason::TooBig));
        });
    }
}

#[test]
fn senders_are_told_at_a_limited_rate() {
    let Some(network) = Network::start("senders_are_told_at_a_limited_rate") else { return };
    network.balancer.ip("link set to_backends mtu 1400");
    let mut tables = world_in(NAT);
    let inside = network.balancer.enter(|| interface_index("to_backends"));
    for target in tables.targets.values_mut() {
        target.interface = inside;
    }
    let mut forward = load(&tables);
    network.balancer.enter(|| {
        let syn = Shape::tcp("10.9.9.9:5000", VIP4, SYN);
        run(&mut forward, &syn.build());
        let larger = Shape { flags: ACK, ..syn }.carrying(&[7; 1450]).build();
        let told = (0..20_000).filter(|_| run(&mut forward, &larger).0 == REDIRECT).count();
        // A few seconds at most have begun, on a few cores.
        assert!((1_000..19_000).contains(&told), "{told} of 20000 told");
        assert!(forward.reasons()[Reason::TooBig.index()] == 20_000, "{:?}", forward.reasons());
    });
}
