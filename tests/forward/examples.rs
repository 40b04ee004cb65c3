//! The examples that ship, as they are, between namespaces that have their addresses.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use lemonade::proxy::adapters::bpf::Decap;
use lemonade_tests::backend::Backend;
use lemonade_tests::cgroup::Cgroup;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::tally;
use lemonade_tests::netns::Network;
use lemonade_tests::setup::Setup;
use lemonade_tests::wait;

use crate::local::{asked, names};
use crate::stage::{ask, parse};

/// A network with the addresses of the examples.
fn network(test: &str) -> Option<Network> {
    let network = Network::start(test)?;
    for address in ["192.0.2.10/32", "2001:db8::10/128 nodad"] {
        network.balancer.ip(&format!("addr add {address} dev to_client"));
    }
    network.client.ip("route add 192.0.2.10/32 via 10.77.1.2");
    network.client.ip("-6 route add 2001:db8::10/128 via fd77:1::2");
    network.balancer.ip("addr add 10.0.0.1/24 dev to_backends");
    network.balancer.ip("addr add fd00::1/64 dev to_backends nodad");
    for address in ["10.0.0.11/24", "10.0.0.12/24", "fd00::11/64 nodad"] {
        network.backends.ip(&format!("addr add {address} dev to_balancer"));
    }
    Some(network)
}

fn run(network: &Network, example: &str) -> Lemonade {
    run_with(network, example, &str::to_owned)
}

fn run_with(network: &Network, example: &str, change: &(dyn Fn(&str) -> String + Sync)) -> Lemonade {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples").join(example);
    let text = change(&std::fs::read_to_string(file).expect("the example"));
    // Its own folder and admin address, so that it meets no other process.
    let head = Setup { frontends: Vec::new(), pools: Vec::new(), ..Setup::single(&[]) };
    network.balancer.enter(|| Lemonade::start_text(|folder| format!("{}\n{text}", head.text(folder))))
}

fn backend(network: &Network, name: &str, address: &str) -> Backend {
    network.backends.enter(|| Backend::start_on(name, parse(address)))
}

#[test]
fn the_example_of_nat_serves_both_ip_versions() {
    let Some(network) = network("the_example_of_nat_serves_both_ip_versions") else { return };
    let _backends = [
        backend(&network, "a", "10.0.0.11:8080"),
        backend(&network, "b", "10.0.0.12:8080"),
        backend(&network, "six", "[fd00::11]:8080"),
    ];
    let lemonade = run(&network, "forward-nat.toml");
    assert_eq!(lemonade.status().frontend("web")["plane"], "forward");
    let names = ask(&network, parse("192.0.2.10:80"), 90);
    let shares = tally(&names);
    assert_eq!(shares.len(), 2, "{shares:?}");
    assert!(shares["a"] > shares["b"], "a has twice the weight: {shares:?}");
    assert!(ask(&network, parse("[2001:db8::10]:80"), 20).iter().all(|name| name == "six"));
}

#[test]
fn the_example_of_xdp_serves_both_ip_versions() {
    let Some(network) = network("the_example_of_xdp_serves_both_ip_versions") else { return };
    crate::hooks::prepare(&network);
    let _backends = [
        backend(&network, "a", "10.0.0.11:8080"),
        backend(&network, "b", "10.0.0.12:8080"),
        backend(&network, "six", "[fd00::11]:8080"),
    ];
    let lemonade = run(&network, "forward-xdp.toml");
    let words = crate::serving::words(&lemonade);
    assert!(words.starts_with("xdp on to_backends, to_client"), "{words}");
    assert_eq!(tally(&ask(&network, parse("192.0.2.10:80"), 60)).len(), 2);
    assert!(ask(&network, parse("[2001:db8::10]:80"), 20).iter().all(|name| name == "six"));
}

