//! Modes in which backends see the client's own address, from the file to the bytes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::{Lemonade, run};
use lemonade_tests::load::{Header, Kind, tally};
use lemonade_tests::netns::Network;
use lemonade_tests::setup::Setup;
use lemonade_tests::{transfer, wait};
use rustix::process::Signal;

use crate::stage::{Addresses, V4, V6, ask, packets, parse, start};

/// Balancer's own addresses towards backends.
const OWN: [&str; 2] = ["10.77.2.2", "fd77:2::2"];

/// Transfers whose bytes are checked at both ends, with one packet in a hundred lost at each.
fn exact(network: &Network, address: SocketAddr) {
    for namespace in [&network.client, &network.backends] {
        namespace.filter("meta l4proto tcp numgen random mod 100 < 1 drop");
    }
    let mut plan = transfer::plan(9, 60, 16 << 20);
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

fn in_mode(mode: &str, setup: Setup) -> Setup {
    setup.frontend(&[&format!("forward.mode = \"{mode}\"")])
}

/// Backends answer clients by way of the balancer.
fn gateway(network: &Network) {
    network.backends.ip("route add 10.77.1.0/24 via 10.77.2.2");
    network.backends.ip("route add fd77:1::/64 via fd77:2::2");
}

fn by_the_gateway(test: &str, addresses: &Addresses) {
    let Some(network) = Network::start(test) else { return };
    gateway(&network);
    let backends = addresses.speaking(&network);
    let lemonade = start(&network, &in_mode("nat-gateway", addresses.setup(&backends)));
    assert_eq!(lemonade.status().frontend("web")["relay"], "nat-gateway");
    exact(&network, addresses.frontend());
    for backend in &backends {
        assert!(backend.truth().served() > 0, "a backend served none");
        assert_eq!(backend.truth().failures(), [""; 0]);
    }
    let held = network.client.enter(|| TcpStream::connect(addresses.frontend())).expect("a connection");
    let client = held.local_addr().expect("a connected socket").to_string();
    let socket = lemonade.socket();
    let why = run(&["why", &client, "--admin", socket.to_str().expect("UTF-8")]);
    let why = String::from_utf8(why.stdout).expect("text");
    assert!(why.contains("over forward/nat-gateway"), "{why}");
}

#[test]
fn by_the_gateway_backends_see_clients_over_ipv4() {
    by_the_gateway("by_the_gateway_backends_see_clients_over_ipv4", &V4);
}

#[test]
fn by_the_gateway_backends_see_clients_over_ipv6() {
    by_the_gateway("by_the_gateway_backends_see_clients_over_ipv6", &V6);
}

/// One server at the frontend's own address stands for three backends, which share a namespace.
fn past_the_balancer(network: &Network, addresses: &Addresses, backends: [&str; 3], mode: &str) {
    network.pass_by(&["10.77.1.2/32", "fd77:1::2/128"]);
    let vip = addresses.frontend();
    let server = network.backends.enter(|| Backend::start_speaking_on("all", vip));
    let at = backends.map(|backend| SocketAddr::new(parse(backend).ip(), vip.port()));
    let lemonade = start(network, &in_mode(mode, addresses.setup_at(&at)));
    assert_eq!(lemonade.status().frontend("web")["relay"], mode);
    exact(network, vip);
    assert_eq!(server.truth().failures(), [""; 0]);
    wait::until("flows end some seconds after the client's FIN", 2 * wait::SOON, || {
        let metrics = lemonade.metrics();
        let of = |name: &str| metrics.sum(&format!("lemonade_forward_flows_{name}"), &[]);
        (of("opened_total"), of("closed_total"), of("live")) == (60, 60, 0)
    });
    let metrics = lemonade.metrics();
    assert!(["a", "b", "c"].iter().all(|name| metrics.picks(name) > 0), "one got none");
    let (up, down) = metrics.bytes();
    assert!(up > 1 << 20 && down == 0, "answers pass by: {up} up, {down} down");
    assert_eq!(packets(&lemonade, "not_sent"), 0);
}

#[test]
fn over_the_link_answers_pass_by_over_ipv4() {
    let Some(network) = Network::start("over_the_link_answers_pass_by_over_ipv4") else { return };
    past_the_balancer(&network, &V4, V4.backends, "dsr-l2");
}

#[test]
fn over_the_link_answers_pass_by_over_ipv6() {
    let Some(network) = Network::start("over_the_link_answers_pass_by_over_ipv6") else { return };
    past_the_balancer(&network, &V6, V6.backends, "dsr-l2");
}

/// As over the link, with `lemonade decap` at the backends.
fn wrapped(test: &str, addresses: &Addresses, backends: [&str; 3]) {
    let Some(network) = Network::start(test) else { return };
    let _decap = network.backends.enter(Unwrapping::start);
    past_the_balancer(&network, addresses, backends, "dsr-ipip");
}

/// `lemonade decap`, stopped when dropped.
pub struct Unwrapping(std::process::Child);

impl Unwrapping {
    pub fn start() -> Self {
        let mut decap = std::process::Command::new(lemonade_tests::lemonade::binary());
        decap.args(["decap", "--interface", "to_balancer"]).args(OWN.map(|own| format!("--from={own}")));
        let mut child = decap.stdout(std::process::Stdio::piped()).spawn().expect("lemonade starts");
        let mut ready = [0; 11];
        child.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("it says so");
        assert_eq!(&ready, b"unwrapping\n");
        Self(child)
    }
}

impl Drop for Unwrapping {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
        assert!(self.0.wait().expect("it ends").success());
    }
}

