//! Prints what a packet of an established flow costs in each mode; judged by people, since a timed test is none.
//!
//! A run of a program is repeated on the packet that the run before it left. So the flows here lead to the service's own
//! address: the program does all its work, and only the time to live wanders, which bounds the repeats. A packet that is
//! wrapped is another afterwards, so at tc that mode is run once at a time, and so is what it is compared with. At XDP another
//! program puts the packet back before each run: what that one costs by itself is told as the floor.

use std::path::Path;
use std::time::Duration;

use lemonade::proxy::adapters::bpf::{Splice, Timed, Trial};
use lemonade_common::PacketReason;
use lemonade_common::forward::{DSR_IPIP, DSR_L2, NAT, NAT_GATEWAY, Target};
use lemonade_common::maglev::SLOTS;
use lemonade_common::packet::{ACK, SYN};
use lemonade_common::restore::{Original, RESTORED};
use lemonade_tests::netns::Network;
use lemonade_tests::packets::Shape;
use lemonade_tests::skip::full;
use lemonade_tests::tables::Tables;
use lemonade_tests::world::{VIP4, VIP6, parse_address, world_in};

use crate::forward::{PASS, load, load_for};
use crate::forwarding::interface_index;
use crate::splice::{DATA, Flow, NEXT, V4, V6};
use crate::xdp::{Plane, REDIRECT, TX};

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

/// What new flows cost, and packets of many established ones in an order that no cache knows. Each packet is run once, so the
/// clock is read for each: what it costs alone is told as the floor.
#[test]
fn the_cost_of_many_flows_is_shown() {
    let Some(network) = Network::start("the_cost_of_many_flows_is_shown") else { return };
    let arp = [&[2; 12][..], &[8, 6], &[0; 46]].concat();
    let mut random = fastrand::Rng::with_seed(41);
    // A core writes down 125,000 flows a second in modes whose answers pass by.
    let breath = || std::thread::sleep(Duration::from_millis(1_100));
    for (mode, entries) in [(NAT_GATEWAY, 2), (DSR_IPIP, 1)] {
        for many in if full() { &[1 << 16, 1 << 20][..] } else { &[1 << 12] } {
            let many: u32 = *many;
            let mut forward = load_for(&world_in(mode), many * entries + 1_000);
            let packet = |n: u32, flags| {
                let client = format!("10.{}.{}.9:{}", n >> 16 & 255, n >> 8 & 255, 2_000 + (n & 255));
                Shape::tcp(&client, VIP4, flags).carrying(&[0; 64]).build()
            };
            network.balancer.enter(|| {
                let mut times = |packets: &mut dyn Iterator<Item = Vec<u8>>, action: u32| {
                    let mut all = Vec::new();
                    for (n, packet) in packets.enumerate() {
                        if n % 60_000 == 59_999 {
                            breath();
                        }
                        let trial = forward.trial(&packet, 1).expect("a trial");
                        assert_eq!(trial.action, action);
                        all.push(trial.took.as_nanos());
                    }
                    all.sort_unstable();
                    all[all.len() / 2]
                };
                breath();
                let floor = times(&mut (0..1_000).map(|_| arp.clone()), PASS);
                // From the middle of a flow, as after a restart: a handshake has room of its own, which is less.
                let flags = if mode == DSR_IPIP { SYN } else { ACK };
                let fresh = times(&mut (0..many).map(|n| packet(n, flags)), 7);
                let mut order: Vec<u32> = (0..many).collect();
                random.shuffle(&mut order);
                let known = times(&mut order.into_iter().map(|n| packet(n, ACK)), 7);
                println!("mode {mode}, {many} flows: new {fresh} ns, established {known} ns, floor {floor} ns (middle)");
            });
            let counted = forward.reasons();
            let written = [PacketReason::Opened, PacketReason::Adopted].map(|reason| counted[reason.index()]);
            assert_eq!(written.iter().sum::<u64>(), u64::from(many), "each is written down once");
        }
    }
}

/// A packet to restore, which the program makes so much longer; from so many clients in turn, a power of two.
fn original(packet: &[u8], grown: usize, clients: u32) -> Original {
    let bytes = packet[..RESTORED].try_into().expect("a packet with data");
    // Low half of the source address and source port, over IPv4; over IPv6 one client is enough.
    let (length, varied_at) = (packet.len() as u32, [28, 34]);
    Original { bytes, length, grown: grown as u32, varied_at, mask: clients - 1, runs: 0 }
}

