//! Bad and unusual links: packets that overtake each other and come twice, narrow ones beyond the balancer, wide ones, and
//! packets of many segments.

use lemonade_tests::netns::Network;
use lemonade_tests::setup::Setup;
use lemonade_tests::skip::{full, skip};
use lemonade_tests::wait;

use crate::stage::{Stage, V4, V6, parse};
use crate::talk::{Answerer, hold, plan};
use crate::transfers::{exact, held, orderly};

/// Conversations of one row.
fn some(few: usize) -> usize {
    if full() { few * 20 } else { few }
}

#[test]
fn packets_that_overtake_each_other_and_come_twice_cost_no_byte() {
    let test = "packets_that_overtake_each_other_and_come_twice_cost_no_byte";
    for (clients, addresses) in [(true, V4), (false, V6)] {
        let Some(stage) = Stage::start(test, addresses, &[]) else { return };
        let _disorder = stage.network.disorder(clients);
        let Network { client, balancer, backends } = &stage.network;
        let sum = |name| [client, balancer, backends].map(|own| own.tcp_counter(name)).iter().sum::<u64>();
        // How many overtake each other depends on how fast the host's cores send.
        let mut counts = (0, 0);
        for seed in 0..10 {
            exact(&stage, &orderly(plan(61 + 100 * seed, some(100), 200_000)), 25);
            counts = (sum("TCPOFOQueue"), sum("TCPDSACKRecv"));
            println!("{} packets came out of order, {} twice", counts.0, counts.1);
            if counts.0 > 50 && counts.1 > 50 {
                break;
            }
        }
        let (late, doubled) = counts;
        assert!(late > 50 && doubled > 50, "blocked: {late} packets came out of order, {doubled} twice");
    }
}

/// Packets of one segment each, and packets that the receiver has put together.
#[test]
fn segments_alone_and_put_together_arrive_exact() {
    let Some(stage) = Stage::start("segments_alone_and_put_together_arrive_exact", V4, &[]) else { return };
    let Network { client, balancer, backends } = &stage.network;
    let ends = [
        (client, "to_balancer"),
        (balancer, "to_client"),
        (balancer, "to_backends"),
        (backends, "to_balancer"),
    ];
    for settings in ["tso off gso off gro off", "tso on gso on gro on", "tx off rx off sg off"] {
        for (namespace, device) in ends {
            namespace.ethtool(&format!("-K {device} {settings}"));
        }
        exact(&stage, &plan(62, some(50), 400_000), 25);
    }
}

#[test]
fn large_frames_on_both_sides_are_spliced() {
    let Some(network) = Network::start("large_frames_on_both_sides_are_spliced") else { return };
    network.mtu(9_000);
    let backend = network.backends.enter(|| Answerer::start(parse(V6[1])));
    let stage = Stage::between(network, backend, V6[0], |setup| setup);
    exact(&stage, &plan(63, some(60), 400_000), 25);
}

/// Packets of more than 64 KiB (BIG TCP), where the kernel makes them. Those of IPv4 have 0 in the field of their length.
#[test]
fn packets_of_more_than_64_kib_are_spliced() {
    for addresses in [V6, V4] {
        let test = "packets_of_more_than_64_kib_are_spliced";
        let Some(network) = Network::start(test) else { return };
        if let Err(error) = network.large_packets(185_000) {
            return skip(test, &format!("this kernel makes no packets of IPv4 of more than 64 KiB: {error}"));
        }
        for namespace in [&network.client, &network.backends] {
            namespace.filter("meta length > 70000 counter");
        }
        let backend = network.backends.enter(|| Answerer::start(parse(addresses[1])));
        let stage = Stage::between(network, backend, addresses[0], |setup| setup);
        exact(&stage, &orderly(plan(64, some(20), 4_000_000)), 2);
        let large = stage.network.client.counted() + stage.network.backends.counted();
        println!("{large} packets of more than 70,000 bytes from {}", addresses[0]);
        let words = stage.lemonade.status().0["relays"].to_string();
        assert!(words.contains(" 0 too_big,"), "segments fit: {words}");
        if large == 0 {
            return skip(test, "this kernel makes no packets of more than 64 KiB");
        }
    }
}

/// What does not fit beyond the balancer is told to the end that sent it, by translated ICMP errors.
#[test]
fn a_narrow_link_beyond_the_balancer_is_found_by_the_sender() {
    let test = "a_narrow_link_beyond_the_balancer_is_found_by_the_sender";
    for (clients, v6) in [(false, false), (true, false), (false, true)] {
        let Some(network) = Network::start(test) else { return };
        let [_router, host] = network.beyond(clients, 1_400);
        let far = if v6 { "[fd77:5::2]:0" } else { "10.77.5.2:0" };
        let addresses = if v6 { V6 } else { V4 };
        let backend = if clients {
            network.backends.enter(|| Answerer::start(parse(addresses[1])))
        } else {
            host.enter(|| Answerer::start(parse(far)))
        };
        // Neighbours of IPv6 are found late while links are young.
        let patient = |setup: Setup| setup.frontend(&["connect_timeout = \"10s\""]);
        let stage = Stage::between(network, backend, addresses[0], patient);
        let place = if clients { &host } else { &stage.network.client };
        // Each waits for its splice, since a large packet of the proxy's own would tell it how narrow the path is.
        let mut spliced = 0;
        for seed in 0..4 {
            let mut talks = orderly(plan(65 + seed, 1, 1_000_000));
            (talks[0].turns, talks[0].pause) = (200, 3);
            (talks[0].up, talks[0].down) = (500_000, 700_000);
            spliced += held(&stage, place, &talks, 1);
            // Who knows how narrow it is says so from the beginning, and is left to copy.
            for namespace in [&host, &stage.network.client, &stage.network.backends] {
                namespace.ip(if v6 { "-6 route flush cache" } else { "route flush cache" });
            }
        }
        assert!(spliced >= 3, "blocked: {spliced} of 4 were spliced");
        let words = stage.lemonade.status().0["relays"].to_string();
        let errors =
            words.split_once(" errors").and_then(|(front, _)| front.rsplit(' ').next()?.parse().ok());
        println!("{errors:?} errors");
        assert!(errors.is_some_and(|count: u64| count > 0), "blocked: {words}");
    }
}

/// A proxy that knows that the path behind it is narrower than the client's keeps to copying, and says so.
#[test]
fn a_path_that_is_known_to_be_narrow_is_left_to_copy() {
    let Some(network) = Network::start("a_path_that_is_known_to_be_narrow_is_left_to_copy") else { return };
    network.mtu(1_500);
    let backend = network.backends.enter(|| Answerer::start(parse(V4[1])));
    network.backends.ip("link set to_balancer mtu 1400");
    network.balancer.ip("link set to_backends mtu 1400");
    let stage = Stage::between(network, backend, V4[0], |setup| setup);
    let failures = stage.network.client.enter(|| hold(stage.frontend, &plan(66, 20, 100_000), 10));
    assert_eq!(failures, [""; 0]);
    stage.ended();
    wait::until("the reason is told", wait::SOON, || stage.kept("segment_size") > 10);
    assert_eq!(stage.relay("promoted_total"), 0);
}
