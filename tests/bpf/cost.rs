//! Prints what a packet of an established flow costs in each mode; judged by people, since a timed test is none.
//!
//! A run of a program is repeated on the packet that the run before it left. So the flows here lead to the service's own
//! address: the program does all its work, and only the time to live wanders, which bounds the repeats. A packet that is
//! wrapped is another afterwards, so that mode is run once at a time, and so is what it is compared with.

use lemonade::proxy::adapters::bpf::{Splice, Trial};
use lemonade_common::forward::{DSR_IPIP, DSR_L2, NAT_GATEWAY, Target};
use lemonade_common::packet::{ACK, SYN};
use lemonade_tests::netns::Network;
use lemonade_tests::packets::Shape;
use lemonade_tests::tables::Tables;
use lemonade_tests::world::{VIP4, VIP6, parse_address, world_in};

use crate::forward::{PASS, load};
use crate::forwarding::interface_index;
use crate::splice::{DATA, Flow, NEXT, V4, V6};

/// Repeats that a time to live of 255 allows.
const REPEATS: u32 = 250;

/// Backends that are where the service is.
fn own_backends(tables: &mut Tables, interface: u32) {
    for (n, target) in &mut tables.targets {
        let vip = parse_address(if *n < 3 { VIP4 } else { VIP6 });
        let address = lemonade_common::flow::mapped(vip.ip());
        *target = Target { address, port: vip.port().to_be_bytes(), interface, ..*target };
    }
}

/// The least and the middle of many averages over [`REPEATS`], in nanoseconds.
fn told(mut trial: impl FnMut() -> Trial, action: u32) -> (u128, u128) {
    let run = |_| {
        let trial = trial();
        assert_eq!(trial.action, action, "the last of the repeats took another way");
        trial.took.as_nanos()
    };
    let mut all: Vec<u128> = (0..2_000).map(run).collect();
    all.sort_unstable();
    (all[0], all[all.len() / 2])
}

#[test]
fn the_cost_of_each_mode_is_shown() {
    let Some(network) = Network::start("the_cost_of_each_mode_is_shown") else { return };
    let [outside, inside] = network.balancer.enter(|| {
        for family in ["ipv4", "ipv6"] {
            let switch = format!("/proc/sys/net/{family}/conf/all/forwarding");
            std::fs::write(&switch, "1").unwrap_or_else(|error| panic!("{switch}: {error}"));
        }
        ["to_client", "to_backends"].map(interface_index)
    });
    for (to, hop) in [("192.0.2.0/24", "10.77.2.1"), ("2001:db8::/64", "fd77:2::1")] {
        network
            .balancer
            .ip(&format!("neigh replace {hop} lladdr 02:00:00:00:02:01 dev to_backends nud permanent"));
        network.balancer.ip(&format!("route replace {to} via {hop} dev to_backends"));
    }
    let arp = [&[2; 12][..], &[8, 6], &[0; 46]].concat();
    for mode in [NAT_GATEWAY, DSR_L2, DSR_IPIP] {
        let mut tables = world_in(mode);
        own_backends(&mut tables, inside);
        let repeats = if mode == DSR_IPIP { 1 } else { REPEATS };
        let mut forward = load(&tables);
        network.balancer.enter(|| forward.attach_xdp("to_client", true)).expect("veth takes programs");
        network.balancer.enter(|| {
            let (least, middle) = told(|| forward.trial(&arp, repeats).expect("a trial"), PASS);
            let (xdp, xdp_middle) = told(|| forward.trial_xdp(&arp, outside, repeats).expect("a trial"), 2);
            println!("not IP: tc {least} ns (middle {middle}), XDP {xdp} ns (middle {xdp_middle})");
            for (client, vip) in [("10.9.9.9:5000", VIP4), ("[fd09::9]:5000", VIP6)] {
                let syn = Shape { ttl: 255, ..Shape::tcp(client, vip, SYN) };
                forward.trial(&syn.build(), 1).expect("a trial");
                let packet = Shape { flags: ACK, ..syn }.carrying(&[0; 64]).build();
                let (tc, tc_middle) = told(|| forward.trial(&packet, repeats).expect("a trial"), 7);
                // Over the link the next hop is the backend itself, which no route here leads to.
                let xdp = if mode != DSR_L2 {
                    let (xdp, middle) =
                        told(|| forward.trial_xdp(&packet, outside, repeats).expect("a trial"), 4);
                    format!(", XDP {xdp} ns (middle {middle})")
                } else {
                    String::new()
                };
                println!("mode {mode}, established, to {vip}: tc {tc} ns (middle {tc_middle}){xdp}");
            }
        });
        forward.detach_others(&[]);
    }
}

/// What the programs of relay `splice` cost each packet of the host that is none of theirs.
#[test]
fn the_cost_of_a_packet_of_no_spliced_flow_is_shown() {
    let Some(network) = Network::start("the_cost_of_a_packet_of_no_spliced_flow_is_shown") else { return };
    let mut random = fastrand::Rng::new();
    network.balancer.enter(|| {
        for addresses in [V4, V6] {
            let watched = Flow::start(addresses, &mut random);
            let empty = Splice::load(8).expect("the programs pass the verifier");
            // From another port than the flow that is watched has.
            let mut other = watched.segment(0, DATA, &[0; 64]);
            other.from.set_port(other.from.port() + 1);
            let packet = other.build();
            for (kind, splice) in [("no flow watched", &empty), ("another flow watched", &watched.splice)] {
                for leaves in [false, true] {
                    let (least, middle) =
                        told(|| splice.trials(leaves, &packet, 1_000).expect("a trial"), NEXT);
                    let way = if leaves { "leaves" } else { "arrives" };
                    println!("to {}, {kind}: {way} {least} ns (middle {middle})", other.to);
                }
            }
        }
    });
}