#[test]
fn wrapped_packets_reach_their_backends_over_ipv4() {
    wrapped("wrapped_packets_reach_their_backends_over_ipv4", &V4, V4.backends);
}

#[test]
fn wrapped_packets_reach_their_backends_over_ipv6() {
    wrapped("wrapped_packets_reach_their_backends_over_ipv6", &V6, V6.backends);
}

#[test]
fn wrapped_ipv4_reaches_backends_of_both_versions() {
    let both = [V4.backends[0], V6.backends[1], V6.backends[2]];
    wrapped("wrapped_ipv4_reaches_backends_of_both_versions", &V4, both);
}

/// Whoever starts with the same seed and backends knows by the ring where a flow goes that its table does not have.
#[test]
fn connections_outlive_the_process_where_the_ring_tells_their_backend() {
    let test = "connections_outlive_the_process_where_the_ring_tells_their_backend";
    let Some(network) = Network::start(test) else { return };
    gateway(&network);
    let backends = V4.backends(&network);
    let setup = in_mode("nat-gateway", V4.setup(&backends).runtime(&["hash_seed = \"the same\""]));
    let mut lemonade = start(&network, &setup);
    let open = |n: u64| {
        let mut stream = TcpStream::connect(V4.frontend()).expect("a connection");
        stream.set_read_timeout(Some(wait::SOON)).expect("a live socket");
        let header = Header { kind: Kind::Flow, seed: n, up: 0, down: 0 };
        stream.write_all(&header.encode()).expect("a connection");
        stream
    };
    let echoed = |stream: &mut TcpStream, sent: &[u8; 4]| {
        let mut got = [0; 4];
        stream.write_all(sent).expect("the connection lives");
        stream.read_exact(&mut got).expect("an echo");
        assert_eq!(got, *sent);
    };
    let mut held: Vec<TcpStream> = network.client.enter(|| (0..60).map(open).collect());
    held.iter_mut().for_each(|stream| echoed(stream, b"once"));
    lemonade.signal(Signal::KILL);
    lemonade.wait(wait::SOON);
    let lemonade = start(&network, &setup);
    held.iter_mut().for_each(|stream| echoed(stream, b"more"));
    wait::until("each is counted as a flow", wait::SOON, || {
        let live = lemonade.metrics().sum("lemonade_forward_flows_live", &[]);
        (packets(&lemonade, "adopted"), live) == (60, 60)
    });
    let names = ask(&network, V4.frontend(), 30);
    assert_eq!(tally(&names).len(), 3);
}

#[test]
fn a_backend_behind_a_router_gets_nothing_over_the_link() {
    let Some(network) = Network::start("a_backend_behind_a_router_gets_nothing_over_the_link") else {
        return;
    };
    network.balancer.ip("route add 10.99.0.0/24 via 10.77.2.5");
    let port = V4.frontend().port();
    let at = ["10.77.2.3", "10.99.0.1"].map(|ip| SocketAddr::new(ip.parse().expect("an address"), port));
    let lemonade: Lemonade = start(&network, &in_mode("dsr-l2", V4.setup_at(&at)));
    let status = lemonade.status();
    let why = status.frontend("web")["plane_why"].as_str().expect("words").to_owned();
    let told = "backend web/b gets nothing: 10.99.0.1 is behind the router 10.77.2.5, and dsr-l2 needs it on the same link";
    assert!(why.contains(told), "{why}");
}