/// The least averages of a few trials each in turn, in nanoseconds: without the program and with it. A trial takes the kernel
/// some milliseconds more than it runs.
fn floor_and_whole(
    nothing: &mut Timed,
    timed: &mut Timed,
    repeat: u32,
    trial: impl Fn(&mut Timed, u32) -> Trial,
) -> (u128, u128) {
    let rounds = if full() { 300 } else { 20 };
    let [mut floor, mut whole] = [u128::MAX; 2];
    for _ in 0..rounds {
        for (timed, action, least) in [(&mut *nothing, TX, &mut floor), (&mut *timed, REDIRECT, &mut whole)] {
            let trial = trial(timed, repeat);
            assert_eq!(trial.action, action, "the last of the repeats took another way");
            *least = trial.took.as_nanos().min(*least);
        }
    }
    (floor, whole)
}

/// What packets cost at XDP that are the same in each run, and what many flows cost in turn.
#[test]
fn the_cost_of_restored_packets_is_shown() {
    let Some(network) = Network::start("the_cost_of_restored_packets_is_shown") else { return };
    let folder = std::env::var_os("LEMONADE_BPF_OBJECTS").expect("the folder of the objects");
    let object = std::fs::read(Path::new(&folder).join("restore")).expect("the object that times others");
    let mut nothing = Timed::load(&object, None).expect("the programs pass the verifier");
    for (mode, name) in [(NAT, "nat"), (NAT_GATEWAY, "nat-gateway"), (DSR_IPIP, "dsr-ipip")] {
        let mut tables = world_in(mode);
        // Outer headers of the packet's own family, since they are taken away by their length.
        tables.rings[0] = (0..SLOTS).map(|slot| slot % 3).collect();
        let mut plane = Plane::start_for(&network, &mut tables, 1 << 18);
        plane.forward.limit_new_flows(0).expect("the map takes it");
        let mut timed =
            Timed::load(&object, Some(&mut plane.forward)).expect("the programs pass the verifier");
        let outside = plane.outside;
        for (client, vip) in [("10.9.9.9:5000", VIP4), ("[fd09::9]:5000", VIP6)] {
            let syn = Shape::tcp(client, vip, SYN).carrying(&[0; 64]);
            let grown = plane.leaves(&syn.build(), outside).len() - syn.build().len();
            let packet = Shape { flags: ACK, ..syn }.build();
            let one = original(&packet, grown, 1);
            let (floor, whole) = network.balancer.enter(|| {
                floor_and_whole(&mut nothing, &mut timed, 1_000, |timed, repeat| {
                    timed.trial(&packet, &one, outside, repeat).expect("a trial")
                })
            });
            println!("{name}, established, to {vip}: XDP {whole} ns, of which {floor} are the floor");
        }
        if mode == DSR_IPIP {
            let many: u32 = 1 << 16;
            let syn = Shape::tcp("10.9.9.9:5000", "192.0.2.10:80", SYN).carrying(&[0; 64]);
            let [new, known] = [SYN, ACK].map(|flags| Shape { flags, ..syn.clone() }.build());
            network.balancer.enter(|| {
                let (part, mut least) = (1 << 12, u128::MAX);
                for begin in (0..many).step_by(part) {
                    let original = Original { runs: begin, ..original(&new, 20, many) };
                    let trial = timed.trial(&new, &original, outside, part as u32).expect("a trial");
                    assert_eq!(trial.action, REDIRECT, "the last of the repeats took another way");
                    least = trial.took.as_nanos().min(least);
                }
                let all = original(&known, 20, many);
                let (floor, whole) = floor_and_whole(&mut nothing, &mut timed, many, |timed, repeat| {
                    timed.trial(&known, &all, outside, repeat).expect("a trial")
                });
                println!("{name}, {many} flows: XDP {least} ns new, {whole} established, {floor} the floor");
            });
            let flows = plane.forward.flows().expect("the table is read").len();
            assert!(flows >= many as usize, "{flows} of {many} flows are written down");
        }
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