#[test]
fn the_example_of_local_clients_serves_both_ip_versions() {
    let test = "the_example_of_local_clients_serves_both_ip_versions";
    let Some(network) = network(test) else { return };
    let _backends = [
        backend(&network, "near", "10.0.0.11:5432"),
        backend(&network, "far", "10.0.0.12:5432"),
        backend(&network, "six", "[fd00::11]:5432"),
    ];
    let cgroup = Cgroup::make(test);
    // Where the hierarchy is, and what is in it, differs between hosts.
    let path = cgroup.path().to_str().expect("UTF-8");
    let lemonade = run_with(&network, "forward-connect.toml", &|text| {
        assert!(text.contains("/sys/fs/cgroup/app.slice"));
        text.replace("/sys/fs/cgroup/app.slice", path)
    });
    assert_eq!(lemonade.status().frontend("db")["plane"], "forward");
    let inside = |address| names(asked(&network, Some(&cgroup), "tcp", parse(address), 60), parse(address));
    let said = inside("127.0.0.1:5432");
    let shares = tally(&said);
    assert!(shares["near"] > shares["far"], "{shares:?}");
    assert!(inside("[::1]:5432").iter().all(|name| name == "six"));
}

#[test]
fn the_example_of_datagrams_keeps_a_client_at_one_server() {
    let Some(network) = network("the_example_of_datagrams_keeps_a_client_at_one_server") else { return };
    for address in ["10.0.0.11:53", "10.0.0.12:53"] {
        let address: SocketAddr = parse(address);
        let server = network.backends.enter(|| UdpSocket::bind(address)).expect("our address");
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            server.set_read_timeout(Some(Duration::from_secs(30))).expect("a live socket");
            while let Ok((_, from)) = server.recv_from(&mut buffer) {
                server.send_to(address.to_string().as_bytes(), from).expect("the balancer is near");
            }
        });
    }
    let lemonade = run(&network, "forward-udp.toml");
    assert_eq!(lemonade.status().frontend("dns")["plane"], "forward");
    let answers: Vec<String> = network.client.enter(|| {
        let ask = |_| {
            let client = UdpSocket::bind("0.0.0.0:0").expect("a free port");
            client.set_read_timeout(Some(Duration::from_secs(10))).expect("a live socket");
            client.connect("192.0.2.10:53").expect("a route");
            client.send(b"who").expect("a route");
            let mut buffer = [0; 512];
            let length = client.recv(&mut buffer).expect("an answer");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        (0..20).map(ask).collect()
    });
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}

#[test]
fn the_example_of_the_gateway_lets_backends_see_clients() {
    let Some(network) = network("the_example_of_the_gateway_lets_backends_see_clients") else { return };
    network.backends.ip("route add 10.77.1.0/24 via 10.0.0.1");
    let _backends = [backend(&network, "a", "10.0.0.11:8080"), backend(&network, "b", "10.0.0.12:8080")];
    let lemonade = run(&network, "forward-nat-gateway.toml");
    assert_eq!(lemonade.status().frontend("web")["relay"], "nat-gateway");
    let names = ask(&network, parse("192.0.2.10:80"), 20);
    assert_eq!(tally(&names).len(), 1, "a client keeps its backend: {names:?}");
}

/// One server stands for the backends of an example, whose answers pass by the balancer.
fn passes_by(test: &str, example: &str, mode: &str, backends: [&str; 2]) {
    let Some(network) = network(test) else { return };
    network.pass_by(&["192.0.2.10/32"]);
    let _server = backend(&network, "both", "[::]:80");
    let decap = (mode == "dsr-ipip").then(|| {
        let addresses = ["10.0.0.1", "fd00::1"].map(|own| own.parse().expect("an address"));
        let mut decap = Decap::load(&addresses).expect("the program passes the verifier");
        network.backends.enter(|| decap.attach("to_balancer")).expect("the interface is there");
        decap
    });
    let lemonade = run(&network, example);
    assert_eq!(lemonade.status().frontend("web")["relay"], mode);
    assert_eq!(ask(&network, parse("192.0.2.10:80"), 60).len(), 60);
    wait::until("each backend has had some", wait::SOON, || {
        let metrics = lemonade.metrics();
        backends.map(|name| metrics.picks(name)).iter().sum::<u64>() == 60
    });
    let metrics = lemonade.metrics();
    assert!(backends.iter().all(|name| metrics.picks(name) > 10), "one has had few");
    assert!(decap.is_none_or(|decap| decap.counts()[0] > 60));
}

#[test]
fn the_example_of_answers_over_the_link_serves() {
    let test = "the_example_of_answers_over_the_link_serves";
    passes_by(test, "forward-dsr-l2.toml", "dsr-l2", ["a", "b"]);
}

#[test]
fn the_example_of_wrapped_packets_serves() {
    passes_by("the_example_of_wrapped_packets_serves", "forward-dsr-ipip.toml", "dsr-ipip", ["a", "six"]);
}
