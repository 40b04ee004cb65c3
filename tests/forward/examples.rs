//! The examples that ship, as they are, between namespaces that have their addresses.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::tally;
use lemonade_tests::netns::Network;
use lemonade_tests::setup::Setup;

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
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples").join(example);
    let text = std::fs::read_to_string(file).expect("the example");
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
