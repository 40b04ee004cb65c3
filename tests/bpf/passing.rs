//! Real connections in modes that keep the client's address, between network namespaces.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use lemonade::proxy::adapters::bpf::Decap;
use lemonade_common::PacketReason as Reason;
use lemonade_common::forward::{DOWN, DSR_IPIP, DSR_L2, NAT, NAT_GATEWAY};
use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::binary;
use lemonade_tests::netns::Network;
use lemonade_tests::transfer;
use rustix::process::{Pid, Signal, kill_process};

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

/// As over the link, but the backends' namespace takes off what is put in front.
fn wrapped(test: &str, addresses: [&'static str; 5]) {
    let Some(network) = Network::start(test) else { return };
    let mut decap = Decap::load(&[ip(addresses[1])]).expect("the program passes the verifier");
    network.backends.enter(|| decap.attach("to_balancer")).expect("the interface is there");
    past_the_balancer(&network, addresses, DSR_IPIP);
    let [done, strangers, refused] = decap.counts();
    assert!(done > 120, "{done} packets unwrapped");
    assert_eq!((strangers, refused), (0, 0));
}

#[test]
fn wrapped_transfers_are_exact_under_loss_over_ipv4() {
    wrapped("wrapped_transfers_are_exact_under_loss_over_ipv4", V4);
}

#[test]
fn wrapped_transfers_are_exact_under_loss_over_ipv6() {
    wrapped("wrapped_transfers_are_exact_under_loss_over_ipv6", V6);
}

#[test]
fn wrapped_transfers_of_ipv4_are_exact_over_ipv6() {
    let test = "wrapped_transfers_of_ipv4_are_exact_over_ipv6";
    let [vip, ..] = V4;
    let [_, own, a, b, c] = V6;
    wrapped(test, [vip, own, a, b, c]);
}

#[test]
fn the_command_unwraps_until_it_is_stopped_and_says_how_many() {
    let Some(network) = Network::start("the_command_unwraps_until_it_is_stopped_and_says_how_many") else {
        return;
    };
    let mut child = network.backends.enter(|| {
        let mut decap = Command::new(binary());
        decap.args(["decap", "--interface", "to_balancer", "--from", V4[1]]);
        decap.stdout(Stdio::piped()).spawn().expect("lemonade starts")
    });
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut line = move || lines.next().expect("a line").expect("text");
    assert_eq!(line(), "unwrapping");
    network.pass_by(&["10.77.1.2/32"]);
    let server = network.backends.enter(|| TcpListener::bind((V4[0], PORT))).expect("our address");
    let plane = Plane::start_in(&network, V4, [PORT; 3], DSR_IPIP);
    let client = network.client.enter(|| TcpStream::connect(plane.address())).expect("it is unwrapped");
    let (_, from) = server.accept().expect("a connection");
    assert_eq!(from, client.local_addr().expect("a connected socket"), "the client's own address");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    let told = line();
    assert!(
        told.ends_with(" packets unwrapped, 0 of other senders and 0 others left as they were"),
        "{told}"
    );
    assert!(!told.starts_with("0 "), "{told}");
    assert!(child.wait().expect("it ends").success());
    let gone = network.client.enter(|| TcpStream::connect_timeout(&plane.address(), Duration::from_secs(1)));
    assert!(gone.is_err(), "the program stayed behind");
}

#[test]
fn what_others_wrap_is_left_as_it_is() {
    let Some(network) = Network::start("what_others_wrap_is_left_as_it_is") else { return };
    let mut decap = Decap::load(&[ip("10.77.2.77")]).expect("the program passes the verifier");
    network.backends.enter(|| decap.attach("to_balancer")).expect("the interface is there");
    network.pass_by(&["10.77.1.2/32"]);
    let plane = Plane::start_in(&network, V4, [PORT; 3], DSR_IPIP);
    let refused =
        network.client.enter(|| TcpStream::connect_timeout(&plane.address(), Duration::from_millis(1_500)));
    assert!(refused.is_err(), "nobody takes the header off");
    let [done, strangers, refused] = decap.counts();
    assert!(done == 0 && strangers > 0 && refused == 0, "{done}, {strangers}, {refused}");
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
