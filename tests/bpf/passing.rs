//! Real connections in modes that keep the client's address, between network namespaces.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use lemonade_common::PacketReason as Reason;
use lemonade_common::forward::{DOWN, DSR_L2, NAT, NAT_GATEWAY};
use lemonade_tests::backend::Backend;
use lemonade_tests::netns::Network;
use lemonade_tests::transfer;

use crate::forwarding::{PORT, Plane, V4, V6, ip};

/// Transfers whose bytes are checked at both ends, 30 at a time.
fn exact(network: &Network, address: SocketAddr, seed: u64) {
    let mut plan = transfer::plan(seed, 60, 16 << 20);
    plan.iter_mut().for_each(|transfer| {
        transfer.up = transfer.up.min(4 << 20);
        transfer.down = transfer.down.min(4 << 20);
    });
    let failures = network.client.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(transfer::run(address, &plan, 30))
    });
    assert_eq!(failures, [""; 0]);
}

fn lossy(network: &Network) {
    // The balancer's stack sees none of it, so loss is made at both ends.
    for namespace in [&network.client, &network.backends] {
        namespace.filter("meta l4proto tcp numgen random mod 100 < 1 drop");
    }
}

fn by_the_gateway(test: &str, addresses: [&'static str; 5]) {
    let Some(network) = Network::start(test) else { return };
    network.backends.ip("route add 10.77.1.0/24 via 10.77.2.2");
    network.backends.ip("route add fd77:1::/64 via fd77:2::2");
    let backends: Vec<Backend> = (2..5)
        .map(|n| {
            let address = SocketAddr::new(ip(addresses[n]), 0);
            network.backends.enter(|| Backend::start_speaking_on(&n.to_string(), address))
        })
        .collect();
    let ports = [0, 1, 2].map(|n: usize| backends[n].address.port());
    let plane = Plane::start_in(&network, addresses, ports, NAT_GATEWAY);
    lossy(&network);
    exact(&network, plane.address(), 6);
    assert!(backends.iter().all(|backend| backend.truth().served() > 0), "a backend served none");
    let flows = plane.forward.flows().expect("the table is read");
    let answers = flows.iter().filter(|(_, flow)| flow.state() & DOWN != 0);
    assert_eq!((flows.len(), answers.count()), (120, 60));
    let client =
        lemonade_common::flow::mapped(ip(if ip(addresses[0]).is_ipv4() { "10.77.1.1" } else { "fd77:1::1" }));
    let up = flows.iter().filter(|(_, flow)| flow.state() & DOWN == 0);
    assert!(up.clone().all(|(_, flow)| flow.src == client), "the backend sees the client");
}

#[test]
fn by_the_gateway_transfers_are_exact_under_loss_over_ipv4() {
    by_the_gateway("by_the_gateway_transfers_are_exact_under_loss_over_ipv4", V4);
}

#[test]
fn by_the_gateway_transfers_are_exact_under_loss_over_ipv6() {
    by_the_gateway("by_the_gateway_transfers_are_exact_under_loss_over_ipv6", V6);
}

/// One server at the service's own address stands for all three backends, which share a namespace.
fn past_the_balancer(network: &Network, addresses: [&'static str; 5], mode: u32) {
    network.pass_by(&["10.77.1.2/32", "fd77:1::2/128"]);
    let vip = SocketAddr::new(ip(addresses[0]), PORT);
    let backend = network.backends.enter(|| Backend::start_speaking_on("all", vip));
    let plane = Plane::start_in(network, addresses, [PORT; 3], mode);
    lossy(network);
    exact(network, vip, 7);
    assert_eq!(backend.truth().failures(), [""; 0]);
    let flows = plane.forward.flows().expect("the table is read");
    let used: BTreeSet<u32> = flows.iter().map(|(_, flow)| flow.backend).collect();
    assert_eq!((flows.len(), used.len()), (60, 3));
    assert!(flows.iter().all(|(_, flow)| flow.state() & DOWN == 0), "answers pass by");
    let reasons = plane.forward.reasons();
    assert_eq!(reasons[Reason::Opened.index()], 60);
    assert_eq!(reasons[Reason::NotSent.index()], 0);
    println!("mode {mode}: {reasons:?}");
}

#[test]
fn over_the_link_transfers_are_exact_under_loss_over_ipv4() {
    let Some(network) = Network::start("over_the_link_transfers_are_exact_under_loss_over_ipv4") else {
        return;
    };
    past_the_balancer(&network, V4, DSR_L2);
}

#[test]
fn over_the_link_transfers_are_exact_under_loss_over_ipv6() {
    let Some(network) = Network::start("over_the_link_transfers_are_exact_under_loss_over_ipv6") else {
        return;
    };
    past_the_balancer(&network, V6, DSR_L2);
}

fn narrow(test: &str, addresses: [&'static str; 5]) {
    let Some(network) = Network::start(test) else { return };
    let backends: Vec<Backend> = (2..5)
        .map(|n| {
            let address = SocketAddr::new(ip(addresses[n]), 0);
            network.backends.enter(|| Backend::start_speaking_on(&n.to_string(), address))
        })
        .collect();
    let ports = [0, 1, 2].map(|n: usize| backends[n].address.port());
    network.balancer.ip("link set to_backends mtu 1400");
    // Backends keep to it themselves, and yet tell clients that they take more.
    for (net, most) in [("10.77.2.0/24", 1460), ("fd77:2::/64", 1440)] {
        network.backends.ip(&format!("route replace {net} dev to_balancer mtu 1400 advmss {most}"));
    }
    let plane = Plane::start_in(&network, addresses, ports, NAT);
    exact(&network, plane.address(), 8);
    let reasons = plane.forward.reasons();
    assert!(reasons[Reason::TooBig.index()] > 0, "nobody was told: {reasons:?}");
    assert_eq!(reasons[Reason::NotSent.index()], 0);
}

#[test]
fn senders_adapt_to_a_narrow_way_behind_the_balancer_over_ipv4() {
    narrow("senders_adapt_to_a_narrow_way_behind_the_balancer_over_ipv4", V4);
}

#[test]
fn senders_adapt_to_a_narrow_way_behind_the_balancer_over_ipv6() {
    narrow("senders_adapt_to_a_narrow_way_behind_the_balancer_over_ipv6", V6);
}
